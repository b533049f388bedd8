"""Closed forms of the vector fusions, and the facts the chapter states about them."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.testing import assert_close

from vqa_core.fusion.vector import (
    MFB,
    ConcatFusion,
    ConditionalBatchNorm2d,
    FiLM,
    GatedFusion,
    LowRankTensorFusion,
    ProductFusion,
    SumFusion,
    TensorFusion,
    VectorFusion,
)

X, Y = torch.tensor([[1.0, 2.0, 3.0]]), torch.tensor([[4.0, 5.0]])  # sums 6 and 9


def constant(module: nn.Module, weight: float = 1.0, bias: float = 0.0) -> nn.Module:
    for name, parameter in module.named_parameters():
        nn.init.constant_(parameter, bias if name.endswith("bias") else weight)
    return module.eval()


def test_sum():
    output = constant(SumFusion(3, 2, 4), bias=0.5)(X, Y)
    assert_close(output.fused, torch.full((1, 4), 15.5))
    assert_close(output.image, torch.full((1, 4), 6.5))
    assert_close(output.text, torch.full((1, 4), 9.0))


def test_concat_is_one_matrix_times_the_joined_vector():
    fusion = ConcatFusion(3, 2, 4)
    x, y = torch.randn(5, 3), torch.randn(5, 2)
    output = fusion(x, y)
    assert_close(output.fused, fusion.projection(torch.cat([x, y], dim=1)))
    assert_close(output.image + output.text, output.fused)


def test_concat_equals_sum_when_its_matrix_is_put_together():
    sum_fusion, concat = SumFusion(3, 2, 4), ConcatFusion(3, 2, 4)
    with torch.no_grad():
        concat.projection.weight.copy_(
            torch.cat([sum_fusion.image_projection.weight, sum_fusion.text_projection.weight], dim=1)
        )
        concat.projection.bias.copy_(sum_fusion.image_projection.bias)
    x, y = torch.randn(50, 3), torch.randn(50, 2)
    assert torch.equal(concat(x, y).fused, sum_fusion(x, y).fused)
    count = [sum(p.numel() for p in m.parameters()) for m in (sum_fusion, concat)]
    assert count == [3 * 4 + 2 * 4 + 4] * 2


def test_film():
    fusion = constant(FiLM(3, 2, 4), weight=1.0, bias=0.5)
    # γ = β = 9.5; out = Σᵢ (9.5 xᵢ + 9.5) + 0.5 = 9.5·6 + 3·9.5 + 0.5
    output = fusion(X, Y)
    assert_close(output.fused, torch.full((1, 4), 86.0))
    assert_close(output.text, torch.full((1, 6), 9.5))
    assert_close(output.image, X)
    other = constant(FiLM(3, 2, 4, conditioned_on="image"))(X, Y)  # γ = β = 6; out = 6·9 + 2·6
    assert_close(other.fused, torch.full((1, 4), 66.0))
    assert other.image.shape == (1, 4)
    assert other.text.shape == (1, 2)


def test_film_starts_near_the_identity():
    fusion = FiLM(3, 2, 4)
    nn.init.zeros_(fusion.condition.weight)
    nn.init.zeros_(fusion.condition.bias[3:])
    assert_close(fusion(X, Y).fused, fusion.out_projection(X))


@pytest.mark.parametrize(("conditioned_on", "sizes"), [("text", (3, 2, 4)), ("image", (3, 2, 4)), ("text", (2, 7, 1))])
def test_film_works_for_different_sizes_where_the_published_split_fails(conditioned_on, sizes):
    image_dim, text_dim, out_dim = sizes
    fusion = FiLM(image_dim, text_dim, out_dim, conditioned_on)
    x, y = torch.randn(5, image_dim), torch.randn(5, text_dim)
    assert fusion(x, y).fused.shape == (5, out_dim)

    def published_split(condition, modulated):
        """The defect: [γ ; β] is cut into pieces of the *conditioning* input's size."""
        film = fusion.condition(condition)
        gamma, beta = torch.split(film, condition.shape[-1], dim=1)
        return fusion.out_projection(gamma * modulated + beta)

    condition, modulated = (y, x) if conditioned_on == "text" else (x, y)
    with pytest.raises((ValueError, RuntimeError), match=r"values to unpack|must match"):
        published_split(condition, modulated)


