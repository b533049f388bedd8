"""Experiment ``transformer_cost``: what the layers of a multimodal transformer cost as sequences grow, measured.

Nothing is trained and everything runs on one thread of the processor. Three kinds of units:

- a *curve* times one fusion at each number of tokens, and its attention layers alone, and counts operations and what a
  backward pass would keep. Features are few, so that the term that grows fastest soon outweighs the others;
- ``explicit`` is the curve of early concatenation with its weights written out, to compare with the fused kernel
  (scaled dot-product attention, SDPA) of all others;
- ``steps`` times whole training steps (forward, backward, update) whose ratios the claims are about, turn by turn, so
  that whatever else the machine does touches both sides of a ratio.

Exponents are slopes on logarithmic axes over the range :data:`RANGE`, where the fastest term dominates.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from vqa_core.experiments import Metric, Outcome, Spec
from vqa_core.fusion.blocks import MultiHeadAttention
from vqa_core.fusion.bottleneck import BottleneckFusion
from vqa_core.fusion.efficiency import DropToken
from vqa_core.fusion.perceiver import Perceiver
from vqa_core.fusion.transformer import LAYOUTS

REQUIRES = ()
RANGE = (1024, 4096)  # tokens of both sides between which exponents are fitted


@dataclass(frozen=True)
class Model:
    """Sizes of the timed fusions.

    Attributes
    ----------
    dim, depth, heads
        Of every stack.
    bottlenecks
        Of bottleneck fusion.
    latents, latent_blocks
        Of the Perceiver. 512 latents and six latent blocks after each reading are the published numbers.
    """

    dim: int
    depth: int
    heads: int
    bottlenecks: int
    latents: int
    latent_blocks: int


@dataclass(frozen=True)
class CostMethod:
    """A fusion whose cost is measured.

    Attributes
    ----------
    title
        As it stands in figures and tables.
    predicted
        Exponent p of Nᵖ for the attention layers at large N.
    build
        ``build(model)`` → fusion whose inputs and output have ``model.dim`` features.
    words
        Text tokens, the same for every N; None for half of all tokens.
    explicit
        Whether to ask for the weights, which computes attention in the written-out form.
    timed
        ``timed(fusion)`` → the attention layers whose time is the measured one; all of them by default.
    """

    title: str
    predicted: int
    build: Callable[[Model], nn.Module]
    words: int | None = None
    explicit: bool = False
    timed: Callable[[nn.Module], Iterable[nn.Module]] = lambda fusion: fusion.modules()


def _layout(name: str) -> Callable[[Model], nn.Module]:
    return lambda m: LAYOUTS[name](m.dim, m.dim, m.dim, depth=m.depth, heads=m.heads)


def _bottleneck(m: Model) -> nn.Module:
    return BottleneckFusion(m.dim, m.dim, m.dim, bottlenecks=m.bottlenecks, depth=m.depth, heads=m.heads)


def _perceiver(m: Model, latent_blocks: int | None = None) -> nn.Module:
    blocks = m.latent_blocks if latent_blocks is None else latent_blocks
    return Perceiver(m.dim, m.dim, m.dim, latents=m.latents, latent_blocks=blocks, heads=m.heads)


CURVES: dict[str, CostMethod] = {
    "early_concatenation": CostMethod("early concatenation", 2, _layout("early_concatenation")),
    "cross_attention": CostMethod("cross attention, both sides grow", 2, _layout("cross_attention")),
    "cross_attention_16": CostMethod("cross attention, 16 words", 1, _layout("cross_attention"), words=16),
    "bottleneck": CostMethod("bottleneck (MBT)", 2, _bottleneck),
    "perceiver": CostMethod("Perceiver (its reading)", 1, _perceiver, timed=lambda f: f.reading.modules()),
    "explicit": CostMethod("early concatenation, explicit", 2, _layout("early_concatenation"), explicit=True),
}
#: Metric of ``steps`` → (claim or "", step in the numerator, step in the denominator).
RATIOS = {
    "ratio_bottleneck": ("F6b", "bottleneck", "early_concatenation"),
    "ratio_perceiver": ("F7", "perceiver_long", "perceiver_short"),
    "ratio_perceiver_one": ("", "perceiver_one_long", "perceiver_one_short"),
    "ratio_drop_token": ("F8a", "drop_token", "all_tokens"),
}


@dataclass(frozen=True)
class Lengths:
    """How many tokens.

    Attributes
    ----------
    together
        Tokens of both sides, for the curves.
    explicit
        The most of them for the unit ``explicit``, whose memory grows with their square.
    side
        Tokens on each side of a step with early concatenation and with bottlenecks.
    inputs
        Fewest and most inputs of a Perceiver's step.
    grid, words
        Image and text tokens of a step with DropToken: the cells of a scene and a long question.
    """

    together: tuple[int, ...]
    explicit: int
    side: int
    inputs: tuple[int, int]
    grid: int
    words: int


@dataclass(frozen=True)
class Clock:
    """Each thing is timed until ``seconds`` have passed, at least ``least`` times; ``batch_size`` is DropToken's."""

    seconds: float
    least: int
    batch_size: int


