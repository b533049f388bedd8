import math

import numpy as np
import pytest
import torch
from torch import nn
from torch.distributions import Laplace, Normal, kl_divergence
from torch.nn import functional as F
from torch.testing import assert_close

from vqa_core.heads.bayes import (
    ESTIMATORS,
    BayesHead,
    BayesLinear,
    Deterministic,
    Ensemble,
    GaussianPrior,
    LaplacePrior,
    LastLayerLaplace,
    MCDropout,
    Posterior,
    ScaleMixturePrior,
    _Moments,
    negative_elbo,
)
from vqa_core.heads.classifier import LinearHead, MLPHead


def spread(layer, mu=0.5, sigma=(0.1, 0.6)):
    """Give a layer means and standard deviations that are far from its start."""
    with torch.no_grad():
        for m, r in ((layer.weight_mu, layer.weight_rho), (layer.bias_mu, layer.bias_rho)):
            if m is not None:
                m.normal_().mul_(mu)
                r.copy_(torch.empty_like(r).uniform_(*sigma).expm1().log())
    return layer


# ----------------------------------------------------------------------------------------------------------------- KL


@pytest.mark.parametrize(
    ("prior", "reference"),
    [(GaussianPrior(0.3), (Normal, 0.3)), (LaplacePrior(0.2), (Laplace, 0.2))],
    ids=["gaussian", "laplace"],
)
def test_kl_is_the_sum_over_all_weights_in_nats(prior, reference):
    """Not its mean, which is a millionth of it, and with the prior's parameter as a standard deviation."""
    layer = spread(BayesLinear(7, 5, prior=prior)).double()
    family, scale = reference
    p = family(torch.zeros((), dtype=torch.float64), torch.tensor(scale, dtype=torch.float64))
    expected = sum(
        kl_divergence(Normal(m, s), p).sum()
        for m, s in ((layer.weight_mu, layer.weight_sigma), (layer.bias_mu, layer.bias_sigma))
    )
    assert_close(layer.kl(), expected, rtol=1e-6, atol=0)
    assert layer.kl() > 0


def test_kl_of_twice_the_width_is_twice_the_kl():
    one, two = BayesLinear(8, 5), BayesLinear(8, 10)
    with torch.no_grad():
        for layer in (one, two):
            for p in (layer.weight_mu, layer.bias_mu):
                p.fill_(0.2)
    assert_close(two.kl(), 2 * one.kl(), rtol=1e-6, atol=0)
    head = BayesHead(8, 5, 6, depth=2)  # nor is it divided by the number of layers
    assert_close(head.kl(), sum(f.kl() for f in head.layers), rtol=1e-6, atol=0)


@pytest.mark.parametrize("sigma", [0.1, 0.3, 2.0])
def test_kl_is_zero_only_at_the_prior(sigma):
    layer = BayesLinear(4, 3, prior_sigma=sigma, initial_sigma=sigma).double()
    with torch.no_grad():
        layer.weight_mu.zero_(), layer.bias_mu.zero_()
    assert layer.kl().abs() < 1e-6
    for other in (sigma**2, 3 * sigma):
        if other != sigma:
            assert BayesLinear(4, 3, prior_sigma=other, initial_sigma=sigma).kl() > 0.01


def test_the_priors_pull_does_not_vanish_far_out():
    """Something added inside the density makes the gradient 0 beyond |μ| = 0.8 for σ₀ = 0.1."""
    mu = torch.tensor([0.5, 0.9, 5.0, 50.0], dtype=torch.float64, requires_grad=True)
    GaussianPrior(0.1).kl(mu, torch.full_like(mu, 0.01)).sum().backward()
    assert_close(mu.grad, mu.detach() / 0.1**2)
    mixture, mu2 = ScaleMixturePrior(0.5, 0.1, 0.01), mu.detach().clone().requires_grad_()
    mixture.kl(mu2, torch.full_like(mu2, 1e-6)).sum().backward()
    assert_close(mu2.grad, mu2.detach() / 0.1**2, rtol=1e-3, atol=0)


