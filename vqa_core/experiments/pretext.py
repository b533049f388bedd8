"""Experiment ``pretext``: what a model learns from pictures and captions before anybody asks it a question.

Three kinds of unit, each over several seeds:

``mae``
    A masked autoencoder sees pictures without labels. Then a few labelled pictures of single objects have to be enough:
    its encoder against the same encoder with the random weights that it began with, frozen under a logistic regression,
    and trained on with a new head (*fine-tuned*).
``joint.plain``, ``joint.dwa``, ``joint.uncertainty``, ``joint.nothing``
    One transformer over picture and caption learns masked words, matching and order together, the three losses added
    plainly or balanced; then it is fine-tuned on a few questions (*downstream*). ``joint.nothing`` skips pretraining.
``captioner``
    An encoder–decoder says captions, which are looked up in the world.

Fixed before the first run. **P1** is judged on fine-tuned encoders that name the :data:`ATTRIBUTE` of an object, from
:data:`LABELS` labels per class. A flat ground, normalised patch by patch, is nothing but its noise, so the autoencoder
rebuilds plain pixels. **P3** takes of DWA and uncertainty weighting the one with the better downstream accuracy on
validation. **P4** is judged on the words of captions about held-out pictures, shown without their order to
``joint.plain``; chance is one over the number of words of the caption. Fine-tuning of ``mae`` has a fixed number of
steps and keeps the last weights: a validation set would be more labels.
"""

from __future__ import annotations

import copy
import itertools
import math
import random
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache, partial
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from vqa_core import captioning
from vqa_core.data import scenes
from vqa_core.data.scenes import ATTRIBUTES, Scene, SceneSet
from vqa_core.data.scenes.captions import captions
from vqa_core.data.scenes.grammar import noun, with_article
from vqa_core.data.text import PAD, UNKNOWN, Vocabulary, encode_questions, tokenize
from vqa_core.encoders.masked_autoencoder import MaskedAutoencoder, PatchEncoder, hide
from vqa_core.evaluation.caption_truth import KINDS, judge
from vqa_core.evaluation.shuffled import shuffled_pictures
from vqa_core.experiments import Metric, Outcome, Spec
from vqa_core.experiments.scene_encoders import PROFILES as ENCODERS
from vqa_core.experiments.scene_encoders import MaskedCells, Named, is_present, present_cells, scene_tokens
from vqa_core.heads.classifier import LinearHead
from vqa_core.model import VQAModel
from vqa_core.training.feed import Feed, as_float
from vqa_core.training.loop import Training, fit, pick_device, predict
from vqa_core.training.pretext import (
    TASKS,
    PretextModel,
    label_loss,
    mask_words,
    mismatch,
    right_labels,
    shuffle_pieces,
)
from vqa_core.training.weighting import DynamicWeightAverage, FixedWeights, LossWeighting, UncertaintyWeighting

REQUIRES = ("scene_encoders",)
ATTRIBUTE, LABELS = "shape", 10  # on which P1 is judged
WEIGHTINGS = {"plain": "plain sum", "dwa": "DWA", "uncertainty": "uncertainty", "nothing": "no pretraining"}
FAMILY = "attribute_query"  # of the downstream questions
CAPTIONS = 5  # about each picture
MASK = "<mask>"
SPECIALS = 3  # padding, unknown, mask
GALLERY = 6  # pictures whose reconstruction or caption is kept: the first ones of their split
SEEDS_OF = {"unlabelled": 101, "unlabelled_val": 102, "labelled": 103, "test": 104}  # of generated pictures


# --------------------------------------------------------------------------------------------------------- profiles


@dataclass(frozen=True)
class FewLabels:
    """Pictures of unit ``mae``.

    Attributes
    ----------
    unlabelled, unlabelled_val
        Pictures with three to six objects, for pre-training and for its error.
    pool, test
        Pictures with one object: labels are taken from the first, accuracy is measured on the second.
    labels
        How many labels per class there are.
    size
        Side in pixels.
    """

    unlabelled: int
    unlabelled_val: int
    pool: int
    test: int
    labels: tuple[int, ...]
    size: int


@dataclass(frozen=True)
class Autoencoder:
    """Sizes of the masked autoencoder."""

    patch: int
    dim: int
    depth: int
    heads: int
    decoder_dim: int
    decoder_depth: int
    hidden: float = 0.75
    normalise: bool = False


@dataclass(frozen=True)
class TwoPhases:
    """How to pretrain, and how to train on with labels."""

    pretrain: Training
    finetune: Training


