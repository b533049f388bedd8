"""A small picture encoder of linear layers: patches become features, neighbours are merged."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import numpy as np
import torch
from einops import rearrange
from torch import Tensor, nn

from vqa_core.encoders.tokens import Tokens


def patches_of(pictures: np.ndarray, patch: int = 4) -> Tensor:
    """Grey pictures uint8 (P, H, W) → patches float (P, H/patch · W/patch, patch²) in [−1, 1], in reading order."""
    if pictures.ndim != 3 or any(side % patch for side in pictures.shape[1:]):
        raise ValueError(f"pictures are {pictures.shape}; give (P, H, W) with sides that are multiples of {patch}")
    x = torch.from_numpy(pictures).float() / 127.5 - 1
    return rearrange(x, "p (h i) (w j) -> p (h w) (i j)", i=patch, j=patch)  # (P, N, patch²)


class PatchPyramid(nn.Module):
    """Patches → linear → ReLU; then, level by level, 2 × 2 neighbours side by side → linear → ReLU.

    It is a CNN whose windows do not overlap (a linear layer on a patch is a convolution with as large a stride;
    merging is that of Liu et al. 2021, arXiv 2103.14030), and all of it is matrix products: many models with their own
    weights run as one product under ``torch.func.vmap``, where convolutions become slow grouped ones.

    Parameters
    ----------
    side
        Patches along a side of the square picture; a multiple of 2 to the number of mergings.
    patch_dim
        Numbers in a patch.
    widths
        Features at each level; the last is that of the tokens. A level after the first merges once.

    Attributes
    ----------
    grid
        (rows, columns) of the tokens, which carry a learned position.
    """

    def __init__(self, side: int, patch_dim: int, widths: Sequence[int]) -> None:
        super().__init__()
        mergings = len(widths) - 1
        if mergings < 0 or side % 2**mergings:
            raise ValueError(f"{side} patches along a side can't be merged {mergings} times; give a multiple of 2 each")
        self.side, self.out_dim, self.grid = side, widths[-1], (side // 2**mergings,) * 2
        first = nn.Linear(patch_dim, widths[0])
        self.levels = nn.ModuleList([first, *(nn.Linear(4 * a, b) for a, b in pairwise(widths))])
        self.positions = nn.Parameter(torch.randn(self.grid[0] * self.grid[1], widths[-1]) * 0.1)

    def forward(self, patches: Tensor) -> Tokens:
        """Patches (B, side², patch_dim), from :func:`patches_of` → tokens (B, N, out_dim)."""
        x = rearrange(patches, "b (h w) c -> b h w c", h=self.side)  # (B, side, side, patch_dim)
        for level, layer in enumerate(self.levels):
            if level:
                x = rearrange(x, "b (h i) (w j) c -> b h w (i j c)", i=2, j=2)  # (B, h, w, 4 · width)
            x = layer(x).relu()  # (B, h, w, width)
        return Tokens(rearrange(x, "b h w c -> b (h w) c") + self.positions)  # (B, N, out_dim)
