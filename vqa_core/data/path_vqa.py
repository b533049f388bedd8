"""PathVQA: questions made from the captions of pathology pictures (He et al. 2020, arXiv:2003.10286).

Two forms are read:

- the parquet files of ``flaviagiammarino/path-vqa`` on the Hugging Face hub: repeated rows are gone from them;
- a JSON folder: ``train.json``, ``val.json``, ``test.json``, lists of records with ``image`` (a name without ending),
  ``question`` and ``answer`` as in the release, and ``images/<split>/<image>.jpg``. The release itself has these lists
  as pickles, which are not read here: unpickling runs whatever code the file holds.
"""

from __future__ import annotations

import hashlib
import re
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np

from vqa_core.data import root as files
from vqa_core.data.types import CLOSED, OPEN, Dataset, Sample

SPLITS = {"train": "to train on", "val": "to choose a checkpoint", "test": "to test on; the three share no picture"}
LAYOUT = "data/{train,validation,test}-*.parquet, or train.json, val.json, test.json and images/<split>/<image>.jpg"
MARKS = ("data/train-*.parquet", "train-*.parquet", "val.json")
SHA256: dict[str, str] = {}
_PARTS = {"train": "train", "val": "validation", "test": "test"}  # split → name of its parquet files
_FIRST_WORDS = ("what", "where", "when", "whose", "how", "why", "who", "which")


def family_of(question: str, answer: str) -> str:
    """``"yes/no"``, else the word that asks, else ``"other"``.

    The release has no families; its paper counts questions by these words.

    >>> family_of("Where are liver stem cells located?", "in the canals of hering")
    'where'
    """
    if answer in ("yes", "no"):
        return "yes/no"
    words = re.findall(r"[a-z]+", question.lower())
    return next((w for w in words[:1] if w in _FIRST_WORDS), "other")


def find(root: str | Path | None = None) -> Path:
    """The folder of PathVQA."""
    return files.find_folder("path_vqa", MARKS, LAYOUT, root)


def load(split: str = "train", root: str | Path | None = None) -> Dataset:
    """One split of PathVQA.

    Answers are in lower case with single spaces, the raw one is in ``meta["raw_answer"]``; closed are those answered
    by yes or no. Pictures of the parquet form are kept in memory as they are compressed, each once.

    Parameters
    ----------
    split
        One of :data:`SPLITS`.
    root
        See :func:`vqa_core.data.load`.

    Raises
    ------
    FileNotFoundError
        When the data set or one of its files is missing.
    ValueError
        When a record or a file is damaged: names file, record and value.
    """
    files.check_split("path_vqa", split, list(SPLITS))
    folder = find(root)
    rows, read = _parquet_form(folder, split) if not (folder / "val.json").is_file() else _json_form(folder, split)
    samples = [_sample(record, f"{split}-{n}", picture, where) for n, (record, picture, where) in enumerate(rows)]
    if not samples:
        raise ValueError(f"{folder}: split {split!r} has no question; get the files again")
    times = Counter((s.picture_id, s.question, s.answer) for s in samples)
    notes = ["closed means that the answer is yes or no"]
    if repeated := len(samples) - len(times):
        notes.append(f"rows that repeat another of this split (picture, question, answer), kept: {repeated:,}")
    return Dataset("path_vqa", split, samples, read, notes)


def expected(folder: Path) -> dict[str, tuple[int, int | None]]:
    """Published numbers of questions per split for the form in ``folder``; nobody states the pictures of a split."""
    if (folder / "val.json").is_file():
        return {"train": (19755, None), "val": (6279, None), "test": (6761, None)}
    return {"train": (19654, None), "val": (6259, None), "test": (6719, None)}


Rows = Iterator[tuple[dict, str, str]]  # record, picture id, where it stands
Read = Callable[[str], np.ndarray]


def _json_form(folder: Path, split: str) -> tuple[Rows, Read]:
    path = folder / f"{split}.json"
    records = files.read_json(path)
    if not isinstance(records, list):
        raise ValueError(f"{path}: expected a list of records, got {type(records).__name__}")

    def rows() -> Rows:
        for number, record in enumerate(records, start=1):
            where = f"{path}, record {number}"
            if not isinstance(record, dict):
                raise ValueError(f"{where}: expected a JSON object, got {record!r}")
            name = files.field(record, "image", where)
            if Path(name).name != name or "\\" in name:
                raise ValueError(f"{where}: picture name {name!r} must not contain folders")
            yield record, name.removesuffix(".jpg"), where

    return rows(), lambda i: files.read_picture(folder / "images" / split / f"{i}.jpg")


def _parquet_form(folder: Path, split: str) -> tuple[Rows, Read]:
    import pyarrow.parquet as pq
    from pyarrow import ArrowException

    part = _PARTS[split]
    paths = sorted([*folder.glob(f"data/{part}-*.parquet"), *folder.glob(f"{part}-*.parquet")])
    if not paths:
        raise FileNotFoundError(f"{folder} has no {part}-*.parquet; get it: python -m vqa_core data fetch path_vqa")
    pictures: dict[str, bytes] = {}

    def rows() -> Rows:
        for path in paths:
            number = 0
            try:
                for batch in pq.ParquetFile(path).iter_batches(batch_size=256):  # a file holds each picture many times
                    for record in batch.to_pylist():
                        number += 1
                        where = f"{path}, row {number}"
                        content = files.field(files.field(record, "image", where, dict), "bytes", where, bytes)
                        picture = hashlib.sha256(content).hexdigest()[:16]  # no names: the content is the name
                        pictures.setdefault(picture, content)
                        yield record, picture, where
            except (ArrowException, OSError) as error:
                message = f"{path}: not a readable parquet file ({error}); delete it and get it again"
                raise ValueError(message) from error

    return rows(), lambda i: files.read_picture(pictures[i], f"{folder} (parquet), picture {i}")


def _sample(record: dict, question_id: str, picture_id: str, where: str) -> Sample:
    question = " ".join(files.field(record, "question", where).split()).replace(" ?", "?")
    raw_answer = str(files.field(record, "answer", where, (str, int)))
    answer = " ".join(raw_answer.lower().split())
    kind = CLOSED if answer in ("yes", "no") else OPEN
    meta = {"raw_answer": raw_answer}
    return Sample(question_id, picture_id, question, answer, family_of(question, answer), kind, meta=meta)