def test_the_published_film_split_agrees_where_both_sizes_are_equal():
    fusion = FiLM(4, 4, 4)
    x, y = torch.randn(5, 4), torch.randn(5, 4)
    gamma, beta = torch.split(fusion.condition(y), 4, dim=1)
    assert_close(fusion.out_projection(gamma * x + beta), fusion(x, y).fused)


def test_gated():
    x, y = torch.full((1, 3), 1 / 3), torch.zeros(1, 2)
    # gate by text: σ(0) ⊙ 1, summed over 4 features; by image: σ(1) ⊙ 0
    assert_close(constant(GatedFusion(3, 2, 4))(x, y).fused, torch.full((1, 4), 2.0))
    assert_close(constant(GatedFusion(3, 2, 4, gate="image"))(x, y).fused, torch.zeros(1, 4))
    by_image = constant(GatedFusion(3, 2, 4, gate="image"))(x, torch.ones(1, 2))
    assert_close(by_image.fused, torch.full((1, 4), 4 * torch.tensor(1.0).sigmoid().item() * 2))


def test_product():
    output = constant(ProductFusion(3, 2, 4))(X, Y)
    assert_close(output.fused, torch.full((1, 4), 4 * 54.0))
    assert_close(output.image, torch.full((1, 4), 6.0))


def test_mfb():
    fusion = constant(MFB(3, 2, 4, factor=2))
    assert_close(fusion(X, Y).fused, torch.full((1, 4), 0.5))  # four equal entries, norm 1
    assert_close(fusion(-X, Y).fused, torch.full((1, 4), -0.5))  # the root keeps the sign
    fusion = MFB(3, 2, 4, factor=2).eval()
    x, y = torch.randn(5, 3), torch.randn(5, 2)
    products = fusion.image_projection(x) * fusion.text_projection(y)
    z = products[:, 0::2] + products[:, 1::2]
    z = z.sign() * z.abs().sqrt()
    assert_close(fusion(x, y).fused, z / z.norm(dim=1, keepdim=True), rtol=1e-4, atol=1e-5)
    assert_close(fusion(x, y).fused.norm(dim=1), torch.ones(5))


def test_mfb_has_a_finite_gradient_at_zero():
    x = torch.zeros(1, 3, requires_grad=True)
    constant(MFB(3, 2, 4))(x, Y).fused.sum().backward()
    assert x.grad.isfinite().all()


def test_tensor_fusion_is_the_outer_product_with_ones():
    fusion = TensorFusion(3, 2, 4, dim=2)
    output = fusion(X, Y)
    x1, y1 = torch.cat([output.image[0], torch.ones(1)]), torch.cat([output.text[0], torch.ones(1)])
    assert_close(output.fused[0], fusion.tensor.weight @ torch.outer(x1, y1).flatten())
    assert fusion.tensor.weight.shape == (4, 9)


def test_low_rank_tensor_equals_the_full_tensor_of_that_rank():
    d, out_dim, rank = 3, 4, 2
    full, low = TensorFusion(d, d, out_dim, dim=d), LowRankTensorFusion(d, d, out_dim, rank)
    with torch.no_grad():
        for projection in (full.image_projection, full.text_projection):
            projection.weight.copy_(torch.eye(d))
            projection.bias.zero_()
        a, b = (
            torch.cat([f.weight, f.bias[:, None]], dim=1).view(rank, out_dim, d + 1)  # (r, o, d + 1)
            for f in (low.image_factors, low.text_factors)
        )
        low.bias.copy_(torch.randn(out_dim))
        tensor = torch.einsum("roi,roj->oij", a, b)
        tensor[:, d, d] += low.bias  # the product of the two ones is the constant
        full.tensor.weight.copy_(tensor.flatten(1))
    x, y = torch.randn(20, d), torch.randn(20, d)
    assert_close(low(x, y).fused, full(x, y).fused, rtol=1e-5, atol=1e-5)
    assert torch.linalg.matrix_rank(torch.einsum("roi,roj->oij", a, b)).tolist() == [rank] * out_dim


PARAMETERS = {  # d_x = 10, d_y = 6, D = 8
    SumFusion: 10 * 8 + 8 + 6 * 8,
    ConcatFusion: 16 * 8 + 8,
    FiLM: (6 + 1) * 20 + (10 + 1) * 8,
    GatedFusion: (10 + 1) * 8 + (6 + 1) * 8 + (8 + 1) * 8,
    ProductFusion: (10 + 1) * 8 + (6 + 1) * 8 + (8 + 1) * 8,
    MFB: (10 + 1) * 40 + (6 + 1) * 40,
    TensorFusion: (10 + 1) * 32 + (6 + 1) * 32 + 33 * 33 * 8,
    LowRankTensorFusion: 4 * 8 * (10 + 6 + 2) + 8,
}


