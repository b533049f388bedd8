"""Flickr8k: photographs with five captions each (Hodosh, Young and Hockenmaier 2013, doi:10.1613/jair.3994).

Two forms circulate: the official one, with lists of the pictures of each split, and a re-distribution as one CSV file,
mostly without these lists. Then a split is drawn here, by picture and always the same; a note says that it is not the
official one.
"""

from __future__ import annotations

import csv
import hashlib
import json
import random
import re
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from vqa_core.data import root as files

CAPTIONS = 5  # of each picture
SPLITS = {
    "train": "official: 6,000 pictures; drawn: six eighths of all",
    "dev": "official: 1,000 pictures; drawn: an eighth of all",
    "test": "official: 1,000 pictures; drawn: an eighth of all",
}
TOKENS, PICTURES = "Flickr8k.token.txt", "Flicker8k_Dataset"  # Flicker8k: spelt so in the official release
TABLE, TABLE_PICTURES = "captions.txt", "Images"
LISTS = {split: f"Flickr_8k.{split}Images.txt" for split in SPLITS}
LAYOUT = f"{TOKENS}, {', '.join(LISTS.values())} and {PICTURES}/ (official), or {TABLE} (image,caption) and Images/"
MARKS = (TOKENS, TABLE)
SHA256: dict[str, str] = {}
#: An entry of the official token file whose picture was never released; no split has it.
WITHOUT_PICTURE = "2258277193_586949ec62.jpg.1"
_ENTRY = re.compile(r"(?P<picture>\S+\.jpg(?:\.1)?)#(?P<number>\d+)\t(?P<caption>.*)")


@dataclass(frozen=True)
class CaptionedPictures:
    """A split of a data set of captions; its pictures are read when asked for.

    Its length is the number of captions, as that of a :class:`~vqa_core.data.types.Dataset` is that of questions.

    Attributes
    ----------
    name, split
        What was asked for.
    picture_ids
        File names of the P pictures.
    captions
        P times five sentences, as the data set has them.
    read_picture
        Maps a picture id to an RGB array, uint8 (H, W, 3).
    notes
        What was left out or drawn on reading, one sentence each.
    """

    name: str
    split: str
    picture_ids: tuple[str, ...]
    captions: tuple[tuple[str, ...], ...]
    read_picture: Callable[[str], np.ndarray] = field(repr=False)
    notes: tuple[str, ...] = ()

    def __len__(self) -> int:
        return sum(map(len, self.captions))

    def picture(self, picture_id: str) -> np.ndarray:
        """One picture as RGB, uint8 (H, W, 3)."""
        return self.read_picture(picture_id)

    def first(self, pictures: int) -> CaptionedPictures:
        """The first pictures only, at most so many."""
        ids, told = self.picture_ids[:pictures], self.captions[:pictures]
        return CaptionedPictures(self.name, self.split, ids, told, self.read_picture, self.notes)

    def content_hash(self) -> str:
        """SHA-256 over picture ids and captions; pictures enter through their ids."""
        return hashlib.sha256(json.dumps([self.picture_ids, self.captions]).encode()).hexdigest()


def find(root: str | Path | None = None) -> Path:
    """The folder of Flickr8k."""
    return files.find_folder("flickr8k", MARKS, LAYOUT, root)


def load(split: str = "train", root: str | Path | None = None) -> CaptionedPictures:
    """One split of Flickr8k, in the order of its list (official) or in one drawn once (CSV file without lists).

    Parameters
    ----------
    split
        One of :data:`SPLITS`; splits share no picture.
    root
        See :func:`vqa_core.data.load`.

    Raises
    ------
    FileNotFoundError
        When the data set or one of its files is missing.
    ValueError
        When a record is damaged, a picture has not exactly five captions, or is in two lists: names file and line.
    """
    files.check_split("flickr8k", split, list(SPLITS))
    folder = find(root)
    official = (folder / TOKENS).is_file()
    told, notes = _from_tokens(folder / TOKENS) if official else (_from_table(folder / TABLE), [])
    if official or _has_lists(folder):
        ids = _listed(folder, split, told, folder / (TOKENS if official else TABLE))
    else:
        ids = _drawn(told)[split]
        notes.append(f"no lists of splits in {folder}: this split is drawn by picture, and is not the official one")
    pictures = folder / (PICTURES if official else TABLE_PICTURES)
    captions = tuple(told[i] for i in ids)
    return CaptionedPictures("flickr8k", split, ids, captions, lambda i: files.read_picture(pictures / i), tuple(notes))


