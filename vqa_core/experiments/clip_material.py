"""What experiment ``clip`` trains on and is judged by: pairs, galleries, single objects, and prompts.

All pictures are scenes with one or two objects, and no training picture shows a colour × shape pair of
:data:`~vqa_core.data.scenes.UNSEEN`.
"""

from __future__ import annotations

import itertools
import random
from dataclasses import dataclass
from functools import lru_cache
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from vqa_core.data import Vocabulary, encode_questions, scenes
from vqa_core.data.scenes.captions import captions
from vqa_core.data.scenes.grammar import noun
from vqa_core.training.feed import as_float
from vqa_core.training.pairs import Pairs

CAPTIONS = 5  # true captions among which a training pair's one is drawn
EVERYTHING = 10**6  # as a number of captions: all that the grammar can say of a scene
#: The classes of zero-shot: every colour with every shape.
NAMES = tuple(noun([colour, shape]) for colour in scenes.COLOURS for shape in scenes.SHAPES)


# ------------------------------------------------------------------------------------------------------------ prompts


STARTS = ("a ", "a picture with a ", "there is a ", "a picture with exactly one ")
_WORDS = [" ".join(filter(None, pair)) for pair in itertools.product(("", *scenes.SIZES), ("", *scenes.TEXTURES))]
#: The four starts of captions about one object, with a size, a texture, or both; after "exactly one" also with neither.
#: Captions name size and texture always, or after "exactly one" never: thirteen of these 33 occur in training, the
#: others are new sentences of old words. (Without either, English says "an orange circle", and no caption has "an".)
PROMPTS = tuple(
    f"{start}{words} {{}}" if words else f"{start}{{}}"
    for start in STARTS
    for words in _WORDS
    if words or start == STARTS[-1]
)
#: Seven of them, fixed before the first run: every start, and every size and texture.
SEVEN = (
    "a small solid {}",
    "a striped {}",
    "a picture with a large solid {}",
    "a picture with a small {}",
    "there is a large striped {}",
    "there is a solid {}",
    "a picture with exactly one {}",
)
#: Name of a row of predictions → its prompts.
ENSEMBLES: dict[str, tuple[str, ...]] = {**{p: (p,) for p in SEVEN}, "seven": SEVEN, "all": PROMPTS}


# ------------------------------------------------------------------------------------------------------------ pictures


@dataclass(frozen=True)
class Pictures:
    """How many pictures: training pairs, galleries, single objects of each kind of pair; and their side in pixels."""

    train: int
    validation: int
    gallery: int
    single: int
    size: int


class Told(NamedTuple):
    """Training pairs, with what is known of all of them.

    Attributes
    ----------
    pairs
        Pictures, and one caption of each.
    captions
        The same captions as sentences.
    words
        Vocabulary of all training captions.
    mean, deviation
        (3,) of the pictures in [−1, 1].
    data_hash
        SHA-256 of the pictures and their questions.
    """

    pairs: Pairs
    captions: tuple[str, ...]
    words: Vocabulary
    mean: Tensor
    deviation: Tensor
    data_hash: str


class Gallery(NamedTuple):
    """Held-out pictures with two objects and a caption each, no two alike.

    Attributes
    ----------
    pictures
        uint8 (G, H, W, 3).
    captions
        G sentences.
    right
        bool (G, G): caption j is true of picture i.
    group
        int (G,): pictures that were drawn as a pair have the same number.
    """

    pictures: Tensor
    captions: tuple[str, ...]
    right: np.ndarray
    group: np.ndarray


class Single(NamedTuple):
    """Held-out pictures of one object: uint8 (Q, H, W, 3), position in :data:`NAMES` (Q,), pairs as in Gallery (Q,)."""

    pictures: Tensor
    label: np.ndarray
    group: np.ndarray


@lru_cache(maxsize=2)
def told(sizes: Pictures) -> Told:
    """Training pairs: pictures with one or two objects, and one of five true captions each."""
    found = scenes.load("train", n=sizes.train, size=sizes.size, objects=(1, 2), questions_per_picture=1)
    sentences = []
    for k, scene in enumerate(found.scenes):
        chance = random.Random(f"caption of training picture {k}")
        sentences.append(chance.choice(captions(scene, CAPTIONS, chance)))
    words = Vocabulary.of_words(sentences)
    ids, mask = (torch.from_numpy(a) for a in encode_questions(sentences, words))
    pictures = torch.from_numpy(found.images)
    some = as_float(pictures[:1000])  # a thousand pictures are enough for six numbers
    mean, deviation = some.mean((0, 2, 3)), some.std((0, 2, 3))  # (3,) each
    return Told(Pairs(pictures, ids, mask), tuple(sentences), words, mean, deviation, found.content_hash())


def everything_true(scene: scenes.Scene) -> frozenset[str]:
    """All that the grammar of the captions can truly say of a scene with one or two objects."""
    return frozenset(captions(scene, EVERYTHING, random.Random(0)))


@lru_cache(maxsize=4)
def gallery(sizes: Pictures, split: str) -> Gallery:
    """Pictures of two objects of ``"val"`` or ``"test"``; a picture whose caption came before is left out.

    Raises
    ------
    ValueError
        When too few captions differ.
    """
    n = sizes.validation if split == "val" else sizes.gallery
    drawn = n + n // 8 * 2 + 2  # pictures come in pairs, so an even number; a few captions come twice
    found = scenes.load(split, n=drawn, size=sizes.size, objects=(2, 2), questions_per_picture=1)
    first: dict[str, int] = {}
    for k, scene in enumerate(found.scenes):
        caption = captions(scene, 1, random.Random(f"caption of {split} picture {k}"))[0]  # relates both objects
        first.setdefault(caption, k)
    if len(first) < n:
        raise ValueError(f"{len(first)} different captions among {drawn} pictures, {n} are needed; ask for fewer")
    chosen, rows = list(first)[:n], np.array(list(first.values())[:n])
    true = [everything_true(found.scenes[k]) for k in rows]
    right = np.array([[caption in of for caption in chosen] for of in true])  # (G, G)
    return Gallery(torch.from_numpy(found.images[rows]), tuple(chosen), right, rows // 2)


@lru_cache(maxsize=4)
def single(sizes: Pictures, kind: str) -> Single:
    """Pictures of one object whose colour × shape pair is ``"seen"`` or ``"unseen"`` in training."""
    split, seed = {"seen": ("test", 1), "unseen": ("test_composition", 0)}[kind]
    found = scenes.load(split, n=sizes.single, seed=seed, size=sizes.size, objects=(1, 1), questions_per_picture=1)
    label = np.array([NAMES.index(noun(scene.objects[0][2:4])) for scene in found.scenes])
    return Single(torch.from_numpy(found.images), label, np.arange(len(label)) // 2)


def unseen_names() -> np.ndarray:
    """Which of :data:`NAMES` no training picture shows, bool (32,)."""
    return np.array([tuple(name.split()) in scenes.UNSEEN for name in NAMES])
