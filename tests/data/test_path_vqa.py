"""PathVQA: both forms, and every kind of damage."""

import io
import json

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from vqa_core import data
from vqa_core.data import fetch, path_vqa

ROWS = [
    ("a", "where are liver stem cells located ?", "In the  canals of Hering"),
    ("a", "are they large?", "Yes"),
    ("b", "describe the tissue", "necrotic"),
    ("b", "what is  seen?", "fat"),
    ("b", "what is seen?", "Fat"),  # the row before, again
]


def png(name):
    stream = io.BytesIO()
    Image.fromarray(np.full((5, 7), ord(name), dtype=np.uint8)).save(stream, "PNG")
    return stream.getvalue()


def write_parquet(root, shards=((ROWS[:2]), (ROWS[2:])), val=ROWS[:1], test=ROWS[2:3]):
    folder = root / "path_vqa" / "data"
    folder.mkdir(parents=True)
    for part, pieces in (("train", shards), ("validation", [val]), ("test", [test])):
        for i, rows in enumerate(pieces):
            table = pa.table(
                {
                    "image": [{"bytes": png(n), "path": None} for n, _, _ in rows],
                    "question": [q for _, q, _ in rows],
                    "answer": [a for _, _, a in rows],
                }
            )
            pq.write_table(table, folder / f"{part}-{i:05}-of-{len(pieces):05}-abc.parquet")
    return folder


def write_json(root, train=None):
    folder = root / "path_vqa"
    records = [{"image": f"train_{n}", "question": q, "answer": a} for n, q, a in ROWS] if train is None else train
    for split, content in (("train", records), ("val", records[:1]), ("test", records[:1])):
        (folder / "images" / split).mkdir(parents=True)
        (folder / f"{split}.json").write_text(json.dumps(content))
    for n in "ab":
        Image.fromarray(np.full((5, 7), ord(n), dtype=np.uint8)).save(folder / "images" / "train" / f"train_{n}.jpg")
    return folder


@pytest.mark.parametrize("write", [write_parquet, write_json])
def test_both_forms_give_the_same_questions(tmp_path, write):
    write(tmp_path)
    dataset = data.load("path_vqa", "train", tmp_path)
    assert [s.question for s in dataset][:1] == ["where are liver stem cells located?"]
    assert [s.answer for s in dataset] == ["in the canals of hering", "yes", "necrotic", "fat", "fat"]
    assert [s.kind for s in dataset] == ["open", "closed", "open", "open", "open"]
    assert [s.family for s in dataset] == ["where", "yes/no", "other", "what", "what"]
    assert dataset[0].meta["raw_answer"] == "In the  canals of Hering"
    assert dataset.notes[1] == "rows that repeat another of this split (picture, question, answer), kept: 1"
    first, last = dataset[0].picture_id, dataset[-1].picture_id
    assert [s.picture_id for s in dataset] == [first, first, last, last, last]
    assert dataset.picture(last).shape == (5, 7, 3)
    assert abs(int(dataset.picture(last)[0, 0, 0]) - ord("b")) <= 1
    assert len(data.load("path_vqa", "val", tmp_path)) == len(data.load("path_vqa", "test", tmp_path)) == 1


def test_the_same_content_is_the_same_picture_in_every_split_of_the_parquet_form(tmp_path):
    write_parquet(tmp_path)
    train, val, test = (data.load("path_vqa", s, tmp_path) for s in ("train", "val", "test"))
    assert val[0].picture_id == train[0].picture_id
    assert test[0].picture_id == train[2].picture_id
    assert val[0].picture_id != test[0].picture_id


def test_expected_knows_the_form(tmp_path):
    assert sum(n for n, _ in path_vqa.expected(write_json(tmp_path)).values()) == 32795
    assert sum(n for n, _ in path_vqa.expected(tmp_path).values()) == 32632


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"image": "../secret"}, r"picture name '\.\./secret' must not contain folders"),
        ({"question": " "}, r"field 'question' is ' '"),
        ({"answer": ""}, r"field 'answer' is ''"),
        ({"answer": None}, r"field 'answer' is None"),
    ],
)
def test_damaged_record_of_the_json_form(tmp_path, change, message):
    good = {"image": "train_a", "question": "what?", "answer": "fat"}
    write_json(tmp_path, [good, good | change])
    with pytest.raises(ValueError, match=r"train\.json, record 2: " + message):
        data.load("path_vqa", "train", tmp_path)


def test_damaged_files_of_the_json_form(tmp_path):
    folder = write_json(tmp_path)
    dataset = data.load("path_vqa", "train", tmp_path)
    (folder / "images" / "train" / "train_a.jpg").unlink()
    with pytest.raises(FileNotFoundError, match=r"train_a\.jpg: the picture is missing"):
        dataset.picture("train_a")
    for content, message in (("{}", "expected a list"), ("[1]", "record 1: expected a JSON object"), ("[]", "no ques")):
        (folder / "train.json").write_text(content)
        with pytest.raises(ValueError, match=message):
            data.load("path_vqa", "train", tmp_path)
    (folder / "train.json").unlink()
    with pytest.raises(FileNotFoundError, match=r"train\.json is missing"):
        data.load("path_vqa", "train", tmp_path)


def test_damaged_parquet(tmp_path):
    folder = write_parquet(tmp_path, test=[("a", "what?", "fat"), ("a", " ", "fat")])
    with pytest.raises(ValueError, match=r"test-.*parquet, row 2: field 'question' is ' '"):
        data.load("path_vqa", "test", tmp_path)
    path = next(folder.glob("test-*.parquet"))
    path.write_bytes(b"PAR1 nonsense")
    with pytest.raises(ValueError, match=r"test-.*not a readable parquet file"):
        data.load("path_vqa", "test", tmp_path)
    path.unlink()
    with pytest.raises(FileNotFoundError, match=r"no test-\*\.parquet"):
        data.load("path_vqa", "test", tmp_path)


def test_fetching_says_how(tmp_path):
    with pytest.raises(ValueError, match="hf download flaviagiammarino/path-vqa"):
        fetch.fetch("path_vqa", root=tmp_path)
