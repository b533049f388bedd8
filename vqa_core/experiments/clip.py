"""Experiment ``clip``: small CLIPs trained from scratch on generated scenes and their captions.

A pair is one picture with one or two objects and one true caption of it; no picture of training shows a colour × shape
pair of :data:`~vqa_core.data.scenes.UNSEEN`. Each run is judged on held-out pictures by

retrieval
    R@k in a gallery of pictures with two objects, each with a caption that relates both. Captions are all different;
    where one is true of several pictures, all of them are right.
zero-shot
    pictures of one object, named among all 32 colour × shape pairs, so that neither colour nor shape alone is enough:
    those of pairs that training showed, and those of pairs that it did not.

Units
-----
``small``
    The longest training: what the chapter shows.
``batch.<size>.<rate>``, ``temperature.<τ>``, ``loss.<name>``
    Shorter trainings with equally many pairs seen, which differ in one thing from :func:`base_unit`.
``pairs.<encoder>.<number>``
    A vision transformer or a residual network of its size, with so many different pairs, and equally many pairs seen.
``self.right``, ``self.shuffled``
    The published loss that scores a fused vector with itself, with captions beside their pictures, and beside others.
``cache``
    Memory and gradients of one step, plain and with gradient caching.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cache
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from vqa_core.data import Vocabulary, encode_questions
from vqa_core.dual import TEMPERATURE, DualEncoder
from vqa_core.encoders.compact import CompactResNet, CompactViT, Standardised
from vqa_core.encoders.text import TransformerText
from vqa_core.evaluation.retrieval import hits_at_k, recall_at_k
from vqa_core.evaluation.zero_shot import classifier, predict
from vqa_core.experiments import Metric, Outcome, Spec
from vqa_core.experiments.clip_material import (
    ENSEMBLES,
    NAMES,
    Gallery,
    Pictures,
    Told,
    gallery,
    single,
    told,
    unseen_names,
)
from vqa_core.training.contrastive import cached_clip_gradients, clip_loss, self_similarity_loss
from vqa_core.training.feed import as_float
from vqa_core.training.loop import pick_device
from vqa_core.training.memory import PeakKept
from vqa_core.training.pairs import Pairs, Recipe, fit_pairs

REQUIRES = ()
HEADLINES = ("r1", "r10", "zero_shot_unseen", "zero_shot_seen")
SHOWN = 24  # pairs whose cosines are kept, before and after
POINTS = 40  # of a learning curve, at most


# -------------------------------------------------------------------------------------------------------------- specs


@dataclass(frozen=True)
class Data:
    """Pairs that a run trains on, the first of those that there are; ``shuffled`` puts captions beside others."""

    pictures: Pictures
    pairs: int
    shuffled: bool = False


@dataclass(frozen=True)
class Model:
    """A dual encoder: its image encoder (``resnet`` or ``vit``) and sizes; ``depth`` is that of the transformers."""

    image: str
    width: int
    depth: int
    ratio: float
    text_dim: int
    text_depth: int
    dim: int
    temperature: float = TEMPERATURE
    learned: bool = True

    def __post_init__(self) -> None:
        if self.image not in ("resnet", "vit"):
            raise ValueError(f"image is {self.image!r}, allowed are 'resnet' and 'vit'")


@dataclass(frozen=True)
class Cache:
    """Batches of which one step is measured, and pairs at a time when it is cached."""

    batches: tuple[int, ...]
    chunk: int


@dataclass(frozen=True)
class Config:
    """Sizes of a profile.

    ``small``, ``sweep`` and ``amount`` are the trainings of the units of these names, ``models`` the encoder of all
    units and the one that it is compared with; ``seeds`` are those of units on which a claim rests, ``fewer`` those of
    the others.
    """

    seeds: int
    fewer: int
    pictures: Pictures
    models: tuple[Model, Model]
    small: Recipe
    sweep: Recipe
    amount: Recipe
    rates: tuple[float, ...]
    batches: tuple[int, ...]
    amounts: tuple[int, ...]
    temperatures: tuple[float, ...]
    cache: Cache


PROFILES = {
    "smoke": Config(
        2,
        2,
        Pictures(256, 40, 40, 32, 32),
        (Model("vit", 16, 1, 2.0, 16, 1, 16), Model("resnet", 4, 0, 0.0, 16, 1, 16)),
        Recipe(256, 32, 3e-3),
        Recipe(128, 32, 3e-3),
        Recipe(128, 32, 3e-3),
        (1e-3, 3e-3),
        (16, 32),
        (64, 256),
        (0.02, 0.5),
        Cache((32, 64), 16),
    ),
    "cpu": Config(
        5,
        3,
        Pictures(20000, 500, 1000, 1000, 32),
        (Model("vit", 44, 2, 2.0, 48, 1, 64), Model("resnet", 12, 0, 0.0, 48, 1, 64)),
        Recipe(24000, 64, 3e-3),
        Recipe(7680, 128, 3e-3),
        Recipe(20000, 125, 3e-3),
        (3e-3, 1e-2),
        (32, 128, 512),
        (2000, 6000, 20000),
        (0.02, 0.07, 0.5),
        Cache((256, 1024, 4096), 256),
    ),
    "gpu": Config(
        10,
        5,
        Pictures(200000, 2000, 1000, 4000, 64),
        (Model("vit", 152, 4, 4.0, 256, 4, 256), Model("resnet", 64, 0, 0.0, 256, 4, 256)),
        Recipe(4000000, 1024, 1e-3),
        Recipe(1000000, 512, 1e-3),
        Recipe(1000000, 500, 1e-3),
        (3e-4, 1e-3, 3e-3),
        (32, 128, 512, 2048),
        (2000, 20000, 200000),
        (0.02, 0.07, 0.2, 0.5),
        Cache((1024, 4096, 16384), 1024),
    ),
}
LOWEST, HIGHEST = 0.02, 0.5  # temperatures that C1a compares; every profile has them


def base_unit(profile: str) -> str:
    """The unit from which all short trainings differ in one thing: a middle batch at the recipe's rate."""
    recipe = PROFILES[profile].sweep
    return batch_unit(recipe.batch_size, recipe.learning_rate)


