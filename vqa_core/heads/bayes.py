"""Heads that give a posterior over answers instead of one opinion.

A Bayes layer (Graves 2011; Blundell et al. 2015, arXiv 1505.05424) has for each weight a Gaussian q(w) = N(μ, σ²),
σ = softplus(ρ), and learns μ and ρ by minimising :func:`negative_elbo`. Three estimators draw the same function values:

============  ======================================  ================================  =========================
estimator     what is drawn                           the rows of a batch               numbers drawn per sample
============  ======================================  ================================  =========================
``"weight"``  one weight matrix per sample            share it: correlated              in · out
``"flipout"`` the same, with random signs per row     uncorrelated, not independent     in · out + B · (in + out)
``"local"``   the pre-activation of each row          independent                       B · out
============  ======================================  ================================  =========================

All three agree in mean and variance *of one row*; ``"local"`` is the cheapest and its gradient the least noisy. But its
rows do not come from one function: a curve drawn by it jumps from point to point. Whatever compares rows (a function
drawn over a line, the covariance of two answers) needs :meth:`BayesLinear.draw`.

Everything that answers with uncertainty is a :class:`Predictor`: ``predict(inputs, samples)`` → :class:`Posterior`.
"""

from __future__ import annotations

import contextlib
import itertools
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple, Protocol

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from vqa_core.fusion.output import choose

ESTIMATORS = ("local", "weight", "flipout")

#: What a predictor reads: one tensor (B, …), normally the fused vector, or several for a model with several inputs.
Inputs = Tensor | tuple[Tensor, ...]


# ------------------------------------------------------------------------------------------------------------- priors


class Prior(Protocol):
    """A density p over one weight; ``kl`` is all that a layer asks of it."""

    def kl(self, mu: Tensor, sigma: Tensor) -> Tensor:
        """KL(N(μ, σ²) ‖ p) of each weight, in nats, shape of ``mu``; ``sigma`` is a standard deviation."""
        ...


@dataclass(frozen=True)
class GaussianPrior:
    """N(0, sigma²) on each weight; KL = ln(sigma/σ) + (σ² + μ²) / (2 sigma²) − ½."""

    sigma: float = 0.1

    def __post_init__(self) -> None:
        _check_positive(sigma=self.sigma)

    def kl(self, mu: Tensor, sigma: Tensor) -> Tensor:
        """Exact KL of each weight in nats, shape of ``mu``."""
        return math.log(self.sigma) - sigma.log() + (sigma.square() + mu.square()) / (2 * self.sigma**2) - 0.5


@dataclass(frozen=True)
class LaplacePrior:
    """exp(−|w| / scale) / (2 scale) on each weight: standard deviation √2 · scale, and heavier tails than a Gaussian.

    KL = ln(2 scale) + E|w| / scale − ½ ln(2πe σ²), with the mean of a folded normal
    E|w| = σ √(2/π) exp(−μ²/2σ²) + μ erf(μ / σ√2).
    """

    scale: float = 0.1

    def __post_init__(self) -> None:
        _check_positive(scale=self.scale)

    def kl(self, mu: Tensor, sigma: Tensor) -> Tensor:
        """Exact KL of each weight in nats, shape of ``mu``."""
        z = mu / (sigma * math.sqrt(2))
        mean_abs = sigma * math.sqrt(2 / math.pi) * (-z.square()).exp() + mu * z.erf()
        return math.log(2 * self.scale) + mean_abs / self.scale - _entropy(sigma)


