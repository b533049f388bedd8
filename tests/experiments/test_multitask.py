"""Experiment ``multitask``: the arms are what they are called, runs keep their contract, the rules are fixed."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.nn import functional as F
from torch.testing import assert_close

from vqa_core.data.types import Batch
from vqa_core.evaluation import claims
from vqa_core.experiments import multitask as mt
from vqa_core.heads.multitask import SeparateTrunks, shared_parameters, unregistered
from vqa_core.training.multitask import task_losses

CONFIG = mt.PROFILES["smoke"]
LEDGER = Path(__file__).parents[2] / "book" / "claims.yml"
WORDS, ANSWERS, SIDE = 20, 7, 8


def model_of(arm="equal", seed=0):
    torch.manual_seed(seed)
    return mt.build(replace(CONFIG.model, arm=arm), SIDE, WORDS, ANSWERS)


def batch_of(n=12, seed=1):
    chance = torch.Generator().manual_seed(seed)
    words = torch.randint(2, WORDS, (n, 5), generator=chance)
    mask = torch.arange(5) < torch.randint(1, 6, (n, 1), generator=chance)
    labels = torch.stack([torch.randint(0, k, (n,), generator=chance) for k in (11, ANSWERS, 3)], dim=1)
    return Batch(torch.randn(n, SIDE**2, mt.PATCH**2, generator=chance), words.masked_fill(~mask, 0), mask, labels)


@pytest.fixture(scope="module")
def outcomes():
    """Every arm of the smoke profile, run once."""
    return {spec.unit: mt.run(spec) for spec in mt.specs("smoke")}


# -- models


@pytest.mark.parametrize("arm", ["equal", "narrow", "early"])
def test_gradient_reaches_every_parameter(arm):
    torch.manual_seed(0)
    wide = replace(CONFIG.model, arm=arm, dim=24, widths=(24,))  # so wide that no ReLU of a level is dead
    model, batch = mt.build(wide, SIDE, WORDS, ANSWERS), batch_of(64)
    sum(task_losses(model(*batch[:3]).logits, batch.answers).values()).backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in model.parameters())
    assert unregistered(model) == []


def test_narrow_trunks_are_as_large_as_they_may_be():
    whole, narrow = model_of(), model_of("narrow")
    assert isinstance(narrow, SeparateTrunks)
    assert 0.5 * mt.parameters(whole) < mt.parameters(narrow) <= mt.parameters(whole)
    assert shared_parameters(narrow) == []


def test_an_organ_that_is_read_early_knows_no_question():
    model, batch = model_of("early"), batch_of()
    one, other = model(*batch[:3]).logits, model(batch.pictures, batch.words.flip(0), batch.word_mask.flip(0)).logits
    assert list(one) == list(mt.TASKS)
    assert_close(one["organ"], other["organ"], rtol=0, atol=0)
    assert not torch.equal(one["answer"], other["answer"])


@pytest.mark.parametrize("arm", ["equal", "early", "narrow"])
def test_padding_changes_nothing(arm):
    model, batch = model_of(arm), batch_of()
    words = F.pad(batch.words, (0, 3), value=5)
    mask = F.pad(batch.word_mask, (0, 3), value=False)
    for name, logits in model(batch.pictures, words, mask).logits.items():
        assert_close(logits, model(*batch[:3]).logits[name])


def test_batch_split_changes_nothing():
    model, batch = model_of(), batch_of()
    whole = model(*batch[:3]).logits
    parts = [model(*(x[rows] for x in batch[:3])).logits for rows in (slice(0, 5), slice(5, 12))]
    for name, logits in whole.items():
        assert_close(torch.cat([p[name] for p in parts]), logits, rtol=1e-4, atol=1e-5)


def test_weightings():
    classes = {"category": 11, "answer": 20, "organ": 3}
    alone = mt.weighting_of("alone_organ", classes)
    assert alone.names == mt.TASKS
    assert alone.weights().tolist() == [0, 0, 1]
    scaled = mt.weighting_of("scaled", classes)
    guessing = {task: torch.tensor(float(np.log(n))) for task, n in classes.items()}
    assert float(scaled(guessing)) == pytest.approx(3)
    for arm in ("equal", "pcgrad", "narrow", "early", "blank", "mute", "dwa", "uncertainty"):
        assert mt.weighting_of(arm, classes).weights().tolist() == [1, 1, 1]


# -- questions


def test_splits_share_no_picture_and_fewer_are_the_first_of_more():
    few, more = (mt.material_of(mt.Pictures(n, 6, 10)) for n in (4, 8))
    ids = {split: set(part.picture_ids) for split, part in more.parts.items()}
    assert ids["train"].isdisjoint(ids["val"] | ids["test"])
    assert ids["val"].isdisjoint(ids["test"])
    first = more.parts["train"].samples[: len(few.parts["train"])]
    assert [s.question for s in few.parts["train"]] == [s.question for s in first]


def test_labels_say_what_the_questions_say():
    material = mt.material_of(mt.Pictures(8, 6, 10))
    feed, part = mt.feeds_of(material, "equal")["test"], material.parts["test"]
    for i in range(0, len(part), 7):
        category, answer, organ = feed.answers[i].tolist()
        assert mt.CATEGORIES.symbols[category] == part[i].family
        assert answer == -100 or material.answers.symbols[answer] == part[i].answer
        assert mt.ORGANS.symbols[organ] == part[i].meta["organ"]
    assert -100 not in feed.answers[:, [0, 2]]


def test_blank_shows_nothing_and_mute_says_nothing():
    material = mt.material_of(mt.Pictures(8, 6, 10))
    whole, blank, mute = (mt.feeds_of(material, arm)["test"] for arm in ("equal", "blank", "mute"))
    assert whole.pictures.std() > 0.1
    assert not blank.pictures.any()
    assert len(torch.unique(mute.words)) == 1
    assert mute.word_mask.all()
    assert_close(blank.words, whole.words)
    assert_close(mute.pictures, whole.pictures)


# -- runs


def test_every_arm_runs_and_keeps_its_contract(outcomes):
    assert {unit.split(".")[0] for unit in outcomes} == set(mt.ARMS)
    for unit, outcome in outcomes.items():
        arrays, seeds = outcome.arrays, CONFIG.model.seeds
        n = len(arrays["picture_test"])
        assert arrays["predicted_test"].shape == (seeds, n, 3), unit
        assert arrays["label_test"].shape == (n, 3)
        assert len(outcome.details["history"]) == seeds
        for k, task in enumerate(mt.TASKS):
            right = arrays["predicted_test"][..., k] == arrays["label_test"][:, k]
            assert outcome.metrics[f"accuracy_test.{task}"].value == pytest.approx(right.mean())
        assert ("cosine" in arrays) == (unit.split(".")[0] in mt.WEIGHTINGS)
    assert len({o.details["data_hash"] for u, o in outcomes.items() if u.endswith(".8")}) == 1


def test_alone_and_together_start_alike_and_see_the_same_batches(outcomes):
    """At the first step, before any update, the measured gradients of arms that differ only in weights are equal."""
    first = [outcomes[f"{arm}.8"].arrays["norm"][:, 0] for arm in ("equal", "scaled", "dwa", "uncertainty", "pcgrad")]
    for other in first[1:]:
        np.testing.assert_allclose(other, first[0], rtol=1e-4)


def test_runs_are_reproducible(outcomes):
    again = mt.run(next(s for s in mt.specs("smoke") if s.unit == "pcgrad.8"))
    np.testing.assert_array_equal(again.arrays["predicted_test"], outcomes["pcgrad.8"].arrays["predicted_test"])


def test_an_arm_that_is_none():
    with pytest.raises(ValueError, match="arm is 'both'"):
        replace(CONFIG.model, arm="both")


@pytest.mark.parametrize("profile", mt.PROFILES)
def test_profiles_have_what_the_claim_needs(profile):
    config, units = mt.PROFILES[profile], {s.unit for s in mt.specs(profile)}
    few, main, many = config.amounts
    assert few < main == config.main < many
    assert {f"{arm}.{config.main}" for arm in mt.ARMS} <= units
    assert {f"{arm}.{n}" for n in config.amounts for arm in ("equal", *mt.ALONE)} <= units
    steps = [-(-8 * n // t.batch_size) * t.epochs for n, t in config.amounts.items()]
    assert max(steps) < 1.4 * min(steps) or profile == "smoke"  # the amounts differ in data, not in training
    assert config.model.seeds >= 5 or profile == "smoke"


def test_claim_names_the_experiment():
    (claim,) = [c for c in claims.read_claims(LEDGER) if c.id == "F11"]
    assert claim.experiment == "multitask"
