"""Train one model for several tasks, and measure what the tasks do to each other's gradients.

Each task k has a loss Lₖ. A weighting (:mod:`vqa_core.training.weighting`) makes one loss of them, Σₖ λₖ Lₖ. On the
parameters that the tasks share, their gradients gₖ may pull apart: they *conflict* where cos(gᵢ, gⱼ) < 0, and then a
step along gᵢ alone makes task j worse. :func:`conflict` measures it; :func:`project_conflicts` is PCGrad, which takes
from every gradient what points against another one.

All seeds are trained in one pass, as in :mod:`vqa_core.training.together`: S models, K tasks.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from tqdm import tqdm

from vqa_core.heads.multitask import shared_parameters, unregistered
from vqa_core.training.feed import Feed
from vqa_core.training.loop import Fit, NotFiniteError, Training, answer_loss, autocast, pick_device
from vqa_core.training.together import stack, unstack
from vqa_core.training.weighting import LossWeighting


def task_losses(logits: Mapping[str, Tensor], labels: Tensor) -> dict[str, Tensor]:
    """Cross-entropy (nats) of each task; logits are name → (B, classes), labels (B, K) in the same order.

    A label −100 does not count, as in :func:`~vqa_core.training.loop.answer_loss`.
    """
    if labels.ndim != 2 or labels.shape[1] != len(logits):
        raise ValueError(f"labels have shape {tuple(labels.shape)}; give a column for each of {', '.join(logits)}")
    return {name: answer_loss(x, labels[:, k]) for k, (name, x) in enumerate(logits.items())}


# -- conflict ---------------------------------------------------------------------------------------------------------


class Conflict(NamedTuple):
    """How the gradients of K tasks lie to each other: cosines (…, K, K), and lengths (…, K)."""

    cosine: Tensor
    norm: Tensor


def conflict(gradients: Tensor) -> Conflict:
    """Cosines and lengths of gradients (…, K, P); the cosine with a gradient of length 0 is 0."""
    norm = gradients.norm(dim=-1)  # (…, K)
    unit = gradients / norm.clamp(min=1e-12).unsqueeze(-1)  # (…, K, P)
    return Conflict(unit @ unit.mT, norm)  # (…, K, K)


def project_conflicts(gradients: Tensor, order: Tensor) -> Tensor:
    """PCGrad (Yu et al. 2020, arXiv 2001.06782, algorithm 1): take from each gradient what points against another.

    For each task i, and the others j one after another: where gᵢ · gⱼ < 0,

        gᵢ ← gᵢ − (gᵢ · gⱼ / ‖gⱼ‖²) gⱼ

    with the gⱼ as they came. With two tasks gᵢ · gⱼ is 0 afterwards and gᵢ still descends its own loss; with more, a
    later projection may bring a conflict with an earlier task back, and even one with the task itself. Gradients that
    do not conflict are returned as they are.

    Parameters
    ----------
    gradients
        (S, K, P), of K tasks in each of S models.
    order
        int (S, K), for each model the order in which the others are gone through; the paper draws it in each step.

    Returns
    -------
    Tensor
        (S, K, P); their sum over the tasks is what the optimiser gets.
    """
    models = torch.arange(len(gradients), device=gradients.device)
    found = []
    for i, own in enumerate(gradients.unbind(1)):  # (S, P)
        for turn in order.unbind(1):  # (S,), the task whose turn it is in each model
            other = gradients[models, turn]  # (S, P)
            against = (own * other).sum(-1).clamp(max=0) * (turn != i)  # (S,), 0 where nothing conflicts
            own = own - (against / other.square().sum(-1).clamp(min=1e-24)).unsqueeze(-1) * other
        found.append(own)
    return torch.stack(found, dim=1)  # (S, K, P)


def task_gradients(losses: Tensor, parameters: Sequence[Tensor]) -> Tensor:
    """Gradient of each task's loss in each model: losses (S, K), stacked parameters (S, …) → (S, K, P).

    One backward pass for each task; the graph is kept.
    """
    found = []
    for loss in losses.sum(0):  # the models have nothing in common: the gradient of the sum is each one's own
        each = torch.autograd.grad(loss, parameters, retain_graph=True)
        found.append(torch.cat([g.flatten(1) for g in each], dim=1))  # (S, P)
    return torch.stack(found, dim=1)  # (S, K, P)


# -- training ---------------------------------------------------------------------------------------------------------


@dataclass
class TaskFit(Fit):
    """What :func:`fit_tasks` found for one seed.

    Attributes
    ----------
    history
        A row for each validation: epoch, step, and by task ``loss.<task>`` (mean since the last one), ``weight.<task>``
        and ``validation.<task>`` (accuracy).
    cosines, norms, at
        Of the tasks' gradients on the shared parameters, (K, K) and (K,) for each step of ``at``.
    """

    cosines: list[np.ndarray] = field(default_factory=list)
    norms: list[np.ndarray] = field(default_factory=list)
    at: list[int] = field(default_factory=list)


@torch.no_grad()
def _predict(base: nn.Module, stacked: dict[str, Tensor], feed: Feed, batch_size: int = 512) -> Tensor:
    """Best class of every task, int (S, Q, K), on the CPU."""
    base.eval()
    where = next(iter(stacked.values())).device

    def one(weights: dict[str, Tensor], *inputs: Tensor) -> Tensor:
        logits = torch.func.functional_call(base, weights, inputs).logits
        return torch.stack([x.argmax(-1) for x in logits.values()], dim=-1)  # (B, K)

    with autocast(where), sdpa_kernel(SDPBackend.MATH):  # vmap has no rule for the fused kernels
        found = [
            torch.func.vmap(one, (0, None, None, None))(stacked, *batch.to(where)[:3]).cpu()
            for batch in feed.batches(batch_size)
        ]
    return torch.cat(found, dim=1)  # (S, Q, K)


def predict_tasks(models: Sequence[nn.Module], feed: Feed, device: str = "auto") -> Tensor:
    """Best class of every task by S models that differ in their weights only, int (S, Q, K)."""
    where = pick_device(device)
    base, stacked = stack(models)
    return _predict(base.to(where), {name: value.to(where) for name, value in stacked.items()}, feed)


def fit_tasks(
    models: Sequence[nn.Module],
    train: Feed,
    validation: Feed,
    training: Training,
    seeds: Sequence[int],
    weightings: Sequence[LossWeighting],
    *,
    scored: Sequence[str] | None = None,
    project: bool = False,
    measure: int = 0,
    validations: int = 10,
    device: str = "auto",
    label: str = "",
    progress: bool | None = None,
) -> list[TaskFit]:
    """Train S models in place for K tasks; each ends with the weights of its best validation.

    Parameters
    ----------
    models
        One for each seed, equal but for their weights; ``model(pictures, words, word_mask).logits`` is
        name → (B, classes).
    train, validation
        Never the test split; ``answers`` are the labels of all tasks, int (Q, K), in the order of the logits.
    training
        As for :func:`vqa_core.training.together.fit_together`.
    seeds
        S numbers; seed s decides the order in which model s sees the data.
    weightings
        One for each seed, with the names of the tasks in the order of the logits. Their parameters are trained too.
    scored
        Tasks whose mean validation accuracy chooses the weights; all by default.
    project
        Project conflicting gradients on the shared parameters (PCGrad) before they are summed.
    measure
        Measure conflicts in every so many steps; 0 never.
    validations
        About how often to validate: after epochs that are equally far apart, and after the last.
    label, progress
        Text of the progress bar; by default it is shown on a terminal only.

    Raises
    ------
    ValueError
        Numbers of models, seeds and weightings differ; the tasks' names differ; a layer is hidden in a plain list, or
        used by no task; or conflicts are asked for where nothing is shared.
    NotFiniteError
        When a loss or the gradient of a seed becomes NaN or infinite; the message names step and seeds.
    """
    tasks = weightings[0].names if weightings else ()
    scored = tasks if scored is None else tuple(scored)
    if not len(models) == len(seeds) == len(weightings) or training.patience:
        raise ValueError(
            f"{len(models)} models, {len(seeds)} seeds, {len(weightings)} weightings, patience={training.patience}: "
            "needed are S, S, S and 0"
        )
    if hidden := unregistered(models[0]):
        raise ValueError(f"{', '.join(hidden)}: in a plain list or dict, so never trained; use nn.ModuleList or Dict")
    if not scored or set(scored) - set(tasks):
        raise ValueError(f"scored is {scored}; give some of {', '.join(tasks)}")
    where = pick_device(device)
    base, stacked = stack(models)
    base.to(where)
    stacked = {name: value.to(where).requires_grad_() for name, value in stacked.items()}
    shared = [stacked[name] for name in shared_parameters(base)]
    if not shared and (project or measure):
        raise ValueError("these models share no parameter, so no gradients can conflict; leave project and measure out")
    weightings = [w.to(where).train() for w in weightings]
    optimizer = _optimizer(stacked, weightings, training)

    def losses_of(weights: dict[str, Tensor], pictures, words, mask, labels: Tensor) -> Tensor:
        logits = torch.func.functional_call(base, weights, (pictures, words, mask)).logits
        if tuple(logits) != tasks:
            raise ValueError(f"the model's tasks are {tuple(logits)}, the weighting's {tasks}; name them alike")
        return torch.stack(list(task_losses(logits, labels).values()))  # (K,)

    found, best = [TaskFit() for _ in models], [None] * len(models)
    steps_per_epoch = math.ceil(len(train) / training.batch_size)
    steps, apart = steps_per_epoch * training.epochs, max(1, training.epochs // validations)
    total, since = torch.zeros(len(models), len(tasks)), 0
    silent = not (sys.stderr.isatty() if progress is None else progress)
    bar = tqdm(total=steps, desc=label, leave=False, disable=silent, unit="step")
    for epoch in range(training.epochs):
        torch.manual_seed(seeds[0] * 100_003 + epoch)
        rngs = [np.random.default_rng([seed, epoch]) for seed in seeds]
        orders = np.stack([rng.permutation(len(train)) for rng in rngs])  # (S, Q)
        base.train()
        for i in range(steps_per_epoch):
            step = epoch * steps_per_epoch + i
            for group in optimizer.param_groups:
                group["lr"] = training.rate(step, steps)
            rows = orders[:, i * training.batch_size : (i + 1) * training.batch_size]  # (S, B)
            batch = [t.to(where).unflatten(0, rows.shape) for t in train.batch(rows.reshape(-1))]  # (S, B, …) each
            with autocast(where), sdpa_kernel(SDPBackend.MATH):
                losses = torch.func.vmap(losses_of, randomness="different")(stacked, *batch)  # (S, K)
            one = torch.stack([w(dict(zip(tasks, row))) for w, row in zip(weightings, losses)])  # (S,)
            measuring = bool(measure) and step % measure == 0
            if project or measuring:
                gradients = task_gradients(losses, shared)  # (S, K, P)
            if measuring:
                for fit, cosine, norm in zip(found, *(x.detach().cpu().numpy() for x in conflict(gradients))):
                    fit.at.append(step)
                    fit.cosines.append(cosine)
                    fit.norms.append(norm)
            optimizer.zero_grad(set_to_none=True)
            one.sum().backward()
            if idle := [name for name, value in stacked.items() if value.grad is None]:
                raise ValueError(f"no task's loss reaches {', '.join(idle)}; take them out of the model")
            if project:
                weights = torch.stack([w.weights() for w in weightings]).detach()  # (S, K)
                order = torch.from_numpy(np.stack([rng.permutation(len(tasks)) for rng in rngs])).to(where)  # (S, K)
                _set_gradients(shared, project_conflicts(weights.unsqueeze(-1) * gradients, order).sum(1))
            norms = _clip(list(stacked.values()), training.clip)  # (S,)
            if not torch.isfinite(one + norms).all():
                bad = [s for s, x in zip(seeds, (one + norms).tolist()) if not math.isfinite(x)]
                raise NotFiniteError(
                    f"step {step}: loss or gradient of seed(s) {bad} is not finite; lower learning_rate"
                )
            optimizer.step()
            total, since = total + losses.detach().cpu(), since + 1
            bar.update()
        used = torch.stack([w.weights() for w in weightings]).detach().cpu()  # (S, K), those of this epoch
        for w in weightings:
            w.end_epoch()
        if (epoch + 1) % apart and epoch + 1 < training.epochs:
            continue
        right = (_predict(base, stacked, validation) == validation.answers).float().mean(1)  # (S, K)
        for s, (fit, now) in enumerate(zip(found, right.tolist())):
            fit.history.append({"epoch": epoch, "step": step + 1} | _row(tasks, total[s] / since, used[s], now))
            score = float(np.mean([now[tasks.index(name)] for name in scored]))
            if score > fit.best_score:
                fit.best_score, fit.best_epoch = score, epoch
                best[s] = {name: value[s].detach().clone() for name, value in stacked.items()}
        total, since = torch.zeros_like(total), 0
    bar.close()
    if any(b is None for b in best):
        raise ValueError(f"nothing was trained: epochs is {training.epochs}, training questions are {len(train)}")
    home = next(models[0].parameters()).device
    unstack(models, {name: torch.stack([b[name] for b in best]).to(home) for name in best[0]})
    return found


def _optimizer(stacked: dict[str, Tensor], weightings: Sequence[LossWeighting], training: Training):
    """AdamW; biases, norms and the parameters of weightings are not decayed."""
    matrices = [value for value in stacked.values() if value.ndim > 2]  # one more axis than in a single model
    others = [value for value in stacked.values() if value.ndim <= 2]
    learned = [p for w in weightings for p in w.parameters()]
    groups = [
        {"params": matrices, "weight_decay": training.weight_decay},
        {"params": [*others, *learned], "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(groups, lr=training.learning_rate, fused=True)


def _row(tasks: Sequence[str], losses: Tensor, weights: Tensor, accuracies: Sequence[float]) -> dict[str, float]:
    columns = {"loss": losses.tolist(), "weight": weights.tolist(), "validation": accuracies}
    return {f"{what}.{task}": x for what, numbers in columns.items() for task, x in zip(tasks, numbers)}


def _set_gradients(parameters: Sequence[Tensor], gradients: Tensor) -> None:
    """Give stacked parameters (S, …) their parts of the gradients (S, P)."""
    parts = gradients.split([p[0].numel() for p in parameters], dim=1)
    for p, part in zip(parameters, parts):
        p.grad = part.reshape(p.shape).contiguous()


def _clip(parameters: Sequence[Tensor], largest: float) -> Tensor:
    """Scale the gradient of each of S models to a norm of at most ``largest``; the norms before, (S,)."""
    norms = torch.stack([p.grad.flatten(1).norm(dim=1) for p in parameters]).norm(dim=0)  # (S,)
    scale = (largest / (norms + 1e-6)).clamp(max=1.0)
    for p in parameters:
        p.grad.mul_(scale.view(-1, *[1] * (p.ndim - 1)))
    return norms
