"""SHAPES: arrays + text, colours in the right order, every kind of damage."""

import numpy as np
import pytest

from vqa_core import data

QUERIES = ["is a red shape green", "is a green shape left of a red shape", "is a circle below above a square"]
PROGRAMS = ["(is red green)", "(is green (left_of red))", "(is circle (below (above square)))"]
LABELS = ["false", "true", "true"]


def write(root, queries=QUERIES, programs=PROGRAMS, labels=LABELS, n=3):
    folder = root / "shapes"
    folder.mkdir()
    blue_green_red = np.zeros((n, 30, 30, 3), dtype=np.uint8)
    blue_green_red[..., 2] = 255  # stored BGR: a red picture
    np.save(folder / "train.small.input.npy", blue_green_red)
    for ending, lines in (("query_str.txt", queries), ("query", programs), ("output", labels)):
        (folder / f"train.small.{ending}").write_text("".join(f"{x}\n" for x in lines))
    return folder


def test_reads_the_official_form(tmp_path):
    write(tmp_path)
    dataset = data.load("shapes", "small", tmp_path)
    assert [s.family for s in dataset] == ["property", "one relation", "two relations"]
    assert [s.answer for s in dataset] == LABELS
    assert [s.meta["program"] for s in dataset] == PROGRAMS
    assert {s.kind for s in dataset} == {"closed"}
    assert dataset.picture("small/2").shape == (30, 30, 3)
    assert tuple(dataset.picture("small/0")[0, 0]) == (255, 0, 0)  # RGB
    assert dataset.notes == ("distinct queries: 3",)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"labels": ["true", "true", "maybe"]}, r"train\.small\.output, line 3: label is 'maybe'"),
        ({"queries": [QUERIES[0], " ", QUERIES[2]]}, r"train\.small\.query_str\.txt, line 2: empty"),
        ({"programs": [*PROGRAMS[:2], "(above (above (below red)))"]}, r"train\.small\.query, line 3: .*3 relations"),
        ({"labels": LABELS[:2]}, r"lengths differ.*'output': 2"),
        ({"n": 4}, r"lengths differ.*'input\.npy': 4"),
    ],
)
def test_damaged_record_is_named(tmp_path, changes, message):
    write(tmp_path, **changes)
    with pytest.raises(ValueError, match=message):
        data.load("shapes", "small", tmp_path)


def test_missing_and_damaged_files(tmp_path):
    folder = write(tmp_path)
    array = folder / "train.small.input.npy"
    np.save(array, np.zeros((3, 30, 30), dtype=np.uint8))
    with pytest.raises(ValueError, match=r"expected uint8 \(N, 30, 30, 3\), got uint8 \(3, 30, 30\)"):
        data.load("shapes", "small", tmp_path)
    array.write_bytes(array.read_bytes()[:500])
    with pytest.raises(ValueError, match=r"train\.small\.input\.npy: not a readable array"):
        data.load("shapes", "small", tmp_path)
    np.save(array, np.array([{"a": 1}]), allow_pickle=True)
    with pytest.raises(ValueError, match="not a readable array"):  # a pickle inside is never loaded
        data.load("shapes", "small", tmp_path)
    array.unlink()
    with pytest.raises(FileNotFoundError, match=r"train\.small\.input\.npy is missing"):
        data.load("shapes", "small", tmp_path)
    with pytest.raises(FileNotFoundError, match=r"val\."):
        data.load("shapes", "val", tmp_path)


@pytest.mark.realdata("shapes")
def test_official_files(data_root):
    sizes, distinct = [], []
    for split in ("tiny", "small", "val", "test"):
        dataset = data.load("shapes", split, data_root)
        sizes.append(len(dataset))
        distinct.append(len({s.question for s in dataset}))
    assert sizes == [64, 640, 1024, 1024]
    assert distinct == [1, 10, 16, 16]


@pytest.mark.realdata("shapes")
def test_colour_words_agree_with_the_pictures(data_root):
    """Where the answer is true, every colour of the query is in the picture; read in the other order it is not."""
    missing = {"as read": 0, "reversed": 0}
    for sample in (dataset := data.load("shapes", "small", data_root)):
        if sample.answer == "true":
            picture = dataset.picture(sample.picture_id)
            for name, rgb in (("as read", picture), ("reversed", picture[..., ::-1])):
                for channel, word in enumerate(("red", "green", "blue")):
                    others = np.delete(rgb, channel, axis=-1).max(axis=-1)
                    if word in sample.question.split() and not ((rgb[..., channel] > 100) & (others < 100)).any():
                        missing[name] += 1
    assert missing["as read"] == 0
    assert missing["reversed"] > 0
