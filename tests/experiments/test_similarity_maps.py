"""Experiment ``similarity_maps``: sentences are true of one object alone, regions are its pixels."""

import numpy as np
import pytest
import torch

from vqa_core.data import scenes
from vqa_core.experiments import clip, similarity_maps
from vqa_core.experiments.clip_material import told
from vqa_core.experiments.runner import run_experiment
from vqa_core.experiments.similarity_maps import MAPS, named, similarity
from vqa_core.experiments.similarity_maps_readout import similarity_table
from vqa_core.explain.cells import cell_scores, shares_of


@pytest.fixture(scope="module")
def record(tmp_path_factory):
    """The run at smoke, behind a small CLIP that was trained for it."""
    root = tmp_path_factory.mktemp("results")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("VQA_RESULTS", str(root))
        with pytest.raises(FileNotFoundError, match="run clip --profile smoke --unit small --seed 0"):
            similarity_maps.trained("smoke")
        run_experiment("clip", "smoke", unit="small", seed=0, workers=1, progress=False)
        (found,) = run_experiment("similarity_maps", "smoke", workers=1, progress=False)
        weights = similarity_maps.trained("smoke").state_dict()
        fresh = similarity_maps.untrained("smoke").state_dict()
    assert any(not torch.equal(w, fresh[k]) for k, w in weights.items())  # the loaded ones are in use
    return found


def test_each_sentence_is_true_of_one_object():
    found = named("test", 12, 32)
    whole = scenes.load("test", n=12, size=32, objects=(2, 2), questions_per_picture=1)
    assert len(found.sentences) == len(found.regions) == 2 * len(found.pictures) > 10
    np.testing.assert_array_equal(found.picture, np.repeat(np.arange(len(found.pictures)), 2))
    for k in range(0, len(found.sentences), 2):
        assert found.sentences[k] != found.sentences[k + 1]
        assert not (found.regions[k] & found.regions[k + 1]).any()
        assert found.regions[k].any()
    scene = whole.scenes[0]
    assert found.sentences[0].endswith(" ".join(scene.objects[0][:4]))


def test_scores_are_those_of_the_maps(record):
    maps, regions = record.arrays["shown.maps"], record.arrays["shown.regions"]
    scored = cell_scores(maps, shares_of(regions, maps.shape[1:]), touching=True)
    for name, values in scored.items():
        np.testing.assert_allclose(record.arrays[f"own.{name}"][: len(maps)], values, rtol=1e-5)
    swapped = cell_scores(maps[np.arange(len(maps)) ^ 1], shares_of(regions, maps.shape[1:]), touching=True)
    np.testing.assert_allclose(record.arrays["other.iou"][: len(maps)], swapped["iou"], rtol=1e-5)
    np.testing.assert_allclose(maps.sum((1, 2)), 1, rtol=1e-5)
    assert record.metrics["own.pointing_game"].value == pytest.approx(record.arrays["own.pointing_game"].mean())


def test_maps_do_not_depend_on_the_batch():
    sizes = clip.PROFILES["smoke"].pictures
    model, words, found = similarity_maps.untrained("smoke"), told(sizes).words, named("test", 8, sizes.size)
    whole, parts = similarity(model, words, found), similarity(model, words, found, at_a_time=3)
    np.testing.assert_allclose(whole, parts, atol=1e-5)


def test_other_logits_stop_the_run(monkeypatch):
    explain = similarity_maps.explain
    wrong = lambda *args: explain(*args)._replace(logits=torch.zeros(1))  # noqa: E731
    monkeypatch.setattr(similarity_maps, "explain", wrong)
    sizes = clip.PROFILES["smoke"].pictures
    with pytest.raises(RuntimeError, match="belong to other answers"):
        similarity(similarity_maps.untrained("smoke"), told(sizes).words, named("test", 8, sizes.size))


def test_table_has_every_map_and_score(record):
    table = similarity_table(record)
    assert list(dict.fromkeys(table["map"])) == list(MAPS.values())
    assert len(table) == 4 * len(MAPS)
    assert (table["n"] == len(record.arrays["group"])).all()
    assert ((table["low"] <= table["mean"]) & (table["mean"] <= table["high"])).all()
