"""Experiment ``similarity_maps``: does a CLIP that has only seen whole captions know where the named thing is?

The small CLIP of experiment ``clip`` (the first seed, whose weights are kept) sees test pictures of two objects. For
each object a sentence names it, and the cosine of every image token with the sentence is a map over the picture, held
against the object's pixels. Nothing was trained for this: the loss compares whole pictures with whole sentences.

Beside it stand maps that tell what the sentence and the training are worth: those of the sentence about the *other*
object of the same picture, those of the same network with random weights, and the centre bias.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from vqa_core.data import scenes
from vqa_core.data.scenes.grammar import noun, with_article
from vqa_core.data.scenes.render import visible
from vqa_core.data.text import Vocabulary, encode_questions
from vqa_core.data.types import Batch
from vqa_core.dual import DualEncoder
from vqa_core.evaluation.statistics import seeds_and_questions
from vqa_core.experiments import Metric, Outcome, Spec, clip
from vqa_core.experiments.clip_material import Pictures, told
from vqa_core.experiments.clip_readout import load_model
from vqa_core.experiments.records import load_record
from vqa_core.explain.cells import cell_scores, shares_of
from vqa_core.explain.maps import explain
from vqa_core.explain.scores import SCORES
from vqa_core.training.feed import as_float

REQUIRES = ("clip",)
UNIT, KEPT = "small", "small"  # of this experiment, and of ``clip``
SHOWN = 6  # pictures whose maps are kept: the first ones
#: Maps → title.
MAPS = {
    "own": "its own sentence",
    "other": "the other object's sentence",
    "untrained": "its own sentence, random weights",
    "centre_bias": "centre bias",
}


@dataclass(frozen=True)
class Sizes:
    """Pictures of ``clip``, how many of the test split are looked at, and training pictures for the centre bias."""

    pictures: Pictures
    test: int
    regions: int


PROFILES = {"smoke": (20, 20), "cpu": (750, 500), "gpu": (4000, 2000)}  # test pictures, pictures for the centre bias


def specs(profile: str) -> list[Spec]:
    """One spec: there is one model whose weights are kept."""
    return [Spec("similarity_maps", UNIT, 0, profile, Sizes(clip.PROFILES[profile].pictures, *PROFILES[profile]))]


class Named(NamedTuple):
    """Objects of pictures with two, each with a sentence that is true of this object alone.

    Attributes
    ----------
    pictures
        uint8 (P, H, W, 3).
    picture
        int (Q,), which picture each object is in; the two of a picture follow one another.
    sentences
        Q sentences.
    regions
        bool (Q, H, W), what is seen of the object.
    pairs
        int (P,): pictures that were drawn as a pair have the same number.
    data_hash
        Of the pictures and their questions.
    """

    pictures: Tensor
    picture: np.ndarray
    sentences: Sequence[str]
    regions: np.ndarray
    pairs: np.ndarray
    data_hash: str


def named(split: str, n: int, side: int) -> Named:
    """The first pictures of a split; those whose objects have the same name, or where one is hidden, are left out."""
    found = scenes.load(split, n=n, size=side, objects=(2, 2), questions_per_picture=1)
    kept, sentences, regions = [], [], []
    for k, scene in enumerate(found.scenes):
        names, shown = [noun(o[:4]) for o in scene.objects], visible(scene, side)
        if names[0] != names[1] and all((shown == i).any() for i in (0, 1)):
            kept.append(k)
            sentences += [f"there is {with_article(name)}" for name in names]
            regions += [shown == i for i in (0, 1)]
    picture = np.repeat(np.arange(len(kept)), 2)
    pictures = torch.from_numpy(found.images[kept])
    return Named(pictures, picture, sentences, np.stack(regions), np.array(kept) // 2, found.content_hash())


def trained(profile: str) -> DualEncoder:
    """The first seed of the small CLIP.

    Raises
    ------
    FileNotFoundError
        When it was not trained at this profile.
    """
    spec = next(s for s in clip.specs(profile) if s.unit == KEPT)
    record = load_record(spec)
    if record is None:
        line = f"python -m vqa_core run clip --profile {profile} --unit {KEPT} --seed {spec.seed}"
        raise FileNotFoundError(f"{spec.path()} is missing or was made with other settings; make it: `{line}`")
    return load_model(record, told(spec.data.pictures))


def untrained(profile: str) -> DualEncoder:
    """The same network with random weights."""
    spec = next(s for s in clip.specs(profile) if s.unit == KEPT)
    torch.manual_seed(1000)
    return clip.build(spec.model, told(spec.data.pictures)).eval()


def similarity(model: DualEncoder, words: Vocabulary, found: Named, at_a_time: int = 250) -> np.ndarray:
    """Maps of all objects' sentences over their pictures, float (Q, rows, columns).

    Raises
    ------
    RuntimeError
        When an explanation belongs to other logits than those of the model.
    """
    ids, mask = (torch.from_numpy(a) for a in encode_questions(found.sentences, words))  # (Q, T) each
    maps = []
    for rows in torch.arange(len(ids)).split(at_a_time):
        images = as_float(found.pictures[found.picture[rows]])  # (B, 3, H, W)
        batch = Batch(images, ids[rows], mask[rows], torch.zeros(len(rows), dtype=torch.long))
        explanation = explain(model, batch, "clip_similarity")
        with torch.no_grad():
            logits = model(*batch[:3])  # (B, B)
        if not torch.equal(explanation.logits, logits):
            raise RuntimeError("the logits with and without similarity maps differ; the maps belong to other answers")
        maps.append(explanation.maps)
    return torch.cat(maps).numpy()


def run(spec: Spec) -> Outcome:
    """Score the maps; arrays ``<map>.<score>`` (Q,), ``group`` (Q,), and the maps of the first pictures."""
    sizes, words = spec.data, told(spec.data.pictures).words
    found = named("test", sizes.test, sizes.pictures.size)
    learned = named("train", sizes.regions, sizes.pictures.size)
    own, random_weights = (similarity(make(spec.profile), words, found) for make in (trained, untrained))
    shares = shares_of(found.regions, own.shape[1:])  # (Q, rows, columns)
    usual = shares_of(learned.regions, own.shape[1:]).mean(0)  # (rows, columns)
    swapped = np.arange(len(own)) ^ 1  # 0 ↔ 1, 2 ↔ 3 …: the other object of the same picture
    maps = {"own": own, "other": own[swapped], "untrained": random_weights}
    maps["centre_bias"] = np.broadcast_to(usual, own.shape)
    arrays = {"group": found.pairs[found.picture].astype(np.int32)}
    metrics = {}
    for name, some in maps.items():
        scored = cell_scores(some, shares, touching=True)
        arrays |= {f"{name}.{score}": scored[score].astype(np.float32) for score in SCORES}
        interval = seeds_and_questions(scored["pointing_game"][None], arrays["group"].tolist())
        ends = {"": interval.mean, ".low": interval.low, ".high": interval.high}
        metrics |= {f"{name}.pointing_game{end}": Metric(value, interval.n) for end, value in ends.items()}
    arrays["shown.pictures"] = found.pictures[:SHOWN].numpy()
    arrays["shown.maps"] = own[: 2 * SHOWN].astype(np.float32)
    arrays["shown.regions"] = found.regions[: 2 * SHOWN]
    details = {"sentences": list(found.sentences[: 2 * SHOWN]), "data_hash": found.data_hash}
    return Outcome(metrics, arrays, details)