def expected(folder: Path) -> dict[str, tuple[int, int]]:
    """Numbers of captions and pictures per split, of the official lists or drawn from all 8,091 pictures."""
    if (folder / TOKENS).is_file() or _has_lists(folder):
        pictures = {"train": 6000, "dev": 1000, "test": 1000}
    else:
        pictures = {split: len(ids) for split, ids in _drawn({f"{i}": () for i in range(8091)}).items()}
    return {split: (CAPTIONS * n, n) for split, n in pictures.items()}


def _has_lists(folder: Path) -> bool:
    return any((folder / name).is_file() for name in LISTS.values())


def _from_tokens(path: Path) -> tuple[dict[str, tuple[str, ...]], list[str]]:
    """Captions by picture from lines ``<picture>.jpg#<0 to 4><tab><caption>``, and notes."""
    found: dict[str, dict[int, str]] = {}
    for number, line in enumerate(files.read_text(path).splitlines(), start=1):
        where = f"{path}, line {number}"
        match = _ENTRY.fullmatch(line)
        if match is None:
            raise ValueError(f"{where}: expected <picture>.jpg#<number>, a tab and a caption, got {line[:60]!r}")
        picture, k = match["picture"], int(match["number"])
        if not picture.endswith(".jpg") and picture != WITHOUT_PICTURE:
            raise ValueError(f"{where}: {picture!r} is no .jpg; only {WITHOUT_PICTURE} is known to be so")
        if k in found.setdefault(picture, {}):
            raise ValueError(f"{where}: caption {k} of {picture} occurs twice; remove one of the lines")
        found[picture][k] = _checked(match["caption"], where)
    notes = []
    if found.pop(WITHOUT_PICTURE, None):
        notes.append(f"left out, since its picture was never released: {WITHOUT_PICTURE}")
    for picture, told in found.items():
        if sorted(told) != list(range(CAPTIONS)):
            raise ValueError(f"{path}: {picture} has captions {sorted(told)}, expected 0 to 4; get the file again")
    return {picture: tuple(told[k] for k in range(CAPTIONS)) for picture, told in found.items()}, notes


def _from_table(path: Path) -> dict[str, tuple[str, ...]]:
    """Captions by picture from a CSV file with the columns image and caption."""
    rows = csv.reader(files.read_text(path).splitlines())
    header = next(rows, None)
    if header != ["image", "caption"]:
        raise ValueError(f"{path}, line 1: the columns must be image,caption; got {header}")
    found: dict[str, list[str]] = {}
    for row in rows:
        where = f"{path}, line {rows.line_num}"
        if len(row) != 2 or not row[0].endswith(".jpg"):
            raise ValueError(f"{where}: expected a .jpg and a caption, in quotes if it has a comma; got {row}")
        found.setdefault(row[0], []).append(_checked(row[1], where))
    for picture, told in found.items():
        if len(told) != CAPTIONS:
            raise ValueError(f"{path}: {picture} has {len(told)} captions, expected five; get the file again")
    return {picture: tuple(told) for picture, told in found.items()}


def _checked(caption: str, where: str) -> str:
    caption = caption.strip()
    if not caption:
        raise ValueError(f"{where}: the caption is empty; get the file again")
    return caption


def _listed(folder: Path, split: str, told: dict[str, tuple[str, ...]], captions: Path) -> tuple[str, ...]:
    """Pictures of an official list, after checking that lists share none."""
    lists = {name: files.read_lines(folder / file) for name, file in LISTS.items()}
    owner: dict[str, str] = {}
    for name, pictures in lists.items():
        for number, picture in enumerate(pictures, start=1):
            if picture in owner:
                where = f"{folder / LISTS[name]}, line {number}"
                raise ValueError(f"{where}: {picture} is already in {LISTS[owner[picture]]}; get the lists again")
            owner[picture] = name
    for number, picture in enumerate(lists[split], start=1):
        if picture not in told:
            raise ValueError(f"{folder / LISTS[split]}, line {number}: {captions.name} has no captions of {picture}")
    return tuple(lists[split])


def _drawn(told: dict[str, tuple[str, ...]]) -> dict[str, tuple[str, ...]]:
    """All pictures in three parts: the same ones for the same pictures, whatever their order in the file."""
    ids = sorted(told)
    random.Random("flickr8k").shuffle(ids)
    eighth = len(ids) // 8
    return {"test": tuple(ids[:eighth]), "dev": tuple(ids[eighth : 2 * eighth]), "train": tuple(ids[2 * eighth :])}
