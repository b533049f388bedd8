"""Experiment ``multitask``: the category of a question, its answer, and the picture's organ, together or each alone.

Three tasks on the same (picture, question) pairs of phantoms: which of the eleven categories of VQA-RAD the question is
of, what its answer is, which part of the body the picture shows. Everything is trained from scratch, from pixels and
words: a small picture encoder, word embeddings, a fusion and shared layers are the trunk; each task has a linear head.

``equal``, ``scaled``, ``dwa``, ``uncertainty``, ``pcgrad``
    one trunk for all tasks; losses weighted by 1, by 1 / log(classes), by their rates, by learned uncertainties, or
    equally with conflicting gradients projected;
``alone_<task>``
    the same network, batches and number of steps, trained for one task only;
``narrow``
    a trunk for each task, narrow enough that all three together have no more parameters than the shared one;
``early``
    as ``equal``, but the organ is read from the image tokens, before the question meets them;
``blank``, ``mute``
    as ``equal``, but never shown a picture, or a question.

A unit is ``{arm}.{training pictures}``; its record holds all seeds, which are trained in one pass. All arms have the
same learning rate, and each keeps the weights of its best validation (mean accuracy of the tasks that it trains).
The comparison of claim F11 is that of ``equal`` with ``alone_<task>`` at ``Config.main`` pictures, the middle amount;
arm, amount and recipe were fixed before any test question was answered. **Phantoms are not patients.**
"""

from __future__ import annotations

import hashlib
import math
from dataclasses import dataclass, field, replace
from functools import lru_cache
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from vqa_core.data import Vocabulary, encode_questions, phantoms
from vqa_core.data.phantoms import PhantomSet
from vqa_core.encoders.patch_pyramid import PatchPyramid, patches_of
from vqa_core.encoders.text import BagOfWords
from vqa_core.experiments import Metric, Outcome, Spec
from vqa_core.fusion.output import FusionOutput, as_tokens, masked_mean
from vqa_core.heads.multitask import SeparateTrunks, TaskHeads, TaskOutput
from vqa_core.model import VQAModel
from vqa_core.training.feed import Feed
from vqa_core.training.loop import Training
from vqa_core.training.multitask import TaskFit, fit_tasks, predict_tasks
from vqa_core.training.weighting import DynamicWeightAverage, FixedWeights, LossWeighting, UncertaintyWeighting

REQUIRES = ()
TASKS = ("category", "answer", "organ")
WEIGHTINGS = ("equal", "scaled", "dwa", "uncertainty", "pcgrad")
ALONE = tuple(f"alone_{task}" for task in TASKS)
ARMS = (*WEIGHTINGS, *ALONE, "narrow", "early", "blank", "mute")
CATEGORIES = Vocabulary(phantoms.FAMILIES)
ORGANS = Vocabulary(("ABD", "CHEST", "HEAD"))
PATCH = 8  # pixels of a patch's side
MAX_WORDS = 14


@dataclass(frozen=True)
class Pictures:
    """How many phantoms, with all their questions (about eight each)."""

    train: int
    val: int
    test: int


@dataclass(frozen=True)
class Model:
    """What is trained.

    Attributes
    ----------
    arm
        One of :data:`ARMS`.
    dim
        Features of image tokens, words, the fused vector and the shared layer.
    widths
        Of the picture encoder's levels before the last.
    seeds
        How many models, from seeds 0, 1, …
    """

    arm: str
    dim: int
    widths: tuple[int, ...]
    seeds: int

    def __post_init__(self) -> None:
        if self.arm not in ARMS:
            raise ValueError(f"arm is {self.arm!r}, allowed are {', '.join(ARMS)}")


@dataclass(frozen=True)
class Config:
    """Sizes of a profile; ``amounts`` are numbers of training pictures, and how long each is trained.

    There are three amounts. At ``main``, the middle one, all arms are compared; at the others there are ``equal`` and
    ``alone_<task>``.
    """

    model: Model
    val: int
    test: int
    main: int
    amounts: dict[int, Training] = field(hash=False)


def _training(epochs: int, batch_size: int = 64) -> Training:
    return Training(epochs=epochs, batch_size=batch_size, learning_rate=8e-3, weight_decay=0.02)


PROFILES = {
    "smoke": Config(
        Model("equal", 8, (8,), 2), 6, 10, 8, {4: _training(2, 16), 8: _training(2, 16), 12: _training(1, 16)}
    ),
    "cpu": Config(  # about 300 steps for every amount
        Model("equal", 32, (32,), 5), 80, 300, 200, {50: _training(42), 200: _training(12), 800: _training(3)}
    ),
    "gpu": Config(
        Model("equal", 128, (128,), 10),
        500,
        1000,
        1600,
        {400: _training(200), 1600: _training(50), 6400: _training(13)},
    ),
}


def specs(profile: str) -> list[Spec]:
    """One spec for each arm and amount; PCGrad, which takes longest, comes first."""
    config = PROFILES[profile]
    arms = {amount: ("pcgrad", *(a for a in ARMS if a != "pcgrad")) for amount in (config.main,)}
    arms |= {amount: ("equal", *ALONE) for amount in config.amounts if amount != config.main}
    return [
        Spec(
            "multitask",
            f"{arm}.{amount}",
            0,
            profile,
            Pictures(amount, config.val, config.test),
            replace(config.model, arm=arm),
            config.amounts[amount],
        )
        for amount, of_amount in arms.items()
        for arm in of_amount
    ]


