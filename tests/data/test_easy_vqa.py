"""easy-VQA: JSON + PNG, families by the form of the question, every kind of damage."""

import json

import numpy as np
import pytest
from PIL import Image

from vqa_core import data
from vqa_core.data import easy_vqa

QUESTIONS = [
    ["what color is the shape?", "blue", 0],
    ["what is the blue shape?", "circle", 0],
    ["is a circle present?", "yes", 0],
    ["does the image not contain a red shape?", "yes", 1],
]


def write(root, questions=QUESTIONS, split="train"):
    folder = root / "easy_vqa" / split
    (folder / "images").mkdir(parents=True)
    (folder / "questions.json").write_text(json.dumps(questions))
    for i in (0, 1):
        Image.fromarray(np.full((64, 64, 3), i, dtype=np.uint8)).save(folder / "images" / f"{i}.png")
    return folder


def test_reads_the_official_form(tmp_path):
    write(tmp_path)
    dataset = data.load("easy_vqa", "train", tmp_path)
    assert [s.family for s in dataset] == ["colour", "shape", "presence", "absence"]
    assert [s.kind for s in dataset] == ["open", "open", "closed", "closed"]
    assert [s.answer for s in dataset] == ["blue", "circle", "yes", "yes"]
    assert dataset.picture_ids == ("train/0", "train/1")
    assert (dataset.picture("train/1") == 1).all()
    assert len({s.question_id for s in dataset}) == 4


def test_the_same_number_in_train_and_test_is_another_picture(tmp_path):
    write(tmp_path)
    write(tmp_path, split="test")
    ids = [set(data.load("easy_vqa", split, tmp_path).picture_ids) for split in ("train", "test")]
    assert not ids[0] & ids[1]


@pytest.mark.parametrize(
    ("record", "message"),
    [
        (["is it red?", "yes"], r"record 2: expected \[question, answer, picture number\]"),
        (["is it red?", "yes", "0"], r"record 2: expected \[question, answer, picture number\]"),
        ([" ", "yes", 0], r"record 2: question ' ' or answer 'yes' is empty"),
        (["why is it red?", "yes", 0], r"record 2: question 'why is it red\?' does not begin with"),
        (["is it red?", "blue", 0], r"record 2: 'blue' is no answer to 'is it red\?'"),
    ],
)
def test_damaged_record_is_named(tmp_path, record, message):
    write(tmp_path, [QUESTIONS[0], record])
    with pytest.raises(ValueError, match=r"questions\.json, " + message):
        data.load("easy_vqa", "train", tmp_path)


def test_missing_and_damaged_files(tmp_path):
    folder = write(tmp_path)
    dataset = data.load("easy_vqa", "train", tmp_path)
    (folder / "images" / "0.png").write_bytes(b"")
    with pytest.raises(ValueError, match=r"0\.png: damaged picture"):
        dataset.picture("train/0")
    (folder / "images" / "1.png").unlink()
    with pytest.raises(FileNotFoundError, match=r"1\.png: the picture is missing"):
        dataset.picture("train/1")
    with pytest.raises(FileNotFoundError, match=r"test/questions\.json is missing"):
        data.load("easy_vqa", "test", tmp_path)
    (folder / "questions.json").write_text("{}")
    with pytest.raises(ValueError, match="expected a list of records, got dict"):
        data.load("easy_vqa", "train", tmp_path)


@pytest.mark.realdata("easy_vqa")
def test_official_counts(data_root):
    train, test = (data.load("easy_vqa", split, data_root) for split in ("train", "test"))
    assert (len(train), len(test)) == (38575, 9673)
    assert (len(train.picture_ids), len(test.picture_ids)) == (4000, 1000)
    assert len({s.question for s in train} | {s.question for s in test}) == 107
    assert len({s.answer for s in train}) == 13
    assert sum(s.kind == "closed" for s in train) == 28407
    assert sum(s.kind == "closed" for s in test) == 7136
    assert {s.answer for s in train if s.family == "shape"} == {"circle", "rectangle", "triangle"}
    assert len({s.answer for s in train if s.family == "colour"}) == 8
    assert set(easy_vqa.SPLITS) == {"train", "test"}