@dataclass(frozen=True)
class ScaleMixturePrior:
    """π N(0, sigma_wide²) + (1 − π) N(0, sigma_narrow²) (Blundell et al. 2015, eq. 7): has no KL in closed form.

    Attributes
    ----------
    pi
        Share of the wide part, between 0 and 1.
    sigma_wide, sigma_narrow
        Standard deviations.
    draws
        Monte Carlo draws of each weight per call. Only E[ln p(w)] is estimated; the entropy of q is exact.
    """

    pi: float = 0.5
    sigma_wide: float = 1.0
    sigma_narrow: float = 0.0025
    draws: int = 1

    def __post_init__(self) -> None:
        _check_positive(sigma_wide=self.sigma_wide, sigma_narrow=self.sigma_narrow, draws=self.draws)
        if not 0 < self.pi < 1:
            raise ValueError(f"pi is {self.pi}; the share of the wide part must lie between 0 and 1")

    def log_density(self, weight: Tensor) -> Tensor:
        """ln p(w), same shape; a sum of logarithms, so that nothing has to be added to keep it finite."""
        parts = [
            math.log(share) - math.log(sigma * math.sqrt(2 * math.pi)) - weight.square() / (2 * sigma**2)
            for share, sigma in ((self.pi, self.sigma_wide), (1 - self.pi, self.sigma_narrow))
        ]
        return torch.logaddexp(*parts)

    def kl(self, mu: Tensor, sigma: Tensor) -> Tensor:
        """Unbiased estimate of the KL of each weight in nats, shape of ``mu``; a single one can be negative."""
        weight = mu + sigma * torch.randn(self.draws, *mu.shape, dtype=mu.dtype, device=mu.device)  # (draws, *mu)
        return -_entropy(sigma) - self.log_density(weight).mean(dim=0)


def _entropy(sigma: Tensor) -> Tensor:
    """Entropy of N(·, σ²) in nats."""
    return sigma.log() + 0.5 * math.log(2 * math.pi * math.e)


def _check_positive(**values: float) -> None:
    for name, value in values.items():
        if not (value > 0 and math.isfinite(value)):
            raise ValueError(f"{name} is {value}, it must be greater than 0 and finite")


# -------------------------------------------------------------------------------------------------------------- layer


class LinearDraw(NamedTuple):
    """S linear functions, drawn once; called twice with the same input they give the same output.

    Attributes
    ----------
    weight
        (S, out, in).
    bias
        (S, out), or None.
    """

    weight: Tensor
    bias: Tensor | None

    def __call__(self, x: Tensor) -> Tensor:
        """(B, in), or (S, B, in) with an input for each function → (S, B, out)."""
        y = torch.matmul(x, self.weight.transpose(1, 2))  # (S, B, out)
        return y if self.bias is None else y + self.bias.unsqueeze(1)