# ---------------------------------------------------------------------------------------------------------- questions


class Material(NamedTuple):
    """Phantoms with their questions: ``parts`` are train, val and test, which share no picture; the vocabularies are
    those of the training questions."""

    parts: dict[str, PhantomSet]
    words: Vocabulary
    answers: Vocabulary


@lru_cache(maxsize=4)
def _drawn(split: str, n: int) -> PhantomSet:
    return phantoms.load(split, n=n)


@lru_cache(maxsize=4)
def material_of(data: Pictures) -> Material:
    """Draw the pictures; fewer training pictures are the first of more."""
    parts = {split: _drawn(split, getattr(data, split)) for split in ("train", "val", "test")}
    train = parts["train"]
    return Material(
        parts, Vocabulary.of_words(s.question for s in train), Vocabulary.of_answers(s.answer for s in train)
    )


def labels_of(part: PhantomSet, answers: Vocabulary) -> np.ndarray:
    """Labels of all tasks in the order of :data:`TASKS`, int64 (Q, 3); −100 is an answer that training never gave."""
    columns = (
        CATEGORIES.ids(s.family for s in part),
        answers.ids(s.answer for s in part),
        ORGANS.ids(s.meta["organ"] for s in part),
    )
    return np.stack([np.asarray(column, dtype=np.int64) for column in columns], axis=1)


def feeds_of(material: Material, arm: str) -> dict[str, Feed]:
    """All parts as tensors; a ``blank`` model sees grey pictures, a ``mute`` one reads an unknown word."""
    found = {}
    for split, part in material.parts.items():
        pictures = patches_of(part.images, PATCH)  # (P, N, PATCH²)
        index = [part.picture_index(s.picture_id) for s in part]
        words, mask = (
            torch.as_tensor(x) for x in encode_questions([s.question for s in part], material.words, MAX_WORDS)
        )
        if arm == "blank":
            pictures = torch.zeros_like(pictures)
        if arm == "mute":
            words, mask = torch.ones_like(words[:, :1]), torch.ones_like(mask[:, :1])  # id 1 is the unknown word
        found[split] = Feed(pictures, index, words, mask, labels_of(part, material.answers))
    return found


# ------------------------------------------------------------------------------------------------------------- models


class ModulatedMean(nn.Module):
    """FiLM (arXiv 1709.07871) at every image token, ReLU, their mean; beside it the question as it is.

    With the mean y of the words, and [γ ; β] = W y + b:  fused = [mean over i of ReLU(γ ⊙ xᵢ + β) ; y].

    Parameters
    ----------
    dim
        Features of image tokens and words; the fused vector has twice as many.
    """

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.dim, self.out_dim = dim, 2 * dim
        self.modulate = nn.Linear(dim, 2 * dim)
        nn.init.ones_(self.modulate.bias[:dim])  # γ starts near 1

    def forward(
        self,
        image_tokens: Tensor,
        text_tokens: Tensor,
        image_mask: Tensor | None = None,
        text_mask: Tensor | None = None,
    ) -> FusionOutput:
        """Fuse; shapes as in :meth:`vqa_core.fusion.vector.VectorFusion.forward`."""
        x = as_tokens("image", image_tokens, self.dim, image_mask)  # (B, Nᵢ, D)
        y = masked_mean(as_tokens("text", text_tokens, self.dim, text_mask), text_mask)  # (B, D)
        gamma, beta = self.modulate(y).unsqueeze(1).chunk(2, dim=-1)  # (B, 1, D) each
        seen = masked_mean((gamma * x + beta).relu(), image_mask)  # (B, D)
        return FusionOutput(torch.cat([seen, y], dim=-1), seen, y)  # (B, 2 · D)


class EarlyOrgan(nn.Module):
    """A model that reads the organ from the mean of its image tokens, and the other tasks from its fused vector.

    Parameters
    ----------
    whole
        Has all tasks; its head of the organ is taken out.
    dim
        Features of an image token.
    """

    def __init__(self, whole: VQAModel, dim: int) -> None:
        super().__init__()
        self.whole, self.early = whole, TaskHeads(dim, {"organ": len(ORGANS)}, hidden=(dim,))
        del whole.head.heads["organ"]

    def forward(self, pictures: Tensor, words: Tensor, word_mask: Tensor) -> TaskOutput:
        """As :class:`~vqa_core.model.VQAModel`; the picture is encoded once."""
        image, text = self.whole.image_encoder(pictures), self.whole.text_encoder(words, word_mask)
        fused = self.whole.fusion(image.tokens, text.tokens, image.mask, text.mask).fused  # (B, 2 · D)
        return TaskOutput(self.whole.head(fused) | self.early(masked_mean(image.tokens, image.mask)))


