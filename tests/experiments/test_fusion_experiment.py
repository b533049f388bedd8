"""Experiment ``fusion``: every method is what it says, and a run returns what the book reads."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from vqa_core.data.scenes import FAMILIES
from vqa_core.evaluation.shuffled import shuffled_pictures
from vqa_core.experiments import fusion
from vqa_core.experiments.fusion import METHODS, Model, build, feed_of
from vqa_core.experiments.scene_encoders import is_present, present_cells, scene_split, scene_tokens
from vqa_core.training.feed import Feed
from vqa_core.training.loop import predict

IMAGE_DIM, TEXT_DIM, ANSWERS = 19, 30, 7
GRID = [unit for unit, m in METHODS.items() if m.image == "grid"]
SLOTS = [unit for unit, m in METHODS.items() if m.text == "slots"]


def model_of(unit: str):
    """The model of a method, small."""
    torch.manual_seed(0)
    return build(Model(unit, dim=16, hidden=16), IMAGE_DIM, TEXT_DIM, ANSWERS)


def inputs_of(unit: str, batch: int = 32):
    """Random pictures (B, N, 19), words (B, S, 30) and mask (B, S), in the form that the method reads."""
    chance = torch.Generator().manual_seed(1)
    method = METHODS[unit]
    tokens, slots = (9 if method.image == "grid" else 1), (5 if method.text == "slots" else 1)
    pictures = torch.randn(batch, tokens, IMAGE_DIM, generator=chance)
    words = torch.randn(batch, slots, TEXT_DIM, generator=chance)
    used = torch.randint(1, slots + 1, (batch, 1), generator=chance)
    return pictures, words, torch.arange(slots) < used


# ------------------------------------------------------------------------------------------------------- the methods


@pytest.mark.parametrize("unit", METHODS)
def test_every_method_builds_and_every_parameter_learns(unit):
    model, inputs = model_of(unit), inputs_of(unit)
    logits = model(*inputs).logits
    assert logits.shape == (32, ANSWERS)
    F.cross_entropy(logits, torch.arange(32) % ANSWERS).backward()
    untouched = [name for name, p in model.named_parameters() if p.grad is None or not p.grad.any()]
    assert untouched == []


@pytest.mark.parametrize("unit", METHODS)
def test_a_question_is_answered_alike_in_any_batch(unit):
    model, inputs = model_of(unit).eval(), inputs_of(unit)
    whole = model(*inputs).logits
    parts = torch.cat([model(*(t[rows] for t in inputs)).logits for rows in torch.arange(32).split(5)])
    torch.testing.assert_close(parts, whole, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("unit", METHODS)
def test_padding_changes_nothing(unit):
    model, (pictures, words, mask) = model_of(unit).eval(), inputs_of(unit)
    expected = model(pictures, words, mask).logits
    rubbish = torch.full((32, 3, TEXT_DIM), 1e3)
    padded = torch.cat([words, rubbish], 1), torch.cat([mask, torch.zeros(32, 3, dtype=torch.bool)], 1)
    torch.testing.assert_close(model(pictures, *padded).logits, expected, atol=1e-5, rtol=1e-5)
    inside = words.masked_fill(~mask.unsqueeze(-1), 1e3)
    torch.testing.assert_close(model(pictures, inside, mask).logits, expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("unit", SLOTS)
def test_order_of_slots_changes_nothing(unit):
    model, (pictures, words, mask) = model_of(unit).eval(), inputs_of(unit)
    order = torch.tensor([3, 0, 4, 1, 2])
    moved = model(pictures, words[:, order], mask[:, order]).logits
    torch.testing.assert_close(moved, model(pictures, words, mask).logits, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("unit", GRID)
def test_order_of_cells_changes_nothing(unit):
    model, (pictures, words, mask) = model_of(unit).eval(), inputs_of(unit)
    order = torch.randperm(9)
    moved = model(pictures[:, order], words, mask).logits
    torch.testing.assert_close(moved, model(pictures, words, mask).logits, atol=1e-5, rtol=1e-5)


def interaction(unit: str) -> float:
    """Largest |s(x₁,y₁) − s(x₁,y₂) − s(x₂,y₁) + s(x₂,y₂)|, with s a difference between two answers' scores."""
    model, (x, y, mask) = model_of(unit).double().eval(), inputs_of(unit)
    x, y = x.double(), y.double()

    def score(a, b):
        logits = model(a, b, mask).logits
        return logits - logits[:, :1]  # (B, answers)

    x2, y2 = x.roll(1, 0), y.roll(1, 0)
    with torch.no_grad():
        return float((score(x, y) - score(x, y2) - score(x2, y) + score(x2, y2)).abs().max())


