"""Counterfactual attention: pooling by hand, kinds of counterfactuals, what has a gradient, pictures and volumes."""

import math

import pytest
import torch
from torch import nn
from torch.testing import assert_close

from vqa_core.encoders.cnn import GridCNN
from vqa_core.encoders.meta import MetaCNN
from vqa_core.encoders.tokens import Tokens
from vqa_core.encoders.volume import VolumeCNN
from vqa_core.explain.counterfactual import (
    COUNTERFACTUALS,
    EPSILON,
    CounterfactualAttention,
    CounterfactualModel,
    CounterfactualOutput,
    attention_map,
    bilinear_attention_pooling,
    counterfactual_loss,
)


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


def test_pooling_by_hand():
    features = torch.tensor([[[[1.0, 2.0]], [[0.0, -4.0]]]])  # (1, 2, 1, 2)
    maps = torch.tensor([[[[1.0, 0.0]], [[1.0, 3.0]]]])  # (1, 2, 1, 2)
    average = torch.tensor([0.5, 0.0, 3.5, -6.0])  # map 1: [1, 0] / 2; map 2: [1 + 6, −12] / 2
    root = average.sign() * (average.abs() + EPSILON).sqrt()
    assert_close(bilinear_attention_pooling(features, maps), (root / root.norm())[None])
    highest = torch.tensor([1.0, 0.0, 6.0, 0.0])
    root = highest.sign() * (highest + EPSILON).sqrt()
    assert_close(bilinear_attention_pooling(features, maps, "max"), (root / root.norm())[None])


@pytest.mark.parametrize("grid", [(3, 4), (2, 3, 4)])
@pytest.mark.parametrize("pool", ["average", "max"])
def test_pooling_does_not_know_the_order_of_cells_nor_the_scale_of_features(grid, pool):
    features, maps = torch.randn(2, 5, *grid), torch.rand(2, 3, *grid)
    pooled = bilinear_attention_pooling(features, maps, pool)
    assert pooled.shape == (2, 15)
    assert_close(pooled.norm(dim=1), torch.ones(2))
    order = torch.randperm(math.prod(grid))
    mixed = [x.flatten(2)[..., order].unflatten(2, grid) for x in (features, maps)]
    assert_close(bilinear_attention_pooling(*mixed, pool), pooled)
    assert_close(bilinear_attention_pooling(9 * features, maps, pool), pooled, rtol=1e-3, atol=1e-4)  # but for EPSILON
    assert_close(bilinear_attention_pooling(features[1:], maps[1:], pool), pooled[1:])


def test_maps_of_a_coarser_grid_are_interpolated():
    features, maps = torch.randn(2, 5, 4, 4), torch.rand(2, 3, 2, 2)
    grown = nn.functional.interpolate(maps, (4, 4), mode="bilinear")
    assert_close(bilinear_attention_pooling(features, maps), bilinear_attention_pooling(features, grown))


def test_kinds_of_counterfactuals():
    maps = torch.rand(4, 3, 5, 5)
    found = {name: make(maps) for name, make in COUNTERFACTUALS.items()}
    assert all(x.shape == maps.shape for x in found.values())
    assert 0 <= found["random"].min() <= found["random"].max() <= 2
    assert found["random"].mean() == pytest.approx(1, abs=0.1)
    assert (found["uniform"] == 1).all()
    assert (found["zero"] == 0).all()
    assert_close(found["shuffled"], maps[[3, 0, 1, 2]])
    assert_close(found["reversed"].flatten(2).argmin(-1), maps.flatten(2).argmax(-1))
    assert_close(found["reversed"] + maps, maps.flatten(2).amax(-1)[..., None, None].expand_as(maps))
    with pytest.raises(ValueError, match="at least 2"):
        COUNTERFACTUALS["shuffled"](maps[:1])


