import itertools
import math
import time

import numpy as np
import pytest
from scipy.stats import beta, binom
from sklearn.metrics import roc_auc_score

from vqa_core.evaluation.rejection import (
    accuracy_at_coverage,
    augrc,
    aurc,
    bands_over_seeds,
    best_threshold,
    bootstrap_area,
    bootstrap_curve,
    cheapest_threshold,
    cost_curve,
    coverage_at_risk,
    e_aurc,
    effective_reliability,
    empirical_threshold,
    gain_over_seeds,
    learn_then_test,
    mean_cost,
    oracle_curve,
    paired_curves,
    random_curve,
    risk_bound,
    risk_coverage,
    sgr,
    sgr_threshold,
)
from vqa_core.evaluation.statistics import mean_over_seeds

FIVE, FALLING = np.array([0, 1, 0, 0, 1]), np.array([0.9, 0.8, 0.7, 0.6, 0.5])


@pytest.fixture
def rng():
    return np.random.default_rng(0)


def questions(n, rng):
    """Confidence c, uniform, and errors with probability (1 − c) / 2: the risk above a threshold t is (1 − t) / 4."""
    c = rng.random(n)
    return (rng.random(n) < (1 - c) / 2).astype(float), c


# ------------------------------------------------------------------------------------------------------------- curves


def test_five_answers_by_hand():
    coverage, risk = risk_coverage(FIVE, FALLING)
    np.testing.assert_allclose(coverage, [0.2, 0.4, 0.6, 0.8, 1.0])
    np.testing.assert_allclose(risk, [0, 1 / 2, 1 / 3, 1 / 4, 2 / 5])


def test_the_convention_of_aurc_is_the_mean_of_n_risks():
    """Five predictions have three areas in the literature: 0.2967 (ours), 0.3208 and 0.2567."""
    risk = risk_coverage(FIVE, FALLING).risk
    assert aurc(FIVE, FALLING) == pytest.approx(risk.mean()) == pytest.approx(0.29667, abs=1e-5)
    assert np.trapezoid(risk, dx=0.2) == pytest.approx(0.25667, abs=1e-5)
    assert np.trapezoid(risk) / 4 == pytest.approx(0.32083, abs=1e-5)


@pytest.mark.parametrize("soft", [False, True])
def test_ties_are_the_mean_over_all_orders(soft, rng):
    errors = rng.random(6) if soft else np.array([0, 1, 1, 0, 0, 1])
    confidence = np.array([2, 1, 1, 1, 0, 0])
    orders = []
    for nudge in itertools.permutations(range(6)):
        orders.append(risk_coverage(errors, confidence + 0.01 * np.array(nudge)).risk)
    np.testing.assert_allclose(risk_coverage(errors, confidence).risk, np.mean(orders, axis=0))
    assert aurc(errors, confidence) == pytest.approx(np.mean(orders))
    augrcs = [augrc(errors, confidence + 0.01 * np.array(nudge)) for nudge in itertools.permutations(range(6))]
    assert augrc(errors, confidence) == pytest.approx(np.mean(augrcs))


def test_constant_confidence_gives_the_error_whatever_the_order(rng):
    """Elsewhere a constant confidence with 10 % error gives 0.005 to 0.33."""
    errors = np.zeros(200)
    errors[:20] = 1
    for order in (slice(None), slice(None, None, -1), rng.permutation(200)):
        assert aurc(errors[order], np.ones(200)) == pytest.approx(0.1)
        assert augrc(errors[order], np.ones(200)) == pytest.approx(0.05)
    np.testing.assert_allclose(random_curve(errors).risk, 0.1)


@pytest.mark.parametrize("levels", [4, 10**6])
def test_order_of_rows_and_scale_of_confidence_do_not_matter(levels, rng):
    errors, c = rng.random(100), rng.integers(0, levels, 100) / levels
    order = rng.permutation(100)
    for measure in (aurc, augrc, e_aurc):
        assert measure(errors[order], c[order]) == pytest.approx(measure(errors, c))
        assert measure(errors, np.exp(3 * c)) == pytest.approx(measure(errors, c))
    assert sgr_threshold(errors[order], c[order], 0.6) == sgr_threshold(errors, c, 0.6)


