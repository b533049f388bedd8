"""Heads that classify: an answer vector becomes one logit for each answer."""

from __future__ import annotations

from torch import Tensor, nn


class LinearHead(nn.Linear):
    """One linear layer, (B, in_dim) → logits (B, answers).

    Parameters
    ----------
    in_dim
        Features of the fused vector, ``fusion.out_dim``.
    answers
        How many answers there are.
    """

    def __init__(self, in_dim: int, answers: int) -> None:
        super().__init__(in_dim, answers)


class MLPHead(nn.Module):
    """Linear, ReLU, dropout, linear: (B, in_dim) → logits (B, answers).

    Parameters
    ----------
    in_dim
        Features of the fused vector, ``fusion.out_dim``.
    answers
        How many answers there are.
    hidden
        Width of the hidden layer; ``None`` takes in_dim.
    dropout
        Probability of dropping a hidden feature.
    """

    def __init__(self, in_dim: int, answers: int, hidden: int | None = None, dropout: float = 0.0) -> None:
        super().__init__()
        hidden = hidden or in_dim
        self.layers = nn.Sequential(
            nn.Linear(in_dim, hidden), nn.ReLU(), nn.Dropout(dropout), nn.Linear(hidden, answers)
        )

    def forward(self, fused: Tensor) -> Tensor:
        return self.layers(fused)  # (B, answers)
