"""Two small image encoders of about the same size, trained from scratch: a residual network and a vision transformer.

Neither has a batch norm, whose output for one picture depends on the others of its batch: with group and layer norm a
large batch may be computed in parts (:func:`vqa_core.training.contrastive.cached_clip_gradients`).
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vqa_core.encoders.tokens import Tokens

GROUPS = 4  # of channels that are normalised together


def check_pictures(pictures: Tensor, size: int) -> None:
    """Raise ``ValueError`` unless pictures are (B, 3, size, size)."""
    if pictures.shape[1:] != (3, size, size):
        raise ValueError(f"pictures have shape {tuple(pictures.shape)}, expected (B, 3, {size}, {size})")


class ResidualBlock(nn.Module):
    """Two 3 × 3 convolutions with group norm, added to what came in (He et al. 2016, arXiv 1512.03385).

    Parameters
    ----------
    inputs, outputs
        Channels; where they differ, the shortcut is a 1 × 1 convolution.
    stride
        2 halves the grid.
    """

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, padding=1, bias=False)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, padding=1, bias=False)
        self.norm1, self.norm2 = nn.GroupNorm(GROUPS, outputs), nn.GroupNorm(GROUPS, outputs)
        same = inputs == outputs and stride == 1
        self.shortcut = nn.Identity() if same else nn.Conv2d(inputs, outputs, 1, stride, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """(B, inputs, H, W) → (B, outputs, H/stride, W/stride)."""
        y = F.relu(self.norm1(self.conv1(x)))  # (B, outputs, H/stride, W/stride)
        return F.relu(self.norm2(self.conv2(y)) + self.shortcut(x))


class CompactResNet(nn.Module):
    """A 4 × 4 convolution and one residual block for each further halving of the grid: 32 pixels become 4 × 4 tokens.

    Parameters
    ----------
    size
        Side of the square pictures in pixels, a multiple of 8.
    width
        Channels after the first convolution, a multiple of 4; each block doubles them.

    Attributes
    ----------
    out_dim
        Features of a token, 4 · width.
    grid
        (rows, columns) of the tokens, size / 8 each.
    """

    def __init__(self, size: int = 32, width: int = 16) -> None:
        super().__init__()
        if size % 8 or width % GROUPS:
            raise ValueError(f"size={size} must be a multiple of 8 and width={width} one of {GROUPS}")
        self.size, self.out_dim, self.grid = size, 4 * width, (size // 8, size // 8)
        self.stem = nn.Sequential(nn.Conv2d(3, width, 4, 2, padding=1, bias=False), nn.GroupNorm(GROUPS, width))
        self.blocks = nn.Sequential(ResidualBlock(width, 2 * width, 2), ResidualBlock(2 * width, 4 * width, 2))
        self.to(memory_format=torch.channels_last)  # faster on a CPU

    def forward(self, pictures: Tensor) -> Tokens:
        """Pictures (B, 3, size, size) → tokens (B, (size/8)², out_dim), in reading order."""
        check_pictures(pictures, self.size)
        x = pictures.contiguous(memory_format=torch.channels_last)
        x = F.relu(self.stem(x))  # (B, width, size/2, size/2)
        return Tokens(self.blocks(x).flatten(2).transpose(1, 2))  # (B, (size/8)², 4 · width)


class CompactViT(nn.Module):
    """Patch embedding, learned positions, pre-norm transformer layers (Dosovitskiy et al. 2021, arXiv 2010.11929).

    There is no class token; the tokens are pooled by whoever reads them.

    Parameters
    ----------
    size, patch
        Sides of the square pictures and of a patch, in pixels.
    dim, depth, heads
        Features of a token, number of layers, attention heads in each.
    ratio
        Hidden features of the feed-forward part per feature.

    Attributes
    ----------
    grid
        (rows, columns) of the patches.
    """

    def __init__(
        self, size: int = 32, patch: int = 8, dim: int = 48, depth: int = 2, heads: int = 4, ratio: float = 2.0
    ) -> None:
        super().__init__()
        if size % patch or dim % heads:
            raise ValueError(f"size={size} must be a multiple of patch={patch}, and dim={dim} one of heads={heads}")
        self.size, self.out_dim, self.grid = size, dim, (size // patch, size // patch)
        self.patches = nn.Conv2d(3, dim, patch, patch)  # one linear map for all patches
        self.positions = nn.Parameter(torch.randn((size // patch) ** 2, dim) * 0.02)
        self.layers = nn.ModuleList(
            nn.TransformerEncoderLayer(
                dim, heads, round(ratio * dim), dropout=0.0, activation="gelu", batch_first=True, norm_first=True
            )
            for _ in range(depth)
        )
        self.norm = nn.LayerNorm(dim)

    def forward(self, pictures: Tensor) -> Tokens:
        """Pictures (B, 3, size, size) → tokens (B, (size/patch)², dim), in reading order."""
        check_pictures(pictures, self.size)
        x = self.patches(pictures).flatten(2).transpose(1, 2) + self.positions  # (B, N, dim)
        for layer in self.layers:
            x = layer(x)  # (B, N, dim)
        return Tokens(self.norm(x))


class Standardised(nn.Module):
    """An image encoder whose pictures are first brought to mean 0 and spread 1 in each channel.

    Parameters
    ----------
    encoder
        Has ``out_dim`` and ``size``.
    mean, deviation
        (3,) of the training pictures, on the scale on which pictures are given.
    """

    def __init__(self, encoder: nn.Module, mean: Tensor, deviation: Tensor) -> None:
        super().__init__()
        if mean.shape != (3,) or deviation.shape != (3,) or not (deviation > 0).all():
            raise ValueError(
                f"mean {tuple(mean.shape)} and deviation {deviation.tolist()}: give three channels, above 0"
            )
        self.encoder, self.out_dim, self.size = encoder, encoder.out_dim, encoder.size
        self.register_buffer("mean", mean[:, None, None])  # (3, 1, 1)
        self.register_buffer("deviation", deviation[:, None, None])  # (3, 1, 1)

    def forward(self, pictures: Tensor) -> Tokens:
        """Pictures (B, 3, size, size) → the encoder's tokens."""
        return self.encoder((pictures - self.mean) / self.deviation)
