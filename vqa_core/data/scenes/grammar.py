"""Questions about scenes: programs, the one place that computes their answers, and their words.

A program is a nested list that goes through JSON unchanged. A *set* is ``["filter", value, …]`` (objects that have all
the values; one argument may be a set of its own) or ``[relation, one]``; *one* object is ``["unique", set]``.

============================================================  ================================
``["exist", set]``                                            is the set non-empty?
``["count", set]``                                            its size
``["query", attribute, one]``                                 a value of one object
``["same", attribute, one, one]``                             have two objects the same value?
``["has", value, one]``                                       has the object that value?
``["in", one, set]``                                          is the object in the set?
``["more" | "fewer" | "as many", set, set]``                  compare two sizes
``["and" | "or" | "xor", truth, truth]``, ``["not", truth]``  logic
============================================================  ================================
"""

from __future__ import annotations

import itertools
import random
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, NamedTuple

from .world import ATTRIBUTES, SHAPES, Scene

Program = list[Any]

FAMILIES = (
    "existence",
    "counting",
    "attribute_query",
    "attribute_comparison",
    "spatial_relation",
    "logic",
    "exclusive_or",
    "count_comparison",
)
OPEN_FAMILIES = ("counting", "attribute_query")
#: Families whose questions name two different objects.
TWO_OBJECT_FAMILIES = ("attribute_comparison", "spatial_relation")

RELATIONS = {
    "left of": ("left of", "to the left of"),
    "right of": ("right of", "to the right of"),
    "above": ("above", "higher than"),
    "below": ("below", "lower than"),
}
#: Two objects are asked about only if their centres differ by this share of the side along the relation's axis.
MARGIN = 0.1

_LOGIC: dict[str, tuple[Callable[[Program, Program], Program], str]] = {
    "and": (lambda p, q: ["and", p, q], "{} and {}"),
    "or": (lambda p, q: ["or", p, q], "{} or {}"),
    "but no": (lambda p, q: ["and", p, ["not", q]], "{} but no {}"),
    "neither": (lambda p, q: ["and", ["not", p], ["not", q]], "neither {} nor {}"),
}

_NAMES = tuple(ATTRIBUTES)
_SUBSETS = tuple(s for r in (1, 2, 3) for s in itertools.combinations(range(4), r))
_SHORT = tuple(s for s in _SUBSETS if len(s) <= 2)


# ---------------------------------------------------------------------------------------------------- execution


def execute(program: Program, scene: Scene) -> str:
    """Answer of a program on a scene.

    Returns
    -------
    str
        ``"yes"`` or ``"no"``, a number in digits, or an attribute value.

    Raises
    ------
    ValueError
        For an unknown operation, or if ``unique`` finds no or several objects.

    Examples
    --------
    >>> from vqa_core.data.scenes import Scene, SceneObject
    >>> scene = Scene((SceneObject("small", "solid", "red", "circle", 0.2, 0.5, 0.085),))
    >>> execute(["query", "colour", ["unique", ["filter", "circle"]]], scene)
    'red'
    """
    value = _evaluate(program, scene)
    if isinstance(value, bool):
        return "yes" if value else "no"
    return str(value)