def trunk_and_heads(model: Model, side: int, words: int, classes: dict[str, int], dim: int | None = None) -> VQAModel:
    """Picture encoder, words, fusion, one shared layer, heads; ``dim`` replaces the model's."""
    dim = dim or model.dim
    widths = [max(2, round(w * dim / model.dim)) for w in model.widths]
    image = PatchPyramid(side, PATCH**2, (*widths, dim))
    fusion = ModulatedMean(dim)
    return VQAModel(image, BagOfWords(words, dim), fusion, TaskHeads(fusion.out_dim, classes, hidden=(dim,)))


def parameters(model: nn.Module) -> int:
    """How many numbers are trained."""
    return sum(p.numel() for p in model.parameters())


def build(model: Model, side: int, words: int, answers: int) -> nn.Module:
    """The model of an arm.

    Parameters
    ----------
    model
        What it is made of.
    side
        Patches along a side of a picture.
    words, answers
        Sizes of the vocabularies.
    """
    classes = dict(zip(TASKS, (len(CATEGORIES), answers, len(ORGANS))))
    whole = trunk_and_heads(model, side, words, classes)
    if model.arm == "early":
        return EarlyOrgan(whole, model.dim)
    if model.arm != "narrow":
        return whole
    for dim in range(model.dim - 1, 0, -1):  # the widest three that are no larger than one
        trunks = SeparateTrunks({t: trunk_and_heads(model, side, words, {t: n}, dim) for t, n in classes.items()})
        if parameters(trunks) <= parameters(whole):
            return trunks
    raise ValueError(f"dim={model.dim} is too small to be parted in {len(TASKS)}; give more")


def weighting_of(arm: str, classes: dict[str, int]) -> LossWeighting:
    """How an arm weights the losses of the tasks."""
    if arm == "dwa":
        return DynamicWeightAverage(TASKS)
    if arm == "uncertainty":
        return UncertaintyWeighting(TASKS)
    if arm == "scaled":  # so that guessing costs 1 in every task
        return FixedWeights({task: 1 / math.log(n) for task, n in classes.items()})
    if arm in ALONE:
        return FixedWeights({task: float(arm == f"alone_{task}") for task in TASKS})
    return FixedWeights(dict.fromkeys(TASKS, 1.0))


# ---------------------------------------------------------------------------------------------------------------- run


def train(spec: Spec, feeds: dict[str, Feed], answers: int, words: int) -> tuple[list[nn.Module], list[TaskFit]]:
    """All seeds of a spec: their models, and what was found on the way."""
    model, seeds = spec.model, range(spec.model.seeds)
    side = math.isqrt(feeds["train"].pictures.shape[1])
    models = []
    for seed in seeds:
        torch.manual_seed(seed)
        models.append(build(model, side, words, answers))
    classes = dict(zip(TASKS, (len(CATEGORIES), answers, len(ORGANS))))
    found = fit_tasks(
        models,
        feeds["train"],
        feeds["val"],
        spec.training,
        seeds,
        [weighting_of(model.arm, classes) for _ in seeds],
        scored=[t for t in TASKS if model.arm == f"alone_{t}"] or TASKS,
        project=model.arm == "pcgrad",
        measure=10 if model.arm in WEIGHTINGS else 0,
        validations=8,
        label=spec.unit,
    )
    return models, found


def run(spec: Spec) -> Outcome:
    """Train an arm with all its seeds, and let it do the three tasks on the test questions.

    Arrays: ``predicted_test`` int16 (S, Q, K), ``label_test`` int16 (Q, K), ``picture_test`` (Q,), and where conflicts
    are measured ``cosine`` (S, M, K, K), ``norm`` (S, M, K) and ``step`` (M,) of the M measured steps.
    """
    material = material_of(spec.data)
    feeds = feeds_of(material, spec.model.arm)
    models, found = train(spec, feeds, len(material.answers), len(material.words))
    test = feeds["test"]
    predicted, labels = predict_tasks(models, test).numpy(), test.answers.numpy()  # (S, Q, K), (Q, K)
    usual = feeds["train"].answers.mode(dim=0).values.numpy()  # (K,), given most often in training
    arrays = {
        "predicted_test": predicted.astype(np.int16),
        "label_test": labels.astype(np.int16),
        "picture_test": test.picture_index.numpy().astype(np.int32),
        "usual": usual.astype(np.int16),
    }
    if found[0].at:
        arrays |= {
            "cosine": np.stack([f.cosines for f in found]).astype(np.float32),
            "norm": np.stack([f.norms for f in found]).astype(np.float32),
            "step": np.array(found[0].at, dtype=np.int32),
        }
    right = predicted == labels
    metrics = {f"accuracy_test.{t}": Metric(float(right[..., k].mean()), len(labels)) for k, t in enumerate(TASKS)}
    digest = hashlib.sha256("".join(part.content_hash() for part in material.parts.values()).encode())
    details = {
        "history": [f.history for f in found],
        "best_epoch": [f.best_epoch for f in found],
        "parameters": parameters(models[0]),
        "questions": {split: len(part) for split, part in material.parts.items()},
        "answers": material.answers.symbols,
        "data_hash": digest.hexdigest(),
    }
    return Outcome(metrics, arrays, details)
