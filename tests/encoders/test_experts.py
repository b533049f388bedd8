"""Experts: the spatial map, the mixture in closed form, and the two tasks of the pre-training."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.testing import assert_close

from vqa_core.encoders.experts import (
    ExpertPretraining,
    Experts,
    OrganClassifier,
    PictureClassifier,
    PretrainingOutput,
    Segmenter,
    compatibility_pairs,
    pretraining_loss,
    spatial_map,
)
from vqa_core.encoders.text import BagOfWords
from vqa_core.encoders.tokens import Tokens
from vqa_core.fusion.vector import ConcatFusion


class Patches(nn.Module):
    """A small encoder: a 16 × 16 picture becomes 2 × 2 tokens of D features."""

    def __init__(self, out_dim=6):
        super().__init__()
        self.out_dim = out_dim
        self.conv = nn.Conv2d(3, out_dim, 8, 8)

    def forward(self, pictures):
        return Tokens(self.conv(pictures).flatten(2).transpose(1, 2))


class Fixed(nn.Module):
    """Organ logits that do not depend on the picture."""

    def __init__(self, logits):
        super().__init__()
        self.logits = nn.Parameter(torch.tensor(logits))

    def forward(self, pictures):
        return self.logits.expand(len(pictures), -1)


def test_spatial_map_in_numbers():
    where = spatial_map(2, 4)
    assert where.shape == (8, 8)
    assert_close(where[0], torch.tensor([-1, -1, -0.5, 0, -0.75, -0.5, 0.25, 0.5]))
    assert_close(where[6], torch.tensor([0, 0, 0.5, 1, 0.25, 0.5, 0.25, 0.5]))  # second row, third column
    seven = spatial_map(7, 7)
    assert_close(seven[24, 4:6], torch.zeros(2), atol=1e-6, rtol=0)  # the middle cell
    assert_close(seven[-1, 2:4], torch.ones(2))
    assert_close(seven[:, 2] - seven[:, 0], torch.full((49,), 2 / 7))


def test_the_mixture_is_the_weighted_sum():
    experts = [Patches() for _ in range(3)]
    pictures = torch.randn(5, 3, 16, 16)
    mixed = Experts(experts, Fixed([0.0, 1.0, -2.0]))
    weights = torch.tensor([0.0, 1.0, -2.0]).softmax(0)
    expected = sum(w * e(pictures).tokens for w, e in zip(weights, experts))
    output = mixed(pictures)
    assert_close(output.tokens, expected)
    assert output.mask is None
    assert_close(output.organ_logits, torch.tensor([0.0, 1.0, -2.0]).expand(5, -1))
    sure = Experts(experts, Fixed([0.0, 50.0, 0.0]))
    assert_close(sure(pictures).tokens, experts[1](pictures).tokens)
    same = Experts([experts[0]] * 3, Fixed([0.3, 0.1, 0.9]))  # weights sum to 1
    assert_close(same(pictures).tokens, experts[0](pictures).tokens)


def test_the_spatial_map_is_appended():
    experts = [Patches() for _ in range(3)]
    pictures = torch.randn(2, 3, 16, 16)
    plain, mapped = Experts(experts, Fixed([0.0] * 3)), Experts(experts, Fixed([0.0] * 3), grid=(2, 2))
    assert (plain.out_dim, mapped.out_dim) == (6, 14)
    tokens = mapped(pictures).tokens
    assert tokens.shape == (2, 4, 14)
    assert_close(tokens[..., :6], plain(pictures).tokens)
    assert_close(tokens[1, :, 6:], spatial_map(2, 2))
    assert not any("where" in name for name in mapped.state_dict())


def test_each_picture_has_its_own_weights_and_gradients_reach_everything():
    model = Experts([Patches() for _ in range(3)], OrganClassifier(width=8), grid=(2, 2))
    pictures = torch.randn(4, 3, 16, 16)
    output = model(pictures)
    assert output.organ_logits.shape == (4, 3)
    (output.tokens * torch.randn_like(output.tokens)).sum().backward()
    assert all(p.grad is not None and p.grad.abs().max() > 0 for p in model.parameters())  # the classifier too
    model.eval()
    assert_close(torch.cat([model(p[None]).tokens for p in pictures]), model(pictures).tokens, rtol=1e-4, atol=1e-5)


def test_the_organ_classifier_learns_eight_pictures():
    pictures, organs = torch.randn(8, 3, 16, 16), torch.arange(8) % 3
    model = OrganClassifier(width=8)
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    for _ in range(60):
        optimizer.zero_grad()
        F.cross_entropy(model(pictures), organs).backward()
        optimizer.step()
    assert torch.equal(model(pictures).argmax(1), organs)


def test_experts_that_do_not_fit_are_named():
    with pytest.raises(ValueError, match=r"out_dim \[4, 6\]"):
        Experts([Patches(4), Patches(6)], Fixed([0.0, 0.0]))
    pictures = torch.randn(2, 3, 16, 16)
    with pytest.raises(ValueError, match=r"organ logits have shape \(2, 3\), expected \(B, 2\)"):
        Experts([Patches(), Patches()], Fixed([0.0] * 3))(pictures)
    with pytest.raises(ValueError, match=r"give 4 tokens, the grid \(7, 7\) has 49"):
        Experts([Patches(), Patches()], Fixed([0.0] * 2), grid=(7, 7))(pictures)


def pretraining(head):
    return ExpertPretraining(Patches(), head, BagOfWords(10, 5), ConcatFusion(6, 5, 8))


@pytest.mark.parametrize("kind", ["segmentation", "classification"])
def test_both_tasks_train_the_expert(kind):
    size = 16
    head = Segmenter(6, 4, (2, 2), size, width=8) if kind == "segmentation" else PictureClassifier(6, 3)
    model = pretraining(head)
    pictures, words = torch.randn(4, 3, 16, 16), torch.randint(2, 10, (4, 3))
    mask = torch.tensor([[True, True, True], [True, True, False]] * 2)
    output = model(pictures, words, mask)
    assert output.task.shape == ((4, 4, size, size) if kind == "segmentation" else (4, 3))
    assert output.compatibility.shape == (4, 2)
    target = torch.randint(0, 3, (4, size, size) if kind == "segmentation" else (4,))
    compatible = torch.tensor([True, False, True, False])
    loss = pretraining_loss(output, target, compatible)
    assert_close(loss.total, loss.task + loss.compatibility)
    for part in (loss.task, loss.compatibility):  # each of them reaches the expert
        (gradient,) = torch.autograd.grad(part, model.expert.conv.weight, retain_graph=True)
        assert gradient.abs().max() > 0
    loss.total.backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())
    changed = words.clone()
    changed[1, 2] = 9  # padding
    assert_close(model(pictures, changed, mask).compatibility, output.compatibility)


def test_segmenter_cells_are_where_the_tokens_are():
    head = Segmenter(2, 2, (2, 2), 8, width=4)
    for p in head.parameters():
        nn.init.zeros_(p)
    head.hidden.weight.data[0, 0, 1, 1] = 1  # passes feature 0 of a cell on to class 1
    head.classify.weight.data[1, 0] = 1
    tokens = torch.zeros(1, 4, 2)
    tokens[0, 1, 0] = 1  # the upper right cell
    pixels = head(tokens)[0, 1]
    assert pixels[0, 7] == 1
    assert pixels[7, 7] == pixels[0, 0] == 0


def test_pretraining_loss_in_closed_form():
    output = PretrainingOutput(torch.zeros(2, 4), torch.tensor([[0.0, 0.0], [0.0, 3.0]]))
    loss = pretraining_loss(output, torch.tensor([1, -100]), torch.tensor([1, 1]))
    assert loss.task.item() == pytest.approx(np.log(4))
    assert loss.compatibility.item() == pytest.approx((np.log(2) + np.log1p(np.exp(-3))) / 2)


def test_an_expert_learns_both_tasks_of_eight_pictures():
    torch.manual_seed(1)
    model = pretraining(PictureClassifier(6, 2))
    pictures, words = torch.randn(8, 3, 16, 16), torch.arange(8)[:, None] + 2
    task, compatible = torch.arange(8) % 2, torch.arange(8) < 4
    optimizer = torch.optim.Adam(model.parameters(), lr=0.02)
    for _ in range(150):
        loss = pretraining_loss(model(pictures, words, torch.ones_like(words, dtype=torch.bool)), task, compatible)
        optimizer.zero_grad()
        loss.total.backward()
        optimizer.step()
    assert loss.task < 0.1
    assert loss.compatibility < 0.1


def test_compatibility_pairs_are_balanced_and_right():
    asked = np.array([[1, 0, 0], [1, 1, 0], [0, 1, 1], [0, 0, 1]], dtype=bool)
    organs = np.arange(3000) % 3
    questions, compatible = compatibility_pairs(organs, asked, np.random.default_rng(0))
    np.testing.assert_array_equal(asked[questions, organs], compatible)
    assert compatible.mean() == pytest.approx(0.5, abs=0.05)
    assert set(questions) == {0, 1, 2, 3}
    with pytest.raises(ValueError, match=r"organ 0 is asked about in 4 of 4 questions"):
        compatibility_pairs(organs, np.ones((4, 3), bool), np.random.default_rng(0))
    with pytest.raises(ValueError, match="expected a column for each organ"):
        compatibility_pairs(organs + 1, asked, np.random.default_rng(0))
