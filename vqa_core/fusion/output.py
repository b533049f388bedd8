"""What every fusion returns, :class:`FusionOutput`, and the one home of masks: mean, softmax, checks."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor


class FusionOutput(NamedTuple):
    """What a fusion module returns.

    Attributes
    ----------
    fused
        The answer vector (B, D), with D = ``fusion.out_dim``; a head turns it into answer logits.
    image, text
        The two inputs as they meet, after their own projections; None where a method has no such moment.
        Each fusion's docstring gives the shape.
    attention
        Attention weights (B, H, Tq, Tk) as they were used, or None for a method without attention. H counts heads,
        stacks or glimpses; padding tokens have weight 0.
    """

    fused: Tensor
    image: Tensor | None = None
    text: Tensor | None = None
    attention: Tensor | None = None


def as_tokens(name: str, tokens: Tensor, dim: int, mask: Tensor | None) -> Tensor:
    """Check one side's input and return it as tokens (B, N, D); a pooled vector (B, D) is the case N = 1.

    Parameters
    ----------
    name
        ``"image"`` or ``"text"``, for the message.
    tokens
        (B, N, D) or (B, D).
    dim
        The D that the module was made for.
    mask
        bool (B, N), True at real tokens, or None when all are real.

    Raises
    ------
    ValueError
        When the sizes do not fit, or the mask is not boolean.
    """
    if tokens.ndim not in (2, 3):
        raise ValueError(f"{name}_tokens has shape {tuple(tokens.shape)}; give (B, N, {dim}) or pooled (B, {dim})")
    if tokens.shape[-1] != dim:
        raise ValueError(f"{name}_tokens has {tokens.shape[-1]} features, this fusion was made for {name}_dim={dim}")
    if tokens.ndim == 2:
        tokens = tokens.unsqueeze(1)  # (B, 1, D)
    if mask is not None and (mask.dtype != torch.bool or mask.shape != tokens.shape[:2]):
        raise ValueError(
            f"{name}_mask is {mask.dtype} {tuple(mask.shape)}; give bool {tuple(tokens.shape[:2])}, True at real tokens"
        )
    return tokens


def choose(name: str, value: str, allowed: tuple[str, ...]) -> str:
    """Return ``value`` when it is allowed, else raise a ``ValueError`` that lists what is."""
    if value not in allowed:
        raise ValueError(f"{name} is {value!r}, allowed are {', '.join(map(repr, allowed))}")
    return value


def masked_mean(tokens: Tensor, mask: Tensor | None = None) -> Tensor:
    """Mean over the real tokens, (B, N, D) → (B, D); a row without a real token gives zeros.

    Padding is replaced before the sum, so that not even NaN in a padding token reaches the result.
    """
    if mask is None:
        return tokens.mean(dim=1)  # (B, D)
    total = tokens.masked_fill(~mask.unsqueeze(-1), 0.0).sum(dim=1)  # (B, D)
    return total / mask.sum(dim=1, keepdim=True).clamp(min=1)


def last_token(tokens: Tensor, mask: Tensor | None = None) -> Tensor:
    """The last real token, (B, N, D) → (B, D): an LSTM's final state; padding must come after the real tokens.

    A row without a real token gives its first token.
    """
    if mask is None:
        return tokens[:, -1]  # (B, D)
    last = (mask.sum(dim=1) - 1).clamp(min=0)  # (B,)
    index = last[:, None, None].expand(-1, 1, tokens.shape[-1])  # (B, 1, D)
    return tokens.gather(1, index).squeeze(1)  # (B, D)


def masked_softmax(scores: Tensor, mask: Tensor | None, dim: int | tuple[int, ...] = -1) -> Tensor:
    """Softmax over the real entries; the others get exactly 0, also where a row has no real entry at all.

    Parameters
    ----------
    scores
        Any shape.
    mask
        bool, broadcastable to ``scores``, True at real entries; None when all are real.
    dim
        The axis that sums to 1, or several *trailing* axes that sum to 1 together.
    """
    if mask is not None:
        scores = scores.masked_fill(~mask, torch.finfo(scores.dtype).min)
    if isinstance(dim, tuple):
        weights = scores.flatten(-len(dim)).softmax(dim=-1).unflatten(-1, scores.shape[-len(dim) :])
    else:
        weights = scores.softmax(dim=dim)
    return weights if mask is None else weights.masked_fill(~mask, 0.0)
