"""Experiment ``counterfactual``: attention that is trained to matter (CAL), and the same network without that training.

Volumes of phantoms with 25 covariates: is the mass of low or of high grade? A small 3-D CNN, counterfactual attention
behind it, the vector beside what is pooled. Units differ in the loss (with its effect term and without), in what
replaces the maps in training, in the pooling, and in what is read. A second part puts the same module behind a 2-D
encoder, on scenes: "what colour is the square?".

**What is compared.** "With" and "without" have the same network, the same first weights, the same batches and the same
schedule. The loss with CAL is CE(raw)/3 + CE(effect), as in the note; without, it is CE(raw) · 4/3, so that the weights
have the same sum. (AdamW divides a gradient by its own size: but for the clipping, a factor on the loss does nothing.)
Answers are the raw logits in both. ``zero`` is a control: its effect term asks that the picture alone gives the answer,
so it takes the vector away as CAL does, and says nothing about where to look. ``long.without`` has twice the steps:
what it reaches tells whether CAL does more than learn faster.

Volumes are cut to a fixed field around the lungs; those whose mass reaches out of it are left out, in every split.
"""

from __future__ import annotations

import hashlib
import random
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from vqa_core.data.phantoms.volumes import COVARIATES, GRADES, volumes
from vqa_core.data.scenes import ATTRIBUTES, COLOURS, SHAPES
from vqa_core.data.scenes.render import draw, visible
from vqa_core.data.scenes.world import build_scene
from vqa_core.encoders.cnn import GridCNN
from vqa_core.encoders.volume import VolumeCNN
from vqa_core.experiments import Metric, Outcome, Spec
from vqa_core.explain.cells import cell_scores, shares_of
from vqa_core.explain.counterfactual import CounterfactualModel, attention_map, counterfactual_loss
from vqa_core.explain.scores import SCORES, centre_bias, random_maps
from vqa_core.training.feed import Feed
from vqa_core.training.loop import Training, answer_loss, autocast, fit

REQUIRES = ()
SPLITS = {"train": 0, "val": 1, "test": 2}
SHAPE = "square"  # "what colour is the square?"
KEPT = ("with", "without", "scene.with", "scene.without")  # units whose first seed keeps its maps of the test split
BASELINES = "baselines"


@dataclass(frozen=True)
class Volumes:
    """Phantoms in 3-D, per split; see :func:`vqa_core.data.phantoms.volumes.volumes`.

    ``side`` is that of the whole volume in voxels, a multiple of 24, of which :func:`field` is cut out.
    """

    train: int
    val: int
    test: int
    side: int = 24
    region: str = "chest"
    modality: str = "t2 mri"
    effect: float = 0.5
    severity: float = 2.0


@dataclass(frozen=True)
class Scenes:
    """Scenes with one square among other shapes, per split."""

    train: int
    val: int
    test: int
    side: int = 56
    others: int = 3


@dataclass(frozen=True)
class Model:
    """Sizes, and what distinguishes the units; see :class:`~vqa_core.explain.counterfactual.CounterfactualAttention`.

    ``reads`` is ``both``, ``picture`` or ``vector``.
    """

    maps: int = 8
    dim: int = 16
    width: int = 8
    kind: str = "random"
    pool: str = "average"
    reads: str = "both"


@dataclass(frozen=True)
class Recipe:
    """Weights of the two cross-entropies, and the schedule."""

    raw_weight: float
    effect_weight: float
    training: Training


@dataclass(frozen=True)
class Unit:
    """What a unit changes.

    Attributes
    ----------
    title
        As it stands in figures and tables.
    counterfactual
        Whether the loss has its effect term.
    model
        Fields of :class:`Model`, as pairs.
    scene
        Whether it is of the 2-D part.
    longer
        How many times as many epochs it gets.
    """

    title: str
    counterfactual: bool
    model: tuple[tuple[str, str], ...] = ()
    scene: bool = False
    longer: int = 1