class BayesLinear(nn.Module):
    """A linear layer whose weights and biases are independent Gaussians with learned μ and σ = softplus(ρ).

    Parameters
    ----------
    in_features, out_features
        As of :class:`torch.nn.Linear`.
    prior_sigma
        Standard deviation of the Gaussian prior; ``prior`` takes its place where it is given.
    prior
        Any :class:`Prior`, for instance :class:`LaplacePrior`.
    estimator
        ``"local"`` (Kingma et al. 2015, arXiv 1506.02557), ``"weight"`` or ``"flipout"`` (Wen et al. 2018,
        arXiv 1803.04386).
    initial_sigma
        σ of every weight at the start. μ starts as the weights of :class:`torch.nn.Linear`.
    bias
        Whether there is a bias; it is as uncertain as the weights.

    Notes
    -----
    In training, ``layer(x)`` is one sample, in ``eval`` mode it is the mean function; with ``samples`` it is always S
    samples. σ has its own gradient through ``weight_rho``: weight decay would pull ρ to 0, that is σ to 0.69. Train
    with ``weight_decay=0``; :meth:`kl` is the decay.
    """

    def __init__(
        self,
        in_features: int,
        out_features: int,
        prior_sigma: float = 0.1,
        *,
        prior: Prior | None = None,
        estimator: str = "local",
        initial_sigma: float = 0.01,
        bias: bool = True,
    ) -> None:
        super().__init__()
        _check_positive(initial_sigma=initial_sigma)
        self.in_features, self.out_features = in_features, out_features
        self.prior = GaussianPrior(prior_sigma) if prior is None else prior
        self.estimator = choose("estimator", estimator, ESTIMATORS)
        start = nn.Linear(in_features, out_features, bias)
        rho = math.log(math.expm1(initial_sigma))  # softplus(rho) = initial_sigma
        self.weight_mu = nn.Parameter(start.weight.detach())
        self.weight_rho = nn.Parameter(torch.full((out_features, in_features), rho))
        self.bias_mu = nn.Parameter(start.bias.detach()) if bias else None
        self.bias_rho = nn.Parameter(torch.full((out_features,), rho)) if bias else None

    @property
    def weight_sigma(self) -> Tensor:
        """Posterior standard deviations of the weights (out, in); ``softplus`` does not overflow at any ρ."""
        return F.softplus(self.weight_rho)

    @property
    def bias_sigma(self) -> Tensor | None:
        """Posterior standard deviations of the biases (out,)."""
        return None if self.bias_rho is None else F.softplus(self.bias_rho)

    @property
    def signal_to_noise(self) -> Tensor:
        """|μ| / σ of the weights (out, in): those with the least can be pruned (Blundell et al. 2015, section 5.1)."""
        return self.weight_mu.abs() / self.weight_sigma

    def kl(self) -> Tensor:
        """KL(q ‖ prior) of the whole layer: a *sum* over all weights and biases, in nats, one number."""
        total = self.prior.kl(self.weight_mu, self.weight_sigma).sum()
        return total if self.bias_mu is None else total + self.prior.kl(self.bias_mu, self.bias_sigma).sum()

    def draw(self, samples: int) -> LinearDraw:
        """``samples`` weight matrices from the posterior: S coherent functions, S · in · out numbers of memory."""
        return LinearDraw(
            self.weight_mu + self._noise(samples, self.weight_sigma),  # (S, out, in)
            None if self.bias_mu is None else self.bias_mu + self._noise(samples, self.bias_sigma),  # (S, out)
        )

    def forward(self, x: Tensor, samples: int | None = None) -> Tensor:
        """Apply the layer.

        Parameters
        ----------
        x
            (B, in), the same for all samples: their moments are computed once; or (S, B, in), one for each sample.
        samples
            S, how many to draw in one pass. None: one in training, the mean function in ``eval`` mode.

        Returns
        -------
        Tensor
            (S, B, out); without ``samples``, (B, out).
        """
        if samples is None:
            return self(x, 1)[0] if self.training else F.linear(x, self.weight_mu, self.bias_mu)
        if x.ndim not in (2, 3) or x.shape[-1] != self.in_features or (x.ndim == 3 and len(x) != samples):
            raise ValueError(
                f"x has shape {tuple(x.shape)}; give (B, {self.in_features}), or ({samples}, B, {self.in_features}) "
                f"with an input for each of the {samples} samples"
            )
        return {"local": self._local, "weight": self._weight, "flipout": self._flipout}[self.estimator](x, samples)

    def extra_repr(self) -> str:
        return f"{self.in_features}, {self.out_features}, prior={self.prior}, estimator={self.estimator!r}"

    def _local(self, x: Tensor, samples: int) -> Tensor:
        """A sum of independent Gaussians is a Gaussian: draw the pre-activation itself."""
        mean, variance = _Moments.apply(x, self.weight_mu, self.weight_sigma.square())  # each (B, out) or (S, B, out)
        if self.bias_mu is not None:
            mean, variance = mean + self.bias_mu, variance + self.bias_sigma.square()
        # the slope of √ at 0 is infinite; where the variance is 0, the clamp stops the gradient, which is 0 there
        sd = variance.clamp(min=torch.finfo(variance.dtype).tiny).sqrt()
        noise = torch.randn(samples, *mean.shape[-2:], dtype=mean.dtype, device=mean.device)  # (S, B, out)
        if torch.is_grad_enabled():
            return torch.addcmul(mean, sd, noise)  # (S, B, out)
        return noise.mul_(sd).add_(mean)  # (S, B, out), the same without another S · B · out numbers of memory

    def _weight(self, x: Tensor, samples: int) -> Tensor:
        return self.draw(samples)(x)  # (S, B, out)

    def _flipout(self, x: Tensor, samples: int) -> Tensor:
        """One perturbation per sample; random signs per row make the rows uncorrelated."""
        mean = F.linear(x, self.weight_mu, self.bias_mu)  # (B, out) or (S, B, out)
        shift = LinearDraw(
            self._noise(samples, self.weight_sigma),  # (S, out, in)
            None if self.bias_mu is None else self._noise(samples, self.bias_sigma),  # (S, out)
        )
        rows = x.shape[-2]
        return mean + shift(x * _signs(x, samples, rows, self.in_features)) * _signs(x, samples, rows, mean.shape[-1])

    @staticmethod
    def _noise(samples: int, sigma: Tensor) -> Tensor:
        return sigma * torch.randn(samples, *sigma.shape, dtype=sigma.dtype, device=sigma.device)  # (S, *sigma)


