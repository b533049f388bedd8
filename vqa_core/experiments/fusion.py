"""Experiment ``fusion``: what becomes of two frozen sets of tokens, fusion by fusion, seed by seed.

Image and text tokens come from ``scene_encoders`` and are the same in every run. Only the fusion differs, and,
for the proof about additive scores, the head.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import torch
from torch import nn

from vqa_core.data.text import Vocabulary
from vqa_core.encoders.tokens import CachedTokens
from vqa_core.evaluation.shuffled import shuffled_pictures
from vqa_core.experiments import Metric, Outcome, Spec
from vqa_core.experiments.scene_encoders import PROFILES as ENCODERS
from vqa_core.experiments.scene_encoders import MaskedCells, present_cells, scene_split, scene_tokens
from vqa_core.fusion.bilinear import BAN
from vqa_core.fusion.stacked import SAN
from vqa_core.fusion.stages import AttendFusion, EarlyFusion, HybridFusion, LateFusion, TokenFusion
from vqa_core.fusion.vector import (
    MFB,
    ConcatFusion,
    FiLM,
    GatedFusion,
    LowRankTensorFusion,
    ProductFusion,
    SumFusion,
)
from vqa_core.heads.classifier import LinearHead, MLPHead
from vqa_core.model import VQAModel
from vqa_core.training.feed import Feed
from vqa_core.training.loop import Training, fit, predict

REQUIRES = ("scene_encoders",)
HEADS = 8  # of AttendFusion
KEPT = "attend_concat"  # its records hold the weights, for ``ask`` and for maps of attention


@dataclass(frozen=True)
class Method:
    """One way to bring the two modalities together.

    Attributes
    ----------
    title
        As it stands in figures and tables.
    meets
        Where the modalities meet: ``pooled``, ``tokens``, ``attended``, ``sequence``, ``answers`` or ``nowhere``.
    image, text
        What the fusion reads: ``pooled`` or ``grid`` image tokens, the question ``vector`` or its ``slots``;
        ``blank`` hides a side.
    build
        ``build(image_dim, text_dim, out_dim, answers)`` → fusion module.
    head
        ``mlp``, ``linear``, or ``none`` for a fusion that gives answers itself.
    """

    title: str
    meets: str
    image: str
    text: str
    build: Callable[[int, int, int, int], nn.Module]
    head: str = "mlp"


def _vector(kind):
    return lambda i, t, d, a: kind(i, t, d)


def _tokens(kind, pool: str = "sum"):
    return lambda i, t, d, a: TokenFusion(kind(i, t, d), pool)


def _attend(kind):
    return lambda i, t, d, a: AttendFusion(kind(HEADS * i, t, d), HEADS)


def _late(rule: str):
    return lambda i, t, d, a: LateFusion(i, t, a, rule)


def _hybrid(i, t, d, a):
    return HybridFusion(i, t, d, joint=AttendFusion(ConcatFusion(HEADS * i, t, d), HEADS))


def _early(i, t, d, a):
    return EarlyFusion(i, t, d, image_length=None, text_length=None)  # cells carry their place, slots their kind


METHODS: dict[str, Method] = {
    # pool, then fuse
    "pool_sum": Method("sum", "pooled", "pooled", "vector", _vector(SumFusion)),
    "pool_concat": Method("concat", "pooled", "pooled", "vector", _vector(ConcatFusion)),
    "pool_film": Method("FiLM", "pooled", "pooled", "vector", _vector(FiLM)),
    "pool_gated": Method("gated", "pooled", "pooled", "vector", _vector(GatedFusion)),
    "pool_product": Method("product", "pooled", "pooled", "vector", _vector(ProductFusion)),
    "pool_mfb": Method("MFB", "pooled", "pooled", "vector", _vector(MFB)),
    "pool_low_rank": Method("low-rank tensor", "pooled", "pooled", "vector", _vector(LowRankTensorFusion)),
    # the same with a linear head: no interaction unless the fusion multiplies
    "linear_sum": Method("sum, linear head", "pooled", "pooled", "vector", _vector(SumFusion), "linear"),
    "linear_concat": Method("concat, linear head", "pooled", "pooled", "vector", _vector(ConcatFusion), "linear"),
    "linear_film": Method("FiLM, linear head", "pooled", "pooled", "vector", _vector(FiLM), "linear"),
    "linear_product": Method("product, linear head", "pooled", "pooled", "vector", _vector(ProductFusion), "linear"),
    # fuse at every token, then pool
    "token_concat": Method("concat at tokens", "tokens", "grid", "vector", _tokens(ConcatFusion)),
    "token_film": Method("FiLM at tokens", "tokens", "grid", "vector", _tokens(FiLM)),
    # attend, then fuse
    "attend_concat": Method("attend, concat", "attended", "grid", "vector", _attend(ConcatFusion)),
    "attend_film": Method("attend, FiLM", "attended", "grid", "vector", _attend(FiLM)),
    "san": Method("SAN", "attended", "grid", "vector", lambda i, t, d, a: SAN(i, t, d, hidden=d)),
    "ban": Method("BAN", "attended", "grid", "vector", lambda i, t, d, a: BAN(i, t, d, glimpses=2)),
    # stages
    "early": Method("early (joint transformer)", "sequence", "grid", "slots", _early),
    "late_mean": Method("late (mean)", "answers", "pooled", "vector", _late("mean"), "none"),
    "late_vote": Method("late (vote)", "answers", "pooled", "vector", _late("vote"), "none"),
    "late_variance": Method("late (variance)", "answers", "pooled", "vector", _late("variance"), "none"),
    "hybrid": Method("hybrid", "attended", "grid", "vector", _hybrid),
    # baselines: one side is hidden
    "question_only": Method("question only", "nowhere", "blank", "vector", _vector(ConcatFusion)),
    "picture_only": Method("picture only", "nowhere", "pooled", "blank", _vector(ConcatFusion)),
}


@dataclass(frozen=True)
class Model:
    """Which fusion, and its sizes."""

    fusion: str
    dim: int
    hidden: int
    head_depth: int = 2


@dataclass(frozen=True)
class Config:
    """Sizes of a profile.

    ``dim`` is the width of a fused vector, ``narrow`` that of the fusions that compute it at every image token. All
    methods have the same ``training``. ``without`` names methods that the profile has no time for.
    """

    seeds: int
    dim: int
    narrow: int
    hidden: int
    training: Training
    without: tuple[str, ...] = ()


NARROW = ("token_concat", "token_film", "san", "ban", "early")

PROFILES = {
    "smoke": Config(2, 32, 16, 32, Training(epochs=1, batch_size=256, learning_rate=8e-3, weight_decay=0.1)),
    "cpu": Config(
        5,
        128,
        32,
        128,
        Training(epochs=11, batch_size=256, learning_rate=8e-3, weight_decay=0.1),
        without=("early",),  # a joint transformer needs several times the steps, each several times as slow
    ),
    "gpu": Config(10, 512, 256, 512, Training(epochs=40, batch_size=512, learning_rate=3e-3, weight_decay=0.1)),
}


def specs(profile: str) -> list[Spec]:
    """One spec for each method and seed."""
    config, sizes = PROFILES[profile], ENCODERS[profile].data
    return [
        Spec(
            "fusion",
            unit,
            seed,
            profile,
            sizes,
            Model(unit, config.narrow if unit in NARROW else config.dim, config.hidden),
            config.training,
        )
        for seed in range(config.seeds)
        for unit in METHODS
        if unit not in config.without
    ]


@lru_cache(maxsize=4)
def answer_vocabulary(profile: str) -> Vocabulary:
    """Answers of the training questions."""
    return Vocabulary.of_answers(s.answer for s in scene_split(profile, "train"))


@lru_cache(maxsize=16)
def feed_of(profile: str, split: str, image: str, text: str, empty_cells: bool = False) -> Feed:
    """A split as a fusion reads it; ``image``, ``text`` as in :class:`Method`, a grid with or without empty cells."""
    tokens, found = scene_tokens(profile, split), scene_split(profile, split)
    if image == "grid":
        pictures = tokens.image if empty_cells else present_cells(tokens.image)  # (P, N, 19) or (P, M, 19)
    else:
        pictures = tokens.image.sum(1, keepdim=True)  # (P, 1, 19)
    words, mask = tokens.text, tokens.text_mask
    if text != "slots":
        words, mask = words.sum(1, keepdim=True), mask.any(1, keepdim=True)  # (U, 1, D), (U, 1)
    if image == "blank":
        pictures = torch.zeros_like(pictures)
    if text == "blank":
        words = torch.zeros_like(words)
    answers = answer_vocabulary(profile).ids(s.answer for s in found)
    return Feed(pictures, tokens.picture_index, words, mask, answers, tokens.question_index)


def build(model: Model, image_dim: int, text_dim: int, answers: int) -> VQAModel:
    """The model of a run: cached tokens, the method's fusion, its head."""
    method = METHODS[model.fusion]
    fusion = method.build(image_dim, text_dim, model.dim, answers)
    if method.head == "none":
        head: nn.Module = nn.Identity()
    elif method.head == "linear":
        head = LinearHead(fusion.out_dim, answers)
    else:
        head = MLPHead(fusion.out_dim, answers, model.hidden, depth=model.head_depth)
    image = MaskedCells(image_dim) if method.image == "grid" else CachedTokens(image_dim)
    return VQAModel(image, CachedTokens(text_dim), fusion, head)