def test_perfect_and_inverted_confidence():
    errors = np.repeat([0.0, 1.0], [60, 40])
    assert e_aurc(errors, 1 - errors) == pytest.approx(0)
    assert augrc(errors, 1 - errors) == pytest.approx(0.4**2 / 2)
    assert augrc(errors, errors) == pytest.approx(0.6 * 0.4 + 0.4**2 / 2)
    assert aurc(errors, 1 - errors) < aurc(errors, np.ones(100)) < aurc(errors, errors)
    np.testing.assert_allclose(oracle_curve(errors).risk[[59, 99]], [0, 0.4])


def test_excess_is_over_the_exact_oracle(rng):
    """The asymptotic oracle e + (1 − e) ln(1 − e) makes E-AURC of a perfect ranking differ from 0."""
    errors = np.array([0, 0, 0, 1, 1])
    assert e_aurc(errors, -errors) == 0
    approximate = 0.4 + 0.6 * math.log(0.6)
    assert abs(aurc(errors, -errors) - approximate) > 0.03
    soft = rng.random(30)
    best = min(aurc(soft, rng.random(30)) for _ in range(200))
    assert aurc(soft, -soft) < best
    assert e_aurc(soft, rng.random(30)) > 0


@pytest.mark.parametrize("levels", [5, 10**6])
def test_augrc_and_auroc_are_one(levels, rng):
    c = rng.integers(0, levels, 500) / levels
    errors = (rng.random(500) < 0.6 * (1 - c)).astype(float)
    e = errors.mean()
    auroc = roc_auc_score(1 - errors, c)
    assert augrc(errors, c) == pytest.approx((1 - auroc) * (1 - e) * e + e**2 / 2, rel=1e-9)


def test_harmonic_sum_is_the_mean_of_the_curve(rng):
    for levels in (3, 40, 10**6):
        errors, c = rng.random(333), rng.integers(0, levels, 333)
        assert aurc(errors, c) == pytest.approx(risk_coverage(errors, c).risk.mean(), rel=1e-12)


def test_accuracy_at_coverage():
    assert accuracy_at_coverage(FIVE, FALLING, 0.8) == pytest.approx(3 / 4)
    assert accuracy_at_coverage(FIVE, FALLING, 1.0) == pytest.approx(3 / 5)
    assert accuracy_at_coverage(FIVE, FALLING, 0.3) == pytest.approx(1 - 0.5 / 1.5)  # half of the second question
    np.testing.assert_allclose(risk_coverage(FIVE, FALLING, [0.2, 0.8]).risk, [0, 0.25])


def test_coverage_at_risk_answers_ties_together():
    assert coverage_at_risk(FIVE, FALLING, 0.25) == 0.8
    assert coverage_at_risk(FIVE, FALLING, 0.0) == 0.2
    assert coverage_at_risk(FIVE, FALLING, 0.5) == 1.0
    assert coverage_at_risk([1, 0], [2, 1], 0.2) == 0
    assert coverage_at_risk([0, 0, 0, 1], [1, 1, 0, 0], 0.1) == 0.5  # no threshold answers three of four


# ---------------------------------------------------------------------------------------------------------- guarantee


def test_bound_is_clopper_and_pearsons():
    for k, m, delta in ((0, 10, 0.05), (3, 50, 0.01), (49, 50, 0.1)):
        assert risk_bound(k, m, delta) == pytest.approx(beta.ppf(1 - delta, k + 1, m - k))
        assert binom.cdf(k, m, risk_bound(k, m, delta)) == pytest.approx(delta)
    assert risk_bound(5, 5, 0.05) == risk_bound(0, 0, 0.05) == 1


def test_no_error_is_lost_between_rate_and_count():
    """int(m · (k / m)) drops an error for many k and m."""
    lost = [(k, m) for m in range(1, 198) for k in range(m + 1) if int(m * (k / m)) != k]
    assert len(lost) > 100
    k, m = next((k, m) for k, m in lost if k < m)
    errors = np.repeat([1.0, 0.0], [k, m - k])
    found = sgr(errors, np.ones(m), max_risk=0.9999)
    assert found.bound == pytest.approx(beta.ppf(1 - 0.05 / m.bit_length(), k + 1, m - k))


