"""Retrieval: where in the ranking does the right one stand? Exact where scores are equal."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

TOLERANCE = 1e-5  # cosines this close are equal: float32 computes them to about 1e-7


class Ranks(NamedTuple):
    """How many candidates score higher than the right one, and how many as high (itself among them).

    Attributes
    ----------
    higher, equal
        int (Q,), one entry per query.
    """

    higher: np.ndarray
    equal: np.ndarray

    def recall_at(self, k: int) -> np.ndarray:
        """Chance that the right one is among the first k when ties are broken at random, float (Q,) in [0, 1]."""
        return np.clip((k - self.higher) / self.equal, 0.0, 1.0)

    def expected(self) -> np.ndarray:
        """Expected rank, 1 for the best, float (Q,)."""
        return self.higher + (self.equal + 1) / 2


def ranks(scores: np.ndarray, tolerance: float = TOLERANCE) -> Ranks:
    """Rank of the diagonal in each row of scores (Q, Q): query q, candidate c, and q belongs to q.

    Scores closer than ``tolerance`` count as equal: a constant score would otherwise be ranked by rounding errors, and
    an ``argmax`` would give all of its ties to the first candidate.

    Raises
    ------
    ValueError
        When scores are not a square, or not finite.
    """
    scores = np.asarray(scores, dtype=np.float64)
    if scores.ndim != 2 or scores.shape[0] != scores.shape[1]:
        raise ValueError(f"scores have shape {scores.shape}; give a square, row q's right candidate is q")
    if not np.isfinite(scores).all():
        raise ValueError(f"{np.sum(~np.isfinite(scores))} scores are not finite")
    more = scores - np.diag(scores)[:, None]  # (Q, Q)
    return Ranks((more > tolerance).sum(axis=1), (np.abs(more) <= tolerance).sum(axis=1))


def recall_both_ways(scores: np.ndarray, k: int, tolerance: float = TOLERANCE) -> float:
    """R@k from 0 to 1, mean of picture → caption (rows) and caption → picture (columns)."""
    return float(np.mean([ranks(s, tolerance).recall_at(k).mean() for s in (scores, np.asarray(scores).T)]))


def median_rank(scores: np.ndarray, tolerance: float = TOLERANCE) -> float:
    """Median of the expected ranks of both directions together; 1 is best, (Q + 1) / 2 is chance."""
    return float(np.median([ranks(s, tolerance).expected() for s in (scores, np.asarray(scores).T)]))