@dataclass(frozen=True)
class Config:
    """Sizes of a profile; ``repeats`` is the number of seeds."""

    repeats: int
    lengths: Lengths
    model: Model
    clock: Clock


LADDER = (64, 128, 256, 512, 1024, 2048, 4096)
PUBLISHED = Lengths(LADDER, 2048, 1024, (512, 4096), 64, 16)
PROFILES = {
    "smoke": Config(2, Lengths((64, 128, 256), 128, 32, (32, 128), 16, 4), Model(16, 2, 2, 2, 16, 2), Clock(0.0, 2, 4)),
    "cpu": Config(5, PUBLISHED, Model(64, 2, 4, 4, 512, 6), Clock(0.1, 2, 16)),
    "gpu": Config(10, PUBLISHED, Model(64, 2, 4, 4, 512, 6), Clock(0.2, 5, 16)),
}


def specs(profile: str) -> list[Spec]:
    """One spec for each repeat and unit; what takes longest comes first in a repeat."""
    c = PROFILES[profile]
    return [
        Spec("transformer_cost", unit, repeat, profile, c.lengths, c.model, c.clock)
        for repeat in range(c.repeats)  # outermost: what else the machine does in a while touches all units alike
        for unit in ("steps", *CURVES)
    ]


# ------------------------------------------------------------------------------------------------------- measuring


def tokens_of(together: int, words: int | None) -> tuple[int, int]:
    """How many of all tokens are image and text tokens."""
    text = together // 2 if words is None else words
    return together - text, text


def inputs(batch: int, image: int, text: int, dim: int, seed: int, device: str = "cpu") -> tuple[Tensor, Tensor]:
    """Random tokens (B, Nᵢ, D) and (B, Nₜ, D)."""
    if device == "meta":
        return torch.empty(batch, image, dim, device="meta"), torch.empty(batch, text, dim, device="meta")
    chance = torch.Generator().manual_seed(seed)
    return tuple(torch.randn(batch, n, dim, generator=chance) for n in (image, text))


class AttentionClock:
    """Adds up the processor's seconds inside some of a model's attention layers, while it is entered.

    Parameters
    ----------
    modules
        Modules among which the attention layers are.
    """

    def __init__(self, modules: Iterable[nn.Module]) -> None:
        self.layers = [m for m in modules if isinstance(m, MultiHeadAttention)]
        self.seconds = 0.0
        self._began = 0.0

    def __enter__(self) -> AttentionClock:
        self._hooks = [m.register_forward_pre_hook(self._start) for m in self.layers]
        self._hooks += [m.register_forward_hook(self._stop) for m in self.layers]
        return self

    def __exit__(self, *_) -> None:
        for hook in self._hooks:
            hook.remove()

    def _start(self, *_) -> None:
        self._began = time.process_time()

    def _stop(self, *_) -> None:
        self.seconds += time.process_time() - self._began


def turns(calls: Sequence[Callable[[], float]], clock: Clock) -> np.ndarray:
    """Shortest seconds of each call, which tells its own time, on one thread; the calls take turns.

    The shortest of many, because whatever else the machine does can only make a call longer. The first round is not
    counted: it allocates.
    """
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        rounds, start = [], time.perf_counter()
        while len(rounds) <= clock.least or time.perf_counter() - start < clock.seconds * len(calls):
            rounds.append([call() for call in calls])
    finally:
        torch.set_num_threads(threads)
    return np.array(rounds[1:]).min(0)


@torch.inference_mode()
def seconds_of(fusion: nn.Module, method: CostMethod, image: Tensor, text: Tensor, clock: Clock) -> np.ndarray:
    """Time on the processor of one forward pass, and of its attention layers: float (2,)."""
    fusion.eval()
    found: list[float] = []

    def whole() -> float:
        with AttentionClock(method.timed(fusion)) as inside:
            began = time.process_time()
            fusion(image, text, need_weights=method.explicit)
            took = time.process_time() - began
        found.append(inside.seconds)
        return took

    shortest = turns([whole], clock)[0]
    return np.array([shortest, min(found[1:])])


def flops_of(fusion: nn.Module, image: int, text: int, dim: int) -> int:
    """Multiplications and additions of one forward pass for one question; only shapes are computed."""
    from torch.utils.flop_counter import FlopCounterMode

    fusion = fusion.to("meta").eval()
    with torch.no_grad(), sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        fusion(*inputs(1, image, text, dim, 0, "meta"))
    return counter.get_total_flops()


