"""How well maps agree with the pixels that an answer depends on, and maps that know nothing, to compare with.

A map is a non-negative weight for every cell or pixel, a region a boolean mask; both may be pictures or volumes. Maps
that are constant have no highest point: every score here is then its expectation over a random choice among equals.
"""

from __future__ import annotations

import numpy as np


def to_size(maps: np.ndarray, size: tuple[int, ...]) -> np.ndarray:
    """Maps of cells (Q, *grid) brought to (Q, *size) by repeating each cell: no pixel gets a weight of a neighbour.

    Raises
    ------
    ValueError
        When a side of ``size`` is no multiple of the grid's.
    """
    maps = np.asarray(maps)
    if maps.ndim != 1 + len(size) or any(s % g for s, g in zip(size, maps.shape[1:])):
        raise ValueError(f"maps have shape {maps.shape}; sides of {size} must be multiples of the grid's")
    for axis, side in enumerate(size, start=1):
        maps = maps.repeat(side // maps.shape[axis], axis=axis)
    return maps


def pointing_game(maps: np.ndarray, regions: np.ndarray) -> np.ndarray:
    """Whether the highest point lies in the region (Zhang et al. 2016, arXiv 1608.00507), float (Q,) in [0, 1].

    Where several points are equally high, the share of them that lies inside: a constant map scores the region's area.

    Parameters
    ----------
    maps
        (Q, *size), finite.
    regions
        bool (Q, *size), at least one pixel each.
    """
    maps, regions = _checked(maps, regions)  # (Q, N) each
    highest = maps == maps.max(axis=1, keepdims=True)  # (Q, N)
    return (highest & regions).sum(axis=1) / highest.sum(axis=1)


def iou(maps: np.ndarray, regions: np.ndarray) -> np.ndarray:
    """Largest intersection over union of the region with {map ≥ t} over all t, float (Q,) in [0, 1].

    The threshold is chosen with the region known. This flatters every method alike, a constant map too, which scores
    the region's area.
    """
    maps, regions = _checked(maps, regions)  # (Q, N) each
    order = np.argsort(-maps, axis=1, kind="stable")  # (Q, N)
    ranked, inside = (np.take_along_axis(x, order, axis=1) for x in (maps, regions))  # (Q, N) each
    both = inside.cumsum(axis=1)  # (Q, N), of the first k pixels
    either = np.arange(1, maps.shape[1] + 1) + regions.sum(axis=1, keepdims=True) - both  # (Q, N)
    ends = np.append(np.diff(ranked, axis=1) != 0, np.ones((len(maps), 1), dtype=bool), axis=1)  # last of equals
    return (both / either * ends).max(axis=1)


def energy_inside(maps: np.ndarray, regions: np.ndarray) -> np.ndarray:
    """Share of a map's sum that lies in the region, float (Q,) in [0, 1]; a map of zeros counts as constant.

    Raises
    ------
    ValueError
        When a weight is negative.
    """
    maps, regions = _checked(maps, regions)  # (Q, N) each
    if maps.min() < 0:
        raise ValueError(f"the least weight is {maps.min():.3g}; energy needs weights from 0: take np.abs")
    total = maps.sum(axis=1)  # (Q,)
    inside = (maps * regions).sum(axis=1)
    return np.where(total > 0, inside / np.where(total > 0, total, 1.0), regions.mean(axis=1))


def auprc(maps: np.ndarray, regions: np.ndarray) -> np.ndarray:
    """Average precision of telling the region's pixels by their weight, float (Q,); a constant map scores the area."""
    from sklearn.metrics import average_precision_score

    maps, regions = _checked(maps, regions)  # (Q, N) each
    return np.array([average_precision_score(r, m) for m, r in zip(maps, regions)])


#: Score → (maps, regions) → (Q,).
SCORES = {"pointing_game": pointing_game, "iou": iou, "energy_inside": energy_inside, "auprc": auprc}


def centre_bias(regions: np.ndarray) -> np.ndarray:
    """The mean of known regions (n, *size): the map of one who looks where answers usually are, (*size)."""
    regions = np.asarray(regions)
    if regions.dtype != bool or not len(regions):
        raise ValueError(f"regions are {regions.dtype} {regions.shape}; give at least one bool mask")
    return regions.mean(axis=0)


def random_maps(shape: tuple[int, ...], seed: int = 0) -> np.ndarray:
    """Weights uniform on (0, 1), each pixel on its own."""
    return np.random.default_rng(seed).random(shape)


def edges(pictures: np.ndarray) -> np.ndarray:
    """Size of the grey gradient, Sobel (Q, H, W): what Adebayo et al. 2018 (arXiv 1810.03292) compare maps with.

    Parameters
    ----------
    pictures
        uint8 (Q, H, W, 3).
    """
    from scipy.ndimage import sobel

    grey = np.asarray(pictures, dtype=np.float64).mean(axis=-1)  # (Q, H, W)
    return np.stack([np.hypot(sobel(g, axis=0), sobel(g, axis=1)) for g in grey])  # each alone: Sobel smooths all axes


def rank_agreement(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Spearman's correlation of two maps of each question, float (Q,) in [−1, 1]; 0 where one of them is constant."""
    from scipy.stats import rankdata

    if np.shape(a) != np.shape(b):
        raise ValueError(f"maps have shapes {np.shape(a)} and {np.shape(b)}")
    x, y = (rankdata(np.reshape(m, (len(m), -1)), axis=1) for m in (a, b))  # (Q, N) each
    x, y = (r - r.mean(axis=1, keepdims=True) for r in (x, y))
    scale = np.sqrt((x**2).sum(axis=1) * (y**2).sum(axis=1))  # (Q,)
    return np.where(scale > 0, (x * y).sum(axis=1) / np.where(scale > 0, scale, 1.0), 0.0)


def _checked(maps: np.ndarray, regions: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Both as (Q, N), after a look at shapes and values."""
    maps, regions = np.asarray(maps, dtype=np.float64), np.asarray(regions)
    if maps.shape != regions.shape or maps.ndim < 2 or regions.dtype != bool:
        raise ValueError(
            f"maps have shape {maps.shape}, regions are {regions.dtype} {regions.shape}; give (Q, *size) twice, "
            "regions as bool"
        )
    if not np.isfinite(maps).all():
        raise ValueError(f"{np.sum(~np.isfinite(maps))} weights are not finite")
    maps, regions = maps.reshape(len(maps), -1), regions.reshape(len(regions), -1)  # (Q, N) each
    if not regions.any(axis=1).all():
        rows = np.flatnonzero(~regions.any(axis=1))
        raise ValueError(f"{len(rows)} regions are empty (the first is row {rows[0]}); leave these questions out")
    return maps, regions
