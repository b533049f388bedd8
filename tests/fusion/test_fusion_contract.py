"""What every fusion owes: shapes, masks, invariances, gradients."""

import pytest
import torch
from torch.testing import assert_close

from vqa_core.fusion.bilinear import BAN
from vqa_core.fusion.output import last_token, masked_mean, masked_softmax
from vqa_core.fusion.stacked import SAN
from vqa_core.fusion.stacked_linear import LinearSAN
from vqa_core.fusion.stages import CrossAttentionReader, EarlyFusion, HybridFusion, LateFusion, TokenFusion
from vqa_core.fusion.vector import (
    MFB,
    ConcatFusion,
    FiLM,
    GatedFusion,
    LowRankTensorFusion,
    ProductFusion,
    SumFusion,
    TensorFusion,
)

B, N_IMAGE, N_TEXT = 3, 49, 6
IMAGE, TEXT, OUT = 10, 6, 8  # all different on purpose

VECTOR = {
    "sum": lambda: SumFusion(IMAGE, TEXT, OUT),
    "concat": lambda: ConcatFusion(IMAGE, TEXT, OUT),
    "film by text": lambda: FiLM(IMAGE, TEXT, OUT),
    "film by image": lambda: FiLM(IMAGE, TEXT, OUT, conditioned_on="image"),
    "gated by text": lambda: GatedFusion(IMAGE, TEXT, OUT),
    "gated by image": lambda: GatedFusion(IMAGE, TEXT, OUT, gate="image"),
    "product": lambda: ProductFusion(IMAGE, TEXT, OUT),
    "mfb": lambda: MFB(IMAGE, TEXT, OUT, factor=3, dropout=0.0),
    "tensor": lambda: TensorFusion(IMAGE, TEXT, OUT, dim=4),
    "low-rank tensor": lambda: LowRankTensorFusion(IMAGE, TEXT, OUT, rank=3),
}
POSITIONED = {  # these know where an image token is
    "early": lambda: EarlyFusion(IMAGE, TEXT, OUT, heads=2),
    "early, mean": lambda: EarlyFusion(IMAGE, TEXT, OUT, heads=2, readout="mean"),
    "reader": lambda: CrossAttentionReader(IMAGE, TEXT, OUT, heads=2),
    "reader, mean": lambda: CrossAttentionReader(IMAGE, TEXT, OUT, heads=2, readout="mean"),
    "hybrid": lambda: HybridFusion(IMAGE, TEXT, OUT, EarlyFusion(IMAGE, TEXT, 4, heads=2)),
}
SETS = {  # these see a set of image tokens
    **VECTOR,
    "san": lambda: SAN(IMAGE, TEXT, OUT),
    "san, mean": lambda: SAN(IMAGE, TEXT, OUT, stacks=3, question="mean"),
    "linear san": lambda: LinearSAN(IMAGE, TEXT, OUT),
    "ban": lambda: BAN(IMAGE, TEXT, OUT),
    "late, mean": lambda: LateFusion(IMAGE, TEXT, OUT, rule="mean"),
    "late, vote": lambda: LateFusion(IMAGE, TEXT, OUT, rule="vote"),
    "late, variance": lambda: LateFusion(IMAGE, TEXT, OUT, rule="variance"),
    "token max": lambda: TokenFusion(FiLM(IMAGE, TEXT, OUT), pool="max"),
    "token mean": lambda: TokenFusion(MFB(IMAGE, TEXT, OUT, dropout=0.0), pool="mean"),
    "token sum": lambda: TokenFusion(TensorFusion(IMAGE, TEXT, OUT), pool="sum"),
}
ALL = {**SETS, **POSITIONED}


def fusions(table):
    return pytest.mark.parametrize("make", table.values(), ids=table.keys())