class _Moments(torch.autograd.Function):
    """x Wᵀ and x² Vᵀ, (…, in) → twice (…, out); x² is made again for the gradient instead of kept: S · B · in numbers.

    Computed as W xᵀ, which libraries multiply faster than x Wᵀ when x has thousands of rows.
    """

    @staticmethod
    @torch.amp.custom_fwd(device_type="cuda", cast_inputs=torch.float32)
    def forward(ctx, x: Tensor, weight: Tensor, variance: Tensor) -> tuple[Tensor, Tensor]:
        ctx.save_for_backward(x, weight, variance)
        rows = x.flatten(0, -2)  # (R, in)
        shape = (*x.shape[:-1], len(weight))
        mean, spread = (weight @ rows.T).T, (variance @ rows.square().T).T  # (R, out), (R, out)
        return mean.contiguous().view(shape), spread.contiguous().view(shape)

    @staticmethod
    @torch.amp.custom_bwd(device_type="cuda")
    def backward(ctx, grad_mean: Tensor, grad_variance: Tensor):
        x, weight, variance = ctx.saved_tensors
        rows, m, v = (t.flatten(0, -2) for t in (x, grad_mean, grad_variance))  # (R, in), (R, out), (R, out)
        grad_x = None
        if ctx.needs_input_grad[0]:  # d(x² Vᵀ)/dx = 2 x V, then d(x Wᵀ)/dx = W added in place
            grad_x = (v @ variance).mul_(rows).mul_(2).addmm_(m, weight).view_as(x)  # (…, in)
        return grad_x, m.T @ rows, v.T @ rows.square()


def _signs(like: Tensor, *shape: int) -> Tensor:
    return torch.empty(shape, dtype=like.dtype, device=like.device).bernoulli_(0.5).mul_(2).sub_(1)  # −1 or 1


def negative_elbo(logits: Tensor, answers: Tensor, kl: Tensor, questions: int, alpha: float = 1.0) -> Tensor:
    """The objective of a Bayes head: mean NLL of the answers + α · KL / N, in nats per question.

    N times this, with α = 1, is −ELBO: an upper bound on −ln p(all answers), in nats per *data set*.

    Parameters
    ----------
    logits
        (B, A), or (S, B, A); samples are averaged after the logarithm, as the bound asks.
    answers
        Long (B,); rows labelled −100 do not count.
    kl
        ``head.kl()``: nats per data set.
    questions
        N, the training questions with an answer that counts (not of the batch).
    alpha
        α ≥ 0. Below 1 the posterior is *cold*: sharper than Bayes' rule allows. 0 trains the mean of a noisy net.
    """
    if questions < 1 or alpha < 0:
        raise ValueError(f"questions is {questions} and alpha is {alpha}; needs at least 1 and at least 0")
    if logits.ndim == 3:
        answers = answers.expand(len(logits), -1).flatten()  # (S·B,)
        logits = logits.flatten(0, 1)  # (S·B, A)
    return F.cross_entropy(logits.float(), answers, ignore_index=-100) + alpha * kl / questions


# ---------------------------------------------------------------------------------------------- posterior, predictors


