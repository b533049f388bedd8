"""The encoder of volumes: cells and what they see, order of tokens, gradients of one volume, refusals."""

import pytest
import torch
from torch.testing import assert_close

from vqa_core.encoders.volume import VolumeCNN


def test_a_token_sees_its_own_cell_and_three_voxels_around_it():
    encoder = VolumeCNN(4, (16, 12, 20), width=3).eval()
    with torch.no_grad():
        for p in encoder.parameters():
            p.abs_()  # so that no ReLU hides anything
    volumes = torch.ones(1, 16, 12, 20, requires_grad=True)
    tokens = encoder(volumes).tokens
    assert tokens.shape == (1, 8 * 6 * 10, 4)
    place = (4, 3, 5)
    tokens[0, (place[0] * 6 + place[1]) * 10 + place[2]].sum().backward()
    seen = volumes.grad[0].nonzero()
    assert seen.min(0).values.tolist() == [2 * p - 3 for p in place]
    assert seen.max(0).values.tolist() == [2 * p + 4 for p in place]  # the cell is 2p and 2p + 1: three more a side


def test_volumes_do_not_see_each_other_in_evaluation():
    encoder, volumes = VolumeCNN(4, (8, 8, 8)).eval(), torch.randn(3, 8, 8, 8)
    whole = encoder(volumes).tokens
    for i in range(3):
        assert_close(encoder(volumes[i : i + 1]).tokens, whole[i : i + 1], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("batch", [1, 2])
def test_gradients_are_those_of_finite_differences(batch):
    torch.manual_seed(0)
    encoder = VolumeCNN(2, (4, 4, 4), width=2).double()
    volumes = torch.randn(batch, 4, 4, 4, dtype=torch.float64, requires_grad=True)
    mix = torch.randn(8, 2, dtype=torch.float64)
    assert torch.autograd.gradcheck(lambda x: (encoder(x).tokens * mix).sum(), (volumes,))


def test_refuses_what_does_not_fit():
    with pytest.raises(ValueError, match="even numbers"):
        VolumeCNN(4, (8, 7, 8))
    with pytest.raises(ValueError, match=r"expected \(B, 8, 8, 8\)"):
        VolumeCNN(4, (8, 8, 8))(torch.zeros(2, 1, 8, 8, 8))