def floating_point_operations(model: nn.Module, feed: Feed) -> int:
    """Multiplications and additions for the forward pass of one question (fusion and head)."""
    from torch.nn.attention import SDPBackend, sdpa_kernel
    from torch.utils.flop_counter import FlopCounterMode

    model.cpu().eval()
    # the counter knows fused attention on the CPU only from torch 2.12 on, written-out attention always
    with torch.no_grad(), sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        model(*feed.batch([0])[:3])
    return counter.get_total_flops()


def activation_bytes(model: nn.Module, feed: Feed, batch_size: int) -> int:
    """Bytes that the backward pass of one training step keeps from the forward pass, weights not counted."""
    weights = {p.data_ptr() for p in model.parameters()}
    kept: dict[int, int] = {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if tensor.data_ptr() not in weights:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    model.cpu().train()
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        model(*feed.batch(range(min(batch_size, len(feed))))[:3])
    return sum(kept.values())


def run(spec: Spec) -> Outcome:
    """Train one method with one seed; predictions on both test splits, and what it cost."""
    method, profile = METHODS[spec.model.fusion], spec.profile
    feeds = {
        split: feed_of(profile, split, method.image, method.text)
        for split in ("train", "val", "test", "test_composition")
    }
    train = feeds["train"]
    sizes = spec.model, train.pictures.shape[-1], train.words.shape[-1], len(answer_vocabulary(profile))
    flops = floating_point_operations(
        build(*sizes), feed_of(profile, "test", method.image, method.text, empty_cells=True)
    )  # most encoders have no empty cells
    torch.manual_seed(spec.seed)
    model = build(*sizes)
    memory = activation_bytes(model, train, spec.training.batch_size)
    start = time.perf_counter()
    fitted = fit(model, train, feeds["val"], spec.training, spec.seed, label=f"{spec.unit}, seed {spec.seed}")
    seconds = time.perf_counter() - start
    test = scene_split(profile, "test")
    arrays, metrics = {}, {}
    for split in ("test", "test_composition"):
        best = predict(model, feeds[split]).argmax(1)
        arrays[f"predicted_{split}"] = best.numpy().astype(np.int16)
        metrics[f"accuracy_{split}"] = Metric(float((best == feeds[split].answers).float().mean()), len(best))
    right = arrays["predicted_test"] == feeds["test"].answers.numpy()
    families = np.array([s.family for s in test])
    for family in test.families:
        metrics[f"accuracy_test.{family}"] = Metric(
            float(right[families == family].mean()), int((families == family).sum())
        )
    if spec.unit == KEPT:
        index = feeds["test"].picture_index.numpy()
        other = feeds["test"].with_pictures(index[shuffled_pictures(index, spec.seed)])
        arrays["predicted_shuffled"] = predict(model, other).argmax(1).numpy().astype(np.int16)
        arrays |= {f"model.{k}": v.cpu().numpy() for k, v in model.state_dict().items()}
    details = {
        "history": fitted.history,
        "best_epoch": fitted.best_epoch,
        "parameters": sum(p.numel() for p in model.parameters()),
        "flops": flops,
        "activation_bytes": memory,
        "seconds_per_step": seconds / (len(fitted.history) * -(-len(train) // spec.training.batch_size)),
        "answers": answer_vocabulary(profile).symbols,
        "data_hash": test.content_hash(),
    }
    return Outcome(metrics, arrays, details)
