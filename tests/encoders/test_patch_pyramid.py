"""The pyramid of patches: cut in reading order, a strided convolution, blind to what it must not see."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch.nn import functional as F
from torch.testing import assert_close

from vqa_core.encoders.patch_pyramid import PatchPyramid, patches_of


def test_patches_are_in_reading_order():
    picture = np.arange(64, dtype=np.uint8).reshape(1, 8, 8)
    patches = patches_of(picture, 4)
    assert patches.shape == (1, 4, 16)
    grey = (patches[0] + 1) * 127.5
    assert_close(grey[1].reshape(4, 4), torch.from_numpy(picture[0, :4, 4:]).float())
    assert_close(grey[2].reshape(4, 4), torch.from_numpy(picture[0, 4:, :4]).float())


def test_levels_are_strided_convolutions():
    pyramid = PatchPyramid(4, 16, (6, 5))
    pictures = np.random.default_rng(0).integers(0, 256, (2, 16, 16), dtype=np.uint8)
    x = torch.from_numpy(pictures).float().unsqueeze(1) / 127.5 - 1
    first, second = pyramid.levels
    x = F.conv2d(x, first.weight.reshape(6, 1, 4, 4), first.bias, stride=4).relu()
    kernel = second.weight.reshape(5, 2, 2, 6).permute(0, 3, 1, 2)
    x = F.conv2d(x, kernel, second.bias, stride=2).relu()
    expected = x.flatten(2).transpose(1, 2) + pyramid.positions
    assert_close(pyramid(patches_of(pictures, 4)).tokens, expected, rtol=1e-4, atol=1e-5)


def test_a_token_sees_its_own_cell_only():
    pyramid, patches = PatchPyramid(4, 3, (6, 5)), torch.randn(1, 16, 3, requires_grad=True)
    pyramid(patches).tokens[0, 1].sum().backward()  # first row, second column: patches 2, 3, 6, 7
    touched = patches.grad[0].abs().sum(1).nonzero().flatten().tolist()
    assert set(touched) <= {2, 3, 6, 7}
    assert touched


def test_gradient_reaches_every_parameter():
    pyramid = PatchPyramid(4, 3, (6, 8, 5))
    pyramid(torch.randn(32, 16, 3)).tokens.square().sum().backward()
    assert all(p.grad.abs().sum() > 0 for p in pyramid.parameters())
    assert pyramid.grid == (1, 1)


@pytest.mark.parametrize(("side", "widths"), [(6, (4, 4, 4)), (4, ())])
def test_sides_that_cannot_be_merged(side, widths):
    with pytest.raises(ValueError, match="can't be merged"):
        PatchPyramid(side, 3, widths)


def test_pictures_of_a_wrong_size():
    with pytest.raises(ValueError, match="multiples of 4"):
        patches_of(np.zeros((1, 10, 8), np.uint8))
