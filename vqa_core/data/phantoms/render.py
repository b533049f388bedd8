"""Phantoms to pixels: slices, projections, sector scans; findings with exact masks; noise of each modality.

One function, :func:`level`, says where pixels and voxels lie relative to a deformed ellipse or ellipsoid; whatever is
drawn, is drawn in a window around the shape.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from functools import cache
from typing import NamedTuple

import numpy as np

from .anatomy import SHOWN, TISSUES, UNSEEN_MODALITY, Body, Organ, draw_body, visible_organs
from .plan import Finding, Plan

#: Noise as a share of white for severity 0 to 5; between them it is interpolated.
SEVERITY = (0.0, 0.02, 0.045, 0.09, 0.15, 0.24)
#: Size of a finding → radius (mass, cyst), thickness (bleed) or share of the organ (fluid) in half picture widths.
RADIUS = {
    "mass": {"small": 0.11, "large": 0.2},
    "cyst": {"small": 0.07, "large": 0.11},
    "nodule": {"small": 0.052, "large": 0.052},
    "bleed": {"small": 0.06, "large": 0.13},
    "fluid level": {"small": 0.3, "large": 0.6},
}
_CONTRAST = 0.3
_ORDER = ("enlargement", "fluid level", "bleed", "mass", "cyst", "nodule", "fracture")  # later ones lie on earlier ones
_FONT = {  # 3 × 5 dots
    "L": "100100100100111",
    "R": "110101110101101",
    "A": "010101111101101",
    "P": "110101110100100",
}


class Drawing(NamedTuple):
    """A picture and where everything is.

    Attributes
    ----------
    picture
        uint8 (H, W).
    owner
        Row of ``rows`` that each pixel shows, int16 (H, W); −1 is the ground.
    rows
        The organs that were drawn.
    findings
        Pixels of each finding of the plan, bool (2, H, W); empty where it is absent.
    marker
        Pixels of the side marker, bool (H, W).
    field
        What the machine sees, bool (H, W): the sector of an ultrasound picture, else everything.
    """

    picture: np.ndarray
    owner: np.ndarray
    rows: tuple[Organ, ...]
    findings: np.ndarray
    marker: np.ndarray
    field: np.ndarray

    def organ(self, name: str) -> np.ndarray:
        """Pixels of an organ, bool (H, W)."""
        return self._of([o.name == name for o in self.rows])

    def tissue(self, name: str) -> np.ndarray:
        """Pixels of a tissue, bool (H, W)."""
        return self._of([o.tissue == name for o in self.rows])

    def body(self) -> np.ndarray:
        """Pixels of the patient, bool (H, W)."""
        return (self.owner >= 0) & self.field

    def _of(self, chosen: Sequence[bool]) -> np.ndarray:
        return np.append(np.array(chosen, dtype=bool), False)[self.owner] & self.field  # −1 reads the last


# -------------------------------------------------------------------------------------------------------- shapes


@cache
def axis(side: int) -> np.ndarray:
    """Centres of pixels from −1 to 1, float32 (side,)."""
    return ((2 * np.arange(side) + 1) / side - 1).astype(np.float32)


def window(side: int, centre: Sequence[float], axes: Sequence[float], wobble: float) -> tuple[slice, ...]:
    """Slices around a shape, in the order of the array's axes (last coordinate first)."""
    found = []
    for c, a in zip(reversed(centre), reversed(axes)):
        reach = a * (1 + 2 * wobble) + 2 / side
        low, high = (c - reach + 1) * side / 2, (c + reach + 1) * side / 2
        found.append(slice(min(max(math.floor(low), 0), side), min(max(math.ceil(high), 0), side)))
    return tuple(found)


class Level(NamedTuple):
    """An ellipsoid seen from the pixels of its window, float32.

    Attributes
    ----------
    radius
        Distance from the centre in units of the semi-axes.
    surface
        ``radius`` of the surface in the same direction; 1 without deformation.
    slope
        Change of ``radius`` per unit of length: (surface − radius) / slope is the distance from the surface.
    """

    radius: np.ndarray
    surface: np.ndarray | float
    slope: np.ndarray