def test_scale_mixture_against_numerical_integration():
    prior = ScaleMixturePrior(0.3, 0.8, 0.05, draws=40_000)
    mu, sigma = torch.tensor([0.0, 0.2, -1.0]).double(), torch.tensor([0.05, 0.3, 0.2]).double()
    w = torch.linspace(-4, 4, 80_001).double()
    q = Normal(mu[:, None], sigma[:, None]).log_prob(w)
    exact = torch.trapezoid(q.exp() * (q - prior.log_density(w)), w)
    draws = prior.kl(mu, sigma)
    assert_close(draws, exact, atol=0.05, rtol=0.02)
    same = ScaleMixturePrior(0.4, 0.1, 0.1, draws=100_000).kl(mu, sigma)
    assert_close(same, GaussianPrior(0.1).kl(mu, sigma), rtol=0.03, atol=0.01)
    one = ScaleMixturePrior(0.3, 0.8, 0.05)
    assert_close(torch.stack([one.kl(mu, sigma) for _ in range(2000)]).mean(0), exact, atol=0.15, rtol=0.05)


def test_softplus_does_not_overflow():
    layer = BayesLinear(3, 2)
    with torch.no_grad():
        layer.weight_rho.fill_(100.0)
    assert torch.log1p(layer.weight_rho.exp()).isinf().all()  # what others do
    assert_close(layer.weight_sigma, torch.full((2, 3), 100.0))
    assert layer.kl().isfinite()
    assert layer(torch.ones(4, 3)).isfinite().all()


# --------------------------------------------------------------------------------------------------------- estimators


@pytest.mark.parametrize("estimator", ESTIMATORS)
@pytest.mark.parametrize("bias", [True, False])
def test_estimators_agree_with_the_exact_moments(estimator, bias):
    layer, n = spread(BayesLinear(6, 3, estimator=estimator, bias=bias)), 40_000
    x = torch.randn(4, 6)
    with torch.no_grad():
        y = layer(x, n)  # (n, 4, 3)
        mean = F.linear(x, layer.weight_mu, layer.bias_mu)
        variance = F.linear(x**2, layer.weight_sigma**2, None if not bias else layer.bias_sigma**2)
    assert y.shape == (n, 4, 3)
    assert ((y.mean(0) - mean) / (variance / n).sqrt()).abs().max() < 4.5  # z-scores
    assert ((y.var(0) / variance - 1) / math.sqrt(2 / n)).abs().max() < 4.5


def test_only_shared_weights_make_rows_move_together():
    """Local reparameterisation and flipout are right row by row; only shared weights are one function."""
    layer, n = spread(BayesLinear(6, 1)), 20_000
    x = torch.rand(2, 6)
    shared = ((x[0] * x[1]) @ layer.weight_sigma[0] ** 2 + layer.bias_sigma[0] ** 2).item()
    norms = [((row**2) @ layer.weight_sigma[0] ** 2 + layer.bias_sigma[0] ** 2).item() for row in x]
    expected = {"weight": shared / math.sqrt(norms[0] * norms[1]), "local": 0.0, "flipout": 0.0}
    assert expected["weight"] > 0.3
    for estimator, correlation in expected.items():
        layer.estimator = estimator
        with torch.no_grad():
            found = torch.corrcoef(layer(x, n)[..., 0].T)[0, 1]
        assert abs(found - correlation) < 0.04, estimator


def test_draws_are_functions():
    head = BayesHead(4, 3, 8)
    for f in head.layers:
        spread(f)
    functions, x = head.draw(5), torch.randn(6, 4)
    assert_close(functions(x), functions(x))
    assert_close(functions(x)[:, 2:4], functions(x[2:4]))
    assert not torch.allclose(head(x, 5), head(x, 5))
    linear = spread(BayesLinear(4, 3)).draw(7)
    zero = linear(torch.zeros(1, 4))
    assert_close(linear(x[:1]) + linear(x[1:2]) - zero, linear(x[:1] + x[1:2]))
    own = torch.randn(7, 6, 4)
    assert_close(linear(own)[3], own[3] @ linear.weight[3].T + linear.bias[3])


@pytest.mark.parametrize("estimator", ESTIMATORS)
def test_an_input_for_each_sample(estimator):
    layer = spread(BayesLinear(4, 3, estimator=estimator), sigma=(1e-6, 2e-6))
    x = torch.randn(5, 6, 4)
    assert_close(layer(x, 5), F.linear(x, layer.weight_mu, layer.bias_mu), atol=1e-3, rtol=1e-3)
    for wrong in (torch.randn(4, 6, 4), torch.randn(6, 3), torch.randn(4)):
        with pytest.raises(ValueError, match=r"x has shape .* give \(B, 4\)"):
            layer(wrong, 5)