class Posterior(NamedTuple):
    """Samples from the predictive distribution.

    Attributes
    ----------
    logits
        (S, B, A): sample, question, answer.
    """

    logits: Tensor

    @property
    def probabilities(self) -> Tensor:
        """Of each sample (S, B, A)."""
        return self.logits.softmax(dim=-1)

    @property
    def log_mean(self) -> Tensor:
        """ln of the mean probability (B, A): finite also where a probability would underflow."""
        return self.logits.log_softmax(dim=-1).logsumexp(dim=0) - math.log(len(self.logits))

    @property
    def mean(self) -> Tensor:
        """Predictive probabilities (B, A): what the posterior says when asked for one opinion."""
        return self.log_mean.exp()

    @property
    def answers(self) -> Tensor:
        """The most probable answer of each question, long (B,)."""
        return self.log_mean.argmax(dim=-1)


class Predictor(nn.Module):
    """Base of everything that answers with a posterior: implement :meth:`sample_logits`."""

    def sample_logits(self, inputs: Inputs, samples: int) -> Tensor:
        """Logits (S, B, A) of S models drawn from the posterior."""
        raise NotImplementedError

    @torch.no_grad()
    def predict(self, inputs: Inputs, samples: int = 100) -> Posterior:
        """S samples of the answers to B questions, without gradients; the modes of all modules are as before.

        Parameters
        ----------
        inputs
            (B, D) fused vectors, or what the wrapped model reads: for a
            :class:`~vqa_core.model.VQAModel` the tuple ``batch[:3]``.
        samples
            S ≥ 1.
        """
        if samples < 1:
            raise ValueError(f"samples is {samples}; a posterior needs at least 1")
        with _evaluating(self):
            return Posterior(self.sample_logits(inputs, samples))


class BayesHead(Predictor):
    """The layers of :class:`~vqa_core.heads.classifier.MLPHead`, all or only the last of them Bayesian.

    Parameters
    ----------
    in_dim, answers, hidden, depth
        As of ``MLPHead``; depth 0 is one :class:`BayesLinear`.
    bayes
        ``"all"``: every layer (Bayes by backprop); ``"last"``: only that before the logits ("partial Bayes").
    prior_sigma, prior, estimator, initial_sigma
        Of each :class:`BayesLinear`.
    """

    def __init__(
        self,
        in_dim: int,
        answers: int,
        hidden: int | None = None,
        depth: int = 1,
        bayes: str = "all",
        prior_sigma: float = 0.1,
        *,
        prior: Prior | None = None,
        estimator: str = "local",
        initial_sigma: float = 0.01,
    ) -> None:
        super().__init__()
        if depth < 0:
            raise ValueError(f"depth is {depth}; the number of hidden layers is at least 0")
        choose("bayes", bayes, ("all", "last"))
        widths = [in_dim, *[hidden or in_dim] * depth, answers]
        is_bayes = [*[bayes == "all"] * depth, True]
        options = {"prior": prior, "estimator": estimator, "initial_sigma": initial_sigma}
        self.layers = nn.ModuleList(
            BayesLinear(a, b, prior_sigma, **options) if uncertain else nn.Linear(a, b)
            for (a, b), uncertain in zip(itertools.pairwise(widths), is_bayes)
        )

    def kl(self) -> Tensor:
        """KL of all Bayes layers, a sum in nats, one number."""
        return torch.stack([layer.kl() for layer in self.layers if isinstance(layer, BayesLinear)]).sum()

    def forward(self, fused: Tensor, samples: int | None = None) -> Tensor:
        """(B, in_dim) → logits (S, B, answers); without ``samples`` (B, answers), as of :class:`BayesLinear`."""
        return _through(
            [lambda x, f=f: f(x, samples) if isinstance(f, BayesLinear) else f(x) for f in self.layers], fused
        )

    def draw(self, samples: int) -> Callable[[Tensor], Tensor]:
        """S functions, (B, in_dim) → (S, B, answers), that stay the same from call to call."""
        drawn = [f.draw(samples) if isinstance(f, BayesLinear) else f for f in self.layers]
        return lambda fused: _through(drawn, fused)

    def sample_logits(self, inputs: Inputs, samples: int) -> Tensor:
        """Logits (S, B, A) by the layers' estimator."""
        return self(inputs, samples)


