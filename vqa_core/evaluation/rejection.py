"""Declining: how good the answers are when only the surest questions are answered, and what can be promised about it.

Questions are answered in order of confidence. *Coverage* is the share that is answered, *selective risk* the mean error
of these. Errors are real numbers from 0 to 1: wrong or right, or 1 − soft accuracy. Where confidences are equal, every
number here is the expectation over all orders of the tied questions, so that none depends on the order of the rows.

Names differ in the literature. Here, with errors sorted by falling confidence and their sums Eₖ over the first k of n,

- AURC = (1/n) Σₖ Eₖ / k, the mean selective risk over the n cut-offs (Geifman and El-Yaniv 2017, arXiv 1705.08500;
  no interpolation, no point at coverage 0),
- E-AURC = AURC − AURC of an oracle that knows the errors, computed and not approximated,
- AUGRC = area under Eₖ / n over coverage k / n by trapezoids from (0, 0) (Traub et al. 2024, arXiv 2407.01032).
"""

from __future__ import annotations

import functools
import math
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np

from vqa_core.evaluation.statistics import Interval

#: Where bands are drawn: 1 %, 2 %, … 100 % coverage.
COVERAGES = np.arange(1, 101) / 100


# ------------------------------------------------------------------------------------------------------------- curves


class RiskCoverage(NamedTuple):
    """A risk–coverage curve.

    Attributes
    ----------
    coverage
        Share of questions that are answered, (n,), 1/n … 1; (K,) where coverages were asked for.
    risk
        Mean error of these, same shape, 0 to 1. 1 − risk over 1 − coverage is the accuracy–rejection curve.
    """

    coverage: np.ndarray
    risk: np.ndarray


def risk_coverage(
    errors: np.ndarray, confidence: np.ndarray, coverages: Sequence[float] | np.ndarray | None = None
) -> RiskCoverage:
    """Selective risk when the k most confident questions are answered, k = 1 … n, or at given coverages.

    Parameters
    ----------
    errors
        (n,) bool, or numbers from 0 (right) to 1 (wrong).
    confidence
        (n,) any scale, the higher the surer; not NaN.
    coverages
        (K,) each above 0, at most 1. Where coverage · n is no whole number, a part of the next question is answered.

    Examples
    --------
    >>> risk_coverage([0, 1, 0, 0, 1], [5, 4, 3, 2, 1]).risk.round(3).tolist()
    [0.0, 0.5, 0.333, 0.25, 0.4]
    """
    ranked = _Ranked(errors, confidence)
    share = np.arange(1, ranked.n + 1) / ranked.n if coverages is None else _coverages(coverages)
    k = np.arange(1, ranked.n + 1) if coverages is None else share * ranked.n
    return RiskCoverage(share, ranked.risk(np.ones(ranked.n, int), k))


def oracle_curve(errors: np.ndarray) -> RiskCoverage:
    """The best curve that these errors allow: the right answers first."""
    return risk_coverage(errors, -np.asarray(errors, dtype=np.float64))


def random_curve(errors: np.ndarray) -> RiskCoverage:
    """The expected curve when confidence knows nothing: the mean error at every coverage."""
    return risk_coverage(errors, np.zeros(len(errors)))


def aurc(errors: np.ndarray, confidence: np.ndarray) -> float:
    """Area under the risk–coverage curve: mean of its n selective risks. Constant confidence gives the mean error."""
    ranked = _Ranked(errors, confidence)
    return ranked.aurc(np.ones(ranked.n, int))


def e_aurc(errors: np.ndarray, confidence: np.ndarray) -> float:
    """Excess AURC ≥ 0 over the exact oracle; 0 when every right answer is surer than every wrong one."""
    return aurc(errors, confidence) - aurc(errors, -np.asarray(errors, dtype=np.float64))


def augrc(errors: np.ndarray, confidence: np.ndarray) -> float:
    """Area under the generalised risk–coverage curve: the expected share of *all* questions that is answered wrongly.

    For errors that are 0 or 1 with mean e it is (1 − AUROC) · (1 − e) · e + e²/2; constant confidence gives e/2.
    """
    ranked = _Ranked(errors, confidence)
    return ranked.augrc(np.ones(ranked.n, int))


