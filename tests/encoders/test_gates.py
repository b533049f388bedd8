"""LSTM and GRU written out give what PyTorch's give, and read from left to right."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from vqa_core.encoders.gates import gru, lstm

BOTH = pytest.mark.parametrize(("ours", "kind"), [(lstm, nn.LSTM), (gru, nn.GRU)])


@BOTH
def test_states_are_those_of_pytorch(ours, kind):
    theirs, x = kind(5, 7, batch_first=True).double(), torch.randn(3, 6, 5, dtype=torch.float64)
    torch.testing.assert_close(ours(theirs, x), theirs(x)[0], atol=1e-6, rtol=0)


@BOTH
def test_gradients_reach_every_weight_alike(ours, kind):
    theirs, x = kind(5, 7, batch_first=True).double(), torch.randn(3, 6, 5, dtype=torch.float64)
    own = torch.autograd.grad(ours(theirs, x).pow(2).sum(), theirs.parameters())
    expected = torch.autograd.grad(theirs(x)[0].pow(2).sum(), theirs.parameters())
    for a, b in zip(own, expected, strict=True):
        torch.testing.assert_close(a, b)
        assert b.any()


@BOTH
def test_later_words_change_no_earlier_state(ours, kind):
    theirs, x = kind(5, 7, batch_first=True), torch.randn(1, 6, 5)
    padded = torch.cat([x[:, :3], torch.full((1, 3, 5), 9.0)], dim=1)
    torch.testing.assert_close(ours(theirs, padded)[:, :3], ours(theirs, x)[:, :3])


@BOTH
def test_other_forms_are_refused(ours, kind):
    for options in ({}, {"batch_first": True, "num_layers": 2}, {"batch_first": True, "bidirectional": True}):
        with pytest.raises(ValueError, match="not written out here"):
            ours(kind(5, 7, **options), torch.randn(1, 2, 5))
    with pytest.raises(ValueError, match="not written out here"):
        ours(nn.RNN(5, 7, batch_first=True), torch.randn(1, 2, 5))
