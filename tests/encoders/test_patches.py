"""Patches: cut in reading order, put together again, and embedded alike by a convolution and by a linear layer."""

from __future__ import annotations

import pytest
import torch

from vqa_core.encoders.patches import PatchEmbedding, cut_patches, join_patches


def test_patches_come_in_reading_order_channel_by_channel():
    picture = torch.arange(2 * 4 * 6.0).view(1, 2, 4, 6)
    patches = cut_patches(picture, 2)  # (1, 2 · 3, 2 · 2 · 2)
    assert patches.shape == (1, 6, 8)
    for n, (row, column) in enumerate((r, c) for r in (0, 2) for c in (0, 2, 4)):
        assert torch.equal(patches[0, n], picture[0, :, row : row + 2, column : column + 2].flatten())


def test_joining_undoes_cutting():
    pictures = torch.randn(3, 3, 8, 12)
    assert torch.equal(join_patches(cut_patches(pictures, 4), 4, (8, 12)), pictures)


@pytest.mark.parametrize(("patch", "size"), [(4, 32), (8, 32), (16, 224)])
def test_convolution_and_linear_layer_are_the_same(patch, size):
    embedding, pictures = PatchEmbedding(24, patch).double(), torch.randn(2, 3, size, size, dtype=torch.float64)
    by_convolution = embedding(pictures)
    assert by_convolution.shape == (2, (size // patch) ** 2, 24)
    torch.testing.assert_close(by_convolution, embedding.unfolded(pictures), atol=1e-6, rtol=0)


def test_a_token_sees_its_own_patch_only():
    embedding, pictures = PatchEmbedding(8, 4), torch.randn(1, 3, 8, 8)
    changed = pictures.clone()
    changed[..., :4, 4:] += 1
    moved = (embedding(pictures) != embedding(changed)).any(-1)[0]
    assert moved.tolist() == [False, True, False, False]


def test_sizes_that_do_not_fit_are_refused():
    with pytest.raises(ValueError, match="multiples of patch"):
        cut_patches(torch.zeros(1, 3, 10, 8), 4)
    with pytest.raises(ValueError, match="do not fill 8 × 8"):
        join_patches(torch.zeros(1, 3, 48), 4, (8, 8))