UNITS: dict[str, Unit] = {
    "without": Unit("without CAL", False),
    "long.without": Unit("without CAL, twice the steps", False, longer=2),
    "with": Unit("with CAL (random)", True),
    "uniform": Unit("CAL, uniform", True, (("kind", "uniform"),)),
    "shuffled": Unit("CAL, shuffled", True, (("kind", "shuffled"),)),
    "reversed": Unit("CAL, reversed", True, (("kind", "reversed"),)),
    "zero": Unit("control: picture alone", True, (("kind", "zero"),)),
    "max": Unit("CAL, max pooling", True, (("pool", "max"),)),
    "picture": Unit("picture only", False, (("reads", "picture"),)),
    "vector": Unit("vector only", False, (("reads", "vector"),)),
    "scene.without": Unit("scenes, without CAL", False, scene=True),
    "scene.with": Unit("scenes, with CAL (random)", True, scene=True),
}
#: Whether the loss has its effect term → weights of the raw and of the effect's cross-entropy; both sum to 4/3.
WEIGHTS = {True: (1 / 3, 1.0), False: (4 / 3, 0.0)}


@dataclass(frozen=True)
class Config:
    """Sizes of a profile; units change fields of ``volume_model`` and ``scene_model``."""

    seeds: int
    volumes: Volumes
    scenes: Scenes
    volume_model: Model
    scene_model: Model
    volume_training: Training
    scene_training: Training


PROFILES = {
    "smoke": Config(
        2,
        Volumes(48, 24, 40),
        Scenes(48, 24, 40),
        Model(maps=4, dim=8, width=4),
        Model(maps=4, dim=8, width=4),
        Training(epochs=1, batch_size=16, learning_rate=1e-2),
        Training(epochs=1, batch_size=16, learning_rate=1e-2),
    ),
    "cpu": Config(
        5,
        Volumes(500, 200, 1000),
        Scenes(1200, 200, 1000),
        Model(),
        Model(dim=24),
        Training(epochs=8, batch_size=16, learning_rate=3e-3, warmup=0.1),
        Training(epochs=8, batch_size=16, learning_rate=6e-3, warmup=0.1),
    ),
    "gpu": Config(
        20,
        Volumes(2000, 500, 4000, side=48),
        Scenes(8000, 1000, 4000, side=64),
        Model(maps=32, dim=64, width=32),
        Model(maps=32, dim=128, width=32),
        Training(epochs=20, batch_size=64, learning_rate=3e-3, warmup=0.1),
        Training(epochs=15, batch_size=128, learning_rate=5e-3, warmup=0.1),
    ),
}


def specs(profile: str) -> list[Spec]:
    """The baselines of both parts, then one spec for each unit and seed."""
    config = PROFILES[profile]
    baselines = [
        Spec("counterfactual", f"{part}.{BASELINES}", 0, profile, data)
        for part, data in (("volume", config.volumes), ("scene", config.scenes))
    ]
    return baselines + [spec_of(profile, unit, seed) for seed in range(config.seeds) for unit in UNITS]


def spec_of(profile: str, unit: str, seed: int) -> Spec:
    """The spec of a unit and a seed."""
    config, found = PROFILES[profile], UNITS[unit]
    data, model, training = (
        (config.scenes, config.scene_model, config.scene_training)
        if found.scene
        else (config.volumes, config.volume_model, config.volume_training)
    )
    model, training = replace(model, **dict(found.model)), replace(training, epochs=found.longer * training.epochs)
    return Spec("counterfactual", unit, seed, profile, data, model, Recipe(*WEIGHTS[found.counterfactual], training))


# ------------------------------------------------------------------------------------------------------------- the data


class Material(NamedTuple):
    """A split: what models read, and which pixels the answer depends on.

    Attributes
    ----------
    feed
        Volumes float (n, D, H, W) in [−1, 1] or pictures uint8 (n, H, W, 3), and vectors (n, 1, 25) or (n, 1, 0).
    regions
        bool (n, *size).
    answers
        Names of the labels.
    left_out
        Share of the volumes whose mass reached out of the field.
    """

    feed: Feed
    regions: np.ndarray
    answers: tuple[str, ...]
    left_out: float


def field(side: int) -> tuple[slice, slice, slice]:
    """The part of a volume that holds the lungs: depth, height, width.

    >>> [(s.start, s.stop) for s in field(24)]
    [(4, 20), (4, 20), (2, 22)]
    """
    if side % 24:
        raise ValueError(f"side is {side}; give a multiple of 24")
    k = side // 24
    return slice(4 * k, 20 * k), slice(4 * k, 20 * k), slice(2 * k, 22 * k)