@dataclass(frozen=True)
class Told:
    """Pictures with captions.

    Attributes
    ----------
    train, val, test
        Pictures of each split of the scenes; the captioner reads the captions of all training ones.
    pretrain
        How many of the training pictures the joint models are pretrained on.
    questions
        How many questions there are to fine-tune with.
    """

    train: int
    val: int
    test: int
    pretrain: int
    questions: int


@dataclass(frozen=True)
class Joint:
    """Sizes of a transformer over picture and words, and how its losses are weighted."""

    dim: int
    depth: int
    heads: int
    weighting: str = "plain"


@dataclass(frozen=True)
class Config:
    """Sizes of a profile."""

    seeds: int
    few: FewLabels
    mae: Autoencoder
    mae_training: TwoPhases
    told: Told
    joint: Joint
    joint_training: TwoPhases
    captioner: Joint
    captioner_training: Training
    captioner_seeds: int


PROFILES = {
    "smoke": Config(
        2,
        FewLabels(64, 16, 240, 60, (3, 10), 48),
        Autoencoder(8, 16, 2, 2, 16, 1),
        TwoPhases(Training(epochs=2, batch_size=32), Training(epochs=4, batch_size=40)),
        Told(60, 20, 40, 40, 40),
        Joint(16, 1, 2),
        TwoPhases(Training(epochs=3, batch_size=60), Training(epochs=2, batch_size=20)),
        Joint(16, 1, 2),
        Training(epochs=2, batch_size=60, learning_rate=5e-3),
        1,
    ),
    "cpu": Config(
        5,
        FewLabels(2000, 200, 1000, 1000, (3, 10, 30), 48),
        Autoencoder(8, 64, 2, 4, 48, 1),
        TwoPhases(
            Training(epochs=14, batch_size=16, learning_rate=2e-3, weight_decay=0.05, warmup=0.1),
            Training(epochs=80, batch_size=20, learning_rate=1e-3, weight_decay=0.05, warmup=0.1),
        ),
        Told(2000, 300, 1000, 1500, 400),
        Joint(32, 1, 4),
        TwoPhases(
            Training(epochs=6, batch_size=64, learning_rate=6e-3, warmup=0.1),
            Training(epochs=12, batch_size=32, learning_rate=2e-3, warmup=0.1),
        ),
        Joint(64, 2, 4),
        Training(epochs=3, batch_size=64, learning_rate=4e-3, warmup=0.1),
        1,
    ),
    "gpu": Config(
        10,
        FewLabels(40000, 1000, 4000, 4000, (3, 10, 30, 100), 64),
        Autoencoder(8, 192, 8, 6, 96, 2),
        TwoPhases(
            Training(epochs=100, batch_size=512, learning_rate=1.5e-3, weight_decay=0.05, warmup=0.1),
            Training(epochs=200, batch_size=40, learning_rate=5e-4, weight_decay=0.05, warmup=0.1),
        ),
        Told(20000, 1000, 4000, 20000, 2000),
        Joint(192, 6, 6),
        TwoPhases(
            Training(epochs=10, batch_size=256, learning_rate=1e-3, warmup=0.1),
            Training(epochs=20, batch_size=128, learning_rate=3e-4, warmup=0.1),
        ),
        Joint(256, 4, 8),
        Training(epochs=15, batch_size=256, learning_rate=1e-3, warmup=0.1),
        3,
    ),
}


def specs(profile: str) -> list[Spec]:
    """``mae`` and the four ``joint.*`` for every seed, ``captioner`` for fewer."""
    c = PROFILES[profile]
    found = []
    for seed in range(c.seeds):
        found.append(Spec("pretext", "mae", seed, profile, c.few, c.mae, c.mae_training))
        for weighting in WEIGHTINGS:
            model = replace(c.joint, weighting=weighting)
            found.append(Spec("pretext", f"joint.{weighting}", seed, profile, c.told, model, c.joint_training))
        if seed < c.captioner_seeds:
            found.append(Spec("pretext", "captioner", seed, profile, c.told, c.captioner, c.captioner_training))
    return found


def run(spec: Spec) -> Outcome:
    """Run the unit that ``spec`` names."""
    return {"mae": run_mae, "captioner": run_captioner}.get(spec.unit, run_joint)(spec)


# ----------------------------------------------------------------------------------------------- masked autoencoding


class Tagger(nn.Module):
    """Encoder, mean of its tokens, linear head: pictures (B, 3, H, W) → logits (B, classes)."""

    def __init__(self, encoder: PatchEncoder, classes: int) -> None:
        super().__init__()
        self.encoder, self.head = encoder, LinearHead(encoder.out_dim, classes)

    def forward(self, pictures: Tensor, words: Tensor | None = None, word_mask: Tensor | None = None) -> Named:
        return Named(self.head(self.encoder(pictures).tokens.mean(1)))


