"""Where real data sets lie and how their files are read; every error names the file, the record and the remedy."""

from __future__ import annotations

import io
import json
import os
import stat
import tarfile
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Any

import numpy as np


def cache_folder() -> Path:
    """Where data sets go when ``VQA_DATA`` is not set: ``~/.cache/vqa_core``."""
    return Path.home() / ".cache" / "vqa_core"


def data_root(root: str | Path | None = None) -> Path:
    """The folder that holds one folder per data set: ``root``, else ``VQA_DATA``, else :func:`cache_folder`."""
    return Path(root or os.environ.get("VQA_DATA") or cache_folder()).expanduser()


def find_folder(name: str, marks: Sequence[str], layout: str, root: str | Path | None = None) -> Path:
    """The folder of one data set.

    Parameters
    ----------
    name
        Name of the data set, which is also the name of its folder.
    marks
        Glob patterns; a folder in which one of them matches is a folder of this data set.
    layout
        What is expected there, for the error message.
    root
        The folder that holds ``name/``, or that folder itself; default as in :func:`data_root`.

    Raises
    ------
    FileNotFoundError
        When neither holds the data set; says how to get it.
    ValueError
        When both do.
    """
    base = data_root(root)
    found = [f for f in (base / name, base) if f.is_dir() and any(next(f.glob(mark), None) for mark in marks)]
    if len(found) == 2:
        raise ValueError(f"{name}: both {found[0]} and {found[1]} hold this data set; give the first as root")
    if found:
        return found[0]
    asked = "root" if root else "VQA_DATA" if os.environ.get("VQA_DATA") else "VQA_DATA is not set; the default folder"
    raise FileNotFoundError(
        f"{name} was not found ({asked}: {base}). Set the environment variable VQA_DATA to a folder that holds "
        f"{name}/ with {layout}, or get it there with: python -m vqa_core data fetch {name}"
    )


def read_picture(source: Path | bytes, where: str | None = None) -> np.ndarray:
    """A picture file, or the bytes of one, as RGB on white, uint8 (H, W, 3).

    Raises
    ------
    FileNotFoundError
        When there is no such file.
    ValueError
        When it is damaged, or has more than 8 bits per channel.
    """
    from PIL import Image, ImageOps, UnidentifiedImageError

    where = where or str(source)
    try:
        with Image.open(io.BytesIO(source) if isinstance(source, bytes) else source) as opened:
            picture = ImageOps.exif_transpose(opened)  # upright, as the camera held it
            if picture.mode.startswith(("I", "F")):
                raise ValueError(
                    f"{where}: mode {picture.mode!r} has more than 8 bits per channel; convert it to PNG-8"
                )
            if "A" in picture.getbands() or "transparency" in picture.info:
                picture = picture.convert("RGBA")
                white = Image.new("RGBA", picture.size, "white")
                picture = Image.alpha_composite(white, picture)
            return np.asarray(picture.convert("RGB"))  # (H, W, 3)
    except FileNotFoundError:
        raise FileNotFoundError(f"{where}: the picture is missing; `data check` lists all that are missing") from None
    except (UnidentifiedImageError, OSError, SyntaxError, Image.DecompressionBombError) as error:
        raise ValueError(f"{where}: damaged picture ({error}); delete it and get the data set again") from error


def read_text(path: Path) -> str:
    """A UTF-8 text file; errors name it."""
    if not path.is_file():
        raise FileNotFoundError(f"{path} is missing; `data fetch` gets the data set again")
    try:
        return path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise ValueError(f"{path}: not UTF-8 text ({error}); get the file again") from error


def read_json(path: Path) -> Any:
    """A JSON file; errors name the file, line and column."""
    try:
        return json.loads(read_text(path))
    except json.JSONDecodeError as error:
        raise ValueError(f"{path}, line {error.lineno}: not JSON ({error.msg}); get the file again") from error


def read_json_lines(path: Path) -> Iterator[tuple[str, dict]]:
    """The records of a file with one JSON object per line, each with its place ("file, line n") for error messages."""
    for number, line in enumerate(read_text(path).splitlines(), start=1):
        where = f"{path}, line {number}"
        try:
            record = json.loads(line)
        except json.JSONDecodeError as error:
            raise ValueError(f"{where}: not JSON ({error.msg}): {line[:60]!r}; get the file again") from error
        if not isinstance(record, dict):
            raise ValueError(f"{where}: expected a JSON object, got {line[:60]!r}")
        yield where, record


def read_lines(path: Path) -> list[str]:
    """The lines of a text file, stripped; an empty line is an error."""
    lines = [line.strip() for line in read_text(path).splitlines()]
    if "" in lines:
        raise ValueError(f"{path}, line {lines.index('') + 1}: empty; get the file again")
    return lines


def field(record: Mapping[str, Any], key: str, where: str, types: type | tuple[type, ...] = str) -> Any:
    """``record[key]``, which must be there, be of one of ``types`` and, if text, not be empty."""
    if key not in record:
        raise ValueError(f"{where}: no field {key!r}; it has {sorted(record)}")
    value = record[key]
    if not isinstance(value, types) or (isinstance(value, str) and not value.strip()):
        raise ValueError(f"{where}: field {key!r} is {value!r}; it must be a non-empty value of the official type")
    return value


def choice(value: str, allowed: Sequence[str], what: str, where: str) -> str:
    """``value`` if it is one of ``allowed``."""
    if value not in allowed:
        raise ValueError(
            f"{where}: {what} is {value!r}, allowed are {', '.join(allowed)}; correct or remove the record"
        )
    return value


def check_split(name: str, split: str, splits: Sequence[str]) -> None:
    """Refuse a split that the data set does not have."""
    if split not in splits:
        raise ValueError(f"{name} has no split {split!r}; allowed are {', '.join(splits)}")


def extract(archive: str | Path, folder: str | Path) -> None:
    """Unpack a zip or tar archive into ``folder``, and never outside of it.

    The whole list of members is checked before anything is written.

    Raises
    ------
    ValueError
        When the file is no zip or tar archive, or has a member with an absolute path, a ``..``, or that is a link
        or a device.
    """
    archive, folder = Path(archive), Path(folder)
    if not archive.is_file():
        raise FileNotFoundError(f"archive {archive} is missing")
    if zipfile.is_zipfile(archive):
        with zipfile.ZipFile(archive) as z:
            for member in z.infolist():
                kind = stat.S_IFMT(member.external_attr >> 16)  # 0 where the archive was not made on Unix
                _check_member(archive, member.filename, plain=kind in (0, stat.S_IFREG, stat.S_IFDIR))
            z.extractall(folder)
    elif tarfile.is_tarfile(archive):
        with tarfile.open(archive) as t:
            for member in t.getmembers():
                _check_member(archive, member.name, plain=member.isfile() or member.isdir())
            t.extractall(folder, filter="data")
    else:
        raise ValueError(f"{archive} is neither a zip nor a tar archive; delete it and fetch again")


def _check_member(archive: Path, name: str, plain: bool) -> None:
    windows = PureWindowsPath(name)  # splits at \ and at /, and knows drives
    if PurePosixPath(name).is_absolute() or windows.drive or windows.root or ".." in windows.parts:
        raise ValueError(f"{archive}: member {name!r} would be written outside the folder; nothing was extracted")
    if not plain:
        raise ValueError(f"{archive}: member {name!r} is a link or a device; nothing was extracted")