def test_one_sample_in_training_and_the_mean_in_eval():
    layer, x = spread(BayesLinear(4, 3)), torch.randn(2, 4)
    assert layer(x).shape == (2, 3)
    assert not torch.equal(layer(x), layer(x))
    layer.eval()
    assert_close(layer(x), F.linear(x, layer.weight_mu, layer.bias_mu))
    assert not torch.equal(layer(x, 1)[0], layer(x))


@pytest.mark.parametrize("shape", [(5, 4), (2, 5, 4)])
def test_moments_and_their_gradients(shape):
    x = torch.randn(shape).double().requires_grad_()
    w, v = torch.randn(3, 4).double().requires_grad_(), torch.rand(3, 4).double().requires_grad_()
    assert torch.autograd.gradcheck(_Moments.apply, (x, w, v))
    assert_close(_Moments.apply(x, w, v), (F.linear(x, w), F.linear(x**2, v)))


@pytest.mark.parametrize("bias", [True, False])
def test_a_row_of_zeros_gives_no_nan(bias):
    """√ has an infinite slope at 0; 0 · ∞ made every ρ of the first layer NaN elsewhere."""
    layer = BayesLinear(4, 3, bias=bias)
    x = torch.randn(5, 4)
    x[2] = 0
    layer(x).square().sum().backward()
    assert all(p.grad.isfinite().all() for p in layer.parameters())
    assert layer.weight_rho.grad.abs().min() > 0
    rho = layer.weight_rho.detach().clone().requires_grad_()
    plain = F.linear(x**2, F.softplus(rho) ** 2).sqrt()
    (plain * torch.randn(5, 3)).sum().backward()
    assert rho.grad.isnan().all()  # the defect, if nothing guards the root


@pytest.mark.parametrize("estimator", ESTIMATORS)
@pytest.mark.parametrize("bayes", ["all", "last"])
@pytest.mark.parametrize("samples", [None, 3])
def test_gradient_reaches_every_parameter(estimator, bayes, samples):
    head = BayesHead(4, 3, 5, depth=2, bayes=bayes, estimator=estimator)
    logits = head(torch.randn(6, 4), samples)
    negative_elbo(logits, torch.tensor([0, 1, 2, 0, 1, -100]), head.kl(), 6).backward()
    assert all(p.grad.isfinite().all() and p.grad.abs().max() > 0 for p in head.parameters())


def test_layers_refuse_nonsense():
    for wrong in ({"prior_sigma": 0.0}, {"initial_sigma": -1.0}, {"prior_sigma": float("inf")}):
        with pytest.raises(ValueError, match="greater than 0"):
            BayesLinear(3, 2, **wrong)
    with pytest.raises(ValueError, match="allowed are 'local', 'weight', 'flipout'"):
        BayesLinear(3, 2, estimator="lrt")
    with pytest.raises(ValueError, match="pi is 1"):
        ScaleMixturePrior(pi=1)
    with pytest.raises(ValueError, match="allowed are 'all', 'last'"):
        BayesHead(3, 2, bayes="first")
    with pytest.raises(ValueError, match="at least 0"):
        BayesHead(3, 2, depth=-1)


# ---------------------------------------------------------------------------------------------------------- inference