@lru_cache(maxsize=6)
def volume_split(data: Volumes, split: str) -> Material:
    """A split of the volumes, cut to :func:`field`.

    Raises
    ------
    ValueError
        When more than about a twentieth of the masses reach out of the field.
    """
    n = getattr(data, split)
    more = n + n // 20 + 4
    drawn = volumes(
        more,
        900 + SPLITS[split],
        data.side,
        region=data.region,
        modality=data.modality,
        effect=data.effect,
        severity=data.severity,
    )
    cut = (slice(None), *field(data.side))
    whole = drawn.masks[cut].sum((1, 2, 3)) == drawn.masks.sum((1, 2, 3))  # (more,)
    rows = np.flatnonzero(whole)[:n]
    if len(rows) < n:
        raise ValueError(f"{(~whole).mean():.0%} of the masses of {data.region} reach out of the field; widen field()")
    seen = torch.from_numpy(drawn.volumes[cut][rows]).float().div_(127.5).sub_(1)  # (n, D, H, W)
    vectors, there = drawn.covariates[rows][:, None], np.ones((n, 1), dtype=bool)  # (n, 1, 25), (n, 1)
    feed = Feed(seen, np.arange(n), vectors, there, drawn.labels[rows])
    return Material(feed, drawn.masks[cut][rows], GRADES, float((~whole).mean()))


@lru_cache(maxsize=6)
def scene_split(data: Scenes, split: str) -> Material:
    """Pictures with one square and ``others`` other shapes; the label is the square's colour, the region its pixels."""
    n = getattr(data, split)
    chance = random.Random(f"scenes of {split} with one {SHAPE}")
    pixels = np.random.default_rng([910, SPLITS[split]])
    remaining = [k for k, name in enumerate(SHAPES) if name != SHAPE]
    pictures = np.empty((n, data.side, data.side, 3), dtype=np.uint8)
    regions, labels = np.empty(pictures.shape[:3], dtype=bool), np.empty(n, dtype=np.int64)
    for i in range(n):
        kinds = [[chance.randrange(len(values)) for values in ATTRIBUTES.values()] for _ in range(1 + data.others)]
        for k, kind in enumerate(kinds):
            kind[3] = SHAPES.index(SHAPE) if k == 0 else chance.choice(remaining)
        numbers = np.ravel_multi_index(np.array(kinds).T, [len(values) for values in ATTRIBUTES.values()])
        scene = build_scene(numbers.tolist(), 0.0, chance)
        (at,) = scene.matching([SHAPE])
        pictures[i], labels[i] = draw(scene, data.side, 0.02, 0.2, pixels), COLOURS.index(scene.objects[at].colour)
        regions[i] = visible(scene, data.side) == at
    feed = Feed(pictures, np.arange(n), np.zeros((n, 1, 0), np.float32), np.ones((n, 1), dtype=bool), labels)
    return Material(feed, regions, COLOURS, 0.0)


def material_of(data: Volumes | Scenes, split: str) -> Material:
    """A split of either part."""
    return scene_split(data, split) if isinstance(data, Scenes) else volume_split(data, split)


# ----------------------------------------------------------------------------------------------------------- the models


class Logits(NamedTuple):
    """What :class:`VectorModel` returns: (B, classes)."""

    logits: Tensor


class VectorModel(nn.Module):
    """A linear classifier of the vector, which sees no picture.

    The two grades' vectors are normal with equal spread, so that the best classifier of all is linear.
    """

    def __init__(self, size: int, classes: int) -> None:
        super().__init__()
        self.classifier = nn.Linear(size, classes)

    def forward(self, pictures: Tensor, words: Tensor, word_mask: Tensor | None = None) -> Logits:
        """Vectors (B, 1, size) → logits."""
        return Logits(self.classifier(words[:, 0]))


def build(model: Model, data: Volumes | Scenes, seed: int) -> nn.Module:
    """The network of a unit, with the first weights of a seed: the same for every unit with the same layers."""
    torch.manual_seed(seed)
    options = {"maps": model.maps, "training_kind": model.kind, "pool": model.pool}
    if isinstance(data, Scenes):
        return CounterfactualModel(GridCNN(model.dim, data.side, model.width), len(COLOURS), **options)
    if model.reads == "vector":
        return VectorModel(COVARIATES, len(GRADES))
    size = tuple(s.stop - s.start for s in field(data.side))
    extra = COVARIATES if model.reads == "both" else 0
    return CounterfactualModel(VolumeCNN(model.dim, size, model.width), len(GRADES), extra=extra, **options)


class Answered(NamedTuple):
    """What :func:`answer` returns: logits (n, classes) and shares of attention (n, *grid); None without a picture."""

    logits: Tensor
    maps: np.ndarray | None


