import time

import numpy as np
import pytest
from scipy import stats
from statsmodels.stats.contingency_tables import mcnemar as statsmodels_mcnemar
from statsmodels.stats.multitest import multipletests

from vqa_core.evaluation.statistics import (
    Interval,
    bootstrap,
    holm,
    mcnemar,
    mean_over_seeds,
    paired_difference,
    paired_test,
    seeds_and_questions,
    separated,
    wilson,
)


@pytest.fixture
def rng():
    return np.random.default_rng(0)


@pytest.mark.parametrize(("mean", "n", "low", "high"), [(0.439, 123, 35.4, 52.7), (0.716, 451, 67.3, 75.6)])
def test_wilson_gives_published_intervals(mean, n, low, high):
    i = wilson(round(mean * n), n)
    assert (round(100 * i.low, 1), round(100 * i.high, 1), i.n) == (low, high, n)


def test_wilson_of_nothing_and_of_everything():
    assert wilson(10, 10).high == 1
    assert 0.7 < wilson(10, 10).low < 0.75
    for correct, n in [(0, 0), (-1, 5), (6, 5)]:
        with pytest.raises(ValueError, match="correct"):
            wilson(correct, n)


@pytest.mark.parametrize(
    "wrong",
    [
        {"mean": 0.5, "low": 0.6, "high": 0.4, "n": 3},
        {"mean": 0.5, "low": 0.4, "high": 0.6, "n": 0},
        {"mean": float("nan"), "low": 0.4, "high": 0.6, "n": 3},
        {"mean": 0.5, "low": 0.4, "high": 0.6, "n": 3, "level": 95},
    ],
)
def test_interval_refuses_nonsense(wrong):
    with pytest.raises(ValueError, match=r"interval|n is|level"):
        Interval(**wrong)


def test_mean_over_seeds_is_the_t_interval():
    values = [0.61, 0.64, 0.60, 0.66, 0.63]
    i = mean_over_seeds(values)
    expected = stats.ttest_1samp(values, 0).confidence_interval(0.95)
    np.testing.assert_allclose([i.low, i.high], expected)
    assert i.n == i.seeds == 5
    with pytest.raises(ValueError, match="at least 2 seeds"):
        mean_over_seeds([0.6])


def test_bootstrap_of_a_mean_has_the_normal_width(rng):
    x = rng.normal(size=2000)
    i = bootstrap(x)
    half = 1.96 * x.std() / np.sqrt(len(x))
    np.testing.assert_allclose([i.low, i.high], [x.mean() - half, x.mean() + half], atol=0.05 * half)


def test_questions_that_share_a_picture_count_once(rng):
    """Ten copies of each of 100 values carry the information of 100 values, not of 1,000."""
    x = rng.random(100)
    copies, pictures = np.repeat(x, 10), np.repeat(np.arange(100), 10)
    alone, clustered, naive = bootstrap(x), bootstrap(copies, pictures), bootstrap(copies)
    assert clustered.n == 1000
    np.testing.assert_allclose([clustered.low, clustered.high], [alone.low, alone.high], atol=0.003)
    assert (clustered.high - clustered.low) / (naive.high - naive.low) == pytest.approx(np.sqrt(10), rel=0.1)


def test_counting_kinds_of_groups_equals_drawing_groups(rng):
    """The fast path (mean) and the plain one (any statistic) are the same distribution; group sizes differ."""
    x, pictures = rng.random(60) < 0.6, rng.integers(0, 20, 60).astype(str)
    fast, plain = bootstrap(x, pictures), bootstrap(x, pictures, statistic=np.mean, resamples=4000)
    assert fast.mean == plain.mean == x.mean()
    np.testing.assert_allclose([fast.low, fast.high], [plain.low, plain.high], atol=0.012)


def test_bootstrap_of_a_statistic_of_rows(rng):
    x = rng.normal(size=200)
    rows = np.stack([x, x + rng.normal(size=200)], axis=1)
    i = bootstrap(rows, statistic=lambda r: np.corrcoef(r.T)[0, 1], resamples=1000)
    assert i.low < 0.707 < i.high
    assert i.n == 200


def test_bootstrap_is_reproducible_and_permutation_invariant(rng):
    x, pictures = rng.random(300) < 0.5, rng.integers(0, 50, 300)
    order = rng.permutation(300)
    assert bootstrap(x, pictures) == bootstrap(x[order], pictures[order])
    assert bootstrap(x, pictures, seed=1) != bootstrap(x, pictures, seed=2)


def test_seeds_without_question_noise_give_the_t_interval():
    by_seed = np.array([0.61, 0.64, 0.60, 0.66, 0.63])
    i = seeds_and_questions(np.repeat(by_seed[:, None], 50, axis=1), resamples=200_000)
    t = mean_over_seeds(by_seed)
    np.testing.assert_allclose([i.low, i.high], [t.low, t.high], atol=0.001)
    assert (i.n, i.seeds) == (50, 5)


def test_seeds_that_agree_give_the_clustered_bootstrap(rng):
    x, pictures = rng.random(400) < 0.7, rng.integers(0, 80, 400)
    i, b = seeds_and_questions(np.stack([x] * 5), pictures), bootstrap(x, pictures)
    assert (i.low, i.high) == (b.low, b.high)
    one = seeds_and_questions(x[None], pictures)
    assert (one.low, one.high, one.seeds) == (b.low, b.high, 1)


