import math

import numpy as np
import pytest
import torch
from scipy.special import entr, expit

from vqa_core.evaluation.uncertainty import confidences, entropy_split, variance_split
from vqa_core.heads.bayes import ESTIMATORS, BayesLinear


@pytest.fixture
def rng():
    return np.random.default_rng(0)


def test_equal_samples_have_no_epistemic_part(rng):
    p = np.repeat(rng.dirichlet(np.ones(4), 6)[None], 9, axis=0)
    split = entropy_split(p)
    np.testing.assert_allclose(split.epistemic, 0, atol=1e-14)
    np.testing.assert_allclose(split.total, entr(p[0]).sum(-1))
    np.testing.assert_allclose(variance_split(p).epistemic, 0, atol=1e-14)


def test_sure_samples_that_disagree_have_no_aleatoric_part():
    p = np.stack([np.eye(3)[[0, 0]], np.eye(3)[[1, 0]]])  # (2, 2, 3): disagree about question 0 only
    split = entropy_split(p)
    np.testing.assert_allclose(split.total, [math.log(2), 0])
    np.testing.assert_allclose(split.aleatoric, 0)
    np.testing.assert_allclose(split.epistemic, [math.log(2), 0])
    np.testing.assert_allclose(variance_split(p).epistemic[0], [0.25, 0.25, 0])


def test_parts_add_up_and_none_is_negative(rng):
    p = rng.dirichlet(np.full(5, 0.3), (8, 30))
    for split in (entropy_split(p), entropy_split(p, jackknife=True), variance_split(p)):
        np.testing.assert_allclose(split.total, split.aleatoric + split.epistemic)
        assert all((part >= 0).all() for part in split)
    mean = p.mean(0)
    np.testing.assert_allclose(entropy_split(p).total, entr(mean).sum(-1))
    np.testing.assert_allclose(variance_split(p).total.sum(-1), 1 - (mean**2).sum(-1))


def test_order_of_samples_and_questions_does_not_matter(rng):
    p, s, q, a = rng.dirichlet(np.ones(5), (8, 6)), rng.permutation(8), rng.permutation(6), rng.permutation(5)
    for jackknife in (False, True):
        one, two = entropy_split(p, jackknife), entropy_split(p[s][:, q][..., a], jackknife)
        for x, y in zip(one, two):
            np.testing.assert_allclose(x[q], y)


@pytest.mark.parametrize("estimator", ESTIMATORS)
def test_against_quadrature_for_two_answers(estimator):
    """Two answers need one Gaussian logit, whose integrals Gauss–Hermite quadrature gives to many digits."""
    layer = BayesLinear(4, 2, estimator=estimator, initial_sigma=0.5)
    x = torch.randn(5, 4)
    with torch.no_grad():
        p = layer(x, 30_000).softmax(-1).numpy()
        m = (x @ (layer.weight_mu[1] - layer.weight_mu[0]) + layer.bias_mu[1] - layer.bias_mu[0]).numpy()
        v = ((x**2) @ (layer.weight_sigma**2).sum(0) + (layer.bias_sigma**2).sum()).numpy()
    nodes, weights = np.polynomial.hermite_e.hermegauss(80)
    q = expit(m[:, None] + np.sqrt(v)[:, None] * nodes)  # (5, 80)
    weights = weights / weights.sum()

    def binary(r):
        return entr(r) + entr(1 - r)

    mean, aleatoric = q @ weights, binary(q) @ weights
    split = entropy_split(p)
    np.testing.assert_allclose(p.mean(0)[:, 1], mean, atol=0.01)
    np.testing.assert_allclose(split.total, binary(mean), atol=0.01)
    np.testing.assert_allclose(split.aleatoric, aleatoric, atol=0.01)
    np.testing.assert_allclose(split.epistemic, binary(mean) - aleatoric, atol=0.01)
    np.testing.assert_allclose(variance_split(p).epistemic[:, 1], (q - mean[:, None]) ** 2 @ weights, atol=0.01)


def test_few_samples_hide_disagreement_and_the_jackknife_finds_most_of_it(rng):
    logits = rng.normal(size=(12, 30)) + 1.5 * rng.normal(size=(6000, 12, 30))
    p = np.exp(logits - logits.max(-1, keepdims=True))
    p /= p.sum(-1, keepdims=True)
    truth = entropy_split(p).epistemic.mean()
    bias, corrected = {}, {}
    for s in (5, 30, 100):
        parts = p.reshape(-1, s, 12, 30)[:60]
        bias[s] = np.mean([entropy_split(part).epistemic.mean() for part in parts]) / truth - 1
        corrected[s] = np.mean([entropy_split(part, jackknife=True).epistemic.mean() for part in parts]) / truth - 1
    assert bias[5] < -0.15
    assert bias[5] < 3 * bias[30] < 3 * 2 * bias[100] < 0  # falls about as 1 / S
    assert abs(corrected[5]) < 0.35 * abs(bias[5])
    assert abs(corrected[30]) < 0.2 * abs(bias[30])
    with pytest.raises(ValueError, match="got 1 sample"):
        entropy_split(p[:1], jackknife=True)


def test_confidences():
    p = np.array([[[0.7, 0.2, 0.1], [0.5, 0.5, 0.0]], [[0.5, 0.4, 0.1], [0.5, 0.5, 0.0]]])
    found = confidences(p)
    np.testing.assert_allclose(found["probability"], [0.6, 0.5])
    np.testing.assert_allclose(found["margin"], [0.3, 0.0], atol=1e-12)
    for name, value in entropy_split(p)._asdict().items():
        np.testing.assert_allclose(found[name], -value)
    with pytest.raises(ValueError, match="margin needs at least 2"):
        confidences(np.ones((2, 3, 1)))


def test_refuses_what_is_no_distribution():
    for wrong in (np.array([[[2.0, -1.0]]]), np.ones((2, 2)), np.full((1, 1, 2), np.nan), np.ones((2, 2, 2))):
        with pytest.raises(ValueError, match=r"softmax|samples, questions, answers"):
            entropy_split(wrong)
