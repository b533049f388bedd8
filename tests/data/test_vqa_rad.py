"""VQA-RAD: both forms, every split, the published numbers, every kind of damage."""

import io
import json
import re

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from vqa_core import data
from vqa_core.data import vqa_rad


def record(qid, question="Is there a mass?", answer="Yes", picture="synpic1.jpg", **changes):
    return {
        "qid": qid,
        "image_name": picture,
        "image_organ": "HEAD",
        "answer": answer,
        "answer_type": "CLOSED",
        "question_type": "PRES",
        "question": question,
        "phrase_type": "freeform",
    } | changes


TRAIN = [
    record(2, "Is/Are there a mass?", phrase_type="frame"),  # re-wording of test question 1
    record(3, "Where is it?", "Left  Lobe.", answer_type="OPEN", question_type="POS, PRSE", phrase_type="para"),
    record(5, "Is/Are there a bleed?", phrase_type="frame"),  # follows test question 4, but with another answer
    record(6, "How many masses?", 4, answer_type="OPEN", question_type="COUNT", picture="synpic2.jpg"),
    record(7, "Is it big?", "No", answer_type="CLOSED ", question_type="ATRIB", picture="synpic2.jpg"),
    record(8, "Is/Are it big?", "No", question_type="Other", phrase_type="frame", picture="synpic2.jpg"),
]
TEST = [record(1), record(4, "Is there a bleed?", "No", phrase_type="para")]


def write_json_form(root, train=TRAIN, test=TEST):
    folder = root / "vqa_rad"
    (folder / "images").mkdir(parents=True)
    (folder / "trainset.json").write_text(json.dumps(train))
    (folder / "testset.json").write_text(json.dumps(test))
    for i in (1, 2):
        Image.fromarray(np.full((6, 8), 100 * i, dtype=np.uint8)).save(folder / "images" / f"synpic{i}.jpg")
    return folder


def ids(split, root):
    return [s.question_id for s in data.load("vqa_rad", split, root)]


def test_json_form_splits(tmp_path):
    write_json_form(tmp_path)
    assert ids("train_3064", tmp_path) == ["2", "3", "5", "6", "7", "8"]
    assert ids("train", tmp_path) == ["3", "6", "7"]
    assert ids("train_2780", tmp_path) == ["3", "5", "6", "7", "8"]
    assert ids("train_disjoint", tmp_path) == ["6", "7"]
    assert ids("test", tmp_path) == ["1", "4"]
    assert ids("test_308", tmp_path) == ["1"]


def test_json_form_is_cleaned_and_says_so(tmp_path):
    write_json_form(tmp_path)
    dataset = data.load("vqa_rad", "train_3064", tmp_path)
    where, count, size, other = dataset[1], dataset[3], dataset[4], dataset[5]
    assert (where.answer, where.kind, where.family) == ("left lobe", "open", "POS")
    assert where.meta["question_types"] == ["POS", "PRES"]
    assert where.meta["raw_answer"] == "Left  Lobe."
    assert (count.answer, count.meta["raw_answer"], count.meta["qid"]) == ("4", "4", 6)
    assert (size.kind, size.family) == ("closed", "ATTRIB")
    assert other.family == "OTHER"
    assert dataset[0].meta["organ"] == "HEAD"
    assert dataset[0].meta["phrase_type"] == "frame"
    notes = "\n".join(dataset.notes)
    for note in (
        "integer answers read as text: 1 rows",
        "spaces around answer_type removed: 1 rows",
        "ATRIB read as ATTRIB: 1 rows",
        "PRSE read as PRES: 1 rows",
        "Other read as OTHER: 1 rows",
        "several question types, the first is the family: 1 rows",
        "1 of the 1 test pictures also occur",
    ):
        assert note in notes
    assert "template re-wordings (frame) left out: 3 rows" in data.load("vqa_rad", "train", tmp_path).notes


