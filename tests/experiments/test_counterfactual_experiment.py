"""Experiment ``counterfactual`` at a very small size: its data, what its units share, and what a record holds."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch.testing import assert_close

from vqa_core.data.scenes import COLOURS, PALETTE
from vqa_core.experiments import counterfactual as experiment
from vqa_core.experiments.counterfactual import UNITS, Scenes, Volumes, build, field, material_of, spec_of
from vqa_core.explain import scores
from vqa_core.explain.counterfactual import counterfactual_loss

CONFIG = experiment.PROFILES["smoke"]


@pytest.fixture(scope="module")
def volumes():
    return material_of(CONFIG.volumes, "test")


@pytest.fixture(scope="module")
def scenes():
    return material_of(CONFIG.scenes, "test")


def test_every_unit_has_its_seeds_and_the_baselines_one():
    for profile, config in experiment.PROFILES.items():
        found = experiment.specs(profile)
        assert len(found) == 2 + len(UNITS) * config.seeds
        assert len({(s.unit, s.seed) for s in found}) == len(found)
    assert experiment.PROFILES["cpu"].seeds >= 5
    assert min(experiment.PROFILES["cpu"].volumes.test, experiment.PROFILES["cpu"].scenes.test) >= 1000
    assert set(experiment.KEPT) <= set(UNITS)


def test_with_and_without_differ_in_the_weights_of_the_loss_alone():
    for a, b in (("with", "without"), ("scene.with", "scene.without")):
        one, other = spec_of("cpu", a, 3), spec_of("cpu", b, 3)
        assert (one.data, one.model, one.seed, one.training.training) == (
            other.data, other.model, other.seed, other.training.training,
        )  # fmt: skip
        assert (one.training.raw_weight, one.training.effect_weight) == (1 / 3, 1)
        assert (other.training.raw_weight, other.training.effect_weight) == (4 / 3, 0)


def test_long_differs_from_without_in_its_epochs_alone():
    long, short = spec_of("cpu", "long.without", 0).training, spec_of("cpu", "without", 0).training
    assert long.training.epochs == 2 * short.training.epochs
    assert replace(long, training=short.training) == short


def test_units_with_the_same_layers_start_alike():
    first = build(spec_of("smoke", "without", 1).model, CONFIG.volumes, 1).state_dict()
    for unit in ("with", "zero", "max"):
        other = build(spec_of("smoke", unit, 1).model, CONFIG.volumes, 1).state_dict()
        assert all(torch.equal(first[name], value) for name, value in other.items())
    assert not torch.equal(
        first["head.classifier.weight"],
        build(spec_of("smoke", "with", 0).model, CONFIG.volumes, 0).state_dict()["head.classifier.weight"],
    )


def test_volumes_are_cut_to_the_field_and_keep_their_masses(volumes):
    size = tuple(s.stop - s.start for s in field(24))
    assert volumes.feed.pictures.shape == (CONFIG.volumes.test, *size) == volumes.regions.shape
    assert volumes.feed.pictures.min() >= -1
    assert volumes.feed.pictures.max() <= 1
    assert volumes.regions.any((1, 2, 3)).all()
    assert volumes.feed.words.shape == (CONFIG.volumes.test, 1, 25)
    assert volumes.left_out < 0.1
    train = material_of(CONFIG.volumes, "train")
    assert not (train.feed.words[:, None] == volumes.feed.words[None]).all(-1).any()  # no volume in two splits


def test_a_field_that_cuts_the_masses_is_refused(monkeypatch):
    monkeypatch.setattr(experiment, "field", lambda side: (slice(0, 10),) * 3)
    with pytest.raises(ValueError, match="reach out of the field"):
        experiment.volume_split.__wrapped__(CONFIG.volumes, "val")
    with pytest.raises(ValueError, match="multiple of 24"):
        field(30)


def test_scenes_have_one_square_and_ask_for_its_colour(scenes):
    pictures = scenes.feed.pictures.numpy().astype(float)
    reference = {name: np.array(rgb) for name, rgb in PALETTE.items()}
    for i in range(12):
        inside = pictures[i][scenes.regions[i]]  # (pixels, 3)
        nearest = min(reference, key=lambda name: np.abs(inside - reference[name]).sum(1).min())
        assert nearest == COLOURS[int(scenes.feed.answers[i])]
    assert len(set(scenes.feed.answers.tolist())) > 4


@pytest.mark.parametrize("unit", ["with", "zero", "max", "picture", "scene.with"])
def test_every_parameter_of_a_unit_learns(unit, volumes, scenes):
    spec = spec_of("smoke", unit, 0)
    model = build(spec.model, spec.data, 0)
    batch = (scenes if UNITS[unit].scene else volumes).feed.batch(range(16))
    counterfactual_loss(model(*batch[:3]), batch.answers).backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in model.parameters() if p.ndim > 1)


def test_answers_come_with_the_maps_of_the_same_pass_whatever_the_batch(volumes):
    spec = spec_of("smoke", "with", 0)
    model = build(spec.model, spec.data, 0)
    found = experiment.answer(model, volumes.feed)
    assert found.maps.shape == (CONFIG.volumes.test, 8, 8, 10)
    np.testing.assert_allclose(found.maps.reshape(len(found.maps), -1).sum(1), 1, rtol=1e-5)
    split = experiment.answer(model, volumes.feed, batch_size=7)
    assert_close(split.logits, found.logits, rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(split.maps, found.maps, rtol=1e-3, atol=1e-6)
    with torch.no_grad():
        assert_close(model(*volumes.feed.batch(range(40))[:3]).logits, found.logits, rtol=0, atol=0)


def test_only_the_units_that_read_a_side_depend_on_it(volumes):
    feed = volumes.feed.batch(range(8))
    other = feed._replace(words=feed.words.roll(1, 0))
    blank = feed._replace(pictures=feed.pictures.roll(1, 0))
    depends = {}
    for unit in ("with", "picture", "vector"):
        spec = spec_of("smoke", unit, 0)
        model = build(spec.model, spec.data, 0).eval()
        with torch.no_grad():
            base = model(*feed[:3]).logits
            depends[unit] = [not torch.allclose(base, model(*x[:3]).logits) for x in (blank, other)]
    assert depends == {"with": [True, True], "picture": [True, False], "vector": [False, True]}


@pytest.mark.parametrize("unit", ["with", "vector", "scene.without"])
def test_a_record_holds_what_the_readout_needs(unit):
    spec = spec_of("smoke", unit, 0)
    outcome = experiment.run(spec)
    n = spec.data.test
    classes = 8 if UNITS[unit].scene else 2
    assert outcome.arrays["probability"].shape == (n, classes)
    np.testing.assert_allclose(outcome.arrays["probability"].sum(1), 1, rtol=1e-5)
    right = outcome.arrays["probability"].argmax(1) == outcome.arrays["label"]
    assert outcome.metrics["accuracy_test"].value == pytest.approx(right.mean())
    has_maps = {f"score.{s}" in outcome.arrays for s in scores.SCORES}
    assert has_maps == {unit != "vector"}
    assert ("maps" in outcome.arrays) == (unit in experiment.KEPT)
    if unit != "vector":
        assert outcome.metrics["iou"].value == pytest.approx(outcome.arrays["score.iou"].mean(), rel=1e-5)


def test_with_the_same_seed_comes_the_same_record():
    spec = spec_of("smoke", "with", 1)
    first, again = experiment.run(spec), experiment.run(spec)
    np.testing.assert_array_equal(first.arrays["probability"], again.arrays["probability"])


@pytest.mark.parametrize("part", ["volume", "scene"])
def test_baselines(part):
    (spec,) = [s for s in experiment.specs("smoke") if s.unit == f"{part}.baselines"]
    outcome = experiment.run(spec)
    area = outcome.details["area"]
    assert outcome.arrays["chance.energy_inside"].mean() == pytest.approx(area, rel=0.1)
    assert outcome.arrays["centre.auprc"].mean() > area
    assert len(outcome.arrays) == 3 * 4


def test_data_of_the_profiles_can_be_cut():
    for config in experiment.PROFILES.values():
        assert isinstance(config.volumes, Volumes)
        assert isinstance(config.scenes, Scenes)
        assert all((s.stop - s.start) % 2 == 0 for s in field(config.volumes.side))
        for data, training in (
            (config.volumes, config.volume_training),
            (config.scenes, config.scene_training),
        ):  # a last batch of one would break batch norm's statistics, and "shuffled"
            assert data.train % training.batch_size != 1