def test_soft_bound_holds_and_is_not_tighter_than_it_may_be(rng):
    for total, n in ((0.0, 30), (2.5, 40), (10.0, 60)):
        soft = risk_bound(total, n, 0.1, binary=False)
        assert soft > risk_bound(math.floor(total), n, 0.1)
        assert soft <= total / n + math.sqrt(math.log(10) / (2 * n)) + 1e-9  # Hoeffding's simple form
    draws = rng.beta(0.3, 1.7, (2000, 50))  # mean 0.15
    fails = np.mean([risk_bound(row.sum(), 50, 0.1, binary=False) < 0.15 for row in draws])
    assert fails <= 0.1


@pytest.mark.parametrize("select", [sgr, learn_then_test])
def test_promise_against_guarantee(select, rng):
    """A threshold read off the curve breaks its promise about half of the time; a guaranteed one in less than δ."""
    r, delta, repeats, broken, naive, coverage = 0.1, 0.05, 1000, 0, 0, []
    for _ in range(repeats):
        errors, c = questions(1000, rng)
        t = select(errors, c, r, delta).threshold
        coverage.append(max(0.0, 1 - t))
        broken += t < 1 and (1 - t) / 4 > r  # the true selective risk
        share = coverage_at_risk(errors, c, r)
        naive += share > 0 and (1 - np.sort(c)[::-1][round(share * 1000) - 1]) / 4 > r
    assert broken <= delta * repeats
    assert naive > 0.4 * repeats
    assert np.mean(coverage) > 0.1  # it does answer something


def test_guarantee_with_ties_and_without_hope():
    errors, c = np.repeat([0.0, 1.0, 0.0], [300, 30, 270]), np.repeat([1.0, 0.5], [300, 300])
    found = sgr(errors, c, 0.05)
    assert (found.threshold, found.coverage, found.risk) == (1.0, 0.5, 0.0)
    assert found.bound <= 0.05
    assert sgr_threshold(errors, c, 0.2) == 0.5
    none = sgr(np.ones(50), np.arange(50), 0.05)
    assert none == (math.inf, 0, 0, 0)
    assert learn_then_test(np.ones(50), np.arange(50), 0.05) == none
    assert sgr(np.zeros(1), np.zeros(1), 0.05).threshold == math.inf
    assert not (c >= none.threshold).any()


def test_soft_errors_can_be_promised(rng):
    errors, c = questions(2000, rng)
    for select in (sgr, learn_then_test):
        hard, soft = select(errors, c, 0.1), select(0.999 * errors, c, 0.1)
        assert 0 < soft.coverage <= hard.coverage
        assert soft.bound <= 0.1


# ---------------------------------------------------------------------------------------------------------- decisions


def test_effective_reliability():
    errors, answered = np.array([0, 1, 0.4, 1, 0]), np.array([True, True, True, False, False])
    assert effective_reliability(errors, answered, 10) == pytest.approx((1 - 10 + 0.6) / 5)
    assert effective_reliability(errors, np.zeros(5, bool), 10) == 0
    with pytest.raises(ValueError, match="give bool"):
        effective_reliability(errors, np.ones(5), 1)


@pytest.mark.parametrize("cost", [0.0, 1.0, 5.0, 100.0])
def test_best_threshold_is_the_best_of_all(cost, rng):
    errors, c = questions(300, rng)
    c = c.round(2)
    t = best_threshold(errors, c, cost)
    candidates = [effective_reliability(errors, c >= other, cost) for other in [*np.unique(c), np.inf]]
    assert effective_reliability(errors, c >= t, cost) == pytest.approx(max(candidates))
    assert best_threshold(np.ones(3), np.arange(3), cost=1) == math.inf


def test_cost_curve_is_the_least_cost_of_any_threshold(rng):
    errors, c = questions(200, rng)
    c, ask = c.round(1), np.array([0.0, 0.1, 0.3, 1.0])
    expected = [min(mean_cost(errors, c >= t, a) for t in [*np.unique(c), np.inf]) for a in ask]
    found = cost_curve(errors, c, ask)
    np.testing.assert_allclose(found, expected)
    assert (found <= np.minimum(errors.mean(), ask) + 1e-12).all()
    np.testing.assert_allclose(cost_curve(errors, 1 - errors, ask), errors.mean() * ask)  # a perfect score


