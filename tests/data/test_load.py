"""``vqa_core.data.load``: names, roots, errors; reading pictures; what a Dataset promises."""

import io
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

from vqa_core import data
from vqa_core.data import catalogue
from vqa_core.data import root as files
from vqa_core.data.types import Dataset, Sample

ON_DISK = [name for name, info in catalogue.NAMES.items() if info.find]


@pytest.fixture
def no_home(monkeypatch, tmp_path):
    """Neither VQA_DATA nor a home folder with data sets in it."""
    monkeypatch.delenv("VQA_DATA", raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    return tmp_path


def write_easy_vqa(folder):
    (folder / "train").mkdir(parents=True)
    (folder / "train" / "questions.json").write_text('[["is it red?", "no", 0]]')


def test_unknown_name_and_split():
    with pytest.raises(ValueError, match="no data set 'imagenet'; allowed are scenes, vqa_rad"):
        data.load("imagenet", "train")
    for name, info in catalogue.NAMES.items():
        with pytest.raises(ValueError, match=r"no split 'dinner'.*" + next(iter(info.splits))):
            data.load(name, "dinner")


@pytest.mark.parametrize("name", ON_DISK)
def test_absent_data_say_how_to_get_them(no_home, name):
    with pytest.raises(FileNotFoundError) as caught:
        data.load(name, next(iter(catalogue.NAMES[name].splits)))
    message = str(caught.value)
    assert "VQA_DATA is not set" in message
    assert f"python -m vqa_core data fetch {name}" in message
    assert f"{name}/ with " in message
    with pytest.raises(FileNotFoundError, match="elsewhere"):
        data.load(name, next(iter(catalogue.NAMES[name].splits)), root=no_home / "elsewhere")


def test_root_is_argument_then_variable_then_cache(no_home, monkeypatch):
    for place in ("argument", "variable", ".cache/vqa_core"):
        write_easy_vqa(no_home / place / "easy_vqa")
    assert catalogue.NAMES["easy_vqa"].find() == no_home / ".cache/vqa_core/easy_vqa"
    monkeypatch.setenv("VQA_DATA", str(no_home / "variable"))
    assert catalogue.NAMES["easy_vqa"].find() == no_home / "variable/easy_vqa"
    assert catalogue.NAMES["easy_vqa"].find(no_home / "argument") == no_home / "argument/easy_vqa"


def test_root_may_be_the_data_set_but_not_both(tmp_path):
    write_easy_vqa(tmp_path)
    assert len(data.load("easy_vqa", "train", tmp_path)) == 1
    write_easy_vqa(tmp_path / "easy_vqa")
    with pytest.raises(ValueError, match=r"both .* hold this data set"):
        data.load("easy_vqa", "train", tmp_path)


def test_generated_scenes_need_no_root(no_home):
    dataset = data.load("scenes", "val")
    assert dataset.name == "scenes"
    assert dataset.picture(dataset[0].picture_id).dtype == np.uint8


def test_importing_the_data_room_is_light():
    code = "import sys, vqa_core.data; print(*{'torch', 'transformers', 'pandas', 'pyarrow'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == ""


# --- pictures -------------------------------------------------------------------------------------------------------


def encoded(picture, ending="PNG", **options):
    stream = io.BytesIO()
    picture.save(stream, ending, **options)
    return stream.getvalue()


@pytest.mark.parametrize("mode", ["1", "L", "P", "RGB", "CMYK"])
def test_every_mode_becomes_rgb(mode):
    content = encoded(Image.new("RGB", (5, 4), "white").convert(mode), "TIFF")
    picture = files.read_picture(content, "x")
    assert picture.shape == (4, 5, 3)
    assert picture.dtype == np.uint8
    assert (picture == 255).all()


def test_transparency_is_white_also_in_palettes():
    clear = Image.new("RGBA", (2, 2), (10, 20, 30, 0))
    assert (files.read_picture(encoded(clear), "x") == 255).all()
    half = Image.new("LA", (2, 2), (0, 128))
    assert set(files.read_picture(encoded(half), "x").ravel().tolist()) <= {126, 127, 128}
    palette = Image.new("RGB", (2, 2), "red").quantize(4)
    hidden = palette.getpixel((0, 0))
    assert (files.read_picture(encoded(palette), "x") == (255, 0, 0)).all()
    assert (files.read_picture(encoded(palette, transparency=hidden), "x") == 255).all()


def test_sixteen_bits_are_refused_not_clipped(tmp_path):
    path = tmp_path / "deep.png"
    Image.fromarray(np.full((3, 3), 40000, dtype=np.uint16)).save(path)
    with pytest.raises(ValueError, match=r"deep\.png: mode 'I;16' has more than 8 bits"):
        files.read_picture(path)


def test_half_a_picture_is_refused(tmp_path):
    path = tmp_path / "half.png"
    noise = Image.fromarray(np.random.default_rng(0).integers(0, 255, (40, 40, 3), dtype=np.uint8))
    content = encoded(noise)
    path.write_bytes(content[: len(content) // 2])
    with pytest.raises(ValueError, match=r"half\.png: damaged picture"):
        files.read_picture(path)


# --- Dataset --------------------------------------------------------------------------------------------------------


def small_dataset(answer="no"):
    samples = [
        Sample("q0", "p1", "is it?", "yes", "presence", "closed"),
        Sample("q1", "p0", "what is it?", "a cat", "object", "open"),
        Sample("q2", "p1", "is it not?", answer, "presence", "closed"),
    ]
    return Dataset("toy", "train", samples, lambda i: np.zeros((2, 2, 3), dtype=np.uint8), ["a note"])


def test_dataset_is_a_sequence_with_a_hash():
    dataset = small_dataset()
    assert dataset.picture_ids == ("p1", "p0")
    assert dataset.families == ("object", "presence")
    part = dataset.subset([2, 1], "part")
    assert [s.question_id for s in part] == ["q2", "q1"]
    assert part.notes == ("a note",)
    assert repr(part) == "Dataset('toy', 'part': 2 questions, 2 pictures)"
    assert dataset.content_hash() == small_dataset().content_hash()
    assert dataset.content_hash() != small_dataset("yes").content_hash()
    assert dataset.content_hash() != part.content_hash()


def test_sample_refuses_empty_questions_and_unknown_kinds():
    with pytest.raises(ValueError, match="question 'q' about picture 'p' is empty"):
        Sample("q", "p", " ", "yes", "f", "closed")
    with pytest.raises(ValueError, match="kind is 'ajar'"):
        Sample("q", "p", "is it?", "yes", "f", "ajar")
    assert Sample("q", "p", "is it?", "yes", "f", "closed").answers == ("yes",)
