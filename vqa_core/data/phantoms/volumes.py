"""Phantoms in 3-D, each with a vector of covariates: a picture and numbers that tell of the same thing.

This is the form of *image + genomics* studies, with 25 numbers in place of the genes. The label is the grade of a mass:
low (smooth, homogeneous) or high (irregular, dark in its middle). A few covariates are shifted by the grade, the others
are noise; how much each source can tell is a knob. **Phantoms are not patients, and the numbers are no genes.**
"""

from __future__ import annotations

import hashlib
import random
from dataclasses import dataclass

import numpy as np

from .anatomy import MODALITIES, REGIONS, TABLE, TISSUES, draw_body
from .render import SEVERITY, axis, cover, level, window

GRADES = ("low", "high")
COVARIATES = 25
_HOSTS = {"head": "brain", "chest": "lung", "abdomen": "liver"}


@dataclass(frozen=True)
class VolumeSet:
    """Volumes with covariates; made by :func:`volumes`.

    Attributes
    ----------
    volumes
        uint8 (n, D, H, W): from head to feet, from front to back, from the patient's right to left.
    masks
        Voxels of the mass, bool (n, D, H, W).
    covariates
        float32 (n, 25); without an effect of the grade each is standard normal.
    labels
        Grades, positions in :data:`GRADES`, int64 (n,).
    informative
        Which covariates the grade shifts, bool (25,).
    regions
        Region of the body of each volume.
    """

    volumes: np.ndarray
    masks: np.ndarray
    covariates: np.ndarray
    labels: np.ndarray
    informative: np.ndarray
    regions: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.labels)

    def content_hash(self) -> str:
        """SHA-256 over voxels, masks, covariates and labels."""
        digest = hashlib.sha256(repr(self.regions).encode())
        for array in (self.volumes, self.masks, self.covariates, self.labels):
            digest.update(f"{array.shape}{array.dtype}".encode())
            digest.update(np.ascontiguousarray(array))
        return digest.hexdigest()


def covariates(labels: np.ndarray, seed: int = 0, *, effect: float = 1.0, informative: int = 5) -> np.ndarray:
    """Draw numbers of which some tell of a label.

    Parameters
    ----------
    labels
        0 or 1, (n,).
    seed
        Row i depends on seed, i and its label only.
    effect
        Distance of the two classes' means in standard deviations, in each informative covariate. The best classifier
        of all of them is right with probability Φ(effect · √informative / 2).
    informative
        The first so many of the 25 are shifted by ±effect/2.

    Returns
    -------
    float32 (n, 25)
    """
    labels = np.asarray(labels)
    if labels.ndim != 1 or not np.isin(labels, (0, 1)).all():
        raise ValueError(f"labels must be a row of 0 and 1, got shape {labels.shape} with {np.unique(labels)[:5]}")
    if effect < 0 or not 0 <= informative <= COVARIATES:
        raise ValueError(f"effect is {effect} (at least 0), informative is {informative} (0 to {COVARIATES})")
    noise = [np.random.default_rng([seed, i, 2]).standard_normal(COVARIATES) for i in range(len(labels))]
    found = np.array(noise).reshape(len(labels), COVARIATES)  # (n, 25)
    found[:, :informative] += effect * (labels[:, None] - 0.5)
    return found.astype(np.float32)