def kept_bytes(fusion: nn.Module, image: Tensor, text: Tensor, explicit: bool) -> int:
    """Bytes that the backward pass keeps from a forward pass, weights not counted."""
    weights = {p.data_ptr() for p in fusion.parameters()}
    kept: dict[int, int] = {}

    def keep(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if tensor.data_ptr() not in weights:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        output = fusion.train()(image, text, need_weights=explicit)
    del output
    return sum(kept.values())


def exponent(tokens: Sequence[int], cost: Sequence[float]) -> float:
    """Slope of log cost against log tokens (least squares) inside :data:`RANGE`, or over all where fewer lie inside."""
    tokens, cost = np.asarray(tokens, dtype=float), np.asarray(cost, dtype=float)
    if len(tokens) != len(cost) or len(tokens) < 2 or (tokens <= 0).any() or (cost <= 0).any():
        raise ValueError(f"a slope needs at least 2 positive pairs; got tokens {tokens}, cost {cost}")
    inside = (tokens >= RANGE[0]) & (tokens <= RANGE[1])
    if inside.sum() < 2:
        inside[:] = True
    return float(np.polyfit(np.log(tokens[inside]), np.log(cost[inside]), 1)[0])


# --------------------------------------------------------------------------------------------------------- the runs


def curve(spec: Spec) -> Outcome:
    """Measure one fusion at every number of tokens."""
    method, lengths, sizes = CURVES[spec.unit], spec.data, spec.model
    together = [n for n in lengths.together if not method.explicit or n <= lengths.explicit]
    seconds, flops, memory = [], [], []
    for n in together:
        torch.manual_seed(spec.seed)
        fusion = method.build(sizes)
        image, text = inputs(1, *tokens_of(n, method.words), sizes.dim, spec.seed)
        seconds.append(seconds_of(fusion, method, image, text, spec.training))
        memory.append(kept_bytes(fusion, image, text, method.explicit))
        flops.append(flops_of(fusion, *tokens_of(n, method.words), sizes.dim))
    whole, attention = np.array(seconds).T
    costs = {"exponent": attention, "exponent_whole": whole, "exponent_flops": flops, "exponent_bytes": memory}
    metrics = {name: Metric(exponent(together, cost), len(together)) for name, cost in costs.items()}
    arrays = {
        "tokens": np.array(together),
        "seconds": whole,
        "seconds_attention": attention,
        "flops": np.array(flops),
        "kept_bytes": np.array(memory),
    }
    details = {
        "title": method.title,
        "predicted": method.predicted,
        "fitted": [n for n in together if RANGE[0] <= n <= RANGE[1]] or together,
        "data_hash": f"random tokens, seed {spec.seed}",
    }
    return Outcome(metrics, arrays, details)


def step_of(fusion: nn.Module, image: Tensor, text: Tensor) -> Callable[[], float]:
    """A call that takes one training step and returns its seconds on the processor."""
    optimizer = torch.optim.AdamW(fusion.train().parameters(), fused=True)

    def step() -> float:
        began = time.process_time()
        fusion(image, text).fused.square().sum().backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        return time.process_time() - began

    return step


def steps(spec: Spec) -> Outcome:
    """Time the training steps whose ratios :data:`RATIOS` names."""
    lengths, sizes, clock = spec.data, spec.model, spec.training
    torch.manual_seed(spec.seed)
    tokens = partial(inputs, dim=sizes.dim, seed=spec.seed)
    sides = tokens(1, lengths.side, lengths.side)
    grid = tokens(clock.batch_size, lengths.grid, lengths.words)
    short, long = (tokens(1, *tokens_of(n, None)) for n in lengths.inputs)
    early = CURVES["early_concatenation"].build
    calls = {
        "early_concatenation": step_of(early(sizes), *sides),
        "bottleneck": step_of(_bottleneck(sizes), *sides),
        "perceiver_short": step_of(_perceiver(sizes), *short),
        "perceiver_long": step_of(_perceiver(sizes), *long),
        "perceiver_one_short": step_of(_perceiver(sizes, 1), *short),
        "perceiver_one_long": step_of(_perceiver(sizes, 1), *long),
        "all_tokens": step_of(DropToken(early(sizes), 1.0), *grid),
        "drop_token": step_of(DropToken(early(sizes), 0.5), *grid),
    }
    seconds = dict(zip(calls, turns(list(calls.values()), clock).tolist()))
    ratios = {name: seconds[a] / seconds[b] for name, (_, a, b) in RATIOS.items()}
    if not all(map(math.isfinite, ratios.values())):
        raise ValueError(f"the clock gave {seconds}; a step took no time at all")
    metrics = {name: Metric(value, clock.least) for name, value in ratios.items()}
    arrays = {f"seconds.{name}": np.array([value]) for name, value in seconds.items()}
    return Outcome(metrics, arrays, {"data_hash": f"random tokens, seed {spec.seed}"})


def run(spec: Spec) -> Outcome:
    """Measure one unit."""
    return steps(spec) if spec.unit == "steps" else curve(spec)
