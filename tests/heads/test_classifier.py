import pytest
import torch
from torch import nn
from torch.testing import assert_close

from vqa_core.heads.classifier import LinearHead, MLPHead


def test_linear_head():
    head = LinearHead(4, 3)
    nn.init.ones_(head.weight)
    nn.init.constant_(head.bias, 0.5)
    assert_close(head(torch.tensor([[1.0, 2.0, 3.0, 4.0]])), torch.full((1, 3), 10.5))
    assert sum(p.numel() for p in head.parameters()) == 4 * 3 + 3


def test_mlp_head():
    head = MLPHead(4, 3, hidden=5)
    first, last = head.layers[0][0], head.layers[-1]
    x = torch.randn(2, 4)
    assert_close(head(x), last(first(x).relu()))
    assert sum(p.numel() for p in head.parameters()) == 4 * 5 + 5 + 5 * 3 + 3
    assert MLPHead(4, 3).layers[0][0].out_features == 4
    head(x).square().sum().backward()
    assert all(p.grad.abs().max() > 0 for p in head.parameters())


def test_mlp_head_dropout():
    head, x = MLPHead(4, 3, hidden=50, dropout=0.5), torch.randn(2, 4)
    assert not torch.equal(head(x), head(x))
    head.eval()
    assert torch.equal(head(x), head(x))


def test_mlp_head_lets_a_sum_solve_exclusive_or():
    """A hidden layer after the sum makes the modalities interact: x ⊕ y = |x − y| = ReLU(x − y) + ReLU(y − x)."""
    head = MLPHead(2, 1, hidden=2)
    with torch.no_grad():
        head.layers[0][0].weight.copy_(torch.tensor([[1.0, -1.0], [-1.0, 1.0]]))
        head.layers[0][0].bias.zero_()
        head.layers[-1].weight.fill_(1.0)
        head.layers[-1].bias.zero_()
    corners = torch.tensor([[0.0, 0.0], [0.0, 1.0], [1.0, 0.0], [1.0, 1.0]])
    assert_close(head(corners), torch.tensor([[0.0], [1.0], [1.0], [0.0]]))


def test_depth_is_the_number_of_hidden_layers():
    head = MLPHead(4, 3, hidden=5, depth=3)
    shapes = [tuple(p.shape) for p in head.parameters() if p.ndim == 2]
    assert shapes == [(5, 4), (5, 5), (5, 5), (3, 5)]
    with pytest.raises(ValueError, match="at least 1 hidden layer"):
        MLPHead(4, 3, depth=0)
