"""Anatomy of the phantoms: three regions of the body as lists of deformed ellipsoids.

One table per region serves everything: a picture in a plane drops one coordinate, a radiograph integrates over it, a
volume keeps all three. Coordinates run from −1 to 1 over a picture: x to the patient's left, y to the back, z to the
feet. A picture is seen as radiologists see it: the patient's right is on its left, and in a sagittal picture the
patient looks to the left. Every organ of a picture is cut through its own centre, as if the slice were bent.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cache

import numpy as np

REGIONS = ("head", "chest", "abdomen")
PLANES = ("axial", "coronal", "sagittal")
#: Modalities that ``generate`` draws from; X-ray pictures are coronal (frontal) or sagittal (lateral) only.
MODALITIES = ("ct", "t1 mri", "t2 mri", "xray")
#: The modality that only ``generate(unseen=True)`` shows.
UNSEEN_MODALITY = "ultrasound"
#: Plane → the two coordinates that a picture shows (to the right, down); the third is the depth.
SHOWN = {"axial": (0, 1), "coronal": (0, 2), "sagittal": (1, 2)}

#: Tissue → grey value (0 black to 1 white) in a slice of each modality, and X-ray density relative to muscle.
TISSUES = {
    tissue: dict(zip(("ct", "t1 mri", "t2 mri", UNSEEN_MODALITY, "xray"), values))
    for tissue, values in {
        "air": (0.02, 0.02, 0.02, 0.03, 0.0),
        "lung": (0.07, 0.04, 0.05, 0.22, 0.25),
        "fat": (0.24, 0.92, 0.82, 0.50, 0.85),
        "fluid": (0.34, 0.14, 0.97, 0.04, 1.0),
        "muscle": (0.50, 0.40, 0.24, 0.36, 1.0),
        "liver": (0.60, 0.58, 0.32, 0.52, 1.2),
        "spleen": (0.62, 0.44, 0.56, 0.58, 1.2),
        "kidney": (0.67, 0.48, 0.62, 0.34, 1.3),
        "blood": (0.57, 0.30, 0.34, 0.10, 1.05),
        "bowel": (0.44, 0.34, 0.45, 0.30, 0.6),
        "grey matter": (0.50, 0.44, 0.58, 0.40, 1.0),
        "white matter": (0.43, 0.64, 0.40, 0.50, 1.0),
        "bone": (0.97, 0.06, 0.05, 0.92, 2.6),
        "marrow": (0.74, 0.62, 0.50, 0.70, 1.8),
        "mesentery": (0.28, 0.80, 0.68, 0.45, 0.95),
    }.items()
}


_SHELL_WOBBLE = 0.02


@dataclass(frozen=True)
class Organ:
    """One deformed ellipsoid.

    Attributes
    ----------
    name
        Organ that it is (part of); ``""`` if no question asks about it.
    tissue, around
        Key of :data:`TISSUES`, and that of the tissue in which it lies (X-rays see the difference).
    centre, axes
        Centre and semi-axes (x, y, z).
    planes
        Initials of the planes that show it.
    side
        ``"left"`` or ``"right"`` of the patient, else ``""``.
    only
        ``"slice"`` or ``"xray"`` if other pictures leave it out; ``""`` if all show it.
    rim
        Thickness as a share of the radius if it is hollow, else 0.
    wobble
        Size of the random deformation as a share of the radius.
    folds
        How often the surface goes in and out; 0 is no deformation.
    """

    name: str
    tissue: str
    centre: tuple[float, float, float]
    axes: tuple[float, float, float]
    planes: str = "acs"
    around: str = "muscle"
    side: str = ""
    only: str = ""
    rim: float = 0.0
    wobble: float = 0.05
    folds: float = 2.0


def _both(name: str, tissue: str, centre: tuple, axes: tuple, planes: str = "acs", **about) -> list[Organ]:
    """An organ and its mirror image; a sagittal picture shows the one on the right."""
    x, y, z = centre
    left = Organ(name, tissue, (x, y, z), axes, planes.replace("s", ""), side="left", **about)
    return [left, Organ(name, tissue, (-x, y, z), axes, planes, side="right", **about)]


def _spine(y: float, levels: Sequence[float], axial: float) -> list[Organ]:
    """Vertebrae (cortex and marrow) and the canal behind them."""
    found = []
    for z in levels:
        planes = "acs" if z == axial else "cs"
        found.append(Organ("spine", "bone", (0, y, z), (0.15, 0.13, 0.085), planes, wobble=0.02))
        found.append(Organ("spine", "marrow", (0, y, z), (0.1, 0.085, 0.05), planes, "bone", wobble=0.02))
    found.append(Organ("", "bone", (0, y + 0.16, axial), (0.1, 0.09, 0.1), "a", only="slice"))
    found.append(Organ("", "fluid", (0, y + 0.16, axial), (0.055, 0.045, 1.1), "as", only="slice", wobble=0))
    return found


def _head() -> list[Organ]:
    return [
        Organ("", "muscle", (0, 0.3, 0.85), (0.36, 0.33, 0.55), "cs", "air"),  # neck
        Organ("", "muscle", (0, -0.42, 0.5), (0.46, 0.38, 0.44), "cs", "air"),  # face
        Organ("", "fat", (0, -0.82, 0.4), (0.1, 0.12, 0.14), "s", "air"),  # nose
        Organ("", "fat", (0, 0.02, -0.12), (0.76, 0.9, 0.78), "acs", "air", wobble=0.02),  # scalp
        Organ("skull", "bone", (0, 0.02, -0.12), (0.7, 0.84, 0.72), "acs", "fat", wobble=0.02),
        Organ("brain", "fluid", (0, 0.02, -0.12), (0.61, 0.75, 0.63), "acs", "bone", wobble=0.02),
        Organ("brain", "grey matter", (0, 0.02, -0.14), (0.585, 0.725, 0.59), "acs", "fluid", wobble=0.025, folds=9),
        *_both(
            "brain", "white matter", (0.27, 0.02, -0.18), (0.21, 0.55, 0.4), around="grey matter", wobble=0.13, folds=9
        ),
        Organ("brain", "fluid", (0, 0.02, -0.36), (0.016, 0.7, 0.36), "ac", wobble=0, only="slice"),  # between halves
        # dark in radiographs, as gas made them when it was the only way to see them; "marrow" sets how dark
        *_both("ventricles", "fluid", (0.11, -0.02, -0.16), (0.075, 0.3, 0.15), around="marrow", wobble=0.12),
        *_both("cerebellum", "grey matter", (0.22, 0.46, 0.3), (0.22, 0.23, 0.17), "cs", around="fluid", folds=7),
        Organ("", "white matter", (0, 0.16, 0.46), (0.08, 0.09, 0.4), "s"),  # brain stem
        *_both("sinus", "air", (0.18, -0.6, 0.64), (0.145, 0.125, 0.15), "acs"),
        Organ("", "bone", (0, -0.5, 0.86), (0.24, 0.2, 0.055), "cs"),  # jaw
        *[Organ("", "bone", (0, 0.42, z), (0.11, 0.1, 0.06), "s", wobble=0.02) for z in (0.62, 0.77, 0.92)],
    ]


def _chest() -> list[Organ]:
    levels = (-0.5, -0.3, -0.1, 0.1, 0.3, 0.5)
    ribs: list[Organ] = []
    for z in levels:  # slices cut ribs across
        ribs += _both("rib", "bone", (0.77, 0, z), (0.035, 0.05, 0.055), "c", only="slice", wobble=0)
        ribs += [Organ("rib", "bone", (0, y, z), (0.05, 0.035, 0.05), "s", only="slice") for y in (-0.53, 0.58)]
        ribs += _both("rib", "bone", (0.4, 0, z), (0.42, 0.5, 0.19), "c", only="xray", rim=0.09, wobble=0.02)
        ribs += [Organ("rib", "bone", (0, 0, z), (0.4, 0.6, 0.17), "s", only="xray", rim=0.08, wobble=0.02)]
    for turn in (0.35, 0.8, 2.34, 2.79, 3.5, 4.0, 5.42, 5.92):
        x, y = 0.8 * np.cos(turn), 0.58 * np.sin(turn)
        ribs.append(Organ("rib", "bone", (x, y, 0), (0.07, 0.045, 0.04), "a", side="left" if x > 0 else "right"))
    return [
        Organ("", "muscle", (0, 0.05, -0.95), (0.24, 0.24, 0.4), "cs", "air"),  # neck
        *_both("", "fat", (0.74, 0, -0.5), (0.25, 0.3, 0.27), "c", around="air"),  # shoulders
        *_both("", "muscle", (0.74, 0, -0.5), (0.2, 0.26, 0.22), "c", around="fat"),
        Organ("", "fat", (0, 0, 0.3), (0.92, 0.72, 1.08), "acs", "air", wobble=0.02),
        Organ("", "muscle", (0, 0, 0.3), (0.84, 0.64, 1.02), "acs", "fat", wobble=0.02),
        *_both("", "bone", (0.62, 0, -0.5), (0.1, 0.1, 0.1), "c", wobble=0.02),  # shoulder joints
        *_both("", "bone", (0.33, -0.35, -0.62), (0.3, 0.05, 0.035), "c", wobble=0.02),  # collar bones
        *_spine(0.45, (-0.8, -0.6, -0.4, -0.2, 0.0, 0.2, 0.4, 0.6, 0.8), 0.0),
        *_both("lung", "lung", (0.43, -0.02, 0.0), (0.31, 0.45, 0.6), wobble=0.06),
        Organ("", "air", (0, 0.0, -0.62), (0.055, 0.055, 0.34), "cs"),  # windpipe
        *_both("", "muscle", (0.36, 0, 0.8), (0.5, 0.45, 0.3), "cs", around="lung"),  # diaphragm
        *ribs,
        Organ("", "bone", (0, -0.54, -0.05), (0.1, 0.045, 0.4), "as", wobble=0.02),  # breast bone
        *_both("", "blood", (0.15, 0.02, -0.05), (0.08, 0.1, 0.12), "c"),  # vessels to the lungs
        Organ("", "blood", (0.16, 0.24, 0), (0.085, 0.085, 0.5), "a"),  # aorta
        Organ("heart", "muscle", (0.12, -0.16, 0.27), (0.29, 0.26, 0.28), wobble=0.08, around="lung"),
        Organ("heart", "blood", (0.13, -0.16, 0.27), (0.21, 0.18, 0.2), wobble=0.08),
    ]


def _abdomen() -> list[Organ]:
    loops = [(0.44, -0.2, 0.36), (0.22, -0.3, 0.5), (0.45, -0.1, 0.6), (-0.42, -0.15, 0.5), (-0.18, -0.3, 0.66)]
    return [
        Organ("", "fat", (0, 0, 0), (0.93, 0.74, 1.4), "acs", "air", wobble=0.02),
        Organ("", "muscle", (0, 0, 0), (0.83, 0.64, 1.35), "acs", "fat", wobble=0.02),
        Organ("", "mesentery", (0, -0.05, 0), (0.76, 0.53, 1.3), "acs", wobble=0.02),
        *_both("", "muscle", (0.2, 0.36, 0.35), (0.11, 0.1, 0.45), "ac", around="mesentery"),
        *_spine(0.37, (-0.9, -0.7, -0.5, -0.3, -0.1, 0.1, 0.3, 0.5, 0.7), -0.1),
        *_both("", "bone", (0.5, 0.2, 0.84), (0.27, 0.1, 0.22), "c"),  # pelvis
        *_both("", "marrow", (0.49, 0.2, 0.84), (0.22, 0.07, 0.17), "c", around="bone"),
        *[Organ("", "bowel", c, (0.13, 0.12, 0.11), "cs", "mesentery", wobble=0.12, folds=4) for c in loops],
        Organ("", "fluid", (0, -0.15, 0.84), (0.2, 0.2, 0.13), "cs"),  # bladder
        Organ("", "blood", (0.08, 0.15, 0), (0.075, 0.07, 0.6), "a"),  # aorta
        Organ("", "blood", (-0.1, 0.14, 0), (0.07, 0.055, 0.6), "a"),  # vena cava
        *_both("kidney", "kidney", (0.38, 0.27, 0.06), (0.15, 0.16, 0.22), around="mesentery"),
        *_both("kidney", "mesentery", (0.33, 0.26, 0.06), (0.055, 0.06, 0.09), around="kidney", wobble=0.12),
        Organ("liver", "liver", (-0.38, -0.1, -0.46), (0.36, 0.35, 0.33), "acs", "mesentery", "right", wobble=0.1),
        Organ("spleen", "spleen", (0.57, 0.08, -0.46), (0.2, 0.28, 0.27), "ac", "mesentery", "left", wobble=0.08),
        Organ("stomach", "bowel", (0.23, -0.28, -0.42), (0.2, 0.17, 0.2), "ac", "mesentery", "left", wobble=0.1),
        Organ("colon", "bowel", (-0.12, -0.4, 0.34), (0.17, 0.135, 0.18), "acs", "mesentery", "right", wobble=0.1),
    ]


#: Region → its organs, the hindmost first.
TABLE: dict[str, tuple[Organ, ...]] = {"head": tuple(_head()), "chest": tuple(_chest()), "abdomen": tuple(_abdomen())}

#: Region → organs that all its pictures and no others show.
TYPICAL = {
    "head": ("brain", "skull", "ventricles"),
    "chest": ("lung", "heart"),
    "abdomen": ("liver", "kidney", "colon"),
}


@cache
def visible_organs(region: str, plane: str, xray: bool) -> tuple[Organ, ...]:
    """Rows of the table that a picture shows, the hindmost first."""
    hidden = "slice" if xray else "xray"
    return tuple(o for o in TABLE[region] if plane[0] in o.planes and o.only != hidden)


@dataclass(frozen=True)
class Body:
    """Random anatomy of one patient: organs with the waves on their surfaces.

    Attributes
    ----------
    organs
        Rows with their own centres and axes, the hindmost first.
    waves
        Wave vectors of each organ's two surface waves, (N, 2, 3).
    phases
        Their phases in radians, (N, 2).
    """

    organs: tuple[Organ, ...]
    waves: np.ndarray
    phases: np.ndarray

    def __iter__(self) -> Iterator[tuple[Organ, np.ndarray, np.ndarray]]:
        return zip(self.organs, self.waves, self.phases)


def draw_body(
    organs: Sequence[Organ], enlarged: Sequence[tuple[str, str]], rng: np.random.Generator, scale: float = 1.0
) -> Body:
    """Draw one patient.

    Parameters
    ----------
    organs
        Rows of the table.
    enlarged
        (organ, side) of what is enlarged; side ``""`` enlarges both sides.
    rng
        Source of shapes.
    scale
        Share of the picture that the body fills.
    """
    number = len(organs)
    build = scale * (1 + 0.05 * rng.uniform(-1, 1, 3))  # broad or narrow, thick or thin, tall or short
    shift = rng.uniform(-0.03, 0.03, 3)
    jitter = rng.uniform(-1, 1, (number, 3))
    growth = 1 + 0.06 * rng.uniform(-1, 1, (number, 3))
    waves = rng.standard_normal((number, 2, 3)) * np.array([o.folds for o in organs])[:, None, None]  # (N, 2, 3)
    phases = rng.uniform(0, 2 * np.pi, (number, 2))  # (N, 2)
    shells = [k for k, o in enumerate(organs) if o.wobble == _SHELL_WOBBLE]
    waves[shells], phases[shells] = waves[shells[0]], phases[shells[0]]  # skin, fat and bone run side by side
    factor = rng.uniform(1.38, 1.5)
    drawn = []
    moves: dict[tuple[str, str], tuple[np.ndarray, np.ndarray]] = {}  # parts of an organ move and grow together
    for organ, moved, grown in zip(organs, jitter, growth):
        if organ.name not in ("", "rib", "spine"):
            moved, grown = moves.setdefault((organ.name, organ.side), (moved, grown))
        is_shell = organ.around == "air" or organ.name in ("", "skull", "brain") or organ.rim
        size = np.array(organ.axes) * build * (1 if is_shell else grown)
        if any(organ.name == name and side in ("", organ.side) for name, side in enlarged):
            size = size * factor
        centre = np.array(organ.centre) * build + shift + (0 if is_shell else 0.025) * moved
        drawn.append(replace(organ, centre=tuple(centre.tolist()), axes=tuple(size.tolist())))
    return Body(tuple(drawn), waves, phases)
