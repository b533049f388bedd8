"""Heads that classify: an answer vector becomes one logit for each answer."""

from __future__ import annotations

import itertools

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
    """Hidden layers of linear, ReLU, dropout, then linear: (B, in_dim) → logits (B, answers).

    Parameters
    ----------
    in_dim
        Features of the fused vector, ``fusion.out_dim``.
    answers
        How many answers there are.
    hidden
        Width of the hidden layers; ``None`` takes in_dim.
    dropout
        Probability of dropping a hidden feature.
    depth
        Number of hidden layers.
    """

    def __init__(
        self, in_dim: int, answers: int, hidden: int | None = None, dropout: float = 0.0, depth: int = 1
    ) -> None:
        super().__init__()
        if depth < 1:
            raise ValueError(f"depth is {depth}; an MLP has at least 1 hidden layer (LinearHead has none)")
        hidden = hidden or in_dim
        widths = [in_dim, *[hidden] * depth]
        layers = [nn.Sequential(nn.Linear(a, b), nn.ReLU(), nn.Dropout(dropout)) for a, b in itertools.pairwise(widths)]
        self.layers = nn.Sequential(*layers, nn.Linear(hidden, answers))

    def forward(self, fused: Tensor) -> Tensor:
        return self.layers(fused)  # (B, answers)
