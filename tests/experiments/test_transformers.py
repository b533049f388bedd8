"""Experiment ``transformers``: every method is what it says, and a run returns what the book reads."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from vqa_core.evaluation.shuffled import shuffled_pictures
from vqa_core.experiments import transformers as tf
from vqa_core.experiments.scene_encoders import is_present, scene_split, scene_tokens
from vqa_core.fusion.efficiency import DropToken
from vqa_core.training.loop import predict

IMAGE_DIM, TEXT_DIM, ANSWERS = 19, 30, 7
SIZES = tf.PROFILES["smoke"].model


@pytest.fixture
def small(tiny):
    """Very small questions, and nothing in memory that was made at another size."""
    _forget()
    yield tiny
    _forget()


def _forget():
    for made in (tf.questions_of, tf.answers_of, tf.feed_of):
        made.cache_clear()


def spec_of(unit):
    return next(s for s in tf.specs("smoke") if s.unit == unit)


def inputs(batch=32):
    chance = torch.Generator().manual_seed(1)
    pictures = torch.randn(batch, 6, IMAGE_DIM, generator=chance)
    pictures[:, 0, 0] = 1.0  # at least one real token
    words = torch.randn(batch, 5, TEXT_DIM, generator=chance)
    used = torch.randint(1, 6, (batch, 1), generator=chance)
    return pictures, words, torch.arange(5) < used


def count(module):
    return sum(p.numel() for p in module.parameters())


@pytest.mark.parametrize("unit", tf.METHODS)
def test_every_method_builds_and_every_parameter_learns(unit):
    model = tf.build(replace(SIZES, fusion=unit), IMAGE_DIM, TEXT_DIM, ANSWERS)
    logits = model(*inputs()).logits
    assert logits.shape == (32, ANSWERS)
    F.cross_entropy(logits, torch.arange(32) % ANSWERS).backward()
    assert [name for name, p in model.named_parameters() if p.grad is None or not p.grad.any()] == []


def test_same_depth_and_width_and_what_is_saved():
    sizes = {u: count(tf.build(replace(SIZES, depth=4, fusion=u), IMAGE_DIM, TEXT_DIM, ANSWERS)) for u in tf.METHODS}
    early = tf.build(replace(SIZES, depth=4, fusion=tf.TEACHER), IMAGE_DIM, TEXT_DIM, ANSWERS).fusion
    block = count(early.layers[0])
    assert sizes["shared"] == sizes[tf.TEACHER] - 3 * block
    assert sizes["drop_token"] == sizes["question_only"] == sizes[tf.TEACHER]
    assert sizes["bottleneck"] == sizes[tf.TEACHER] + 4 * block + SIZES.bottlenecks * SIZES.dim
    model = tf.build(replace(SIZES, fusion="drop_token"), IMAGE_DIM, TEXT_DIM, ANSWERS)
    assert isinstance(model.fusion, DropToken)
    assert model.fusion.keep == tf.KEEP == 0.5
    young = tf.small(SIZES)
    assert count(tf.build(replace(young, fusion=tf.TEACHER), IMAGE_DIM, TEXT_DIM, ANSWERS)) < sizes[tf.TEACHER] / 2


@pytest.mark.parametrize("profile", tf.PROFILES)
def test_every_method_has_a_spec(profile):
    specs, config = tf.specs(profile), tf.PROFILES[profile]
    assert [s.unit for s in specs] == [s.model.fusion for s in specs] == list(tf.METHODS)
    assert len({s.hash for s in specs}) == len(tf.METHODS)
    assert config.model.seeds >= (2 if profile == "smoke" else 5)
    assert config.model.depth >= 2


def test_questions_are_those_of_the_cached_tokens(small):
    """The first pictures, generated alone, are those of the whole split, and rows point at their own tokens."""
    data = replace(spec_of(tf.TEACHER).data, test=10)
    found, rows = tf.questions_of(data, "test")
    whole, tokens = scene_split("smoke", "test"), scene_tokens("smoke", "test")
    assert [s.question_id for s in found] == [whole[i].question_id for i in rows]
    assert {s.family for s in found} == set(data.families)
    assert len(found) == 10 * len(data.families)
    feed = tf.feed_of("smoke", data, "test")
    assert torch.equal(feed.picture_index, tokens.picture_index[rows])
    assert len(feed.pictures) == 10
    assert torch.equal(is_present(feed.pictures).sum(1), is_present(tokens.image[:10]).sum(1))
    known = tf.answers_of(data).symbols
    assert all(known[a] == s.answer for a, s in zip(feed.answers.tolist(), found) if a >= 0)
    with pytest.raises(ValueError, match="21 pictures of split 'test' are asked for, there are tokens of 20"):
        tf.questions_of(replace(data, test=21), "test")


@pytest.mark.parametrize(("blank", "side"), [("image", 0), ("text", 1), ("", None)])
def test_a_blank_side_is_blank(small, blank, side):
    feed = tf.feed_of("smoke", spec_of(tf.TEACHER).data, "test", blank)
    model = tf.build(replace(SIZES, fusion=tf.TEACHER), IMAGE_DIM, feed.words.shape[-1], ANSWERS)
    before = predict(model, feed, device="cpu")
    moved = predict(model, feed.with_pictures(feed.picture_index.roll(len(tf.FAMILIES))), device="cpu")
    assert torch.allclose(moved, before) is (side == 0)
    feed.question_index = feed.question_index.roll(1)
    assert torch.allclose(predict(model, feed, device="cpu"), before) is (side == 1)
    if blank == "image":
        assert model.image_encoder(feed.pictures).mask.sum(1).eq(1).all()  # a blank picture has a token
    tf.feed_of.cache_clear()  # the row of questions was changed


@pytest.mark.parametrize("unit", ["perceiver", "question_only"])
def test_a_run_returns_what_the_book_reads(small, unit):
    spec = spec_of(unit)
    outcome, (test, _) = tf.run(spec), tf.questions_of(spec.data, "test")
    predicted = outcome.arrays["predicted_test"]
    assert set(outcome.arrays) == {"predicted_test"}
    assert predicted.shape == (spec.model.seeds, len(test))
    answers = outcome.details["answers"]
    right = np.array([[answers[p] == s.answer for p, s in zip(row, test)] for row in predicted])
    assert outcome.metrics["accuracy_test"].value == pytest.approx(right.mean())
    families = [outcome.metrics[f"accuracy_test.{f}"] for f in test.families]
    assert sum(m.n for m in families) == outcome.metrics["accuracy_test"].n == len(test)
    assert len(outcome.details["history"]) == len(outcome.details["best_epoch"]) == spec.model.seeds
    assert outcome.details["questions"]["train"] == len(spec.data.families) * spec.data.train
    assert all(outcome.details[k] > 0 for k in ("parameters", "flops", "activation_bytes", "seconds_per_step"))
    assert outcome.details["data_hash"] == test.content_hash()
    assert tf.run(spec).metrics == outcome.metrics  # the seeds decide everything


def test_the_teacher_has_a_student_and_pruned_copies(small):
    spec = spec_of(tf.TEACHER)
    outcome = tf.run(spec)
    ways = [*(f"heads.{s:g}" for s in tf.HEAD_SHARES), *(f"weights.{s:g}" for s in tf.WEIGHT_SHARES)]
    names = ["shuffled", *ways, *tf.OFFSPRING]
    assert set(outcome.arrays) == {"predicted_test", *(f"predicted_test.{n}" for n in names)}
    assert {a.shape for a in outcome.arrays.values()} == {outcome.arrays["predicted_test"].shape}
    details = outcome.details
    assert details["student"]["parameters"] == details["distilled"]["parameters"] < details["parameters"]
    assert details["student"]["history"] != details["distilled"]["history"]  # the teacher was heard
    pruned = details["pruned"]
    assert list(pruned) == ways
    assert pruned["heads.0.5"]["parameters"] < details["parameters"]
    assert pruned["heads.0.5"]["flops"] < details["flops"]
    assert pruned["weights.0.9"]["parameters"] == details["parameters"]
    assert pruned["weights.0.9"]["nonzero"] < pruned["weights.0.25"]["nonzero"] < details["parameters"]


def test_shuffled_answers_are_those_about_other_pictures(small):
    spec = spec_of(tf.TEACHER)
    trained, outcome = tf.Trained(spec, spec.model), tf.run(spec)
    feed = trained.feeds["test"]
    index = feed.picture_index.numpy()
    other = index[shuffled_pictures(index, 0)]
    assert (other != index).all()
    np.testing.assert_array_equal(trained.answers(), outcome.arrays["predicted_test"])
    np.testing.assert_array_equal(trained.answers(feed.with_pictures(other)), outcome.arrays["predicted_test.shuffled"])
