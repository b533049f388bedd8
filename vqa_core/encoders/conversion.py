"""Published weights without the risk of a pickle: ``python -m vqa_core weights convert IN OUT.safetensors``.

A pickle is a program: reading it with ``pickle.load`` runs whatever its author wrote. Here a pickle of arrays may name
nothing but an array and its number type, and even these are built by the few lines below, from bytes, shape and type.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import pickle
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

if TYPE_CHECKING:  # torch is imported where it is used: the command line's help must stay light
    from torch import Tensor

NUMBER_TYPES = "biuf"  # kinds of numpy.dtype that are weights: truth values, integers, floats
ZIP, NPY = b"PK\x03\x04", b"\x93NUMPY"
LEGACY_TORCH = b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19."  # the pickled number with which old torch files begin


class _Type:
    """Stands for a ``numpy.dtype`` while a pickle is read."""

    __slots__ = ("dtype",)

    def __init__(self, code: str, align: Any = False, copy: Any = True) -> None:
        self.dtype = np.dtype(code)
        if self.dtype.kind not in NUMBER_TYPES or self.dtype.subdtype:
            raise ValueError(f"it holds an array of type {code!r}; allowed are numbers")

    def __setstate__(self, state: tuple) -> None:
        self.dtype = self.dtype.newbyteorder(state[1])  # the rest of the state is empty for numbers


class _Array:
    """Stands for a ``numpy.ndarray`` while a pickle is read."""

    __slots__ = ("array",)

    def __init__(self, *ignored: Any) -> None:
        self.array = None

    def __setstate__(self, state: tuple) -> None:
        _, shape, kind, by_columns, content = state
        flat = np.frombuffer(content.encode("latin1") if isinstance(content, str) else content, kind.dtype)
        self.array = flat.reshape(shape, order="F" if by_columns else "C")  # numpy refuses sizes that disagree


class _Call(NamedTuple):
    """What a pickle gets for a name: it can be called, but as a tuple it cannot be changed by the file."""

    make: Callable[..., Any]

    def __call__(self, *arguments: Any) -> Any:
        return self.make(*arguments)


def _bytes(text: str, encoding: str) -> bytes:
    return text.encode(encoding)


def _from_buffer(content: bytes, kind: _Type, shape: tuple, order: str) -> _Array:
    array = _Array()
    array.__setstate__((1, shape, kind, order == "F", content))
    return array


ALLOWED = {
    ("numpy", "ndarray"): _Call(_Array),
    ("numpy", "dtype"): _Call(_Type),
    ("numpy.core.multiarray", "_reconstruct"): _Call(_Array),  # numpy 1
    ("numpy._core.multiarray", "_reconstruct"): _Call(_Array),  # numpy 2
    ("numpy.core.numeric", "_frombuffer"): _Call(_from_buffer),  # protocol 5
    ("numpy._core.numeric", "_frombuffer"): _Call(_from_buffer),
    ("_codecs", "encode"): _Call(_bytes),  # how bytes are written up to protocol 2
    ("__builtin__", "bytes"): _Call(lambda: b""),  # and how no bytes are
    ("collections", "OrderedDict"): _Call(OrderedDict),
}


class ArrayUnpickler(pickle.Unpickler):
    """Reads pickles of plain containers and numpy arrays of numbers; every other name is refused before it is used."""

    def find_class(self, module: str, name: str) -> Any:
        """The stand-in of an allowed name.

        Raises
        ------
        ValueError
            For any other name, which is neither imported nor called.
        """
        if (module, name) not in ALLOWED:
            raise ValueError(
                f"it asks for {module}.{name}, which could run any code; only arrays of numbers are read. "
                "Do not open it with pickle.load: ask its author for safetensors"
            )
        return ALLOWED[module, name]


def unpickle(path: str | Path) -> Any:
    """What a pickle of plain containers and arrays holds; nothing in the file is run.

    Parameters
    ----------
    path
        A pickle of any protocol, whose arrays lie inside the file.

    Raises
    ------
    ValueError
        When the file asks for anything but arrays of numbers, or is damaged; the message names the file.
    """
    path = _existing(path)
    try:
        with path.open("rb") as file:
            return _finished(ArrayUnpickler(file).load())
    except Exception as error:  # a damaged pickle can fail in any way; each is reported with the file's name
        raise ValueError(f"{path} was not read: {error}") from error


def _finished(value: Any) -> Any:
    """Stand-ins replaced by their arrays, in dicts, lists and tuples."""
    if isinstance(value, _Array):
        if value.array is None:
            raise ValueError("it has an array without content")
        return value.array
    if isinstance(value, dict):
        return {_finished(k): _finished(v) for k, v in value.items()}
    if type(value) in (list, tuple):
        return type(value)(_finished(v) for v in value)
    if value is None or isinstance(value, str | bytes | int | float):
        return value
    raise ValueError(f"it holds a {type(value).__name__}; allowed are arrays, numbers and text in dicts and lists")


def read_weights(path: str | Path) -> dict[str, Tensor]:
    """Named tensors from safetensors, ``.npy``, a torch state dict, or a pickle of numpy arrays.

    Safetensors are told by the end of the name, the others by their first bytes. ``.npy`` gives one tensor, ``array``.

    Parameters
    ----------
    path
        A file. State dicts are read with ``weights_only=True``, pickles through :class:`ArrayUnpickler`.

    Raises
    ------
    FileNotFoundError
        When there is no such file.
    ValueError
        When it is none of these, holds something else than tensors, or asks to run code. Nothing is run.
    """
    import torch

    path = _existing(path)
    with path.open("rb") as file:
        start = file.read(len(LEGACY_TORCH))
    if path.suffix == ".safetensors":
        from safetensors import SafetensorError
        from safetensors.torch import load_file

        try:
            return load_file(path)
        except SafetensorError as error:
            raise ValueError(f"{path} is not a safetensors file: {error}") from error
    if start.startswith(NPY):
        found: Any = {"array": _npy(path)}
    elif start.startswith(ZIP) or start == LEGACY_TORCH:
        try:
            found = torch.load(path, map_location="cpu", weights_only=True)
        except (pickle.UnpicklingError, RuntimeError, EOFError) as error:
            raise ValueError(f"{path} was not read: it is more than a state dict, or damaged ({error})") from error
    else:
        found = unpickle(path)
    if not isinstance(found, dict) or not found:
        raise ValueError(f"{path} holds a {type(found).__name__}, expected a dict of named arrays")
    return {name: _tensor(path, name, value) for name, value in found.items()}


def _npy(path: Path) -> np.ndarray:
    try:
        return np.load(path, allow_pickle=False)
    except ValueError as error:
        raise ValueError(f"{path} was not read: {error}") from error


def _tensor(path: Path, name: Any, value: Any) -> Tensor:
    import torch

    if not isinstance(name, str):
        raise ValueError(f"{path}: the name {name!r} is not text")
    if isinstance(value, np.ndarray) and value.dtype.kind in NUMBER_TYPES:
        native = value.astype(value.dtype.newbyteorder("="), order="C")  # a copy that may be written
        return torch.from_numpy(native)
    if isinstance(value, torch.Tensor) and value.layout == torch.strided:
        return value.detach().contiguous()
    raise ValueError(f"{path}: {name!r} is a {type(value).__name__}, expected an array of numbers")


def read_words(path: str | Path) -> list[str]:
    """The words of a published ``dictionary.pkl`` in the order of their rows; no name at all is needed to read it.

    The file is a pickled list: a dict word → row, and the list of words.

    Raises
    ------
    ValueError
        When the file is something else, or its two halves disagree.
    """
    found = unpickle(path)
    if not (isinstance(found, list) and len(found) == 2 and isinstance(found[0], dict) and isinstance(found[1], list)):
        raise ValueError(f"{path} is not a dictionary: expected a list of a dict (word → row) and a list of words")
    rows, words = found
    if rows != {word: row for row, word in enumerate(words)} or not all(isinstance(w, str) for w in words):
        raise ValueError(f"{path}: the dict (word → row) and the list of words disagree")
    return words


def convert(source: str | Path, target: str | Path, words: str | Path | None = None) -> dict[str, Tensor]:
    """Write weights as safetensors, under the names and with the axes that they had.

    The metadata say where they came from (``source``, ``sha256``), and, for word vectors, which row is which word
    (``words``, a JSON list). The target appears at once and whole, or not at all.

    Parameters
    ----------
    source
        See :func:`read_weights`.
    target
        Ends in ``.safetensors``; its folder exists.
    words
        A ``dictionary.pkl`` (:func:`read_words`) with one word per row of the only tensor.

    Returns
    -------
    dict
        What was written: name → tensor.
    """
    from safetensors.torch import save_file

    source, target = Path(source), Path(target)
    if target.suffix != ".safetensors":
        raise ValueError(f"the target is {target}; give a name that ends in .safetensors")
    if not target.parent.is_dir():
        raise FileNotFoundError(f"there is no folder {target.parent} to write {target.name} into; make it first")
    tensors = read_weights(source)
    metadata = {"format": "pt", "source": source.name, "sha256": hashlib.sha256(source.read_bytes()).hexdigest()}
    if words is not None:
        listed = read_words(words)
        if len(tensors) != 1 or len(next(iter(tensors.values()))) != len(listed):
            sizes = {name: tuple(value.shape) for name, value in tensors.items()}
            raise ValueError(f"{words} has {len(listed)} words, {source} has {sizes}; expected one row per word")
        metadata["words"] = json.dumps(listed, ensure_ascii=False)
    part = target.with_name(f".{target.name}.{os.getpid()}")
    try:
        own = {name: value.clone() for name, value in tensors.items()}  # safetensors refuses shared memory
        save_file(own, part, metadata=metadata)
        part.replace(target)
    finally:
        part.unlink(missing_ok=True)
    return tensors


def _existing(path: str | Path) -> Path:
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"there is no weights file {path}")
    return path


def add_parser(subparsers: argparse._SubParsersAction) -> None:
    """Add the ``weights`` sub-command; its handler is ``arguments.run(arguments)`` and returns the exit code."""
    parser = subparsers.add_parser("weights", help="convert published weights to safetensors, without running a pickle")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    command = commands.add_parser("convert", help="a pickle of arrays, a torch state dict or .npy → safetensors")
    command.add_argument("source", metavar="IN", help="the published file")
    command.add_argument("target", metavar="OUT.safetensors", help="the file to write")
    command.add_argument("--words", metavar="DICTIONARY.pkl", help="for word vectors: the word of each row")
    command.set_defaults(run=_convert)


def _convert(args: argparse.Namespace) -> int:
    tensors = convert(args.source, args.target, args.words)
    for name, value in tensors.items():
        print(f"{name:<24} {str(value.dtype).removeprefix('torch.'):<8} {tuple(value.shape)}")
    print(f"{args.target}: {len(tensors)} tensors, {sum(v.numel() for v in tensors.values()):,} numbers")
    return 0
