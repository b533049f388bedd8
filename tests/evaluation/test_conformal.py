import numpy as np
import pytest

from vqa_core.evaluation.conformal import METHODS, calibrate, covered, singletons


@pytest.fixture
def rng():
    return np.random.default_rng(0)


def questions(n, rng, answers=6):
    """Probabilities of an overconfident model, and the right answers."""
    p = rng.dirichlet(np.full(answers, 0.5), n)
    y = (p.cumsum(1) < rng.random((n, 1))).sum(1)
    q = p**2
    return q / q.sum(1, keepdims=True), y


def test_threshold_by_hand():
    p = np.array([[0.9, 0.1], [0.8, 0.2], [0.7, 0.3], [0.4, 0.6]])
    rule = calibrate(p, np.array([0, 0, 0, 0]), alpha=0.4)  # ⌈5 · 0.6⌉ = 3rd smallest of 0.1, 0.2, 0.3, 0.6
    assert rule.threshold == pytest.approx(0.3)
    np.testing.assert_array_equal(rule(np.array([[0.71, 0.29], [0.5, 0.5]])), [[True, False], [False, False]])
    assert calibrate(p, np.array([0, 0, 0, 0]), alpha=0.1).threshold == np.inf  # 5th smallest of 4
    assert calibrate(p, np.zeros(4, int), alpha=0.1)(p).all()
    nine = np.full((9, 2), 0.5)
    assert calibrate(nine, np.zeros(9, int), alpha=0.9).threshold == 0.5  # 10 · 0.1 is 1, whatever floats say


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("alpha", [0.1, 0.3])
def test_the_promise_is_kept_on_average(method, alpha, rng):
    """Over draws of 49 calibration questions: at least 1 − α, at most 1/(n + 1) more."""
    rates = []
    for seed in range(400):
        p, y = questions(49 + 100, rng)
        sets = calibrate(p[:49], y[:49], alpha, method, seed=seed)(p[49:])
        rates.append(covered(sets, y[49:]).mean())
    error = np.std(rates) / np.sqrt(len(rates))
    assert 1 - alpha - 4 * error < np.mean(rates) < 1 - alpha + 1 / 50 + 4 * error


def test_sets_of_lac_are_the_smallest_and_those_of_aps_adapt(rng):
    p, y = questions(20_000, rng)
    sets = {m: calibrate(p[:10_000], y[:10_000], 0.1, m)(p[10_000:]) for m in METHODS}
    sizes = {m: s.sum(1).mean() for m, s in sets.items()}
    assert sizes["lac"] <= min(sizes["aps"], sizes["raps"]) + 0.02
    hard = p[10_000:].max(1) < np.median(p[10_000:].max(1))
    by_difficulty = {
        m: covered(s, y[10_000:])[hard].mean() - covered(s, y[10_000:])[~hard].mean() for m, s in sets.items()
    }
    assert abs(by_difficulty["aps"]) < abs(by_difficulty["lac"])


def test_a_heavy_penalty_forbids_far_ranks(rng):
    p, y = questions(4000, rng)
    sets = calibrate(p[:2000], y[:2000], 0.1, "raps", penalty=1.0, free_rank=3)(p[2000:])
    assert sets.sum(1).max() <= 4
    plain = calibrate(p[:2000], y[:2000], 0.1, "raps", penalty=0.0)
    assert plain.threshold == calibrate(p[:2000], y[:2000], 0.1, "aps").threshold


@pytest.mark.parametrize("method", METHODS)
def test_order_of_answers_and_of_calibration_questions(method, rng):
    p, y = questions(60, rng)
    columns, rows = rng.permutation(6), rng.permutation(60)
    rule = calibrate(p, y, 0.2, method, seed=3)
    renamed = calibrate(p[:, columns], np.argsort(columns)[y], 0.2, method, seed=3)
    np.testing.assert_array_equal(rule(p)[:, columns], renamed(p[:, columns]))
    if method == "lac":
        assert calibrate(p[rows], y[rows], 0.2).threshold == rule.threshold
    np.testing.assert_array_equal(rule(p), rule(p))  # the random part has a seed


def test_an_answer_outside_the_vocabulary_counts_as_missed(rng):
    p, y = questions(200, rng)
    unknown = np.where(np.arange(200) < 10, -100, y)
    assert calibrate(p, unknown, 0.2).threshold > calibrate(p, y, 0.2).threshold
    assert calibrate(p, np.where(np.arange(200) < 60, -100, y), 0.2).threshold == np.inf
    assert not covered(np.ones((2, 3), bool), np.array([-100, -100])).any()


def test_singletons():
    np.testing.assert_array_equal(singletons(np.array([[1, 0], [1, 1], [0, 0]], bool)), [True, False, False])


def test_refuses_nonsense(rng):
    p, y = questions(20, rng)
    for call, message in (
        (lambda: calibrate(p, y, 1.0), "alpha is 1"),
        (lambda: calibrate(p, y, method="top"), "allowed are 'lac', 'aps', 'raps'"),
        (lambda: calibrate(p, y[:5]), "answers must be int"),
        (lambda: calibrate(p, y + 6), "outside the vocabulary"),
        (lambda: calibrate(p * 2, y), "softmax"),
        (lambda: calibrate(p[0], y), "questions, answers"),
        (lambda: calibrate(p, y, penalty=-1), "penalty is -1"),
    ):
        with pytest.raises(ValueError, match=message):
            call()
