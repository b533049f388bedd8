"""Experiment ``baselines``: units follow the data that are there, numbers follow from arrays, planted leaks show."""

import json
import os
from pathlib import Path

import numpy as np
import pytest

from vqa_core.experiments import baselines as experiment
from vqa_core.experiments.scene_encoders import scene_split

REAL = Path(os.environ.get("VQA_DATA", Path(__file__).parents[2].parent / "shared/data"))


def units(profile="smoke"):
    return [s.unit for s in experiment.specs(profile)]


def write_easy_vqa(folder: Path) -> Path:
    """A small copy in the official form: red pictures are asked about more often than blue ones."""
    for split, n in (("train", 12), ("test", 6)):
        (folder / "easy_vqa" / split / "images").mkdir(parents=True)
        rows = [["what color is the shape?", "red" if i % 3 else "blue", i] for i in range(n)]
        rows += [["is there a red shape?", "yes" if i % 3 else "no", i] for i in range(n)]
        (folder / "easy_vqa" / split / "questions.json").write_text(json.dumps(rows))
    return folder


@pytest.fixture
def elsewhere(tmp_path, monkeypatch):
    """No real data set anywhere."""
    monkeypatch.setenv("VQA_DATA", str(tmp_path))
    return tmp_path


def test_without_data_only_what_is_generated_is_a_unit(elsewhere):
    assert units() == ["scenes"]


def test_a_data_set_that_is_there_becomes_a_unit_and_its_files_are_part_of_the_spec(elsewhere):
    write_easy_vqa(elsewhere)
    before = experiment.specs("smoke")
    assert [s.unit for s in before] == ["scenes", "easy_vqa"]
    file = elsewhere / "easy_vqa/train/questions.json"
    file.write_text(file.read_text() + " ")
    after = experiment.specs("smoke")
    assert [a.hash == b.hash for a, b in zip(before, after)] == [True, False]


def test_half_a_data_set_is_no_unit(elsewhere):
    (elsewhere / "shapes").mkdir()
    (elsewhere / "shapes/val.query_str.txt").write_text("is red\n")
    assert units() == ["scenes"]


def test_numbers_follow_from_the_arrays(elsewhere):
    write_easy_vqa(elsewhere)
    spec = experiment.specs("smoke")[1]
    outcome = experiment.run(spec)
    is_open, metrics = outcome.arrays["open"], outcome.metrics
    assert is_open.sum() == 6
    assert len(is_open) == 12
    for name in experiment.METHODS:
        right = outcome.arrays[name]
        assert right.dtype == bool
        assert metrics[name].value == pytest.approx(right.mean())
        assert metrics[name].n == 12
        assert metrics[f"{name}.open"].value == pytest.approx(right[is_open].mean())
        assert metrics[f"{name}.closed"].value == pytest.approx(right[~is_open].mean())
    assert metrics["majority_by_question"].value == pytest.approx(4 / 6)  # two of three are red,
    assert "yes"
    assert metrics["ceiling"].value == 1
    assert len(np.unique(outcome.arrays["picture"])) == outcome.details["test_pictures"] == 6


def test_question_only_learns_the_frequent_answers_only():
    samples = scene_split("smoke", "train").samples
    kept = experiment.frequent(samples, experiment.QuestionOnly(answers=2, questions=50))
    assert len(kept) == 50
    assert {s.answer for s in kept} == {"yes", "no"}
    assert experiment.frequent(samples, experiment.QuestionOnly(10**6, 10**6)) == list(samples)


def test_scenes_are_the_ones_that_the_other_experiments_ask_about():
    source = experiment.specs("smoke")[0].data
    for mine, theirs in zip(experiment.read(source), ("train", "test")):
        assert mine.samples == scene_split("smoke", theirs).samples


def test_scenes_have_a_chance_per_family_and_no_shared_picture(elsewhere):
    outcome = experiment.run(experiment.specs("smoke")[0])
    assert outcome.details["chance"]["existence"] == 0.5
    assert outcome.details["chance"]["counting"] == pytest.approx(0.2)
    assert outcome.details["shared_pictures"] == 0
    assert outcome.metrics["question_only.family.existence"].n == 100


@pytest.mark.realdata
@pytest.mark.skipif(not (REAL / "vqa_rad/trainset.json").is_file(), reason="VQA-RAD (JSON form) is not here")
def test_the_leak_of_vqa_rad_is_found(monkeypatch):
    monkeypatch.setenv("VQA_DATA", str(REAL))
    found = {s.unit: s for s in experiment.specs("smoke") if s.unit.startswith("vqa_rad")}
    leaky, clean = (experiment.run(found[u]) for u in ("vqa_rad_3064", "vqa_rad_2780"))
    assert leaky.details["rewordings"] == 284
    assert clean.details["rewordings"] == 0
    assert leaky.metrics["lookup"].value == pytest.approx(0.627, abs=0.001)
    assert clean.metrics["lookup"].value == pytest.approx(0.228, abs=0.001)
    assert leaky.arrays["picture"].max() + 1 == 203
