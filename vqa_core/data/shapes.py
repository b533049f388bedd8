"""SHAPES: yes/no queries about a 3 × 3 grid of coloured shapes (Andreas et al. 2016, arXiv:1511.02799).

Few queries, many pictures: 1, 10, 16 and 16 distinct queries in tiny, small, val and test, 64 pictures each. What is
learnt is how to look, not how to read.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from vqa_core.data import root as files
from vqa_core.data.types import CLOSED, Dataset, Sample

SPLITS = {
    "tiny": "64 queries about 64 pictures (train.tiny)",
    "small": "640 queries about 640 pictures (train.small)",
    "val": "1,024 queries about 1,024 pictures",
    "test": "1,024 queries about 1,024 pictures",
}
_STEM = {"tiny": "train.tiny", "small": "train.small", "val": "val", "test": "test"}
LAYOUT = "<part>.input.npy, <part>.query_str.txt, <part>.query and <part>.output (<part> is train.small, val, test …)"
MARKS = tuple(f"{stem}.query_str.txt" for stem in _STEM.values())
SHA256 = {
    "train.tiny.input.npy": "202593231674e6c587daf1051cb13ae943dee28f28c741232b68d640741e54fa",
    "train.small.input.npy": "8f814e05fefb4a45b8ef6bdd842d62bff9bb93a3939afdfbb90d618ca8a8a8f0",
    "val.input.npy": "3da360d0bf39257de832812c79f9e54af2a38a224a14da88cb329edba966f0e6",
    "test.input.npy": "bed5f225b9548384c648482d5079d605f4cb30aeefd81b52683ef072a1325bba",
    "train.tiny.output": "3efe72c66289929da28a4fe26ebf58dcc903d641fa2c5a303dc7435465f30791",
    "train.small.output": "23268bd4336005e8080e15d338b0dcef1f9a405ac80f67b94192a5d24172b720",
    "val.output": "f9dd2bd0ba88f0a1ec9d48ce622adacec89794be1e8cf594dffef26036123777",
    "test.output": "be2106b2eb9ec10a9c8c4a6b484aa2520083f97936ef2d1ff62c966a7d979563",
}
_RELATIONS = ("left_of", "right_of", "above", "below")
_FAMILIES = ("property", "one relation", "two relations")


def family_of(program: str) -> str:
    """``property`` ("is a red shape green"), ``one relation`` or ``two relations``, counted in the program.

    >>> family_of("(is green (left_of red))")
    'one relation'
    """
    relations = sum(program.count(relation) for relation in _RELATIONS)
    if relations >= len(_FAMILIES):
        raise ValueError(f"program {program!r} has {relations} relations, at most two are known")
    return _FAMILIES[relations]


def find(root: str | Path | None = None) -> Path:
    """The folder of SHAPES."""
    return files.find_folder("shapes", MARKS, LAYOUT, root)


def load(split: str = "small", root: str | Path | None = None) -> Dataset:
    """One split of SHAPES: queries with the answers ``"true"`` and ``"false"``.

    ``meta["program"]`` is the query as a tree. The arrays are stored blue-green-red; pictures come out red-green-blue.

    Raises
    ------
    FileNotFoundError
        When the data set or one of its files is missing.
    ValueError
        When a file is damaged, or the files of the split differ in length: names file, line and value.
    """
    files.check_split("shapes", split, list(SPLITS))
    folder, stem = find(root), _STEM[split]
    array = folder / f"{stem}.input.npy"
    pictures = _read_array(array)
    queries, programs, labels = (
        files.read_lines(folder / f"{stem}.{ending}") for ending in ("query_str.txt", "query", "output")
    )
    lengths = {"input.npy": len(pictures), "query_str.txt": len(queries), "query": len(programs), "output": len(labels)}
    if len(set(lengths.values())) > 1:
        raise ValueError(f"{folder}, {stem}.*: lengths differ: {lengths}; get the files again")
    samples = []
    for i, (query, program, label) in enumerate(zip(queries, programs, labels)):
        files.choice(label, ("true", "false"), "label", f"{folder / (stem + '.output')}, line {i + 1}")
        try:
            family = family_of(program)
        except ValueError as error:
            raise ValueError(f"{folder / (stem + '.query')}, line {i + 1}: {error}") from None
        name = f"{split}/{i}"
        samples.append(Sample(name, name, query, label, family, CLOSED, meta={"program": program}))
    notes = [f"distinct queries: {len(set(queries))}"]
    return Dataset("shapes", split, samples, lambda name: pictures[int(name.split("/")[1])], notes)


def expected(folder: Path) -> dict[str, tuple[int, int]]:
    """Official numbers of questions and pictures per split that lies in ``folder``."""
    counts = {"tiny": 64, "small": 640, "val": 1024, "test": 1024}
    return {s: (n, n) for s, n in counts.items() if (folder / f"{_STEM[s]}.query_str.txt").is_file()}


def _read_array(path: Path) -> np.ndarray:
    if not path.is_file():
        raise FileNotFoundError(f"{path} is missing; get it: python -m vqa_core data fetch shapes")
    try:
        array = np.load(path, allow_pickle=False)
    except (ValueError, EOFError, OSError) as error:
        raise ValueError(f"{path}: not a readable array ({error}); delete it and fetch it again") from error
    if array.ndim != 4 or array.shape[1:] != (30, 30, 3) or array.dtype != np.uint8:
        raise ValueError(f"{path}: expected uint8 (N, 30, 30, 3), got {array.dtype} {array.shape}; fetch it again")
    return np.ascontiguousarray(array[..., ::-1])  # BGR → RGB
