"""NLVR: JSON lines, six permutations (on disk or rebuilt), every kind of damage."""

import json

import numpy as np
import pytest
from PIL import Image

from vqa_core import data
from vqa_core.data import nlvr

COLOURS = ((200, 0, 0), (0, 200, 0), (0, 0, 200))
BOXES = [[{"color": c, "type": "square", "size": 20, "x_loc": 0, "y_loc": 0}] for c in ("Yellow", "Black", "#0099ff")]


def line(identifier, sentence="There is a yellow square", label="true", **changes):
    return {
        "sentence": sentence,
        "label": label,
        "identifier": identifier,
        "directory": "7",
        "structured_rep": BOXES,
    } | changes


def picture_of(order=(0, 1, 2)):
    picture = np.full((100, 400, 4), 211, dtype=np.uint8)
    picture[..., 3] = 255
    for place, box in enumerate(order):
        picture[:, 150 * place : 150 * place + 100, :3] = COLOURS[box]
    return picture


def write(root, lines, split="dev", pictures=(), sub="7"):
    folder = root / "nlvr" / split
    (folder / "images" / sub).mkdir(parents=True)
    (folder / f"{split}.json").write_text("".join(json.dumps(x) + "\n" for x in lines))
    for name, picture in pictures:
        Image.fromarray(picture).save(folder / "images" / sub / f"{name}.png")
    return folder


def box_colours(picture):
    return [tuple(picture[50, x].tolist()) for x in (50, 200, 350)]


def test_reads_and_rebuilds_permutations(tmp_path):
    write(tmp_path, [line("12-0")], pictures=[("dev-12-0-0", picture_of())])
    dataset = nlvr.load("dev", tmp_path, permutations=range(6))
    assert [s.question_id for s in dataset] == [f"dev-12-0-{k}" for k in range(6)]
    assert len(dataset.picture_ids) == 6
    for k, order in enumerate(nlvr.BOX_ORDER):
        picture = dataset.picture(f"dev-12-0-{k}")
        assert picture.shape == (100, 400, 3)
        assert box_colours(picture) == [COLOURS[b] for b in order]
        assert (picture[:, 100:150] == 211).all()  # the gaps stay
        assert [b[0]["color"] for b in dataset[k].meta["boxes"]] == [BOXES[b][0]["color"] for b in order]
    red, green, blue = COLOURS
    assert box_colours(dataset.picture("dev-12-0-3")) == [green, blue, red]  # as in the official files,
    assert box_colours(dataset.picture("dev-12-0-4")) == [blue, red, green]  # where 3 and 4 undo each other
    assert dataset.notes == ("rebuilt from permutation 0 because their files are absent: 5 pictures",)


def test_official_file_is_preferred_over_rebuilding(tmp_path):
    marked = picture_of(nlvr.BOX_ORDER[3])
    marked[0, 0, :3] = (1, 2, 3)
    write(tmp_path, [line("12-0")], pictures=[("dev-12-0-0", picture_of()), ("dev-12-0-3", marked)])
    dataset = nlvr.load("dev", tmp_path, permutations=(3,))
    assert tuple(dataset.picture("dev-12-0-3")[0, 0]) == (1, 2, 3)
    assert not dataset.notes


def test_transparent_becomes_white(tmp_path):
    picture = picture_of()
    picture[:, 100:150, 3] = 0
    write(tmp_path, [line("12-0")], pictures=[("dev-12-0-0", picture)])
    assert (data.load("nlvr", "dev", tmp_path).picture("dev-12-0-0")[:, 100:150] == 255).all()


def test_hidden_has_no_directory_and_train_may_be_the_examples(tmp_path):
    hidden = {k: v for k, v in line("5-1").items() if k != "directory"}
    write(tmp_path, [hidden], "hidden", [("hidden-5-1-0", picture_of())], sub="0")
    assert data.load("nlvr", "hidden", tmp_path).picture("hidden-5-1-0").shape == (100, 400, 3)

    folder = write(tmp_path, [], "train", [("train-9-0-0", picture_of())], sub="")
    (folder / "train.json").rename(folder / "train_examples.jsonl")
    (folder / "train_examples.jsonl").write_text(json.dumps({"sentence": "a", "label": "false", "identifier": "9-0"}))
    train = data.load("nlvr", "train", tmp_path)
    assert [s.answer for s in train] == ["false"]
    assert "boxes" not in train[0].meta
    assert "train.json is absent" in train.notes[0]


