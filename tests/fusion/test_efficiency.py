"""DropToken, shared layers, removed heads, pruned weights: what goes is gone, what stays is untouched."""

import pytest
import torch
from torch import nn
from torch.testing import assert_close

from vqa_core.fusion.blocks import MultiHeadAttention
from vqa_core.fusion.efficiency import (
    DropToken,
    attentions,
    drop_tokens,
    head_norms,
    nonzero,
    prune_heads,
    prune_weights,
    remove_heads,
    share_layers,
)
from vqa_core.fusion.transformer import LAYOUTS, JointLayer

EARLY = LAYOUTS["early_concatenation"]


def numbered(batch=200, n=10):
    """Tokens whose one feature is their number from 1, so that it can be seen which ones stay."""
    return torch.arange(1.0, n + 1).view(1, n, 1).expand(batch, n, 1)


def test_half_of_the_real_tokens_stay_in_their_order():
    tokens, mask = numbered(), torch.ones(200, 10, dtype=torch.bool)
    mask[:100, 5:] = False
    kept, left = drop_tokens(tokens, mask, 0.5)
    assert kept.shape == (200, 5, 1)
    assert left.sum(1).tolist() == [3] * 100 + [5] * 100  # ⌈5/2⌉ and 5
    for row, real in zip(kept[..., 0], left):
        assert (row[real].diff() > 0).all()
    assert kept[:100][left[:100]].max() <= 5
    share = torch.bincount(kept[100:][left[100:]].long().flatten(), minlength=11)[1:] / 100
    assert_close(share, torch.full((10,), 0.5), atol=0.2, rtol=0)  # every token has the same chance
    assert (kept[100:, :, 0] != kept[100, :, 0]).any()


def test_everything_may_stay():
    tokens, mask = torch.randn(3, 4, 2), torch.tensor([[True, True, False, True]]).expand(3, 4)
    kept, left = drop_tokens(tokens, mask, 1.0)
    assert torch.equal(kept[left], tokens[mask])
    with pytest.raises(ValueError, match=r"keep is 0"):
        drop_tokens(tokens, mask, 0)
    with pytest.raises(ValueError, match=r"must lie in \(0, 1\]"):
        DropToken(EARLY(3, 3, 8), keep=1.5)


def test_tokens_are_dropped_in_training_only():
    torch.manual_seed(0)
    fusion = DropToken(EARLY(3, 4, 8, heads=2), keep=0.5)
    image, text = torch.randn(2, 9, 3), torch.randn(2, 4, 4)
    assert fusion.out_dim == 8
    assert fusion(image, text, need_weights=True).attention.shape == (2, 2, 5 + 4, 5 + 4)
    assert not torch.equal(fusion(image, text).fused, fusion(image, text).fused)
    assert torch.equal(fusion.eval()(image, text).fused, fusion.fusion(image, text).fused)


def test_shared_layers_are_one_layer():
    layout = EARLY(3, 4, 8, depth=3, heads=2)
    one = sum(p.numel() for p in layout.layers[0].parameters())
    before = sum(p.numel() for p in layout.parameters())
    layout.layers = share_layers(layout.layers)
    assert len(layout.layers) == 3
    assert sum(p.numel() for p in layout.parameters()) == before - 2 * one
    layout(torch.randn(2, 5, 3), torch.randn(2, 4, 4)).fused.square().sum().backward()
    assert all(p.grad is not None for p in layout.parameters())
    with pytest.raises(ValueError, match="2 layers can't share"):
        share_layers(nn.ModuleList([JointLayer(8, 2, 4.0, 0.0), JointLayer(8, 2, 2.0, 0.0)]))


def test_a_removed_head_is_a_head_that_writes_nothing():
    attention, x = MultiHeadAttention(8, 4), torch.randn(2, 5, 8)
    mute = MultiHeadAttention(8, 4)
    mute.load_state_dict(attention.state_dict())
    with torch.no_grad():
        mute.out.weight[:, 2:4] = 0  # head 1
        mute.out.weight[:, 6:8] = 0  # head 3
    assert_close(head_norms(mute)[[1, 3]], torch.zeros(2))
    want, _ = mute(x, x)
    remove_heads(attention, [1, 3])
    got, weights = attention(x, x, need_weights=True)
    assert_close(got, want, rtol=1e-5, atol=1e-6)
    assert weights.shape == (2, 2, 5, 5)
    assert attention.query.weight.shape == (4, 8)
    assert attention.out.weight.shape == (8, 4)
    for wrong in ([0, 1], [5]):
        with pytest.raises(ValueError, match="can't go"):
            remove_heads(attention, wrong)


def test_the_weakest_heads_go_and_the_model_stays_as_it_was():
    layout = EARLY(3, 4, 8, heads=4)
    with torch.no_grad():
        for _, attention in attentions(layout):
            attention.out.weight[:, 4:6] *= 1e-3  # head 2
    before = {k: v.clone() for k, v in layout.state_dict().items()}
    image, text = torch.randn(2, 5, 3), torch.randn(2, 4, 4)
    pruned = prune_heads(layout, 0.25)
    assert [a.heads for _, a in attentions(pruned)] == [3, 3]
    assert_close(pruned(image, text).fused, layout(image, text).fused, rtol=1e-2, atol=1e-2)
    assert [a.heads for _, a in attentions(prune_heads(layout, 0.0))] == [4, 4]
    assert [a.heads for _, a in attentions(prune_heads(layout, 0.99))] == [1, 1]
    assert all(torch.equal(v, before[k]) for k, v in layout.state_dict().items())
    with pytest.raises(ValueError, match="share is 1"):
        prune_heads(layout, 1)


def test_pruning_zeroes_the_smallest_weights_of_all_layers_together():
    layout = EARLY(3, 4, 8, heads=2)
    linear = [m for m in layout.modules() if isinstance(m, nn.Linear)]
    every = torch.cat([m.weight.flatten() for m in linear]).abs()
    pruned = prune_weights(layout, 0.5)
    left = torch.cat([m.weight.flatten() for m in pruned.modules() if isinstance(m, nn.Linear)])
    assert int((left == 0).sum()) == round(0.5 * len(every))
    threshold = every.sort().values[round(0.5 * len(every))]
    assert (left[left != 0].abs() >= threshold).all()
    assert nonzero(layout) - nonzero(pruned) == round(0.5 * len(every))
    assert set(pruned.state_dict()) == set(layout.state_dict())  # no masks are left behind
    with pytest.raises(ValueError, match=r"share is -0\.1"):
        prune_weights(layout, -0.1)