def test_bayesian_linear_regression():
    """The best mean-field q has the posterior's mean and σᵢ = Λᵢᵢ^(−½); the evidence is KL(q ‖ posterior) away."""
    n, d, noise, s0 = 40, 4, 0.5, 0.7
    x = torch.randn(n, d).double() @ torch.randn(d, d).double()
    y = x @ torch.randn(d).double() + noise * torch.randn(n).double()
    layer = BayesLinear(d, 1, s0, bias=False).double()
    optimizer = torch.optim.LBFGS(layer.parameters(), max_iter=2000, tolerance_grad=1e-10, tolerance_change=1e-14,
                                  line_search_fn="strong_wolfe")  # fmt: skip

    def bound():  # −ELBO in nats per data set; the expectation of a Gaussian's log-likelihood is exact
        error = (y - x @ layer.weight_mu[0]).square().sum() + (x.square() @ layer.weight_sigma[0].square()).sum()
        return n / 2 * math.log(2 * math.pi * noise**2) + error / (2 * noise**2) + layer.kl()

    def closure():
        optimizer.zero_grad()
        loss = bound()
        loss.backward()
        return loss

    optimizer.step(closure)
    precision = x.T @ x / noise**2 + torch.eye(d).double() / s0**2
    covariance = torch.linalg.inv(precision)
    mean = covariance @ x.T @ y / noise**2
    assert_close(layer.weight_mu[0].detach(), mean, atol=1e-5, rtol=1e-5)
    assert_close(layer.weight_sigma[0].detach(), precision.diag().rsqrt(), rtol=1e-4, atol=0)
    assert (layer.weight_sigma[0] < 0.95 * covariance.diag().sqrt()).any()  # not the marginal deviations
    evidence = torch.distributions.MultivariateNormal(
        torch.zeros(n).double(), noise**2 * torch.eye(n).double() + s0**2 * x @ x.T
    ).log_prob(y)
    posterior = torch.distributions.MultivariateNormal(mean, covariance)
    q = torch.distributions.MultivariateNormal(layer.weight_mu[0], layer.weight_sigma[0].square().diag())
    assert_close(evidence + bound(), kl_divergence(q, posterior), rtol=1e-6, atol=1e-8)
    assert kl_divergence(q, posterior) > 0.05


def test_without_data_the_posterior_becomes_the_prior():
    layer = BayesLinear(5, 4, 0.3)
    optimizer = torch.optim.Adam(layer.parameters(), 0.03)
    for _ in range(500):
        optimizer.zero_grad()
        layer.kl().backward()
        optimizer.step()
    assert layer.kl() < 1e-3
    assert layer.weight_mu.abs().max() < 0.01
    assert_close(layer.weight_sigma, torch.full((4, 5), 0.3), atol=0.01, rtol=0)


def test_alpha_zero_and_no_noise_is_the_deterministic_net():
    head, plain = BayesHead(4, 3, 5, initial_sigma=1e-6), MLPHead(4, 3, 5)
    for theirs, ours in zip((plain.layers[0][0], plain.layers[1]), head.layers):
        ours.load_state_dict({"weight_mu": theirs.weight, "bias_mu": theirs.bias}, strict=False)
    x, answers = torch.randn(6, 4), torch.randint(0, 3, (6,))
    loss = negative_elbo(head(x, 4), answers, head.kl(), 6, alpha=0.0)
    expected = F.cross_entropy(plain(x), answers)
    assert_close(loss, expected, atol=1e-4, rtol=1e-4)
    loss.backward(), expected.backward()
    assert_close(head.layers[0].weight_mu.grad, plain.layers[0][0].weight.grad, atol=1e-4, rtol=1e-3)
    assert_close(head.eval()(x), plain(x))


def test_objective_is_nats_per_question():
    logits, answers = torch.zeros(2, 3, 4), torch.tensor([0, 3, -100])
    assert_close(negative_elbo(logits, answers, torch.tensor(50.0), 100, 0.5), torch.tensor(math.log(4) + 0.25))
    assert_close(negative_elbo(logits[0], answers, torch.tensor(50.0), 100), torch.tensor(math.log(4) + 0.5))
    mixed = torch.randn(5, 3, 4)
    each = torch.stack([negative_elbo(s, answers, torch.tensor(1.0), 10) for s in mixed])
    assert_close(negative_elbo(mixed, answers, torch.tensor(1.0), 10), each.mean())
    with pytest.raises(ValueError, match="at least 1 and at least 0"):
        negative_elbo(logits, answers, torch.tensor(1.0), 0)


@pytest.mark.parametrize("bayes", ["all", "last"])
def test_overfits_eight_questions(bayes):
    head, x, answers = BayesHead(16, 4, 32, bayes=bayes), torch.randn(8, 16), torch.arange(8) % 4
    optimizer = torch.optim.Adam(head.parameters(), 0.01)
    for _ in range(200):
        optimizer.zero_grad()
        negative_elbo(head(x), answers, head.kl(), 8, alpha=1e-3).backward()
        optimizer.step()
    found = head.predict(x, 50)
    assert torch.equal(found.answers, answers)
    assert found.mean.max(-1).values.min() > 0.8


# ---------------------------------------------------------------------------------------------------------- posterior


