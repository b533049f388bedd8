"""Weights of several losses: closed forms, state that survives a restart, and the training loop."""

import math

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.testing import assert_close

from vqa_core.model import VQAOutput
from vqa_core.training.feed import Feed
from vqa_core.training.loop import Training, accuracy, fit
from vqa_core.training.weighting import DynamicWeightAverage, FixedWeights, UncertaintyWeighting

ALL = {
    "fixed": lambda: FixedWeights({"answer": 1.0, "organ": 0.5}),
    "dwa": lambda: DynamicWeightAverage(("answer", "organ")),
    "uncertainty": lambda: UncertaintyWeighting(("answer",), ("organ",)),
}
every = pytest.mark.parametrize("make", ALL.values(), ids=ALL.keys())


def losses(answer, organ):
    return {"answer": torch.tensor(float(answer)), "organ": torch.tensor(float(organ))}


def epoch(weighting, *steps):
    for step in steps:
        weighting(losses(*step))
    weighting.end_epoch()


@every
def test_a_scalar_whose_gradient_is_the_weight(make):
    """In any order of the names."""
    weighting = make()
    parts = {name: torch.tensor(2.0, requires_grad=True) for name in ("organ", "answer")}
    total = weighting(parts)
    assert total.shape == ()
    total.backward()
    got = torch.stack([parts[name].grad for name in weighting.names])
    assert_close(got, weighting.weights().detach())


@every
def test_wrong_losses_are_named(make):
    weighting = make()
    with pytest.raises(ValueError, match=r"losses are \['answer'\], this weighting was made for \['answer', 'organ'\]"):
        weighting({"answer": torch.tensor(1.0)})
    with pytest.raises(ValueError, match=r"loss 'organ' has shape \(3,\)"):
        weighting({"answer": torch.tensor(1.0), "organ": torch.ones(3)})


def test_fixed_weights():
    assert FixedWeights({"answer": 2.0, "organ": 0.25})(losses(3, 4)).item() == 7.0
    assert FixedWeights({"answer": 1.0, "organ": 0.0})(losses(3, 4)).item() == 3.0
    for wrong in (-1.0, math.nan, math.inf):
        with pytest.raises(ValueError, match="finite and at least 0"):
            FixedWeights({"answer": wrong})


# -- DWA ---------------------------------------------------------------------------------------------------------------


def test_dwa_closed_form():
    """Epoch means 4 → 2 and 10 → 10: ratios ½ and 1, so with T = 2 the weights are 2 softmax(¼, ½)."""
    weighting = ALL["dwa"]()
    assert weighting.weights().tolist() == [1, 1]
    epoch(weighting, (3, 10), (5, 10))
    assert weighting.weights().tolist() == [1, 1]  # one epoch has no ratio yet
    epoch(weighting, (1, 5), (3, 15))
    low, high = math.exp(0.25), math.exp(0.5)
    want = torch.tensor([2 * low / (low + high), 2 * high / (low + high)])
    assert_close(weighting.weights(), want)
    assert_close(weighting(losses(1, 0)), want[0])
    epoch(weighting, (2, 20))  # with the call above: means 1.5 and 10
    ratios = torch.tensor([1.5 / 2, 10 / 10])
    assert_close(weighting.weights(), 2 * (ratios / 2).softmax(0))


def test_dwa_sums_to_the_number_of_losses_and_forgets_scale():
    weighting, scaled = ALL["dwa"](), ALL["dwa"]()
    for a, b in ((3.0, 7.0), (2.0, 6.5), (1.5, 6.9)):
        epoch(weighting, (a, b))
        epoch(scaled, (1000 * a, 0.01 * b))
        assert weighting.weights().sum().item() == pytest.approx(2)
        assert_close(weighting.weights(), scaled.weights())
    answer, organ = weighting.weights().tolist()
    assert organ > 1 > answer  # the organ's loss does not fall


def test_dwa_temperature():
    weights = []
    for temperature in (0.1, 2.0, 1e6):
        weighting = DynamicWeightAverage(("answer", "organ"), temperature)
        epoch(weighting, (4, 4))
        epoch(weighting, (2, 4))
        weights.append(weighting.weights()[1].item())
    assert weights[0] == pytest.approx(2, abs=0.02)
    assert weights[0] > weights[1] > weights[2] == pytest.approx(1, abs=1e-4)
    with pytest.raises(ValueError, match="temperature is 0"):
        DynamicWeightAverage(("answer",), 0)


def test_dwa_does_not_count_evaluation():
    weighting = ALL["dwa"]()
    weighting(losses(2, 2))
    weighting.eval()
    weighting(losses(1000, 1))
    weighting.end_epoch()
    assert weighting.means[1].tolist() == [2, 2]


def test_dwa_refuses_what_has_no_ratio():
    weighting = ALL["dwa"]()
    with pytest.raises(ValueError, match="no loss was computed"):
        weighting.end_epoch()
    for bad in (0.0, -1.0, math.nan, math.inf):
        weighting = ALL["dwa"]()
        weighting(losses(1, bad))
        with pytest.raises(ValueError, match="mean of loss 'organ' is"):
            weighting.end_epoch()