@lru_cache(maxsize=4)
def generated(part: str, n: int, size: int) -> SceneSet:
    """Pictures of a part of :data:`SEEDS_OF`: with one object where they are labelled, else with three to six."""
    objects = (1, 1) if part in ("labelled", "test") else (3, 6)
    return scenes.generate(n, SEEDS_OF[part], size, objects=objects, questions_per_picture=1, split=part)


def values_of(found: SceneSet, attribute: str) -> np.ndarray:
    """The value of an attribute of each picture's only object, int (P,), as a position in its list of values."""
    return np.array([ATTRIBUTES[attribute].index(getattr(s.objects[0], attribute)) for s in found.scenes])


def some_of_each(classes: np.ndarray, number: int, seed: int) -> np.ndarray:
    """Positions of ``number`` random members of each class, int (classes · number,).

    A larger number takes the same members and more.
    """
    order = np.random.default_rng(seed).permutation(len(classes))
    rows = [order[classes[order] == c][:number] for c in np.unique(classes)]
    if short := [len(r) for r in rows if len(r) < number]:
        raise ValueError(f"{number} labels per class are asked for, one class has {min(short)}; raise FewLabels.pool")
    return np.concatenate(rows)


def picture_feed(images: np.ndarray, labels: np.ndarray | None = None) -> Feed:
    """Pictures with labels (0 where there are none), as the training loop reads them."""
    n = len(images)
    labels = np.zeros(n, np.int64) if labels is None else labels
    return Feed(images, np.arange(n), np.zeros((n, 1), np.int64), np.ones((n, 1), bool), labels)


def rebuild_loss(model: MaskedAutoencoder, batch, share: float) -> Tensor:
    """Error at hidden patches, which are drawn anew in every step."""
    n = model.positions.shape[0]
    return model(batch.pictures, hide(len(batch.pictures), n, share).to(batch.pictures.device)).error().mean()


class Rebuilding(NamedTuple):
    """What :func:`rebuilding` found: errors of each picture, float (P,), and what is kept of the first ones."""

    error: np.ndarray
    error_of_mean: np.ndarray
    hidden: np.ndarray
    rebuilt: np.ndarray


@torch.inference_mode()
def rebuilding(model: MaskedAutoencoder, images: np.ndarray, share: float, keep: int = GALLERY) -> Rebuilding:
    """Error at hidden patches under a fixed mask, and the first ``keep`` pictures as the model fills them.

    ``error_of_mean`` is that of a guess without a model: every hidden pixel has the mean colour of the visible ones.
    ``hidden`` is bool (keep, N), ``rebuilt`` uint8 (keep, H, W, 3).
    """
    model.eval()
    device = next(model.parameters()).device
    pictures = as_float(torch.from_numpy(images)).to(device)  # (P, 3, H, W)
    hidden = hide(len(images), model.positions.shape[0], share, torch.Generator().manual_seed(0)).to(device)
    out = [model(p, h) for p, h in zip(pictures.split(256), hidden.split(256))]
    patches = model.encoder.patches(pictures)  # (P, N, 3 · patch²)
    colours = patches.unflatten(-1, (-1, 3))  # (P, N, patch², 3)
    seen = (~hidden)[..., None, None]
    mean = (colours * seen).sum((1, 2), keepdim=True) / (seen.sum((1, 2), keepdim=True) * colours.shape[2])
    each = (colours - mean).square().mean((2, 3))  # (P, N)
    filled = model.picture(pictures[:keep], model(pictures[:keep], hidden[:keep]))  # (keep, 3, H, W)
    rebuilt = ((filled.permute(0, 2, 3, 1) + 1) * 127.5).round().clamp(0, 255).to(torch.uint8)
    return Rebuilding(
        torch.cat([o.error() for o in out]).cpu().numpy(),
        ((each * hidden).sum(1) / hidden.sum(1)).cpu().numpy(),
        hidden[:keep].cpu().numpy(),
        rebuilt.cpu().numpy(),
    )


@torch.inference_mode()
def mean_tokens(encoder: PatchEncoder, images: np.ndarray) -> np.ndarray:
    """The mean of each picture's tokens, float32 (P, D), with the encoder as it is."""
    device = next(encoder.parameters()).device
    encoder.eval()
    parts = [encoder(as_float(p).to(device)).tokens.mean(1).cpu() for p in torch.from_numpy(images).split(256)]
    return torch.cat(parts).numpy()


def probe(train: np.ndarray, classes: np.ndarray, test: np.ndarray) -> np.ndarray:
    """Classes that a logistic regression on frozen features predicts, int (Q,)."""
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    return make_pipeline(StandardScaler(), LogisticRegression(max_iter=1000)).fit(train, classes).predict(test)


