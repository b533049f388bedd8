"""SLAKE: the original layout in both languages, every kind of damage, and the real English questions."""

import json
import shutil
import zipfile

import numpy as np
import pytest
from PIL import Image

from vqa_core import data
from vqa_core.data import fetch, slake


def record(qid, question="Is there a liver?", answer="Yes", n=1, **changes):
    return {
        "img_id": n,
        "img_name": f"xmlab{n}/source.jpg",
        "question": question,
        "answer": answer,
        "q_lang": "en",
        "location": "Abdomen",
        "modality": "MRI",
        "answer_type": "CLOSED",
        "base_type": "vqa",
        "content_type": "Organ",
        "triple": ["vhead", "_", "_"],
        "qid": qid,
    } | changes


TRAIN = [
    record(0),
    record(1, "哪个器官?", "肝脏", q_lang="zh", answer_type="OPEN"),
    record(2, "Where is it? ", "Left  Lung", 2, answer_type="OPEN ", content_type="Position"),
    record(3, "Does the picture contain liver?", "", 2),
    record(4, "How many?", 2, 2, answer_type="OPEN", content_type="Quantity"),
]


def write(root, train=TRAIN, validation_name="validate.json"):
    folder = root / "slake"
    for n in (1, 2):
        (folder / "imgs" / f"xmlab{n}").mkdir(parents=True)
        Image.fromarray(np.full((6, 8), 100 * n, dtype=np.uint8)).save(folder / "imgs" / f"xmlab{n}" / "source.jpg")
    (folder / "train.json").write_text(json.dumps(train, ensure_ascii=False), encoding="utf-8")
    (folder / validation_name).write_text(json.dumps([record(10)]))
    (folder / "test.json").write_text(json.dumps([record(20)]))
    return folder


def test_english_is_read_and_cleaned(tmp_path):
    write(tmp_path)
    dataset = data.load("slake", "train", tmp_path)
    assert [s.question_id for s in dataset] == ["0", "2", "4"]
    assert [(s.answer, s.kind, s.family) for s in dataset] == [
        ("yes", "closed", "Organ"),
        ("left lung", "open", "Position"),
        ("2", "open", "Quantity"),
    ]
    where = dataset[1]
    assert (where.question, where.meta["raw_answer"], where.picture_id) == ("Where is it?", "Left  Lung", "xmlab2")
    assert where.meta["qid"] == 2
    assert where.meta["modality"] == "MRI"
    assert where.meta["triple"] == ["vhead", "_", "_"]
    assert dataset.notes == (
        "answers put into lower case and single spaces: 2 rows",
        "spaces around answer_type removed: 1 rows",
        "left out, since their answer is empty: records 4 of train.json",
        "questions in another language left out: 1 rows",
    )


def test_languages(tmp_path):
    write(tmp_path)
    ids = lambda language: [s.question_id for s in slake.load("train", tmp_path, language)]  # noqa: E731
    assert ids("zh") == ["1"]
    assert ids("both") == ["0", "1", "2", "4"]
    assert slake.load("train", tmp_path, "zh")[0].answer == "肝脏"
    with pytest.raises(ValueError, match="no language 'fr'; allowed are en, zh, both"):
        ids("fr")
    with pytest.raises(ValueError, match=r"test\.json has no question in language 'zh'"):
        slake.load("test", tmp_path, "zh")


@pytest.mark.parametrize("name", ["validate.json", "validation.json"])
def test_both_names_of_the_validation_file(tmp_path, name):
    write(tmp_path, validation_name=name)
    assert [s.question_id for s in data.load("slake", "validate", tmp_path)] == ["10"]


