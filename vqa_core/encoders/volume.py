"""A small convolutional encoder for volumes, trained from scratch: a volume becomes a grid of tokens."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from vqa_core.encoders.tokens import Tokens


class VolumeCNN(nn.Module):
    """Two convolutions, each with batch norm and ReLU: a cell of the grid is 2 × 2 × 2 voxels and sees 8 × 8 × 8.

    The first convolution is 4 × 4 × 4 with stride 2, because an even kernel centres what a token sees on its own cell.
    Tokens are in reading order: depth, then height, then width.

    Parameters
    ----------
    out_dim
        D, features of a token.
    size
        (depth, height, width) in voxels, even numbers.
    width
        Channels of the first convolution.

    Attributes
    ----------
    grid
        (depth, height, width) in tokens.
    """

    def __init__(self, out_dim: int = 16, size: tuple[int, int, int] = (24, 24, 24), width: int = 8) -> None:
        super().__init__()
        if len(size) != 3 or any(s % 2 or s < 4 for s in size):
            raise ValueError(f"size is {size}; give depth, height and width, even numbers from 4")
        self.out_dim, self.size, self.grid = out_dim, tuple(size), tuple(s // 2 for s in size)
        self.blocks = nn.Sequential(
            self._block(1, width, kernel=4, stride=2), self._block(width, out_dim, kernel=3, stride=1)
        )
        self.to(memory_format=torch.channels_last_3d)  # a third faster on a CPU, and tokens come out contiguous

    @staticmethod
    def _block(inputs: int, outputs: int, kernel: int, stride: int) -> nn.Sequential:
        return nn.Sequential(
            nn.Conv3d(inputs, outputs, kernel, stride, padding=1, bias=False), nn.BatchNorm3d(outputs), nn.ReLU()
        )

    def forward(self, volumes: Tensor) -> Tokens:
        """Volumes (B, depth, height, width) in [−1, 1] → tokens (B, N, out_dim), N the number of cells."""
        if volumes.shape[1:] != self.size:
            raise ValueError(
                f"volumes have shape {tuple(volumes.shape)}, expected (B, {', '.join(map(str, self.size))})"
            )
        features = self.blocks(volumes.unsqueeze(1))  # (B, D, d, h, w)
        # not flatten(2).transpose(1, 2), for the reason that MetaCNN gives: a wrong gradient for one volume
        return Tokens(features.permute(0, 2, 3, 4, 1).flatten(1, 3))  # (B, d · h · w, D)
