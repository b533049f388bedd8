"""Intervals and tests for accuracies: one run, several seeds, several questions about one picture.

Three things make an accuracy uncertain: the questions that happened to be in the test set, the pictures that
several of them share, and the seed of the training. :func:`wilson` knows the first, :func:`bootstrap` the first two,
:func:`mean_over_seeds` the last, and :func:`seeds_and_questions` all three: it is the interval of the book.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np


@dataclass(frozen=True, slots=True)
class Interval:
    """A number with its uncertainty; it never travels without n.

    Attributes
    ----------
    mean
        The estimate (a mean, or the statistic that was asked for).
    low, high
        Ends of the interval, in the unit of ``mean``.
    n
        Number of questions (of seeds, for :func:`mean_over_seeds`) that the number rests on, at least 1.
    level
        Nominal coverage, between 0 and 1.
    seeds
        Number of training seeds; ``None`` when seeds are no part of the question.
    method
        How the interval was made, in words.
    """

    mean: float
    low: float
    high: float
    n: int
    level: float = 0.95
    seeds: int | None = None
    method: str = ""

    def __post_init__(self) -> None:
        if not all(map(math.isfinite, (self.mean, self.low, self.high))):
            raise ValueError(f"an interval needs finite numbers, not {self.mean} [{self.low}, {self.high}]")
        if self.low > self.high:
            raise ValueError(f"the interval's low end {self.low} lies above its high end {self.high}")
        if self.n < 1:
            raise ValueError(f"n is {self.n}; a number that rests on nothing has no interval")
        if not 0 < self.level < 1:
            raise ValueError(f"level is {self.level}, it must lie between 0 and 1")

    def __str__(self) -> str:
        seeds = "" if self.seeds is None else f", {self.seeds} seeds"
        return f"{self.mean:.3f} [{self.low:.3f}, {self.high:.3f}], n = {self.n:,}{seeds}"


class Test(NamedTuple):
    """A two-sided test: its name, statistic, p-value, and the number n of pairs it rests on."""

    name: str
    statistic: float
    p_value: float
    n: int


class Difference(NamedTuple):
    """What :func:`paired_difference` returns: how large (``interval``) and whether by chance (``test``)."""

    interval: Interval
    test: Test


def wilson(correct: int, n: int, level: float = 0.95) -> Interval:
    """Wilson's score interval for ``correct`` successes out of ``n`` (Wilson 1927): one run, independent questions."""
    from scipy.stats import binomtest

    if n < 1 or not 0 <= correct <= n:
        raise ValueError(f"{correct} correct of {n}: needs n of at least 1 and 0 <= correct <= n")
    low, high = binomtest(int(correct), int(n)).proportion_ci(level, method="wilson")
    return Interval(correct / n, float(low), float(high), int(n), level, method="Wilson")


def mean_over_seeds(values: Sequence[float], level: float = 0.95) -> Interval:
    """Mean and t interval of one number per seed.

    Raises
    ------
    ValueError
        With fewer than two seeds: one run says nothing about the next.
    """
    from scipy.stats import t

    x = _finite(values, "values", ndim=1)
    if len(x) < 2:
        raise ValueError(f"an interval over seeds needs at least 2 seeds, not {len(x)}")
    half = float(t.ppf((1 + level) / 2, len(x) - 1) * x.std(ddof=1) / math.sqrt(len(x)))
    mean = float(x.mean())
    return Interval(mean, mean - half, mean + half, len(x), level, len(x), "t over seeds")


def bootstrap(
    values: np.ndarray,
    groups: Sequence | None = None,
    statistic: Callable[[np.ndarray], float] | None = None,
    resamples: int = 10_000,
    seed: int = 0,
    level: float = 0.95,
) -> Interval:
    """Percentile bootstrap; with ``groups``, whole groups are drawn (Efron & Tibshirani 1993; Field & Welsh 2007).

    Parameters
    ----------
    values
        (Q,) one number per question; with a ``statistic`` also (Q, K), one row per question.
    groups
        (Q,) what the questions share, normally the picture id. Questions about one picture are not independent,
        and an interval that ignores it is too narrow.
    statistic
        Maps resampled ``values`` to a number; ``None`` is the mean, which needs no loop.

    Notes
    -----
    The percentile interval is a little narrow with fewer than about 30 groups.
    """
    rng = np.random.default_rng(seed)
    if statistic is None:
        x = _finite(values, "values", ndim=1)
        return _percentile(x.mean(), _resampled_means(x, groups, resamples, rng), len(x), level, groups)
    x = _finite(values, "values")
    labels = _labels(groups, len(x))
    order = np.argsort(labels, kind="stable")
    members = np.split(order, np.flatnonzero(np.diff(labels[order])) + 1)
    draws = rng.integers(len(members), size=(resamples, len(members)))  # (R, G)
    means = np.array([statistic(x[np.concatenate([members[g] for g in draw])]) for draw in draws])
    return _percentile(statistic(x), means, len(x), level, groups)


