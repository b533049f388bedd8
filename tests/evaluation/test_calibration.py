import numpy as np
import pytest
from sklearn.metrics import log_loss

from vqa_core.evaluation.calibration import (
    apply_temperature,
    brier,
    classwise_ece,
    ece,
    fit_temperature,
    max_calibration_error,
    nll,
    reliability,
)


@pytest.fixture
def rng():
    return np.random.default_rng(0)


def draw(p, rng):
    """One answer per row, by its probabilities: calibrated by construction."""
    return (p.cumsum(1) < rng.random((len(p), 1))).sum(1)


def test_nll_and_brier_against_their_definitions(rng):
    p = rng.dirichlet(np.ones(4), 50)
    y = draw(p, rng)
    assert nll(p, y) == pytest.approx(log_loss(y, p, labels=range(4)))
    assert brier(p, y) == pytest.approx(np.mean([((row - np.eye(4)[k]) ** 2).sum() for row, k in zip(p, y)]))
    assert brier(np.eye(3), np.array([0, 1, 2])) == 0
    assert brier(np.eye(3), np.array([1, 2, 0])) == 2
    assert nll(np.eye(2), np.array([0, 0])) == np.inf


def test_nll_and_brier_are_proper(rng):
    """Nobody gains by saying what he does not believe."""
    p = rng.dirichlet(np.ones(3), 20_000)
    y = draw(p, rng)
    for score in (nll, brier):
        honest = score(p, y)
        for temperature in (0.5, 2.0):
            q = p ** (1 / temperature)
            assert score(q / q.sum(1, keepdims=True), y) > honest + 0.005


def test_reliability_by_hand():
    c, r = np.array([0.1, 0.15, 0.6, 0.9, 1.0]), np.array([0, 1, 1, 1, 0])
    found = reliability(c, r, bins=2)
    np.testing.assert_allclose(found.confidence, [0.125, 2.5 / 3])
    np.testing.assert_allclose(found.accuracy, [0.5, 2 / 3])
    np.testing.assert_array_equal(found.count, [2, 3])
    assert ece(c, r, bins=2) == pytest.approx((2 * 0.375 + 3 * (2.5 / 3 - 2 / 3)) / 5)
    assert max_calibration_error(c, r, bins=2) == pytest.approx(0.375)
    np.testing.assert_array_equal(reliability(c, r, bins=5, scheme="mass").count, np.ones(5))
    assert ece(c, r, bins=1) == ece(c, r, bins=1, scheme="mass") == pytest.approx(abs(c.mean() - r.mean()))


def test_soft_accuracies_are_welcome():
    assert ece(np.full(4, 0.6), np.array([0.3, 0.9, 0.6, 0.6])) == pytest.approx(0)


@pytest.mark.parametrize("scheme", ["width", "mass"])
def test_calibrated_and_overconfident(scheme, rng):
    c = rng.uniform(0.3, 1, 50_000)
    right = rng.random(50_000) < c
    assert ece(c, right, scheme=scheme) < 0.01
    assert ece(c, rng.random(50_000) < c - 0.2, scheme=scheme) == pytest.approx(0.2, abs=0.01)


@pytest.mark.parametrize("scheme", ["width", "mass"])
def test_order_does_not_matter_even_with_ties(scheme, rng):
    c, right = rng.integers(0, 4, 200) / 4, rng.random(200) < 0.5
    order = rng.permutation(200)
    for bins in (3, 7, 200):
        assert ece(c, right, bins, scheme) == pytest.approx(ece(c[order], right[order], bins, scheme), abs=1e-14)
    assert len(reliability(c, right, 50, "mass").count) == 4  # equal confidences are in one bin


def test_classwise(rng):
    p = rng.dirichlet(np.ones(3), 30_000)
    y = draw(p, rng)
    for scheme in ("width", "mass"):
        assert classwise_ece(p, y, scheme=scheme) < 0.01
        assert classwise_ece(p, (y + 1) % 3, scheme=scheme) > 0.2
    assert classwise_ece(p, y, 7, "mass") == pytest.approx(np.mean([ece(p[:, a], y == a, 7, "mass") for a in range(3)]))


@pytest.mark.parametrize("temperature", [0.4, 1.0, 3.0])
def test_temperature_is_found_again(temperature, rng):
    z = 2 * rng.normal(size=(20_000, 5))
    y = draw(apply_temperature(z, 1.0), rng)
    found = fit_temperature(z * temperature, y)
    assert found == pytest.approx(temperature, rel=0.03)
    best = nll(apply_temperature(z * temperature, found), y)
    for other in (0.9 * found, 1.1 * found, 1.0):
        assert best <= nll(apply_temperature(z * temperature, other), y) + 1e-9


def test_temperature_leaves_the_answers_and_the_largest_logits_alone(rng):
    z = rng.normal(size=(50, 4))
    assert np.array_equal(apply_temperature(z, 7.0).argmax(1), z.argmax(1))
    np.testing.assert_allclose(apply_temperature(np.array([[1000.0, 0.0]]), 1.0), [[1, 0]])
    np.testing.assert_allclose(apply_temperature(z, 1.0).sum(1), 1)


def test_separable_questions_have_no_temperature():
    with pytest.raises(ValueError, match="2 of 2 answers are right"):
        fit_temperature(np.eye(2) * 3, np.array([0, 1]))


def test_refuses_nonsense(rng):
    p = np.array([[0.5, 0.5]])
    for call, message in (
        (lambda: nll(p, np.array([-100])), "leave others out"),
        (lambda: nll(p * 3, np.array([0])), "softmax"),
        (lambda: brier(p, np.array([0.0])), "int"),
        (lambda: ece([0.5, 1.2], [0, 1]), "confidence must lie between 0 and 1"),
        (lambda: ece([0.5, np.nan], [0, 1]), "confidence must lie"),
        (lambda: ece([0.5], [0, 1]), "equally long"),
        (lambda: ece([0.5], [1], bins=0), "bins is 0"),
        (lambda: ece([0.5], [1], scheme="depth"), "allowed are 'width', 'mass'"),
        (lambda: apply_temperature(p, 0), "temperature is 0"),
    ):
        with pytest.raises(ValueError, match=message):
            call()
