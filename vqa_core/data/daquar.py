"""DAQUAR: questions about indoor photographs of NYU Depth V2 (Malinowski & Fritz 2014, arXiv:1410.0210).

The default splits are the official ones, by picture. A widely copied pair of CSV files splits by *question* instead,
so that 1,124 pictures are in both parts: ``train_questions`` and ``eval_questions``, here to measure that leak.
"""

from __future__ import annotations

import csv
import re
from pathlib import Path

import numpy as np

from vqa_core.data import root as files
from vqa_core.data.types import OPEN, Dataset, Sample

SPLITS = {
    "train": "official split by picture: 6,795 questions about 794 of 795 pictures",
    "test": "official split by picture: 5,673 questions about 653 of 654 pictures",
    "train_questions": "data_train.csv, split by question: shares 1,124 pictures with eval_questions",
    "eval_questions": "data_eval.csv, split by question: shares 1,124 pictures with train_questions",
}
LAYOUT = "all_qa_pairs.txt, train_images_list.txt, test_images_list.txt and images/ (PNG or JPEG)"
MARKS = ("all_qa_pairs.txt",)
SHA256 = {
    "all_qa_pairs.txt": "155702e229ac24e49bdde9791abd5f28469eea4615282ae0f570f4f9c0395dd5",
    "train_images_list.txt": "91d0269224e4131c7ddbfa1c1f429434f9e29ba507922bf72055bf3d7cab8cf3",
    "test_images_list.txt": "e7092892cc8049635e6b9465a7f5f6790119c32cfd3d7dd276b77ff6b6a952b3",
    "data_train.csv": "ac7a751ef3265fa52cde9ac74efc979edb15f4d55738f01a8cf0da42f49abba5",
    "data_eval.csv": "c0361c5d819cd24d5e8cd4e4cf8e20b083441fdbc93a9c29fb4b0b349e65f388",
}
_CSV = {"train_questions": "data_train.csv", "eval_questions": "data_eval.csv"}
_PICTURE_AT_END = re.compile(r"\s*(?:\b(?:in|on|of|at)\s+)?(?:\b(?:the|this)\s+)?\bimage\s?(\d+)\s*\??\s*$")


def family_of(question: str) -> str:
    """``counting`` ("how …"), ``colour`` (asks for a colour) or ``object`` (all others), by key words.

    >>> family_of("what is the colour of the bag on the chair")
    'colour'
    """
    if question.startswith("how"):
        return "counting"
    return "colour" if re.search(r"\bcolou?rs?\b", question) else "object"


def find(root: str | Path | None = None) -> Path:
    """The folder of DAQUAR."""
    return files.find_folder("daquar", MARKS, LAYOUT, root)


def load(split: str = "train", root: str | Path | None = None) -> Dataset:
    """One split of DAQUAR; every question is open.

    Notes
    -----
    One row in ten has several answers, such as ``"knife, fork"``: the objects are asked for *together*, they are not
    alternatives by several people. ``Sample.answer`` (and the only entry of ``answers``) is therefore the whole row,
    in the order of the file; ``meta["answer_set"]`` has the different parts, sorted, for scores over sets (WUPS).

    Raises
    ------
    FileNotFoundError
        When the data set or one of its files is missing.
    ValueError
        When a record is damaged: names file, line and value.
    """
    files.check_split("daquar", split, list(SPLITS))
    folder = find(root)
    samples = _from_csv(folder / _CSV[split], split) if split in _CSV else _from_pairs(folder, split)
    notes = [f"rows with several answers: {sum(', ' in s.answer for s in samples):,}"]
    if split in _CSV:
        other = _from_csv(folder / next(f for s, f in _CSV.items() if s != split), split)
        shared = {s.picture_id for s in samples} & {s.picture_id for s in other}
        notes.append(f"split by question: {len(shared):,} pictures also occur in the other part")
    return Dataset("daquar", split, samples, lambda i: _read_picture(folder / "images", i), notes)


def expected(folder: Path) -> dict[str, tuple[int, int]]:
    """Official numbers of questions and pictures per split that lies in ``folder``."""
    counts = {"train": (6795, 794), "test": (5673, 653)}
    csv_counts = {"train_questions": (9974, 1442), "eval_questions": (2494, 1129)}
    return counts | {split: n for split, n in csv_counts.items() if (folder / _CSV[split]).is_file()}


def _from_pairs(folder: Path, split: str) -> list[Sample]:
    path = folder / "all_qa_pairs.txt"
    lines = files.read_lines(path)
    if len(lines) % 2:
        raise ValueError(f"{path}: {len(lines)} lines; questions and answers must alternate. Get the file again")
    part = {name: files.read_lines(folder / f"{name}_images_list.txt") for name in ("train", "test")}
    both = set(part["train"]) & set(part["test"])
    if both:
        raise ValueError(f"{folder}: {sorted(both)[:3]} are in train_images_list.txt and in test_images_list.txt")
    wanted, known = set(part[split]), {*part["train"], *part["test"]}
    samples = []
    for i in range(0, len(lines), 2):
        where = f"{path}, line {i + 1}"
        match = _PICTURE_AT_END.search(lines[i])
        if not match:
            raise ValueError(f"{where}: the question does not end with the name of a picture: {lines[i]!r}")
        picture_id = f"image{match[1]}"
        if picture_id not in known:
            raise ValueError(f"{where}: {picture_id} is neither in train_images_list.txt nor in test_images_list.txt")
        if picture_id in wanted:
            samples.append(_sample(f"{i // 2}", picture_id, lines[i][: match.start()], lines[i + 1], where))
    return samples


def _from_csv(path: Path, split: str) -> list[Sample]:
    rows = list(csv.reader(files.read_text(path).splitlines()))
    if not rows or rows[0] != ["question", "answer", "image_id"]:
        raise ValueError(f"{path}, line 1: the columns must be question,answer,image_id; got {rows[:1]}")
    samples = []
    for number, row in enumerate(rows[1:], start=2):
        where = f"{path}, line {number}"
        if len(row) != 3 or not re.fullmatch(r"image\d+", row[2]):
            raise ValueError(f"{where}: expected question, answer and a picture such as image12, got {row}")
        samples.append(_sample(f"{split}-{number}", row[2], row[0], row[1], where))
    return samples


def _sample(question_id: str, picture_id: str, question: str, answer: str, where: str) -> Sample:
    question = question.strip()
    parts = [part.strip() for part in answer.split(",")]
    if not question or not all(parts):
        raise ValueError(f"{where}: question {question!r} or answer {answer!r} is empty; correct or remove the record")
    meta = {"answer_set": sorted(set(parts))}
    return Sample(question_id, picture_id, question, ", ".join(parts), family_of(question), OPEN, meta=meta)


def _read_picture(folder: Path, picture_id: str) -> np.ndarray:
    """The official pictures are PNG; smaller JPEG copies circulate."""
    paths = [folder / f"{picture_id}{ending}" for ending in (".png", ".jpg")]
    return files.read_picture(next((p for p in paths if p.is_file()), paths[0]))