def test_posterior_is_the_mean_of_probabilities():
    p = Posterior(torch.randn(7, 5, 3))
    assert_close(p.mean, p.probabilities.mean(0))
    assert_close(p.log_mean.exp().sum(-1), torch.ones(5))
    assert torch.equal(p.answers, p.probabilities.mean(0).argmax(-1))
    sure = Posterior(torch.tensor([[[0.0, 500.0]]]))
    assert sure.log_mean[0, 0] == -500  # where the probability itself is 0


@pytest.mark.parametrize("bayes", ["all", "last"])
def test_prediction_is_a_posterior_and_leaves_the_modes_alone(bayes):
    head, x = BayesHead(4, 3, 5, bayes=bayes, initial_sigma=0.5), torch.randn(6, 4)
    head.layers[0].eval()
    modes = [m.training for m in head.modules()]
    torch.manual_seed(1)
    found = head.predict(x, 20_000)
    assert [m.training for m in head.modules()] == modes
    assert not found.logits.requires_grad
    assert found.logits.std(0).min() > 0.1
    order = torch.randperm(6)
    again = head.predict(x[order], 20_000)
    assert_close(again.mean, found.mean[order], atol=0.02, rtol=0)  # neither order nor batch matter
    assert_close(head.predict(x[:2], 20_000).mean, found.mean[:2], atol=0.02, rtol=0)
    with pytest.raises(ValueError, match="at least 1"):
        head.predict(x, 0)


def test_loaded_weights_are_in_use():
    a, b, x = BayesHead(4, 3, 5), BayesHead(4, 3, 5), torch.randn(2, 4)
    assert not torch.allclose(a.eval()(x), b.eval()(x))
    b.load_state_dict(a.state_dict())
    torch.manual_seed(0)
    first = a.predict(x, 3).logits
    torch.manual_seed(0)
    assert torch.equal(first, b.predict(x, 3).logits)


class Wrapped(nn.Module):
    """Two inputs, and an output with ``.logits``, as a VQAModel has."""

    def __init__(self, head):
        super().__init__()
        self.head = head

    def forward(self, x, mask):
        from vqa_core.model import VQAOutput

        return VQAOutput(self.head(x * mask), None)


def test_deterministic_is_a_point():
    head, x = MLPHead(4, 3, 5, dropout=0.5), torch.randn(2, 4)
    found = Deterministic(head, temperature=2.0).predict(x, 9)
    assert_close(found.logits, (head.eval()(x) / 2).expand(9, 2, 3))
    two = Deterministic(Wrapped(head)).predict((x, torch.ones(2, 4)), 1)
    assert_close(two.logits[0], head(x))
    with pytest.raises(ValueError, match="temperature is 0"):
        Deterministic(head, 0)


def test_dropout_stays_on():
    head = nn.Sequential(nn.Dropout(0.25), LinearHead(4, 2), nn.BatchNorm1d(2))
    x = torch.randn(3, 4)
    predictor = MCDropout(head).eval()
    found = predictor.predict(x, 20_000)
    assert not any(m.training for m in head.modules())
    assert found.logits.shape == (20_000, 3, 2)
    plain = head(x)  # inverted dropout keeps the mean of what comes before a linear layer
    assert_close(found.logits.mean(0), plain, atol=0.03, rtol=0)
    w = head[1].weight
    variance = (x**2) @ (w**2).T * (0.25 / 0.75)
    assert_close(found.logits.var(0), variance.detach(), rtol=0.06, atol=1e-3)
    assert_close(head[2].running_mean, torch.zeros(2))  # batch norm was not in training
    both = MCDropout(Wrapped(head)).predict((x, torch.ones(3, 4)), 50)
    assert both.logits.shape == (50, 3, 2)
    for bad in (MLPHead(4, 2), nn.Sequential(nn.Dropout(0.0), LinearHead(4, 2))):
        with pytest.raises(ValueError, match=r"no nn\.Dropout"):
            MCDropout(bad)


def test_ensemble_has_a_sample_for_each_member():
    members, x = [LinearHead(4, 3) for _ in range(3)], torch.randn(2, 4)
    found = Ensemble(members).predict(x, 3)
    assert_close(found.logits, torch.stack([m(x) for m in members]))
    assert len(Ensemble(members).predict(x, 2).logits) == 2
    with pytest.raises(ValueError, match="has 3 members"):
        Ensemble(members).predict(x, 4)
    with pytest.raises(ValueError, match="at least 1 member"):
        Ensemble([])