def test_picture_is_rgb_and_root_may_be_the_folder_itself(tmp_path):
    folder = write_json_form(tmp_path)
    dataset = data.load("vqa_rad", "test", folder)
    picture = dataset.picture("synpic1.jpg")
    assert picture.shape == (6, 8, 3)
    assert picture.dtype == np.uint8
    assert (picture == 100).all()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"answer_type": "MAYBE"}, r"record 2 \(qid 4\): answer_type is 'MAYBE', allowed are OPEN, CLOSED"),
        ({"question_type": "PRES, XYZ"}, r"record 2 \(qid 4\): question_type is 'XYZ'"),
        ({"image_organ": "FOOT"}, r"image_organ is 'FOOT', allowed are ABD, CHEST, HEAD"),
        ({"phrase_type": "poem"}, r"phrase_type is 'poem'"),
        ({"question": "  "}, r"field 'question' is '  '"),
        ({"answer": None}, r"field 'answer' is None"),
        ({"answer": "the."}, r"answer 'the\.' is empty after normalisation"),
        ({"image_name": "../secret.jpg"}, r"must not contain folders"),
        ({"qid": 1}, r"occurs twice"),
    ],
)
def test_damaged_record_is_named(tmp_path, change, message):
    write_json_form(tmp_path, test=[TEST[0], TEST[1] | change])
    with pytest.raises(ValueError, match=message) as caught:
        data.load("vqa_rad", "test", tmp_path)
    assert "testset.json, record 2" in str(caught.value)


def test_missing_field_is_named(tmp_path):
    broken = {k: v for k, v in TEST[0].items() if k != "answer"}
    write_json_form(tmp_path, test=[broken])
    with pytest.raises(ValueError, match=r"testset\.json, record 1 \(qid 1\): no field 'answer'"):
        data.load("vqa_rad", "test", tmp_path)


def test_broken_json_names_the_line(tmp_path):
    folder = write_json_form(tmp_path)
    (folder / "testset.json").write_text('[\n{"qid": 1,\n]')
    with pytest.raises(ValueError, match=r"testset\.json, line 3: not JSON"):
        data.load("vqa_rad", "test", tmp_path)


def test_missing_and_damaged_pictures_are_named(tmp_path):
    folder = write_json_form(tmp_path)
    dataset = data.load("vqa_rad", "train", tmp_path)
    whole = (folder / "images" / "synpic1.jpg").read_bytes()
    (folder / "images" / "synpic1.jpg").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(ValueError, match=r"synpic1\.jpg: damaged picture"):
        dataset.picture("synpic1.jpg")
    (folder / "images" / "synpic2.jpg").unlink()
    with pytest.raises(FileNotFoundError, match=r"synpic2\.jpg: the picture is missing"):
        dataset.picture("synpic2.jpg")


def test_missing_annotation_file(tmp_path):
    folder = write_json_form(tmp_path)
    (folder / "testset.json").unlink()
    with pytest.raises(FileNotFoundError, match=r"testset\.json is missing"):
        data.load("vqa_rad", "test", tmp_path)


# --- parquet form ---------------------------------------------------------------------------------------------------


def png(value):
    stream = io.BytesIO()
    Image.fromarray(np.full((5, 5), value, dtype=np.uint8)).save(stream, "PNG")
    return stream.getvalue()


def write_parquet_form(root, **changes):
    folder = root / "vqa_rad" / "data"
    folder.mkdir(parents=True)
    rows = {
        "train": [
            (png(1), "is there a mass?", "yes"),
            (png(2), "where?", "left"),
            (png(1), "what organ?", "The Liver"),
        ],
        "test": [(png(1), "is there a bleed?", "no")],
    } | changes
    for part, part_rows in rows.items():
        table = pa.table(
            {
                "image": [{"bytes": b, "path": None} for b, _, _ in part_rows],
                "question": [q for _, q, _ in part_rows],
                "answer": [a for _, _, a in part_rows],
            }
        )
        pq.write_table(table, folder / f"{part}-00000-of-00001-abc.parquet")
    return folder