def finetune(encoder: PatchEncoder, images: np.ndarray, classes: np.ndarray, training: Training, seed: int) -> Tagger:
    """A copy of the encoder with a new head, trained for ``training.epochs`` steps, however many labels there are."""
    torch.manual_seed(seed)  # the same head on every encoder
    model = Tagger(copy.deepcopy(encoder), int(classes.max()) + 1)
    per_epoch = math.ceil(len(images) / training.batch_size)
    recipe = replace(training, epochs=math.ceil(training.epochs / per_epoch))
    feed, epoch = picture_feed(images, classes), itertools.count()
    fit(model, feed, feed, recipe, seed, score=lambda *_: float(next(epoch)), progress=False)  # keeps the last weights
    return model


def run_mae(spec: Spec) -> Outcome:
    """Pre-train without labels, then learn from few.

    Arrays ``{way}.{start}.{attribute}.{labels}``, bool (Q,): which test pictures are named rightly; ``way`` is
    ``frozen`` or ``tuned``, ``start`` is ``mae`` or ``random``.
    """
    data, sizes, training = spec.data, spec.model, spec.training
    parts = {name: generated(name, getattr(data, field), data.size) for name, field in _FIELDS.items()}
    torch.manual_seed(spec.seed)
    encoder = PatchEncoder(data.size, sizes.patch, sizes.dim, sizes.depth, sizes.heads)
    model = MaskedAutoencoder(encoder, sizes.decoder_dim, sizes.decoder_depth, sizes.heads, sizes.normalise)
    fresh = copy.deepcopy(encoder)
    fitted = fit(
        model,
        picture_feed(parts["unlabelled"].images),
        picture_feed(parts["unlabelled_val"].images),
        training.pretrain,
        spec.seed,
        loss=partial(rebuild_loss, share=sizes.hidden),
        score=lambda m, feed: -float(rebuilding(m, feed.pictures.numpy(), sizes.hidden).error.mean()),
        label=f"masked autoencoder, seed {spec.seed}",
    )
    rebuilt = rebuilding(model, parts["unlabelled_val"].images, sizes.hidden)
    arrays = {"gallery.pictures": parts["unlabelled_val"].images[:GALLERY], "gallery.hidden": rebuilt.hidden}
    arrays["gallery.rebuilt"] = rebuilt.rebuilt
    arrays |= few_labels({"mae": model.encoder, "random": fresh}, parts["labelled"], parts["test"], spec)
    metrics = {
        name: Metric(float(right.mean()), len(right)) for name, right in arrays.items() if right.dtype == bool
        and right.ndim == 1
    }  # fmt: skip
    metrics["error"] = Metric(float(rebuilt.error.mean()), len(rebuilt.error))
    metrics["error_of_mean"] = Metric(float(rebuilt.error_of_mean.mean()), len(rebuilt.error))
    details = {
        "history": fitted.history,
        "parameters": {
            "encoder": sum(p.numel() for p in model.encoder.parameters()),
            "decoder": sum(p.numel() for p in model.parameters()) - sum(p.numel() for p in encoder.parameters()),
        },
        "data_hash": parts["unlabelled"].content_hash(),
    }
    return Outcome(metrics, arrays, details)


_FIELDS = {"unlabelled": "unlabelled", "unlabelled_val": "unlabelled_val", "labelled": "pool", "test": "test"}


def few_labels(
    encoders: Mapping[str, PatchEncoder], pool: SceneSet, test: SceneSet, spec: Spec
) -> dict[str, np.ndarray]:
    """Which test pictures are named rightly after learning from few labels; keys as in :func:`run_mae`."""
    right = {}
    for start, encoder in encoders.items():
        known, asked = mean_tokens(encoder, pool.images), mean_tokens(encoder, test.images)  # (P, D), (Q, D)
        for attribute, number in itertools.product(ATTRIBUTES, spec.data.labels):
            classes, truth = values_of(pool, attribute), values_of(test, attribute)
            rows = some_of_each(classes, number, spec.seed)
            right[f"frozen.{start}.{attribute}.{number}"] = probe(known[rows], classes[rows], asked) == truth
            if attribute == ATTRIBUTE:
                model = finetune(encoder, pool.images[rows], classes[rows], spec.training.finetune, spec.seed)
                said = predict(model, picture_feed(test.images, truth)).argmax(1).numpy()  # (Q,)
                right[f"tuned.{start}.{attribute}.{number}"] = said == truth
    return right


# ------------------------------------------------------------------------------------- pictures with captions and words


