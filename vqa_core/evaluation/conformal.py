"""Answer sets that hold the right answer with a promised probability, whatever the model (split conformal prediction).

The promise is *marginal*: over calibration and test questions together that were drawn alike, the set misses the answer
in at most a share α of cases. It is none for a single question, for one kind of question, or after a shift.
Angelopoulos and Bates 2021 (arXiv 2107.07511).
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

METHODS = ("lac", "aps", "raps")


@dataclass(frozen=True, slots=True)
class ConformalSets:
    """A calibrated rule: call it with probabilities, get sets. Make one with :func:`calibrate`.

    Attributes
    ----------
    method, penalty, free_rank, seed
        As of :func:`calibrate`.
    threshold
        Answers with a score up to it are in the set; infinite when there were too few calibration questions.
    n
        Number of calibration questions.
    """

    method: str
    threshold: float
    n: int
    penalty: float
    free_rank: int
    seed: int

    def __call__(self, probabilities: np.ndarray) -> np.ndarray:
        """(Q, A) → bool (Q, A), which answers are in the set of each question; a set can be empty, or hold all."""
        p = _probabilities(probabilities)
        u = np.random.default_rng([self.seed, 1]).random((len(p), 1))  # other numbers than in the calibration
        return _scores(p, u, self.method, self.penalty, self.free_rank) <= self.threshold


def calibrate(
    probabilities: np.ndarray,
    answers: np.ndarray,
    alpha: float = 0.1,
    method: str = "lac",
    penalty: float = 0.01,
    free_rank: int = 5,
    seed: int = 0,
) -> ConformalSets:
    """Find the threshold: the ⌈(n + 1)(1 − α)⌉-th smallest score of the right answers.

    Parameters
    ----------
    probabilities
        (n, A) of calibration questions, which trained and chose nothing.
    answers
        Int (n,); −100 for an answer outside the vocabulary, which counts as missed by every set. When more than about a
        share α is outside, only sets of all answers are left, and even these miss.
    alpha
        Share of sets that may miss, between 0 and 1.
    method
        ``"lac"``: score 1 − p; the smallest sets on average (Sadinle et al. 2019, arXiv 1609.00451). ``"aps"``: the
        probability of all answers that are more probable, plus a random part of the answer's own; sets grow with
        difficulty (Romano et al. 2020, arXiv 2006.02544). ``"raps"``: the same, plus ``penalty`` for each rank beyond
        ``free_rank`` (Angelopoulos et al. 2021, arXiv 2009.14193).
    penalty, free_rank
        Of ``"raps"``; without meaning for the others.
    seed
        Of the random parts of ``"aps"`` and ``"raps"``, without which the sets would be too large.
    """
    p, y = _probabilities(probabilities), np.asarray(answers)
    if method not in METHODS:
        raise ValueError(f"method is {method!r}, allowed are {', '.join(map(repr, METHODS))}")
    if not 0 < alpha < 1:
        raise ValueError(f"alpha is {alpha}, it must lie between 0 and 1")
    if penalty < 0 or free_rank < 0:
        raise ValueError(f"penalty is {penalty} and free_rank is {free_rank}; both must be at least 0")
    known = (y >= 0) & (y < p.shape[1]) if y.shape == (len(p),) and y.dtype.kind in "iu" else np.zeros(0, bool)
    if len(known) != len(p) or not np.all(known | (y == -100)):
        raise ValueError(
            f"answers must be int ({len(p)},), 0 to {p.shape[1] - 1}, or -100 for one outside the vocabulary"
        )
    u = np.random.default_rng([seed, 0]).random((len(p), 1))
    own = _scores(p, u, method, penalty, free_rank)[np.arange(len(p)), np.where(known, y, 0)]  # (n,)
    score = np.where(known, own, np.inf)
    rank = math.ceil(round((len(p) + 1) * (1 - alpha), 9))  # rounded: 10 · (1 − 0.9) is 1, not 0.9999999999999998
    threshold = float(np.sort(score)[rank - 1]) if rank <= len(p) else math.inf
    return ConformalSets(method, threshold, len(p), penalty, free_rank, seed)


def covered(sets: np.ndarray, answers: np.ndarray) -> np.ndarray:
    """Whether each set holds the right answer, bool (Q,); an answer outside the vocabulary (negative) is never held."""
    s, y = np.asarray(sets, dtype=bool), np.asarray(answers)
    return np.where(y >= 0, s[np.arange(len(s)), np.maximum(y, 0)], False)


def singletons(sets: np.ndarray) -> np.ndarray:
    """Which questions a model answers that declines unless its set has exactly one answer, bool (Q,).

    The promise is about sets, not about these answers: the risk among singletons can be larger than α.
    """
    return np.asarray(sets, dtype=bool).sum(axis=1) == 1


def _scores(p: np.ndarray, u: np.ndarray, method: str, penalty: float, free_rank: int) -> np.ndarray:
    """How unlikely each answer is (Q, A), the lower the more likely. ``u`` is (Q, 1), from 0 to 1."""
    if method == "lac":
        return 1 - p
    order = np.argsort(-p, axis=1, kind="stable")  # (Q, A), from the most probable; among equals, by answer number
    ordered = np.take_along_axis(p, order, axis=1)
    score = ordered.cumsum(axis=1) - (1 - u) * ordered  # (Q, A): of the more probable ones, and a part u of its own
    if method == "raps":
        score = score + penalty * np.maximum(np.arange(1, p.shape[1] + 1) - free_rank, 0)
    scores = np.empty_like(p)
    np.put_along_axis(scores, order, score, axis=1)
    return scores


def _probabilities(probabilities: np.ndarray) -> np.ndarray:
    p = np.asarray(probabilities, dtype=np.float64)
    if p.ndim != 2 or p.size == 0:
        raise ValueError(f"probabilities have shape {p.shape}; give (questions, answers), none of them 0")
    if not (p.min() >= 0 and np.allclose(p.sum(axis=1), 1, atol=1e-3)):  # NaN fails too
        raise ValueError("probabilities must be at least 0 and sum to 1 over the answers; take softmax of logits first")
    return p
