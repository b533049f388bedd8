"""Attention and the pre-norm transformer block, written out."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from vqa_core.fusion.output import masked_softmax


class MultiHeadAttention(nn.Module):
    """softmax(Q Kᵀ / √d) V in several heads (Vaswani et al. 2017, arXiv 1706.03762).

    Parameters
    ----------
    dim
        D, features of a token; a multiple of heads.
    heads
        H; each works on d = D / H features.
    dropout
        Probability of dropping an attention weight in training.
    """

    def __init__(self, dim: int, heads: int, dropout: float = 0.0) -> None:
        super().__init__()
        if dim % heads:
            raise ValueError(f"dim={dim} is not a multiple of heads={heads}")
        self.heads, self.dropout = heads, dropout
        self.query, self.key, self.value = nn.Linear(dim, dim), nn.Linear(dim, dim), nn.Linear(dim, dim)
        self.out = nn.Linear(dim, dim)

    def forward(
        self, queries: Tensor, context: Tensor, mask: Tensor | None = None, need_weights: bool = False
    ) -> tuple[Tensor, Tensor | None]:
        """Every query token reads the context; self-attention when both are the same.

        Parameters
        ----------
        queries
            (B, Tq, D).
        context
            (B, Tk, D), gives keys and values.
        mask
            bool (B, Tk), True at real context tokens; None when all are real. A query whose context has no real token
            reads zeros.
        need_weights
            True computes the weights explicitly and returns them; False uses PyTorch's fused attention.

        Returns
        -------
        tokens
            (B, Tq, D).
        weights
            (B, H, Tq, Tk) as they were used (after dropout, in training), or None.
        """
        q, k, v = self.query(queries), self.key(context), self.value(context)  # (B, Tq, D), (B, Tk, D) twice
        q, k, v = (t.unflatten(-1, (self.heads, -1)).transpose(1, 2) for t in (q, k, v))  # (B, H, T, d)
        if mask is not None:
            mask = mask[:, None, None, :]  # (B, 1, 1, Tk)
        dropout = self.dropout if self.training else 0.0
        weights = None
        if need_weights:
            scores = q @ k.transpose(-2, -1) * q.shape[-1] ** -0.5  # (B, H, Tq, Tk)
            weights = F.dropout(masked_softmax(scores, mask), dropout)
            read = weights @ v  # (B, H, Tq, d)
        else:
            read = F.scaled_dot_product_attention(q, k, v, attn_mask=mask, dropout_p=dropout)  # (B, H, Tq, d)
        return self.out(read.transpose(1, 2).flatten(2)), weights  # (B, Tq, D)


class FeedForward(nn.Sequential):
    """Linear, GELU, dropout, linear: each token on its own, (…, D) → (…, D).

    Parameters
    ----------
    dim
        D.
    ratio
        Hidden features per feature.
    dropout
        Probability of dropping a hidden feature.
    """

    def __init__(self, dim: int, ratio: float = 4.0, dropout: float = 0.0) -> None:
        hidden = round(ratio * dim)
        super().__init__(nn.Linear(dim, hidden), nn.GELU(), nn.Dropout(dropout), nn.Linear(hidden, dim))


class TransformerBlock(nn.Module):
    """Pre-norm block: x + Attention(norm(x)), then x + FeedForward(norm(x)).

    Parameters
    ----------
    dim, heads, dropout
        See :class:`MultiHeadAttention`.
    mlp_ratio
        Hidden features of the feed-forward part per feature.
    """

    def __init__(self, dim: int, heads: int, mlp_ratio: float = 4.0, dropout: float = 0.0) -> None:
        super().__init__()
        self.attention_norm, self.mlp_norm = nn.LayerNorm(dim), nn.LayerNorm(dim)
        self.attention = MultiHeadAttention(dim, heads, dropout)
        self.mlp = FeedForward(dim, mlp_ratio, dropout)

    def forward(
        self, x: Tensor, mask: Tensor | None = None, need_weights: bool = False, queries: int | None = None
    ) -> tuple[Tensor, Tensor | None]:
        """Tokens (B, T, D) with mask (B, T) → tokens (B, Tq, D) and weights (B, H, Tq, T) or None.

        Only the first ``queries`` tokens are computed (Tq; all T by default): a last block of which one token is
        read need not compute the others.
        """
        h = self.attention_norm(x)
        read, weights = self.attention(h[:, :queries], h, mask, need_weights)  # (B, Tq, D)
        x = x[:, :queries] + read
        return x + self.mlp(self.mlp_norm(x)), weights


class CrossBlock(nn.Module):
    """Pre-norm block with two attentions: x reads itself, then a context, then comes the feed-forward part.

    Parameters
    ----------
    dim, heads, mlp_ratio, dropout
        See :class:`TransformerBlock`.
    """

    def __init__(self, dim: int, heads: int, mlp_ratio: float = 4.0, dropout: float = 0.0) -> None:
        super().__init__()
        self.self_norm, self.cross_norm, self.mlp_norm = (nn.LayerNorm(dim) for _ in range(3))
        self.self_attention = MultiHeadAttention(dim, heads, dropout)
        self.cross_attention = MultiHeadAttention(dim, heads, dropout)
        self.mlp = FeedForward(dim, mlp_ratio, dropout)

    def forward(
        self,
        x: Tensor,
        context: Tensor,
        mask: Tensor | None = None,
        context_mask: Tensor | None = None,
        need_weights: bool = False,
    ) -> tuple[Tensor, Tensor | None]:
        """Tokens (B, T, D) and context (B, Tk, D) → tokens (B, T, D) and cross weights (B, H, T, Tk) or None."""
        h = self.self_norm(x)
        x = x + self.self_attention(h, h, mask)[0]
        read, weights = self.cross_attention(self.cross_norm(x), context, context_mask, need_weights)  # (B, T, D)
        x = x + read
        return x + self.mlp(self.mlp_norm(x)), weights
