"""Attention written out and fused; early, late, hybrid; fuse-then-pool."""

import math

import pytest
import torch
from torch import nn
from torch.testing import assert_close

from vqa_core.fusion.blocks import CrossBlock, FeedForward, MultiHeadAttention, TransformerBlock
from vqa_core.fusion.stages import CrossAttentionReader, EarlyFusion, HybridFusion, LateFusion, TokenFusion
from vqa_core.fusion.vector import ConcatFusion, FiLM, ProductFusion, SumFusion


def some_mask(*shape):
    mask = torch.rand(*shape) > 0.4
    mask[:, 0] = True
    return mask


@pytest.mark.parametrize("masked", [False, True])
def test_explicit_and_fused_attention_agree(masked):
    block = TransformerBlock(8, heads=2)
    x, mask = torch.randn(4, 7, 8), some_mask(4, 7) if masked else None
    fused, nothing = block(x, mask)
    explicit, weights = block(x, mask, need_weights=True)
    assert nothing is None
    assert weights.shape == (4, 2, 7, 7)
    assert_close(explicit, fused, rtol=1e-5, atol=1e-6)
    cross = CrossBlock(8, heads=2)
    context, context_mask = torch.randn(4, 5, 8), some_mask(4, 5) if masked else None
    explicit, weights = cross(x, context, mask, context_mask, need_weights=True)
    assert weights.shape == (4, 2, 7, 5)
    assert_close(explicit, cross(x, context, mask, context_mask)[0], rtol=1e-5, atol=1e-6)


def test_gradients_of_explicit_and_fused_attention_agree():
    block, x, mask = TransformerBlock(8, heads=2), torch.randn(4, 7, 8), some_mask(4, 7)
    gradients = []
    for need_weights in (False, True):
        block.zero_grad()
        block(x, mask, need_weights)[0].square().sum().backward()
        gradients.append([p.grad.clone() for p in block.parameters()])
    assert_close(gradients[0], gradients[1], rtol=1e-4, atol=1e-4)


def test_attention_agrees_with_torch():
    ours, theirs = MultiHeadAttention(8, heads=2), nn.MultiheadAttention(8, 2, batch_first=True)
    with torch.no_grad():
        theirs.in_proj_weight.copy_(torch.cat([m.weight for m in (ours.query, ours.key, ours.value)]))
        theirs.in_proj_bias.copy_(torch.cat([m.bias for m in (ours.query, ours.key, ours.value)]))
        theirs.out_proj.load_state_dict(ours.out.state_dict())
    q, context, mask = torch.randn(4, 3, 8), torch.randn(4, 7, 8), some_mask(4, 7)
    want, want_weights = theirs(q, context, context, key_padding_mask=~mask, average_attn_weights=False)
    got, weights = ours(q, context, mask, need_weights=True)
    assert_close(got, want, rtol=1e-5, atol=1e-6)
    assert_close(weights, want_weights, rtol=1e-5, atol=1e-6)


def test_attention_closed_form():
    attention = MultiHeadAttention(4, heads=1)
    with torch.no_grad():
        for linear in (attention.query, attention.key, attention.value, attention.out):
            linear.weight.copy_(torch.eye(4))
            linear.bias.zero_()
    # scores 2·(0, log 3)/√4: weights 1/4 and 3/4
    q = torch.tensor([[[2.0, 0, 0, 0]]])
    context = torch.tensor([[[0.0, 1, 0, 0], [math.log(3), 0, 1, 0]]])
    read, weights = attention(q, context, need_weights=True)
    assert_close(weights, torch.tensor([[[[0.25, 0.75]]]]))
    assert_close(read, torch.tensor([[[0.75 * math.log(3), 0.25, 0.75, 0]]]))


@pytest.mark.parametrize("need_weights", [False, True])
def test_attention_over_nothing_reads_zero(need_weights):
    attention = MultiHeadAttention(8, heads=2)
    x, mask = torch.randn(2, 3, 8), torch.tensor([[True] * 3, [False] * 3])
    read, _ = attention(x, x, mask, need_weights)
    assert_close(read[1], attention.out.bias.expand(3, 8))
    read.sum().backward()
    assert all(p.grad.isfinite().all() for p in attention.parameters())


def test_returned_weights_are_those_used_in_training_too():
    attention = MultiHeadAttention(8, heads=2, dropout=0.5)
    x = torch.randn(2, 9, 8)
    read, weights = attention(x, x, need_weights=True)
    assert (weights == 0).any()
    values = attention.value(x).unflatten(-1, (2, 4)).transpose(1, 2)
    assert_close(read, attention.out((weights @ values).transpose(1, 2).flatten(2)))