class Captioned(NamedTuple):
    """A split with its captions.

    Attributes
    ----------
    scenes
        Pictures, with eight questions about each.
    captions
        Five sentences about each picture.
    tokens
        float (P, M, 19): the cells in which the frozen encoder sees an object.
    """

    scenes: SceneSet
    captions: tuple[tuple[str, ...], ...]
    tokens: Tensor


@lru_cache(maxsize=3)
def captioned(profile: str, split: str) -> Captioned:
    """The first pictures of a split of the scenes, their captions, and their tokens."""
    n, sizes = getattr(PROFILES[profile].told, split), ENCODERS[profile].data
    if n > getattr(sizes, split):
        raise ValueError(
            f"{n} pictures of split {split!r} are asked for, profile {profile!r} has {getattr(sizes, split)}; "
            "lower Config.told or raise the sizes of scene_encoders"
        )
    found = scenes.load(split, n=n, size=sizes.size)
    sentences = tuple(
        captions(scene, CAPTIONS, random.Random(f"captions of {i}"))
        for i, scene in zip(found.picture_ids, found.scenes, strict=True)
    )
    return Captioned(found, sentences, present_cells(scene_tokens(profile, split).image[:n]))


@lru_cache(maxsize=2)
def joint_vocabulary(profile: str) -> Vocabulary:
    """Words of the training pictures' captions and questions, after padding, unknown and mask."""
    train = captioned(profile, "train")
    sentences = [*itertools.chain(*train.captions), *(s.question for s in train.scenes)]
    words = sorted({w for sentence in sentences for w in tokenize(sentence)})
    return Vocabulary([PAD, UNKNOWN, MASK, *words], unknown=UNKNOWN)


def every_caption(scene: Scene) -> set[str]:
    """All captions that are true of a scene, also those lists of three objects that the generator does not draw."""
    names = [with_article(noun(o[:4])) for o in scene.objects]
    threes = {f"{a}, {b} and {c}" for a, b, c in itertools.permutations(names, 3)}
    return threes | set(captions(scene, 10**6, random.Random(0)))


class Pairs(NamedTuple):
    """Captions of a split with their pictures; see :func:`pairs_of`.

    Attributes
    ----------
    captions
        Q sentences.
    picture
        int (Q,): the picture that each is about.
    number
        int (Q,): equal for equal sentences, 0 to U − 1.
    true
        bool (P, U): of which pictures, own or not, each *different* sentence is true.
    """

    captions: list[str]
    picture: np.ndarray
    number: np.ndarray
    true: Tensor


@lru_cache(maxsize=3)
def pairs_of(profile: str, split: str) -> Pairs:
    """All captions of the pretraining pictures; of the pictures of another split one each, of all kinds by turns."""
    found = captioned(profile, split)
    if split == "train":
        pictures = PROFILES[profile].told.pretrain
        told = [(i, c) for i, five in enumerate(found.captions[:pictures]) for c in five]
    else:
        told = [(i, five[i % len(five)]) for i, five in enumerate(found.captions)]
    position = {c: k for k, c in enumerate(dict.fromkeys(c for _, c in told))}
    true = torch.zeros(told[-1][0] + 1, len(position), dtype=torch.bool)
    for row, scene in enumerate(found.scenes.scenes[: len(true)]):
        true[row, [position[c] for c in every_caption(scene) if c in position]] = True
    picture, number = np.array([(i, position[c]) for i, c in told]).T
    return Pairs([c for _, c in told], picture, number, true)


def caption_feed(profile: str, split: str) -> Feed:
    """The pairs of a split; ``answers`` are (picture, number of the caption), int64 (Q, 2)."""
    pairs = pairs_of(profile, split)
    words, mask = encode_questions(pairs.captions, joint_vocabulary(profile))
    labels = np.stack([pairs.picture, pairs.number], axis=1)
    return Feed(captioned(profile, split).tokens, pairs.picture, words, mask, labels)


# ------------------------------------------------------------------------------------------------------- joint pretext


def weighting_of(name: str) -> LossWeighting:
    """The weighting of the three losses that a unit is named after."""
    made = {
        "plain": lambda: FixedWeights(dict.fromkeys(TASKS, 1.0)),
        "dwa": lambda: DynamicWeightAverage(TASKS),
        "uncertainty": lambda: UncertaintyWeighting(TASKS),
    }
    if name not in made:
        raise ValueError(f"weighting is {name!r}, allowed are {', '.join(made)}")
    return made[name]()


class TaskOutputs(NamedTuple):
    """Logits and targets of one task on one batch."""

    logits: Tensor
    targets: Tensor


