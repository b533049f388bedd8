"""A picture cut into patches, and patches made into tokens: one convolution whose kernel is as large as its stride."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn


def cut_patches(pictures: Tensor, patch: int) -> Tensor:
    """Pictures (B, C, H, W) → patches (B, N, C·P·P) in reading order, N = (H/P)·(W/P); each is channel by channel.

    Parameters
    ----------
    pictures
        Height and width are multiples of ``patch``.
    patch
        P, side of a patch in pixels.
    """
    if pictures.ndim != 4 or patch < 1 or pictures.shape[2] % patch or pictures.shape[3] % patch:
        raise ValueError(
            f"pictures have shape {tuple(pictures.shape)} and patch is {patch}; give (B, C, H, W) with H and W "
            "multiples of patch"
        )
    return F.unfold(pictures, patch, stride=patch).transpose(1, 2)  # (B, N, C·P·P)


def join_patches(patches: Tensor, patch: int, size: tuple[int, int]) -> Tensor:
    """Undo :func:`cut_patches`: patches (B, N, C·P·P) → pictures (B, C, H, W) of ``size`` (H, W)."""
    height, width = size
    if patches.ndim != 3 or height % patch or width % patch or patches.shape[1] != height * width // patch**2:
        raise ValueError(
            f"patches of shape {tuple(patches.shape)} and side {patch} do not fill {height} × {width} pixels"
        )
    return F.fold(patches.transpose(1, 2), size, patch, stride=patch)  # (B, C, H, W)


class PatchEmbedding(nn.Module):
    """Patches as tokens (Dosovitskiy et al. 2021, arXiv 2010.11929, equation 1).

    "Cut into patches, flatten, one linear layer" and "convolve with kernel = stride = P" are the same sum, because no
    two patches overlap; :meth:`unfolded` is the first form with the weights of the second.

    Parameters
    ----------
    dim
        D, features of a token.
    patch
        P, side of a patch in pixels.
    channels
        C, of the pictures.
    """

    def __init__(self, dim: int, patch: int, channels: int = 3) -> None:
        super().__init__()
        self.patch = patch
        self.projection = nn.Conv2d(channels, dim, kernel_size=patch, stride=patch)

    def forward(self, pictures: Tensor) -> Tensor:
        """Pictures (B, C, H, W) → tokens (B, N, D) in reading order."""
        return self.projection(pictures).flatten(2).transpose(1, 2)  # (B, D, H/P, W/P) → (B, N, D)

    def unfolded(self, pictures: Tensor) -> Tensor:
        """The same tokens by cutting, flattening and one linear layer: (B, N, C·P·P) → (B, N, D)."""
        weight = self.projection.weight.flatten(1)  # (D, C·P·P)
        return F.linear(cut_patches(pictures, self.patch), weight, self.projection.bias)  # (B, N, D)