@pytest.mark.parametrize(
    ("sentence", "family"),
    [
        ("There is no black box", "negation"),
        ("each box has two circles", "universal"),
        ("exactly 2 towers", "counting"),
        ("There is a yellow square", "existence"),
    ],
)
def test_family(sentence, family):
    assert nlvr.family_of(sentence) == family


@pytest.mark.parametrize(
    ("broken", "message"),
    [
        (line("1-0", label="maybe"), r"dev\.json, line 2: label is 'maybe', allowed are true, false"),
        (line("1-0", sentence=" "), r"dev\.json, line 2: field 'sentence' is ' '"),
        (line("../1"), r"dev\.json, line 2: identifier is '\.\./1'"),
        (line("12-0"), r"dev\.json, line 2: identifier '12-0' occurs twice"),
        (line("1-0", structured_rep=[[]]), r"dev\.json, line 2: structured_rep must be a list of three boxes"),
        ({"sentence": "a"}, r"dev\.json, line 2: no field 'identifier'"),
        ([1], r"dev\.json, line 2: expected a JSON object"),
    ],
)
def test_damaged_line_is_named(tmp_path, broken, message):
    write(tmp_path, [line("12-0"), broken])
    with pytest.raises(ValueError, match=message):
        data.load("nlvr", "dev", tmp_path)


def test_malformed_json_line(tmp_path):
    folder = write(tmp_path, [line("12-0")])
    with open(folder / "dev.json", "a") as f:
        f.write('{"sentence": "cut')
    with pytest.raises(ValueError, match=r"dev\.json, line 2: not JSON"):
        data.load("nlvr", "dev", tmp_path)


def test_missing_damaged_and_wrongly_sized_pictures(tmp_path):
    folder = write(tmp_path, [line("12-0"), line("13-0"), line("14-0")], pictures=[("dev-14-0-0", picture_of()[:50])])
    (folder / "images" / "7" / "dev-13-0-0.png").write_bytes(b"\x89PNG\r\n\x1a\n broken")
    dataset = nlvr.load("dev", tmp_path, permutations=(0, 1))
    for k in (0, 1):
        with pytest.raises(FileNotFoundError, match=r"dev-12-0-0\.png: the picture is missing"):
            dataset.picture(f"dev-12-0-{k}")
        with pytest.raises(ValueError, match=r"dev-13-0-0\.png: damaged picture"):
            dataset.picture(f"dev-13-0-{k}")
    with pytest.raises(ValueError, match=r"dev-14-0-0\.png: an NLVR picture is"):
        dataset.picture("dev-14-0-1")


@pytest.mark.parametrize("permutations", [(), (6,), (0, 0)])
def test_wrong_permutations(tmp_path, permutations):
    write(tmp_path, [line("12-0")])
    with pytest.raises(ValueError, match="give different numbers from 0 to 5"):
        nlvr.load("dev", tmp_path, permutations=permutations)


@pytest.mark.realdata("nlvr")
def test_official_files(data_root):
    sentences = {}
    for split, n, true in (("dev", 989, 547), ("test", 990, 556), ("hidden", 985, 546)):
        dataset = data.load("nlvr", split, data_root)
        assert (len(dataset), sum(s.answer == "true" for s in dataset)) == (n, true)
        assert len(dataset.picture_ids) == n
        sentences[split] = {s.question for s in dataset}
    dataset = nlvr.load("dev", data_root, permutations=range(6))
    assert len(dataset) == 6 * 989
    identifier = dataset[0].meta["identifier"]
    straight, swapped = (dataset.picture(f"dev-{identifier}-{k}") for k in (0, 5))
    np.testing.assert_array_equal(straight[:, :100], swapped[:, 300:])
