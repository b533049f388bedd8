"""Whether a probability means what it says: NLL, Brier score, calibration errors, reliability, temperature scaling.

*Calibrated*: of the answers given with probability 0.8, 80 % are right. A calibration error alone is no quality: who
always says the base rate is calibrated. NLL and the Brier score are proper: nobody gains by saying what he does not
believe.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np

SCHEMES = ("width", "mass")


class Reliability(NamedTuple):
    """A reliability diagram: the bins that hold questions, in order of confidence.

    Attributes
    ----------
    confidence
        Mean confidence of each bin (K,).
    accuracy
        Mean of ``correct`` of each bin (K,).
    count
        Questions of each bin, int (K,), at least 1.
    """

    confidence: np.ndarray
    accuracy: np.ndarray
    count: np.ndarray


def nll(probabilities: np.ndarray, answers: np.ndarray) -> float:
    """Mean negative log-likelihood in nats; infinite when a right answer has probability 0.

    Parameters
    ----------
    probabilities
        (Q, A), of a posterior its ``mean``.
    answers
        The right answers, int (Q,), 0 … A − 1. Answers outside the vocabulary (−100) have no probability: leave these
        questions out, and say how many they were.
    """
    p, y = _distributions(probabilities, answers)
    with np.errstate(divide="ignore"):
        return float(-np.log(p[np.arange(len(y)), y]).mean())


def brier(probabilities: np.ndarray, answers: np.ndarray) -> float:
    """Brier's score (1950): mean over questions of Σₐ (pₐ − [a is right])², 0 to 2. Parameters as of :func:`nll`."""
    p, y = _distributions(probabilities, answers)
    return float((np.square(p).sum(axis=1) - 2 * p[np.arange(len(y)), y] + 1).mean())


def reliability(confidence: np.ndarray, correct: np.ndarray, bins: int = 15, scheme: str = "width") -> Reliability:
    """Confidence and accuracy by bins of confidence.

    Parameters
    ----------
    confidence
        Probability of the given answer (Q,), 0 to 1.
    correct
        Whether it was right (Q,): bool, or a soft accuracy from 0 to 1.
    bins
        Number of bins, at least 1.
    scheme
        ``"width"``: bins of equal width. ``"mass"``: about equally many questions in each; equal confidences are never
        parted, so that the result does not depend on the order of the questions.
    """
    c, r = _pair(confidence, correct)
    member = _members(c, bins, scheme)
    count = np.bincount(member)
    keep = count > 0
    count = count[keep]
    means = [np.bincount(member, weights=x)[keep] / count for x in (c, r)]
    return Reliability(*means, count)


def ece(confidence: np.ndarray, correct: np.ndarray, bins: int = 15, scheme: str = "width") -> float:
    """Expected calibration error: mean |confidence − accuracy| over the bins of :func:`reliability`, by their counts.

    Naeini et al. 2015; equal mass is Nguyen and O'Connor 2015. It is biased upwards: a perfectly calibrated model has
    an error above 0 that grows with the number of bins.
    """
    found = reliability(confidence, correct, bins, scheme)
    return float(np.average(np.abs(found.confidence - found.accuracy), weights=found.count))


def max_calibration_error(confidence: np.ndarray, correct: np.ndarray, bins: int = 15, scheme: str = "width") -> float:
    """The largest |confidence − accuracy| of a bin of :func:`reliability`."""
    found = reliability(confidence, correct, bins, scheme)
    return float(np.abs(found.confidence - found.accuracy).max())


def classwise_ece(probabilities: np.ndarray, answers: np.ndarray, bins: int = 15, scheme: str = "mass") -> float:
    """Mean over answers a of the calibration error of "is it a?"; parameters as of :func:`nll` and :func:`ece`.

    With ``"mass"`` this is the adaptive calibration error, with ``"width"`` the static one (Nixon et al. 2019,
    arXiv 1904.01685).
    """
    p, y = _distributions(probabilities, answers)
    return float(np.mean([ece(p[:, a], y == a, bins, scheme) for a in range(p.shape[1])]))