@pytest.fixture
def inputs():
    image, text = torch.randn(B, N_IMAGE, IMAGE), torch.randn(B, N_TEXT, TEXT)
    image_mask, text_mask = torch.ones(B, N_IMAGE, dtype=torch.bool), torch.ones(B, N_TEXT, dtype=torch.bool)
    image_mask[0, 40:] = False
    text_mask[1, 2:] = False
    return image, text, image_mask, text_mask


@fusions(ALL)
def test_fused_vector_has_out_dim_and_is_finite(make, inputs):
    fusion = make().eval()
    fused = fusion(*inputs).fused
    assert fused.shape == (B, fusion.out_dim) == (B, OUT)
    assert fused.isfinite().all()


@fusions(ALL)
def test_bfloat16_autocast_is_close_to_float32(make, inputs):
    fusion = make().eval()
    with torch.autocast("cpu", torch.bfloat16):
        got = fusion(*inputs).fused
    want = fusion(*inputs).fused
    assert_close(got.float(), want, rtol=0.1, atol=0.1 * want.abs().max().item())


@fusions(ALL)
def test_masks_of_ones_equal_no_masks(make, inputs):
    fusion = make().eval()
    image, text = inputs[:2]
    ones = [torch.ones(t.shape[:2], dtype=torch.bool) for t in (image, text)]
    assert_close(fusion(image, text, *ones).fused, fusion(image, text).fused, rtol=1e-6, atol=1e-6)


@fusions(ALL)
def test_padding_changes_nothing(make, inputs):
    fusion = make().eval()
    image, text, image_mask, text_mask = inputs
    want = fusion(*inputs)

    def pad(tokens, mask, n):
        garbage = 100 * torch.randn(B, n, tokens.shape[-1])
        tokens = torch.where(mask.unsqueeze(-1), tokens, 100 * torch.randn_like(tokens))
        return torch.cat([tokens, garbage], 1), torch.cat([mask, torch.zeros(B, n, dtype=torch.bool)], 1)

    long_image, long_image_mask = pad(image, image_mask, 7)
    long_text, long_text_mask = pad(text, text_mask, 5)
    got = fusion(long_image, long_text, long_image_mask, long_text_mask)
    assert_close(got.fused, want.fused, rtol=1e-6, atol=1e-6)


@fusions(ALL)
def test_real_tokens_do_change_the_result(make, inputs):
    """The guard of the test above: a fusion that ignores its inputs would pass it."""
    fusion = make().eval()
    image, text, image_mask, text_mask = inputs
    want = fusion(*inputs).fused
    other_image, other_text = image.clone(), text.clone()
    other_image[:, 0] += 5
    other_text[:, 1] += 1  # a real word in all rows, and the last one of row 1
    other_text[:, -1] += 1
    assert (fusion(other_image, text, image_mask, text_mask).fused - want).abs().amax(1).min() > 1e-5
    assert (fusion(image, other_text, image_mask, text_mask).fused - want).abs().amax(1).min() > 1e-5


@fusions(SETS)
def test_image_tokens_are_a_set(make, inputs):
    fusion = make().eval()
    image, text, image_mask, text_mask = inputs
    order = torch.randperm(N_IMAGE)
    got = fusion(image[:, order], text, image_mask[:, order], text_mask)
    want = fusion(*inputs)
    assert_close(got.fused, want.fused, rtol=1e-5, atol=1e-6)
    if want.attention is not None:
        assert_close(got.attention, want.attention[..., order], rtol=1e-5, atol=1e-6)


@fusions(POSITIONED)
def test_positioned_fusions_are_not_permutation_invariant(make, inputs):
    fusion = make().eval()
    image, text, *masks = inputs
    assert (fusion(image.flip(1), text, masks[0].flip(1), masks[1]).fused - fusion(*inputs).fused).abs().max() > 1e-5


@fusions(ALL)
def test_a_batch_can_be_split(make, inputs):
    fusion = make().eval()
    whole = fusion(*inputs).fused
    parts = torch.cat([fusion(*(t[i : i + 1] for t in inputs)).fused for i in range(B)])
    assert_close(parts, whole, rtol=1e-5, atol=1e-6)


