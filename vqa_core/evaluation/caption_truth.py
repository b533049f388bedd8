"""Is a caption true? For scenes it can be looked up in the world, so that no likeness of words has to stand for truth.

BLEU and its kin count words that a caption shares with those that people wrote. "A red circle left of a blue square"
and "a blue square left of a red circle" share all of theirs, and only one of them is true.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from itertools import pairwise, permutations
from typing import NamedTuple

from vqa_core.data.scenes import COLOURS, SHAPES, SIZES, TEXTURES, Scene, SceneObject
from vqa_core.data.scenes.grammar import MARGIN
from vqa_core.data.text import tokenize

NUMBERS = ("no", "one", "two", "three", "four", "five", "six", "seven", "eight")
KINDS = ("relation", "count", "list", "single")
RELATIONS = {"left of": ("x", 1), "right of": ("x", -1), "above": ("y", 1), "below": ("y", -1)}

_ANY = {name: f"(?:({'|'.join(values)}) )?" for name, values in zip("stc", (SIZES, TEXTURES, COLOURS))}
_ATTRIBUTES = "".join(_ANY.values())
_ONE = rf"an? {_ATTRIBUTES}({'|'.join(SHAPES)}|thing)"
_MANY = rf"{_ATTRIBUTES}({'|'.join(SHAPES)}|thing)(?:e?s)?"
_FORMS = {
    "relation": re.compile(rf"{_ONE} ({'|'.join(RELATIONS)}) {_ONE}"),
    "count": re.compile(rf"a picture with exactly ({'|'.join(NUMBERS)}) {_MANY}"),
    "single": re.compile(rf"(?:a picture with |there is )?{_ONE}"),
}
_LISTED = re.compile(_ONE)


class Judgement(NamedTuple):
    """What a caption says of a scene, and whether it holds.

    Attributes
    ----------
    kind
        One of :data:`KINDS`, or None for a sentence that is none of these.
    true
        Whether all that it says holds; False for a sentence of no kind.
    described
        The values that it gives to each thing it names, for instance ``(("red", "circle"), ("striped",))``.
    found
        For each of them, whether the scene holds a thing with these values.
    """

    kind: str | None
    true: bool
    described: tuple[tuple[str, ...], ...]
    found: tuple[bool, ...]


def judge(caption: str, scene: Scene) -> Judgement:
    """Compare a caption with the truth about a scene.

    Parameters
    ----------
    caption
        Any sentence; of the four kinds of :mod:`vqa_core.data.scenes.captions` the truth is known.
    scene
        The scene.

    Examples
    --------
    >>> from vqa_core.data.scenes import SceneObject
    >>> scene = Scene((SceneObject("small", "solid", "red", "circle", 0.2, 0.5, 0.085),))
    >>> judge("there is a small red circle", scene).true, judge("a blue circle", scene).true
    (True, False)
    """
    words = " ".join(tokenize(caption))
    kind, parts = _parse(words)
    if kind is None:
        return Judgement(None, False, (), ())
    if kind == "count":
        number, described = NUMBERS.index(parts[0]), (parts[1],)
        true = len(scene.matching(parts[1])) == number
        return Judgement(kind, true, described, (bool(scene.matching(parts[1])) or number == 0,))
    if kind == "relation":
        one, relation, other = parts
        pairs = permutations(scene.objects, 2)
        true = any(_has(a, one) and _has(b, other) and _related(a, relation, b) for a, b in pairs)
        described = (one, other)
    else:
        described = tuple(parts)
        true = any(all(map(_has, chosen, described)) for chosen in permutations(scene.objects, len(described)))
    return Judgement(kind, true, described, tuple(bool(scene.matching(values)) for values in described))


def _parse(words: str) -> tuple[str | None, list]:
    """Kind of a sentence, and what it says."""
    if match := _FORMS["relation"].fullmatch(words):
        groups = match.groups()
        return "relation", [_values(groups[:4]), groups[4], _values(groups[5:])]
    if match := _FORMS["count"].fullmatch(words):
        return "count", [match[1], _values(match.groups()[1:])]
    if match := _FORMS["single"].fullmatch(words):
        return "single", [_values(match.groups())]
    listed = list(_LISTED.finditer(words))
    told = [_values(m.groups()) for m in listed]
    between = [words[a.end() : b.start()] for a, b in pairwise(listed)]
    whole = bool(listed) and listed[0].start() == 0 and listed[-1].end() == len(words)
    if whole and len(told) in (2, 3) and between == [" "] * (len(told) - 2) + [" and "]:  # commas are no words
        return "list", told
    return None, []


def _values(groups: Sequence[str | None]) -> tuple[str, ...]:
    return tuple(value for value in groups if value not in (None, "thing"))


def _has(thing: SceneObject, values: Sequence[str]) -> bool:
    return all(value in thing[:4] for value in values)


def _related(one: SceneObject, relation: str, other: SceneObject) -> bool:
    axis, sign = RELATIONS[relation]
    return sign * (getattr(other, axis) - getattr(one, axis)) >= MARGIN
