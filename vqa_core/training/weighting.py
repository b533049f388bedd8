"""Several losses as one: fixed weights, dynamic weight averaging (DWA), learned uncertainties.

Each weighting is a module: called with named losses it returns their weighted sum. Put it *inside* the model
(``model.weighting = …``), then :func:`~vqa_core.training.loop.fit` trains its parameters, moves it to the device and
keeps its state in the checkpoint. After each epoch, call :meth:`LossWeighting.end_epoch`, on which DWA depends.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn


class LossWeighting(nn.Module):
    """Base of the weightings: Σₖ λₖ Lₖ with the weights of :meth:`weights`.

    Parameters
    ----------
    names
        Names of the K losses.
    """

    def __init__(self, names: Sequence[str]) -> None:
        super().__init__()
        self.names = tuple(names)
        if not self.names or len(set(self.names)) != len(self.names):
            raise ValueError(f"names of losses are {self.names}; give at least one, each once")

    def stacked(self, losses: Mapping[str, Tensor]) -> Tensor:
        """The losses (K,) in the order of ``names``; each must be there and be one number."""
        if set(losses) != set(self.names):
            raise ValueError(f"losses are {sorted(losses)}, this weighting was made for {sorted(self.names)}")
        for name, loss in losses.items():
            if loss.ndim:
                raise ValueError(f"loss {name!r} has shape {tuple(loss.shape)}; reduce it to one number")
        return torch.stack([losses[name] for name in self.names])  # (K,)

    def weights(self) -> Tensor:
        """λ (K,), in the order of ``names``."""
        raise NotImplementedError

    def forward(self, losses: Mapping[str, Tensor]) -> Tensor:
        """Named losses, each one number → their weighted sum, one number."""
        return (self.weights() * self.stacked(losses)).sum()

    def end_epoch(self) -> None:
        """Say that an epoch is over; only DWA takes notice."""


class FixedWeights(LossWeighting):
    """Weights that stay: ``FixedWeights({"answer": 1, "reconstruction": 0.001})`` is MEVF's.

    Parameters
    ----------
    weights
        λₖ ≥ 0 for each loss; with 0 it is still computed, but does not train.
    """

    def __init__(self, weights: Mapping[str, float]) -> None:
        super().__init__(tuple(weights))
        if any(not math.isfinite(w) or w < 0 for w in weights.values()):
            raise ValueError(f"weights are {dict(weights)}; they must be finite and at least 0")
        self.register_buffer("fixed", torch.tensor([float(w) for w in weights.values()]))

    def weights(self) -> Tensor:
        """λ (K,)."""
        return self.fixed


class DynamicWeightAverage(LossWeighting):
    """DWA (Liu, Johns and Davison 2019, arXiv 1803.10704): a loss that falls slowly gets more weight.

    With the mean loss Lₖ(t) of epoch t and rₖ = Lₖ(t−1) / Lₖ(t−2), the weights in epoch t are

        λₖ = K exp(rₖ / T) / Σᵢ exp(rᵢ / T)

    They sum to K. In the first two epochs all are 1. A ratio does not depend on a loss's scale; λₖ Lₖ does.

    Parameters
    ----------
    names
        Names of the K losses.
    temperature
        T > 0; the larger, the more equal are the weights. The paper uses 2.

    Notes
    -----
    Only losses computed in training mode count towards an epoch's mean. All of the state is in buffers: a run that
    resumes from ``state_dict`` goes on as it would have, also from the middle of an epoch.
    """

    def __init__(self, names: Sequence[str], temperature: float = 2.0) -> None:
        super().__init__(names)
        if not temperature > 0:
            raise ValueError(f"temperature is {temperature}, it must be greater than 0")
        self.temperature = temperature
        self.register_buffer("total", torch.zeros(len(self.names)))
        self.register_buffer("steps", torch.tensor(0))
        self.register_buffer("means", torch.full((2, len(self.names)), torch.nan))  # of epochs t − 2 and t − 1

    def weights(self) -> Tensor:
        """λ (K,) of the present epoch."""
        ratios = self.means[1] / self.means[0]  # (K,)
        ratios = torch.where(ratios.isnan(), 1.0, ratios)  # in the first two epochs
        return len(self.names) * (ratios / self.temperature).softmax(dim=0)

    def forward(self, losses: Mapping[str, Tensor]) -> Tensor:
        """Named losses, each one number → their weighted sum; in training mode they are added to the epoch's mean."""
        total = super().forward(losses)
        if self.training:
            self.total += self.stacked(losses).detach()
            self.steps += 1
        return total

    @torch.no_grad()
    def end_epoch(self) -> None:
        """Make the epoch's mean losses the newest ones.

        Raises
        ------
        ValueError
            When there was no loss in this epoch, or a mean is not finite and greater than 0, so that no ratio exists.
        """
        if not self.steps:
            raise ValueError("no loss was computed in training mode since the last epoch ended")
        newest = self.total / self.steps  # (K,)
        for name, mean in zip(self.names, newest.tolist()):
            if not math.isfinite(mean) or mean <= 0:
                raise ValueError(f"the epoch's mean of loss {name!r} is {mean}; DWA needs losses greater than 0")
        self.means.copy_(torch.stack([self.means[1], newest]))
        self.total.zero_()
        self.steps.zero_()


class UncertaintyWeighting(LossWeighting):
    """Weights from learned uncertainties (Kendall, Gal and Cipolla 2018, arXiv 1705.07115).

    Each loss has a learned sₖ = log σₖ². A cross-entropy adds e^{−s} L + s/2, a squared error ½ e^{−s} L + s/2. The
    second term keeps σ from growing without bound: for a constant loss the best s is log 2L, and log L, so that the
    weighted loss is always ½.

    Parameters
    ----------
    classification, regression
        Names of the cross-entropies and of the squared errors.

    Notes
    -----
    The sum can become negative. The sₖ are one vector, which the training loop does not decay.
    """

    def __init__(self, classification: Sequence[str], regression: Sequence[str] = ()) -> None:
        super().__init__((*classification, *regression))
        self.log_variance = nn.Parameter(torch.zeros(len(self.names)))
        factors = [1.0] * len(classification) + [0.5] * len(regression)
        self.register_buffer("factors", torch.tensor(factors), persistent=False)

    def weights(self) -> Tensor:
        """λ (K,): e^{−s}, or half of it."""
        return self.factors * (-self.log_variance).exp()

    def forward(self, losses: Mapping[str, Tensor]) -> Tensor:
        """Named losses, each one number → Σₖ λₖ Lₖ + sₖ/2, one number."""
        return super().forward(losses) + 0.5 * self.log_variance.sum()
