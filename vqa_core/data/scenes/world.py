"""The world of the scenes: what objects there are, and how random scenes are drawn in pairs."""

from __future__ import annotations

import itertools
import random
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

import numpy as np

SIZES = ("small", "large")
TEXTURES = ("solid", "striped")
COLOURS = ("red", "orange", "yellow", "green", "cyan", "blue", "purple", "black")
SHAPES = ("circle", "square", "triangle", "cross")

#: The four attributes with their values, in the order in which English names them.
ATTRIBUTES = {"size": SIZES, "texture": TEXTURES, "colour": COLOURS, "shape": SHAPES}

#: Radius of the circle around an object, as a share of the picture's side.
RADIUS = {"small": 0.085, "large": 0.135}

#: (colour, shape) pairs that ``pairs="seen"`` leaves out: every shape misses two colours, every colour one shape.
UNSEEN = frozenset((colour, SHAPES[i % len(SHAPES)]) for i, colour in enumerate(COLOURS))

_COMBINATIONS = tuple(itertools.product(*ATTRIBUTES.values()))  # 128 kinds of object
_IS_UNSEEN = np.array([c[2:] in UNSEEN for c in _COMBINATIONS])
_KINDS_TO_COUNT = {
    "all": _COMBINATIONS,
    "seen": tuple(c for c in _COMBINATIONS if c[2:] not in UNSEEN),
    "unseen": tuple(c for c in _COMBINATIONS if c[2:] in UNSEEN),
}
_SHARED = np.array([[sum(p == q for p, q in zip(a, b)) for b in _COMBINATIONS] for a in _COMBINATIONS])  # (128, 128)
_LIKENESS = 1.5  # log-weight per attribute that an object keeps in the partner picture
_GAP = 0.012  # free space between two objects, as a share of the side
_VALUES = tuple((k, value) for k, values in enumerate(ATTRIBUTES.values()) for value in values)


class SceneObject(NamedTuple):
    """One object; ``x`` (to the right), ``y`` (down) and ``radius`` are shares of the picture's side."""

    size: str
    texture: str
    colour: str
    shape: str
    x: float
    y: float
    radius: float


@dataclass(frozen=True)
class Scene:
    """The objects of a picture, the hindmost first."""

    objects: tuple[SceneObject, ...]

    @cached_property
    def _having(self) -> dict[str, frozenset[int]]:
        things = list(enumerate(self.objects))
        return {v: frozenset(i for i, t in things if t[k] == v) for k, v in _VALUES}

    def matching(self, values: Sequence[str]) -> frozenset[int]:
        """Positions of the objects that have every one of ``values``; ``ValueError`` for an unknown value."""
        try:
            sets = [self._having[value] for value in values]
        except KeyError as unknown:
            allowed = ", ".join(value for _, value in _VALUES)
            raise ValueError(f"no object can be {unknown}; the values are {allowed}") from None
        return frozenset.intersection(*sets) if sets else frozenset(range(len(self.objects)))


@dataclass(frozen=True)
class Plan:
    """What is fixed about a pair of pictures before its objects are drawn.

    The counting question is planned, because counts of random objects are far from uniform: with the
    description and the two counts drawn first, the question alone says nothing about its answer.
    """

    objects: int
    counted: tuple[str, ...]
    counts: tuple[int, int]


def highest_count(objects: tuple[int, int]) -> int:
    """Largest answer of a counting question: at most four, and one object is left over where there are several."""
    return max(1, min(4, objects[1] - 1))


def draw_plan(objects: tuple[int, int], pairs: str, chance: random.Random) -> Plan:
    """Draw the number of objects, what is counted, and two different counts."""
    top = highest_count(objects)
    counts = tuple(chance.sample(range(top + 1), 2))
    named = sorted(chance.sample(range(4), chance.choice((1, 2))))
    kind = chance.choice(_KINDS_TO_COUNT[pairs])
    room = max(counts) + (max(counts) > 1)  # one is left over, or nothing could tell three counted things apart
    return Plan(chance.randint(max(objects[0], room), objects[1]), tuple(kind[k] for k in named), counts)


def draw_kinds(plans: Sequence[Plan], pairs: str, rng: np.random.Generator) -> np.ndarray:
    """Draw the kinds of all objects of many pairs of pictures.

    An object of the second picture keeps attributes of its counterpart in the first one (Gumbel-max with a
    weight per shared attribute), so that the two pictures can be asked about the same things.

    Returns
    -------
    int (P, 2, N)
        Numbers of kinds; N is the largest number of objects, places beyond a pair's own number are to be ignored.
    """
    number = np.array([p.objects for p in plans])  # (P,)
    slots = np.arange(number.max())  # (N,)
    matches = np.array([[set(p.counted) <= set(kind) for kind in _COMBINATIONS] for p in plans])  # (P, 128)
    wanted = slots < np.array([p.counts for p in plans])[:, :, None]  # (P, 2, N)
    permitted = matches[:, None, None, :] == wanted[..., None]  # (P, 2, N, 128)
    if pairs == "seen":
        permitted &= ~_IS_UNSEEN
    elif pairs == "unseen":  # every picture has one; a quarter of all objects, as if kinds were drawn uniformly
        forced = np.maximum(1, np.floor(number[:, None] / 4 + rng.random((len(plans), 2))))  # (P, 2)
        order = rng.random(wanted.shape) + (slots >= number[:, None])[:, None, :]  # (P, 2, N)
        is_forced = order.argsort(-1).argsort(-1) < forced[..., None]
        wish = permitted & (is_forced[..., None] == _IS_UNSEEN)
        permitted = np.where(wish.any(-1, keepdims=True), wish, permitted)  # what is counted may be an unseen pair
    gumbel = np.where(permitted, rng.gumbel(size=permitted.shape), -np.inf)  # (P, 2, N, 128)
    first = gumbel[:, 0].argmax(-1)  # (P, N)
    second = (gumbel[:, 1] + _LIKENESS * _SHARED[first]).argmax(-1)  # (P, N)
    return np.stack([first, second], axis=1)


def build_scene(kinds: Sequence[int], occlusion: float, chance: random.Random) -> Scene:
    """Place objects of the given kinds at random, without overlap beyond ``occlusion``, in random depth order."""
    values = sorted((_COMBINATIONS[k] for k in kinds), key=lambda v: v[0])  # "large" < "small": the large ones first
    for _ in range(500):
        placed: list[SceneObject] = []
        for size, texture, colour, shape in values:
            r = RADIUS[size]
            for _ in range(60):
                x = r + chance.random() * (1 - 2 * r)
                y = r + chance.random() * (1 - 2 * r)
                for other in placed:
                    near = (r + other.radius) * (1 - occlusion) + _GAP
                    if (x - other.x) ** 2 + (y - other.y) ** 2 < near * near:
                        break
                else:
                    placed.append(SceneObject(size, texture, colour, shape, x, y, r))
                    break
            else:
                break
        if len(placed) == len(values):
            chance.shuffle(placed)
            return Scene(tuple(placed))
    raise RuntimeError(f"no room was found for {len(values)} objects with occlusion {occlusion}")
