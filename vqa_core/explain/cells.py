"""The scores of :mod:`~vqa_core.explain.scores` for maps of cells, from counts of pixels: the same numbers, fast.

A map that is constant in each cell need not be blown up to pixels: which pixels of a cell lie in the region does not
matter, only how many.
"""

from __future__ import annotations

import numpy as np

from vqa_core.explain.scores import pointing_game


def pixels_inside(regions: np.ndarray, grid: tuple[int, int]) -> np.ndarray:
    """How many pixels of each cell lie in the region: bool (Q, H, W) → int (Q, rows, columns).

    Raises
    ------
    ValueError
        When a side of the pictures is no multiple of the grid's.
    """
    q, h, w = regions.shape
    if h % grid[0] or w % grid[1]:
        raise ValueError(f"pictures of {h} × {w} pixels can't be cut into {grid[0]} × {grid[1]} equal cells")
    return regions.reshape(q, grid[0], h // grid[0], grid[1], w // grid[1]).sum(axis=(2, 4))  # (Q, rows, columns)


def cell_scores(maps: np.ndarray, inside: np.ndarray, area: int) -> dict[str, np.ndarray]:
    """All four scores of maps of cells, (Q,) each.

    Parameters
    ----------
    maps
        (Q, rows, columns), at least 0.
    inside
        int (Q, rows, columns), from :func:`pixels_inside`; each region has a pixel.
    area
        Pixels of a cell.

    Returns
    -------
    dict
        ``iou``, ``energy_inside`` and ``auprc`` are those of the map at every pixel. ``pointing_game`` asks whether the
        highest cell *touches* the region: the tolerance is one cell (that of Zhang et al. 2016 is 15 pixels).
    """
    hit = pointing_game(maps, inside > 0)  # checks shapes and values too
    maps, inside = np.asarray(maps, np.float64).reshape(len(maps), -1), inside.reshape(len(inside), -1)  # (Q, N) each
    if maps.min() < 0:
        raise ValueError(f"the least weight is {maps.min():.3g}; maps of cells need weights from 0")
    region = inside.sum(axis=1, keepdims=True)  # (Q, 1)
    order = np.argsort(-maps, axis=1, kind="stable")  # (Q, N)
    ranked, found = (np.take_along_axis(x, order, axis=1) for x in (maps, inside))  # (Q, N) each
    both = found.cumsum(axis=1)  # (Q, N), pixels of the region in the first k cells
    seen = area * np.arange(1, maps.shape[1] + 1)  # (N,), pixels of the first k cells
    ends = np.append(np.diff(ranked, axis=1) != 0, np.ones((len(maps), 1), dtype=bool), axis=1)  # last of equals
    iou = (both / (seen + region - both) * ends).max(axis=1)
    at_ends = np.maximum.accumulate(np.where(ends, both, 0), axis=1)  # (Q, N), recall so far, in pixels
    gained = np.diff(at_ends, axis=1, prepend=0)  # (Q, N), 0 but at the last of equals
    auprc = (gained * both / seen).sum(axis=1) / region[:, 0]
    total = maps.sum(axis=1)  # (Q,)
    weight = (maps * inside).sum(axis=1) / np.where(total > 0, total, 1.0)
    energy = np.where(total > 0, weight, inside.mean(axis=1)) / area
    return {"pointing_game": hit, "iou": iou, "energy_inside": energy, "auprc": auprc}
