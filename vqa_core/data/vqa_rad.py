"""VQA-RAD: clinicians' questions about 315 radiology pictures (Lau et al. 2018, doi:10.1038/sdata.2018.251).

Two forms are read:

- the JSON files of the MEVF split (Nguyen et al. 2019): ``trainset.json``, ``testset.json``, ``images/``;
- the parquet files of ``flaviagiammarino/vqa-rad`` on the Hugging Face hub, which know neither organ nor question
  type and have no template re-wordings.

The official split is by *question*: every test picture also occurs in training. The 3,064 released training rows
leak far more: 1,267 of them are template re-wordings ("frame"), and 284 of the 451 test questions have their own
re-wording there, with the same picture and answer. The default training split leaves the re-wordings out.
"""

from __future__ import annotations

import hashlib
import re
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from vqa_core.data import root as files
from vqa_core.data.types import CLOSED, OPEN, Dataset, Sample

SPLITS = {
    "train": "1,797 rows: as released without the template re-wordings (default)",
    "train_3064": "as released; leaky, only to reproduce published numbers",
    "train_2780": "as released without the test questions' own re-wordings",
    "train_disjoint": "rows of `train` whose picture no test question is about",
    "test": "451 rows",
    "test_308": "the freeform rows of `test`, on which MEVF reports",
}
PARQUET_SPLITS = ("train", "train_disjoint", "test")
LAYOUT = "trainset.json, testset.json and images/, or data/train-*.parquet and data/test-*.parquet"
MARKS = ("trainset.json", "data/train-*.parquet", "train-*.parquet")
SHA256 = {
    "trainset.json": "3b0567673ae224b6489ca1bc4ce05cda642223d5cf4f17db8fbf7010c872e00f",
    "testset.json": "3d32a047592cb680e18054030b38b1a44d6b17105fc62d3088c8655d56a00ced",
}

QUESTION_TYPES = ("ABN", "ATTRIB", "COLOR", "COUNT", "MODALITY", "ORGAN", "OTHER", "PLANE", "POS", "PRES", "SIZE")
ORGANS = ("ABD", "CHEST", "HEAD")
PHRASE_TYPES = ("frame", "freeform", "para")
UNLABELLED = "unlabelled"  # family in the parquet form, which has no question types
_TYPOS = {"ATRIB": "ATTRIB", "PRSE": "PRES", "Other": "OTHER"}

_PUNCTUATION = ';/[]"{}()=+\\_-><@`,?!'
_NUMBERS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten")
_DIGITS = {word: str(n) for n, word in enumerate(_NUMBERS)} | {"none": "0"}


def medical_answer(answer: str) -> str:
    """The answer as published VQA-RAD code counts it: the official VQA-v2 rules.

    Punctuation goes (a mark that touches a space, and every mark of an answer with a comma inside a number, is
    deleted; others become spaces); full stops go, except before a digit; number words become digits; articles go;
    lower case; single spaces; ``x ray`` becomes ``xray``. The rules' list of contractions is left out. These are
    the rules that give the published 458 training answers.

    >>> medical_answer("The X-ray, (PA) view.")
    'xray pa view'
    """
    has_number_comma = re.search(r"\d,\d", answer)
    text = answer
    for mark in _PUNCTUATION:
        touches_space = mark + " " in answer or " " + mark in answer
        text = text.replace(mark, "" if touches_space or has_number_comma else " ")
    text = re.sub(r"\.(?!\d)", "", text)
    words = [_DIGITS.get(word, word) for word in text.lower().split()]
    return " ".join(word for word in words if word not in ("a", "an", "the")).replace("x ray", "xray")


def find(root: str | Path | None = None) -> Path:
    """The folder of VQA-RAD."""
    return files.find_folder("vqa_rad", MARKS, LAYOUT, root)


def load(split: str = "train", root: str | Path | None = None) -> Dataset:
    """One split of VQA-RAD.

    ``answer`` is normalised (:func:`medical_answer`), the raw one is in ``meta["raw_answer"]``; ``family`` is the
    first question type, all are in ``meta["question_types"]``; ``meta`` also has ``qid``, ``organ`` and
    ``phrase_type``.

    Parameters
    ----------
    split
        One of :data:`SPLITS`; the parquet form has only :data:`PARQUET_SPLITS`.
    root
        See :func:`vqa_core.data.load`.

    Raises
    ------
    FileNotFoundError
        When the data set or one of its files is missing.
    ValueError
        When a record is damaged: names file, record and value.
    """
    files.check_split("vqa_rad", split, list(SPLITS))
    folder = find(root)
    if (folder / "trainset.json").is_file():
        return _load_json(folder, split)
    return _load_parquet(folder, split)