def accuracy_at_coverage(errors: np.ndarray, confidence: np.ndarray, coverage: float) -> float:
    """Accuracy of the answered questions when the most confident share ``coverage`` is answered."""
    return 1 - float(risk_coverage(errors, confidence, [coverage]).risk[0])


def coverage_at_risk(errors: np.ndarray, confidence: np.ndarray, risk: float) -> float:
    """The largest coverage that some threshold gives with a selective risk of at most ``risk``; 0 if there is none.

    A threshold answers all questions of equal confidence or none. (Whitehead et al. 2022, arXiv 2204.13631, C@R.)
    The threshold is read off the very questions that are judged: this describes, it promises nothing.
    """
    ranked = _Ranked(errors, confidence)
    count, total = ranked.sums(np.ones(ranked.n, int))
    within = total <= _share("risk", risk) * count + 1e-9  # a sum of floats may miss its value
    return float(count[within].max(initial=0) / ranked.n)


# ---------------------------------------------------------------------------------------------------------- guarantee


class Guarantee(NamedTuple):
    """A threshold and what is promised about it.

    Attributes
    ----------
    threshold
        Answer where confidence ≥ threshold; infinite (answer nothing) when nothing could be promised.
    bound
        Upper bound on the selective risk of new questions, at most ``max_risk``; 0 when nothing is answered.
    coverage, risk
        On the questions it was found on; risk is 0 when nothing is answered.
    """

    threshold: float
    bound: float
    coverage: float
    risk: float


NOTHING = Guarantee(math.inf, 0.0, 0.0, 0.0)


def risk_bound(total_error: float, n: int, delta: float, binary: bool = True) -> float:
    """Upper bound on a mean error, wrong with probability at most δ over the draw of n independent questions.

    Parameters
    ----------
    total_error
        Sum of the n errors: the *sum*, because k wrong answers turned into k/n and back can lose one.
    n
        Number of questions; 0 gives 1.
    delta
        δ, between 0 and 1.
    binary
        Errors are all 0 or 1: Clopper and Pearson's exact bound, the 1 − δ quantile of Beta(k + 1, n − k). Otherwise
        the tighter of Hoeffding's and Bentkus' (Bates et al. 2021, arXiv 2101.02703).
    """
    from scipy.optimize import brentq
    from scipy.special import betaincinv

    if n < 0 or not 0 <= total_error <= n or (binary and total_error != round(total_error)):
        raise ValueError(
            f"total_error is {total_error} of {n}; needs 0 <= total_error <= n, whole if errors are 0 or 1"
        )
    _between("delta", delta)
    if total_error == n:
        return 1.0
    if binary:
        return float(betaincinv(total_error + 1, n - total_error, 1 - delta))
    k, mean = math.ceil(total_error - 1e-9), total_error / n
    bentkus = float(betaincinv(k + 1, n - k, 1 - delta / math.e)) if k < n else 1.0

    def excess(risk: float) -> float:  # n · KL(mean ‖ risk) − ln(1/δ)
        wrong = mean * math.log(mean / risk) if mean else 0.0
        return n * (wrong + (1 - mean) * math.log((1 - mean) / (1 - risk))) + math.log(delta)

    top = 1 - 1e-12
    hoeffding = brentq(excess, max(mean, 1e-300), top) if excess(top) > 0 else 1.0
    return min(bentkus, float(hoeffding))


def sgr(errors: np.ndarray, confidence: np.ndarray, max_risk: float = 0.05, delta: float = 0.05) -> Guarantee:
    """Selection with guaranteed risk (Geifman and El-Yaniv 2017, algorithm 2).

    Parameters
    ----------
    errors, confidence
        (n,) of questions that trained and chose nothing, drawn as those that will come; as of :func:`risk_coverage`.
    max_risk
        r: the selective risk that is promised.
    delta
        δ: the promise may fail with this probability (over the draw of these n questions).

    Notes
    -----
    A binary search over the n confidences tests at most ⌈log₂(n + 1)⌉ thresholds, each with :func:`risk_bound` at δ
    divided by that number; the widest that passes is taken. Questions are taken as independent: several about one
    picture are not.
    """
    ranked = _Ranked(errors, confidence)
    _share("max_risk", max_risk), _between("delta", delta)
    m, total = ranked.accepted()  # (n,), (n,)
    steps = ranked.n.bit_length()  # the most that a binary search can need
    best, low, high = NOTHING, 0, ranked.n - 1  # ranks, from the surest question
    while low <= high:
        middle = (low + high) // 2
        count, error = int(m[middle]), float(total[middle])
        bound = risk_bound(error, count, delta / steps, ranked.is_binary)
        if bound <= max_risk:
            best = Guarantee(float(ranked.confidence[middle]), bound, count / ranked.n, error / count)
            low = middle + 1
        else:
            high = middle - 1
    return best