@pytest.mark.parametrize("unit", ["linear_sum", "linear_concat", "late_mean"])
def test_additive_methods_have_no_interaction(unit):
    assert interaction(unit) < 1e-10


@pytest.mark.parametrize(
    "unit", ["linear_product", "linear_film", "pool_sum", "pool_concat", "attend_concat", "late_vote"]
)
def test_other_methods_have_interaction(unit):
    assert interaction(unit) > 1e-3


# -------------------------------------------------------------------------------------------------------- the feeds


@pytest.mark.parametrize(
    ("unit", "other_picture", "other_question"),
    [
        ("question_only", False, True),
        ("picture_only", True, False),
        ("attend_film", True, True),
        ("pool_sum", True, True),
    ],
)
def test_a_blank_side_is_blank(tiny, unit, other_picture, other_question):
    method = METHODS[unit]
    feed = feed_of("smoke", "test", method.image, method.text)
    torch.manual_seed(0)
    model = build(Model(unit, 16, 16), feed.pictures.shape[-1], feed.words.shape[-1], ANSWERS)
    before = predict(model, feed, device="cpu")
    moved = predict(model, feed.with_pictures(feed.picture_index.roll(8)), device="cpu")  # the next picture's
    assert torch.allclose(moved, before) is not other_picture
    asked = Feed(
        feed.pictures, feed.picture_index, feed.words, feed.word_mask, feed.answers, feed.question_index.roll(1)
    )
    assert torch.allclose(predict(model, asked, device="cpu"), before) is not other_question


def test_pooled_sides_are_sums_of_tokens(tiny):
    tokens = scene_tokens("smoke", "val")
    pooled, grid = feed_of("smoke", "val", "pooled", "vector"), feed_of("smoke", "val", "grid", "slots")
    torch.testing.assert_close(pooled.pictures, tokens.image.sum(1, keepdim=True))
    torch.testing.assert_close(pooled.words, tokens.text.sum(1, keepdim=True))
    assert torch.equal(grid.pictures, present_cells(tokens.image))
    assert torch.equal(grid.word_mask, tokens.text_mask)
    assert torch.equal(pooled.answers, grid.answers)
    vocabulary = fusion.answer_vocabulary("smoke").symbols
    right = [vocabulary[i] if i >= 0 else None for i in pooled.answers]
    assert all(a in (s.answer, None) for a, s in zip(right, scene_split("smoke", "val")))


# --------------------------------------------------------------------------------------------------------- the run


def spec_of(unit: str, seed: int = 0):
    return next(s for s in fusion.specs("smoke") if (s.unit, s.seed) == (unit, seed))


@pytest.mark.parametrize("profile", fusion.PROFILES)
def test_every_method_has_a_spec_for_every_seed(profile):
    specs, config = fusion.specs(profile), fusion.PROFILES[profile]
    units = set(METHODS) - set(config.without)
    assert set(config.without) < set(METHODS)
    assert len(specs) == len({s.hash for s in specs}) == len(units) * config.seeds
    assert {s.unit for s in specs} == {s.model.fusion for s in specs} == units


