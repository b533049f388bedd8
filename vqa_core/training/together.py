"""Train the same small model with several seeds at once: one vectorised pass instead of one process after another.

What comes out is what :func:`vqa_core.training.loop.fit` would give for each seed on its own, up to rounding (and
dropout): the same order of the data, warm-up and cosine, clipping seed by seed, the best validation epoch of each seed.
"""

from __future__ import annotations

import copy
import math
import sys
from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from tqdm import tqdm

from vqa_core.training.feed import Feed
from vqa_core.training.loop import Fit, NotFiniteError, Training, answer_loss, autocast, pick_device


def stack(models: Sequence[nn.Module]) -> tuple[nn.Module, dict[str, Tensor]]:
    """A module that gives the code, and the weights of all models, name → (S, …); shared weights are there once.

    Raises
    ------
    ValueError
        The models differ in their parameters, or have buffers, such as the statistics of a batch norm.
    """
    shapes = [{name: p.shape for name, p in m.named_parameters()} for m in models]
    if not models or any(s != shapes[0] for s in shapes):
        raise ValueError(f"{len(models)} models can't be stacked: give at least one, and all with the same parameters")
    if buffers := [name for name, _ in models[0].named_buffers()]:
        raise ValueError(f"models with buffers can't be trained together: {', '.join(buffers)}")
    stacked = {name: torch.stack([m.get_parameter(name).detach() for m in models]) for name in shapes[0]}
    return copy.deepcopy(models[0]), stacked


@torch.no_grad()
def unstack(models: Sequence[nn.Module], stacked: dict[str, Tensor]) -> None:
    """Put the stacked weights (S, …) back into the S models."""
    for s, model in enumerate(models):
        for name, value in stacked.items():
            model.get_parameter(name).copy_(value[s])


@torch.no_grad()
def _logits(base: nn.Module, stacked: dict[str, Tensor], feed: Feed, batch_size: int = 512) -> Tensor:
    """Answer logits (S, Q, A) of all seeds, float32 on the CPU, in evaluation mode."""
    base.eval()
    where = next(iter(stacked.values())).device

    def one(weights: dict[str, Tensor], *inputs: Tensor) -> Tensor:
        return torch.func.functional_call(base, weights, inputs).logits

    found = []
    with autocast(where), sdpa_kernel(SDPBackend.MATH):  # vmap has no rule for the fused kernels
        for batch in feed.batches(batch_size):
            inputs = batch.to(where)[:3]
            found.append(torch.func.vmap(one, (0, None, None, None))(stacked, *inputs).float().cpu())  # (S, B, A)
    return torch.cat(found, dim=1)


def predict_together(models: Sequence[nn.Module], feed: Feed, device: str = "auto") -> Tensor:
    """Answer logits (S, Q, A) of S models that differ in their weights only, float32 on the CPU."""
    where = pick_device(device)
    base, stacked = stack(models)
    return _logits(base.to(where), {name: value.to(where) for name, value in stacked.items()}, feed)


