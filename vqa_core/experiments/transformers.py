"""Experiment ``transformers``: what multimodal transformers make of the same two sets of tokens, and how cheaply.

Image and text tokens are those of ``scene_encoders``; only the fusion differs. All seeds of a unit are trained in one
vectorised pass, so a record holds them all. The unit :data:`TEACHER` is also what the cheaper models are made of: a
smaller student learns from it (and, to compare, without it), and its heads and weights are pruned.

Training is short, a few passes over the questions of :attr:`Data.families`: what is said about accuracy holds for this
length.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache

import numpy as np
import torch
from torch import Tensor, nn

from vqa_core.data import scenes
from vqa_core.data.scenes import SceneSet
from vqa_core.data.text import Vocabulary
from vqa_core.encoders.tokens import CachedTokens
from vqa_core.evaluation.shuffled import shuffled_pictures
from vqa_core.experiments import Metric, Outcome, Spec
from vqa_core.experiments.fusion import activation_bytes, floating_point_operations
from vqa_core.experiments.scene_encoders import PROFILES as ENCODERS
from vqa_core.experiments.scene_encoders import MaskedCells, SceneSizes, present_cells, scene_tokens
from vqa_core.fusion.bottleneck import BottleneckFusion
from vqa_core.fusion.efficiency import DropToken, nonzero, prune_heads, prune_weights, share_layers
from vqa_core.fusion.perceiver import Perceiver
from vqa_core.fusion.transformer import LAYOUTS
from vqa_core.heads.classifier import LinearHead
from vqa_core.model import VQAModel
from vqa_core.training.distillation import distillation_loss
from vqa_core.training.feed import Feed
from vqa_core.training.loop import Training
from vqa_core.training.together import fit_together, predict_together

REQUIRES = ("scene_encoders",)
TEACHER = "early_concatenation"
HEAD_SHARES = (0.25, 0.5, 0.75)  # of the heads of each attention that go
WEIGHT_SHARES = (0.25, 0.5, 0.75, 0.9)  # of the weights that become zero
KEEP = 0.5  # share of the image tokens that DropToken leaves


@dataclass(frozen=True)
class Data:
    """Which questions are used: those of some families about the first pictures of each split of the scenes."""

    scenes: SceneSizes
    train: int
    val: int
    test: int
    families: tuple[str, ...]


@dataclass(frozen=True)
class Model:
    """A fusion and its sizes.

    Attributes
    ----------
    fusion
        Key of :data:`METHODS`.
    dim, depth, heads, mlp_ratio
        Of all stacks; the student has its own dim and depth.
    student_dim, student_depth
        Of the small stack.
    bottlenecks, latents
        Of bottleneck fusion and Perceiver.
    seeds
        How many are trained, from 0.
    """

    fusion: str
    dim: int = 32
    depth: int = 2
    heads: int = 4
    mlp_ratio: float = 2.0
    student_dim: int = 16
    student_depth: int = 1
    bottlenecks: int = 4
    latents: int = 8
    seeds: int = 5


@dataclass(frozen=True)
class Method:
    """A fusion of the experiment.

    Attributes
    ----------
    title
        As it stands in figures and tables.
    group
        ``layout``, ``few tokens``, ``cheaper`` or ``one side hidden``.
    build
        ``build(image_dim, text_dim, model)`` → fusion.
    blank
        The side that is hidden: ``image``, ``text`` or none.
    """

    title: str
    group: str
    build: Callable[[int, int, Model], nn.Module]
    blank: str = ""


def _layout(name: str):
    return lambda i, t, m: LAYOUTS[name](i, t, m.dim, depth=m.depth, heads=m.heads, mlp_ratio=m.mlp_ratio)


def _bottleneck(i, t, m):
    shape = {"depth": m.depth, "heads": m.heads, "mlp_ratio": m.mlp_ratio}
    return BottleneckFusion(i, t, m.dim, bottlenecks=m.bottlenecks, **shape)


def _perceiver(i, t, m):
    """In the place of each block a reading and a latent block: the latents are few."""
    shape = {"reads": m.depth, "latent_blocks": 1, "heads": m.heads, "mlp_ratio": m.mlp_ratio}
    return Perceiver(i, t, m.dim, latents=m.latents, **shape)


def _dropped(i, t, m):
    return DropToken(_layout(TEACHER)(i, t, m), KEEP)


def _shared(i, t, m):
    fusion = _layout(TEACHER)(i, t, m)
    fusion.layers = share_layers(fusion.layers)
    return fusion


METHODS: dict[str, Method] = {
    "early_concatenation": Method("early concatenation", "layout", _layout("early_concatenation")),
    "early_summation": Method("early summation", "layout", _layout("early_summation")),
    "multi_to_one": Method("multi to one", "layout", _layout("multi_to_one")),
    "one_to_multi": Method("one to multi", "layout", _layout("one_to_multi")),
    "cross_attention": Method("cross attention", "layout", _layout("cross_attention")),
    "cross_attention_to_concatenation": Method(
        "cross attention to concatenation", "layout", _layout("cross_attention_to_concatenation")
    ),
    "bottleneck": Method("bottleneck (MBT)", "few tokens", _bottleneck),
    "perceiver": Method("Perceiver", "few tokens", _perceiver),
    "drop_token": Method("DropToken", "cheaper", _dropped),
    "shared": Method("shared layers", "cheaper", _shared),
    "question_only": Method("question only", "one side hidden", _layout(TEACHER), blank="image"),
    "picture_only": Method("picture only", "one side hidden", _layout(TEACHER), blank="text"),
}
#: What is made of the teacher: arrays ``predicted_test.<name>`` of its record.
OFFSPRING = {"student": "small stack", "distilled": "small stack, distilled"}


@dataclass(frozen=True)
class Config:
    """Sizes of a profile; ``model.fusion`` is replaced unit by unit."""

    pictures: tuple[int, int, int]  # train, val, test
    families: tuple[str, ...]
    model: Model
    training: Training


FAMILIES = ("attribute_query", "existence")  # what small stacks learn in minutes; gpu asks all families
PROFILES = {
    "smoke": Config(
        (40, 20, 20),
        FAMILIES,
        Model("", dim=16, heads=2, student_dim=8, bottlenecks=2, latents=4, seeds=2),
        Training(epochs=1, batch_size=32, learning_rate=4e-3),
    ),
    "cpu": Config(
        (6000, 500, 2000),
        FAMILIES,
        Model(""),
        Training(epochs=4, batch_size=96, learning_rate=6e-3, warmup=0.1),
    ),
    "gpu": Config(
        (40000, 2000, 8000),
        scenes.FAMILIES,
        Model("", dim=256, depth=8, heads=8, mlp_ratio=4.0, student_dim=64, student_depth=2, latents=16, seeds=10),
        Training(epochs=20, batch_size=512, learning_rate=1e-3, warmup=0.1),
    ),
}


def specs(profile: str) -> list[Spec]:
    """One spec for each method; the seeds are inside."""
    config = PROFILES[profile]
    data = Data(ENCODERS[profile].data, *config.pictures, config.families)
    return [
        Spec("transformers", unit, 0, profile, data, replace(config.model, fusion=unit), config.training)
        for unit in METHODS
    ]


# ------------------------------------------------------------------------------------------------------ the questions


@lru_cache(maxsize=8)
def questions_of(data: Data, split: str) -> tuple[SceneSet, np.ndarray]:
    """The questions of the families about the first pictures of a split, and their rows among all of the split."""
    n, every = getattr(data, split), getattr(data.scenes, split)
    if n > every:
        raise ValueError(
            f"{n} pictures of split {split!r} are asked for, there are tokens of {every}; "
            "lower Config.pictures or raise the sizes of scene_encoders"
        )
    found = scenes.load(split, n=n, size=data.scenes.size)  # the first pictures do not depend on how many there are
    rows = np.flatnonzero(np.isin([s.family for s in found], data.families))  # (Q,)
    return found.subset(rows), rows


@lru_cache(maxsize=8)
def answers_of(data: Data) -> Vocabulary:
    """Answers of the training questions."""
    return Vocabulary.of_answers(s.answer for s in questions_of(data, "train")[0])


@lru_cache(maxsize=16)
def feed_of(profile: str, data: Data, split: str, blank: str = "", empty_cells: bool = False) -> Feed:
    """The questions as tokens of the frozen encoders.

    Parameters
    ----------
    blank
        ``"image"`` or ``"text"`` puts one token that says nothing in the place of all tokens of that side.
    empty_cells
        Whether to keep the cells without an object, which are masked and change no result.
    """
    tokens, (found, rows) = scene_tokens(profile, split), questions_of(data, split)
    pictures = tokens.image[: getattr(data, split)]  # (P, N, 19)
    pictures = pictures if empty_cells else present_cells(pictures)  # (P, M, 19)
    words, mask = tokens.text, tokens.text_mask  # (U, S, D), (U, S)
    if blank == "image":
        pictures = torch.zeros_like(pictures[:, :1])  # (P, 1, 19)
        pictures[..., 0] = 1.0  # there, and nothing else
    elif blank == "text":
        words, mask = torch.zeros_like(words[:, :1]), mask.any(1, keepdim=True)  # (U, 1, D), (U, 1)
    answers = answers_of(data).ids(s.answer for s in found)
    return Feed(pictures, tokens.picture_index[rows], words, mask, answers, tokens.question_index[rows])


# ---------------------------------------------------------------------------------------------------------- the runs


def build(model: Model, image_dim: int, text_dim: int, answers: int, seed: int = 0) -> VQAModel:
    """The model of a run with the weights that a seed gives it: cached tokens, the method's fusion, a linear head."""
    torch.manual_seed(seed)
    fusion = METHODS[model.fusion].build(image_dim, text_dim, model)
    return VQAModel(MaskedCells(image_dim), CachedTokens(text_dim), fusion, LinearHead(fusion.out_dim, answers))