# ---------------------------------------------------------------------------------------------------------- bootstrap


@pytest.mark.parametrize("clustered", [False, True])
def test_resamples_equal_those_of_copied_rows(clustered, rng):
    """Weights instead of copies change nothing: the same draws, row by row."""
    n, levels = 60, 8
    errors, c = rng.random(n), rng.integers(0, levels, n)
    pictures = np.repeat(np.arange(20), [2, 4] * 10) if clustered else None
    units = 20 if clustered else n
    draws, areas, generator = [], [], np.random.default_rng(5)
    for _ in range(300):
        counts = np.bincount(generator.integers(0, units, units), minlength=units)
        rows = np.repeat(np.arange(n), counts[pictures] if clustered else counts)
        draws.append(risk_coverage(errors[rows], c[rows], [0.25, 0.5, 1.0]).risk)
        areas.append([aurc(errors[rows], c[rows]), augrc(errors[rows], c[rows])])
    band = bootstrap_curve(errors, c, pictures, [0.25, 0.5, 1.0], resamples=300, seed=5)
    np.testing.assert_allclose(band.low, np.quantile(draws, 0.025, axis=0))
    np.testing.assert_allclose(band.high, np.quantile(draws, 0.975, axis=0))
    np.testing.assert_allclose(band.risk, risk_coverage(errors, c, [0.25, 0.5, 1.0]).risk)
    for name, column in (("aurc", 0), ("augrc", 1)):
        i = bootstrap_area(errors, c, name, pictures, resamples=300, seed=5)
        np.testing.assert_allclose([i.low, i.high], np.quantile(np.array(areas)[:, column], [0.025, 0.975]))
        assert i.n == n


def test_questions_that_share_a_picture_count_once(rng):
    errors, c = questions(100, rng)
    copies = (np.repeat(errors, 10), np.repeat(c, 10))
    pictures = np.repeat(np.arange(100), 10)
    alone = bootstrap_curve(errors, c, coverages=[1.0])
    clustered, naive = (bootstrap_curve(*copies, groups, [1.0]) for groups in (pictures, None))
    width = [float(band.high[0] - band.low[0]) for band in (alone, clustered, naive)]
    assert width[1] == pytest.approx(width[0], rel=0.1)
    assert width[1] / width[2] == pytest.approx(math.sqrt(10), rel=0.2)


def test_paired_bands_are_narrower_than_the_difference_of_bands(rng):
    errors, c = questions(1000, rng)
    worse = c + 0.3 * rng.normal(size=1000)
    paired = paired_curves(errors, c, errors, worse, resamples=400)
    np.testing.assert_allclose(paired.risk.risk, risk_coverage(errors, c, paired.risk.coverage).risk
                               - risk_coverage(errors, worse, paired.risk.coverage).risk)  # fmt: skip
    assert paired.aurc.mean == pytest.approx(aurc(errors, c) - aurc(errors, worse))
    assert paired.augrc.mean == pytest.approx(augrc(errors, c) - augrc(errors, worse))
    assert paired.aurc.high < 0  # the better score is told apart
    a, b = (bootstrap_area(errors, x, resamples=400) for x in (c, worse))
    assert paired.aurc.high - paired.aurc.low < 0.8 * math.hypot(a.high - a.low, b.high - b.low)
    same = paired_curves(errors, c, errors, 3 * c, resamples=50)
    assert (same.risk.low == 0).all()
    assert (same.risk.high == 0).all()
    assert same.risk.risk[-1] == 0  # everything answered: no order matters
    with pytest.raises(ValueError, match="same questions"):
        paired_curves(errors, c, errors[:5], c[:5])


def test_a_thousand_resamples_of_twenty_thousand_questions_are_fast(rng):
    """Half a second is promised; CPU time and a margin, because machines have moods."""
    errors, c = questions(20_000, rng)
    start = time.process_time()
    bootstrap_curve(errors, c, resamples=1000)
    assert time.process_time() - start < 1.5


