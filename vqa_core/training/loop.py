"""The one training loop: AdamW, warm-up and cosine, clipping, early stopping, resume, and a stop at the first NaN."""

from __future__ import annotations

import contextlib
import copy
import math
import os
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F
from tqdm import tqdm

from vqa_core.data.types import Batch
from vqa_core.training.feed import Feed


@dataclass(frozen=True)
class Training:
    """How to train.

    Attributes
    ----------
    epochs, batch_size
        Passes over the training questions, and questions per step.
    learning_rate, weight_decay
        Of AdamW; the rate is the highest one, reached after the warm-up.
    warmup
        Share of all steps with a linearly growing rate; a cosine takes it to 0 afterwards.
    clip
        Largest norm of the gradient.
    patience
        Stop after so many epochs without a better validation accuracy; 0 never stops early.
        The weights of the best validation epoch are kept in any case.
    """

    epochs: int = 10
    batch_size: int = 256
    learning_rate: float = 2e-3
    weight_decay: float = 0.01
    warmup: float = 0.05
    clip: float = 1.0
    patience: int = 0

    def rate(self, step: int, steps: int) -> float:
        """Learning rate at a step (0-based) out of ``steps``."""
        warm = max(1, round(self.warmup * steps))
        if step < warm:
            return self.learning_rate * (step + 1) / warm
        return self.learning_rate * 0.5 * (1 + math.cos(math.pi * (step - warm) / max(1, steps - warm)))


@dataclass
class Fit:
    """What :func:`fit` found: a row per epoch, and which epoch's weights the model now has."""

    history: list[dict[str, float]] = field(default_factory=list)
    best_epoch: int = -1
    best_score: float = -math.inf


class NotFiniteError(RuntimeError):
    """The loss or the gradient became NaN or infinite; the message names the file that holds the batch."""


def pick_device(device: str = "auto") -> torch.device:
    """``auto`` means CUDA where there is one, else the CPU."""
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    return torch.device(device)


def autocast(device: torch.device):
    """bf16 on CUDA, plain float32 elsewhere."""
    return torch.autocast("cuda", torch.bfloat16) if device.type == "cuda" else contextlib.nullcontext()


def answer_loss(logits: torch.Tensor, answers: torch.Tensor) -> torch.Tensor:
    """Cross-entropy (nats) of logits (B, A) with answers (B,); rows labelled −100 do not count."""
    return F.cross_entropy(logits.float(), answers, ignore_index=-100)


@torch.inference_mode()
def predict(model: nn.Module, feed: Feed, batch_size: int = 1024, device: str = "auto") -> torch.Tensor:
    """Answer logits (Q, A) of all questions, float32 on the CPU, with the model in ``eval`` mode."""
    where = pick_device(device)
    model.to(where).eval()
    with autocast(where):
        return torch.cat([model(*b.to(where)[:3]).logits.float().cpu() for b in feed.batches(batch_size)])


def accuracy(model: nn.Module, feed: Feed, device: str = "auto") -> float:
    """Share of questions whose best logit is the right answer; unreachable answers count as wrong."""
    return float((predict(model, feed, device=device).argmax(1) == feed.answers).float().mean())