def level(
    side: int,
    where: tuple[slice, ...],
    centre: Sequence[float],
    axes: Sequence[float],
    wobble: float = 0.0,
    waves: np.ndarray | None = None,
    phases: np.ndarray | None = None,
) -> Level:
    """Where pixels lie relative to a deformed ellipse (D = 2) or ellipsoid (D = 3).

    Parameters
    ----------
    side
        Pixels along each axis of the picture or volume.
    where
        Window, in the order of the array's axes.
    centre, axes
        Of the ellipsoid, in coordinates from −1 to 1 (x first), D numbers each.
    wobble
        Size of the deformation.
    waves, phases
        The surface is at 1 + wobble · Σⱼ sin(waveⱼ · direction + phaseⱼ), (J, D) and (J,).
    """
    number = len(centre)
    parts = []
    for d, (c, a) in enumerate(zip(centre, axes)):
        line = (axis(side)[where[number - 1 - d]] - np.float32(c)) / np.float32(a)
        parts.append(line.reshape([-1 if k == number - 1 - d else 1 for k in range(number)]))  # (…, 1) or (1, …)
    radius = np.maximum(np.sqrt(sum(p * p for p in parts)), np.float32(1e-3))
    slope = np.sqrt(sum((p / np.float32(a)) ** 2 for p, a in zip(parts, axes))) / radius
    slope = np.maximum(slope, np.float32(1e-3))
    if not wobble or waves is None:
        return Level(radius, 1.0, slope)
    surface = np.float32(1)
    for wave, phase in zip(waves.astype(np.float32), phases.astype(np.float32)):
        surface = surface + np.float32(wobble) * np.sin(sum(p * k for p, k in zip(parts, wave)) / radius + phase)
    return Level(radius, surface, slope)


def cover(side: int, shape: Level, share: float = 1.0) -> np.ndarray:
    """How much of each pixel a shape covers, 0 to 1; ``share`` shrinks the shape towards its centre."""
    distance = (shape.surface * np.float32(share) - shape.radius) / shape.slope  # half picture widths
    return np.clip(distance * np.float32(side / 2) + np.float32(0.5), 0, 1)


@cache
def _upsampling(side: int, knots: int) -> np.ndarray:
    """Linear interpolation from knots to pixels, float32 (side, knots)."""
    place = np.linspace(0, knots - 1, side)
    return np.maximum(0, 1 - np.abs(place[:, None] - np.arange(knots))).astype(np.float32)


def smooth_field(side: int, knots: int, rng: np.random.Generator) -> np.ndarray:
    """Smooth random field with variance near one half, float32 (side, side)."""
    up = _upsampling(side, knots)
    return up @ rng.standard_normal((knots, knots), dtype=np.float32) @ up.T


@cache
def _sector(side: int) -> tuple[np.ndarray, np.ndarray]:
    """Field of view of an ultrasound probe at the top, bool (H, W), and depth, float32 (H, W)."""
    x, y = axis(side)[None, :], axis(side)[:, None]
    depth = np.hypot(x, y + 1.7)
    return (np.abs(np.arctan2(x, y + 1.7)) < 0.62) & (depth > 0.72) & (depth < 2.68), depth


# ------------------------------------------------------------------------------------------------------- pictures


def draw(plan: Plan, side: int, severity: float, seed: Sequence[int]) -> Drawing:
    """Draw a plan.

    Parameters
    ----------
    plan
        What to show.
    side
        Height and width in pixels.
    severity
        Noise, 0 to 5 (:data:`SEVERITY`); changes nothing else.
    seed
        Of anatomy, texture and noise. Shapes do not depend on ``side`` beyond rounding.
    """
    shapes, places, texture, noise = np.random.default_rng(seed).spawn(4)
    xray, scan = plan.modality == "xray", plan.modality == UNSEEN_MODALITY
    field, depth = _sector(side) if scan else (np.ones((side, side), dtype=bool), None)
    enlarged = [(f.organ, "" if f.organ == "ventricles" else f.side) for f in plan.present if f.kind == "enlargement"]
    body = draw_body(visible_organs(plan.region, plan.plane, xray), enlarged, shapes, 0.86 if scan else 1.0)
    value, owner = _project(body, plan, side) if xray else _cut(body, plan, side)
    value += np.float32(0.025) * smooth_field(side, 24, texture) * (owner >= 0)
    masks = np.zeros((len(plan.findings), side, side), dtype=bool)
    canvas = _Canvas(value, owner, body, plan, side, field, places)
    order = sorted(range(len(plan.findings)), key=lambda k: _ORDER.index(plan.findings[k].kind))
    for k in order:
        if plan.findings[k].present:
            small = [j for j, f in enumerate(plan.findings) if f.kind != "enlargement"]  # on large organs there is room
            mask = canvas.add(plan.findings[k], masks[small].any(0))
            masks &= ~mask  # what is painted later covers what is there
            masks[k] = mask
    if scan:
        bright_bone = np.maximum.accumulate(_is_tissue(body.organs, owner, "bone"), axis=0)  # bone throws a shadow
        value *= np.where(bright_bone & ~_is_tissue(body.organs, owner, "bone"), np.float32(0.55), 1)
        value *= np.float32(1.5) * np.exp(np.float32(-0.25) * depth)
        value += np.float32(0.04)
    elif not xray and plan.modality != "ct":
        value *= 1 + np.float32(0.07) * smooth_field(side, 3, texture)  # coil sensitivity
    value = _add_noise(np.clip(value, 0, 1), plan.modality, float(np.interp(severity, range(6), SEVERITY)), noise)
    value = np.where(field, value, 0)
    marker = _draw_marker(value, plan.marker, side)
    picture = (np.clip(value, 0, 1) * 255 + 0.5).astype(np.uint8)
    return Drawing(picture, owner, body.organs, masks & ~marker, marker, field)