def _evaluate(program: Program, scene: Scene) -> Any:
    match program:
        case ["filter", *conditions]:
            found = scene.matching([c for c in conditions if isinstance(c, str)])
            for condition in conditions:
                if not isinstance(condition, str):
                    found = found & _evaluate(condition, scene)
            return found
        case ["unique", some]:
            found = _evaluate(some, scene)
            if len(found) != 1:
                raise ValueError(f"{some} is {len(found)} objects in this scene, it must be exactly one")
            return next(iter(found))
        case [("left of" | "right of" | "above" | "below") as relation, one]:
            return _related(relation, _evaluate(one, scene), scene)
        case ["exist", some]:
            return bool(_evaluate(some, scene))
        case ["count", some]:
            return len(_evaluate(some, scene))
        case ["query", attribute, one]:
            return getattr(scene.objects[_evaluate(one, scene)], attribute)
        case ["same", attribute, one, other]:
            return _evaluate(["query", attribute, one], scene) == _evaluate(["query", attribute, other], scene)
        case ["has", value, one]:
            return _evaluate(one, scene) in scene.matching([value])
        case ["in", one, some]:
            return _evaluate(one, scene) in _evaluate(some, scene)
        case ["more", some, others]:
            return len(_evaluate(some, scene)) > len(_evaluate(others, scene))
        case ["fewer", some, others]:
            return len(_evaluate(some, scene)) < len(_evaluate(others, scene))
        case ["as many", some, others]:
            return len(_evaluate(some, scene)) == len(_evaluate(others, scene))
        case ["and", p, q]:
            return _evaluate(p, scene) and _evaluate(q, scene)
        case ["or", p, q]:
            return _evaluate(p, scene) or _evaluate(q, scene)
        case ["xor", p, q]:
            return _evaluate(p, scene) != _evaluate(q, scene)
        case ["not", p]:
            return not _evaluate(p, scene)
    raise ValueError(f"{program!r} is not a program; see the table of operations in vqa_core.data.scenes.grammar")


def _related(relation: str, one: int, scene: Scene) -> frozenset[int]:
    x, y = scene.objects[one].x, scene.objects[one].y
    inside = {
        "left of": lambda o: o.x < x,
        "right of": lambda o: o.x > x,
        "above": lambda o: o.y < y,
        "below": lambda o: o.y > y,
    }[relation]
    return frozenset(i for i, o in enumerate(scene.objects) if inside(o))


def depends_on(program: Program, scene: Scene) -> tuple[int, ...]:
    """Positions of the objects that the answer depends on: all that a ``filter`` of the program names."""
    found: set[int] = set()
    stack = [program]
    while stack:
        node = stack.pop()
        if node[0] == "filter":
            found |= scene.matching([c for c in node[1:] if isinstance(c, str)])
        stack.extend(child for child in node[1:] if isinstance(child, list))
    return tuple(sorted(found))


# -------------------------------------------------------------------------------------------------------- words


def noun(values: Sequence[str], thing: str = "thing", plural: bool = False) -> str:
    """Words of a description whose values are in the order of :data:`ATTRIBUTES`.

    >>> noun(["small", "red"]), noun(["striped", "cross"], plural=True)
    ('small red thing', 'striped crosses')
    """
    words = list(values) if values[-1] in SHAPES else [*values, thing]
    if plural:
        words[-1] += "es" if words[-1].endswith("s") else "s"
    return " ".join(words)


def with_article(words: str) -> str:
    """``"a"`` or ``"an"`` before the words."""
    return f"{'an' if words[0] in 'aeiou' else 'a'} {words}"


def _filter(values: Sequence[str]) -> Program:
    return ["filter", *values]


def _one(values: Sequence[str]) -> Program:
    return ["unique", ["filter", *values]]


# ---------------------------------------------------------------------------- one question for a pair of pictures


class Reference(NamedTuple):
    """A description that fits exactly one object in each picture of a pair."""

    attributes: tuple[int, ...]
    values: tuple[str, ...]
    first: int
    second: int


def references(first: Scene, second: Scene) -> list[Reference]:
    """Descriptions by one to three attributes that are unique in both pictures."""
    found = []
    for i, thing in enumerate(first.objects):
        for subset in _SUBSETS:
            values = tuple(thing[k] for k in subset)
            if len(first.matching(values)) == 1:
                there = second.matching(values)
                if len(there) == 1:
                    found.append(Reference(subset, values, i, next(iter(there))))
    return found


Question = tuple[Program, str]


