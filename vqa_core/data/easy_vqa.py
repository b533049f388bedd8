"""easy-VQA: one coloured shape per picture, 107 distinct questions, 13 answers (Victor Zhou 2019).

A first real data set: small, balanced between yes and no, and learnt by a two-layer network.
"""

from __future__ import annotations

import re
from pathlib import Path

from vqa_core.data import root as files
from vqa_core.data.types import CLOSED, OPEN, Dataset, Sample

SPLITS = {"train": "38,575 questions about 4,000 pictures", "test": "9,673 questions about 1,000 pictures"}
LAYOUT = "train/ and test/, each with questions.json and images/"
MARKS = ("train/questions.json", "test/questions.json")
SHA256 = {
    "train/questions.json": "bb67697636aed0e65631d4266824aebeae5c833b0f37ed781e20752e85617ec5",
    "test/questions.json": "0d4630a51bafec65343e2f6af9cdd20cf8eae214344ef57636202eec409553f7",
}


def family_of(question: str) -> str:
    """The family of a question, by its form.

    ``colour`` asks for the colour ("what color …", "what is the color …"), ``shape`` for the shape (other "what"
    questions), ``absence`` is yes/no with "not" or "no", ``presence`` is yes/no without.

    >>> family_of("is there not a teal shape?")
    'absence'
    """
    words = re.findall(r"[a-z]+", question.lower())
    if not words or words[0] not in ("what", "is", "does"):
        raise ValueError(f"question {question!r} does not begin with what, is or does")
    if words[0] == "what":
        return "colour" if "color" in words else "shape"
    return "absence" if {"not", "no"} & set(words) else "presence"


def find(root: str | Path | None = None) -> Path:
    """The folder of easy-VQA."""
    return files.find_folder("easy_vqa", MARKS, LAYOUT, root)


def load(split: str = "train", root: str | Path | None = None) -> Dataset:
    """One split of easy-VQA; families as in :func:`family_of`, closed are the yes/no questions.

    Raises
    ------
    FileNotFoundError
        When the data set or one of its files is missing.
    ValueError
        When a record is damaged: names file, record and value.
    """
    files.check_split("easy_vqa", split, list(SPLITS))
    folder = find(root) / split
    path = folder / "questions.json"
    records = files.read_json(path)
    if not isinstance(records, list):
        raise ValueError(f"{path}: expected a list of records, got {type(records).__name__}")
    samples = []
    for number, record in enumerate(records):
        where = f"{path}, record {number + 1}"
        if not isinstance(record, list) or [type(v) for v in record] != [str, str, int]:
            raise ValueError(f"{where}: expected [question, answer, picture number], got {record!r}")
        question, answer, picture = record
        if not question.strip() or not answer.strip():
            raise ValueError(f"{where}: question {question!r} or answer {answer!r} is empty; remove the record")
        try:
            family = family_of(question)
        except ValueError as error:
            raise ValueError(f"{where}: {error}; correct or remove the record") from None
        kind = CLOSED if family in ("presence", "absence") else OPEN
        if (answer in ("yes", "no")) != (kind == CLOSED):
            raise ValueError(f"{where}: {answer!r} is no answer to {question!r}; correct or remove the record")
        samples.append(Sample(f"{split}-{number}", f"{split}/{picture}", question, answer, family, kind))
    return Dataset("easy_vqa", split, samples, lambda i: files.read_picture(_picture_path(folder, i)))


def expected(folder: Path) -> dict[str, tuple[int, int]]:
    """Official numbers of questions and pictures per split."""
    return {"train": (38575, 4000), "test": (9673, 1000)}


def _picture_path(folder: Path, picture_id: str) -> Path:
    return folder / "images" / f"{picture_id.split('/')[1]}.png"