def volumes(
    n: int,
    seed: int = 0,
    size: int = 32,
    *,
    region: str = "head",
    modality: str = "t2 mri",
    effect: float = 1.0,
    informative: int = 5,
    severity: float = 1.0,
) -> VolumeSet:
    """Generate volumes with a mass, its grade and covariates.

    Parameters
    ----------
    n
        Number of volumes; volume i does not depend on n.
    seed
        Same seed, same set.
    size
        Depth, height and width in voxels, at least 24.
    region
        One of :data:`~vqa_core.data.phantoms.REGIONS`; the mass is in brain, lung or liver.
    modality
        ``"ct"``, ``"t1 mri"`` or ``"t2 mri"``.
    effect, informative
        See :func:`covariates`; ``effect=0`` makes the vector useless.
    severity
        Noise from 0 to 5.
    """
    sliced = tuple(m for m in MODALITIES if m != "xray")
    if n < 1 or seed < 0 or size < 24:
        raise ValueError(f"n is {n} (from 1), seed is {seed} (from 0), size is {size} (from 24)")
    if region not in REGIONS or modality not in sliced:
        raise ValueError(f"region is {region!r} (of {', '.join(REGIONS)}), modality is {modality!r} (of {sliced})")
    if not 0 <= severity <= 5:
        raise ValueError(f"severity is {severity}, it must be within 0 to 5")
    labels = np.array([random.Random(f"grade of volume {i} of seed {seed}").randrange(2) for i in range(n)])
    sigma = float(np.interp(severity, range(6), SEVERITY))
    drawn = [
        _draw(region, modality, int(g), size, sigma, np.random.default_rng([seed, i, 3])) for i, g in enumerate(labels)
    ]
    return VolumeSet(
        np.stack([v for v, _ in drawn]),  # (n, D, H, W)
        np.stack([m for _, m in drawn]),  # (n, D, H, W)
        covariates(labels, seed, effect=effect, informative=informative),
        labels,
        np.arange(COVARIATES) < informative,
        (region,) * n,
    )


def _draw(
    region: str, modality: str, grade: int, side: int, sigma: float, rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    """One volume, uint8 (D, H, W), and the voxels of its mass, bool (D, H, W)."""
    body = draw_body([o for o in TABLE[region] if o.only != "xray"], [], rng)
    value = np.full((side, side, side), TISSUES["air"][modality], dtype=np.float32)
    host = np.zeros(value.shape, dtype=bool)
    for organ, waves, phases in body:
        where = window(side, organ.centre, organ.axes, organ.wobble)
        part = cover(side, level(side, where, organ.centre, organ.axes, organ.wobble, waves, phases))
        value[where] += part * (TISSUES[organ.tissue][modality] - value[where])
        host[where] = np.where(part >= 0.5, organ.name == _HOSTS[region], host[where])
    places = np.argwhere(host & _far_from_border(host, max(2, side // 12)))
    centre = axis(side)[places[rng.integers(len(places))]][::-1]  # (z, y, x) → (x, y, z)
    axes = 0.2 * rng.uniform(0.85, 1.15, 3)
    wobble = 0.2 if grade else 0.02
    waves = rng.standard_normal((2, 3))
    waves *= (4.5 if grade else 2.0) / np.linalg.norm(waves, axis=1, keepdims=True)
    where = window(side, centre, axes, wobble)
    shape = level(side, where, centre, axes, wobble, waves, rng.uniform(0, 2 * np.pi, 2))
    part = cover(side, shape)
    base = float(np.median(value[host]))
    bright = min(base + 0.35, 0.95)
    value[where] += part * (np.float32(bright) - value[where])
    if grade:
        core = cover(side, shape, 0.55)
        value[where] += core * (np.float32(base - 0.1) - value[where])
    mask = np.zeros(value.shape, dtype=bool)
    mask[where] = part >= 0.5
    value = value + np.float32(sigma) * rng.standard_normal(value.shape, dtype=np.float32)
    if modality != "ct":  # magnitude of a complex signal: Rician
        value = np.hypot(value, np.float32(sigma) * rng.standard_normal(value.shape, dtype=np.float32))
    return (np.clip(value, 0, 1) * 255 + 0.5).astype(np.uint8), mask


def _far_from_border(mask: np.ndarray, by: int) -> np.ndarray:
    """Voxels whose neighbours at distance ``by`` along every axis are in the mask too, bool (D, H, W)."""
    inside = mask.copy()
    for k in range(3):
        for shift in (-by, by):
            inside &= np.roll(mask, shift, axis=k)
    return inside if inside.any() else mask