@fusions(ALL)
def test_gradient_reaches_every_parameter(make, inputs):
    fusion = make()
    fused = fusion(*inputs).fused
    (fused * torch.randn_like(fused)).sum().backward()
    for name, parameter in fusion.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.abs().max() > 0, name
        assert parameter.grad.isfinite().all(), name


@fusions(ALL)
def test_padding_gets_no_gradient(make, inputs):
    image, text, image_mask, text_mask = inputs
    image.requires_grad_()
    text.requires_grad_()
    make()(*inputs).fused.square().sum().backward()
    assert (image.grad[~image_mask] == 0).all()
    assert (text.grad[~text_mask] == 0).all()


@fusions(ALL)
def test_a_row_without_real_tokens_is_defined_and_leaves_the_others_alone(make, inputs):
    fusion = make()
    image, text, image_mask, text_mask = inputs
    want = fusion.eval()(*inputs).fused
    image_mask, text_mask = image_mask.clone(), text_mask.clone()
    image_mask[2] = text_mask[2] = False
    got = fusion(image, text, image_mask, text_mask).fused
    assert got.isfinite().all()
    assert_close(got[:2], want[:2], rtol=1e-6, atol=1e-6)
    got.sum().backward()
    assert all(p.grad is None or p.grad.isfinite().all() for p in fusion.parameters())


ATTENTIVE = {k: v for k, v in ALL.items() if k.split(",")[0] in ("san", "early", "reader", "hybrid")}


@fusions(ATTENTIVE)
def test_attention_rows_sum_to_one_over_real_tokens(make, inputs):
    image_mask, text_mask = inputs[2:]
    attention = make().eval()(*inputs).attention
    assert_close(attention.sum(-1), torch.ones(attention.shape[:3]))
    keys = attention.shape[-1]
    if keys == N_IMAGE:
        mask = image_mask
    else:  # [answer token ; image ; text]
        ones = torch.ones(B, keys - N_IMAGE - N_TEXT, dtype=torch.bool)
        mask = torch.cat([ones, image_mask, text_mask], 1)
    assert (attention.masked_select(~mask[:, None, None, :]) == 0).all()
    assert (attention.masked_select(mask[:, None, None, :]) > 0).all()


@pytest.mark.parametrize(
    ("make", "shape"),
    [
        (ALL["san, mean"], (B, 3, 1, N_IMAGE)),
        (ALL["ban"], (B, 2, N_TEXT, N_IMAGE)),
        (ALL["early"], (B, 2, 1, 1 + N_IMAGE + N_TEXT)),
        (ALL["early, mean"], (B, 2, N_IMAGE + N_TEXT, N_IMAGE + N_TEXT)),
        (ALL["reader"], (B, 2, 1 + N_TEXT, N_IMAGE)),
        (ALL["reader, mean"], (B, 2, N_TEXT, N_IMAGE)),
    ],
)
def test_attention_shapes(make, shape, inputs):
    assert make()(*inputs).attention.shape == shape


@pytest.mark.parametrize(
    "make",
    [
        lambda: MFB(IMAGE, TEXT, OUT, dropout=0.5),
        lambda: SAN(IMAGE, TEXT, OUT, dropout=0.5),
        lambda: LinearSAN(IMAGE, TEXT, OUT, dropout=0.5),
        lambda: BAN(IMAGE, TEXT, OUT, dropout=0.5),
        lambda: EarlyFusion(IMAGE, TEXT, OUT, heads=2, dropout=0.5),
        lambda: CrossAttentionReader(IMAGE, TEXT, OUT, heads=2, dropout=0.5),
    ],
)
def test_dropout_works_in_training_and_is_off_in_evaluation(make, inputs):
    fusion = make()
    assert not torch.equal(fusion(*inputs).fused, fusion(*inputs).fused)
    fusion.eval()
    assert torch.equal(fusion(*inputs).fused, fusion(*inputs).fused)


