"""Masked autoencoder (MAE): a picture's patches, most of them hidden, are rebuilt from the few that are seen.

The encoder reads the visible patches alone, which makes it cheap; a light decoder gets its tokens and a learned token
for each hidden patch. Afterwards the decoder is thrown away, and the encoder reads whole pictures.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn

from vqa_core.encoders.tokens import Tokens
from vqa_core.fusion.blocks import TransformerBlock

EPSILON = 1e-6  # added to a patch's variance, as in the published code


def patchify(pictures: Tensor, patch: int) -> Tensor:
    """Pictures (B, C, H, W) → patches (B, N, patch² · C) in reading order; a patch's pixels row after row, RGB last.

    Raises
    ------
    ValueError
        When the sides are not multiples of ``patch``.
    """
    height, width = pictures.shape[-2:]
    if height % patch or width % patch:
        raise ValueError(f"pictures of {height} × {width} pixels do not split into patches of {patch}; crop or resize")
    x = pictures.unflatten(-2, (-1, patch)).unflatten(-1, (-1, patch))  # (B, C, rows, patch, columns, patch)
    return x.permute(0, 2, 4, 3, 5, 1).flatten(3).flatten(1, 2)  # (B, rows · columns, patch² · C)


def unpatchify(patches: Tensor, patch: int, grid: tuple[int, int]) -> Tensor:
    """Patches (B, N, patch² · C) → pictures (B, C, H, W): the inverse of :func:`patchify`."""
    x = patches.unflatten(-1, (patch, patch, -1)).unflatten(1, grid)  # (B, rows, columns, patch, patch, C)
    return x.permute(0, 5, 1, 3, 2, 4).flatten(4).flatten(2, 3)  # (B, C, H, W)


def sine_positions(rows: int, columns: int, dim: int) -> Tensor:
    """Fixed positions (rows · columns, dim): sines and cosines, half of the features for the row, half for the column.

    Raises
    ------
    ValueError
        When ``dim`` is no multiple of 4.
    """
    if dim % 4:
        raise ValueError(f"dim is {dim}; sine positions in two directions need a multiple of 4")
    rate = 10_000 ** -(torch.arange(dim // 4) / (dim // 4))  # (dim / 4,)
    place = torch.cartesian_prod(torch.arange(rows), torch.arange(columns))  # (N, 2)
    angle = place.unsqueeze(-1) * rate  # (N, 2, dim / 4)
    return torch.cat([angle.sin(), angle.cos()], dim=-1).flatten(1)  # (N, dim)


def hide(batch: int, patches: int, ratio: float = 0.75, generator: torch.Generator | None = None) -> Tensor:
    """Which patches are hidden: bool (B, N), True at hidden ones, equally many in every row, at random.

    Parameters
    ----------
    batch, patches
        B and N.
    ratio
        Share that is hidden, above 0 and below 1; the number is rounded, and at least one is hidden and one seen.
    generator
        Of the random numbers, on the CPU.
    """
    if not 0 < ratio < 1 or patches < 2:
        raise ValueError(f"ratio is {ratio} of {patches} patches; hide more than 0 and less than 1 of at least 2")
    hidden = min(max(round(ratio * patches), 1), patches - 1)
    order = torch.rand(batch, patches, generator=generator).argsort(1)  # (B, N), a permutation in each row
    return order < hidden


class PatchEncoder(nn.Module):
    """A small vision transformer over patches; as an image encoder it gives a token for each patch.

    Parameters
    ----------
    size, patch
        Sides of the square pictures and of the patches, in pixels; size is a multiple of patch.
    dim, depth, heads
        Features of a token (a multiple of 4 and of heads), layers, attention heads.
    mlp_ratio
        Hidden features of the feed-forward part per feature.

    Attributes
    ----------
    grid
        (rows, columns) of the patches.

    Notes
    -----
    There is no class token: a classifier reads the mean of the tokens, which He et al. 2022 found as good.
    """

    def __init__(
        self, size: int = 64, patch: int = 8, dim: int = 64, depth: int = 4, heads: int = 4, mlp_ratio: float = 4.0
    ) -> None:
        super().__init__()
        if size % patch:
            raise ValueError(f"size={size} is not a multiple of patch={patch}")
        self.size, self.patch, self.out_dim, self.grid = size, patch, dim, (size // patch, size // patch)
        self.embed = nn.Linear(3 * patch**2, dim)
        self.register_buffer("positions", sine_positions(*self.grid, dim), persistent=False)  # (N, D)
        self.blocks = nn.ModuleList(TransformerBlock(dim, heads, mlp_ratio) for _ in range(depth))
        self.norm = nn.LayerNorm(dim)

    def patches(self, pictures: Tensor) -> Tensor:
        """Pictures (B, 3, size, size) → patches (B, N, 3 · patch²)."""
        if pictures.shape[1:] != (3, self.size, self.size):
            raise ValueError(f"pictures have shape {tuple(pictures.shape)}, expected (B, 3, {self.size}, {self.size})")
        return patchify(pictures, self.patch)

    def encode(self, patches: Tensor, places: Tensor | None) -> Tensor:
        """Some patches, each with its place, through the layers.

        Parameters
        ----------
        patches
            (B, K, 3 · patch²).
        places
            int (B, K), positions in reading order; None gives no patch a position, so that the encoder does not know
            where it lies.

        Returns
        -------
        Tensor
            (B, K, D).
        """
        x = self.embed(patches)  # (B, K, D)
        if places is not None:
            x = x + self.positions[places]
        for block in self.blocks:
            x, _ = block(x)
        return self.norm(x)

    def forward(self, pictures: Tensor) -> Tokens:
        """Pictures (B, 3, size, size) → tokens (B, N, D) of all patches, in reading order."""
        patches = self.patches(pictures)  # (B, N, 3 · patch²)
        return Tokens(self.encode(patches, torch.arange(patches.shape[1], device=patches.device)))


class Rebuilt(NamedTuple):
    """What :class:`MaskedAutoencoder` returns.

    Attributes
    ----------
    prediction
        (B, N, 3 · patch²), the decoder's guess of every patch, in the unit of the target.
    target
        (B, N, 3 · patch²), what it should have been.
    hidden
        bool (B, N), True at the patches that the encoder did not see.
    """

    prediction: Tensor
    target: Tensor
    hidden: Tensor

    def error(self) -> Tensor:
        """Mean squared error of each picture over its *hidden* patches, (B,)."""
        each = (self.prediction - self.target).square().mean(-1)  # (B, N)
        return (each * self.hidden).sum(1) / self.hidden.sum(1)


class MaskedAutoencoder(nn.Module):
    """MAE (He et al. 2022, arXiv 2111.06377): encoder on visible patches, light decoder on all, loss on hidden ones.

    Parameters
    ----------
    encoder
        What pre-training is for.
    dim, depth, heads
        Of the decoder, which is narrower and flatter than the encoder.
    normalise
        True: the target is each patch minus its mean, divided by its standard deviation (over pixels and colours), as
        in the paper; False: the pixels themselves. On a flat ground a normalised patch is nothing but its noise.
    """

    def __init__(
        self, encoder: PatchEncoder, dim: int = 32, depth: int = 1, heads: int = 4, normalise: bool = True
    ) -> None:
        super().__init__()
        self.encoder, self.normalise = encoder, normalise
        self.narrow = nn.Linear(encoder.out_dim, dim)
        self.hidden_token = nn.Parameter(torch.randn(dim) * 0.02)
        self.register_buffer("positions", sine_positions(*encoder.grid, dim), persistent=False)  # (N, D')
        self.blocks = nn.ModuleList(TransformerBlock(dim, heads) for _ in range(depth))
        self.norm = nn.LayerNorm(dim)
        self.pixels = nn.Linear(dim, 3 * encoder.patch**2)

    def target(self, patches: Tensor) -> Tensor:
        """What is to be rebuilt of patches (B, N, 3 · patch²): pixels, or pixels normalised patch by patch."""
        if not self.normalise:
            return patches
        variance, mean = torch.var_mean(patches, dim=-1, keepdim=True)  # (B, N, 1), unbiased as in the published code
        return (patches - mean) / (variance + EPSILON).sqrt()

    def forward(self, pictures: Tensor, hidden: Tensor) -> Rebuilt:
        """Rebuild pictures (B, 3, size, size) whose patches are ``hidden``, bool (B, N), equally many in every row."""
        patches = self.encoder.patches(pictures)  # (B, N, 3 · patch²)
        batch, n = patches.shape[:2]
        if hidden.shape != (batch, n) or hidden.dtype != torch.bool:
            raise ValueError(f"hidden is {hidden.dtype} {tuple(hidden.shape)}; give bool ({batch}, {n})")
        if len(set(hidden.sum(1).tolist())) != 1:
            raise ValueError("rows hide different numbers of patches; make the mask with hide()")
        places = (~hidden).nonzero()[:, 1].view(batch, -1)  # (B, K), the visible ones
        seen = patches.gather(1, places.unsqueeze(-1).expand(-1, -1, patches.shape[-1]))  # (B, K, 3 · patch²)
        told = self.narrow(self.encoder.encode(seen, places))  # (B, K, D')
        x = self.hidden_token.expand(batch, n, -1)  # (B, N, D')
        x = x.scatter(1, places.unsqueeze(-1).expand_as(told), told.to(x.dtype)) + self.positions
        for block in self.blocks:
            x, _ = block(x)
        return Rebuilt(self.pixels(self.norm(x)), self.target(patches), hidden)

    def picture(self, pictures: Tensor, rebuilt: Rebuilt) -> Tensor:
        """Pictures (B, 3, size, size) with what was hidden filled in by the decoder, and what was seen left as it is.

        Raises
        ------
        ValueError
            For a model of normalised patches: its guesses have neither a brightness nor a contrast, and to take both
            from the hidden patch would show more than the model knows.
        """
        if self.normalise:
            raise ValueError("guesses of normalised patches have no brightness; show a model with normalise=False")
        patches = self.encoder.patches(pictures)  # (B, N, 3 · patch²)
        filled = torch.where(rebuilt.hidden.unsqueeze(-1), rebuilt.prediction, patches)
        return unpatchify(filled, self.encoder.patch, self.encoder.grid)
