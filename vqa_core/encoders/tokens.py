"""What every encoder returns, :class:`Tokens`, and :class:`CachedTokens` for tokens that were made before."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn


class Tokens(NamedTuple):
    """A set of tokens.

    Attributes
    ----------
    tokens
        float (B, N, D), with D = ``encoder.out_dim``. A pooled vector is the case N = 1.
    mask
        bool (B, N), True at real tokens; None when all are real.
    """

    tokens: Tensor
    mask: Tensor | None = None


class CachedTokens(nn.Module):
    """Passes on tokens that an encoder made before: frozen encoders run once, training reads what they gave.

    Parameters
    ----------
    out_dim
        Features of a token.
    """

    def __init__(self, out_dim: int) -> None:
        super().__init__()
        self.out_dim = out_dim

    def forward(self, tokens: Tensor, mask: Tensor | None = None) -> Tokens:
        """Float (B, N, out_dim), and bool (B, N) where some are padding → :class:`Tokens`."""
        if tokens.ndim != 3 or tokens.shape[-1] != self.out_dim:
            raise ValueError(f"cached tokens have shape {tuple(tokens.shape)}, expected (B, N, {self.out_dim})")
        return Tokens(tokens, mask)


class Frozen(nn.Module):
    """An encoder that is not trained: no gradients, and batch norm and dropout always in evaluation mode.

    ``requires_grad_(False)`` alone is not enough: a batch norm in training mode still updates its statistics.

    Parameters
    ----------
    encoder
        Any encoder; its parameters are switched to ``requires_grad=False``.
    """

    def __init__(self, encoder: nn.Module) -> None:
        super().__init__()
        self.encoder = encoder.requires_grad_(False).eval()
        self.out_dim = encoder.out_dim

    def train(self, mode: bool = True) -> Frozen:
        """Evaluation mode, whatever is asked for."""
        return super().train(False)

    @torch.no_grad()
    def forward(self, *inputs: Tensor) -> Tokens:
        """What the encoder returns."""
        return self.encoder(*inputs)


def encode_in_batches(encoder: nn.Module, inputs: Tensor, batch_size: int = 64) -> Tensor:
    """Run a frozen image encoder once over many pictures, for :class:`CachedTokens`.

    Parameters
    ----------
    encoder
        Pictures → :class:`Tokens`, without a mask; used in evaluation mode, without gradients.
    inputs
        float (n, 3, H, W).
    batch_size
        How many pictures at a time.

    Returns
    -------
    Tensor
        float (n, N, D).
    """
    training = encoder.training
    encoder.eval()
    try:
        with torch.no_grad():
            parts = [encoder(batch) for batch in inputs.split(batch_size)]
    finally:
        encoder.train(training)
    if any(part.mask is not None for part in parts):
        raise ValueError("this encoder gives a mask; cache its tokens and its mask yourself")
    return torch.cat([part.tokens for part in parts])  # (n, N, D)
