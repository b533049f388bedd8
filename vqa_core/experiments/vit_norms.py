"""Experiment ``vit_norms``: gradients of a deep, narrow ViT in its first steps, Pre-LN and Post-LN, warm and cold.

Chapter 6 asks which form ends up better (``layer_norm``). Here the question is what happens before: how large the
gradient of each layer is at the start, and after a few steps at the full learning rate or on the way up to it. Xiong et
al. 2020 (arXiv 2002.04745) show for the start that it is large near the top of a Post-LN network, whatever its depth.

Both forms start from the same weights and see the same batches. A norm is that of the gradient of a layer's second
feed-forward weight, as there; nothing is clipped.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import torch
import torch.nn.functional as F

from vqa_core.data.cifar10 import LabelledPictures
from vqa_core.encoders.vision_transformer import NORMS
from vqa_core.experiments import Metric, Outcome, Spec
from vqa_core.experiments.vit_cifar import SUBSET, Pictures, ViT, absent, part_of
from vqa_core.training.feed import as_float
from vqa_core.training.loop import pick_device

REQUIRES = ()
WARMUPS = ("warm", "cold")


@dataclass(frozen=True)
class Steps:
    """First steps of a training: Adam; ``warm`` raises the rate evenly up to the last step, without it all have it."""

    steps: int
    batch_size: int
    learning_rate: float
    warm: bool = True

    def rate(self, step: int) -> float:
        """Learning rate at a step, counted from 0."""
        return self.learning_rate * ((step + 1) / self.steps if self.warm else 1.0)


@dataclass(frozen=True)
class Config:
    """Sizes of a profile; norm and warm-up are replaced unit by unit."""

    seeds: int
    pictures: Pictures
    model: ViT
    training: Steps


PROFILES = {
    "smoke": Config(2, Pictures(20, 5, 10), ViT(8, 6, 16, 2, 32), Steps(4, 16, 3e-3)),
    "cpu": Config(5, SUBSET, ViT(8, 12, 32, 4, 64), Steps(40, 32, 3e-3)),
    "gpu": Config(10, SUBSET, ViT(4, 24, 192, 6, 384), Steps(200, 128, 1e-3)),
}


def specs(profile: str) -> list[Spec]:
    """One spec for each form, warm-up and seed; units are ``pre.warm``, ``pre.cold``, ``post.warm``, ``post.cold``."""
    config = PROFILES[profile]
    if "all" in absent():
        return []
    return [
        Spec(
            "vit_norms",
            f"{norm}.{warmup}",
            seed,
            profile,
            config.pictures,
            replace(config.model, norm=norm),
            replace(config.training, warm=warmup == "warm"),
        )
        for seed in range(config.seeds)
        for norm in NORMS
        for warmup in WARMUPS
    ]


def run(spec: Spec) -> Outcome:
    """Losses and gradient norms of the first steps, with one seed."""
    train = part_of(spec.data, "train")
    torch.manual_seed(spec.seed)
    losses, norms = first_steps(spec.model, spec.training, train, spec.seed)
    last = losses[-max(1, len(losses) // 4) :]
    metrics = {"loss_of_last_quarter": Metric(float(last.mean()), len(last) * spec.training.batch_size)}
    details = {
        "parameters": sum(p.numel() for p in spec.model.build().parameters()),
        "data_hash": train.content_hash(),
    }
    return Outcome(metrics, {"loss": losses, "gradient_norm": norms}, details)


def first_steps(model: ViT, training: Steps, train: LabelledPictures, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Train for a few steps.

    Returns
    -------
    losses
        (S,) in nats, before each step.
    norms
        (S, L) norm of the gradient of each layer's second feed-forward weight before each step, bottom first.

    Raises
    ------
    ValueError
        When there are fewer pictures than the steps read.
    """
    needed = training.steps * training.batch_size
    if needed > len(train):
        raise ValueError(
            f"{training.steps} steps of {training.batch_size} read {needed} pictures, there are {len(train)}"
        )
    where = pick_device()
    network = model.build().to(where)
    optimizer = torch.optim.Adam(network.parameters(), lr=training.learning_rate)
    order = np.random.default_rng([seed, 0]).permutation(len(train))
    losses, norms = [], []
    for step in range(training.steps):
        rows = order[step * training.batch_size :][: training.batch_size]
        pictures = as_float(torch.from_numpy(train.pictures[rows])).to(where)  # (B, 3, 32, 32)
        loss = F.cross_entropy(network.classify(pictures), torch.from_numpy(train.labels[rows]).to(where))
        optimizer.zero_grad()
        loss.backward()
        losses.append(loss.item())
        norms.append(torch.stack([block.mlp[2].weight.grad.norm() for block in network.blocks]).cpu().numpy())  # (L,)
        for group in optimizer.param_groups:
            group["lr"] = training.rate(step)
        optimizer.step()
    return np.array(losses), np.stack(norms)