def seeds_and_questions(
    correct: np.ndarray,
    groups: Sequence | None = None,
    resamples: int = 10_000,
    seed: int = 0,
    level: float = 0.95,
) -> Interval:
    """The interval of the book: the same test questions answered by models of several training seeds.

    Parameters
    ----------
    correct
        (S, Q) whether seed s answers question q rightly: bool, or a score (VQA accuracy), or a difference of scores.
    groups
        (Q,) picture ids; whole pictures are drawn. ``None``: each question on its own.

    Notes
    -----
    Each resample is the mean plus two independent errors. *Questions*: whole pictures are drawn with replacement and
    the seeds' average score is averaged again. *Seeds*: their error is drawn from the t distribution with S − 1 degrees
    of freedom, times s/√S, because five values can't be bootstrapped: a percentile interval that is meant to cover
    95 % covers 84 %, and drawing seeds and pictures together (Owen 2007) covers 89 % where seeds differ by two points
    and there are 8,000 questions (simulated; here 96 %). Without noise from questions this is exactly the t interval
    of :func:`mean_over_seeds`, without noise from seeds the clustered bootstrap. Noise of single (seed, question)
    pairs is counted in both parts, so the interval is slightly too wide on small test sets (covers 97–99 %). One seed
    (S = 1) gives the questions' part alone, and ``seeds=1`` says so. Of answers (bool) the interval ends at 0 and 1:
    a share can't lie beyond, and what is cut off covers nothing.

    Where every answer (bool) is right, or every one wrong, there is no spread to resample: then Wilson's interval over
    groups is given (named in ``method``).
    """
    x = _finite(correct, "correct", ndim=2)
    is_share = np.asarray(correct).dtype == bool
    n_seeds, n = x.shape
    rng = np.random.default_rng(seed)
    if is_share and (np.all(x == 0) or np.all(x == 1)):
        n_groups = len(np.unique(_labels(groups, n)))
        w = wilson(n_groups * int(x[0, 0]), n_groups, level)
        return Interval(w.mean, w.low, w.high, n, level, n_seeds, f"Wilson over {n_groups} groups (no spread)")
    means = _resampled_means(x.mean(axis=0), groups, resamples, rng)  # (R,)
    if n_seeds > 1:
        means = means + rng.standard_t(n_seeds - 1, resamples) * x.mean(axis=1).std(ddof=1) / math.sqrt(n_seeds)
    if is_share:
        means = means.clip(0, 1)
    return _percentile(x.mean(), means, n, level, groups, n_seeds)


def paired_difference(
    a: np.ndarray,
    b: np.ndarray,
    groups: Sequence | None = None,
    resamples: int = 10_000,
    seed: int = 0,
    level: float = 0.95,
) -> Difference:
    """Mean of ``a − b`` for two models on the same questions and seeds, with interval and test.

    Parameters
    ----------
    a, b
        (S, Q) scores; row s of both comes from the same seed and column q from the same question.

    Returns
    -------
    Difference
        The interval of :func:`seeds_and_questions` on ``a − b``; the test is the paired t test over seeds
        (:func:`paired_test`), or with one seed McNemar's exact test over questions (:func:`mcnemar`).
    """
    x, y = _finite(a, "a", ndim=2), _finite(b, "b", ndim=2)
    if x.shape != y.shape:
        raise ValueError(f"a is {x.shape} and b is {y.shape}; a paired difference needs the same seeds and questions")
    test = paired_test(x.mean(axis=1), y.mean(axis=1)) if len(x) > 1 else mcnemar(x[0], y[0])
    return Difference(seeds_and_questions(x - y, groups, resamples, seed, level), test)


def paired_test(a_by_seed: Sequence[float], b_by_seed: Sequence[float], method: str = "t") -> Test:
    """Two-sided test that two models differ, from one number per seed and model.

    Parameters
    ----------
    method
        ``"t"``: paired t test, assumes differences that are about normal. ``"sign-flip"``: all 2ⁿ signs of the
        differences, assumes only symmetry, at most 12 seeds; its p-value can't fall below 2/2ⁿ (0.0625 for n = 5).
    """
    from scipy.stats import permutation_test, ttest_rel

    a, b = _finite(a_by_seed, "a_by_seed", ndim=1), _finite(b_by_seed, "b_by_seed", ndim=1)
    if len(a) != len(b) or len(a) < 2:
        raise ValueError(f"a paired test needs the same seeds on both sides and at least 2; got {len(a)} and {len(b)}")
    if method == "t":
        if np.array_equal(a, b):  # 0/0: no difference at all
            return Test("paired t", 0.0, 1.0, len(a))
        result = ttest_rel(a, b)
    elif method == "sign-flip":
        if len(a) > 12:
            raise ValueError(f"the exact sign-flip test lists all 2^n signs; n is {len(a)}, at most 12: use method='t'")
        result = permutation_test(
            (a, b), lambda x, y, axis: (x - y).mean(axis), permutation_type="samples", n_resamples=np.inf,
            vectorized=True,
        )  # fmt: skip
    else:
        raise ValueError(f"method is {method!r}, allowed are 't' and 'sign-flip'")
    name = {"t": "paired t", "sign-flip": "exact sign-flip"}[method]
    return Test(name, float(result.statistic), float(result.pvalue), len(a))


