"""AttendFusion in closed form: a softmax over the tokens and one constant 0 for "nothing here"."""

import torch

from vqa_core.fusion.stages import AttendFusion
from vqa_core.fusion.vector import SumFusion


def one_head():
    fusion = AttendFusion(SumFusion(2, 3, 4), heads=1)
    with torch.no_grad():
        fusion.look.weight.zero_()
        fusion.look.bias.copy_(torch.tensor([1.0, 0.0]))  # the score of a token is its first feature
        fusion.bias.fill_(0.5)
    return fusion


def test_weights_are_a_softmax_with_a_zero_for_nothing():
    scores = torch.tensor([1.0, -2.0, 0.25])
    image = torch.stack([scores, torch.zeros(3)], dim=1).unsqueeze(0)  # (1, 3, 2)
    weights = one_head()(image, torch.randn(1, 3)).attention.flatten()
    expected = (scores + 0.5).exp() / (1 + (scores + 0.5).exp().sum())
    torch.testing.assert_close(weights, expected)


def test_a_head_that_finds_nothing_reads_zeros():
    fusion, text = one_head(), torch.randn(1, 3)
    far = torch.tensor([[[-60.0, 7.0], [-60.0, 7.0]]])  # (1, 2, 2)
    nothing = fusion.fusion.fuse(torch.zeros(1, 2), text).fused
    torch.testing.assert_close(fusion(far, text).fused, nothing)