@pytest.mark.parametrize("axes", [2, 3])
@pytest.mark.parametrize("extra", [0, 25])
def test_every_parameter_learns_and_the_encoder_too(axes, extra):
    module = CounterfactualAttention(6, 3, maps=4, axes=axes, extra=extra)
    features = torch.randn(8, 6, *[4] * axes, requires_grad=True)
    vector = torch.randn(8, extra) if extra else None
    output = module(features, vector)
    assert output.logits.shape == output.effect.shape == (8, 3)
    assert output.maps.shape == (8, 4, *[4] * axes)
    assert output.maps.min() >= 0
    counterfactual_loss(output, torch.arange(8) % 3).backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in module.parameters() if p.ndim > 1)
    assert features.grad.abs().sum() > 0


def test_evaluation_draws_nothing_and_takes_pictures_one_by_one():
    module = CounterfactualAttention(6, 3).eval()
    features = torch.randn(5, 6, 4, 4)
    whole, again = module(features), module(features)
    for a, b in zip(whole, again):
        assert_close(a, b, rtol=0, atol=0)
    for i in range(5):
        for one, all_of_them in zip(module(features[i : i + 1]), whole):
            assert_close(one, all_of_them[i : i + 1], rtol=1e-4, atol=1e-4)


def test_the_effect_is_what_the_maps_add():
    """With maps of ones there is no effect; the vector beside the picture never is a part of it."""
    module = CounterfactualAttention(6, 3, extra=2).eval()
    with torch.no_grad():
        module.attention[0].weight.zero_()
        module.attention[1].bias.fill_(1.0)  # batch norm of zeros gives its bias
    output = module(torch.randn(4, 6, 4, 4), torch.randn(4, 2))
    assert_close(output.maps, torch.ones_like(output.maps))
    assert_close(output.effect, torch.zeros(4, 3), rtol=0, atol=1e-4)
    module = CounterfactualAttention(6, 3, extra=2).eval()
    features = torch.randn(4, 6, 4, 4)
    one, other = (module(features, torch.randn(4, 2)) for _ in range(2))
    assert not torch.allclose(one.logits, other.logits)
    assert_close(one.effect, other.effect, rtol=1e-4, atol=1e-4)


def test_loss_by_hand_and_without_the_effect():
    logits, effect = torch.tensor([[2.0, 0.0]]), torch.tensor([[0.0, 1.0]])
    output = CounterfactualOutput(logits, effect, torch.ones(1, 1, 1, 1))
    raw, of_effect = math.log(1 + math.exp(-2)), math.log(1 + math.exp(1))
    label = torch.tensor([0])
    assert counterfactual_loss(output, label).item() == pytest.approx(raw / 3 + of_effect)
    assert counterfactual_loss(output, label, 1.0, 0.0).item() == pytest.approx(raw)


def test_overfits_eight_pictures():
    module = CounterfactualAttention(4, 8, maps=3)
    features, labels = torch.randn(8, 4, 4, 4), torch.arange(8)
    optimizer = torch.optim.Adam(module.parameters(), 1e-2)
    for _ in range(200):
        optimizer.zero_grad()
        counterfactual_loss(module(features), labels).backward()
        optimizer.step()
    assert (module.eval()(features).logits.argmax(1) == labels).all()


def test_attention_map_is_a_share():
    maps = torch.rand(2, 3, 4, 4)
    maps[1] = 0
    found = attention_map(maps)
    assert_close(found.flatten(1).sum(1), torch.ones(2))
    assert_close(found[0], maps[0].mean(0) / maps[0].mean(0).sum())
    assert_close(found[1], torch.full((4, 4), 1 / 16))


