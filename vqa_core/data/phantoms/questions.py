"""Questions about phantoms, one function per category of VQA-RAD (Lau et al. 2018).

Every function draws its form, its words and what a closed question says from fair draws that do not look at the
picture, and gives up (``None``) where the picture does not allow the form. So the words of a question say nothing about
its answer: ``Asked.chance`` is the accuracy of the best guess, and a test measures it.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from typing import NamedTuple

from ..types import CLOSED, OPEN
from .anatomy import MODALITIES, PLANES, REGIONS, TYPICAL, UNSEEN_MODALITY
from .plan import ATTRIBUTES, COUNTABLE, KINDS, SIZED, SIZES, Finding, Plan, organ_chance
from .render import has_room_for_both

#: Answer that questions about something outside the picture get; no answerable question has it.
UNANSWERABLE = "unanswerable"

_MODALITY_WORDS = {"ct": "a CT scan", "t1 mri": "a T1 MRI", "t2 mri": "a T2 MRI", "xray": "an X-ray"}
#: Letter of a side marker → what it stands for.
SIDES = {"L": "left", "R": "right", "A": "anterior", "P": "posterior"}
_NUMBER_WORDS = {1: "one", 2: "two", 3: "three"}


class Asked(NamedTuple):
    """A question about one plan.

    Attributes
    ----------
    words, answer, kind
        As in a sample.
    chance
        Accuracy of the best guess that knows only the words.
    regions
        What the answer depends on: ``"body"``, ``"marker"``, ``"organ:<name>"``, ``"tissue:<name>"`` or
        ``"finding:<position in the plan>"``; the answer depends on all of them together.
    organ
        The organ that the words name, else ``""``.
    """

    words: str
    answer: str
    kind: str
    chance: float
    regions: tuple[str, ...]
    organ: str = ""


# ---------------------------------------------------------------------------------------------------------- words


def _yes(truth: bool) -> str:
    return "yes" if truth else "no"


def _a(kind: str) -> str:
    return f"{'an' if kind[0] in 'aeiou' else 'a'} {kind}"


def _in(kind: str, organ: str) -> str:
    return f"{'of' if kind in ('enlargement', 'fracture') else 'in'} the {organ}"


def _is(organ: str) -> str:
    return "Are" if organ.endswith("s") and organ != "sinus" else "Is"


def _other(value: str, values: Sequence[str], chance: random.Random) -> str:
    return chance.choice([v for v in values if v != value])


def _either(value: str, values: Sequence[str], chance: random.Random) -> tuple[str, str]:
    """The value and another one, in random order."""
    return tuple(chance.sample((value, _other(value, values, chance)), 2))


def _claim(value: str, values: Sequence[str], chance: random.Random) -> tuple[str, str]:
    """A value to ask about, which is true with probability one half, and ``"yes"`` or ``"no"``."""
    if chance.random() < 0.5:
        return value, "yes"
    return _other(value, values, chance), "no"


def _finding(position: int) -> str:
    return f"finding:{position}"


# ------------------------------------------------------------------------------------------------------- categories


def _modality(plan: Plan, chance: random.Random) -> Asked | None:
    if plan.modality == UNSEEN_MODALITY:  # a model that has never heard the word cannot say it
        return None
    form = chance.randrange(3)
    if form == 0:
        words = ("What modality is this?", "What kind of scan is this?", "Which imaging modality was used?")
        return Asked(chance.choice(words), plan.modality, OPEN, 1 / len(MODALITIES), ("body",))
    if form == 1:
        said, answer = _claim(plan.modality, MODALITIES, chance)
        words = ("Is this {}?", "Was this picture taken as {}?")
        return Asked(chance.choice(words).format(_MODALITY_WORDS[said]), answer, CLOSED, 0.5, ("body",))
    first, second = _either(plan.modality, MODALITIES, chance)
    words = f"Is this {_MODALITY_WORDS[first]} or {_MODALITY_WORDS[second]}?"
    return Asked(words, plan.modality, CLOSED, 0.5, ("body",))


def _plane(plan: Plan, chance: random.Random) -> Asked:
    form = chance.randrange(3)
    if form == 0:
        words = ("In what plane is this picture?", "What plane is this?", "Which plane is shown?")
        return Asked(chance.choice(words), plan.plane, OPEN, 1 / len(PLANES), ("body",))
    if form == 1:
        said, answer = _claim(plan.plane, PLANES, chance)
        words = ("Is this {} plane?", "Is the picture taken in {} plane?")
        return Asked(chance.choice(words).format(_a(said)), answer, CLOSED, 0.5, ("body",))
    first, second = _either(plan.plane, PLANES, chance)
    return Asked(f"Is the plane {first} or {second}?", plan.plane, CLOSED, 0.5, ("body",))


def _organ(plan: Plan, chance: random.Random) -> Asked:
    form = chance.randrange(3)
    if form == 0:
        words = ("Which part of the body is shown?", "What part of the body is this?", "Which region is pictured?")
        return Asked(chance.choice(words), plan.region, OPEN, 1 / len(REGIONS), ("body",))
    said, answer = _claim(plan.region, REGIONS, chance)
    if form == 1:
        words = ("Is this the {}?", "Does the picture show the {}?")
        return Asked(chance.choice(words).format(said), answer, CLOSED, 0.5, ("body",))
    organ = chance.choice(TYPICAL[said])
    words = chance.choice(("Is any part of the {} visible?", "Does this picture contain the {}?")).format(organ)
    return Asked(words, answer, CLOSED, 0.5, (f"organ:{organ}" if answer == "yes" else "body",))


def _presence(plan: Plan, chance: random.Random) -> Asked | None:
    form = chance.choice(("kind", "organ", "organ", "choice"))
    k = chance.randrange(2)
    f = plan.findings[k]
    where = _finding(k) if f.present else f"organ:{f.organ}"
    if form == "kind":
        words = ("Is there {}?", "Does the picture show {}?", "Do you see {}?")
        return Asked(chance.choice(words).format(_a(f.kind)), _yes(f.present), CLOSED, 0.5, (where,))
    if form == "organ":
        return _presence_in(f, where, chance)
    if len(plan.present) != 1:
        return None
    other = plan.findings[1 - k]
    words = f"Is there {_a(f.kind)} or {_a(other.kind)}?"
    return Asked(words, plan.present[0].kind, CLOSED, 0.5, (_finding(plan.findings.index(plan.present[0])),))


def _presence_in(f: Finding, where: str, chance: random.Random) -> Asked:
    words = chance.choice(("Is there {} {}?", "Do you see {} {}?")).format(_a(f.kind), _in(f.kind, f.organ))
    return Asked(words, _yes(f.present), CLOSED, 0.5, (where,), f.organ)


def _abnormality(plan: Plan, chance: random.Random) -> Asked | None:
    form = chance.randrange(3)
    found = tuple(_finding(k) for k, f in enumerate(plan.findings) if f.present)
    if form == 0:
        if plan.present and chance.random() >= 1 / 3:  # a quarter of the pictures is normal
            return None
        if chance.random() < 0.5:
            words = ("Is this picture normal?", "Does this picture look normal?")
            return Asked(chance.choice(words), _yes(not plan.present), CLOSED, 0.5, found or ("body",))
        words = ("Is anything abnormal in this picture?", "Is there an abnormality?")
        return Asked(chance.choice(words), _yes(bool(plan.present)), CLOSED, 0.5, found or ("body",))
    if form == 1:
        if plan.findings[0].organ == plan.findings[1].organ:
            return None
        return _abnormal_organ(plan, chance.randrange(2), chance)
    if len(found) != 1:
        return None
    words = ("What is abnormal in this picture?", "What is the abnormality?", "Which finding is seen?")
    return Asked(chance.choice(words), plan.present[0].kind, OPEN, 1 / len(KINDS), found)


def _abnormal_organ(plan: Plan, k: int, chance: random.Random) -> Asked:
    f = plan.findings[k]
    regions = (_finding(k) if f.present else f"organ:{f.organ}",)
    if chance.random() < 0.5:
        return Asked(f"{_is(f.organ)} the {f.organ} normal?", _yes(not f.present), CLOSED, 0.5, regions, f.organ)
    return Asked(f"{_is(f.organ)} the {f.organ} abnormal?", _yes(f.present), CLOSED, 0.5, regions, f.organ)


def _count(plan: Plan, chance: random.Random) -> Asked | None:
    able = [k for k, f in enumerate(plan.findings) if f.kind in COUNTABLE]
    if not able:
        return None
    k = chance.choice(able)
    f = plan.findings[k]
    if chance.random() < 2 / 3:
        if not f.present and chance.random() >= 1 / 3:  # 1/2 · 1/3 none, 1/2 · 1/3 each of one, two, three
            return None
        words = ("How many {}s are there?", "How many {}s do you see?", "What is the number of {}s?")
        answer = str(f.number if f.present else 0)
        regions = (_finding(k) if f.present else f"organ:{f.organ}",)
        return Asked(chance.choice(words).format(f.kind), answer, OPEN, 1 / 4, regions)
    if not f.present:
        return None
    said, answer = _claim(str(f.number), ("1", "2", "3"), chance)
    plural = "" if said == "1" else "s"
    words = f"{'Is' if said == '1' else 'Are'} there exactly {_NUMBER_WORDS[int(said)]} {f.kind}{plural}?"
    return Asked(words, answer, CLOSED, 0.5, (_finding(k),))


def _one_present(plan: Plan, able: Callable[[Finding], bool], chance: random.Random) -> int | None:
    found = [k for k, f in enumerate(plan.findings) if f.present and able(f)]
    return chance.choice(found) if found else None


def _position(plan: Plan, chance: random.Random) -> Asked | None:
    form = chance.randrange(4)
    if form == 0:
        k = _one_present(plan, lambda f: True, chance)
        if k is None:
            return None
        f = plan.findings[k]
        words = ("In which organ is the {}?", "Where is the {}?", "Which organ has the {}?")
        return Asked(chance.choice(words).format(f.kind), f.organ, OPEN, organ_chance(f.kind), (_finding(k),))
    k = _one_present(plan, lambda f: bool(f.side), chance)
    if k is None:
        return None
    f = plan.findings[k]
    if form == 1:
        words = ("On which side is the {}?", "Which side of the patient has the {}?")
        return Asked(chance.choice(words).format(f.kind), f.side, OPEN, 0.5, (_finding(k),))
    if form == 2:
        first, second = chance.sample(("left", "right"), 2)
        return Asked(f"Is the {f.kind} on the {first} or on the {second}?", f.side, CLOSED, 0.5, (_finding(k),))
    said, answer = _claim(f.side, ("left", "right"), chance)
    return Asked(f"Is the {f.kind} on the patient's {said} side?", answer, CLOSED, 0.5, (_finding(k),))


def _size(plan: Plan, chance: random.Random) -> Asked | None:
    able = [k for k, f in enumerate(plan.findings) if f.kind in SIZED or f.kind == "enlargement"]
    if not able:
        return None
    k = chance.choice(able)
    f = plan.findings[k]
    if f.kind == "enlargement":
        return _enlarged(f, chance, (f"organ:{f.organ}",))
    if not f.present:
        return None
    form = chance.randrange(3)
    if form == 0:
        words = ("How large is the {}?", "What is the size of the {}?")
        return Asked(chance.choice(words).format(f.kind), f.size, OPEN, 0.5, (_finding(k),))
    if form == 1:
        first, second = chance.sample(SIZES, 2)
        return Asked(f"Is the {f.kind} {first} or {second}?", f.size, CLOSED, 0.5, (_finding(k),))
    said, answer = _claim(f.size, SIZES, chance)
    return Asked(f"Is the {f.kind} {said}?", answer, CLOSED, 0.5, (_finding(k),))


def _enlarged(f: Finding, chance: random.Random, regions: tuple[str, ...]) -> Asked:
    words = chance.choice(("{} the {} enlarged?", "{} the {} too big?")).format(_is(f.organ), f.organ)
    return Asked(words, _yes(f.present), CLOSED, 0.5, regions, f.organ)


def _attribute(plan: Plan, chance: random.Random) -> Asked | None:
    k = _one_present(plan, lambda f: bool(f.attributes), chance)
    if k is None:
        return None
    f = plan.findings[k]
    name, value = chance.choice(sorted(f.attributes.items()))
    values = ATTRIBUTES[f.kind][name]
    form = chance.randrange(3)
    if form == 0:
        words = ("How is the {0} of the {1}?", "How would you describe the {0} of the {1}?")
        return Asked(chance.choice(words).format(name, f.kind), value, OPEN, 0.5, (_finding(k),))
    if form == 1:
        first, second = chance.sample(values, 2)
        return Asked(f"Is the {name} of the {f.kind} {first} or {second}?", value, CLOSED, 0.5, (_finding(k),))
    said, answer = _claim(value, values, chance)
    return Asked(f"Is the {name} of the {f.kind} {said}?", answer, CLOSED, 0.5, (_finding(k),))


def _colour(plan: Plan, chance: random.Random) -> Asked | None:
    form = chance.choice(("finding", "tissue"))
    if form == "finding":
        k = _one_present(
            plan, lambda f: f.kind in ("mass", "nodule") and has_room_for_both(f.organ, plan.modality), chance
        )
        if k is None:
            return None
        f, values = plan.findings[k], ("brighter", "darker")
        value = values[0] if f.bright else values[1]
        if chance.random() < 0.5:
            said, answer = _claim(value, values, chance)
            return Asked(f"Is the {f.kind} {said} than the organ around it?", answer, CLOSED, 0.5, (_finding(k),))
        first, second = chance.sample(values, 2)
        words = f"Is the {f.kind} {first} or {second} than the organ around it?"
        return Asked(words, value, CLOSED, 0.5, (_finding(k),))
    if plan.modality == UNSEEN_MODALITY:  # there the answer would always be the same
        return None
    is_mri = plan.modality.endswith("mri")
    tissue, values, white = chance.choice(
        (("bone", ("white", "black"), not is_mri), ("fat", ("white", "grey"), is_mri))
    )
    value = values[0] if white else values[1]
    name = "cortical bone" if tissue == "bone" else "fat under the skin"
    if chance.random() < 0.5:
        words = chance.choice(("What colour is the {}?", "What is the colour of the {}?")).format(name)
        return Asked(words, value, OPEN, 0.5, (f"tissue:{tissue}",))
    said, answer = _claim(value, values, chance)
    return Asked(f"Is the {name} {said}?", answer, CLOSED, 0.5, (f"tissue:{tissue}",))


def _miscellany(plan: Plan, chance: random.Random) -> Asked:
    """About the side marker that technicians put on a picture."""
    letter, at_top = plan.marker
    place, form = "top" if at_top else "bottom", chance.randrange(3)
    if form == 0:
        words = ("Which side does the side marker name?", "What does the letter on the side marker stand for?")
        return Asked(chance.choice(words), SIDES[letter], OPEN, 1 / 3, ("marker",))  # L and R in two of three planes
    if form == 1:
        first, second = chance.sample(("top", "bottom"), 2)
        words = f"Is the side marker at the {first} or at the {second} of the picture?"
        return Asked(words, place, CLOSED, 0.5, ("marker",))
    said, answer = _claim(place, ("top", "bottom"), chance)
    return Asked(f"Is the side marker at the {said} of the picture?", answer, CLOSED, 0.5, ("marker",))


_ASK: dict[str, Callable[[Plan, random.Random], Asked | None]] = {
    "ABN": _abnormality,
    "ATTRIB": _attribute,
    "COLOR": _colour,
    "COUNT": _count,
    "MODALITY": _modality,
    "ORGAN": _organ,
    "OTHER": _miscellany,
    "PLANE": _plane,
    "POS": _position,
    "PRES": _presence,
    "SIZE": _size,
}
#: The categories of VQA-RAD, spelt as there.
FAMILIES = tuple(_ASK)


def ask(plan: Plan, family: str, chance: random.Random) -> Asked | None:
    """A question of a family, or ``None`` if the picture does not allow the one that was drawn."""
    return _ASK[family](plan, chance)


def ask_about_absent(elsewhere: Plan, family: str, chance: random.Random) -> Asked | None:
    """A question that names an organ of another region; ``elsewhere`` is the plan of a picture of that region.

    Only ABN, PRES and SIZE have words that name an organ; the words are those of answerable questions.
    """
    asked = None
    if family == "PRES":
        asked = _presence_in(elsewhere.findings[0], "body", chance)
    elif family == "ABN" and elsewhere.findings[0].organ != elsewhere.findings[1].organ:
        asked = _abnormal_organ(elsewhere, 0, chance)
    elif family == "SIZE":
        grown = [f for f in elsewhere.findings if f.kind == "enlargement"]
        asked = _enlarged(grown[0], chance, ("body",)) if grown else None
    return asked and asked._replace(answer=UNANSWERABLE, chance=1.0, regions=())