@fusions({k: v for k, v in ALL.items() if k not in POSITIONED})
def test_pooled_vectors_are_the_case_of_one_token(make):
    fusion = make().eval()
    x, y = torch.randn(B, IMAGE), torch.randn(B, TEXT)
    assert_close(fusion(x, y).fused, fusion(x[:, None], y[:, None]).fused)


@fusions(ALL)
def test_wrong_inputs_are_named(make, inputs):
    fusion = make()
    image, text, image_mask, text_mask = inputs
    with pytest.raises(ValueError, match=r"image_tokens has 6 features.*image_dim=10"):
        fusion(text, text)
    with pytest.raises(ValueError, match="text_tokens has 10 features"):
        fusion(image, image)
    with pytest.raises(ValueError, match=r"image_mask is torch\.float32"):
        fusion(image, text, image_mask.float(), text_mask)
    with pytest.raises(ValueError, match=r"text_mask is torch.bool \(3, 49\)"):
        fusion(image, text, image_mask, image_mask)
    with pytest.raises(ValueError, match="image_tokens has shape"):
        fusion(image[0, 0], text)


def test_masked_mean_ignores_even_nan():
    tokens = torch.tensor([[[1.0, 2.0], [3.0, 6.0], [torch.nan, torch.inf]]])
    mask = torch.tensor([[True, True, False]])
    assert_close(masked_mean(tokens, mask), torch.tensor([[2.0, 4.0]]))
    assert_close(masked_mean(tokens, ~mask & False), torch.zeros(1, 2))


def test_last_token_is_the_last_real_one():
    tokens = torch.arange(12.0).view(2, 3, 2)
    mask = torch.tensor([[True, True, False], [True, True, True]])
    assert_close(last_token(tokens, mask), torch.tensor([[2.0, 3.0], [10.0, 11.0]]))
    assert_close(last_token(tokens), tokens[:, 2])


def test_masked_softmax_closed_form():
    scores = torch.tensor([[0.0, torch.tensor(3.0).log(), 50.0]])
    mask = torch.tensor([[True, True, False]])
    assert_close(masked_softmax(scores, mask), torch.tensor([[0.25, 0.75, 0.0]]))
    assert_close(masked_softmax(scores, mask & False), torch.zeros(1, 3))
    both = masked_softmax(torch.zeros(1, 2, 3), mask[:, None], dim=(-2, -1))
    assert_close(both, torch.tensor([[[0.25, 0.25, 0.0], [0.25, 0.25, 0.0]]]))


@pytest.mark.parametrize(
    "make",
    [
        lambda: FiLM(2, 2, 2, conditioned_on="words"),
        lambda: GatedFusion(2, 2, 2, gate="words"),
        lambda: MFB(2, 2, 2, factor=0),
        lambda: LowRankTensorFusion(2, 2, 2, rank=0),
        lambda: SAN(2, 2, 2, stacks=0),
        lambda: SAN(2, 2, 2, question="first"),
        lambda: LinearSAN(2, 2, 2, stacks=0),
        lambda: BAN(2, 2, 2, glimpses=0),
        lambda: EarlyFusion(2, 2, 2, heads=2, depth=0),
        lambda: EarlyFusion(2, 2, 2, heads=2, readout="class"),
        lambda: CrossAttentionReader(2, 2, 2, heads=2, depth=0),
        lambda: CrossAttentionReader(2, 2, 3, heads=2),
        lambda: LateFusion(2, 2, 2, rule="max"),
        lambda: TokenFusion(SumFusion(2, 2, 2), pool="median"),
    ],
)
def test_impossible_options_are_refused(make):
    with pytest.raises(ValueError, match=r"is -?\d|allowed are|is not a multiple"):
        make()
