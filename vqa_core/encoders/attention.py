"""Attention from its formula, masks that are added, and several heads: what every transformer is made of."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def attention(query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """softmax(Q Kᵀ / √d + M) V (Vaswani et al. 2017, arXiv 1706.03762, equation 1).

    Parameters
    ----------
    query
        (…, Tq, d).
    key, value
        (…, Tk, d).
    mask
        M, float (…, Tq, Tk), *added* to the scores: 0 where a query may look, −∞ where not. See :func:`additive_mask`.

    Returns
    -------
    read
        (…, Tq, d), what each query read.
    weights
        (…, Tq, Tk); each row sums to 1.
    """
    scores = query @ key.transpose(-2, -1) / math.sqrt(query.shape[-1])  # (…, Tq, Tk)
    if mask is not None:
        if not mask.is_floating_point():
            raise ValueError(f"mask is {mask.dtype}; it is added to the scores: make it with additive_mask(may_look)")
        scores = scores + mask
    weights = scores.softmax(-1)
    return weights @ value, weights  # (…, Tq, d), (…, Tq, Tk)


def additive_mask(may_look: Tensor) -> Tensor:
    """Bool (…, Tq, Tk), True where a query may look → float of the same shape, 0 there and −∞ elsewhere.

    Raises
    ------
    ValueError
        When it is not bool, or a query may look nowhere: its softmax would be 0/0.
    """
    if may_look.dtype != torch.bool:
        raise ValueError(f"may_look is {may_look.dtype}; give bool, True where a query may look")
    if not may_look.any(-1).all():
        raise ValueError("a query may look nowhere, its softmax would be NaN; leave it at least one True")
    return torch.zeros(may_look.shape, device=may_look.device).masked_fill(~may_look, -math.inf)


def causal_mask(tokens: int) -> Tensor:
    """Additive mask (T, T) with which a token reads itself and those before it.

    >>> causal_mask(3).tolist()
    [[0.0, -inf, -inf], [0.0, 0.0, -inf], [0.0, 0.0, 0.0]]
    """
    return additive_mask(torch.ones(tokens, tokens).tril().bool())


class SelfAttention(nn.Module):
    """Attention of a sequence to itself, in several heads.

    Queries, keys and values of all heads come from one linear layer, D → 3 D; head h has d = D / H features of each.

    Parameters
    ----------
    dim
        D, features of a token; a multiple of heads.
    heads
        H.
    """

    def __init__(self, dim: int, heads: int) -> None:
        super().__init__()
        if dim % heads:
            raise ValueError(f"dim={dim} is not a multiple of heads={heads}")
        self.heads = heads
        self.qkv, self.out = nn.Linear(dim, 3 * dim), nn.Linear(dim, dim)

    @classmethod
    def from_torch(cls, module: nn.MultiheadAttention) -> SelfAttention:
        """A copy of PyTorch's module; with it, both give the same numbers."""
        extra = {"kdim or vdim": module.in_proj_weight is None, "bias=False": module.in_proj_bias is None}
        extra |= {"add_bias_kv": module.bias_k is not None, "add_zero_attn": module.add_zero_attn}
        if any(extra.values()):
            raise ValueError(f"MultiheadAttention with {', '.join(k for k, v in extra.items() if v)} can't be copied")
        own = cls(module.embed_dim, module.num_heads).to(module.in_proj_weight)
        with torch.no_grad():
            own.qkv.weight.copy_(module.in_proj_weight)  # (3 D, D): rows of Q, then K, then V
            own.qkv.bias.copy_(module.in_proj_bias)
            own.out.load_state_dict(module.out_proj.state_dict())
        return own

    def forward(
        self, x: Tensor, mask: Tensor | None = None, need_weights: bool = False
    ) -> tuple[Tensor, Tensor | None]:
        """Every token reads the sequence.

        Parameters
        ----------
        x
            (B, T, D).
        mask
            Additive, broadcast to (B, H, T, T).
        need_weights
            True goes through :func:`attention` and returns its weights; False uses PyTorch's fused form.

        Returns
        -------
        tokens
            (B, T, D).
        weights
            (B, H, T, T), or None.
        """
        q, k, v = self.qkv(x).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)  # (B, H, T, d) each
        if need_weights:
            read, weights = attention(q, k, v, mask)  # (B, H, T, d), (B, H, T, T)
        else:
            read, weights = F.scaled_dot_product_attention(q, k, v, attn_mask=mask), None  # (B, H, T, d)
        return self.out(read.transpose(1, 2).flatten(2)), weights  # (B, T, D)