def _is_tissue(rows: Sequence[Organ], owner: np.ndarray, tissue: str) -> np.ndarray:
    return np.array([o.tissue == tissue for o in rows] + [False])[owner]


def _cut(body: Body, plan: Plan, side: int) -> tuple[np.ndarray, np.ndarray]:
    """A slice: later organs cover earlier ones. Grey values (H, W) and owner of each pixel (H, W)."""
    value = np.full((side, side), TISSUES["air"][plan.modality], dtype=np.float32)
    owner = np.full((side, side), -1, dtype=np.int16)
    shown = list(SHOWN[plan.plane])
    for k, (organ, waves, phases) in enumerate(body):
        centre, axes = [organ.centre[d] for d in shown], [organ.axes[d] for d in shown]
        where = window(side, centre, axes, organ.wobble)
        shape = level(side, where, centre, axes, organ.wobble, waves[:, shown], phases)
        part = cover(side, shape)
        value[where] += part * (TISSUES[organ.tissue][plan.modality] - value[where])
        owner[where][part >= 0.5] = k
    return value, owner


def _project(body: Body, plan: Plan, side: int) -> tuple[np.ndarray, np.ndarray]:
    """A radiograph: density times path length, summed over organs, on film. Returns as :func:`_cut`."""
    path = np.zeros((side, side), dtype=np.float32)
    owner = np.full((side, side), -1, dtype=np.int16)
    shown = list(SHOWN[plan.plane])
    (hidden,) = {0, 1, 2} - set(shown)
    for k, (organ, waves, phases) in enumerate(body):
        centre, axes = [organ.centre[d] for d in shown], [organ.axes[d] for d in shown]
        where = window(side, centre, axes, organ.wobble)
        shape = level(side, where, centre, axes, organ.wobble, waves[:, shown], phases)
        part = cover(side, shape)
        extra = TISSUES[organ.tissue]["xray"] - TISSUES[organ.around]["xray"]
        if organ.rim:
            part = part * (1 - cover(side, shape, 1 - organ.rim))
            path[where] += part * np.float32(0.34 * extra / 1.6)  # a thin bone has the same thickness everywhere
        else:
            chord = np.sqrt(np.maximum(1 - (shape.radius / shape.surface) ** 2, 0))
            own = part * chord * np.float32(2 * min(organ.axes[hidden], 0.75) * extra)
            # neck and trunk run into each other, so that the thicker counts; what lies inside them adds or takes away
            path[where] = np.maximum(path[where], own) if organ.around == "air" else path[where] + own
        owner[where][part >= 0.5] = k
    place = -(side * side // 30)
    white = max(np.partition(path.ravel(), place)[place], np.float32(0.1))  # the brightest thirtieth is white
    film = np.float32(0.84) * (np.maximum(path, 0) / white) ** np.float32(1.55)
    return np.minimum(film, 1), owner


# ------------------------------------------------------------------------------------------------------- findings


def has_room_for_both(organ: str, modality: str) -> bool:
    """Whether a mass in an organ can be both brighter and darker than it; lungs and dark blood allow only brighter."""
    if modality == "xray":
        return organ != "lung"
    tissue = {"brain": "grey matter", "cerebellum": "grey matter", "heart": "blood"}.get(organ, organ)
    return _CONTRAST + 0.01 <= TISSUES[tissue][modality] <= 0.99 - _CONTRAST


class _Canvas:
    """Paints findings into ``value``, each on the visible part of its organ."""

    def __init__(self, value, owner, body: Body, plan: Plan, side: int, field, rng: np.random.Generator) -> None:
        self.value, self.owner, self.body, self.plan, self.side = value, owner, body, plan, side
        self.field, self.rng = field, rng
        self.fluid = TISSUES["fluid"][plan.modality]

    def add(self, finding: Finding, taken: np.ndarray) -> np.ndarray:
        """Paint a finding and return its pixels, bool (H, W); ``taken`` is best left free."""
        host = self._host(finding)
        paint = {
            "mass": self._blobs,
            "nodule": self._blobs,
            "cyst": self._blobs,
            "bleed": self._bleed,
            "fluid level": self._fluid_level,
            "fracture": self._fracture,
            "enlargement": lambda finding, host, taken: host,
        }[finding.kind]
        return paint(finding, host, taken)

    def _instances(self, finding: Finding) -> list[int]:
        return [
            k
            for k, o in enumerate(self.body.organs)
            if o.name == finding.organ and ("" in (o.side, finding.side) or o.side == finding.side)
        ]

    def _host(self, finding: Finding) -> np.ndarray:
        """Visible pixels of the organ, on the finding's side, bool (H, W)."""
        host = self._pixels(finding)
        if finding.side:
            middle = np.mean([o.centre[0] for o in self.body.organs[:4]])
            x = axis(self.side) - middle
            host &= (x > 0.03 if finding.side == "left" else x < -0.03)[None, :]
        return host

    def _pixels(self, finding: Finding) -> np.ndarray:
        """Pixels of the organ, bool (H, W); a radiograph shows it through what is before it."""
        chosen = self._instances(finding)
        if self.plan.modality != "xray":
            return np.isin(self.owner, chosen) & self.field
        shown = list(SHOWN[self.plan.plane])
        host = np.zeros_like(self.field)
        for k in chosen:
            organ = self.body.organs[k]
            centre, axes = [organ.centre[d] for d in shown], [organ.axes[d] for d in shown]
            where = window(self.side, centre, axes, organ.wobble)
            shape = level(
                self.side, where, centre, axes, organ.wobble, self.body.waves[k][:, shown], self.body.phases[k]
            )
            inner = shape.surface * (1 - organ.rim if organ.rim else 0)
            host[where] |= (shape.radius <= shape.surface) & (shape.radius >= inner)
        return host

    def _lay(self, part: np.ndarray, grey: float) -> None:
        self.value += part * (np.float32(grey) - self.value)

    def _centres(self, host: np.ndarray, taken: np.ndarray, radius: float, number: int) -> tuple[np.ndarray, float]:
        """Places (number, 2) as x, y, far enough from each other and from what is taken, and the radius that fits."""
        for free in (_shrunk(host, radius * 0.7) & ~_grown(taken, radius), host & ~taken, host):
            rows, columns = np.nonzero(free)
            if len(rows) >= 3 * number:
                break
        picks = self.rng.random((40, number))
        chosen = (picks * len(rows)).astype(int)
        spots = np.stack([axis(self.side)[columns[chosen]], axis(self.side)[rows[chosen]]], axis=-1)  # (40, number, 2)
        if number == 1:
            return spots[0], radius
        apart = np.linalg.norm(spots[:, :, None] - spots[:, None], axis=-1) + 9 * np.eye(number)  # (40, n, n)
        least = apart.min(axis=(1, 2))
        needed = 2 * radius + 4.5 / self.side
        able = np.flatnonzero(least >= needed)
        best = able[0] if len(able) else int(least.argmax())
        return spots[best], min(radius, (least[best] - 4.5 / self.side) / 2)

    def _blobs(self, finding: Finding, host: np.ndarray, taken: np.ndarray) -> np.ndarray:
        kind, look = finding.kind, finding.attributes
        radius = RADIUS[kind][finding.size] * self.rng.uniform(0.92, 1.08)
        centres, radius = self._centres(host, taken, radius, finding.number)
        mask = np.zeros_like(host)
        for centre in centres:
            axes = radius * self.rng.uniform(0.88, 1.12, 2) if kind != "nodule" else np.full(2, radius)
            irregular = look.get("margin") == "irregular"
            wobble = 0.2 if irregular else 0.02
            waves = self.rng.standard_normal((2, 2)) + 0.0
            waves *= (4.5 if irregular else 2.0) / np.linalg.norm(waves, axis=1, keepdims=True)
            phases = self.rng.uniform(0, 2 * np.pi, 2)
            where = window(self.side, centre, axes, wobble)
            shape = level(self.side, where, centre, axes, wobble, waves, phases)
            part = cover(self.side, shape) * self.field[where]
            under = self.value[where]
            mask[where] |= part >= 0.5
            if kind == "cyst":
                wall = 0.035 if look["wall"] == "thin" else 0.075
                core = cover(self.side, shape, max(1 - wall / axes.min(), 0.3))
                base = float(np.median(under))
                rim, inside = (base + 0.3, base - 0.12) if self.plan.modality == "xray" else (0.66, self.fluid)
                if self.plan.modality == "t2 mri":
                    rim = 0.22
                under += part * (np.float32(rim) - under)
                under += core * self.field[where] * (np.float32(inside) - under)
                continue
            both = has_room_for_both(finding.organ, self.plan.modality)
            contrast = _CONTRAST if finding.bright or not both else -_CONTRAST
            if not both and self.plan.modality != "xray":
                contrast = 0.55
            level_under = float(np.median(self.value[host])) if host.any() else 0.5
            if self.plan.modality == "xray":
                under += part * np.float32(contrast)
            else:
                under += part * (np.float32(level_under + contrast) - under)
            if look.get("texture") == "heterogeneous":
                spots = smooth_field(self.side, max(8, round(2.2 / radius)), self.rng)[where]
                core = cover(self.side, shape, 0.5)
                under += part * np.clip(0.1 * spots - 0.75 * contrast * core, -0.5, 0.5).astype(np.float32)
        return mask

    def _bleed(self, finding: Finding, host: np.ndarray, taken: np.ndarray) -> np.ndarray:
        """A crescent along the outer border of the organ: the organ without its own displaced copy."""
        k = self._instances(finding)[0]
        organ = self.body.organs[k]
        shown = list(SHOWN[self.plan.plane])
        centre, axes = np.array(organ.centre)[shown], np.array(organ.axes)[shown]
        turn = self.rng.uniform(-0.7, 0.7)
        out = {"left": 0.0, "right": np.pi, "": self.rng.uniform(0, 2 * np.pi)}[finding.side] + turn
        where = window(self.side, centre, axes, organ.wobble)
        thick = 2 * RADIUS["bleed"][finding.size] * self.rng.uniform(0.92, 1.08)
        moved = centre - thick * np.array([np.cos(out), np.sin(out)])
        copy = level(self.side, where, moved, axes, organ.wobble, self.body.waves[k][:, shown], self.body.phases[k])
        part = np.zeros_like(self.value)
        part[where] = 1 - cover(self.side, copy)
        part *= self._pixels(finding)
        if finding.side:
            part *= host
        if self.plan.modality == "xray":
            self.value += np.float32(0.34) * part
        else:
            self._lay(part, 0.06 if self.plan.modality == UNSEEN_MODALITY else 0.9)
        return part >= 0.5

    def _fluid_level(self, finding: Finding, host: np.ndarray, taken: np.ndarray) -> np.ndarray:
        """Fluid with a straight surface in the lower part of the organ, gas above it."""
        rows = np.flatnonzero(host.any(axis=1))
        filled = np.cumsum(host.sum(axis=1)) / max(host.sum(), 1)  # share of the organ above each row
        share = RADIUS["fluid level"][finding.size] * self.rng.uniform(0.9, 1.1)
        surface = int(np.searchsorted(filled, 1 - share)) + 1
        below = np.arange(self.side)[:, None] >= min(surface, rows[-1])
        fluid, gas = host & below, host & ~below
        if self.plan.modality == "xray":
            self.value += np.where(fluid, np.float32(0.4), 0)
            self.value -= np.where(gas & (self.value > 0.25), np.float32(0.2), 0)
        else:
            grey = {"ct": 0.5, "t1 mri": 0.4}.get(self.plan.modality, self.fluid)
            if self.plan.modality == UNSEEN_MODALITY:
                self._lay(gas.astype(np.float32), 0.5)
            else:
                self._lay(gas.astype(np.float32), 0.05)
            self._lay(fluid.astype(np.float32), grey)
        return fluid

    def _fracture(self, finding: Finding, host: np.ndarray, taken: np.ndarray) -> np.ndarray:
        """A line across bone, with a bend or without."""
        centres, _ = self._centres(host, taken, 0.02, 1)
        turn = self.rng.uniform(0, np.pi)
        half = 0.17
        along = np.array([np.cos(turn), np.sin(turn)])
        across = np.array([-along[1], along[0]])
        bend = 0.11 if finding.attributes["course"] == "bent" else 0.0
        corners = [
            centres[0] - half * along - bend * across,
            centres[0] + bend * across,
            centres[0] + half * along - bend * across,
        ]
        x, y = axis(self.side)[None, :], axis(self.side)[:, None]
        gap = np.full_like(self.value, 9)
        for (x0, y0), (x1, y1) in itertools.pairwise(corners):  # distance to a segment
            dx, dy = x1 - x0, y1 - y0
            t = np.clip(((x - x0) * dx + (y - y0) * dy) / (dx * dx + dy * dy), 0, 1)
            gap = np.minimum(gap, np.hypot(x - x0 - t * dx, y - y0 - t * dy))
        part = np.clip((0.026 - gap) * self.side / 2 + 0.5, 0, 1).astype(np.float32)
        part *= self.field & (self.owner >= 0)  # it ends at the skin
        if self.plan.modality == "xray":
            self.value -= np.float32(0.4) * part
        else:
            self._lay(part, {"ct": 0.12, "t1 mri": 0.95, "t2 mri": 0.95}.get(self.plan.modality, 0.02))
        return part >= 0.5


def _grown(mask: np.ndarray, by: float) -> np.ndarray:
    """A mask grown by ``by`` (half picture widths), as squares and diamonds by turns."""
    grown = mask.copy()
    for _ in range(math.ceil(by * mask.shape[0] / 2)):
        if not grown.any():
            break
        step = grown.copy()
        step[1:] |= grown[:-1]
        step[:-1] |= grown[1:]
        step[:, 1:] |= grown[:, :-1]
        step[:, :-1] |= grown[:, 1:]
        grown = step
    return grown


def _shrunk(mask: np.ndarray, by: float) -> np.ndarray:
    return ~_grown(~mask, by)


# ---------------------------------------------------------------------------------------------------------- noise


def _add_noise(value: np.ndarray, modality: str, sigma: float, rng: np.random.Generator) -> np.ndarray:
    """Noise as the modality has it: Poisson counts (X-ray), Gaussian (CT), Rician (MRI), speckle (ultrasound)."""
    shape, sigma = value.shape, np.float32(sigma)
    if modality == UNSEEN_MODALITY:  # a little speckle belongs to the look
        grain = rng.rayleigh(math.sqrt(2 / math.pi), shape).astype(np.float32)  # mean 1
        return value * (1 + (np.float32(0.35) + 3 * sigma) * (grain - 1))
    if not sigma:
        return value
    if modality == "xray":
        photons = np.float32(0.5) / sigma**2  # a pixel of half white has the standard deviation sigma
        return rng.poisson(value * photons).astype(np.float32) / photons
    real = value + sigma * rng.standard_normal(shape, dtype=np.float32)
    if modality == "ct":
        return real
    return np.hypot(real, sigma * rng.standard_normal(shape, dtype=np.float32))  # magnitude of a complex signal


def _draw_marker(value: np.ndarray, marker: tuple[str, bool], side: int) -> np.ndarray:
    """Write the side marker in its corner: R and A on the left of the picture, L and P on the right."""
    letter, at_top = marker
    dot = max(1, side // 48)
    glyph = np.array(list(_FONT[letter]), dtype=int).reshape(5, 3).astype(bool).repeat(dot, 0).repeat(dot, 1)
    box = np.pad(glyph, dot)  # a dark frame keeps it readable
    top = dot if at_top else side - dot - box.shape[0]
    left = dot if letter in "RA" else side - dot - box.shape[1]
    mask = np.zeros(value.shape, dtype=bool)
    where = (slice(top, top + box.shape[0]), slice(left, left + box.shape[1]))
    value[where] = np.where(box, np.float32(0.95), np.float32(0.02))
    mask[where] = True
    return mask