class Deterministic(Predictor):
    """A point estimate as a posterior: all S samples are the same (a view, no copies).

    Parameters
    ----------
    model
        Inputs → logits (B, A), or something with ``.logits``.
    temperature
        T > 0 divides the logits; :func:`vqa_core.evaluation.calibration.fit_temperature` finds it.
    """

    def __init__(self, model: nn.Module, temperature: float = 1.0) -> None:
        super().__init__()
        _check_positive(temperature=temperature)
        self.model, self.temperature = model, temperature

    def sample_logits(self, inputs: Inputs, samples: int) -> Tensor:
        """The same logits S times (S, B, A)."""
        return (_call(self.model, inputs) / self.temperature).expand(samples, -1, -1)  # (S, B, A)


class MCDropout(Predictor):
    """Dropout left on at test time, all S masks in one pass (Gal and Ghahramani 2016, arXiv 1506.02142).

    Parameters
    ----------
    model
        Inputs → logits (B, A), or something with ``.logits``; each row for itself. Its :class:`torch.nn.Dropout`
        modules are on, everything else is in ``eval`` mode. Dropout inside ``nn.GRU`` or ``nn.MultiheadAttention`` is
        no module of its own and stays off.

    Raises
    ------
    ValueError
        When the model has no dropout: all samples would be equal.
    """

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model
        self.dropouts = [m for m in model.modules() if isinstance(m, nn.modules.dropout._DropoutNd) and m.p > 0]
        if not self.dropouts:
            raise ValueError("the model has no nn.Dropout with p > 0, so that all samples would be equal")

    def sample_logits(self, inputs: Inputs, samples: int) -> Tensor:
        """Logits (S, B, A) of S masks for each row."""
        for dropout in self.dropouts:
            dropout.train()  # predict puts the modes back
        repeated = tuple(x.repeat(samples, *[1] * (x.ndim - 1)) for x in _as_tuple(inputs))  # (S·B, …)
        return _call(self.model, repeated).unflatten(0, (samples, -1))  # (S, B, A)


class Ensemble(Predictor):
    """Models trained from several seeds; each is one sample (Lakshminarayanan et al. 2017, arXiv 1612.01474).

    Parameters
    ----------
    members
        K models, inputs → logits (B, A), or something with ``.logits``.
    """

    def __init__(self, members: Sequence[nn.Module]) -> None:
        super().__init__()
        if not members:
            raise ValueError("an ensemble needs at least 1 member")
        self.members = nn.ModuleList(members)

    def sample_logits(self, inputs: Inputs, samples: int) -> Tensor:
        """Logits (S, B, A) of the first S members."""
        if samples > len(self.members):
            raise ValueError(f"samples is {samples}, but the ensemble has {len(self.members)} members: ask for fewer")
        return torch.stack([_call(member, inputs) for member in self.members[:samples]])  # (S, B, A)