@pytest.mark.parametrize(
    ("max_risk", "threshold"),
    [(0.0, 0.9), (0.25, 0.7), (0.34, 0.6), (0.4, 0.6), (0.5, 0.5), (1.0, 0.5)],
)
def test_empirical_threshold_by_hand(max_risk, threshold):
    """Selective risks are 0 at 0.9, 1/4 at 0.7 (three tie), 1/3 at 0.6, 3/7 at 0.5."""
    confidence = np.array([0.9, 0.7, 0.7, 0.7, 0.6, 0.6, 0.5])
    errors = np.array([0, 1, 0, 0, 1, 0, 1])
    for order in (np.arange(7), np.arange(7)[::-1], np.random.default_rng(0).permutation(7)):
        assert empirical_threshold(errors[order], confidence[order], max_risk) == threshold


def test_empirical_threshold_is_infinite_when_the_surest_are_wrong():
    assert empirical_threshold(np.array([1, 0]), np.array([0.9, 0.1]), 0.4) == np.inf
    assert empirical_threshold(np.array([1, 0]), np.array([0.5, 0.5]), 0.4) == np.inf


def test_cheapest_threshold_by_hand():
    errors, confidence = np.array([0, 1, 0, 1, 1]), np.array([0.9, 0.8, 0.8, 0.6, 0.5])
    assert cheapest_threshold(errors, confidence, 0.6) == 0.8  # costs 1 + 2 · 0.6; 0.9 alone costs 4 · 0.6
    assert cheapest_threshold(errors, confidence, 0.4) == 0.9  # 4 · 0.4; 0.8 costs 1 + 2 · 0.4
    assert cheapest_threshold(np.ones(2), np.array([1.0, 0.5]), 0.5) == np.inf


def test_thresholds_that_a_reader_or_a_doctor_takes_refuse_nonsense():
    with pytest.raises(ValueError, match="max_risk is 2"):
        empirical_threshold([0, 1], [1, 2], 2)
    with pytest.raises(ValueError, match="ask is -1"):
        cheapest_threshold([0, 1], [1, 2], -1)


# ------------------------------------------------------------------------------------------------ seeds and questions


def test_one_seed_is_the_bootstrap_of_its_questions(rng):
    errors, c = questions(120, rng)
    pictures, at = np.arange(120) // 3, [0.25, 0.5, 1.0]
    found = bands_over_seeds(errors[None], c[None], None, pictures, at, resamples=200, seed=4)
    for name, values in bootstrap_curve(errors, c, pictures, at, resamples=200, seed=4)._asdict().items():
        np.testing.assert_array_equal(getattr(found.risk, name), values)
    for name in ("aurc", "augrc"):
        area = bootstrap_area(errors, c, name, pictures, resamples=200, seed=4)
        expected = (area.mean, area.low, area.high, area.n)
        i = getattr(found, name)
        assert (i.mean, i.low, i.high, i.n) == pytest.approx(expected, abs=1e-12)
    gain = gain_over_seeds(errors[None], c[None], 0.5, pictures, resamples=200, seed=4)
    assert gain.mean == pytest.approx(accuracy_at_coverage(errors, c, 0.5) - (1 - errors.mean()))
    assert gain.low < gain.mean < gain.high
    whole = gain_over_seeds(errors[None], c[None], 1.0, pictures, resamples=20)
    assert (whole.mean, whole.low, whole.high) == (0, 0, 0)


def test_without_noise_from_questions_bands_are_t_intervals(rng):
    """All questions belong to one picture, which is in every resample."""
    n, seeds = 40, 4
    c = rng.random((seeds, n))
    errors = (rng.random((seeds, n)) < 0.6 * (1 - c) + 0.2).astype(float)
    one = np.zeros(n)
    found = bands_over_seeds(errors, c, None, one, [0.5, 1.0], resamples=3000)
    gain = gain_over_seeds(errors, c, 0.5, one, resamples=3000)
    gains = [accuracy_at_coverage(e, k, 0.5) - (1 - e.mean()) for e, k in zip(errors, c)]
    for values, (mean, low, high) in (
        (errors.mean(axis=1), (found.risk.risk[1], found.risk.low[1], found.risk.high[1])),
        ([aurc(e, k) for e, k in zip(errors, c)], ends(found.aurc)),
        (gains, ends(gain)),
    ):
        expected = mean_over_seeds(values)
        half = expected.high - expected.mean
        assert mean == pytest.approx(expected.mean)
        assert (mean - low, high - mean) == (pytest.approx(half, rel=0.15), pytest.approx(half, rel=0.15))