@pytest.mark.parametrize(("fusion_class", "count"), PARAMETERS.items())
def test_parameter_counts(fusion_class, count):
    assert sum(p.numel() for p in fusion_class(10, 6, 8).parameters()) == count


def interaction(fusion: VectorFusion) -> float:
    """Largest |s(x₁,y₁) − s(x₁,y₂) − s(x₂,y₁) + s(x₂,y₂)| of a linear head on the fused vector: 0 if it is additive."""
    score = nn.Linear(fusion.out_dim, 5)
    x1, x2, y1, y2 = torch.randn(2, 30, 10).unbind() + torch.randn(2, 30, 6).unbind()
    s = [score(fusion(x, y).fused) for x, y in ((x1, y1), (x1, y2), (x2, y1), (x2, y2))]
    return (s[0] - s[1] - s[2] + s[3]).abs().max().item()


@pytest.mark.parametrize("fusion_class", [SumFusion, ConcatFusion])
def test_sum_and_concat_with_a_linear_head_are_additive(fusion_class):
    assert interaction(fusion_class(10, 6, 8).eval()) < 1e-5


@pytest.mark.parametrize("fusion_class", [FiLM, GatedFusion, ProductFusion, MFB, TensorFusion, LowRankTensorFusion])
def test_the_multiplicative_fusions_interact(fusion_class):
    assert interaction(fusion_class(10, 6, 8).eval()) > 1e-2


@pytest.mark.parametrize(("fusion_class", "solved"), [(SumFusion, 2), (ConcatFusion, 2), (ProductFusion, 4)])
def test_exclusive_or_needs_a_product(fusion_class, solved):
    """Fit ±1 · ±1 by least squares on a linear head: additive models give 0 everywhere, a product is exact."""
    fusion = fusion_class(1, 1, 8).double()
    x = torch.tensor([[1.0], [1.0], [-1.0], [-1.0]], dtype=torch.double)
    y = torch.tensor([[1.0], [-1.0], [1.0], [-1.0]], dtype=torch.double)
    features = F.pad(fusion(x, y).fused.detach(), (0, 1), value=1.0)
    fit = features @ torch.linalg.lstsq(features, x * y, driver="gelsd").solution
    if solved == 4:
        assert_close(fit, x * y)
    else:
        assert_close(fit, torch.zeros_like(fit), rtol=0, atol=1e-8)


def test_a_fusion_must_say_how():
    with pytest.raises(NotImplementedError, match="VectorFusion must define fuse"):
        VectorFusion(2, 2, 2)(torch.ones(1, 2), torch.ones(1, 2))


def test_conditional_batch_norm_starts_as_the_plain_one():
    conditional, plain = ConditionalBatchNorm2d(4, 6), nn.BatchNorm2d(4)
    features, question = 3 + 2 * torch.randn(8, 4, 5, 5), torch.randn(8, 6)
    assert_close(conditional(features, question), plain(features))
    conditional.eval()
    plain.eval()
    assert_close(conditional(features, question), plain(features))  # same running statistics


def test_conditional_batch_norm_shifts_gamma_and_beta():
    norm = ConditionalBatchNorm2d(2, 1, hidden=1)
    with torch.no_grad():
        norm.weight.copy_(torch.tensor([2.0, 3.0]))
        norm.shift[0].weight.fill_(1.0)
        norm.shift[0].bias.fill_(0.0)
        norm.shift[2].weight.copy_(torch.tensor([[1.0], [0.0], [0.0], [5.0]]))  # Δγ = (q, 0), Δβ = (0, 5q)
    norm.eval()  # running mean 0, variance 1
    features = torch.ones(2, 2, 1, 1)
    out = norm(features, torch.tensor([[0.0], [2.0]])).flatten(1)
    assert_close(out, torch.tensor([[2.0, 3.0], [4.0, 13.0]]), rtol=1e-4, atol=1e-4)


def test_conditional_batch_norm_gradient():
    norm = ConditionalBatchNorm2d(4, 6)
    norm(torch.randn(8, 4, 5, 5), torch.randn(8, 6)).square().sum().backward()
    assert norm.shift[2].weight.grad.abs().max() > 0  # moves away from 0 in the first step
    assert norm.shift[0].weight.grad.abs().max() == 0  # and takes the first layer along from the second step on
