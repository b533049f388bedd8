"""DAQUAR: the official split by picture, the leaky split by question, answer sets, every kind of damage."""

import numpy as np
import pytest
from PIL import Image

from vqa_core import data
from vqa_core.data import daquar

PAIRS = [
    ("what is on the desk in the image1 ?", "lamp"),
    ("how many chairs are there in the image2 ?", "3"),
    ("what are on the table in this image 2 ?", "knife, fork"),
    ("what colour is the bag close to image3 in the image3 ?", "red"),
]


def write(root, pairs=PAIRS, train="image1\nimage3\n", test="image2\n", ending="png"):
    folder = root / "daquar"
    (folder / "images").mkdir(parents=True)
    (folder / "all_qa_pairs.txt").write_text("\n".join(f"{q}\n{a}" for q, a in pairs))
    (folder / "train_images_list.txt").write_text(train)
    (folder / "test_images_list.txt").write_text(test)
    (folder / "data_train.csv").write_text('question,answer,image_id\nwhat is it,lamp,image1\nwhat,"a, b",image2\n')
    (folder / "data_eval.csv").write_text("question,answer,image_id\nhow many,3,image2\n")
    for i in (1, 2, 3):
        Image.fromarray(np.full((4, 6, 3), 10 * i, dtype=np.uint8)).save(folder / "images" / f"image{i}.{ending}")
    return folder


def test_official_split_is_by_picture(tmp_path):
    write(tmp_path)
    train, test = (data.load("daquar", split, tmp_path) for split in ("train", "test"))
    assert [s.question for s in train] == ["what is on the desk", "what colour is the bag close to image3"]
    assert [s.question for s in test] == ["how many chairs are there", "what are on the table"]
    assert [s.family for s in [*train, *test]] == ["object", "colour", "counting", "object"]
    assert {s.kind for s in [*train, *test]} == {"open"}
    assert not set(train.picture_ids) & set(test.picture_ids)


def test_several_answers_are_one_answer_and_a_set(tmp_path):
    write(tmp_path)
    test = data.load("daquar", "test", tmp_path)
    assert test[1].answer == "knife, fork"
    assert test[1].answers == ("knife, fork",)
    assert test[1].meta["answer_set"] == ["fork", "knife"]
    assert test.notes == ("rows with several answers: 1",)


def test_split_by_question_says_that_it_leaks(tmp_path):
    write(tmp_path)
    train = data.load("daquar", "train_questions", tmp_path)
    assert [s.answer for s in train] == ["lamp", "a, b"]
    assert "split by question: 1 pictures also occur in the other part" in train.notes


@pytest.mark.parametrize("ending", ["png", "jpg"])
def test_png_or_jpeg(tmp_path, ending):
    write(tmp_path, ending=ending)
    assert (data.load("daquar", "train", tmp_path).picture("image3") == 30).all()


@pytest.mark.parametrize(
    ("pair", "message"),
    [
        (("what is it ?", "lamp"), r"line 3: the question does not end with the name of a picture"),
        (("what in the image9 ?", "lamp"), r"line 3: image9 is neither in train_images_list"),
        (("in the image1 ?", "lamp"), r"line 3: question '' or answer 'lamp' is empty"),
        (("what in the image1 ?", "a,, b"), r"line 3: .* answer 'a,, b' is empty"),
        (("what in the image1 ?", ""), r"line 4: empty"),
    ],
)
def test_damaged_pair_is_named(tmp_path, pair, message):
    write(tmp_path, [PAIRS[0], pair, PAIRS[1]])
    with pytest.raises(ValueError, match=r"all_qa_pairs\.txt, " + message):
        data.load("daquar", "train", tmp_path)


def test_damaged_files(tmp_path):
    folder = write(tmp_path)
    dataset = data.load("daquar", "train", tmp_path)
    (folder / "images" / "image1.png").write_bytes(b"no picture")
    with pytest.raises(ValueError, match=r"image1\.png: damaged picture"):
        dataset.picture("image1")
    (folder / "images" / "image3.png").unlink()
    with pytest.raises(FileNotFoundError, match=r"image3\.png: the picture is missing"):
        dataset.picture("image3")
    (folder / "data_eval.csv").write_text("question,answer,image_id\nwhat,lamp\n")
    with pytest.raises(ValueError, match=r"data_eval\.csv, line 2: expected question, answer and a picture"):
        data.load("daquar", "eval_questions", tmp_path)
    (folder / "data_eval.csv").write_text("q,a,i\n")
    with pytest.raises(ValueError, match=r"data_eval\.csv, line 1: the columns must be"):
        data.load("daquar", "eval_questions", tmp_path)
    (folder / "test_images_list.txt").write_text("image1\n")
    with pytest.raises(ValueError, match="'image1'"):
        data.load("daquar", "train", tmp_path)
    (folder / "test_images_list.txt").unlink()
    with pytest.raises(FileNotFoundError, match=r"test_images_list\.txt is missing"):
        data.load("daquar", "train", tmp_path)


def test_odd_number_of_lines(tmp_path):
    folder = write(tmp_path)
    with open(folder / "all_qa_pairs.txt", "a") as f:
        f.write("\nwhat in the image1 ?")
    with pytest.raises(ValueError, match="9 lines; questions and answers must alternate"):
        data.load("daquar", "train", tmp_path)


@pytest.mark.realdata("daquar")
def test_official_counts(data_root):
    train, test = (data.load("daquar", split, data_root) for split in ("train", "test"))
    assert (len(train), len(test)) == (6795, 5673)
    assert not set(train.picture_ids) & set(test.picture_ids)
    assert sum(", " in s.answer for s in [*train, *test]) == 1243
    leaky = [data.load("daquar", split, data_root) for split in ("train_questions", "eval_questions")]
    assert len(set(leaky[0].picture_ids) & set(leaky[1].picture_ids)) == 1124
    # The questions cut from the text file are those of the CSV files.
    assert sorted((s.question, s.picture_id) for part in leaky for s in part) == sorted(
        (s.question, s.picture_id) for s in [*train, *test]
    )
    assert set(daquar.SPLITS) == set(daquar.expected(data_root / "daquar"))
