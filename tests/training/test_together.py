"""Several seeds in one pass: the same as one after another, each with its own data, and a NaN is found."""

import pytest
import torch
from torch import nn
from torch.testing import assert_close

from vqa_core.encoders.tokens import CachedTokens
from vqa_core.fusion.efficiency import DropToken, share_layers
from vqa_core.fusion.transformer import LAYOUTS
from vqa_core.heads.classifier import LinearHead
from vqa_core.model import VQAModel
from vqa_core.training.distillation import distillation_loss
from vqa_core.training.feed import Feed
from vqa_core.training.loop import NotFiniteError, Training, accuracy, fit, predict
from vqa_core.training.together import fit_together, predict_together, stack

ANSWERS = 3


def feed_of(questions=40, seed=0):
    """Image tokens (4, 5) and one to three text tokens of 6; the answer is said by both sides."""
    chance = torch.Generator().manual_seed(seed)
    pictures = torch.randn(questions, 4, 5, generator=chance)
    words = torch.randn(questions, 3, 6, generator=chance)
    mask = torch.arange(3) < torch.randint(1, 4, (questions, 1), generator=chance)
    answers = ((pictures[:, 0, 0] > 0).long() + (words[:, 0, 0] > 0).long()) % ANSWERS
    return Feed(pictures, torch.arange(questions), words, mask, answers)


def models_of(seeds, shared=False, keep=1.0):
    made = []
    for seed in seeds:
        torch.manual_seed(seed)
        fusion = LAYOUTS["early_concatenation"](5, 6, 8, heads=2)
        if shared:
            fusion.layers = share_layers(fusion.layers)
        fusion = DropToken(fusion, keep) if keep < 1 else fusion
        made.append(VQAModel(CachedTokens(5), CachedTokens(6), fusion, LinearHead(8, ANSWERS)))
    return made


TRAINING = Training(epochs=3, batch_size=16, learning_rate=1e-2, weight_decay=0.1, clip=0.5)


@pytest.mark.parametrize("shared", [False, True])
def test_together_is_one_after_another(shared):
    train, validation, seeds = feed_of(), feed_of(24, 1), [0, 3]
    together, alone = models_of(seeds, shared), models_of(seeds, shared)
    found = fit_together(together, train, validation, TRAINING, seeds, device="cpu")
    for model, other, fitted, seed in zip(together, alone, found, seeds):
        expected = fit(other, train, validation, TRAINING, seed, device="cpu")
        assert_close([e["loss"] for e in fitted.history], [e["loss"] for e in expected.history], rtol=1e-4, atol=1e-4)
        assert fitted.best_epoch == expected.best_epoch
        for (name, got), want in zip(model.named_parameters(), other.parameters()):
            if not name.endswith("key.bias"):  # softmax does not see it: its gradient is rounding, which Adam blows up
                assert_close(got, want, rtol=1e-2, atol=5e-4)
        assert accuracy(model, validation, "cpu") == pytest.approx(fitted.best_score)


def test_predictions_are_those_of_each_model():
    models, feed = models_of([0, 1, 2]), feed_of(20)
    logits = predict_together(models, feed)
    assert logits.shape == (3, 20, ANSWERS)
    for found, model in zip(logits, models):
        assert_close(found, predict(model, feed, device="cpu"), rtol=1e-4, atol=1e-5)


def test_a_student_follows_its_own_teacher():
    """Each seed's teacher always says one other answer; the labels say nothing (weight 1)."""
    train, models = feed_of(), models_of([0, 1])
    said = torch.full((2, len(train), ANSWERS), -5.0)
    said[0, :, 1] = said[1, :, 2] = 5.0

    def loss(student, teacher, answers):
        return distillation_loss(student, teacher, answers, 1.0, 1.0)

    longer = Training(epochs=12, batch_size=20, learning_rate=2e-2)
    fit_together(models, train, feed_of(8), longer, [0, 1], loss=loss, teacher=said, device="cpu")
    last = predict_together(models, train).mean(1)  # (2, A); the best validation epoch need not be the last
    assert last[0, 1] - last[0, 2] > last[1, 1] - last[1, 2]
    with pytest.raises(ValueError, match=r"teacher is \(2, 5, 3\)"):
        fit_together(models, train, train, TRAINING, [0, 1], teacher=said[:, :5], device="cpu")


def test_tokens_are_dropped_differently_for_each_seed():
    models = models_of([0, 0], keep=0.5)
    found = fit_together(models, feed_of(), feed_of(8), TRAINING, [5, 5], device="cpu")
    assert found[0].history[0]["loss"] != found[1].history[0]["loss"]


def test_a_seed_that_is_not_finite_is_named():
    models = models_of([0, 1])
    with torch.no_grad():
        models[1].head.weight.fill_(torch.nan)
    with pytest.raises(NotFiniteError, match=r"step 0: loss or gradient of seed\(s\) \[7\]"):
        fit_together(models, feed_of(), feed_of(8), TRAINING, [4, 7], device="cpu")


def test_what_does_not_fit_is_refused():
    with pytest.raises(ValueError, match="2 models can't be stacked"):
        stack([nn.Linear(2, 3), nn.Linear(2, 4)])
    with pytest.raises(ValueError, match="buffers can't be trained together: running_mean"):
        stack([nn.BatchNorm1d(2)])
    with pytest.raises(ValueError, match="2 models, 1 seeds"):
        fit_together(models_of([0, 1]), feed_of(), feed_of(8), TRAINING, [0])
