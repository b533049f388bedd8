"""The training loop: it learns, resumes exactly, keeps the best validation weights, and stops at a NaN."""

from typing import NamedTuple

import numpy as np
import pytest
import torch
from torch import nn

from vqa_core.training.feed import Feed
from vqa_core.training.loop import NotFiniteError, Training, accuracy, answer_loss, fit, predict


class Output(NamedTuple):
    logits: torch.Tensor


class Tiny(nn.Module):
    """Mean image token and mean word vector, joined by a product; dropout so that its random state matters."""

    def __init__(self, answers=2, dropout=0.1):
        super().__init__()
        self.words = nn.Embedding(10, 8)
        self.image = nn.Linear(4, 8)
        self.head = nn.Sequential(nn.Dropout(dropout), nn.Linear(8, answers))

    def forward(self, pictures, words, word_mask):
        text = (self.words(words) * word_mask.unsqueeze(-1)).sum(1)
        return Output(self.head(self.image(pictures.mean(1)) * text))


def feed(n=64, seed=0):
    g = torch.Generator().manual_seed(seed)
    pictures = torch.randn(n, 3, 4, generator=g)
    words = torch.randint(2, 4, (n, 1), generator=g)
    answers = ((pictures.mean(1)[:, 0] > 0) ^ (words[:, 0] == 3)).long()  # needs both sides
    return Feed(pictures, np.arange(n), words, torch.ones(n, 1, dtype=torch.bool), answers)


def build(seed=0, **options):
    torch.manual_seed(seed)
    return Tiny(**options)


def test_overfits_eight_questions_that_need_both_sides():
    data, model = feed(8), build(dropout=0.0)
    fit(
        model,
        data,
        data,
        Training(epochs=200, batch_size=8, learning_rate=0.05, weight_decay=0.0),
        seed=0,
        device="cpu",
    )
    assert accuracy(model, data, "cpu") == 1.0


def test_same_seed_same_weights_and_other_seed_others():
    weights = []
    for seed in (0, 0, 1):
        model = build()
        fit(model, feed(), feed(seed=1), Training(epochs=2, batch_size=16), seed=seed, device="cpu")
        weights.append(model.head[1].weight.detach().clone())
    assert torch.equal(weights[0], weights[1])
    assert not torch.equal(weights[0], weights[2])


def test_resumed_run_ends_with_the_same_weights_as_an_unbroken_one(tmp_path, monkeypatch):
    training = Training(epochs=4, batch_size=16, learning_rate=0.02)
    whole = build()
    fit(whole, feed(), feed(seed=1), training, seed=3, device="cpu")

    import vqa_core.training.loop as loop

    kept, killed_after = loop._save_state, 2

    def save_then_die(path, model, optimizer, found, best, epoch):
        kept(path, model, optimizer, found, best, epoch)
        if epoch + 1 == killed_after:
            raise KeyboardInterrupt

    monkeypatch.setattr(loop, "_save_state", save_then_die)
    with pytest.raises(KeyboardInterrupt):
        fit(build(), feed(), feed(seed=1), training, seed=3, device="cpu", checkpoint=tmp_path / "c.pt")
    monkeypatch.setattr(loop, "_save_state", kept)
    resumed = build(seed=99)  # other initial weights: they must come from the checkpoint
    fitted = fit(resumed, feed(), feed(seed=1), training, seed=3, device="cpu", checkpoint=tmp_path / "c.pt")
    for a, b in zip(whole.state_dict().values(), resumed.state_dict().values()):
        torch.testing.assert_close(a, b, rtol=0, atol=0)
    assert [row["epoch"] for row in fitted.history] == [0, 1, 2, 3]
    assert not (tmp_path / "c.pt").exists()


def test_keeps_the_weights_of_the_best_validation_epoch():
    model, validation = build(), feed(seed=1)
    fitted = fit(model, feed(), validation, Training(epochs=6, batch_size=16, learning_rate=0.1), seed=0, device="cpu")
    scores = [row["validation"] for row in fitted.history]
    assert fitted.best_score == max(scores)
    assert scores.index(max(scores)) == fitted.best_epoch
    assert accuracy(model, validation, "cpu") == pytest.approx(max(scores))


def test_patience_stops_early():
    frozen = Training(epochs=50, batch_size=64, learning_rate=1e-12, patience=2)
    assert len(fit(build(), feed(), feed(seed=1), frozen, seed=0, device="cpu").history) == 3


def test_nan_stops_with_the_batch_saved(tmp_path):
    data = feed(16)
    data.pictures[5] = float("nan")
    with pytest.raises(NotFiniteError, match="not_finite_step0") as caught:
        fit(build(), data, data, Training(epochs=1, batch_size=16), seed=0, device="cpu", checkpoint=tmp_path / "c.pt")
    saved = torch.load(tmp_path / "not_finite_step0.pt", weights_only=True)
    assert torch.isnan(saved["batch"]["pictures"]).any()
    assert str(tmp_path) in str(caught.value)


def test_unreachable_answers_do_not_train_and_count_as_wrong():
    data = feed(8)
    logits = torch.randn(8, 2)
    expected = answer_loss(logits[:4], data.answers[:4])
    data.answers[4:] = -100
    torch.testing.assert_close(answer_loss(logits, data.answers), expected)
    assert accuracy(build(), data, "cpu") <= 0.5


def test_rate_warms_up_to_the_peak_and_ends_near_zero():
    training = Training(learning_rate=1.0, warmup=0.1)
    rates = [training.rate(s, 100) for s in range(100)]
    assert rates[:10] == pytest.approx(np.arange(1, 11) / 10)
    assert max(rates) == 1.0
    assert rates[55] == pytest.approx(0.5, abs=0.01)
    assert rates[-1] < 0.001
    assert rates[10:] == sorted(rates[10:], reverse=True)


def test_clipping_bounds_the_step():
    """With SGD-like scale invariance gone, the planted huge loss must not blow the weights up."""
    model = build()
    before = [p.detach().clone() for p in model.parameters()]
    training = Training(epochs=1, batch_size=64, learning_rate=1e-3, weight_decay=0.0)
    fit(
        model,
        feed(),
        feed(),
        training,
        seed=0,
        device="cpu",
        loss=lambda m, b: 1e6 * answer_loss(m(*b[:3]).logits, b.answers),
    )
    assert all((p - q).abs().max() < 2e-3 for p, q in zip(model.parameters(), before))


def test_predict_does_not_depend_on_the_batch_size():
    model, data = build(), feed(50)
    torch.testing.assert_close(predict(model, data, 50, "cpu"), predict(model, data, 7, "cpu"))


def test_nothing_to_train_is_an_error():
    with pytest.raises(ValueError, match="epochs is 0"):
        fit(build(), feed(), feed(), Training(epochs=0), seed=0, device="cpu")