def three_tasks(
    model: PretextModel, batch, true: Tensor, vocabulary: int, generator: torch.Generator | None = None
) -> dict[str, TaskOutputs]:
    """Cover, swap and shuffle the captions of a batch, and let the model answer.

    Parameters
    ----------
    model
        The model.
    batch
        From :func:`caption_feed`.
    true
        bool (P, U), from :func:`pairs_of`.
    vocabulary
        Number of words; the mask is word 2.
    generator
        Of the damage; None takes the global one, which the training loop seeds.
    """
    image, words, mask = batch.pictures, batch.words, batch.word_mask
    image_mask, (picture, caption) = is_present(image), batch.answers.unbind(1)
    damaged, covered = mask_words(words, mask, SPECIALS - 1, vocabulary, SPECIALS, generator=generator)
    drawn, matches = mismatch(true.to(image.device)[picture][:, caption], generator=generator)
    order, places = shuffle_pieces(mask, generator)
    return {
        "mlm": TaskOutputs(model.name_words(image, image_mask, damaged, mask), covered),
        "itm": TaskOutputs(model.match(image, image_mask, words[drawn], mask[drawn]), matches),
        "order": TaskOutputs(model.places(image, image_mask, words.gather(1, order), mask), places),
    }


@torch.inference_mode()
def task_scores(model: PretextModel, feed: Feed, true: Tensor, vocabulary: int) -> dict[str, dict[str, float]]:
    """Loss (nats) and accuracy of each task over a split, always with the same damage: ``{"mlm": {"loss": …}}``."""
    model.eval()
    device, generator = next(model.parameters()).device, torch.Generator().manual_seed(0)
    total = {task: np.zeros(3) for task in TASKS}  # nats, right, number
    for batch in feed.batches(500):
        for task, out in three_tasks(model, batch.to(device), true, vocabulary, generator).items():
            right, counted = right_labels(out.logits, out.targets)
            n = int(counted.sum())
            total[task] += [float(label_loss(*out)) * n, int(right[counted].sum()), n]
    return {k: {"loss": v[0] / v[2], "accuracy": v[1] / v[2], "n": int(v[2])} for k, v in total.items()}


def pretrain(model: PretextModel, spec: Spec) -> list[dict[str, float]]:
    """Train on all three tasks; returns, by epoch, weight, validation loss and accuracy of each task.

    The weights of the epoch with the best mean accuracy over the tasks are kept.
    """
    profile, history = spec.profile, []
    words = len(joint_vocabulary(profile))
    train, validation = (pairs_of(profile, split).true for split in ("train", "val"))
    model.weighting = weighting_of(spec.model.weighting)

    def loss(m: PretextModel, batch) -> Tensor:
        return m.weighting({k: label_loss(*out) for k, out in three_tasks(m, batch, train, words).items()})

    def score(m: PretextModel, feed: Feed) -> float:
        """Called once after each epoch, which is what DWA has to be told of."""
        used = m.weighting.weights().tolist()
        m.weighting.end_epoch()
        found = task_scores(m, feed, validation, words)
        row = {f"{task}.{key}": found[task][key] for task in TASKS for key in ("loss", "accuracy")}
        history.append({f"{task}.weight": w for task, w in zip(TASKS, used)} | row)
        return float(np.mean([found[task]["accuracy"] for task in TASKS]))

    feeds = (caption_feed(profile, split) for split in ("train", "val"))
    label = f"{spec.unit}, seed {spec.seed}"
    fit(model, *feeds, spec.training.pretrain, spec.seed, loss=loss, score=score, label=label)
    return history


class Ordering(NamedTuple):
    """Places of words, one row per word of the test captions.

    Attributes
    ----------
    right, right_other, right_lookup
        bool (W,): of the model; of the model with another picture; of the most frequent place of that word in training
        captions of this length.
    chance
        float (W,), one over the words of the caption.
    picture
        int (W,).
    """

    right: np.ndarray
    right_other: np.ndarray
    right_lookup: np.ndarray
    chance: np.ndarray
    picture: np.ndarray


def usual_places(feed: Feed) -> dict[tuple[int, int], int]:
    """The most frequent place of each word in captions of each length: ``(words of the caption, word) → place``."""
    counts: dict[tuple[int, int], Counter] = {}
    for row, n in zip(feed.words.tolist(), feed.word_mask.sum(1).tolist()):
        for place, word in enumerate(row[:n]):
            counts.setdefault((n, word), Counter())[place] += 1
    return {key: found.most_common(1)[0][0] for key, found in counts.items()}