class LastLayerLaplace(Predictor):
    """A Gaussian around the last layer of a *trained* net, with the curvature of its loss as precision.

    The curvature (generalised Gauss–Newton, equal to the Fisher matrix) of N training questions is approximated by one
    Kronecker product N · G ⊗ A (Ritter et al. 2018; Daxberger et al. 2021, arXiv 2106.14806), where A is the mean of
    φφᵀ over the features φ (with a 1 for the bias) and G that of diag(p) − ppᵀ. With the prior's λ the precision is
    N · G ⊗ A + λ I, and the eigenvectors of A and G are its eigenvectors. In them, logits are drawn without ever making
    a (B, A, weights) Jacobian.

    Parameters
    ----------
    body
        Inputs → features (B, D) in front of the last layer.
    layer
        The last layer, trained; with a bias.
    inputs
        Of the training questions. Labels are not needed: the curvature of a cross-entropy does not depend on them.
    prior_precision
        λ > 0; None takes that of the largest evidence (MacKay 1992). The weights are taken as the mode for any λ.
    batch_size
        Questions at a time.

    Notes
    -----
    The curvature assumes that features and probabilities vary independently over questions, which is exact for one
    question.
    """

    def __init__(
        self,
        body: nn.Module,
        layer: nn.Linear,
        inputs: Inputs,
        prior_precision: float | None = None,
        batch_size: int = 1024,
    ) -> None:
        super().__init__()
        if layer.bias is None:
            raise ValueError("the last layer has no bias; LastLayerLaplace is made for one with a bias")
        self.body, self.layer = body, layer
        with _evaluating(self), torch.no_grad():
            n, mean_a, mean_g = 0, 0.0, 0.0
            for part in zip(*(x.split(batch_size) for x in _as_tuple(inputs))):
                features = self._features(part)  # (b, D + 1)
                p = layer(features[:, :-1].to(layer.weight.dtype)).softmax(dim=-1).double()  # (b, A)
                n += len(p)
                mean_a = mean_a + features.T @ features  # (D + 1, D + 1)
                mean_g = mean_g + p.sum(0).diag() - p.T @ p  # (A, A)
            weight = torch.cat([layer.weight, layer.bias.unsqueeze(1)], dim=1).double()  # (A, D + 1)
        a_values, a_vectors = torch.linalg.eigh(mean_a / n)
        g_values, g_vectors = torch.linalg.eigh(mean_g / n)
        curvature = n * torch.outer(g_values.clamp(min=0), a_values.clamp(min=0))  # (A, D + 1)
        if prior_precision is None:
            prior_precision = _largest_evidence(curvature, float(weight.square().sum()))
        _check_positive(prior_precision=prior_precision)
        self.prior_precision = prior_precision
        self.register_buffer("a_vectors", a_vectors)
        self.register_buffer("g_vectors", g_vectors)
        self.register_buffer("variance", 1 / (curvature + prior_precision))  # (A, D + 1), of the rotated weights

    def _features(self, inputs: Inputs) -> Tensor:
        return F.pad(_call(self.body, inputs), (0, 1), value=1.0).double()  # (B, D + 1)

    def sample_logits(self, inputs: Inputs, samples: int) -> Tensor:
        """Logits (S, B, A), each row on its own (as by local reparameterisation)."""
        features = self._features(inputs)  # (B, D + 1)
        mean = self.layer(features[:, :-1].to(self.layer.weight.dtype))  # (B, A)
        rotated_sd = ((features @ self.a_vectors).square() @ self.variance.T).sqrt()  # (B, A)
        noise = torch.randn(samples, *mean.shape, dtype=torch.float64, device=mean.device)  # (S, B, A)
        return mean + ((rotated_sd * noise) @ self.g_vectors.T).to(mean.dtype)  # (S, B, A)


def _largest_evidence(curvature: Tensor, squared_norm: float) -> float:
    """λ that maximises ½ Σ ln(λ / (λ + c)) − ½ λ ‖w‖², the part of Laplace's ln evidence that depends on it."""
    from scipy.optimize import minimize_scalar

    def cost(log_precision: float) -> float:
        precision = math.exp(log_precision)
        return float((curvature / precision).log1p().sum()) + precision * squared_norm

    low, high = -12.0, 18.0
    best = float(minimize_scalar(cost, bounds=(low, high), method="bounded").x)
    if min(best - low, high - best) < 0.01:
        raise ValueError(
            f"the evidence has no largest value for a prior precision between e^{low:g} and e^{high:g} (the weights' "
            f"squared norm is {squared_norm:.3g}); give prior_precision"
        )
    return math.exp(best)


def _through(layers: Sequence[Callable[[Tensor], Tensor]], x: Tensor) -> Tensor:
    """The layers with a ReLU between them."""
    for layer in layers[:-1]:
        x = layer(x).relu_()  # in place: no layer needs its own output for the gradient
    return layers[-1](x)


def _as_tuple(inputs: Inputs) -> tuple[Tensor, ...]:
    return (inputs,) if isinstance(inputs, Tensor) else tuple(inputs)


def _call(model: nn.Module, inputs: Inputs) -> Tensor:
    output = model(*_as_tuple(inputs))
    return output if isinstance(output, Tensor) else output.logits


@contextlib.contextmanager
def _evaluating(module: nn.Module) -> Iterator[None]:
    """``eval`` mode inside; afterwards every submodule has its own mode again."""
    modes = [(m, m.training) for m in module.modules()]
    module.eval()
    try:
        yield
    finally:
        for m, mode in modes:
            m.training = mode
