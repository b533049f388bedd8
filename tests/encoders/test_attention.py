"""Attention from scratch against PyTorch's, and the two masks: the added one, and the multiplied one that is wrong."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from vqa_core.encoders.attention import SelfAttention, additive_mask, attention, causal_mask

LEFT_OUT = -math.inf


def ours_and_torchs(dim=24, heads=4):
    theirs = nn.MultiheadAttention(dim, heads, batch_first=True).double().eval()
    nn.init.normal_(theirs.in_proj_bias)  # zero by default: a bias that is left out would not be seen
    nn.init.normal_(theirs.out_proj.bias)
    return SelfAttention.from_torch(theirs), theirs


@pytest.mark.parametrize("masked", [False, True])
def test_heads_equal_those_of_pytorch(masked):
    ours, theirs = ours_and_torchs()
    x, mask = torch.randn(2, 5, 24, dtype=torch.float64), causal_mask(5).double() if masked else None
    expected, weights = theirs(x, x, x, attn_mask=mask, need_weights=True, average_attn_weights=False)
    for need_weights in (True, False):
        read, own = ours(x, mask, need_weights)
        torch.testing.assert_close(read, expected, atol=1e-6, rtol=0)
    assert own is None
    torch.testing.assert_close(ours(x, mask, True)[1], weights, atol=1e-6, rtol=0)


def test_the_copied_weights_are_in_use():
    ours, theirs = ours_and_torchs()
    x = torch.randn(2, 5, 24, dtype=torch.float64)
    before = ours(x)[0]
    with torch.no_grad():
        theirs.in_proj_weight.add_(1.0)
    torch.testing.assert_close(ours(x)[0], before)  # a copy, not a view
    assert not torch.allclose(SelfAttention.from_torch(theirs)(x)[0], before)


def test_closed_form():
    """Two keys, one of which the query matches by ln 3 · √d: weights 3/4 and 1/4."""
    query, keys = torch.tensor([[1.0, 0, 0, 0]]), torch.tensor([[2 * math.log(3), 0, 0, 0], [0.0, 5, 5, 5]])
    read, weights = attention(query, keys, torch.tensor([[4.0], [8.0]]))
    torch.testing.assert_close(weights, torch.tensor([[0.75, 0.25]]))
    torch.testing.assert_close(read, torch.tensor([[5.0]]))


def test_the_causal_mask_hides_what_comes_later():
    ours, _ = ours_and_torchs()
    x = torch.randn(1, 6, 24, dtype=torch.float64)
    changed = x.clone()
    changed[:, 3:] += 1
    mask = causal_mask(6).double()
    same = (ours(x, mask)[0] - ours(changed, mask)[0]).abs().amax(-1)[0]
    assert (same[:3] < 1e-12).all()
    assert (same[3:] > 1e-3).all()
    assert ((ours(x)[0] - ours(changed)[0]).abs().amax(-1) > 1e-3).all()  # without it, everything moves


def test_order_of_tokens_is_not_seen():
    ours, _ = ours_and_torchs()
    x, order = torch.randn(2, 6, 24, dtype=torch.float64), torch.randperm(6)
    torch.testing.assert_close(ours(x[:, order])[0], ours(x)[0][:, order])


def test_multiplying_by_the_mask_is_wrong():
    """Scores of a 3 × 3 example times 1 / −∞: a negative score becomes +∞, a zero NaN, and what is left is no mask."""
    scores = torch.tensor([[1.0, -2.0, 0.5], [0.0, 1.0, 0.0], [2.0, 1.0, -1.0]])
    added = (scores + causal_mask(3)).softmax(-1)
    torch.testing.assert_close(added.sum(-1), torch.ones(3))
    assert torch.equal(added.triu(1), torch.zeros(3, 3))
    factors = torch.ones(3, 3).masked_fill(torch.ones(3, 3).triu(1).bool(), LEFT_OUT)
    product = scores * factors
    assert product[0, 1] == math.inf  # negative times −∞: the hidden entry wins
    assert product[0, 2] == LEFT_OUT  # a positive score happens to come out right
    assert product[1, 2].isnan()  # zero times −∞
    wrong = product.softmax(-1)
    assert wrong[0].isnan().any()  # ∞ − ∞ inside the softmax
    assert wrong[1].isnan().any()
    torch.testing.assert_close(wrong[2], added[2])  # only the row without a masked entry is right


def test_errors_say_what_to_do():
    with pytest.raises(ValueError, match="make it with additive_mask"):
        attention(torch.zeros(2, 4), torch.zeros(2, 4), torch.zeros(2, 4), torch.ones(2, 2, dtype=torch.bool))
    with pytest.raises(ValueError, match="may look nowhere"):
        additive_mask(torch.tensor([[True, False], [False, False]]))
    with pytest.raises(ValueError, match="give bool"):
        additive_mask(torch.ones(2, 2))
    with pytest.raises(ValueError, match="not a multiple of heads=5"):
        SelfAttention(24, 5)
    for options in ({"bias": False}, {"add_bias_kv": True}, {"add_zero_attn": True}, {"kdim": 8}):
        with pytest.raises(ValueError, match="can't be copied"):
            SelfAttention.from_torch(nn.MultiheadAttention(24, 4, **options))