def expected(folder: Path) -> dict[str, tuple[int, int | None]]:
    """Official numbers of questions and pictures per split, for the form that lies in ``folder``.

    The parquet form is known here only by its card, which counts no pictures.
    """
    if (folder / "trainset.json").is_file():
        return {
            "train": (1797, 313),
            "train_3064": (3064, 314),
            "train_2780": (2780, 313),
            "train_disjoint": (734, 111),
            "test": (451, 203),
            "test_308": (308, 203),
        }
    return {"train": (1793, None), "test": (451, None)}


# --- JSON form ------------------------------------------------------------------------------------------------------


def _load_json(folder: Path, split: str) -> Dataset:
    repairs: Counter[str] = Counter()
    is_test = split.startswith("test")
    samples = _read_json_form(folder / ("testset.json" if is_test else "trainset.json"), repairs)
    notes = [f"{what}: {n} rows" for what, n in sorted(repairs.items())]

    if split == "test_308":
        samples = [s for s in samples if s.meta["phrase_type"] == "freeform"]
    if not is_test:
        tests = _read_json_form(folder / "testset.json", Counter())
        if split in ("train", "train_disjoint"):
            samples, notes = _drop(samples, [_is_frame(s) for s in samples], "template re-wordings (frame)", notes)
        if split == "train_2780":
            own = rewordings_of(samples, tests)
            samples, notes = _drop(samples, [s.question_id in own for s in samples], "re-wordings of test rows", notes)
        if split == "train_disjoint":
            samples, notes = _disjoint(samples, tests, notes)
        notes += _overlap(samples, tests)
    return Dataset("vqa_rad", split, samples, lambda name: files.read_picture(folder / "images" / name), notes)


def rewordings_of(train: Sequence[Sample], test: Sequence[Sample]) -> set[str]:
    """Question ids of the template re-wordings in ``train`` that belong to a question of ``test``.

    A re-wording directly follows its question in the numbering: it is a "frame" row whose qid is the qid of a test
    question plus one, with the same picture and the same answer.
    """
    tests = {s.meta["qid"]: s for s in test}
    own = set()
    for s in train:
        original = tests.get(s.meta["qid"] - 1)
        if _is_frame(s) and original and (s.picture_id, s.answer) == (original.picture_id, original.answer):
            own.add(s.question_id)
    return own


def _is_frame(sample: Sample) -> bool:
    return sample.meta["phrase_type"] == "frame"


def _read_json_form(path: Path, repairs: Counter[str]) -> list[Sample]:
    records = files.read_json(path)
    if not isinstance(records, list):
        raise ValueError(f"{path}: expected a list of records, got {type(records).__name__}")
    samples, seen = [], set()
    for number, record in enumerate(records, start=1):
        where = f"{path}, record {number}"
        if not isinstance(record, dict):
            raise ValueError(f"{where}: expected a JSON object, got {record!r}")
        qid = files.field(record, "qid", where, int)
        where += f" (qid {qid})"
        if qid in seen:
            raise ValueError(f"{where}: this qid occurs twice; remove one of the records")
        seen.add(qid)

        raw_answer = files.field(record, "answer", where, (str, int))
        if isinstance(raw_answer, int):
            repairs["integer answers read as text"] += 1
        raw_type = files.field(record, "answer_type", where)
        if raw_type != raw_type.strip():
            repairs["spaces around answer_type removed"] += 1
        kind = {"OPEN": OPEN, "CLOSED": CLOSED}[
            files.choice(raw_type.strip(), ("OPEN", "CLOSED"), "answer_type", where)
        ]
        labels = []
        for raw in files.field(record, "question_type", where).split(","):
            label = _TYPOS.get(raw.strip(), raw.strip())
            if label != raw.strip():
                repairs[f"question type {raw.strip()} read as {label}"] += 1
            labels.append(files.choice(label, QUESTION_TYPES, "question_type", where))
        if len(labels) > 1:
            repairs["several question types, the first is the family"] += 1

        answer = medical_answer(str(raw_answer))
        if not answer:
            raise ValueError(f"{where}: answer {raw_answer!r} is empty after normalisation; correct the record")
        samples.append(
            Sample(
                question_id=str(qid),
                picture_id=_plain_name(files.field(record, "image_name", where), where),
                question=files.field(record, "question", where).strip(),
                answer=answer,
                family=labels[0],
                kind=kind,
                meta={
                    "qid": qid,
                    "raw_answer": str(raw_answer),
                    "question_types": labels,
                    "organ": files.choice(files.field(record, "image_organ", where), ORGANS, "image_organ", where),
                    "phrase_type": files.choice(
                        files.field(record, "phrase_type", where), PHRASE_TYPES, "phrase_type", where
                    ),
                },
            )
        )
    return samples


