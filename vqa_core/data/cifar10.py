"""CIFAR-10: 60,000 pictures of 32 × 32 pixels in ten classes (Krizhevsky 2009, "Learning multiple layers of features
from tiny images").

Two forms are read. The *official* one, "CIFAR-10 python version": five batches for training and one for testing, which
are pickles; nothing but arrays of numbers is taken from them. The other is *pictures*: ``train`` and ``test``, each a
zip archive or a folder with ``<class>/<name>.jpg`` or ``.png``. JPEG copies that circulate are encoded anew, with loss.
"""

from __future__ import annotations

import hashlib
import pickle
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np

from vqa_core.data import root as files

CLASSES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
SIZE = 32
SPLITS = {"train": "50,000 pictures, 5,000 of each class", "test": "10,000 pictures, 1,000 of each class"}
OFFICIAL = "cifar-10-batches-py"
BATCHES = {"train": tuple(f"data_batch_{i}" for i in range(1, 6)), "test": ("test_batch",)}
LAYOUT = f"{OFFICIAL}/ (official), or train and test, each a .zip or a folder with <class>/<name>.jpg"
MARKS = (OFFICIAL, "train.zip", "train/airplane")
_WHOLE = {"train": 50_000, "test": 10_000}


@dataclass(frozen=True)
class LabelledPictures:
    """Pictures with a class each.

    Attributes
    ----------
    split
        ``"train"``, ``"test"``, or a part of one.
    form
        ``"official"`` or ``"pictures"``.
    pictures
        uint8 (n, 32, 32, 3).
    labels
        int64 (n,), positions in :data:`CLASSES`.
    """

    split: str
    form: str
    pictures: np.ndarray
    labels: np.ndarray

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def is_whole(self) -> bool:
        """Whether these are all pictures of the split."""
        return len(self) == _WHOLE.get(self.split)

    def content_hash(self) -> str:
        """SHA-256 over pixels and labels."""
        digest = hashlib.sha256(np.ascontiguousarray(self.pictures).tobytes())
        digest.update(self.labels.astype("<i8").tobytes())
        return digest.hexdigest()

    def per_class(self, start: int, stop: int | None, split: str | None = None) -> LabelledPictures:
        """Of each class, the pictures from position ``start`` up to ``stop`` (None: to its end), in their order."""
        keep = [np.flatnonzero(self.labels == c)[start:stop] for c in range(len(CLASSES))]
        rows = np.sort(np.concatenate(keep))
        return LabelledPictures(split or self.split, self.form, self.pictures[rows], self.labels[rows])


def find(root: str | Path | None = None) -> Path:
    """The folder of CIFAR-10.

    Raises
    ------
    FileNotFoundError
        When there is none; says how to get it.
    """
    try:
        return files.find_folder("cifar10", MARKS, LAYOUT, root)
    except FileNotFoundError:
        base = files.data_root(root)
        raise FileNotFoundError(
            f"cifar10 was not found in {base}. Set the environment variable VQA_DATA to a folder that holds cifar10/ "
            f"with {LAYOUT}. torchvision downloads the official form (170 MB) and compares its checksum: "
            f"torchvision.datasets.CIFAR10({str(base / 'cifar10')!r}, download=True)"
        ) from None


def count(split: str, root: str | Path | None = None) -> int:
    """Number of pictures of a split that lie there, without reading them; the official form is taken to be whole."""
    files.check_split("cifar10", split, list(SPLITS))
    folder = find(root)
    if (folder / OFFICIAL).is_dir():
        return _WHOLE[split]
    archive, plain = folder / f"{split}.zip", folder / split
    if archive.is_file():
        with zipfile.ZipFile(archive) as z:
            return sum(not name.endswith("/") for name in z.namelist())
    return sum(path.is_file() for path in plain.rglob("*"))


def load(split: str = "train", root: str | Path | None = None) -> LabelledPictures:
    """One split of CIFAR-10; of a copy with fewer pictures, what is there.

    Parameters
    ----------
    split
        ``"train"`` or ``"test"``.
    root
        The folder that holds ``cifar10/``, or that folder itself; default ``VQA_DATA``.

    Raises
    ------
    FileNotFoundError
        When the data set or one of its files is missing.
    ValueError
        When a file is damaged or holds something else; names it.
    """
    files.check_split("cifar10", split, list(SPLITS))
    folder = find(root)
    if (folder / OFFICIAL).is_dir():
        parts = [_read_batch(folder / OFFICIAL / name) for name in BATCHES[split]]
        pictures, labels = (np.concatenate(of) for of in zip(*parts))
        return LabelledPictures(split, "official", pictures, labels)
    found = sorted(_members(folder, split))
    if not found:
        raise ValueError(f"{folder / split}: no pictures in it; expected {LAYOUT}")
    pictures = np.stack([_picture(where, content) for _, _, where, content in found])  # (n, 32, 32, 3)
    return LabelledPictures(split, "pictures", pictures, np.array([label for label, *_ in found], dtype=np.int64))