class Asker:
    """Finds questions whose answers differ between two pictures.

    Each method named after a family returns a program and its words, or ``None`` when the pair allows none.
    A closed question is true of ``first`` and false of ``second``.

    Parameters
    ----------
    first, second
        The scenes.
    shared
        Their common :func:`references`.
    counted
        The description that a counting question asks about.
    agree
        For exclusive-or: whether the false side has both attributes (else neither).
    chance
        Source of random choices.
    """

    def __init__(
        self,
        first: Scene,
        second: Scene,
        shared: list[Reference],
        counted: tuple[str, ...],
        agree: bool,
        chance: random.Random,
    ) -> None:
        self.first, self.second, self.shared = first, second, shared
        self.counted, self.agree, self.chance = counted, agree, chance
        self.thing = chance.choice(("thing", "object"))

    def ask(self, family: str) -> Question | None:
        """A question of a family."""
        return getattr(self, family)()

    # -- helpers

    def _shuffled(self, items: Sequence) -> list:
        return self.chance.sample(items, len(items))

    def _description(self, scene: Scene, subsets=_SHORT) -> tuple[str, ...]:
        thing = self.chance.choice(scene.objects)
        return tuple(thing[k] for k in self.chance.choice(subsets))

    def _either_description(self) -> tuple[str, ...]:
        return self._description(self.chance.choice((self.first, self.second)))

    def _a(self, values: Sequence[str]) -> str:
        return with_article(noun(values, self.thing))

    def _the(self, values: Sequence[str]) -> str:
        return f"the {noun(values, self.thing)}"

    def _all(self, values: Sequence[str]) -> str:
        return noun(values, self.thing, plural=True)

    def _tells_apart(self, program: Program) -> bool:
        return _evaluate(program, self.first) is True and _evaluate(program, self.second) is False

    def _pairs(self, without: int | None = None) -> Iterator[tuple[Reference, Reference]]:
        """Pairs of references that name two objects in either picture; short ones come first."""
        able = self._shuffled([r for r in self.shared if without not in r.attributes])
        able.sort(key=lambda r: len(r.attributes) > 2)
        for r, s in itertools.permutations(able, 2):
            if r.first != s.first and r.second != s.second:
                yield r, s

    def _is_clear(self, relation: str, scene: Scene, one: int, others: Iterable[int]) -> bool:
        axis = 4 if relation in ("left of", "right of") else 5  # x or y of a SceneObject
        here = scene.objects[one][axis]
        return all(abs(scene.objects[i][axis] - here) >= MARGIN for i in others if i != one)

    # -- families

    def existence(self) -> Question | None:
        for _ in range(30):
            values = self._description(self.first, _SUBSETS)
            if not self.second.matching(values):
                words = self.chance.choice(("Is there {}?", "Do you see {}?", "Does the picture show {}?"))
                return ["exist", _filter(values)], words.format(self._a(values))
        return None

    def counting(self) -> Question:
        words = self.chance.choice(
            ("How many {} are there?", "How many {} do you see?", "How many {} does the picture show?")
        )
        return ["count", _filter(self.counted)], words.format(self._all(self.counted))

    def attribute_query(self) -> Question | None:
        for k in self._shuffled(range(4)):
            able = [
                r
                for r in self.shared
                if k not in r.attributes and self.first.objects[r.first][k] != self.second.objects[r.second][k]
            ]
            if able:
                values = self.chance.choice(able).values
                words = self.chance.choice(("What {0} is {1}?", "What is the {0} of {1}?", "What {0} does {1} have?"))
                return ["query", _NAMES[k], _one(values)], words.format(_NAMES[k], self._the(values))
        return None

    def attribute_comparison(self) -> Question | None:
        yes, no = self.first.objects, self.second.objects
        for k in self._shuffled(range(4)):
            for r, s in self._pairs(without=k):
                if yes[r.first][k] == yes[s.first][k] and no[r.second][k] != no[s.second][k]:
                    words = self.chance.choice(
                        (
                            "Do {1} and {2} have the same {0}?",
                            "Does {1} have the same {0} as {2}?",
                            "Are {1} and {2} of the same {0}?",
                        )
                    )
                    program = ["same", _NAMES[k], _one(r.values), _one(s.values)]
                    return program, words.format(_NAMES[k], self._the(r.values), self._the(s.values))
        return None

    def spatial_relation(self) -> Question | None:
        orders: list[Callable[[], Question | None]] = [self._which_side, self._anything_there]
        if self.chance.random() < 1 / 3:
            orders.reverse()
        return orders[0]() or orders[1]()

    def _which_side(self) -> Question | None:
        for relation in self._shuffled(list(RELATIONS)):
            for r, s in self._pairs():
                program = ["in", _one(r.values), [relation, _one(s.values)]]
                if (
                    self._is_clear(relation, self.first, s.first, [r.first])
                    and self._is_clear(relation, self.second, s.second, [r.second])
                    and self._tells_apart(program)
                ):
                    words = self.chance.choice(RELATIONS[relation])
                    return program, f"Is {self._the(r.values)} {words} {self._the(s.values)}?"
        return None

    def _anything_there(self) -> Question | None:
        short = [r for r in self.shared if len(r.attributes) <= 2]
        for _ in range(40 if short else 0):
            relation, s = self.chance.choice(list(RELATIONS)), self.chance.choice(short)
            values = self._description(self.first)
            program = ["exist", ["filter", *values, [relation, _one(s.values)]]]
            if (
                self._is_clear(relation, self.first, s.first, self.first.matching(values))
                and self._is_clear(relation, self.second, s.second, self.second.matching(values))
                and self._tells_apart(program)
            ):
                words = self.chance.choice(RELATIONS[relation])
                return program, f"Is there {self._a(values)} {words} {self._the(s.values)}?"
        return None

    def logic(self) -> Question | None:
        for form in self._shuffled(list(_LOGIC)):
            make, words = _LOGIC[form]
            for _ in range(60):
                p, q = self._either_description(), self._either_description()
                if set(p) <= set(q) or set(q) <= set(p):  # one implies the other: not a question of logic
                    continue
                program = make(["exist", _filter(p)], ["exist", _filter(q)])
                if self._tells_apart(program):
                    start = self.chance.choice(("Is there", "Do you see"))
                    second = noun(q, self.thing) if form == "but no" else self._a(q)
                    return program, f"{start} {words.format(self._a(p), second)}?"
        return None

    def exclusive_or(self) -> Question | None:
        for r in self._shuffled(self.shared):
            yes, no = self.first.objects[r.first], self.second.objects[r.second]
            free = [k for k in range(4) if k not in r.attributes]
            for k, m in self._shuffled(list(itertools.permutations(free, 2))):
                # the true side has the first value and lacks the second; the false side has both or neither
                if self.agree:
                    possible = [no[m]] if no[k] == yes[k] and no[m] != yes[m] else []
                else:
                    others = ATTRIBUTES[_NAMES[m]]
                    possible = [v for v in others if v not in (yes[m], no[m])] if no[k] != yes[k] else []
                if possible:
                    v, w = self._shuffled((yes[k], self.chance.choice(possible)))
                    words = self.chance.choice(
                        (
                            "Is {0} either {1} or {2}, but not both?",
                            "Is {0} {1} or {2}, but not both?",
                            "Is {0} just one of {1} and {2}?",
                        )
                    )
                    program = ["xor", ["has", v, _one(r.values)], ["has", w, _one(r.values)]]
                    v, w = (with_article(u) if u in SHAPES else u for u in (v, w))
                    return program, words.format(self._the(r.values), v, w)
        return None

    def count_comparison(self) -> Question | None:
        for form in self._shuffled(("more", "fewer", "as many")):
            for _ in range(30):
                p, q = self._either_description(), self._either_description()
                if set(p) <= set(q) or set(q) <= set(p):
                    continue
                program = [form, _filter(p), _filter(q)]
                seen_in_both = all(s.matching(p) or s.matching(q) for s in (self.first, self.second))
                if seen_in_both and self._tells_apart(program):
                    start = self.chance.choice(("Are there", "Do you see"))
                    link = "as" if form == "as many" else "than"
                    return program, f"{start} {form} {self._all(p)} {link} {self._all(q)}?"
        return None