def batch_unit(size: int, rate: float) -> str:
    """Name of a unit.

    >>> batch_unit(512, 3e-3)
    'batch.512.0.003'
    """
    return f"batch.{size}.{rate:g}"


def amount_unit(image: str, pairs: int) -> str:
    """Name of a unit.

    >>> amount_unit("vit", 2000)
    'pairs.vit.2000'
    """
    return f"pairs.{image}.{pairs}"


def specs(profile: str) -> list[Spec]:
    """One spec for each unit and seed; the longest training comes first."""
    c = PROFILES[profile]
    model, whole = c.models[0], Data(c.pictures, c.pictures.train)
    units: dict[str, tuple[int, Data, Model, Recipe | Cache]] = {"small": (c.seeds, whole, model, c.small)}
    for encoder in c.models:
        for pairs in c.amounts:
            seeds = c.seeds if pairs in compared_amounts(profile) else c.fewer
            units[amount_unit(encoder.image, pairs)] = seeds, replace(whole, pairs=pairs), encoder, c.amount
    for size in c.batches:
        for rate in c.rates:
            unit, recipe = batch_unit(size, rate), replace(c.sweep, batch_size=size, learning_rate=rate)
            seeds = c.seeds if size in compared_batches(profile) or unit == base_unit(profile) else c.fewer
            units[unit] = seeds, whole, model, recipe
    for temperature in c.temperatures:
        fixed = replace(model, temperature=temperature, learned=False)
        units[f"temperature.{temperature:g}"] = c.seeds, whole, fixed, c.sweep
    for loss in ("nt_xent", "triplet", "siglip"):
        start = replace(model, temperature=0.1) if loss == "siglip" else model  # its paper starts from a scale of 10
        units[f"loss.{loss}"] = c.fewer, whole, start, replace(c.sweep, loss=loss)
    short = replace(c.sweep, pairs_seen=c.sweep.pairs_seen // 2)
    for name in ("right", "shuffled"):
        units[f"self.{name}"] = c.fewer, replace(whole, shuffled=name == "shuffled"), model, short
    units["cache"] = 1, whole, model, c.cache
    return [
        Spec("clip", unit, seed, profile, data, encoders, training)
        for unit, (seeds, data, encoders, training) in units.items()
        for seed in range(seeds)
    ]


def compared_batches(profile: str) -> tuple[int, int]:
    """The two batch sizes that C6 compares: 32 and 512, where a profile has them."""
    sizes = PROFILES[profile].batches
    return sizes[0], max(size for size in sizes if size <= 512)


def compared_amounts(profile: str) -> tuple[int, int]:
    """The two numbers of pairs that C4 compares: 2,000 and 20,000, where a profile has them."""
    amounts = PROFILES[profile].amounts
    return amounts[0], max(pairs for pairs in amounts if pairs <= 20000)


# ---------------------------------------------------------------------------------------------------------- the model


class SelfSimilar(DualEncoder):
    """A dual encoder with the published addition: picture and caption of a pair are fused, and scored with themselves.

    Parameters
    ----------
    dual
        Whose parts it takes.
    """

    def __init__(self, dual: DualEncoder) -> None:
        super().__init__(dual.image_encoder, dual.text_encoder, dual.dim)
        self.fuse = nn.Sequential(nn.Linear(2 * self.dim, self.dim), nn.GELU(), nn.Linear(self.dim, self.dim))

    def loss(self, image: Tensor, text: Tensor) -> Tensor:
        """Its loss of a batch's embeddings (B, D) each."""
        return self_similarity_loss(self.fuse(torch.cat([image, text], dim=1)), self.scale())

    @torch.inference_mode()
    def accuracy(self, image: Tensor, text: Tensor) -> float:
        """Share of rows whose largest score is on the diagonal: what the published code would call accuracy."""
        combined = nn.functional.normalize(self.fuse(torch.cat([image, text], dim=1)), dim=-1)  # (B, D)
        return float(((combined @ combined.T).argmax(1) == torch.arange(len(combined))).float().mean())


def image_encoder(model: Model, size: int) -> nn.Module:
    """The image encoder of a run, for pictures of ``size`` pixels, with random weights."""
    if model.image == "resnet":
        return CompactResNet(size, model.width)
    return CompactViT(size, 8, model.width, model.depth, 4, model.ratio)


def build(model: Model, known: Told, bias: float | None = None) -> DualEncoder:
    """The model of a run, with random weights."""
    image = Standardised(image_encoder(model, known.pairs.pictures.shape[1]), known.mean, known.deviation)
    longest = known.pairs.words.shape[1] + 4  # some room for prompts
    text = TransformerText(len(known.words), model.text_dim, model.text_depth, 4, max_words=longest)
    return DualEncoder(image, text, model.dim, model.temperature, model.learned, bias)


@torch.inference_mode()
def embed_pictures(model: DualEncoder, pictures: Tensor) -> Tensor:
    """Unit vectors (n, D) of pictures uint8 (n, H, W, 3), on the CPU."""
    device = model.log_scale.device
    return torch.cat([model.encode_image(as_float(part).to(device)).cpu() for part in pictures.split(250)])


@torch.inference_mode()
def embed_sentences(model: DualEncoder, words: Vocabulary, sentences: Sequence[str]) -> Tensor:
    """Unit vectors (n, D) of sentences, on the CPU."""
    ids, mask = (torch.from_numpy(a).to(model.log_scale.device) for a in encode_questions(sentences, words))
    return torch.cat([model.encode_text(i, m).cpu() for i, m in zip(ids.split(250), mask.split(250))])


# --------------------------------------------------------------------------------------------------------- evaluation


def median_rank(scores: np.ndarray, right: np.ndarray) -> float:
    """Median over queries of the rank of the best right candidate, from 1."""
    best = np.where(right, scores, -np.inf).max(1, keepdims=True)  # (Q, 1)
    return float(np.median(1 + (~right & (scores > best)).sum(1)))


def in_batch_entropy(cosines: np.ndarray, scale: float, batch: int) -> np.ndarray:
    """Entropy of each picture's softmax over the captions of its batch, as a share of the largest possible, (n,).

    The gallery is cut into batches of this size; what is left over is left out.
    """
    n = min(batch, len(cosines))
    found = []
    for start in range(0, len(cosines) - n + 1, n):
        logits = torch.from_numpy(scale * cosines[start : start + n, start : start + n])
        log_p = logits.double().log_softmax(1)
        found.append(-(log_p.exp() * log_p).sum(1) / np.log(n))
    return torch.cat(found).numpy()


class Retrieved(NamedTuple):
    """Embeddings of a gallery and how often the right one is first: (G, D) twice, cosines (G, G), hits (2, G)."""

    image: Tensor
    text: Tensor
    cosines: np.ndarray
    hits: np.ndarray


def retrieve(model: DualEncoder, words: Vocabulary, found: Gallery) -> Retrieved:
    """All pictures of a gallery against all of its captions; hits are picture → caption, caption → picture."""
    image, text = embed_pictures(model, found.pictures), embed_sentences(model, words, found.captions)
    cosines = (image @ text.T).double().numpy()  # (G, G)
    hits = np.stack([hits_at_k(cosines, 1, found.right), hits_at_k(cosines.T, 1, found.right.T)])  # (2, G)
    return Retrieved(image, text, cosines, hits)


def classifiers(model: DualEncoder, words: Vocabulary) -> dict[str, Tensor]:
    """A classifier of all :data:`NAMES`, (32, D), for each of :data:`ENSEMBLES`; a sentence is embedded once."""

    @cache
    def encode(sentences: tuple[str, ...]) -> Tensor:
        return embed_sentences(model, words, sentences)

    return {name: classifier(prompts, NAMES, lambda found: encode(tuple(found))) for name, prompts in ENSEMBLES.items()}


def name_pictures(image: Tensor, weights: dict[str, Tensor]) -> np.ndarray:
    """Predicted position in :data:`NAMES` of embedded pictures (Q, D) by each classifier, int16 (E, Q)."""
    return torch.stack([predict(image, w) for w in weights.values()]).numpy().astype(np.int16)  # (E, Q)


def measure(model: DualEncoder, spec: Spec, known: Told) -> tuple[dict[str, Metric], dict[str, np.ndarray], Retrieved]:
    """Everything that is measured of a trained model, on held-out pictures; the gallery's embeddings besides."""
    test, validation = gallery(spec.data.pictures, "test"), gallery(spec.data.pictures, "val")
    found = retrieve(model, known.words, test)
    of_validation = retrieve(model, known.words, validation).hits
    arrays = {
        "hits": found.hits.astype(np.float32),
        "group": test.group.astype(np.int32),
        "entropy": in_batch_entropy(found.cosines, model.scale().item(), spec.training.batch_size).astype(np.float32),
    }
    both = (found.cosines, test.right), (found.cosines.T, test.right.T)
    metrics = {f"r{k}": np.mean([recall_at_k(s, k, right) for s, right in both]) for k in (1, 5, 10)}
    metrics |= {"median_rank": np.mean([median_rank(*side) for side in both])}
    metrics = {name: Metric(float(value), 2 * len(test.captions)) for name, value in metrics.items()}
    metrics["r1_val"] = Metric(float(of_validation.mean()), of_validation.size)
    weights = classifiers(model, known.words)
    for kind in ("unseen", "seen"):
        pictures = single(spec.data.pictures, kind)
        image = embed_pictures(model, pictures.pictures)  # (Q, D)
        named = name_pictures(image, weights)  # (E, Q)
        arrays |= {f"named_{kind}": named, f"label_{kind}": pictures.label.astype(np.int16)}
        arrays[f"group_{kind}"] = pictures.group.astype(np.int32)
        right = named[list(ENSEMBLES).index("seven")] == pictures.label
        metrics[f"zero_shot_{kind}"] = Metric(float(right.mean()), len(right))
        if kind == "unseen":  # when no seen pair may be named, colour alone is enough
            allowed = np.flatnonzero(unseen_names())
            arrays["named_among_unseen"] = allowed[predict(image, weights["seven"][allowed]).numpy()].astype(np.int16)
    return metrics, arrays, found


# ----------------------------------------------------------------------------------------------------------- the runs


def training_pairs(data: Data, known: Told, seed: int) -> Pairs:
    """The pairs that a run trains on; shuffled captions stand beside pictures of others."""
    pairs = known.pairs.first(data.pairs)
    if not data.shuffled:
        return pairs
    order = torch.from_numpy(np.random.default_rng([seed, 7]).permutation(data.pairs))
    return Pairs(pairs.pictures, pairs.words[order], pairs.mask[order])


def thinned(history: list[dict[str, float]]) -> list[dict[str, float]]:
    """At most :data:`POINTS` of a history, each the mean of as many steps."""
    parts = np.array_split(np.arange(len(history)), min(POINTS, len(history)))
    return [{k: float(np.mean([history[i][k] for i in part])) for k in history[0]} for part in parts]


def run(spec: Spec) -> Outcome:
    """Train and measure one model, or measure what gradient caching saves."""
    if spec.unit == "cache":
        return run_cache(spec)
    known, device = told(spec.data.pictures), pick_device()
    torch.manual_seed(spec.seed)
    model = build(spec.model, known, bias=-10.0 if spec.training.loss == "siglip" else None)
    alone = spec.unit.startswith("self.")
    model = SelfSimilar(model) if alone else model
    shown, arrays = spec.unit == "small" and spec.seed == 0, {}
    if shown or alone:
        before = retrieve(model, known.words, gallery(spec.data.pictures, "test"))
    if alone:
        arrays["accuracy_before"] = np.array([model.accuracy(before.image, before.text)])
    start = time.perf_counter()
    pairs = training_pairs(spec.data, known, spec.seed)
    loss = (lambda m, image, text: m.loss(image, text)) if alone else None
    history = fit_pairs(model.to(device), pairs, spec.training, spec.seed, loss=loss)
    seconds = time.perf_counter() - start
    metrics, found, after = measure(model.cpu(), spec, known)
    arrays |= found
    if alone:
        arrays["accuracy_after"] = np.array([model.accuracy(after.image, after.text)])
    if shown:
        arrays |= {"cosines_before": before.cosines[:SHOWN, :SHOWN], "cosines_after": after.cosines[:SHOWN, :SHOWN]}
        arrays |= {"image": after.image.numpy(), "text": after.text.numpy()}
        arrays |= {f"model.{name}": value.numpy() for name, value in model.state_dict().items()}
    details = {
        "history": thinned(history),
        "temperature": 1 / model.scale().item(),
        "seconds_per_step": seconds / len(history),
        "parameters": sum(p.numel() for p in model.parameters()),
        "image_parameters": sum(p.numel() for p in image_encoder(spec.model, spec.data.pictures.size).parameters()),
        "steps": len(history),
        "words": len(known.words),
        "data_hash": known.data_hash,
    }
    return Outcome(metrics, arrays, details)


def run_cache(spec: Spec) -> Outcome:
    """One step with each batch, plain and cached: bytes kept for the backward pass, seconds, and the gradients.

    Arrays: ``batch`` (K,), ``bytes`` and ``seconds`` (2, K) with plain first, ``difference`` (K,), the largest
    difference of a gradient as a share of the largest gradient.
    """
    known = told(spec.data.pictures)
    torch.manual_seed(spec.seed)
    plain = build(spec.model, known)
    cached = build(spec.model, known)
    cached.load_state_dict(plain.state_dict())
    kept, seconds, difference = [], [], []
    for size in spec.training.batches:
        batch = known.pairs.batch(torch.arange(size))

        def whole(batch=batch):
            image, text = plain.encode_image(batch[0]), plain.encode_text(*batch[1:])
            clip_loss(image, text, plain.scale()).backward()

        def parts(batch=batch):
            cached_clip_gradients(cached, *batch, spec.training.chunk)

        for step, model in ((whole, plain), (parts, cached)):
            model.zero_grad()
            start = time.perf_counter()
            step()
            seconds.append(time.perf_counter() - start)
        pairs = [(p.grad, q.grad) for p, q in zip(plain.parameters(), cached.parameters(), strict=True)]
        largest = max(p.abs().max() for p, _ in pairs)
        difference.append(float(max((p - q).abs().max() for p, q in pairs) / largest))
        kept += [PeakKept(plain).of(whole), PeakKept(cached).of(parts)]
    arrays = {
        "batch": np.array(spec.training.batches),
        "bytes": np.array(kept, dtype=np.int64).reshape(-1, 2).T,  # (2, K)
        "seconds": np.array(seconds).reshape(-1, 2).T,  # (2, K)
        "difference": np.array(difference),
    }
    arrays = {name: np.ascontiguousarray(value) for name, value in arrays.items()}
    metrics = {"largest_difference": Metric(max(difference), len(difference))}
    return Outcome(metrics, arrays, {"chunk": spec.training.chunk, "data_hash": known.data_hash})