def _simulate(rng, seed_sd, picture_sd, n_seeds=5, n_pictures=60, per_picture=4):
    """(S, Q) answers of models whose true accuracy is 0.6 on average over seeds, pictures and questions."""
    p = 0.6 + seed_sd * rng.normal(size=(n_seeds, 1, 1)) + picture_sd * rng.uniform(-1, 1, (1, n_pictures, 1))
    p = p + 0.2 * rng.uniform(-1, 1, (1, n_pictures, per_picture))
    return (rng.random((n_seeds, n_pictures, per_picture)) < p).reshape(n_seeds, -1)


@pytest.mark.parametrize(("seed_sd", "picture_sd"), [(0.05, 0.02), (0.01, 0.18), (0.03, 0.1)])
def test_the_interval_of_the_book_covers_what_it_promises(rng, seed_sd, picture_sd):
    """95 % of the intervals hold the truth, where a bootstrap of five seeds or of single questions holds far less."""
    pictures = np.repeat(np.arange(60), 4)
    hits = 0
    for trial in range(400):
        i = seeds_and_questions(_simulate(rng, seed_sd, picture_sd), pictures, resamples=1000, seed=trial)
        hits += i.low <= 0.6 <= i.high
    assert 0.93 <= hits / 400 <= 0.995


def test_no_spread_is_not_certainty():
    i = seeds_and_questions(np.ones((5, 40), bool), groups=np.repeat(np.arange(10), 4))
    assert (i.mean, i.high, i.n) == (1, 1, 40)
    assert i.low == wilson(10, 10).low


def test_ten_thousand_resamples_of_a_large_test_set_are_fast(rng):
    correct, pictures = rng.random((5, 16_000)) < 0.6, rng.integers(0, 4000, 16_000)
    start = time.process_time()
    i = seeds_and_questions(correct, pictures)
    assert time.process_time() - start < 2
    assert 0.59 < i.low < i.high < 0.61


def test_paired_difference_uses_the_pairing(rng):
    hard = rng.random(500)  # the same questions are hard for both models
    b = (rng.random((5, 500)) * 0.2 + 0.4) > hard
    a = b | (rng.random((5, 500)) < 0.05)
    d = paired_difference(a, b)
    assert d.interval.mean == pytest.approx(a.mean() - b.mean())
    assert d.interval.low > 0
    assert d.test.p_value < 0.01
    alone = seeds_and_questions(a)
    assert d.interval.high - d.interval.low < 0.6 * (alone.high - alone.low)
    back = paired_difference(b, a)
    assert back.interval.mean == -d.interval.mean
    assert back.test.p_value == d.test.p_value
    assert paired_difference(a[:1], b[:1]).test == mcnemar(a[0], b[0])
    with pytest.raises(ValueError, match="same seeds and questions"):
        paired_difference(a, b[:, :-1])


def test_paired_tests_agree_with_scipy_and_with_counting():
    a, b = [0.61, 0.64, 0.60, 0.66, 0.63], [0.60, 0.60, 0.58, 0.61, 0.59]
    t = paired_test(a, b)
    assert (t.p_value, t.n) == (stats.ttest_rel(a, b).pvalue, 5)
    # All five differences are positive: 2 of the 32 sign patterns are as extreme.
    assert paired_test(a, b, "sign-flip").p_value == pytest.approx(2 / 32)
    assert paired_test(a, a).p_value == 1
    for wrong, match in [
        ((a, b[:4]), "same seeds"),
        ((a, b, "z"), "allowed"),
        ((range(13), [0] * 13, "sign-flip"), "12"),
    ]:
        with pytest.raises(ValueError, match=match):
            paired_test(*wrong)


def test_mcnemar_equals_statsmodels(rng):
    a, b = rng.random(200) < 0.7, rng.random(200) < 0.6
    table = [[np.sum(a & b), np.sum(a & ~b)], [np.sum(~a & b), np.sum(~a & ~b)]]
    ours = mcnemar(a, b)
    assert ours.p_value == pytest.approx(statsmodels_mcnemar(table, exact=True).pvalue)
    assert ours.n == np.sum(a != b)
    assert mcnemar(a, a).p_value == 1
    with pytest.raises(ValueError, match="right/wrong"):
        mcnemar(a * 0.5, b)


def test_holm_equals_statsmodels(rng):
    for p in (rng.random(7) ** 3, [0.01, 0.01, 0.9], [0.2]):
        np.testing.assert_allclose(holm(p), multipletests(p, method="holm")[1])
    with pytest.raises(ValueError, match="between 0 and 1"):
        holm([0.1, 1.2])


def test_separated_is_symmetric_and_strict():
    a, b, c = Interval(0.5, 0.4, 0.6, 10), Interval(0.7, 0.61, 0.8, 10), Interval(0.7, 0.6, 0.8, 10)
    assert separated(a, b)
    assert separated(b, a)
    assert not separated(a, c)
    assert not separated(a, a)


def test_bad_values_are_refused():
    for call in (
        lambda: bootstrap([]),
        lambda: bootstrap([], statistic=np.median),
        lambda: bootstrap([1.0, float("nan")]),
        lambda: bootstrap([1.0, 0.0], groups=["a"]),
        lambda: seeds_and_questions(np.ones(5)),
        lambda: seeds_and_questions(np.ones((5, 0))),
    ):
        with pytest.raises(ValueError, match=r"finite|group|dimension|empty"):
            call()
