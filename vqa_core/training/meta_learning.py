"""MAML: weights from which a few steps on a few examples lead to a good model (Finn et al. 2017, arXiv 1703.03400).

A task has a support set S, on which the model adapts, and a query set Q, on which the adapted model is judged:

    θ' = θ − α ∇ L_S(θ)          (the inner loop, ``Inner.steps`` times)
    θ ← θ − β ∇_θ Σ L_Q(θ')      (the outer loop, over a batch of tasks)

The outer gradient goes *through* the inner step: ∇_θ L_Q(θ') = (I − α ∇² L_S(θ)) ∇ L_Q(θ'). First-order MAML takes the
matrix as I. All tasks of a batch adapt in one vectorised pass (``torch.func.vmap``).

Batch norm: running statistics would be written in place by every task at once, which ``torch.func`` refuses, and
would mix the tasks. As in MAML's own code, batch norm uses the statistics of the batch at hand, for support and query
alike (:func:`functional`). Its running statistics are never touched here: after meta-training they belong to other
weights. Recompute them with ``torch.optim.swa_utils.update_bn(batches, model)`` before the model is used or frozen.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vqa_core.training.loop import NotFiniteError

Weights = dict[str, Tensor]
Loss = Callable[[Tensor, Tensor], Tensor]


class Episodes(NamedTuple):
    """T tasks, each with S support and Q query examples.

    Attributes
    ----------
    support_x, support_y
        (T, S, …) each.
    query_x, query_y
        (T, Q, …) each.
    """

    support_x: Tensor
    support_y: Tensor
    query_x: Tensor
    query_y: Tensor


@dataclass(frozen=True)
class Inner:
    """The inner loop: plain gradient descent.

    Attributes
    ----------
    steps
        At least 0; 0 is the model without adaptation.
    rate
        α, its learning rate.
    second_order
        False takes the first-order gradient: the adapted weights count as θ plus a constant. Less memory and time.
    """

    steps: int = 5
    rate: float = 0.01
    second_order: bool = True

    def __post_init__(self) -> None:
        if self.steps < 0 or self.rate <= 0:
            raise ValueError(f"steps is {self.steps} and rate {self.rate}; allowed are steps ≥ 0 and rate > 0")


class EpisodeClassifier(nn.Module):
    """An image encoder and a linear layer: what MAML trains; afterwards the encoder is kept and the layer dropped.

    Parameters
    ----------
    encoder
        Pictures → :class:`~vqa_core.encoders.tokens.Tokens`, without a mask; several tokens are averaged.
    ways
        Classes of a task.
    """

    def __init__(self, encoder: nn.Module, ways: int) -> None:
        super().__init__()
        self.encoder, self.classify = encoder, nn.Linear(encoder.out_dim, ways)

    def forward(self, pictures: Tensor) -> Tensor:
        """Pictures (B, …) → logits (B, ways)."""
        return self.classify(self.encoder(pictures).tokens.mean(1))  # (B, N, D) → (B, D) → (B, ways)


def functional(model: nn.Module) -> tuple[nn.Module, Weights]:
    """A copy of the model to be called with other weights, and the model's own weights.

    In the copy, batch norm has no running statistics, so that it uses those of the batch; and it is in training mode.
    """
    body = copy.deepcopy(model).train()
    torch.func.replace_all_batch_norm_modules_(body)
    return body, dict(model.named_parameters())


def adapt(
    body: nn.Module, weights: Weights, x: Tensor, y: Tensor, inner: Inner, loss: Loss = F.cross_entropy
) -> Weights:
    """Weights θ' after the inner loop on one task; differentiable in θ.

    Parameters
    ----------
    body, weights
        From :func:`functional`.
    x, y
        The support set, (S, …) each.
    inner
        Steps, rate and order.
    loss
        (prediction, y) → scalar.
    """

    def of(weights: Weights) -> Tensor:
        return loss(torch.func.functional_call(body, weights, (x,)), y)

    for _ in range(inner.steps):
        gradients = torch.func.grad(of)(weights)
        if not inner.second_order:
            gradients = {name: g.detach() for name, g in gradients.items()}
        weights = {name: w - inner.rate * gradients[name] for name, w in weights.items()}
    return weights


def query_losses(
    body: nn.Module,
    weights: Weights,
    episodes: Episodes,
    inner: Inner,
    loss: Loss = F.cross_entropy,
    chunk: int | None = None,
) -> Tensor:
    """Query loss of every task after its adaptation, (T,); its mean is what MAML minimises.

    Parameters
    ----------
    body, weights
        From :func:`functional`.
    episodes
        T tasks of equal size.
    inner, loss
        See :func:`adapt`.
    chunk
        Tasks at a time; all by default. Fewer need less memory. On a CPU, convolutions with other weights for each task
        are slow in the second order: there 1 is best for :class:`~vqa_core.encoders.meta.MetaCNN`.

    Raises
    ------
    ValueError
        When the four arrays disagree in their numbers of tasks or examples.
    """
    _check(episodes)

    def one(support_x: Tensor, support_y: Tensor, query_x: Tensor, query_y: Tensor) -> Tensor:
        adapted = adapt(body, weights, support_x, support_y, inner, loss)
        return loss(torch.func.functional_call(body, adapted, (query_x,)), query_y)

    return torch.func.vmap(one, randomness="different", chunk_size=chunk)(*episodes)  # (T,)


def meta_train(
    model: nn.Module,
    draw: Callable[[int], Episodes],
    steps: int,
    inner: Inner,
    meta_rate: float = 1e-3,
    loss: Loss = F.cross_entropy,
    chunk: int | None = None,
    seed: int = 0,
) -> list[float]:
    """Meta-train a model in place with Adam.

    Parameters
    ----------
    model
        Its parameters become the meta-trained ones. Its batch-norm statistics do not change: see the module's text.
    draw
        ``draw(step)`` → the tasks of this step, on the model's device.
    steps
        Outer steps.
    inner, loss, chunk
        See :func:`query_losses`.
    meta_rate
        β, Adam's learning rate.
    seed
        Of dropout.

    Returns
    -------
    list of float
        Mean query loss after adaptation at each outer step.

    Raises
    ------
    NotFiniteError
        When the loss becomes NaN or infinite; the model keeps the weights of the step before.
    """
    body, weights = functional(model)
    optimizer = torch.optim.Adam(weights.values(), lr=meta_rate)
    torch.manual_seed(seed)
    history = []
    for step in range(steps):
        value = query_losses(body, weights, draw(step), inner, loss, chunk).mean()
        history.append(value.item())
        if not math.isfinite(history[-1]):
            raise NotFiniteError(f"step {step}: the query loss is {history[-1]}; lower the inner rate or meta_rate")
        optimizer.zero_grad(set_to_none=True)
        value.backward()
        optimizer.step()
    return history


def draw_episodes(
    x: Tensor, classes: np.ndarray, ways: int, shots: int, queries: int, tasks: int, rng: np.random.Generator
) -> Episodes:
    """Classification tasks: n classes (ways) with k examples each (shots), for instance organ × condition.

    Every task draws its classes anew and numbers them 0 … ways − 1 in random order, so that nothing can be learned but
    how to learn. No example is in both the support and the query set of a task.

    Parameters
    ----------
    x
        (n, …) examples.
    classes
        (n,) class of each example, numbers or text.
    ways, shots, queries
        Classes in a task; support and query examples of each class.
    tasks
        T.
    rng
        Of the draws.

    Returns
    -------
    Episodes
        Support (T, ways · shots, …) and query (T, ways · queries, …); labels are long.

    Raises
    ------
    ValueError
        When fewer than ``ways`` classes have ``shots + queries`` examples.
    """
    classes = np.asarray(classes)
    if len(classes) != len(x):
        raise ValueError(f"{len(x)} examples have {len(classes)} classes")
    need = shots + queries
    members = [rows for c in np.unique(classes) if len(rows := np.flatnonzero(classes == c)) >= need]
    if not 2 <= ways <= len(members):
        raise ValueError(
            f"ways is {ways}; allowed are 2 to {len(members)}, the classes with {need} examples "
            f"({shots} shots + {queries} queries)"
        )

    def task() -> np.ndarray:  # (ways, shots + queries)
        drawn = rng.choice(len(members), ways, replace=False)
        return np.stack([rng.choice(members[c], need, replace=False) for c in drawn])

    rows = torch.from_numpy(np.stack([task() for _ in range(tasks)]))  # (T, ways, shots + queries)
    support, query = (
        rows[..., :shots].flatten(1),
        rows[..., shots:].flatten(1),
    )  # (T, ways · shots), (T, ways · queries)
    labels = [torch.arange(ways).repeat_interleave(n).expand(tasks, -1).to(x.device) for n in (shots, queries)]
    return Episodes(x[support], labels[0], x[query], labels[1])


def _check(episodes: Episodes) -> None:
    shapes = {name: tuple(value.shape) for name, value in episodes._asdict().items()}
    heads = [value.shape[:2] for value in episodes]
    if any(len(h) < 2 for h in heads) or heads[0] != heads[1] or heads[2] != heads[3] or heads[0][0] != heads[2][0]:
        raise ValueError(f"episodes have shapes {shapes}; expected (T, S, …) twice and (T, Q, …) twice")