def test_block_is_pre_norm():
    """Scaling a token's residual stream does not change what the branches add, because they read it normalised."""
    block = TransformerBlock(8, heads=2).eval()
    nn.init.zeros_(block.mlp[-1].weight)
    nn.init.zeros_(block.mlp[-1].bias)
    x = torch.randn(2, 5, 8) * 100
    assert_close(block(10 * x)[0] - 10 * x, block(x)[0] - x, rtol=1e-2, atol=1e-3)


def test_parameter_counts():
    def count(module):
        return sum(p.numel() for p in module.parameters())

    d = 8
    assert count(MultiHeadAttention(d, 2)) == 4 * (d * d + d)
    assert count(FeedForward(d)) == 2 * 4 * d * d + 5 * d
    assert count(TransformerBlock(d, 2)) == 12 * d * d + 13 * d
    assert count(CrossBlock(d, 2)) == 16 * d * d + 4 * d + 13 * d + 2 * d
    early = EarlyFusion(10, 6, d, depth=3, heads=2, image_length=49, text_length=12)
    assert count(early) == 3 * (12 * d * d + 13 * d) + (10 + 6) * d + 2 * d + (49 + 12) * d + d + 2 * d


def test_early_fusion_joins_before_any_encoder():
    """One block: each text token has read each image token."""
    early = EarlyFusion(4, 4, 8, depth=1, heads=2).eval()
    image, text = torch.randn(1, 49, 4), torch.randn(1, 3, 4)
    attention = early(image, text).attention  # (1, 2, 53, 53)
    assert (attention[:, :, 50:, 1:50] > 0).all()
    assert (attention[:, :, 1:50, 50:] > 0).all()


def test_early_fusion_knows_modality_and_position():
    early = EarlyFusion(4, 4, 8, heads=2, image_length=9, text_length=9).eval()
    same = torch.randn(1, 9, 4)
    with torch.no_grad():
        early.text_embedding.projection.load_state_dict(early.image_embedding.projection.state_dict())
        early.text_embedding.positions.copy_(early.image_embedding.positions)
    output = early(same, same)
    difference = early.image_embedding.modality - early.text_embedding.modality
    assert_close(output.image - output.text, difference.expand(1, 9, 8), rtol=1e-4, atol=1e-6)
    repeated = early(same[:, :1].expand(1, 9, 4), same)
    assert_close(repeated.image[0, 3] - repeated.image[0, 5], (p := early.image_embedding.positions)[3] - p[5])


@pytest.mark.parametrize("fusion_class", [EarlyFusion, CrossAttentionReader])
def test_too_many_tokens_are_refused(fusion_class):
    fusion = fusion_class(4, 4, 8, heads=2, image_length=49, text_length=5)
    with pytest.raises(ValueError, match="50 image tokens, but positions for 49"):
        fusion(torch.randn(1, 50, 4), torch.randn(1, 5, 4))
    with pytest.raises(ValueError, match="larger text_length"):
        fusion(torch.randn(1, 49, 4), torch.randn(1, 6, 4))


def test_reader_answer_token_without_image_attention_is_blind():
    """The plant: with the cross-attention's output set to zero, the picture no longer matters."""
    reader = CrossAttentionReader(4, 4, 8, heads=2).eval()
    text = torch.randn(2, 3, 4)
    pictures = torch.randn(2, 2, 49, 4)
    seen = [reader(p, text).fused for p in pictures]
    assert (seen[0] - seen[1]).abs().max() > 1e-4
    for block in reader.blocks:
        nn.init.zeros_(block.cross_attention.out.weight)
    blind = [reader(p, text).fused for p in pictures]
    assert torch.equal(blind[0], blind[1])


def late(rule, image_logits, text_logits, log_variances=None):
    """A LateFusion whose two classifiers give these logits, whatever they see."""
    fusion = LateFusion(3, 3, len(image_logits), rule)
    for i, (net, logits) in enumerate(((fusion.image_classifier, image_logits), (fusion.text_classifier, text_logits))):
        bias = logits if log_variances is None else [*logits, log_variances[i]]
        with torch.no_grad():
            net[-1].weight.zero_()
            net[-1].bias.copy_(torch.tensor(bias))
    return fusion(torch.randn(1, 3), torch.randn(1, 3))