def small(model: Model) -> Model:
    """The sizes of the student."""
    return replace(model, dim=model.student_dim, depth=model.student_depth)


def distil(student: Tensor, teacher: Tensor, answers: Tensor) -> Tensor:
    """Half of the loss from the answers, half from the teacher at temperature 2."""
    return distillation_loss(student, teacher, answers, temperature=2.0, weight=0.5)


class Trained:
    """All seeds of one model after training, what they answer, and what one of them costs.

    Parameters
    ----------
    spec
        The run.
    sizes
        Those of the spec, or the student's.
    options
        Further ones of :func:`~vqa_core.training.together.fit_together`.
    """

    def __init__(self, spec: Spec, sizes: Model, **options) -> None:
        blank = METHODS[sizes.fusion].blank
        self.feeds = {split: feed_of(spec.profile, spec.data, split, blank) for split in ("train", "val", "test")}
        train = self.feeds["train"]
        self.shape = train.pictures.shape[-1], train.words.shape[-1], len(answers_of(spec.data))
        whole = feed_of(spec.profile, spec.data, "test", blank, empty_cells=True)  # most encoders have no empty cells
        example = build(sizes, *self.shape)
        self.details = {
            "parameters": sum(p.numel() for p in example.parameters()),
            "flops": floating_point_operations(example, whole),
            "activation_bytes": activation_bytes(example, train, spec.training.batch_size),
        }
        seeds = range(sizes.seeds)
        self.models = [build(sizes, *self.shape, seed) for seed in seeds]
        start = time.perf_counter()
        fits = fit_together(self.models, train, self.feeds["val"], spec.training, seeds, label=spec.unit, **options)
        steps = spec.training.epochs * -(-len(train) // spec.training.batch_size) * len(seeds)
        self.details |= {
            "seconds_per_step": (time.perf_counter() - start) / steps,  # one seed's share of a vectorised step
            "history": [fitted.history for fitted in fits],
            "best_epoch": [fitted.best_epoch for fitted in fits],
            "accuracy_val": float(np.mean([fitted.best_score for fitted in fits])),
        }

    def answers(self, feed: Feed | None = None, models: Sequence[nn.Module] | None = None) -> np.ndarray:
        """Position of each seed's answer in the vocabulary, int16 (S, Q); by default to the test questions."""
        logits = predict_together(models or self.models, feed or self.feeds["test"])  # (S, Q, A)
        return logits.argmax(-1).numpy().astype(np.int16)


def pruned(trained: Trained, flops_of: Callable[[nn.Module], int]) -> tuple[dict[str, np.ndarray], dict[str, dict]]:
    """The trained models with fewer heads or fewer weights, not trained further: arrays and details by name."""
    ways = {f"heads.{share:g}": (prune_heads, share) for share in HEAD_SHARES}
    ways |= {f"weights.{share:g}": (prune_weights, share) for share in WEIGHT_SHARES}
    arrays, details = {}, {}
    for name, (prune, share) in ways.items():
        models = [prune(model.cpu(), share) for model in trained.models]
        arrays[f"predicted_test.{name}"] = trained.answers(models=models)
        details[name] = {
            "share": share,
            "parameters": sum(p.numel() for p in models[0].parameters()),
            "nonzero": nonzero(models[0]),
            "flops": flops_of(models[0]),
        }
    return arrays, details


def run(spec: Spec) -> Outcome:
    """Train all seeds of one method and answer the test questions; the teacher is also distilled and pruned."""
    test, _ = questions_of(spec.data, "test")
    trained = Trained(spec, spec.model)
    arrays = {"predicted_test": trained.answers()}
    details = trained.details | {
        "answers": answers_of(spec.data).symbols,
        "questions": {split: len(feed) for split, feed in trained.feeds.items()},
        "data_hash": test.content_hash(),
    }
    if spec.unit == TEACHER:
        index = trained.feeds["test"].picture_index.numpy()
        others = trained.feeds["test"].with_pictures(index[shuffled_pictures(index, spec.seed)])
        arrays["predicted_test.shuffled"] = trained.answers(others)
        whole = feed_of(spec.profile, spec.data, "test", empty_cells=True)
        of_pruned, details["pruned"] = pruned(trained, lambda model: floating_point_operations(model, whole))
        arrays |= of_pruned
        said = predict_together(trained.models, trained.feeds["train"])  # (S, Q, A)
        for name, options in {"student": {}, "distilled": {"loss": distil, "teacher": said}}.items():
            young = Trained(spec, small(spec.model), **options)
            arrays[f"predicted_test.{name}"], details[name] = young.answers(), young.details
    truth = trained.feeds["test"].answers.numpy()
    families = np.array([s.family for s in test])
    metrics = {}
    for name, predicted in arrays.items():
        right = predicted == truth  # (S, Q)
        metrics[name.replace("predicted", "accuracy")] = Metric(float(right.mean()), right.shape[1])
        if name == "predicted_test":
            for family in test.families:
                of_family = right[:, families == family]
                metrics[f"accuracy_test.{family}"] = Metric(float(of_family.mean()), of_family.shape[1])
    return Outcome(metrics, arrays, details)