@torch.inference_mode()
def answer(model: nn.Module, feed: Feed, batch_size: int = 256) -> Answered:
    """Logits and the very maps of the forward pass that gave them."""
    where = next(model.parameters()).device
    model.eval()
    logits, maps = [], []
    for batch in feed.batches(batch_size):
        with autocast(where):
            output = model(*batch.to(where)[:3])
        logits.append(output.logits.float().cpu())
        if not isinstance(output, Logits):
            maps.append(attention_map(output.maps.float()).cpu().numpy())
    return Answered(torch.cat(logits), np.concatenate(maps) if maps else None)


def run(spec: Spec) -> Outcome:
    """Train one unit with one seed and score its answers and maps on the test split; or score the baselines."""
    if spec.unit.endswith(BASELINES):
        return _baselines(spec)
    parts = {split: material_of(spec.data, split) for split in SPLITS}
    recipe = spec.training

    def loss(model: nn.Module, batch) -> Tensor:
        output = model(*batch[:3])
        if isinstance(output, Logits):
            return answer_loss(output.logits, batch.answers)
        return counterfactual_loss(output, batch.answers, recipe.raw_weight, recipe.effect_weight)

    model = build(spec.model, spec.data, spec.seed)
    label = f"{spec.unit}, seed {spec.seed}"
    fitted = fit(model, parts["train"].feed, parts["val"].feed, recipe.training, spec.seed, loss=loss, label=label)
    test = parts["test"]
    found = answer(model, test.feed)
    right = (found.logits.argmax(1) == test.feed.answers).numpy()
    arrays = {
        "probability": found.logits.softmax(1).numpy().astype(np.float32),  # (n, classes)
        "label": test.feed.answers.numpy().astype(np.int16),
    }
    metrics = {"accuracy_val": Metric(fitted.best_score, len(parts["val"].feed))}
    metrics["accuracy_test"] = Metric(float(right.mean()), len(right))
    if found.maps is not None:
        for name, values in cell_scores(found.maps, shares_of(test.regions, found.maps.shape[1:])).items():
            arrays[f"score.{name}"] = values.astype(np.float32)
            metrics[name] = Metric(float(values.mean()), len(values))
        if spec.unit in KEPT and spec.seed == 0:
            arrays["maps"] = found.maps.astype(np.float16)
    details = {
        "history": fitted.history,
        "best_epoch": fitted.best_epoch,
        "parameters": sum(p.numel() for p in model.parameters()),
        "left_out": test.left_out,
        "data_hash": _hash(test),
    }
    return Outcome(metrics, arrays, details)


def _baselines(spec: Spec) -> Outcome:
    """Maps that know nothing of the question: usual places, chance, and the picture's own brightness or contrast.

    Each is brought to the grid of the models, so that no map has finer cells than another.
    """
    train, test = (material_of(spec.data, split) for split in ("train", "test"))
    by = 8 if isinstance(spec.data, Scenes) else 2  # sides of a cell, in pixels or voxels
    grid = tuple(s // by for s in test.regions.shape[1:])
    shares = shares_of(test.regions, grid)
    pictures = test.feed.pictures.float().numpy()
    if isinstance(spec.data, Scenes):
        grey = pictures.mean(-1)
        salience = np.abs(grey - np.median(grey, axis=(1, 2), keepdims=True))  # how far from the ground
    else:
        salience = pictures + 1
    maps = {
        "centre": np.broadcast_to(shares_of(centre_bias(train.regions)[None], grid), shares.shape),
        "chance": random_maps(shares.shape, spec.seed),
        "salience": shares_of(salience, grid),
    }
    scored = {name: cell_scores(m, shares) for name, m in maps.items()}
    arrays = {f"{m}.{s}": scored[m][s].astype(np.float32) for m in maps for s in SCORES}
    metrics = {name: Metric(float(values.mean()), len(values)) for name, values in arrays.items()}
    return Outcome(metrics, arrays, {"area": float(test.regions.mean()), "data_hash": _hash(test)})


def _hash(material: Material) -> str:
    """SHA-256 over what is read, regions and labels."""
    digest = hashlib.sha256()
    for array in (material.feed.pictures, material.feed.words, material.feed.answers):
        digest.update(np.ascontiguousarray(array.numpy()))
    digest.update(np.ascontiguousarray(material.regions))
    return digest.hexdigest()