def sgr_threshold(errors: np.ndarray, confidence: np.ndarray, max_risk: float = 0.05, delta: float = 0.05) -> float:
    """The threshold of :func:`sgr`: answer where confidence ≥ threshold; ``inf`` when nothing can be promised."""
    return sgr(errors, confidence, max_risk, delta).threshold


def learn_then_test(
    errors: np.ndarray,
    confidence: np.ndarray,
    max_risk: float = 0.05,
    delta: float = 0.05,
    starts: int = 10,
) -> Guarantee:
    """Fixed-sequence testing of the coverages (Angelopoulos et al. 2021, arXiv 2110.01052); parameters of :func:`sgr`.

    From each of ``starts`` evenly spaced ranks, thresholds are tested downwards, one rank after the other, at level
    δ / starts, until one fails; the widest that passes is taken. There is no price for the number of thresholds tested,
    only for the number of starts.
    """
    ranked = _Ranked(errors, confidence)
    _share("max_risk", max_risk), _between("delta", delta)
    n = ranked.n
    if not 1 <= starts <= n:
        raise ValueError(f"starts is {starts}, it must lie between 1 and the {n} questions")
    m, total = ranked.accepted()  # (n,), (n,)
    fails = _p_value(total, m, max_risk, ranked.is_binary) > delta / starts  # (n,)
    best = -1
    for start in ((2 * i + 1) * n // (2 * starts) for i in range(starts)):
        passed = int(np.append(fails[start:], True).argmax())  # how many pass before the first that fails
        best = max(best, start + passed - 1 if passed else -1)
    if best < 0:
        return NOTHING
    bound = risk_bound(total[best], int(m[best]), delta / starts, ranked.is_binary)
    return Guarantee(float(ranked.confidence[best]), bound, float(m[best] / n), float(total[best] / m[best]))


def _p_value(total: np.ndarray, m: np.ndarray, risk: float, binary: bool) -> np.ndarray:
    """How likely so few errors among m are if the true risk is ``risk`` (or more); the inverse of risk_bound."""
    from scipy.special import bdtr, rel_entr

    if binary:
        return bdtr(total, m.astype(np.int64), risk)
    mean = np.minimum(total / m, risk)
    hoeffding = np.exp(-m * (rel_entr(mean, risk) + rel_entr(1 - mean, 1 - risk)))
    return np.minimum(hoeffding, math.e * bdtr(np.ceil(total - 1e-9), m.astype(np.int64), risk))


# ---------------------------------------------------------------------------------------------------------- decisions


def effective_reliability(errors: np.ndarray, answered: np.ndarray, cost: float) -> float:
    """Φ_c (Whitehead et al. 2022, arXiv 2204.13631, eq. 4): mean of the accuracy where a right answer is given, −c
    where a wrong one is, 0 where none is.

    Parameters
    ----------
    errors
        (n,) numbers from 0 to 1; only an error of 1 is a wrong answer, a partly right one counts 1 − error.
    answered
        bool (n,).
    cost
        c ≥ 0 of a wrong answer, in right answers.
    """
    e, given = _errors(errors), _answered(answered, errors)
    if cost < 0:
        raise ValueError(f"cost is {cost}, it must be at least 0")
    return float(np.where(given, np.where(e < 1, 1 - e, -cost), 0.0).mean())


def best_threshold(errors: np.ndarray, confidence: np.ndarray, cost: float) -> float:
    """The threshold with the largest Φ_c on these questions; choose it on validation, judge it on test questions.

    ``inf`` (answer nothing) when no threshold has Φ_c > 0.
    """
    ranked = _Ranked(errors, confidence)
    if cost < 0:
        raise ValueError(f"cost is {cost}, it must be at least 0")
    gain = np.where(ranked.errors < 1, 1 - ranked.errors, -cost).cumsum()[ranked.ends]  # (G,)
    best = int(gain.argmax())
    return ranked.threshold([best] if gain[best] > 0 else [])


def empirical_threshold(errors: np.ndarray, confidence: np.ndarray, max_risk: float) -> float:
    """The threshold that a reader takes off the curve: the widest with an observed selective risk up to ``max_risk``.

    It promises nothing: :func:`sgr_threshold` does. ``inf`` when there is none.
    """
    ranked = _Ranked(errors, confidence)
    count, total = ranked.sums(np.ones(ranked.n, int))  # (G,), (G,)
    return ranked.threshold(np.flatnonzero(total / count <= _share("max_risk", max_risk)))


def cheapest_threshold(errors: np.ndarray, confidence: np.ndarray, ask: float) -> float:
    """The threshold with the least mean cost on these questions, see :func:`mean_cost`; ``inf`` asks about all."""
    ranked = _Ranked(errors, confidence)
    if ask < 0:
        raise ValueError(f"ask is {ask}, it must be at least 0")
    count, total = ranked.sums(np.ones(ranked.n, int))  # (G,), (G,)
    cost = total + ask * (ranked.n - count)  # (G,)
    best = int(cost.argmin())
    return ranked.threshold([best] if cost[best] < ask * ranked.n else [])


def mean_cost(errors: np.ndarray, answered: np.ndarray, ask: float) -> float:
    """Mean cost per question, in errors: an answered one costs its error, a declined one ``ask`` (a doctor's time)."""
    e, given = _errors(errors), _answered(answered, errors)
    return float(np.where(given, e, ask).mean())


def cost_curve(errors: np.ndarray, confidence: np.ndarray, ask: np.ndarray) -> np.ndarray:
    """The least mean cost of any threshold for each cost of asking (K,), in errors; the decision curve.

    It never lies above min(mean error, ask): answer everything, or ask about everything. The threshold is chosen on the
    questions that are judged, which flatters; :func:`mean_cost` judges one that was chosen elsewhere.
    """
    ranked = _Ranked(errors, confidence)
    price = np.asarray(ask, dtype=np.float64)
    if price.ndim != 1 or not (price >= 0).all():
        raise ValueError(f"ask has shape {price.shape}; give a row of costs, each at least 0")
    count, total = ranked.sums(np.ones(ranked.n, int))  # (G,), (G,)
    corners = np.stack([np.append(0.0, total), ranked.n - np.append(0.0, count)])  # (2, G + 1): errors made, asked
    best = np.empty(len(price))
    for i, p in enumerate(price):  # K rows of G + 1 at once would be large
        best[i] = (corners[0] + p * corners[1]).min()
    return best / ranked.n


# ---------------------------------------------------------------------------------------------------------- bootstrap


class CurveBand(NamedTuple):
    """A curve with a pointwise bootstrap band, over n questions.

    Attributes
    ----------
    coverage, risk, low, high
        (K,) each; ``risk`` may be a difference of risks, see :class:`RejectionBands`.
    n
        Number of questions.
    level
        Nominal coverage of the band at each point.
    """

    coverage: np.ndarray
    risk: np.ndarray
    low: np.ndarray
    high: np.ndarray
    n: int
    level: float

    def at(self, i: int) -> Interval:
        """The curve's i-th point."""
        return Interval(float(self.risk[i]), float(self.low[i]), float(self.high[i]), self.n, self.level)


class RejectionBands(NamedTuple):
    """A risk–coverage curve and its areas; or differences a − b of two models, where negative is in favour of ``a``.

    Attributes
    ----------
    risk
        Selective risk over coverage.
    gain
        Risk of all minus selective risk, over coverage: what declining gains in accuracy.
    aurc, augrc
        The areas.
    """

    risk: CurveBand
    gain: CurveBand
    aurc: Interval
    augrc: Interval


def bootstrap_curve(
    errors: np.ndarray,
    confidence: np.ndarray,
    groups: Sequence | None = None,
    coverages: Sequence[float] | np.ndarray = COVERAGES,
    resamples: int = 1000,
    seed: int = 0,
    level: float = 0.95,
) -> CurveBand:
    """The risk–coverage curve with its band; whole ``groups`` (pictures) are drawn, (n,) labels."""
    ranked, share = _Ranked(errors, confidence), _coverages(coverages)
    draws = [ranked.risk(w, share * w.sum()) for w in _multiplicities(ranked.n, groups, resamples, seed)]  # (R, K)
    return _band(share, ranked.risk(np.ones(ranked.n, int), share * ranked.n), np.array(draws), ranked.n, level)


def bootstrap_area(
    errors: np.ndarray,
    confidence: np.ndarray,
    area: str = "aurc",
    groups: Sequence | None = None,
    resamples: int = 1000,
    seed: int = 0,
    level: float = 0.95,
) -> Interval:
    """``"aurc"`` or ``"augrc"`` with its percentile interval; a question drawn twice ties with itself."""
    if area not in ("aurc", "augrc"):
        raise ValueError(f"area is {area!r}, allowed are 'aurc', 'augrc'")
    ranked = _Ranked(errors, confidence)
    measure = getattr(ranked, area)
    draws = np.array([measure(w) for w in _multiplicities(ranked.n, groups, resamples, seed)])  # (R,)
    return _interval(measure(np.ones(ranked.n, int)), draws, ranked.n, level, groups)


def paired_curves(
    errors_a: np.ndarray,
    confidence_a: np.ndarray,
    errors_b: np.ndarray,
    confidence_b: np.ndarray,
    groups: Sequence | None = None,
    coverages: Sequence[float] | np.ndarray = COVERAGES,
    resamples: int = 1000,
    seed: int = 0,
    level: float = 0.95,
) -> RejectionBands:
    """Differences a − b with bands; each resample draws the same questions for both.

    Two bands that overlap say little; a band of the difference that leaves 0 out is evidence.
    """
    if len(errors_a) != len(errors_b):
        raise ValueError(
            f"a has {len(errors_a)} questions and b has {len(errors_b)}; a paired difference needs the same questions"
        )
    a, b = ((np.asarray(e)[None], np.asarray(c)[None]) for e, c in ((errors_a, confidence_a), (errors_b, confidence_b)))
    return bands_over_seeds(*a, b, groups, coverages, resamples, seed, level)


def bands_over_seeds(
    errors: np.ndarray,
    confidence: np.ndarray,
    minus: tuple[np.ndarray, np.ndarray] | None = None,
    groups: Sequence | None = None,
    coverages: Sequence[float] | np.ndarray = COVERAGES,
    resamples: int = 1000,
    seed: int = 0,
    level: float = 0.95,
) -> RejectionBands:
    """The mean curve of models of several training seeds on the same questions, with bands over seeds and questions.

    Parameters
    ----------
    errors, confidence
        (S, n): row s of training seed s.
    minus
        Errors and confidences (S, n) of another model with the same seeds, whose curves are subtracted.
    groups
        (n,) picture ids; whole pictures are drawn.

    Notes
    -----
    The two sources are joined as in :func:`~vqa_core.evaluation.statistics.seeds_and_questions`: pictures are
    resampled, and the seeds' error is drawn from the t distribution with S − 1 degrees of freedom, times s/√S.
    """
    share = _coverages(coverages)
    shapes = {np.shape(x) for x in (errors, confidence, *(minus or ()))}
    if len(shapes) != 1 or len(next(iter(shapes))) != 2:
        raise ValueError(f"shapes are {sorted(shapes)}; give errors and confidence as (S, n), all alike")
    rows = [_Ranked(e, c) for e, c in zip(errors, confidence)]
    others = [_Ranked(e, c) for e, c in zip(*minus)] if minus else []

    def measure(ranked: _Ranked, w: np.ndarray) -> np.ndarray:
        risk = ranked.risk(w, np.append(share, 1.0) * w.sum())  # (K + 1,)
        return np.concatenate([risk[:-1], risk[-1] - risk[:-1], [ranked.aurc(w), ranked.augrc(w)]])  # (2K + 2,)

    def by_seed(w: np.ndarray) -> np.ndarray:
        found = np.array([measure(ranked, w) for ranked in rows])  # (S, 2K + 2)
        return found - np.array([measure(ranked, w) for ranked in others]) if others else found

    n, k = rows[0].n, len(share)
    each = by_seed(np.ones(n, int))  # (S, 2K + 2)
    seen = each.mean(axis=0)  # (2K + 2,)
    draws = np.array([by_seed(w).mean(axis=0) for w in _multiplicities(n, groups, resamples, seed)])  # (R, 2K + 2)
    if len(rows) > 1:
        t = np.random.default_rng([seed, 1]).standard_t(len(rows) - 1, (resamples, 1))
        draws = draws + t * each.std(axis=0, ddof=1) / math.sqrt(len(rows))
    gain = _band(share, seen[k : 2 * k], draws[:, k : 2 * k], n, level)
    if minus is None:
        draws = draws.clip(0, 1)
    areas = (_interval(seen[i], draws[:, i], n, level, groups) for i in (-2, -1))
    return RejectionBands(_band(share, seen[:k], draws[:, :k], n, level), gain, *areas)


def gain_over_seeds(
    errors: np.ndarray,
    confidence: np.ndarray,
    coverage: float,
    groups: Sequence | None = None,
    resamples: int = 1000,
    seed: int = 0,
    level: float = 0.95,
) -> Interval:
    """Accuracy at a coverage minus accuracy of all; parameters as of :func:`bands_over_seeds`."""
    return bands_over_seeds(errors, confidence, None, groups, (coverage,), resamples, seed, level).gain.at(0)


def _multiplicities(n: int, groups: Sequence | None, resamples: int, seed: int) -> Iterator[np.ndarray]:
    """How often each question is drawn, int (n,), once per resample: it stays in the cache, (R, n) would not."""
    if resamples < 1:
        raise ValueError(f"resamples is {resamples}, it must be at least 1")
    if groups is not None and len(groups) != n:
        raise ValueError(f"{len(groups)} group labels for {n} questions")
    labels = None if groups is None else np.unique(np.asarray(groups), return_inverse=True)[1]
    units = n if labels is None else int(labels.max()) + 1
    rng = np.random.default_rng(seed)
    for _ in range(resamples):
        drawn = np.bincount(rng.integers(0, units, units), minlength=units)  # (units,)
        yield drawn if labels is None else drawn[labels]


def _band(share, risk, draws, n, level) -> CurveBand:
    low, high = np.quantile(draws, [(1 - level) / 2, (1 + level) / 2], axis=0)  # (K,), (K,)
    return CurveBand(share, risk, low, high, n, level)


def _interval(value, draws, n, level, groups) -> Interval:
    low, high = np.quantile(draws, [(1 - level) / 2, (1 + level) / 2])
    what = "questions" if groups is None else f"{len(set(groups))} groups"
    return Interval(float(value), float(low), float(high), n, level, method=f"bootstrap of {what}")


# ------------------------------------------------------------------------------------------------------------ ranking


class _Ranked:
    """Errors in order of falling confidence, with the ends of the groups of equal confidence.

    All numbers take weights (n,), how often each question is there: ones, or a bootstrap's multiplicities.
    """

    def __init__(self, errors: np.ndarray, confidence: np.ndarray) -> None:
        e, c = _errors(errors), np.asarray(confidence, dtype=np.float64)
        if c.shape != e.shape:
            raise ValueError(f"errors have shape {e.shape} and confidence {c.shape}; give two equally long rows")
        if np.isnan(c).any():
            raise ValueError(f"confidence holds {np.isnan(c).sum()} NaN: a question without confidence has no rank")
        self.n = len(e)
        self.order = np.argsort(-c, kind="stable")  # (n,)
        self.is_binary = bool(np.isin(e, (0, 1)).all())
        # whole numbers are exact, and numpy sums them up seven times as fast
        self.errors = e[self.order].astype(np.int64) if self.is_binary else e[self.order]  # (n,)
        self.confidence = c[self.order]  # (n,)
        self.ends = np.flatnonzero(np.append(np.diff(self.confidence) != 0, True))  # (G,)

    def threshold(self, groups: Sequence[int]) -> float:
        """The confidence of the last of these groups, ``inf`` without any."""
        return float(self.confidence[self.ends[groups[-1]]]) if len(groups) else math.inf

    def sums(self, weights: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Questions and errors up to the end of each group (G,), (G,)."""
        w = weights[self.order]  # (n,)
        count, total = w.cumsum(), (w * self.errors).cumsum()
        return (count, total) if len(self.ends) == self.n else (count[self.ends], total[self.ends])

    def accepted(self) -> tuple[np.ndarray, np.ndarray]:
        """Questions and errors (n,), (n,) above the threshold at each rank, with all that tie with it."""
        group = np.searchsorted(self.ends, np.arange(self.n))  # (n,)
        count, total = self.sums(np.ones(self.n, int))  # (G,), (G,)
        return count[group], np.minimum(total, count)[group]  # a sum of floats may exceed its bound

    def risk(self, weights: np.ndarray, k: np.ndarray) -> np.ndarray:
        """Selective risk of the first k questions (K,); within a group, errors come evenly (mean over orders)."""
        count, total = self.sums(weights)
        return np.interp(k, np.append(0.0, count), np.append(0.0, total)) / k

    def aurc(self, weights: np.ndarray) -> float:
        """(1/n) Σₖ Eₖ/k with Eₖ linear within a group: a sum over groups with harmonic numbers, no sum over k.

        In a group with mean error ē that comes after N questions with E errors, Eₖ/k = ē + (E − N ē)/k.
        """
        count, total = self.sums(weights)
        n = int(count[-1])
        harmonic = _harmonic(1 << n.bit_length())[count.astype(np.int64)]  # (G,)
        size, error = np.diff(count, prepend=0), np.diff(total, prepend=0)  # (G,)
        mean = np.divide(error, size, out=np.zeros(len(error)), where=size > 0)
        before = (total - error) - (count - size) * mean
        return float((error + before * np.diff(harmonic, prepend=0.0)).sum() / n)

    def augrc(self, weights: np.ndarray) -> float:
        """Trapezoids under total error over questions, both as shares."""
        count, total = self.sums(weights)
        return float(np.trapezoid(np.append(0.0, total), np.append(0.0, count)) / count[-1] ** 2)


@functools.lru_cache(maxsize=4)
def _harmonic(size: int) -> np.ndarray:
    """Harmonic numbers H₀ = 0, H₁ = 1, H₂ = 1 + ½, … (size,)."""
    return np.append(0.0, (1 / np.arange(1, size)).cumsum())


def _errors(errors: np.ndarray) -> np.ndarray:
    e = np.asarray(errors, dtype=np.float64)
    if e.ndim != 1 or e.size == 0:
        raise ValueError(f"errors have shape {e.shape}; give one number for each of at least 1 question")
    if not (e.min() >= 0 and e.max() <= 1):  # NaN fails too
        raise ValueError(f"errors must lie between 0 and 1, they range from {e.min()} to {e.max()}")
    return e


def _answered(answered: np.ndarray, errors: np.ndarray) -> np.ndarray:
    given = np.asarray(answered)
    if given.dtype != bool or given.shape != np.shape(errors):
        raise ValueError(f"answered is {given.dtype} {given.shape}; give bool {np.shape(errors)}")
    return given


def _coverages(coverages: Sequence[float] | np.ndarray) -> np.ndarray:
    share = np.asarray(coverages, dtype=np.float64)
    if share.ndim != 1 or share.size == 0 or not (share.min() > 0 and share.max() <= 1):
        raise ValueError(f"coverages are {coverages}; give a row of shares, each above 0 and at most 1")
    return share


def _share(name: str, value: float) -> float:
    if not 0 <= value <= 1:
        raise ValueError(f"{name} is {value}, it must lie between 0 and 1")
    return value


def _between(name: str, value: float) -> float:
    if not 0 < value < 1:
        raise ValueError(f"{name} is {value}, it must lie between 0 and 1, both excluded")
    return value