def test_parquet_form(tmp_path):
    write_parquet_form(tmp_path)
    train, test = (data.load("vqa_rad", split, tmp_path) for split in ("train", "test"))
    assert [s.answer for s in train] == ["yes", "left", "liver"]
    assert [s.kind for s in train] == ["closed", "open", "open"]
    assert train.families == (vqa_rad.UNLABELLED,)
    assert train[0].picture_id == train[2].picture_id == test[0].picture_id  # the same content is the same picture
    assert (train.picture(train[1].picture_id) == 2).all()
    assert [s.question for s in data.load("vqa_rad", "train_disjoint", tmp_path)] == ["where?"]


def test_parquet_form_without_the_columns_for_a_split(tmp_path):
    write_parquet_form(tmp_path)
    with pytest.raises(ValueError, match=r"split 'train_3064' cannot be made.*--source json"):
        data.load("vqa_rad", "train_3064", tmp_path)


def test_damaged_parquet(tmp_path):
    folder = write_parquet_form(tmp_path, test=[(png(1), "", "no")])
    with pytest.raises(ValueError, match=r"test-.*parquet, row 1: field 'question' is ''"):
        data.load("vqa_rad", "test", tmp_path)
    path = next(folder.glob("test-*.parquet"))
    path.write_bytes(b"PAR1 nonsense")
    with pytest.raises(ValueError, match="not a readable parquet file"):
        data.load("vqa_rad", "test", tmp_path)
    path.unlink()
    with pytest.raises(FileNotFoundError, match=r"no test-\*\.parquet"):
        data.load("vqa_rad", "test", tmp_path)


# --- normalisation --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("raw", "normalised"),
    [
        ("The Right Lobe.", "right lobe"),
        ("2.5 cm.", "2.5 cm"),
        ("x-ray", "xray"),
        ("CT, with contrast", "ct with contrast"),
        ("left/right", "left right"),
        ("1,200", "1200"),
        ("Two", "2"),
        ("a  mass", "mass"),
    ],
)
def test_medical_answer(raw, normalised):
    assert vqa_rad.medical_answer(raw) == normalised
    assert vqa_rad.medical_answer(normalised) == normalised


# --- real files -----------------------------------------------------------------------------------------------------


@pytest.mark.realdata("vqa_rad")
def test_official_counts(data_root):
    train, test = (data.load("vqa_rad", split, data_root) for split in ("train_3064", "test"))
    assert (len(train), len(test)) == (3064, 451)
    phrases = [s.meta["phrase_type"] for s in train]
    assert [phrases.count(p) for p in ("freeform", "para", "frame")] == [1206, 591, 1267]
    assert [sum(s.kind == k for s in test) for k in ("closed", "open")] == [272, 179]
    freeform = data.load("vqa_rad", "test_308", data_root)
    assert [sum(s.kind == k for s in freeform) for k in ("closed", "open")] == [185, 123]
    assert [len(data.load("vqa_rad", s, data_root)) for s in ("train", "train_2780", "train_disjoint")] == [
        1797,
        2780,
        734,
    ]
    assert "203 of the 203 test pictures also occur in this training split" in train.notes
    assert "test rows that this training split repeats (picture, question, answer): 14" in train.notes
    assert "integer answers read as text: 10 rows" in train.notes
    assert any(re.match("spaces around answer_type removed: 2 rows", n) for n in train.notes)
    disjoint = data.load("vqa_rad", "train_disjoint", data_root)
    assert not set(disjoint.picture_ids) & set(test.picture_ids)


@pytest.mark.realdata("vqa_rad")
def test_published_vocabulary_and_ceilings(data_root):
    train, test = (data.load("vqa_rad", split, data_root) for split in ("train_3064", "test"))
    vocabulary = data.Vocabulary.of_answers(s.answer for s in train)
    assert len(vocabulary) == 458
    reachable = {k: [s.answer in vocabulary for s in test if s.kind == k] for k in ("closed", "open")}
    both = reachable["closed"] + reachable["open"]
    assert both.count(False) == 43
    assert round(100 * np.mean(both), 1) == 90.5
    assert round(100 * np.mean(reachable["closed"]), 1) == 97.8
    assert round(100 * np.mean(reachable["open"]), 1) == 79.3
    clean = data.Vocabulary.of_answers(s.answer for s in data.load("vqa_rad", "train", data_root))
    assert len(clean) == 415
    assert sum(s.answer in clean for s in test) == 340