def test_refuses_what_does_not_fit():
    module = CounterfactualAttention(6, 3)
    for call, message in (
        (lambda: CounterfactualAttention(6, 3, axes=1), "axes is 1"),
        (lambda: CounterfactualAttention(6, 3, training_kind="none"), "training_kind is 'none'"),
        (lambda: CounterfactualAttention(6, 3, evaluation_kind="none"), "evaluation_kind is 'none'"),
        (lambda: module(torch.randn(2, 6, 4, 4, 4)), "2 axes"),
        (lambda: module(torch.randn(2, 5, 4, 4)), r"give \(B, 6"),
        (lambda: module(torch.randn(2, 6, 4, 4), torch.randn(2, 3)), "extra=0"),
        (lambda: CounterfactualAttention(6, 3, extra=4)(torch.randn(2, 6, 4, 4)), "extra is None"),
        (lambda: bilinear_attention_pooling(torch.randn(2, 6, 4), torch.randn(3, 2, 4)), "give"),
        (lambda: bilinear_attention_pooling(torch.randn(2, 6, 4), torch.randn(2, 2, 4), "sum"), "pool is 'sum'"),
    ):
        with pytest.raises(ValueError, match=message):
            call()


def test_without_maps_the_vector_alone_answers():
    """With zeros as counterfactual the effect is what the picture adds: logits minus bias and the vector's part."""
    module = CounterfactualAttention(6, 3, extra=2, evaluation_kind="zero").eval()
    features, vector = torch.randn(4, 6, 4, 4), torch.randn(4, 2)
    output = module(features, vector)
    weight, bias = module.classifier.weight, module.classifier.bias
    assert_close(output.logits - output.effect, vector @ weight[:, -2:].T + bias, rtol=1e-4, atol=1e-4)


def test_maps_that_are_not_rectified_have_both_signs_and_are_shown_by_size():
    module = CounterfactualAttention(6, 3, rectified=False)
    output = module(torch.randn(8, 6, 4, 4))
    assert output.maps.min() < 0 < output.maps.max()
    shown = attention_map(output.maps)
    assert shown.min() >= 0
    assert_close(shown, attention_map(-output.maps))
    counterfactual_loss(output, torch.arange(8) % 3).backward()
    assert all(p.grad.abs().sum() > 0 for p in module.parameters())


@pytest.mark.parametrize(
    ("encoder", "pictures"),
    [
        (GridCNN(8, 64, width=4), torch.randn(4, 3, 64, 64)),
        (MetaCNN("grid"), torch.rand(4, 1, 84, 84)),
        (VolumeCNN(8, (8, 4, 6), width=4), torch.randn(4, 8, 4, 6)),
    ],
)
def test_behind_any_grid_encoder_every_parameter_learns(encoder, pictures):
    model = CounterfactualModel(encoder, 2, maps=3, extra=5)
    output = model(pictures, torch.randn(4, 1, 5))
    assert output.maps.shape == (4, 3, *encoder.grid)
    counterfactual_loss(output, torch.tensor([0, 1, 0, 1])).backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for n, p in model.named_parameters() if p.ndim > 1)


def test_cells_of_the_maps_are_where_the_tokens_are():
    """Tokens in reading order: what is read from token 7 of a 2 × 3 × 4 grid stands at (0, 1, 3)."""

    class Known(nn.Module):
        out_dim, grid = 1, (2, 3, 4)

        def forward(self, pictures):
            return Tokens(torch.eye(24)[7].expand(2, -1).unsqueeze(-1))  # (2, 24, 1)

    model = CounterfactualModel(Known(), 2, maps=1, rectified=False).eval()
    maps = model(torch.zeros(2)).maps
    assert (maps - maps[0, 0, 0, 0, 0]).abs()[0, 0].argmax() == 7
    assert (maps[0, 0, 0, 1, 3] - maps[0, 0, 1, 2, 3]).abs() > 0


def test_a_class_token_or_a_missing_vector_is_refused():
    class TooMany(nn.Module):
        out_dim, grid = 4, (2, 2)

        def forward(self, pictures):
            return Tokens(pictures)

    with pytest.raises(ValueError, match="5 tokens do not fill the grid"):
        CounterfactualModel(TooMany(), 2)(torch.randn(2, 5, 4))
    with pytest.raises(ValueError, match=r"give words \(B, 1, 3\)"):
        CounterfactualModel(TooMany(), 2, extra=3)(torch.randn(2, 4, 4))