def test_late_rules_closed_forms():
    log = math.log
    a, b = [log(0.8), log(0.2)], [log(0.5), log(0.5)]
    mean = late("mean", a, b).fused.exp()[0]
    assert_close(mean, torch.tensor([2 / 3, 1 / 3]))  # √(0.8·0.5) : √(0.2·0.5) = 2 : 1
    assert_close(late("vote", a, b).fused.exp()[0], torch.tensor([0.65, 0.35]))
    # variances 1 and 3: weights 3/4 and 1/4; logits differ by ¾ log 4, so the odds are 4^¾
    odds = 4**0.75
    variance = late("variance", a, b, [0.0, log(3)]).fused.exp()[0]
    assert_close(variance, torch.tensor([odds / (1 + odds), 1 / (1 + odds)]))
    assert_close(late("variance", a, b, [0.3, 0.3]).fused.exp()[0], mean)  # equal variances: the mean
    assert_close(late("variance", a, b, [-30.0, 30.0]).fused.exp()[0], torch.tensor([0.8, 0.2]))


@pytest.mark.parametrize("rule", ["mean", "vote", "variance"])
def test_late_fusion_gives_log_probabilities(rule):
    fusion = LateFusion(4, 3, 7, rule)
    output = fusion(torch.randn(5, 9, 4), torch.randn(5, 2, 3))
    assert fusion.out_dim == 7
    assert_close(output.fused.exp().sum(1), torch.ones(5))
    assert output.image.shape == output.text.shape == (5, 7)


def test_late_mean_has_no_interaction_and_variance_has():
    def interaction(rule):
        fusion = LateFusion(4, 3, 5, rule).double()
        x1, x2 = torch.randn(2, 20, 4, dtype=torch.double)
        y1, y2 = torch.randn(2, 20, 3, dtype=torch.double)
        s = [fusion(x, y).fused for x, y in ((x1, y1), (x1, y2), (x2, y1), (x2, y2))]
        log_odds = [t[:, :1] - t[:, 1:] for t in s]  # without the normaliser, which all answers share
        return (log_odds[0] - log_odds[1] - log_odds[2] + log_odds[3]).abs().max()

    assert interaction("mean") < 1e-12
    assert interaction("variance") > 1e-3
    assert interaction("vote") > 1e-4


def test_hybrid_has_all_three_branches():
    joint = EarlyFusion(4, 3, 8, heads=2)
    hybrid = HybridFusion(4, 3, 6, joint).eval()
    image, text = torch.randn(2, 9, 4), torch.randn(2, 5, 3)
    output = hybrid(image, text)
    branches = torch.cat([joint(image, text).fused, output.image, output.text], 1)
    assert branches.shape == (2, 8 + 6 + 6)
    assert_close(output.fused, hybrid.out_projection(branches))
    assert_close(output.image, hybrid.image_projection(image.mean(1)).relu())
    assert_close(output.attention, joint(image, text).attention)


@pytest.mark.parametrize("pool", ["max", "mean", "sum"])
def test_token_fusion_is_the_vector_fusion_at_every_token(pool):
    inner = FiLM(4, 3, 8)
    fusion = TokenFusion(inner, pool)
    image, text = torch.randn(2, 9, 4), torch.randn(2, 5, 3)
    mask = some_mask(2, 9)
    rows = []
    for b in range(2):
        each = torch.cat([inner(f[None], text[b].mean(0)[None]).fused for f in image[b][mask[b]]]).relu()
        rows.append({"max": each.amax(0), "mean": each.mean(0), "sum": each.sum(0)}[pool])
    assert_close(fusion(image, text, mask).fused, fusion.out_projection(torch.stack(rows)), rtol=1e-5, atol=1e-6)


def red_square_blue_circle():
    """Two pictures of four tokens with the same mean: colours and shapes of two objects are swapped."""
    red, blue, square, circle = torch.eye(4)
    empty = torch.zeros(4)
    return torch.stack(
        [
            torch.stack([red + square, blue + circle, empty, empty]),
            torch.stack([red + circle, blue + square, empty, empty]),
        ]
    )


def test_fuse_then_pool_tells_apart_what_pool_then_fuse_cannot():
    pictures, question = red_square_blue_circle(), torch.randn(1, 3).expand(2, 3)
    pooled_first = ProductFusion(4, 3, 8)(pictures, question).fused
    assert torch.equal(pooled_first[0], pooled_first[1])
    fused_first = TokenFusion(ProductFusion(4, 3, 8))(pictures, question).fused
    assert (fused_first[0] - fused_first[1]).abs().max() > 1e-3


@pytest.mark.parametrize("inner", [SumFusion, ConcatFusion, ProductFusion])
def test_the_question_is_not_copied_to_every_token(inner):
    met = inner(4, 3, 8).fuse(torch.randn(2, 49, 4), torch.randn(2, 1, 3))
    assert met.fused.shape == (2, 49, 8)
    assert met.text.shape == (2, 1, 8)