# -- pictures ---------------------------------------------------------------------------------------------------------


def _members(folder: Path, split: str) -> Iterator[tuple[int, str, str, bytes]]:
    """Label, name, place for error messages and content of each picture of a zip archive or a folder."""
    archive, plain = folder / f"{split}.zip", folder / split
    if archive.is_file():
        try:
            with zipfile.ZipFile(archive) as z:
                for name in (n for n in z.namelist() if not n.endswith("/")):
                    yield *_label(name, f"{archive}, member {name}"), z.read(name)
        except zipfile.BadZipFile as error:
            raise ValueError(f"{archive}: damaged archive ({error}); get the file again") from error
    elif plain.is_dir():
        for path in (p for p in plain.rglob("*") if p.is_file()):
            yield *_label(path.relative_to(plain).as_posix(), str(path)), path.read_bytes()
    else:
        raise FileNotFoundError(f"{folder} has neither {split}.zip nor {split}/; expected {LAYOUT}")


def _label(name: str, where: str) -> tuple[int, str, str]:
    path = PurePosixPath(name)
    if len(path.parts) != 2 or path.parts[0] not in CLASSES or path.suffix not in (".jpg", ".png"):
        raise ValueError(f"{where}: expected <class>/<name>.jpg or .png, with a class of {', '.join(CLASSES)}")
    return CLASSES.index(path.parts[0]), path.name, where


def _picture(where: str, content: bytes) -> np.ndarray:
    picture = files.read_picture(content, where)
    if picture.shape != (SIZE, SIZE, 3):
        raise ValueError(f"{where}: {picture.shape[1]} × {picture.shape[0]} pixels, expected {SIZE} × {SIZE}")
    return picture


# -- the official form ------------------------------------------------------------------------------------------------


class _BatchUnpickler(pickle.Unpickler):
    """Reads dicts, lists, numbers, text and arrays; whatever else a pickle names is refused, and nothing is run."""

    def find_class(self, module: str, name: str) -> Any:
        if (module.replace("numpy.core.", "numpy._core."), name) == ("numpy._core.multiarray", "_reconstruct"):
            return np._core.multiarray._reconstruct
        if (module, name) in (("numpy", "ndarray"), ("numpy", "dtype")):
            return getattr(np, name)
        if (module, name) == ("_codecs", "encode"):  # how bytes are written by Python 3 up to protocol 2
            return lambda text, encoding: text.encode(encoding)
        raise ValueError(f"it asks for {module}.{name}, which could run any code")


def _read_batch(path: Path) -> tuple[np.ndarray, np.ndarray]:
    """Pictures uint8 (n, 32, 32, 3) and labels int64 (n,) of one official batch."""
    if not path.is_file():
        raise FileNotFoundError(f"{path} is missing; the official form has {', '.join(sum(BATCHES.values(), ()))}")
    try:
        with path.open("rb") as file:
            batch = _BatchUnpickler(file, encoding="latin1").load()  # written by Python 2
        data, labels = np.asarray(batch["data"]), np.asarray(batch["labels"], dtype=np.int64)
    except Exception as error:  # a damaged pickle can fail in any way; each is reported with the file's name
        raise ValueError(f"{path} was not read as a batch of CIFAR-10 ({error}); get the file again") from error
    right = (
        data.dtype == np.uint8 and data.ndim == 2 and data.shape[1] == 3 * SIZE**2 and labels.shape == data.shape[:1]
    )
    if not right or labels.min() < 0 or labels.max() >= len(CLASSES):
        raise ValueError(
            f"{path}: data is {data.dtype} {data.shape} with {labels.shape} labels; expected uint8 (n, 3072) and n "
            "labels from 0 to 9: get the file again"
        )
    return data.reshape(-1, 3, SIZE, SIZE).transpose(0, 2, 3, 1).copy(), labels  # (n, 32, 32, 3)