def test_pictures(tmp_path):
    folder = write(tmp_path)
    dataset = data.load("slake", "train", tmp_path)
    assert dataset.picture("xmlab2").shape == (6, 8, 3)
    assert (dataset.picture("xmlab2") == 200).all()
    shutil.rmtree(folder / "imgs")
    absent = data.load("slake", "train", folder)
    assert any("imgs/ is absent" in note for note in absent.notes)
    with pytest.raises(FileNotFoundError, match=r"xmlab2/source\.jpg: the picture is missing"):
        absent.picture("xmlab2")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"img_name": "../x/source.jpg"}, r"img_name is '\.\./x/source\.jpg'; it must be of the form xmlab12"),
        ({"q_lang": "fr"}, r"q_lang is 'fr', allowed are en, zh"),
        ({"answer_type": "MAYBE"}, r"answer_type is 'MAYBE', allowed are OPEN, CLOSED"),
        ({"answer": None}, r"field 'answer' is None"),
        ({"question": " "}, r"field 'question' is ' '"),
        ({"content_type": 3}, r"field 'content_type' is 3"),
        ({"qid": "two"}, r"field 'qid' is 'two'"),
        ({"qid": 0}, r"qid 0 occurs twice"),
    ],
)
def test_damaged_record_is_named(tmp_path, change, message):
    write(tmp_path, train=[TRAIN[0], TRAIN[2] | change])
    with pytest.raises(ValueError, match=r"train\.json, record 2: " + message):
        data.load("slake", "train", tmp_path)


def test_damaged_and_missing_files(tmp_path):
    folder = write(tmp_path, train={"no": "list"})
    with pytest.raises(ValueError, match=r"train\.json: expected a list of records, got dict"):
        data.load("slake", "train", tmp_path)
    (folder / "train.json").write_text("[1]")
    with pytest.raises(ValueError, match=r"record 1: expected a JSON object, got 1"):
        data.load("slake", "train", tmp_path)
    (folder / "test.json").unlink()
    with pytest.raises(FileNotFoundError, match=r"test\.json is missing"):
        data.load("slake", "test", tmp_path)


def test_the_archive_of_the_hub_is_unpacked_in_place(tmp_path, monkeypatch):
    place = fetch.SOURCES["slake"]["hub"]
    here = write(tmp_path / "home", validation_name="validation.json")
    hold = {"pictures": True}

    def serve(repository, name, *, local_dir, **_):
        local_dir.mkdir(parents=True, exist_ok=True)
        if name == "imgs.zip":
            with zipfile.ZipFile(local_dir / name, "w") as z:
                for file in here.rglob("imgs/*/*.jpg"):
                    z.write(file, file.relative_to(here) if hold["pictures"] else f"{file.parent.name}.jpg")
        else:
            shutil.copy(here / name, local_dir / name)

    monkeypatch.setattr("huggingface_hub.hf_hub_download", serve)
    folder = fetch.fetch("slake", root=tmp_path / "data", progress=False)
    assert sorted(p.name for p in folder.iterdir()) == ["imgs", "test.json", "train.json", "validation.json"]
    dataset = data.load("slake", "train", tmp_path / "data")
    assert (dataset.picture(dataset[0].picture_id) == 100).all()
    assert len(place.revision) == 40  # pinned to a commit
    with pytest.raises(FileExistsError, match="already there"):
        fetch.fetch("slake", root=tmp_path / "data", progress=False)
    hold["pictures"] = False
    with pytest.raises(ValueError, match=r"imgs\.zip of BoKelvin/SLAKE has no imgs/"):
        fetch.fetch("slake", root=tmp_path / "other", progress=False)
    assert not (tmp_path / "other" / "slake").exists()


def test_hidden_fields_of_the_other_form(tmp_path):
    """A re-distribution calls the picture ``image`` and has no number."""
    rows = [{k: v for k, v in r.items() if k not in ("img_name", "qid")} | {"image": r["img_name"]} for r in TRAIN]
    write(tmp_path, train=rows)
    assert [s.question_id for s in data.load("slake", "train", tmp_path)] == ["train-1", "train-3", "train-5"]


@pytest.mark.realdata("slake_text_only")
def test_official_english_questions(data_root):
    folder = data_root / "slake_text_only"
    splits = {split: data.load("slake", split, folder) for split in slake.SPLITS}
    found = {split: (len(d), len(d.picture_ids)) for split, d in splits.items()}
    assert found == slake.expected(folder)
    assert [sum(s.kind == k for s in splits["test"]) for k in ("open", "closed")] == [645, 416]
    assert splits["train"].families == (
        *("Abnormality", "Color", "KG", "Modality", "Organ", "Plane", "Position", "Quantity", "Shape", "Size"),
    )
    assert "left out, since their answer is empty: records 1623 of train.json" in splits["train"].notes
    assert len({i for d in splits.values() for i in d.picture_ids}) == 642  # no picture is in two splits