@torch.inference_mode()
def ordering(model: PretextModel, feed: Feed, usual: Mapping[tuple[int, int], int]) -> Ordering:
    """Where the model puts the words of captions that are shown without their order.

    The model does not see in which order they are given (see :meth:`PretextModel.places`), so they are given as they
    are, and each is asked where it belongs.
    """
    model.eval()
    device = next(model.parameters()).device
    other = feed.with_pictures(feed.picture_index[shuffled_pictures(feed.picture_index, seed=0)])
    rows: list[list[np.ndarray]] = []
    for batch, swapped in zip(feed.batches(500), other.batches(500)):
        mask, length = batch.word_mask, batch.word_mask.sum(1)
        place = torch.arange(mask.shape[1]).expand_as(mask)  # (B, T)
        own, others = (
            model.places(p, is_present(p), batch.words.to(device), mask.to(device)).argmax(-1).cpu()
            for p in (batch.pictures.to(device), swapped.pictures.to(device))
        )  # (B, T) each
        known = [[usual.get((n, w), -1) for w in row] for row, n in zip(batch.words.tolist(), length.tolist())]
        chance, picture = (1 / length)[:, None].expand_as(mask), batch.answers[:, :1].expand_as(mask)
        columns = (own == place, others == place, torch.tensor(known) == place, chance, picture)
        rows.append([c[mask].numpy() for c in columns])
    return Ordering(*(np.concatenate(column) for column in zip(*rows)))


def question_feeds(profile: str, questions: int, seed: int) -> tuple[dict[str, Feed], Vocabulary]:
    """Downstream questions of a family: a random few of the training ones, all of val and test; and their answers."""
    found, words, feeds = {s: captioned(profile, s) for s in ("train", "val", "test")}, joint_vocabulary(profile), {}
    kept = {split: [s for s in part.scenes if s.family == FAMILY] for split, part in found.items()}
    answers = Vocabulary.of_answers(s.answer for s in kept["train"])
    if questions > len(kept["train"]):
        raise ValueError(f"{questions} questions are asked for, there are {len(kept['train'])}; lower Told.questions")
    chosen = np.random.default_rng(seed).permutation(len(kept["train"]))[:questions]
    kept["train"] = [kept["train"][i] for i in chosen]
    for split, some in kept.items():
        index = [found[split].scenes.picture_index(s.picture_id) for s in some]
        feeds[split] = Feed.of(some, found[split].tokens, index, words, answers)
    return feeds, answers


def run_joint(spec: Spec) -> Outcome:
    """Pretrain with one weighting (or not at all), then fine-tune on few questions and answer the test questions."""
    profile, sizes = spec.profile, spec.model
    words, tests = joint_vocabulary(profile), caption_feed(profile, "test")
    longest = max(captioned_length(profile), 1)
    torch.manual_seed(spec.seed)
    model = PretextModel(tests.pictures.shape[-1], len(words), sizes.dim, sizes.depth, sizes.heads, longest)
    feeds, answers = question_feeds(profile, spec.data.questions, spec.seed)
    torch.manual_seed(spec.seed)  # the same head for every weighting
    head, metrics, arrays, history = LinearHead(sizes.dim, len(answers)), {}, {}, []
    if sizes.weighting != "nothing":
        history = pretrain(model, spec)
        found = task_scores(model, tests, pairs_of(profile, "test").true, len(words))
        metrics |= {task: Metric(s["accuracy"], s["n"]) for task, s in found.items()}
        order = ordering(model, tests, usual_places(caption_feed(profile, "train")))
        arrays |= {f"order.{name}": column for name, column in order._asdict().items()}
    vqa = VQAModel(MaskedCells(tests.pictures.shape[-1]), model.words, model.fusion, head).to(pick_device())
    fitted = fit(
        vqa, feeds["train"], feeds["val"], spec.training.finetune, spec.seed, label=f"{spec.unit}, seed {spec.seed}"
    )
    right = (predict(vqa, feeds["test"]).argmax(1) == feeds["test"].answers).numpy()
    arrays |= {"correct_test": right, "picture_test": feeds["test"].picture_index.numpy().astype(np.int32)}
    usual = feeds["train"].answers.mode().values
    arrays["correct_majority"] = (feeds["test"].answers == usual).numpy()
    metrics["accuracy_val"] = Metric(fitted.best_score, len(feeds["val"]))
    metrics["accuracy_test"] = Metric(float(right.mean()), len(right))
    details = {
        "history": fitted.history,
        "pretraining": history,
        "parameters": sum(p.numel() for p in vqa.parameters()),
        "data_hash": captioned(profile, "test").scenes.content_hash(),
    }
    return Outcome(metrics, arrays, details)


def captioned_length(profile: str) -> int:
    """Words of the longest caption or question of any split."""
    parts = [captioned(profile, split) for split in ("train", "val", "test")]
    sentences = itertools.chain(*(itertools.chain(*p.captions, (s.question for s in p.scenes)) for p in parts))
    return max(len(tokenize(sentence)) for sentence in sentences)