def mcnemar(a_correct: np.ndarray, b_correct: np.ndarray) -> Test:
    """McNemar's exact test: of the n questions that only one of two models gets right, is half on each side?

    The statistic is the number that only ``a`` gets right; n counts the questions on which the two disagree.
    """
    from scipy.stats import binomtest

    a, b = np.asarray(a_correct), np.asarray(b_correct)
    if a.shape != b.shape or a.ndim != 1 or not (np.isin(a, (0, 1)).all() and np.isin(b, (0, 1)).all()):
        raise ValueError(f"McNemar's test needs two equally long rows of right/wrong; got shapes {a.shape}, {b.shape}")
    only_a, only_b = int(np.sum(a > b)), int(np.sum(b > a))
    n = only_a + only_b
    return Test("exact McNemar", float(only_a), float(binomtest(only_a, n).pvalue) if n else 1.0, n)


def holm(p_values: Sequence[float]) -> np.ndarray:
    """Holm's adjusted p-values (Holm 1979), in the order given; below 0.05 in all, the whole family errs in 5 %."""
    p = _finite(p_values, "p_values", ndim=1)
    if p.min() < 0 or p.max() > 1:
        raise ValueError("p-values must lie between 0 and 1")
    order = np.argsort(p)
    adjusted = np.empty_like(p)
    adjusted[order] = np.minimum(1, np.maximum.accumulate(p[order] * np.arange(len(p), 0, -1)))
    return adjusted


def separated(a: Interval, b: Interval) -> bool:
    """Whether two intervals do not overlap (sufficient for a difference, not necessary: see paired_difference)."""
    return a.high < b.low or b.high < a.low


def _finite(values, name: str, ndim: int | None = None) -> np.ndarray:
    x = np.asarray(values, dtype=np.float64)
    if x.size == 0:
        raise ValueError(f"{name} is empty")
    if ndim is not None and x.ndim != ndim:
        raise ValueError(f"{name} must have {ndim} dimension(s), it has shape {x.shape}")
    if not np.isfinite(x).all():
        raise ValueError(f"{name} holds {np.sum(~np.isfinite(x))} entries that are not finite")
    return x


def _labels(groups: Sequence | None, n: int) -> np.ndarray:
    """Group number of each question, int (n,)."""
    if groups is None:
        return np.arange(n)
    if len(groups) != n:
        raise ValueError(f"{len(groups)} group labels for {n} questions")
    return np.unique(np.asarray(groups), return_inverse=True)[1]


def _resampled_means(values: np.ndarray, groups: Sequence | None, resamples: int, rng) -> np.ndarray:
    """Means of ``values`` (Q,) after drawing groups with replacement, (R,).

    Groups with the same sum and size are interchangeable, so it is enough to draw how often each *kind* of group
    comes: a multinomial over a handful of kinds instead of thousands of groups.
    """
    labels = _labels(groups, len(values))
    sizes = np.bincount(labels)  # (G,)
    sums = np.bincount(labels, weights=values).round(12)  # (G,)
    kinds, count = np.unique(np.stack([sums, sizes], axis=1), axis=0, return_counts=True)  # (K, 2), (K,)
    means = []
    step = max(1, 4_000_000 // len(kinds))  # at most 32 MB of counts at a time
    for start in range(0, resamples, step):
        draws = rng.multinomial(len(sizes), count / len(sizes), size=min(step, resamples - start))  # (r, K)
        total = draws @ kinds  # (r, 2)
        means.append(total[:, 0] / total[:, 1])
    return np.concatenate(means)


def _percentile(mean, resampled, n, level, groups, seeds=None) -> Interval:
    low, high = np.quantile(resampled, [(1 - level) / 2, (1 + level) / 2])
    what = "questions" if groups is None else f"{len(set(groups))} groups"
    method = f"bootstrap of {what}" + ("" if seeds is None or seeds < 2 else f" and t over {seeds} seeds")
    return Interval(float(mean), float(low), float(high), n, level, seeds, method)
