"""Training a dual encoder on pairs of a picture and a caption; one process, or several that share each batch."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from vqa_core.dual import DualEncoder
from vqa_core.training.contrastive import clip_loss, nt_xent, siglip, triplet
from vqa_core.training.feed import as_float
from vqa_core.training.loop import NotFiniteError, Training, autocast

Loss = Callable[[DualEncoder, Tensor, Tensor], Tensor]

#: Name → loss of a batch's embeddings; the temperature is the model's where a loss has one.
LOSSES: dict[str, Loss] = {
    "clip": lambda model, image, text: clip_loss(image, text, model.scale()),
    "nt_xent": lambda model, image, text: nt_xent(image, text, 1 / model.scale()),
    "triplet": lambda model, image, text: triplet(image, text, negatives="hard"),
    "siglip": lambda model, image, text: siglip(image, text, model.scale(), model.bias),
}


class Pairs(NamedTuple):
    """Pictures, and one caption of each.

    Attributes
    ----------
    pictures
        uint8 (P, H, W, 3).
    words, mask
        Word ids, long (P, T), and which of them are words, bool (P, T).
    """

    pictures: Tensor
    words: Tensor
    mask: Tensor

    def batch(self, rows: Tensor, device: torch.device | str = "cpu") -> tuple[Tensor, Tensor, Tensor]:
        """Pictures float (B, 3, H, W) in [−1, 1], words (B, T') and mask, cut to the longest caption among them."""
        mask = self.mask[rows]  # (B, T)
        length = max(int(mask.sum(1).max()), 1)
        found = as_float(self.pictures[rows]), self.words[rows, :length], mask[:, :length]
        return tuple(x.to(device, non_blocking=True) for x in found)

    def first(self, pairs: int) -> Pairs:
        """The first ``pairs`` of them."""
        if not 1 <= pairs <= len(self.pictures):
            raise ValueError(f"{pairs} pairs are asked for, there are {len(self.pictures)}")
        return Pairs(*(x[:pairs] for x in self))


@dataclass(frozen=True)
class Recipe:
    """How to train: AdamW, warm-up and cosine, a number of pairs seen (not of epochs), so that batch sizes compare.

    Attributes
    ----------
    pairs_seen
        Pairs in all steps together.
    batch_size
        Pairs in a step, over all processes.
    learning_rate, weight_decay, warmup, clip
        As in :class:`vqa_core.training.loop.Training`.
    loss
        A key of :data:`LOSSES`.
    """

    pairs_seen: int
    batch_size: int
    learning_rate: float
    weight_decay: float = 0.01
    warmup: float = 0.1
    clip: float = 1.0
    loss: str = "clip"

    @property
    def steps(self) -> int:
        """Number of steps, at least one."""
        return max(1, self.pairs_seen // self.batch_size)


def draw_rows(pairs: int, batch_size: int, steps: int, seed: int) -> Tensor:
    """Which pairs each step sees, long (steps, B): epoch after epoch in a new order, no pair twice in a batch."""
    if not 2 <= batch_size <= pairs:
        raise ValueError(f"batch_size is {batch_size}; it must be at least 2 and at most the {pairs} pairs there are")
    rng = np.random.default_rng([seed, 5])
    each = pairs // batch_size  # whole batches of an epoch
    rows = [rng.permutation(pairs)[: each * batch_size].reshape(each, batch_size) for _ in range(-(-steps // each))]
    return torch.from_numpy(np.concatenate(rows)[:steps])


def fit_pairs(
    model: DualEncoder,
    pairs: Pairs,
    recipe: Recipe,
    seed: int,
    loss: Loss | None = None,
    share: Callable[[Tensor], Tensor] | None = None,
    synchronise: Callable[[nn.Module], None] | None = None,
) -> list[dict[str, float]]:
    """Train in place; the last state is kept, so that nothing is chosen and no validation data are needed.

    Parameters
    ----------
    model
        On the device on which it is trained.
    pairs
        Training pairs.
    recipe
        How.
    seed
        Of the order of the pairs, and of dropout.
    loss
        ``loss(model, image, text)`` of embeddings (B, D) each; by default that of the recipe.
    share
        Maps a batch's rows to those of this process; None for one process.
    synchronise
        Called with the model after each backward pass: makes the gradients of all processes equal.

    Returns
    -------
    list of dict
        For each step: ``step`` (from 1), ``loss`` and ``temperature``, those before the step's update.

    Raises
    ------
    NotFiniteError
        At the first loss that is NaN or infinite.
    ValueError
        For an unknown loss, or a batch larger than the pairs.
    """
    if loss is None and recipe.loss not in LOSSES:
        raise ValueError(f"loss is {recipe.loss!r}, allowed are {', '.join(LOSSES)}")
    loss, device = loss or LOSSES[recipe.loss], model.log_scale.device
    decay = [p for p in model.parameters() if p.requires_grad and p.ndim > 1]
    plain = [p for p in model.parameters() if p.requires_grad and p.ndim <= 1]  # biases, norms and the temperature
    optimizer = torch.optim.AdamW(
        [{"params": decay, "weight_decay": recipe.weight_decay}, {"params": plain, "weight_decay": 0.0}],
        lr=recipe.learning_rate,
        fused=True,
    )
    schedule = Training(learning_rate=recipe.learning_rate, warmup=recipe.warmup)
    torch.manual_seed(seed)
    model.train()
    history = []
    for step, rows in enumerate(draw_rows(len(pairs.pictures), recipe.batch_size, recipe.steps, seed)):
        for group in optimizer.param_groups:
            group["lr"] = schedule.rate(step, recipe.steps)
        pictures, words, mask = pairs.batch(rows if share is None else share(rows), device)
        with autocast(device):
            image, text = model.encode_image(pictures), model.encode_text(words, mask)
        value = loss(model, image.float(), text.float())
        history.append({"step": step + 1, "loss": value.item(), "temperature": 1 / model.scale().item()})
        if not math.isfinite(history[-1]["loss"]):
            raise NotFiniteError(f"step {step + 1}: the loss is {history[-1]['loss']}; lower learning_rate")
        optimizer.zero_grad(set_to_none=True)
        value.backward()
        if synchronise is not None:
            synchronise(model)
        nn.utils.clip_grad_norm_(model.parameters(), recipe.clip, foreach=True)
        optimizer.step()
    model.eval()
    return history