def fit_temperature(logits: np.ndarray, answers: np.ndarray) -> float:
    """The T > 0 for which softmax(logits / T) has the least NLL (Guo et al. 2017, arXiv 1706.04599).

    Parameters
    ----------
    logits
        (Q, A), of *validation* questions: neither training nor test.
    answers
        Int (Q,), 0 … A − 1.

    Raises
    ------
    ValueError
        When no T between 0.01 and 100 is best: with every answer right the NLL falls for ever as T → 0.
    """
    from scipy.optimize import minimize_scalar

    z, y = _labelled(logits, answers, "logits")

    def cost(log_t: float) -> float:
        scaled = z / math.exp(log_t)  # (Q, A)
        return float((_logsumexp(scaled) - scaled[np.arange(len(y)), y]).mean())

    edge = math.log(100)
    right = int((z[np.arange(len(y)), y] == z.max(axis=1)).sum())
    best = (
        -edge
        if right == len(y)
        else float(minimize_scalar(cost, bounds=(-edge, edge), method="bounded", options={"xatol": 1e-8}).x)
    )
    if edge - abs(best) < 1e-3:
        raise ValueError(
            f"no temperature between 0.01 and 100 has the least NLL ({right} of {len(y)} answers are right); "
            "fit it on validation questions that the model was not trained on"
        )
    return math.exp(best)


def apply_temperature(logits: np.ndarray, temperature: float) -> np.ndarray:
    """softmax(logits / T) over the last axis, float64; the best answer stays the best."""
    if not temperature > 0:
        raise ValueError(f"temperature is {temperature}, it must be greater than 0")
    z = np.asarray(logits, dtype=np.float64) / temperature
    return np.exp(z - _logsumexp(z)[..., None])


def _logsumexp(z: np.ndarray) -> np.ndarray:
    top = z.max(axis=-1)
    return top + np.log(np.exp(z - top[..., None]).sum(axis=-1))


def _members(confidence: np.ndarray, bins: int, scheme: str) -> np.ndarray:
    """Bin of each question, int (Q,)."""
    if bins < 1:
        raise ValueError(f"bins is {bins}, it must be at least 1")
    if scheme == "width":
        edges = np.linspace(0, 1, bins + 1)[1:-1]
    elif scheme == "mass":  # an edge is one of the confidences, and everything equal to it lies on one side
        n = len(confidence)
        edges = np.sort(confidence)[[n * i // bins for i in range(1, bins)]]
    else:
        raise ValueError(f"scheme is {scheme!r}, allowed are {', '.join(map(repr, SCHEMES))}")
    return np.searchsorted(edges, confidence, side="right")


def _pair(confidence: np.ndarray, correct: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    c, r = np.asarray(confidence, dtype=np.float64), np.asarray(correct, dtype=np.float64)
    if c.ndim != 1 or c.shape != r.shape or c.size == 0:
        raise ValueError(f"confidence has shape {c.shape} and correct {r.shape}; give two equally long rows, not empty")
    for name, x in (("confidence", c), ("correct", r)):
        if not (x.min() >= 0 and x.max() <= 1):  # NaN fails too
            raise ValueError(f"{name} must lie between 0 and 1, it ranges from {x.min()} to {x.max()}")
    return c, r


def _labelled(x: np.ndarray, answers: np.ndarray, name: str) -> tuple[np.ndarray, np.ndarray]:
    x, y = np.asarray(x, dtype=np.float64), np.asarray(answers)
    if x.ndim != 2 or x.size == 0 or y.shape != x.shape[:1] or y.dtype.kind not in "iu":
        raise ValueError(
            f"{name} have shape {x.shape} and answers {y.dtype} {y.shape}; give (Q, A) and int (Q,), Q ≥ 1"
        )
    if y.min() < 0 or y.max() >= x.shape[1]:
        raise ValueError(
            f"answers range from {y.min()} to {y.max()}; allowed are 0 to {x.shape[1] - 1}: leave others out"
        )
    if not np.isfinite(x).all():
        raise ValueError(f"{name} hold {np.sum(~np.isfinite(x))} entries that are not finite")
    return x, y


def _distributions(probabilities: np.ndarray, answers: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    p, y = _labelled(probabilities, answers, "probabilities")
    if p.min() < 0 or not np.allclose(p.sum(axis=1), 1, atol=1e-3):
        raise ValueError("probabilities must be at least 0 and sum to 1 over the answers; take softmax of logits first")
    return p, y