def _plain_name(name: str, where: str) -> str:
    if Path(name).name != name or "\\" in name:
        raise ValueError(f"{where}: picture name {name!r} must not contain folders")
    return name


def _drop(samples: list[Sample], mask: list[bool], what: str, notes: list[str]) -> tuple[list[Sample], list[str]]:
    kept = [s for s, drop in zip(samples, mask) if not drop]
    return kept, [*notes, f"{what} left out: {len(samples) - len(kept):,} rows"]


def _disjoint(train: list[Sample], test: list[Sample], notes: list[str]) -> tuple[list[Sample], list[str]]:
    tested = {s.picture_id for s in test}
    return _drop(train, [s.picture_id in tested for s in train], "rows about a test picture", notes)


def _overlap(train: list[Sample], test: list[Sample]) -> list[str]:
    tested = {s.picture_id for s in test}
    shared = tested & {s.picture_id for s in train}
    known = {(s.picture_id, s.question.lower(), s.answer) for s in train}
    repeated = sum((s.picture_id, s.question.lower(), s.answer) in known for s in test)
    return [
        f"{len(shared)} of the {len(tested)} test pictures also occur in this training split",
        f"test rows that this training split repeats (picture, question, answer): {repeated}",
    ]


# --- parquet form ---------------------------------------------------------------------------------------------------


def _load_parquet(folder: Path, split: str) -> Dataset:
    if split not in PARQUET_SPLITS:
        raise ValueError(
            f"{folder} holds the parquet form of VQA-RAD, which has no qid and no phrase type, so that split {split!r} "
            f"cannot be made; allowed are {', '.join(PARQUET_SPLITS)}. Get the JSON form with: "
            "python -m vqa_core data fetch vqa_rad --source json"
        )
    pictures: dict[str, bytes] = {}
    notes = ["parquet form: closed means that the answer is yes or no; no organ, question type or phrase type"]
    samples = _read_parquet_form(folder, split.split("_")[0], pictures)
    if split != "test":
        tests = _read_parquet_form(folder, "test", {})
        if split == "train_disjoint":
            samples, notes = _disjoint(samples, tests, notes)
        notes += _overlap(samples, tests)
    where = f"{folder} (parquet), picture "
    return Dataset("vqa_rad", split, samples, lambda i: files.read_picture(pictures[i], where + i), notes)


def _read_parquet_form(folder: Path, part: str, pictures: dict[str, bytes]) -> list[Sample]:
    import pyarrow.parquet as pq
    from pyarrow import ArrowException

    paths = sorted([*folder.glob(f"data/{part}-*.parquet"), *folder.glob(f"{part}-*.parquet")])
    if not paths:
        raise FileNotFoundError(f"{folder} has no {part}-*.parquet; get it: python -m vqa_core data fetch vqa_rad")
    samples = []
    for path in paths:
        try:
            rows = pq.read_table(path).to_pylist()
        except (ArrowException, OSError) as error:
            raise ValueError(f"{path}: not a readable parquet file ({error}); delete it and fetch it again") from error
        for number, row in enumerate(rows, start=1):
            where = f"{path}, row {number}"
            content = files.field(files.field(row, "image", where, dict), "bytes", where, bytes)
            picture_id = hashlib.sha256(content).hexdigest()[:16]  # the form has no names, the content is the name
            pictures[picture_id] = content
            raw_answer = files.field(row, "answer", where)
            answer = medical_answer(raw_answer)
            if not answer:
                raise ValueError(f"{where}: answer {raw_answer!r} is empty after normalisation; correct the record")
            samples.append(
                Sample(
                    question_id=f"{part}-{len(samples)}",
                    picture_id=picture_id,
                    question=files.field(row, "question", where).strip(),
                    answer=answer,
                    family=UNLABELLED,
                    kind=CLOSED if answer in ("yes", "no") else OPEN,
                    meta={"raw_answer": raw_answer},
                )
            )
    return samples
