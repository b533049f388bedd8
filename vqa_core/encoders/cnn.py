"""A small convolutional encoder, trained from scratch: a picture becomes a grid of image tokens."""

from __future__ import annotations

from itertools import pairwise

import torch
from torch import Tensor, nn

from vqa_core.encoders.tokens import Tokens


def coordinates(height: int, width: int, device: torch.device | None = None) -> Tensor:
    """Two channels (2, H, W) that say where a cell is: its row and its column, each from −1 to 1 (CoordConv)."""
    rows = torch.linspace(-1, 1, height, device=device)
    columns = torch.linspace(-1, 1, width, device=device)
    return torch.stack(torch.meshgrid(rows, columns, indexing="ij"))  # (2, H, W)


class GridCNN(nn.Module):
    """Four convolutions, each with batch norm and ReLU: 64 × 64 pixels become 8 × 8 = 64 image tokens.

    The first three halve the grid. They are 4 × 4 with stride 2, not 3 × 3, because an even kernel centres a token's
    receptive field on the 8 × 8 pixels of its own cell; with 3 × 3 every token looks 3.5 pixels up and to the left,
    and so would every attention map. Tokens are in reading order, row after row.

    Parameters
    ----------
    out_dim
        D, features of a token.
    size
        Side of the square pictures in pixels; a multiple of 8, at least 56, so that there are at least 49 tokens.
    width
        Channels of the first convolution; the second has twice, the third four times as many.
    add_coordinates
        Give every cell its row and column (Liu et al. 2018, arXiv 1807.03247) before the last convolution.

    Attributes
    ----------
    grid
        (rows, columns) of the token grid.
    """

    def __init__(self, out_dim: int = 128, size: int = 64, width: int = 32, add_coordinates: bool = True) -> None:
        super().__init__()
        if size % 8 or size < 56:
            raise ValueError(f"size is {size}; give a multiple of 8, at least 56 (49 image tokens)")
        self.out_dim, self.size, self.grid = out_dim, size, (size // 8, size // 8)
        channels = [3, width, 2 * width, 4 * width]
        blocks = [self._block(a, b, kernel=4, stride=2) for a, b in pairwise(channels)]
        self.downsample = nn.Sequential(*blocks)
        self.register_buffer("where", coordinates(*self.grid) if add_coordinates else None, persistent=False)
        self.last = self._block(channels[-1] + (2 if add_coordinates else 0), out_dim, kernel=3, stride=1)
        self.to(memory_format=torch.channels_last)  # a third faster on a CPU, and tokens come out contiguous

    @staticmethod
    def _block(inputs: int, outputs: int, kernel: int, stride: int) -> nn.Sequential:
        return nn.Sequential(
            nn.Conv2d(inputs, outputs, kernel, stride, padding=1, bias=False), nn.BatchNorm2d(outputs), nn.ReLU()
        )

    def forward(self, pictures: Tensor) -> Tokens:
        """Pictures (B, 3, size, size) → tokens (B, (size/8)², out_dim)."""
        if pictures.shape[1:] != (3, self.size, self.size):
            raise ValueError(f"pictures have shape {tuple(pictures.shape)}, expected (B, 3, {self.size}, {self.size})")
        features = self.downsample(pictures)  # (B, 4·width, size/8, size/8)
        if self.where is not None:
            where = self.where.expand(len(features), -1, -1, -1)  # (B, 2, size/8, size/8)
            features = torch.cat([features, where], dim=1)  # (B, 4·width + 2, size/8, size/8)
        features = self.last(features)  # (B, out_dim, size/8, size/8)
        return Tokens(features.flatten(2).transpose(1, 2))  # (B, (size/8)², out_dim)