def test_dwa_resumes_in_the_middle_of_an_epoch(tmp_path):
    whole = ALL["dwa"]()
    epoch(whole, (4, 4))
    epoch(whole, (2, 3))
    whole(losses(7, 1))
    torch.save(whole.state_dict(), tmp_path / "state.pt")
    resumed = ALL["dwa"]()
    resumed.load_state_dict(torch.load(tmp_path / "state.pt", weights_only=True))
    assert_close(resumed.weights(), whole.weights(), rtol=0, atol=0)
    for weighting in (whole, resumed):
        epoch(weighting, (1, 2))
    assert_close(resumed.weights(), whole.weights(), rtol=0, atol=0)
    assert whole.means[1].tolist() == [4, 1.5]


# -- uncertainty -------------------------------------------------------------------------------------------------------


def test_uncertainty_closed_form():
    weighting = ALL["uncertainty"]()
    assert_close(weighting.weights().detach(), torch.tensor([1.0, 0.5]))
    assert weighting(losses(3, 4)).item() == 3 + 2
    with torch.no_grad():
        weighting.log_variance.copy_(torch.tensor([4.0, 0.25]).log())
    assert weighting(losses(8, 8)).item() == pytest.approx(8 / 4 + 8 * 0.5 * 4 + 0.5 * math.log(4 * 0.25))


def test_uncertainty_finds_its_closed_optimum():
    """For constant losses: s = log 2L for a cross-entropy, log L for a squared error; each λ L is then ½."""
    weighting, parts = ALL["uncertainty"](), losses(3.0, 0.04)
    optimiser = torch.optim.Adam(weighting.parameters(), lr=0.1)
    for _ in range(300):
        optimiser.zero_grad()
        weighting(parts).backward()
        optimiser.step()
    assert_close(weighting.log_variance.detach(), torch.tensor([6.0, 0.04]).log(), rtol=1e-3, atol=1e-3)
    assert_close(
        (weighting.weights() * torch.tensor([3.0, 0.04])).detach(), torch.full((2,), 0.5), rtol=1e-3, atol=1e-3
    )


# -- in the training loop ----------------------------------------------------------------------------------------------


class TwoTasks(nn.Module):
    """Answers, and how bright the picture is."""

    def __init__(self, weighting):
        super().__init__()
        self.words, self.image = nn.Embedding(4, 8), nn.Linear(4, 8)
        self.answer, self.brightness = nn.Linear(8, 2), nn.Linear(8, 1)
        self.weighting = weighting

    def forward(self, pictures, words, word_mask):
        h = (self.image(pictures.mean(1)) + self.words(words).mean(1)).tanh()
        return VQAOutput(self.answer(h), h)


def two_losses(model, batch):
    output = model(*batch[:3])
    brightness = model.brightness(output.fusion).squeeze(-1)
    return model.weighting(
        {
            "answer": F.cross_entropy(output.logits, batch.answers),
            "brightness": F.mse_loss(brightness, batch.pictures.mean((1, 2))),
        }
    )


def score(model, feed):
    model.weighting.end_epoch()
    return accuracy(model, feed, "cpu")


@pytest.mark.parametrize(
    "make",
    [
        lambda: DynamicWeightAverage(("answer", "brightness")),
        lambda: UncertaintyWeighting(("answer",), ("brightness",)),
    ],
    ids=["dwa", "uncertainty"],
)
def test_a_run_that_was_killed_goes_on_with_the_same_weights(make, tmp_path, monkeypatch):
    """The weighting is a part of the model: the loop trains it and keeps its state in the checkpoint."""
    g = torch.Generator().manual_seed(0)
    pictures = torch.randn(32, 3, 4, generator=g)
    words = torch.randint(4, (32, 1), generator=g)
    answers = (pictures.mean((1, 2)) > 0).long()
    data = Feed(pictures, np.arange(32), words, torch.ones(32, 1, dtype=torch.bool), answers)
    options = {"seed": 0, "loss": two_losses, "score": score, "device": "cpu"}
    training = Training(epochs=4, batch_size=8, learning_rate=0.02)

    def build(seed=0):
        torch.manual_seed(seed)
        return TwoTasks(make())

    whole = build()
    fit(whole, data, data, training, **options)

    import vqa_core.training.loop as loop

    save, left = loop._save_state, iter([False, True])

    def save_then_die(*arguments):
        save(*arguments)
        if next(left):
            raise KeyboardInterrupt

    monkeypatch.setattr(loop, "_save_state", save_then_die)
    with pytest.raises(KeyboardInterrupt):
        fit(build(), data, data, training, checkpoint=tmp_path / "c.pt", **options)
    monkeypatch.setattr(loop, "_save_state", save)
    resumed = build(seed=9)
    fit(resumed, data, data, training, checkpoint=tmp_path / "c.pt", **options)
    for (name, a), b in zip(whole.state_dict().items(), resumed.state_dict().values()):
        assert_close(a, b, rtol=0, atol=0, equal_nan=True, msg=name)
    start = make().weights().detach()
    assert (whole.weighting.weights().detach() - start).abs().max() > 1e-3  # the weights did move


def test_names_must_differ():
    with pytest.raises(ValueError, match="each once"):
        DynamicWeightAverage(("answer", "answer"))
    with pytest.raises(ValueError, match="at least one"):
        FixedWeights({})
