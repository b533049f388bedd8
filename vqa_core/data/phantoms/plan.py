"""What a phantom shows, drawn before any pixel: region, modality, plane, two findings of which each is there or not.

Whether a finding is there, its side, its number and its looks are independent fair draws, and so are region, modality
and plane (each uniform by itself; an X-ray has no axial plane). Balanced questions follow from that without rejection.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache

from .anatomy import MODALITIES, PLANES, REGIONS, TABLE, UNSEEN_MODALITY

KINDS = ("mass", "nodule", "cyst", "bleed", "fluid level", "fracture", "enlargement")
COUNTABLE = ("nodule", "cyst")
SIZED = ("mass", "cyst", "bleed", "fluid level")
SIZES = ("small", "large")
#: Kind → attribute → its two values.
ATTRIBUTES = {
    "mass": {"margin": ("smooth", "irregular"), "texture": ("homogeneous", "heterogeneous")},
    "cyst": {"wall": ("thin", "thick")},
    "fracture": {"course": ("straight", "bent")},
}
#: Organs whose findings have no side of the patient.
MIDLINE = ("heart", "spine", "ventricles")

#: Region → kind → organs in which it occurs, where the plane shows them.
HOSTS = {
    "head": {
        "mass": ("brain", "cerebellum"),
        "nodule": ("brain",),
        "cyst": ("brain",),
        "bleed": ("brain",),
        "fluid level": ("sinus",),
        "fracture": ("skull",),
        "enlargement": ("ventricles",),
    },
    "chest": {
        "mass": ("lung", "heart"),
        "nodule": ("lung",),
        "cyst": ("lung",),
        "bleed": ("lung", "heart"),
        "fluid level": ("lung",),
        "fracture": ("rib", "spine"),
        "enlargement": ("heart",),
    },
    "abdomen": {
        "mass": ("liver", "spleen", "kidney"),
        "nodule": ("liver", "spleen"),
        "cyst": ("liver", "spleen"),
        "bleed": ("liver", "spleen", "kidney"),
        "fluid level": ("stomach", "colon"),
        "fracture": ("spine",),
        "enlargement": ("liver", "spleen", "kidney"),
    },
}


@dataclass(frozen=True)
class Finding:
    """A finding that was planned for a picture.

    Attributes
    ----------
    kind, organ
        One of :data:`KINDS`, and where it is.
    side
        ``"left"`` or ``"right"`` of the patient; ``""`` in sagittal pictures and for organs of :data:`MIDLINE`.
    present
        Whether the picture has it.
    number
        1 to 3 for nodules and cysts (all on the same side, in the same organ and alike), else 1.
    size, bright
        ``"small"`` or ``"large"``; whether a mass or nodule is brighter than what is around it.
    attributes
        Attribute → value, of :data:`ATTRIBUTES`.
    """

    kind: str
    organ: str
    side: str
    present: bool
    number: int
    size: str
    bright: bool
    attributes: dict[str, str]


@dataclass(frozen=True)
class Plan:
    """What one picture shows. ``marker`` is the letter of the side marker and whether it is at the top."""

    region: str
    modality: str
    plane: str
    findings: tuple[Finding, ...]
    marker: tuple[str, bool]

    @property
    def present(self) -> tuple[Finding, ...]:
        """The findings that the picture has."""
        return tuple(f for f in self.findings if f.present)


@cache
def hosts(region: str, plane: str, kind: str, side: str) -> tuple[str, ...]:
    """Organs in which a finding can be; ``side`` is ``""`` for sagittal pictures."""
    shown = {o.name: o for o in TABLE[region] if plane[0] in o.planes and (not side or o.side in ("", side))}
    return tuple(name for name in HOSTS[region][kind] if name in shown)


def draw_view(unseen: bool, chance: random.Random) -> tuple[str, str]:
    """Draw modality and plane; each is uniform by itself although an X-ray has no axial plane."""
    if unseen:
        return UNSEEN_MODALITY, chance.choice(PLANES)
    modality = chance.choice(MODALITIES)
    upright = chance.choice(PLANES[1:])
    if modality != "xray" and chance.random() < 4 / 9:  # 3/4 · 4/9 = 1/3
        return modality, "axial"
    return modality, upright


def draw_finding(region: str, plane: str, kind: str, present: bool, chance: random.Random, organ: str = "") -> Finding:
    """Draw where a finding is and what it looks like; ``organ`` fixes the organ, else it is drawn."""
    side = "" if plane == "sagittal" else chance.choice(("left", "right"))
    if organ and organ not in hosts(region, plane, kind, side):
        side = "left" if side == "right" else "right"  # liver and spleen lie on one side
    organ = organ or chance.choice(hosts(region, plane, kind, side))
    return Finding(
        kind=kind,
        organ=organ,
        side="" if organ in MIDLINE else side,
        present=present,
        number=chance.randint(1, 3) if kind in COUNTABLE else 1,
        size=chance.choice(SIZES),
        bright=chance.random() < 0.5,
        attributes={name: chance.choice(values) for name, values in ATTRIBUTES.get(kind, {}).items()},
    )


def draw_marker(plane: str, chance: random.Random) -> tuple[str, bool]:
    """Draw the side marker: R or L (patient), in sagittal pictures A or P (anterior, posterior); at the top or not."""
    return chance.choice("AP" if plane == "sagittal" else "LR"), chance.random() < 0.5


def draw_plan(unseen: bool, chance: random.Random, regions: Sequence[str] = REGIONS) -> Plan:
    """Draw a picture with two different kinds of finding, each present with probability one half."""
    region = chance.choice(regions)
    modality, plane = draw_view(unseen, chance)
    findings = tuple(
        draw_finding(region, plane, kind, chance.random() < 0.5, chance) for kind in chance.sample(KINDS, 2)
    )
    return Plan(region, modality, plane, findings, draw_marker(plane, chance))


@cache
def organ_chance(kind: str) -> float:
    """Probability of the organ that a kind of finding is most often in, over all regions, planes and sides."""
    mass: dict[str, float] = {}
    for region in REGIONS:
        for plane in PLANES:
            sides = ("",) if plane == "sagittal" else ("left", "right")
            for side in sides:
                able = hosts(region, plane, kind, side)
                for organ in able:
                    mass[organ] = mass.get(organ, 0) + 1 / (len(REGIONS) * len(PLANES) * len(sides) * len(able))
    return max(mass.values())