def ends(interval):
    return interval.mean, interval.low, interval.high


def test_differences_over_seeds_are_antisymmetric(rng):
    a, b = (tuple(np.stack(x) for x in zip(*(questions(90, rng) for _ in range(3)))) for _ in range(2))
    forth = bands_over_seeds(*a, b, coverages=[0.5, 1.0], resamples=100)
    back = bands_over_seeds(*b, a, coverages=[0.5, 1.0], resamples=100)
    np.testing.assert_allclose(forth.risk.risk, -back.risk.risk)
    assert (forth.aurc.mean, forth.augrc.mean) == pytest.approx((-back.aurc.mean, -back.augrc.mean))
    np.testing.assert_allclose(forth.aurc.mean, np.mean([aurc(*x) - aurc(*y) for x, y in zip(zip(*a), zip(*b))]))
    np.testing.assert_allclose(forth.risk.risk[1], a[0].mean() - b[0].mean())
    assert forth.risk.low.min() < 0  # a difference is not cut off at 0
    one = [tuple(x[:1] for x in pair) for pair in (a, b)]
    forth, back = (bands_over_seeds(*x, y, coverages=[0.5, 1.0], resamples=100) for x, y in (one, one[::-1]))
    np.testing.assert_allclose(forth.risk.low, -back.risk.high, atol=1e-12)
    np.testing.assert_allclose(forth.gain.risk, forth.risk.risk[1] - forth.risk.risk)  # of one point and of all
    same = bands_over_seeds(*a, a, coverages=[0.5], resamples=20)
    assert (same.risk.low[0], same.risk.high[0], same.aurc.low, same.aurc.high) == (0, 0, 0, 0)


def test_rows_over_seeds_need_one_shape():
    errors, c = np.zeros((2, 5)), np.ones((2, 5))
    for call in (
        lambda: bands_over_seeds(errors, c[:1]),
        lambda: bands_over_seeds(errors[0], c[0]),
        lambda: bands_over_seeds(errors, c, (errors[:, :4], c[:, :4])),
        lambda: gain_over_seeds(errors, c[:, :3], 0.8),
    ):
        with pytest.raises(ValueError, match="give errors and confidence as"):
            call()
    with pytest.raises(ValueError, match="above 0 and at most 1"):
        gain_over_seeds(errors, c, 0.0)


# ------------------------------------------------------------------------------------------------------------- errors


def test_refuses_nonsense():
    for call, message in (
        (lambda: aurc([], []), "at least 1 question"),
        (lambda: aurc([0, 2], [1, 2]), "errors must lie between 0 and 1"),
        (lambda: aurc([0, math.nan], [1, 2]), "errors must lie between 0 and 1"),
        (lambda: aurc([0, 1], [1, math.nan]), "1 NaN"),
        (lambda: aurc([0, 1], [1, 2, 3]), "equally long"),
        (lambda: risk_coverage([0, 1], [1, 2], [0.0]), "above 0 and at most 1"),
        (lambda: sgr([0, 1], [1, 2], delta=0), "delta is 0"),
        (lambda: sgr([0, 1], [1, 2], max_risk=2), "max_risk is 2"),
        (lambda: learn_then_test([0, 1], [1, 2], starts=3), "starts is 3"),
        (lambda: risk_bound(3, 2, 0.05), "total_error is 3 of 2"),
        (lambda: risk_bound(0.5, 2, 0.05), "whole"),
        (lambda: bootstrap_curve([0, 1], [1, 2], groups=["a"]), "1 group labels for 2 questions"),
        (lambda: bootstrap_area([0, 1], [1, 2], "auc"), "allowed are 'aurc', 'augrc'"),
        (lambda: best_threshold([0, 1], [1, 2], -1), "cost is -1"),
        (lambda: cost_curve([0, 1], [1, 2], [-1.0]), "each at least 0"),
    ):
        with pytest.raises(ValueError, match=message):
            call()