def fit(
    model: nn.Module,
    train: Feed,
    validation: Feed,
    training: Training,
    seed: int,
    *,
    loss: Callable[[nn.Module, Batch], torch.Tensor] | None = None,
    score: Callable[[nn.Module, Feed], float] | None = None,
    device: str = "auto",
    checkpoint: Path | None = None,
    label: str = "",
    progress: bool | None = None,
) -> Fit:
    """Train in place; at the end the model has the weights of the best *validation* epoch.

    Parameters
    ----------
    model
        Called as ``model(pictures, words, word_mask)``, returns something with ``.logits`` (B, A).
    train, validation
        Never the test split.
    seed
        Seeds the order of the data and dropout, per epoch; so a resumed run goes on exactly as it would have.
    loss
        ``loss(model, batch)``; cross-entropy of the answers by default.
    score
        ``score(model, validation)``, the higher the better; accuracy by default.
    checkpoint
        File for the state after each epoch. When it exists, training resumes from it; it is deleted at the end.
    label, progress
        Text of the progress bar with ETA; by default it is shown on a terminal only.

    Raises
    ------
    NotFiniteError
        At the first NaN or infinity; the batch and the weights are saved for inspection.
    """
    where = pick_device(device)
    model.to(where)
    decay = [p for p in model.parameters() if p.requires_grad and p.ndim > 1]
    plain = [p for p in model.parameters() if p.requires_grad and p.ndim <= 1]  # biases and norms are not decayed
    optimizer = torch.optim.AdamW(
        [{"params": decay, "weight_decay": training.weight_decay}, {"params": plain, "weight_decay": 0.0}],
        lr=training.learning_rate,
        fused=True,
    )
    steps_per_epoch = math.ceil(len(train) / training.batch_size)
    steps = steps_per_epoch * training.epochs
    found, best, start = Fit(), None, 0
    if checkpoint is not None and checkpoint.is_file():
        state = torch.load(checkpoint, map_location=where, weights_only=True)
        model.load_state_dict(state["model"])
        optimizer.load_state_dict(state["optimizer"])
        found, best, start = Fit(**state["fit"]), state["best"], state["epoch"] + 1
    silent = not (sys.stderr.isatty() if progress is None else progress)
    bar = tqdm(total=steps, initial=start * steps_per_epoch, desc=label, leave=False, disable=silent, unit="step")
    for epoch in range(start, training.epochs):
        if training.patience and epoch - found.best_epoch > training.patience:
            break
        torch.manual_seed(seed * 100_003 + epoch)
        order = np.random.default_rng([seed, epoch]).permutation(len(train))
        model.train()
        total = 0.0
        for i, batch in enumerate(train.batches(training.batch_size, order)):
            step = epoch * steps_per_epoch + i
            for group in optimizer.param_groups:
                group["lr"] = training.rate(step, steps)
            batch = batch.to(where)
            with autocast(where):
                value = loss(model, batch) if loss else answer_loss(model(*batch[:3]).logits, batch.answers)
            optimizer.zero_grad(set_to_none=True)
            value.backward()
            norm = nn.utils.clip_grad_norm_(model.parameters(), training.clip, foreach=True)
            value, norm = value.item(), norm.item()
            if not math.isfinite(value) or not math.isfinite(norm):
                raise NotFiniteError(_save_batch(model, batch, value, norm, step, checkpoint))
            optimizer.step()
            total += value * len(batch.answers)
            bar.update()
        now = score(model, validation) if score else accuracy(model, validation, device)
        found.history.append({"epoch": epoch, "loss": total / len(train), "validation": now})
        bar.set_postfix(loss=f"{total / len(train):.3f}", validation=f"{now:.3f}")
        if now > found.best_score:
            found.best_score, found.best_epoch = now, epoch
            best = copy.deepcopy(model.state_dict())
        if checkpoint is not None:
            _save_state(checkpoint, model, optimizer, found, best, epoch)
    bar.close()
    if best is None:
        raise ValueError(f"nothing was trained: epochs is {training.epochs}, training questions are {len(train)}")
    model.load_state_dict(best)
    model.eval()
    if checkpoint is not None:
        checkpoint.unlink(missing_ok=True)
    return found


def _save_state(path: Path, model, optimizer, found: Fit, best, epoch: int) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    state = {
        "model": model.state_dict(),
        "optimizer": optimizer.state_dict(),
        "fit": vars(found),
        "best": best,
        "epoch": epoch,
    }
    torch.save(state, temporary)
    os.replace(temporary, path)


def _save_batch(model, batch: Batch, value: float, norm: float, step: int, checkpoint: Path | None) -> str:
    """Keep the batch and the weights that gave a NaN; returns the message of the error."""
    path = (checkpoint.parent if checkpoint else Path.cwd()) / f"not_finite_step{step}.pt"
    path.parent.mkdir(parents=True, exist_ok=True)
    torch.save({"batch": dict(batch._asdict()), "model": model.state_dict()}, path)
    return (
        f"step {step}: loss is {value}, gradient norm is {norm}. The batch and the weights are in {path} "
        "(torch.load(..., weights_only=True)). Usual causes: a learning rate that is too high, or a row "
        "of a mask without one True."
    )
