"""SLAKE: questions in English and Chinese about 642 radiology pictures (Liu et al. 2021, arXiv:2102.09542).

Read is the original layout, ``imgs/xmlab<n>/source.jpg`` and one JSON file per split. The splits are by picture.
"""

from __future__ import annotations

import re
from collections import Counter
from pathlib import Path

from vqa_core.data import root as files
from vqa_core.data.types import CLOSED, OPEN, Dataset, Sample

SPLITS = {
    "train": "450 pictures, 4,918 questions in English (and one without an answer, left out)",
    "validate": "96 pictures, 1,053 questions in English",
    "test": "96 pictures, 1,061 questions in English",
}
LANGUAGES = {"en": ("en",), "zh": ("zh",), "both": ("en", "zh")}
LAYOUT = "train.json, validate.json (or validation.json), test.json and imgs/xmlab<n>/source.jpg"
MARKS = ("validate.json", "validation.json", "imgs/xmlab*/source.jpg")
SHA256: dict[str, str] = {}
_FILES = {"train": ("train.json",), "validate": ("validate.json", "validation.json"), "test": ("test.json",)}
_PICTURE = re.compile(r"(xmlab\d+)/source\.jpg")
_EXTRAS = ("img_id", "location", "modality", "base_type", "triple")


def find(root: str | Path | None = None) -> Path:
    """The folder of SLAKE."""
    return files.find_folder("slake", MARKS, LAYOUT, root)


def load(split: str = "train", root: str | Path | None = None, language: str = "en") -> Dataset:
    """One split of SLAKE.

    ``answer`` is in lower case with single spaces, the raw one is in ``meta["raw_answer"]``; ``family`` is the content
    type (``"Organ"``, ``"Position"`` …), and ``"KG"`` where the answer needs medical knowledge. ``meta`` has
    ``language`` and, where the file has them, picture number, body part, modality, base type, the triple of the
    knowledge graph and ``qid``.

    Parameters
    ----------
    split
        One of :data:`SPLITS`.
    root
        See :func:`vqa_core.data.load`.
    language
        ``"en"``, ``"zh"`` or ``"both"``. :func:`~vqa_core.data.text.tokenize` knows no Chinese.

    Raises
    ------
    FileNotFoundError
        When the data set or one of its files is missing.
    ValueError
        When a record is damaged, or the file has no question in this language: names file, record and value.

    Notes
    -----
    A re-distributed form calls the field ``img_name`` ``image`` and has no ``qid``; it is read, too, and then questions
    are numbered by their place in the file.
    """
    files.check_split("slake", split, list(SPLITS))
    if language not in LANGUAGES:
        raise ValueError(f"slake has no language {language!r}; allowed are {', '.join(LANGUAGES)}")
    folder = find(root)
    path = next((p for name in _FILES[split] if (p := folder / name).is_file()), folder / _FILES[split][0])
    records = files.read_json(path)
    if not isinstance(records, list):
        raise ValueError(f"{path}: expected a list of records, got {type(records).__name__}")

    repairs: Counter[str] = Counter()
    samples, seen, unanswered = [], set(), []
    for number, record in enumerate(records, start=1):
        where = f"{path}, record {number}"
        if not isinstance(record, dict):
            raise ValueError(f"{where}: expected a JSON object, got {record!r}")
        if record.get("answer") == "":
            unanswered.append(number)
            continue
        sample = _sample(record, f"{split}-{number}", where, repairs)
        if sample.question_id in seen:
            raise ValueError(f"{where}: qid {sample.question_id} occurs twice; remove one of the records")
        seen.add(sample.question_id)
        if sample.meta["language"] in LANGUAGES[language]:
            samples.append(sample)
    if not samples:
        raise ValueError(f"{path} has no question in language {language!r}; get the whole data set, or ask for another")

    notes = [f"{what}: {n:,} rows" for what, n in sorted(repairs.items()) if n]
    if unanswered:
        notes.append(f"left out, since their answer is empty: records {', '.join(map(str, unanswered))} of {path.name}")
    if others := len(records) - len(unanswered) - len(samples):
        notes.append(f"questions in another language left out: {others:,} rows")
    if not (folder / "imgs").is_dir():
        notes.append("imgs/ is absent: the questions can be read, the pictures can't")
    return Dataset("slake", split, samples, lambda i: files.read_picture(folder / "imgs" / i / "source.jpg"), notes)


def expected(folder: Path) -> dict[str, tuple[int, int]]:
    """Official numbers of English questions with an answer, and of pictures, per split."""
    return {"train": (4918, 450), "validate": (1053, 96), "test": (1061, 96)}


def _sample(record: dict, number: str, where: str, repairs: Counter[str]) -> Sample:
    key = "img_name" if "img_name" in record or "image" not in record else "image"
    name = files.field(record, key, where)
    match = _PICTURE.fullmatch(name)
    if not match:
        raise ValueError(f"{where}: {key} is {name!r}; it must be of the form xmlab12/source.jpg")
    language = files.choice(files.field(record, "q_lang", where), ("en", "zh"), "q_lang", where)
    raw_answer = str(files.field(record, "answer", where, (str, int)))
    answer = " ".join(raw_answer.lower().split())
    repairs["answers put into lower case and single spaces"] += answer != raw_answer
    raw_kind = files.field(record, "answer_type", where)
    repairs["spaces around answer_type removed"] += raw_kind != raw_kind.strip()
    kind = files.choice(raw_kind.strip(), ("OPEN", "CLOSED"), "answer_type", where)
    meta = {"language": language, "raw_answer": raw_answer} | {k: record[k] for k in _EXTRAS if k in record}
    if "qid" in record:
        meta["qid"] = files.field(record, "qid", where, int)
    return Sample(
        question_id=str(meta.get("qid", number)),
        picture_id=match[1],
        question=files.field(record, "question", where).strip(),
        answer=answer,
        family=files.field(record, "content_type", where).strip(),
        kind={"OPEN": OPEN, "CLOSED": CLOSED}[kind],
        meta=meta,
    )
