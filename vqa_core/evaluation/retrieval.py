"""Retrieval: where in the ranking does the right one stand? Exact where scores are equal."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from scipy.stats import hypergeom

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


def hits_at_k(scores: np.ndarray, k: int, right: np.ndarray | None = None, tolerance: float = TOLERANCE) -> np.ndarray:
    """Chance of each query that a right candidate is among the first k, ties broken at random, float (Q,).

    Parameters
    ----------
    scores
        (Q, C), the higher the better; queries are rows. Transpose for the other direction.
    k
        1 to C.
    right
        bool (Q, C), the right candidates of each query, at least one: of Flickr8k's pictures all five captions are
        right, and one of them suffices. ``None``: scores are a square, and candidate q is right for query q.
    tolerance
        Scores closer than this to the best right one tie with it.

    Raises
    ------
    ValueError
        When shapes do not fit, scores are not finite, k is out of range, or a query has no right candidate.
    """
    scores = np.asarray(scores, dtype=np.float64)
    if scores.ndim != 2 or (right is None and scores.shape[0] != scores.shape[1]):
        raise ValueError(f"scores have shape {scores.shape}; give (Q, C), and right (Q, C) where it is no square")
    right = np.eye(len(scores), dtype=bool) if right is None else np.asarray(right)
    if right.dtype != bool or right.shape != scores.shape or not right.any(axis=1).all():
        raise ValueError(f"right is {right.dtype} {right.shape}; give bool {scores.shape} with a True in every row")
    if not np.isfinite(scores).all() or not 1 <= k <= scores.shape[1]:
        raise ValueError(f"scores must be finite, and k={k} between 1 and the {scores.shape[1]} candidates")
    best = np.where(right, scores, -np.inf).max(axis=1, keepdims=True)  # (Q, 1)
    wrong, near = ~right, np.abs(scores - best) <= tolerance  # (Q, C) each
    ahead = (wrong & (scores > best + tolerance)).sum(axis=1)  # (Q,)
    tied_wrong, tied_right = (wrong & near).sum(axis=1), (right & near).sum(axis=1)  # (Q,), (Q,)
    drawn = np.clip(k - ahead, 0, tied_wrong + tied_right)  # places left for those that tie
    return 1 - hypergeom.pmf(0, tied_wrong + tied_right, tied_right, drawn)  # (Q,), not all places go to wrong ones


def recall_at_k(scores: np.ndarray, k: int, right: np.ndarray | None = None, tolerance: float = TOLERANCE) -> float:
    """R@k, 0 to 1: the mean of :func:`hits_at_k`, whose parameters and errors it has."""
    return float(hits_at_k(scores, k, right, tolerance).mean())
