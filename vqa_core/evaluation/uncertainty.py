"""How unsure, and why: the total uncertainty of a posterior, split into what more data would and would not remove.

S sampled distributions p₁ … p_S over the answers of one question disagree (*epistemic*: the weights are not known) and
are each unsure (*aleatoric*: the question itself leaves it open). Depeweg et al. 2018 (arXiv 1710.07283); the mutual
information is Houlsby et al. 2011 (arXiv 1112.5745).
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np


class Uncertainty(NamedTuple):
    """The parts of an uncertainty; total = aleatoric + epistemic.

    Attributes
    ----------
    total, aleatoric, epistemic
        One number per question (Q,) in nats from :func:`entropy_split`; per question and answer (Q, A), variances,
        from :func:`variance_split`.
    """

    total: np.ndarray
    aleatoric: np.ndarray
    epistemic: np.ndarray


def entropy_split(probabilities: np.ndarray, jackknife: bool = False) -> Uncertainty:
    """Total = entropy of the mean, aleatoric = mean of the entropies, epistemic = mutual information ≥ 0, in nats.

    Parameters
    ----------
    probabilities
        (S, Q, A): sample, question, answer.
    jackknife
        Remove the bias of order 1/S. S samples agree more with their own mean than with the true one, so the plain
        epistemic part is too small on average (by 39 % for one head at S = 5, by 3 % at S = 100); the aleatoric part
        has no bias. Needs S ≥ 2; the total is corrected with the epistemic part and can exceed ln A.
    """
    p = as_samples(probabilities)
    mean = p.mean(axis=0)  # (Q, A)
    aleatoric = entropy(p).mean(axis=0)  # (Q,)
    information = entropy(mean) - aleatoric  # (Q,)
    if jackknife:
        s = len(p)
        if s < 2:
            raise ValueError("the jackknife leaves one sample out of several; got 1 sample")
        left_out = sum(entropy((s * mean - one).clip(0) / (s - 1)) for one in p) / s  # (Q,), of the means without one
        information = s * information - (s - 1) * (left_out - aleatoric)
    epistemic = np.maximum(information, 0)  # below 0 only by rounding (Jensen)
    return Uncertainty(aleatoric + epistemic, aleatoric, epistemic)


def variance_split(probabilities: np.ndarray) -> Uncertainty:
    """The law of total variance for "is it answer a?": p̄(1 − p̄) = mean of p(1 − p) + variance of p; each (Q, A).

    Parameters
    ----------
    probabilities
        (S, Q, A). Summed over the answers, the total is 1 − Σ p̄²; the variance is over S, not over S − 1.
    """
    p = as_samples(probabilities)
    mean = p.mean(axis=0)  # (Q, A)
    return Uncertainty(mean * (1 - mean), (p * (1 - p)).mean(axis=0), p.var(axis=0))


def confidences(probabilities: np.ndarray) -> dict[str, np.ndarray]:
    """Scores by which questions can be declined, each (Q,), the higher the surer.

    Returns
    -------
    dict
        ``probability`` of the best answer, ``margin`` to the second best, and −``total``, −``aleatoric``,
        −``epistemic`` of :func:`entropy_split`.
    """
    p = as_samples(probabilities)
    if p.shape[-1] < 2:
        raise ValueError("there is 1 answer; a margin needs at least 2")
    second, best = np.partition(p.mean(axis=0), -2, axis=-1)[:, -2:].T  # (Q,), (Q,)
    split = {name: -value for name, value in entropy_split(p)._asdict().items()}
    return {"probability": best, "margin": best - second, **split}


def entropy(p: np.ndarray) -> np.ndarray:
    """−Σ p ln p over the last axis, in nats; 0 ln 0 is 0."""
    from scipy.special import entr

    return entr(p).sum(axis=-1)


def as_samples(probabilities: np.ndarray) -> np.ndarray:
    """Check sampled probabilities and return them as float64 (S, Q, A).

    Raises
    ------
    ValueError
        When the shape is another, or a row is no distribution (logits given by mistake, for instance).
    """
    p = np.asarray(probabilities, dtype=np.float64)
    if p.ndim != 3 or p.size == 0:
        raise ValueError(f"probabilities have shape {p.shape}; give (samples, questions, answers), none of them 0")
    if not (p.min() >= 0 and np.allclose(p.sum(axis=-1), 1, atol=1e-3)):  # NaN fails too
        raise ValueError(
            "probabilities must be at least 0 and sum to 1 over the last axis; take softmax of logits first"
        )
    return p