@pytest.mark.parametrize("unit", ["attend_concat", "late_vote", "early"])
def test_a_run_returns_what_the_book_reads(tiny, unit):
    outcome, test = fusion.run(spec_of(unit)), scene_split("smoke", "test")
    assert outcome.metrics["accuracy_test"].n == len(test) == 160
    assert outcome.metrics["accuracy_test_composition"].n == 160
    families = {f: outcome.metrics[f"accuracy_test.{f}"] for f in FAMILIES}
    assert sum(m.n for m in families.values()) == 160
    weighted = sum(m.value * m.n for m in families.values()) / 160
    assert weighted == pytest.approx(outcome.metrics["accuracy_test"].value)
    answers = outcome.details["answers"]
    right = [answers[p] == s.answer for p, s in zip(outcome.arrays["predicted_test"], test)]
    assert np.mean(right) == pytest.approx(outcome.metrics["accuracy_test"].value)
    assert outcome.details["flops"] > 0
    assert outcome.details["activation_bytes"] > 0
    assert outcome.details["data_hash"] == test.content_hash()
    assert len(outcome.details["history"]) == 1
    with_weights = any(k.startswith("model.") for k in outcome.arrays)
    assert with_weights is ("predicted_shuffled" in outcome.arrays) is (unit == fusion.KEPT)


def test_the_seed_decides_everything(tiny):
    first, again, other = (fusion.run(spec_of("pool_film", seed)) for seed in (0, 0, 1))
    assert first.metrics == again.metrics
    assert first.details["history"] == again.details["history"]
    assert first.details["history"] != other.details["history"]


def test_cost_of_a_method(tiny):
    """Operations of a linear method in closed form; memory grows with the batch and with the tokens."""
    feeds = {image: feed_of("smoke", "test", image, "vector") for image in ("pooled", "grid")}
    image, text = feeds["grid"].pictures.shape[-1], feeds["grid"].words.shape[-1]

    def model(unit):
        return build(Model(unit, 16, 16), image, text, ANSWERS)

    flops = fusion.floating_point_operations(model("linear_sum"), feeds["pooled"])
    assert flops == 2 * (image * 16 + text * 16 + 16 * ANSWERS)
    kept = [fusion.activation_bytes(model("pool_film"), feeds["pooled"], n) for n in (16, 32)]
    assert kept[1] == pytest.approx(2 * kept[0], rel=0.1)
    whole = feed_of("smoke", "test", "grid", "vector", empty_cells=True)
    every, present = (fusion.activation_bytes(model("token_film"), feed, 32) for feed in (whole, feeds["grid"]))
    assert every > 10 * kept[1]
    assert every > 2 * present > 2 * kept[1]  # most cells are empty


@pytest.mark.parametrize("unit", GRID)
def test_leaving_empty_cells_out_changes_no_answer(tiny, unit):
    some = feed_of("smoke", "test", "grid", METHODS[unit].text)
    whole = feed_of("smoke", "test", "grid", METHODS[unit].text, empty_cells=True)
    present = is_present(whole.pictures).sum(1)
    assert some.pictures.shape[1] == present.max() < 32 <= whole.pictures.shape[1]
    assert torch.equal(is_present(some.pictures).sum(1), present)
    model = build(Model(unit, 16, 16), some.pictures.shape[-1], some.words.shape[-1], ANSWERS)
    torch.testing.assert_close(predict(model, some), predict(model, whole), atol=1e-5, rtol=1e-5)


def test_shuffled_predictions_are_those_about_other_pictures(tiny):
    outcome, feed = fusion.run(spec_of(fusion.KEPT, 1)), feed_of("smoke", "test", "grid", "vector")
    model = build(spec_of(fusion.KEPT).model, IMAGE_DIM, feed.words.shape[-1], len(outcome.details["answers"]))
    model.load_state_dict(
        {k.removeprefix("model."): torch.from_numpy(v) for k, v in outcome.arrays.items() if k.startswith("model.")}
    )
    index = feed.picture_index.numpy()
    other = feed.with_pictures(index[shuffled_pictures(index, 1)])
    assert (other.picture_index != feed.picture_index).all()
    own, shuffled = predict(model, feed), predict(model, other)
    assert not torch.allclose(own, shuffled)
    assert (own.argmax(1).numpy() == outcome.arrays["predicted_test"]).all()
    assert (shuffled.argmax(1).numpy() == outcome.arrays["predicted_shuffled"]).all()
