"""Cornell NLVR: is a sentence about three boxes of coloured shapes true? (Suhr et al. 2017, doi:10.18653/v1/P17-2034)

Each example has six pictures, the permutations of its three boxes. Where only permutation 0 is on disk, the others
are rebuilt from it: a picture is 400 × 100 pixels with boxes of 100 pixels at x = 0, 150 and 300.
"""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from vqa_core.data import root as files
from vqa_core.data.types import CLOSED, Dataset, Sample

SPLITS = {
    "train": "the official train.json, or 1,000 examples of it in train_examples.jsonl",
    "dev": "989 examples",
    "test": "990 examples",
    "hidden": "985 examples, released in 2022",
}
LAYOUT = "<split>/<split>.json and <split>/images/ (<split> is train, dev, test or hidden)"
MARKS = tuple(f"{split}/{split}.json" for split in SPLITS)
SHA256 = {
    "dev/dev.json": "0d312c3d7309393c0e36d286c70b884fb276819699e9f8f2bcea2854ad46537b",
    "test/test.json": "9a337ac016455eebe8aef70a6e94977dbcd9e75aec56f0fb09477a9c1038528d",
    "hidden/hidden.json": "d54d7060ea8050fa477fe988d8584af6344b99449648ceeb39b4af8b55b20622",
}

# BOX_ORDER[k][j]: which box of permutation 0 stands at place j of permutation k.
BOX_ORDER = ((0, 1, 2), (0, 2, 1), (1, 0, 2), (1, 2, 0), (2, 0, 1), (2, 1, 0))
BOX_SIZE, BOX_STEP, PICTURE_SHAPE = 100, 150, (100, 400, 3)

# A sentence belongs to the first family whose words it has.
FAMILY_RULES = (
    ("negation", r"\b(no|not|none|without|neither|never|isn't|aren't|doesn't|don't)\b"),
    ("universal", r"\b(all|every|each|both|any)\b"),
    (
        "counting",
        r"\b(\d+|one|two|three|four|five|six|seven|eight|nine|ten|only|exactly|single|multiple|same number)\b",
    ),
)


def family_of(sentence: str) -> str:
    """``negation``, ``universal``, ``counting`` or, without words of these, ``existence`` (:data:`FAMILY_RULES`).

    The data set has no families; these follow the phenomena that its paper counts, by key words only.

    >>> family_of("There are exactly two yellow squares")
    'counting'
    """
    for family, pattern in FAMILY_RULES:
        if re.search(pattern, sentence.lower()):
            return family
    return "existence"


def permute_boxes(picture: np.ndarray, permutation: int) -> np.ndarray:
    """Permutation ``permutation`` (0–5) of a picture of permutation 0, uint8 (100, 400, 3) → the same shape."""
    if picture.shape != PICTURE_SHAPE:
        raise ValueError(f"an NLVR picture is {PICTURE_SHAPE}, this one is {picture.shape}")
    permuted = picture.copy()
    for place, box in enumerate(BOX_ORDER[permutation]):
        left, source = BOX_STEP * place, BOX_STEP * box
        permuted[:, left : left + BOX_SIZE] = picture[:, source : source + BOX_SIZE]
    return permuted


def find(root: str | Path | None = None) -> Path:
    """The folder of NLVR."""
    return files.find_folder("nlvr", MARKS, LAYOUT, root)


def load(split: str = "train", root: str | Path | None = None, permutations: Sequence[int] = (0,)) -> Dataset:
    """One split of NLVR: sentences with the answers ``"true"`` and ``"false"``.

    Parameters
    ----------
    split
        One of :data:`SPLITS`.
    root
        See :func:`vqa_core.data.load`.
    permutations
        Which of the six orders of the boxes to have; each makes a question and a picture of its own.

    Notes
    -----
    ``meta["boxes"]`` is the structured description of the three boxes, left to right, where the split has it.
    The suffix of the identifier predicts the label: never use it as an input.

    Raises
    ------
    FileNotFoundError
        When the data set or one of its files is missing.
    ValueError
        When a record is damaged: names file, line and value.
    """
    files.check_split("nlvr", split, list(SPLITS))
    if not permutations or not set(permutations) <= set(range(6)) or len(set(permutations)) != len(permutations):
        raise ValueError(f"permutations is {tuple(permutations)}; give different numbers from 0 to 5")
    folder = find(root) / split
    source, notes = _annotations(folder, split)
    samples, seen = [], set()
    for where, record in files.read_json_lines(source):
        identifier = files.field(record, "identifier", where)
        if not re.fullmatch(r"\d+-\d+", identifier):
            raise ValueError(f"{where}: identifier is {identifier!r}; it must be two numbers such as 72-0")
        if identifier in seen:
            raise ValueError(f"{where}: identifier {identifier!r} occurs twice; remove one of the lines")
        seen.add(identifier)
        sentence = files.field(record, "sentence", where).strip()
        label = files.choice(files.field(record, "label", where), ("true", "false"), "label", where)
        boxes = record.get("structured_rep")
        if boxes is not None and (not isinstance(boxes, list) or len(boxes) != 3):
            raise ValueError(f"{where}: structured_rep must be a list of three boxes, it is {str(boxes)[:60]!r}")
        for k in permutations:
            meta = {"identifier": identifier, "directory": record.get("directory"), "permutation": k}
            if boxes is not None:
                meta["boxes"] = [boxes[b] for b in BOX_ORDER[k]]
            name = f"{split}-{identifier}-{k}"
            samples.append(Sample(name, name, sentence, label, family_of(sentence), CLOSED, meta=meta))

    on_disk = _pictures_on_disk(folder / "images")
    rebuilt = sum(s.picture_id not in on_disk for s in samples if not s.picture_id.endswith("-0"))
    if rebuilt:
        notes.append(f"rebuilt from permutation 0 because their files are absent: {rebuilt:,} pictures")

    def read(name: str) -> np.ndarray:
        if name in on_disk:
            return files.read_picture(on_disk[name])
        stem, k = name.rsplit("-", 1)
        base = on_disk.get(f"{stem}-0", folder / "images" / f"{stem}-0.png")  # the latter names the missing file
        picture = files.read_picture(base)
        try:
            return permute_boxes(picture, int(k))
        except ValueError as error:
            raise ValueError(f"{base}: {error}; get the data set again") from None

    return Dataset("nlvr", split, samples, read, notes)


def expected(folder: Path) -> dict[str, tuple[int, int]]:
    """Official numbers of questions and pictures (of one permutation) per split that lies in ``folder``."""
    counts = {"train": 12410, "dev": 989, "test": 990, "hidden": 985}
    if not (folder / "train" / "train.json").is_file():
        counts["train"] = 1000
    return {split: (n, n) for split, n in counts.items() if (folder / split).is_dir()}


def _annotations(folder: Path, split: str) -> tuple[Path, list[str]]:
    official, examples = folder / f"{split}.json", folder / "train_examples.jsonl"
    if split == "train" and not official.is_file() and examples.is_file():
        return examples, ["train.json is absent: read are the published examples of it, without structured_rep"]
    return official, []


def _pictures_on_disk(folder: Path) -> dict[str, Path]:
    """Picture name without ending → file, in ``folder`` and in its numbered sub-folders."""
    return {
        name.removesuffix(".png"): Path(parent, name)
        for parent, _, names in os.walk(folder)
        for name in names
        if name.endswith(".png")
    }
