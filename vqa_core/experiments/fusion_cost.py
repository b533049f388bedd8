"""Experiment ``fusion_cost``: what a fusion costs as the number of tokens grows from 64 to 4,096, measured.

Nothing is trained. Each method fuses random tokens; its forward pass is timed on one thread, its operations are
counted, and so is what a backward pass would keep. A power law cost ∝ Nᵖ is a line of slope p on logarithmic axes.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import nn

from vqa_core.encoders.tokens import CachedTokens
from vqa_core.evaluation.statistics import Interval
from vqa_core.experiments import Metric, Outcome, Record, Spec
from vqa_core.experiments.fusion import HEADS, activation_bytes, floating_point_operations
from vqa_core.fusion.bilinear import BAN
from vqa_core.fusion.stacked import SAN
from vqa_core.fusion.stages import AttendFusion, CrossAttentionReader, EarlyFusion, TokenFusion
from vqa_core.fusion.vector import ConcatFusion, FiLM
from vqa_core.model import VQAModel
from vqa_core.training.feed import Feed

REQUIRES = ()


@dataclass(frozen=True)
class CostMethod:
    """A fusion whose cost is measured.

    Attributes
    ----------
    title
        As it stands in figures and tables.
    predicted
        Exponent p of Nᵖ for large N = Nᵢ + Nₜ, when Nₜ stays as it is.
    build
        ``build(dim, image_tokens, text_tokens)`` → fusion whose inputs and output have ``dim`` features.
    """

    title: str
    predicted: int
    build: Callable[[int, int, int], nn.Module]


METHODS: dict[str, CostMethod] = {
    "pool_concat": CostMethod("pool, concat", 1, lambda d, i, t: ConcatFusion(d, d, d)),
    "token_film": CostMethod("FiLM at tokens", 1, lambda d, i, t: TokenFusion(FiLM(d, d, d))),
    "attend_film": CostMethod("attend, FiLM", 1, lambda d, i, t: AttendFusion(FiLM(HEADS * d, d, d), HEADS)),
    "san": CostMethod("SAN", 1, lambda d, i, t: SAN(d, d, d)),
    "ban": CostMethod("BAN", 1, lambda d, i, t: BAN(d, d, d)),
    "cross_attention": CostMethod(
        "words read the picture",
        1,
        lambda d, i, t: CrossAttentionReader(d, d, d, image_length=i, text_length=t),
    ),
    "early": CostMethod(
        "early (joint transformer)", 2, lambda d, i, t: EarlyFusion(d, d, d, image_length=i, text_length=t)
    ),
}


@dataclass(frozen=True)
class Tokens:
    """How many tokens: ``together`` of both modalities, ``text`` of them from the question."""

    together: tuple[int, ...]
    text: int


@dataclass(frozen=True)
class Model:
    """Which fusion, features of a token, questions at a time."""

    fusion: str
    dim: int
    batch_size: int


@dataclass(frozen=True)
class Clock:
    """Each number of tokens is timed until ``seconds`` have passed, at least ``least`` times."""

    seconds: float
    least: int


@dataclass(frozen=True)
class Config:
    """Sizes of a profile; ``repeats`` is the number of seeds."""

    repeats: int
    tokens: Tokens
    dim: int
    batch_size: int
    clock: Clock


LADDER = (64, 128, 256, 512, 1024, 2048, 4096)
PROFILES = {
    "smoke": Config(2, Tokens((64, 128, 256, 512), 16), 16, 2, Clock(0.0, 2)),
    "cpu": Config(5, Tokens(LADDER, 16), 64, 4, Clock(0.02, 2)),
    "gpu": Config(10, Tokens(LADDER, 16), 64, 4, Clock(0.2, 10)),
}


def specs(profile: str) -> list[Spec]:
    """One spec for each repeat and method."""
    c = PROFILES[profile]
    return [
        Spec("fusion_cost", unit, repeat, profile, c.tokens, Model(unit, c.dim, c.batch_size), c.clock)
        for repeat in range(c.repeats)  # outermost: what else the machine does in a while touches all methods alike
        for unit in METHODS
    ]


def inputs(tokens: Tokens, together: int, model: Model, seed: int) -> Feed:
    """Random tokens of as many different questions and pictures as are fused at a time."""
    generator = torch.Generator().manual_seed(seed)
    image = torch.randn(model.batch_size, together - tokens.text, model.dim, generator=generator)  # (B, Nᵢ, D)
    text = torch.randn(model.batch_size, tokens.text, model.dim, generator=generator)  # (B, Nₜ, D)
    mask = torch.ones(model.batch_size, tokens.text, dtype=torch.bool)
    rows = np.arange(model.batch_size)
    return Feed(image, rows, text, mask, np.zeros_like(rows))


@torch.inference_mode()
def seconds_of(model: nn.Module, feed: Feed, clock: Clock) -> float:
    """Time of one forward pass of all questions in the feed, on one thread of the processor.

    It is the shortest of many passes: whatever else the machine does can only make a pass longer. What counts is the
    time of this process on the processor, not that on the wall.
    """
    batch = feed.batch(range(len(feed)))[:3]
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        model.cpu().eval()
        model(*batch)  # the first pass allocates
        shortest, done, start = float("inf"), 0, time.perf_counter()
        while done < clock.least or time.perf_counter() - start < clock.seconds:
            began = time.process_time()
            model(*batch)
            shortest = min(shortest, time.process_time() - began)
            done += 1
    finally:
        torch.set_num_threads(threads)
    return shortest


def exponent(tokens: Sequence[int], cost: Sequence[float]) -> float:
    """Slope of log cost against log tokens over the larger half of the numbers of tokens (least squares).

    The larger half, because for few tokens what does not grow (starting each operation) hides what does.
    """
    tokens, cost = np.asarray(tokens, dtype=float), np.asarray(cost, dtype=float)
    if len(tokens) != len(cost) or len(tokens) < 3 or (tokens <= 0).any() or (cost <= 0).any():
        raise ValueError(f"a slope needs at least 3 positive pairs; got tokens {tokens}, cost {cost}")
    x, y = np.log(tokens), np.log(cost)
    larger = np.arange(len(x)) >= len(x) // 2
    return float(np.polyfit(x[larger], y[larger], 1)[0])


def exponent_interval(records: Sequence[Record], metric: str = "exponent", resamples: int = 10_000) -> Interval:
    """Exponent of one method: mean over repeats, and the 95 % percentile bootstrap over repeats."""
    values = np.array([r.metrics[metric].value for r in records])
    units = {r.spec.unit for r in records}
    if len(units) != 1 or len(values) < 2:
        raise ValueError(f"give at least two repeats of one method; got {len(values)} of {sorted(units)}")
    drawn = np.random.default_rng(0).integers(0, len(values), (resamples, len(values)))
    low, high = np.percentile(values[drawn].mean(axis=1), [2.5, 97.5])
    return Interval(
        float(values.mean()), float(low), float(high), len(values), method=f"bootstrap over {len(values)} repeats"
    )


def run(spec: Spec) -> Outcome:
    """Measure one method at every number of tokens."""
    tokens, sizes = spec.data, spec.model
    method = METHODS[sizes.fusion]
    seconds, flops, memory = [], [], []
    for together in tokens.together:
        torch.manual_seed(spec.seed)
        fusion = method.build(sizes.dim, together - tokens.text, tokens.text)
        model = VQAModel(CachedTokens(sizes.dim), CachedTokens(sizes.dim), fusion, nn.Identity())
        feed = inputs(tokens, together, sizes, spec.seed)
        seconds.append(seconds_of(model, feed, spec.training) / sizes.batch_size)
        flops.append(floating_point_operations(model, feed))
        memory.append(activation_bytes(model, feed, 1))
    costs = {"exponent": seconds, "exponent_flops": flops, "exponent_bytes": memory}
    metrics = {
        name: Metric(exponent(tokens.together, cost), len(cost) - len(cost) // 2) for name, cost in costs.items()
    }
    metrics["seconds_at_largest"] = Metric(seconds[-1], sizes.batch_size)
    arrays = {
        "tokens": np.array(tokens.together),
        "image_tokens": np.array(tokens.together) - tokens.text,
        "text_tokens": np.full(len(seconds), tokens.text),
        "seconds": np.array(seconds),
        "flops": np.array(flops),
        "activation_bytes": np.array(memory),
    }
    details = {
        "title": method.title,
        "predicted": method.predicted,
        "batch_size": sizes.batch_size,
        "dim": sizes.dim,
        "fitted_from": tokens.together[len(seconds) // 2],
        "data_hash": f"random tokens, seed {spec.seed}",
    }
    return Outcome(metrics, arrays, details)