def fit_together(
    models: Sequence[nn.Module],
    train: Feed,
    validation: Feed,
    training: Training,
    seeds: Sequence[int],
    *,
    loss: Callable[..., Tensor] = answer_loss,
    teacher: Tensor | None = None,
    device: str = "auto",
    label: str = "",
    progress: bool | None = None,
) -> list[Fit]:
    """Train S models in place; each ends with the weights of its best *validation* epoch.

    Parameters
    ----------
    models
        One for each seed, equal but for their weights; called as ``model(pictures, words, word_mask)``.
    train, validation
        Never the test split. ``validation`` is scored by accuracy.
    training
        As for :func:`vqa_core.training.loop.fit`, without early stopping (``patience`` must be 0).
    seeds
        S numbers; seed s decides the order in which model s sees the data.
    loss
        ``loss(logits, answers)``; with a teacher ``loss(logits, teacher_logits, answers)``. Logits are (B, A).
    teacher
        Logits (S, Q, A) of the training questions by each seed's teacher.
    label, progress
        Text of the progress bar; by default it is shown on a terminal only.

    Returns
    -------
    list of Fit
        One for each seed.

    Raises
    ------
    NotFiniteError
        When the loss or the gradient of a seed becomes NaN or infinite; the message names step and seeds.
    """
    if len(seeds) != len(models) or training.patience:
        raise ValueError(
            f"{len(models)} models, {len(seeds)} seeds, patience={training.patience}: needed are S, S and 0"
        )
    if teacher is not None and teacher.shape[:2] != (len(models), len(train)):
        raise ValueError(f"teacher is {tuple(teacher.shape)}; give logits ({len(models)}, {len(train)}, A)")
    where = pick_device(device)
    base, stacked = stack(models)
    base.to(where)
    stacked = {name: value.to(where).requires_grad_() for name, value in stacked.items()}
    matrices = [value for value in stacked.values() if value.ndim > 2]  # one more axis than in a single model
    others = [value for value in stacked.values() if value.ndim <= 2]
    groups = [{"params": matrices, "weight_decay": training.weight_decay}, {"params": others, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=training.learning_rate, fused=True)

    def loss_of(weights: dict[str, Tensor], pictures, words, mask, *targets: Tensor) -> Tensor:
        return loss(torch.func.functional_call(base, weights, (pictures, words, mask)).logits.float(), *targets)

    found, best = [Fit() for _ in models], [None] * len(models)
    steps_per_epoch = math.ceil(len(train) / training.batch_size)
    steps = steps_per_epoch * training.epochs
    silent = not (sys.stderr.isatty() if progress is None else progress)
    bar = tqdm(total=steps, desc=label, leave=False, disable=silent, unit="step")
    for epoch in range(training.epochs):
        torch.manual_seed(seeds[0] * 100_003 + epoch)
        orders = np.stack([np.random.default_rng([seed, epoch]).permutation(len(train)) for seed in seeds])  # (S, Q)
        base.train()
        total = np.zeros(len(models))
        for i in range(steps_per_epoch):
            step = epoch * steps_per_epoch + i
            for group in optimizer.param_groups:
                group["lr"] = training.rate(step, steps)
            rows = orders[:, i * training.batch_size : (i + 1) * training.batch_size]  # (S, B)
            batch = [t.to(where).unflatten(0, rows.shape) for t in train.batch(rows.reshape(-1))]  # (S, B, …) each
            if teacher is not None:
                said = torch.stack([logits[r] for logits, r in zip(teacher, torch.from_numpy(rows))])  # (S, B, A)
                batch.insert(3, said.to(where))
            with autocast(where), sdpa_kernel(SDPBackend.MATH):  # vmap has no rule for the fused kernels
                losses = torch.func.vmap(loss_of, randomness="different")(stacked, *batch)  # (S,)
            optimizer.zero_grad(set_to_none=True)
            losses.sum().backward()
            norms = torch.stack([v.grad.flatten(1).norm(dim=1) for v in stacked.values()]).norm(dim=0)  # (S,)
            scale = (training.clip / (norms + 1e-6)).clamp(max=1.0)
            for value in stacked.values():
                value.grad.mul_(scale.view(-1, *[1] * (value.ndim - 1)))
            if not torch.isfinite(losses + norms).all():
                bad = [s for s, x in zip(seeds, (losses + norms).tolist()) if not math.isfinite(x)]
                raise NotFiniteError(
                    f"step {step}: loss or gradient of seed(s) {bad} is not finite; lower learning_rate"
                )
            optimizer.step()
            total += losses.detach().cpu().numpy() * rows.shape[1]
            bar.update()
        right = _logits(base, stacked, validation).argmax(-1) == validation.answers  # (S, Q)
        for s, now in enumerate(right.float().mean(1).tolist()):
            found[s].history.append({"epoch": epoch, "loss": float(total[s]) / len(train), "validation": now})
            if now > found[s].best_score:
                found[s].best_score, found[s].best_epoch = now, epoch
                best[s] = {name: value[s].detach().clone() for name, value in stacked.items()}
    bar.close()
    if any(b is None for b in best):
        raise ValueError(f"nothing was trained: epochs is {training.epochs}, training questions are {len(train)}")
    unstack(
        models, {name: torch.stack([b[name] for b in best]).to(next(models[0].parameters()).device) for name in best[0]}
    )
    return found
