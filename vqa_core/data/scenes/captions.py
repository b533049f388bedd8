"""True sentences about a scene, for contrastive learning and retrieval."""

from __future__ import annotations

import itertools
import random

from .grammar import MARGIN, noun, with_article
from .world import Scene

_NUMBERS = ("no", "one", "two", "three", "four", "five", "six", "seven", "eight")


def captions(scene: Scene, number: int, chance: random.Random) -> tuple[str, ...]:
    """Draw different true captions of a scene.

    Four kinds alternate: a relation of two objects, a count, a list of two or three objects, one object.

    Parameters
    ----------
    scene
        A scene with at least one object.
    number
        How many captions, 1 to 5.
    chance
        Source of random choices.
    """
    kinds = [_relations(scene), _counts(scene), _lists(scene), _single(scene)]
    for kind in kinds:
        chance.shuffle(kind)
    alternating = (c for row in itertools.zip_longest(*kinds) for c in row if c is not None)
    return tuple(itertools.islice(dict.fromkeys(alternating), number))


def _relations(scene: Scene) -> list[str]:
    found = []
    for a, b in itertools.permutations(scene.objects, 2):
        here, there = with_article(noun(a[:4])), with_article(noun(b[:4]))
        if b.x - a.x >= MARGIN:
            found += [f"{here} left of {there}", f"{there} right of {here}"]
        if b.y - a.y >= MARGIN:
            found += [f"{here} above {there}", f"{there} below {here}"]
    return found


def _counts(scene: Scene) -> list[str]:
    found = []
    for values in {o[k:m] for o in scene.objects for k, m in ((0, 1), (1, 2), (2, 3), (3, 4), (2, 4))}:
        n = len(scene.matching(values))
        found.append(f"a picture with exactly {_NUMBERS[n]} {noun(values, plural=n > 1)}")
    return sorted(found)  # a set has no order of its own


def _lists(scene: Scene) -> list[str]:
    names = [with_article(noun(o[:4])) for o in scene.objects]
    pairs = [f"{a} and {b}" for a, b in itertools.permutations(names, 2)]
    threes = [f"{a}, {b} and {c}" for a, b, c in itertools.permutations(names[:4], 3)]
    return pairs + threes


def _single(scene: Scene) -> list[str]:
    names = [with_article(noun(o[:4])) for o in scene.objects]
    return [f"{start}{name}" for name in names for start in ("", "a picture with ", "there is ")]