# ----------------------------------------------------------------------------------------------------------- captioner


def said_feed(profile: str, split: str, words: Vocabulary) -> Feed:
    """Every caption of a split, from ``<start>`` to ``<end>``, with its picture."""
    found = captioned(profile, split)
    ids, mask = captioning.encode_captions(list(itertools.chain(*found.captions)), words)
    picture = np.repeat(np.arange(len(found.captions)), CAPTIONS)
    return Feed(found.tokens, picture, ids, mask, picture)


@torch.inference_mode()
def nats_per_word(model: captioning.Captioner, feed: Feed) -> float:
    """Mean loss over the words of a split, true words given."""
    model.eval()
    device, total = next(model.parameters()).device, np.zeros(2)
    for batch in feed.batches(500):
        n = int(batch.word_mask[:, 1:].sum())
        batch = batch.to(device)
        loss = captioning.caption_loss(model, batch.pictures, batch.words, batch.word_mask)
        total += [float(loss) * n, n]
    return float(total[0] / total[1])


def judged(sentences: Sequence[str], every: Sequence[Scene]) -> dict[str, np.ndarray]:
    """Truth of one caption per scene.

    Returns
    -------
    dict
        ``true`` bool (P,); ``kind`` int (P,), a position in :data:`KINDS` or −1; ``found`` float (P,): share of the
        things named that are there, 0 for a sentence that names none.
    """
    found = [judge(sentence, scene) for sentence, scene in zip(sentences, every, strict=True)]
    return {
        "true": np.array([f.true for f in found]),
        "kind": np.array([KINDS.index(f.kind) if f.kind else -1 for f in found], dtype=np.int8),
        "found": np.array([np.mean(f.found) if f.found else 0.0 for f in found], dtype=np.float32),
    }


def run_captioner(spec: Spec) -> Outcome:
    """Train the captioner, let it describe the test pictures, and look the captions up.

    Arrays ``greedy.*`` and ``beam.*`` are those of :func:`judged`; ``other.*`` judges the beam's captions against
    *another* picture: how often a caption is true of a scene that it is not about. ``exact`` is bool (P,): whether the
    beam's caption is among the five that the generator wrote.
    """
    profile, sizes = spec.profile, spec.model
    words = captioning.caption_vocabulary(itertools.chain(*captioned(profile, "train").captions))
    feeds = {split: said_feed(profile, split, words) for split in ("train", "val", "test")}
    longest = max(f.words.shape[1] for f in feeds.values())
    dim = feeds["train"].pictures.shape[-1]
    torch.manual_seed(spec.seed)
    model = captioning.Captioner(MaskedCells(dim), len(words), sizes.dim, sizes.depth, sizes.heads, longest)
    fitted = fit(
        model,
        feeds["train"],
        feeds["val"],
        spec.training,
        spec.seed,
        loss=lambda m, b: captioning.caption_loss(m, b.pictures, b.words, b.word_mask),
        score=lambda m, feed: -nats_per_word(m, feed),
        label=f"captioner, seed {spec.seed}",
    )
    test = captioned(profile, "test")
    tokens = test.tokens.to(next(model.parameters()).device)
    said = {
        name: captioning.decode_captions(
            torch.cat(
                [pad_to(search(model, t, max_words=longest - 1).words, longest) for t in tokens.split(200)]
            ).cpu(),
            words,
        )
        for name, search in {"greedy": captioning.greedy, "beam": captioning.beam_search}.items()
    }
    order = shuffled_pictures(np.arange(len(tokens)), seed=0)
    every = test.scenes.scenes
    arrays = {f"{name}.{k}": v for name, s in said.items() for k, v in judged(s, every).items()}
    arrays |= {f"other.{k}": v for k, v in judged(said["beam"], [every[i] for i in order]).items()}
    plain = [{" ".join(tokenize(c)) for c in five} for five in test.captions]
    arrays["exact"] = np.array([s in five for s, five in zip(said["beam"], plain)])
    metrics = {name: Metric(float(arrays[name].mean()), len(tokens)) for name in ("greedy.true", "beam.true", "exact")}
    metrics["nats_per_word"] = Metric(nats_per_word(model, feeds["test"]), int(feeds["test"].word_mask[:, 1:].sum()))
    details = {
        "history": fitted.history,
        "said": {name: sentences[: 4 * GALLERY] for name, sentences in said.items()},
        "parameters": sum(p.numel() for p in model.parameters()),
        "data_hash": test.scenes.content_hash(),
    }
    return Outcome(metrics, arrays, details)


def pad_to(words: Tensor, length: int) -> Tensor:
    """Captions (B, T) with padding after them → (B, length)."""
    return nn.functional.pad(words, (0, length - words.shape[1]))