# ------------------------------------------------------------------------------------------------------------ Laplace


def test_laplace_is_exact_for_one_question():
    """With one question the Kronecker product is the whole curvature φφᵀ ⊗ (diag p − ppᵀ): compare with J Σ Jᵀ."""
    head, x, new = LinearHead(3, 4), torch.randn(1, 3), torch.randn(5, 3)
    laplace = LastLayerLaplace(nn.Identity(), head, x, prior_precision=0.7)
    p, phi = head(x)[0].softmax(-1).double().detach(), F.pad(x[0], (0, 1), value=1.0).double()
    precision = torch.kron(p.diag() - torch.outer(p, p), torch.outer(phi, phi)) + 0.7 * torch.eye(16).double()
    sigma = torch.linalg.inv(precision)
    logits = laplace.predict(new, 60_000).logits.double()  # (S, 5, 4)
    assert_close(logits.mean(0), head(new).double().detach(), atol=0.04, rtol=0)
    for row, one in zip(new, logits.unbind(1)):
        jacobian = torch.kron(torch.eye(4).double(), F.pad(row, (0, 1), value=1.0).double()[None])  # (4, 16)
        exact = jacobian @ sigma @ jacobian.T
        assert_close(torch.cov(one.T), exact, atol=0.03 * float(exact.diag().max()), rtol=0)


def test_laplace_knows_less_far_from_the_data():
    torch.manual_seed(0)
    head = MLPHead(2, 3, 8, dropout=0.5)
    x = torch.randn(500, 2)
    body, last = head.layers[:-1], head.layers[-1]
    laplace = LastLayerLaplace(body, last, x, prior_precision=1.0, batch_size=64)
    near, far = (laplace.predict(s * x[:50], 400).logits.std(0).mean() for s in (1, 20))
    assert far > 2 * near
    more = LastLayerLaplace(body, last, x.repeat(50, 1), prior_precision=1.0)
    assert_close(more.g_vectors.abs(), laplace.g_vectors.abs(), atol=1e-4, rtol=1e-3)
    assert more.predict(x[:50], 400).logits.std(0).mean() < near  # the curvature is a sum over questions
    assert head.training  # as before


def test_laplace_takes_the_precision_of_the_largest_evidence():
    head, x = LinearHead(3, 4), torch.randn(80, 3)
    found = LastLayerLaplace(nn.Identity(), head, x)
    squared = sum(float(p.detach().square().sum()) for p in head.parameters())

    def evidence(precision):
        v = LastLayerLaplace(nn.Identity(), head, x, prior_precision=precision).variance
        return float(0.5 * (precision * v).log().sum()) - 0.5 * precision * squared

    best = evidence(found.prior_precision)
    assert all(evidence(found.prior_precision * f) < best for f in (0.5, 0.9, 1.1, 2.0))
    with pytest.raises(ValueError, match="no bias"):
        LastLayerLaplace(nn.Identity(), nn.Linear(3, 4, bias=False), x)
    nn.init.zeros_(head.weight), nn.init.zeros_(head.bias)
    with pytest.raises(ValueError, match="give prior_precision"):
        LastLayerLaplace(nn.Identity(), head, x)


def test_laplace_against_laplace_torch():
    laplace_torch = pytest.importorskip("laplace", reason="laplace-torch is not installed")
    model, x, y = nn.Sequential(nn.Linear(5, 6), nn.Tanh(), nn.Linear(6, 10)), torch.randn(64, 5), torch.arange(64) % 10
    theirs = laplace_torch.Laplace(model, "classification", "last_layer", "kron", prior_precision=2.0)
    theirs.fit(torch.utils.data.DataLoader(torch.utils.data.TensorDataset(x, y), 64))
    _, variance = theirs._glm_predictive_distribution(x[:5])
    ours = LastLayerLaplace(model[:-1], model[-1], x, prior_precision=2.0).predict(x[:5], 50_000).logits
    assert_close(ours.var(0), variance.diagonal(dim1=1, dim2=2).detach(), rtol=0.06, atol=1e-3)


def test_signal_to_noise():
    layer = spread(BayesLinear(3, 2))
    np.testing.assert_allclose(
        layer.signal_to_noise.detach(), (layer.weight_mu.abs() / F.softplus(layer.weight_rho)).detach()
    )
