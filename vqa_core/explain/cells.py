"""The scores of :mod:`~vqa_core.explain.scores` for maps of cells, without repeating each cell to its pixels.

A map that is constant within a cell is scored by the share of each cell that lies in the region, and by nothing else
of the region. So this gives what the scores of the repeated map and the pixels' mask give, in a fraction of the time:
a cell of a volume stands for eight voxels or more.
"""

from __future__ import annotations

import numpy as np
from einops import reduce


def shares_of(regions: np.ndarray, grid: tuple[int, ...]) -> np.ndarray:
    """Share of each cell that lies in the region, float (Q, *grid) in [0, 1]; or means of anything else by cell.

    Parameters
    ----------
    regions
        bool or numbers (Q, *size); each side is a multiple of the grid's.
    """
    regions = np.asarray(regions)
    if regions.ndim != 1 + len(grid) or any(s % g for s, g in zip(regions.shape[1:], grid)):
        raise ValueError(f"regions have shape {regions.shape}; their sides must be multiples of the grid's, {grid}")
    inner = {f"p{k}": s // g for k, (s, g) in enumerate(zip(regions.shape[1:], grid))}
    sides = " ".join(f"(g{k} p{k})" for k in range(len(grid)))
    cells = " ".join(f"g{k}" for k in range(len(grid)))
    return reduce(regions.astype(np.float64), f"q {sides} -> q {cells}", "mean", **inner)  # (Q, *grid)


def cell_scores(maps: np.ndarray, shares: np.ndarray, touching: bool = False) -> dict[str, np.ndarray]:
    """Pointing game, IoU, energy inside and AUPRC of maps of cells, float (Q,) each.

    Parameters
    ----------
    maps
        (Q, *grid), finite, at least 0.
    shares
        (Q, *grid), from :func:`shares_of`; at least one of each question's is above 0.
    touching
        True: the pointing game asks whether the highest cell *touches* the region, not which share of it lies inside;
        the tolerance is then one cell (that of Zhang et al. 2016 is 15 pixels).
    """
    maps, shares = np.asarray(maps, dtype=np.float64), np.asarray(shares, dtype=np.float64)
    if maps.shape != shares.shape or maps.ndim < 2:
        raise ValueError(f"maps have shape {maps.shape}, shares {shares.shape}; give (Q, *grid) twice")
    if not np.isfinite(maps).all() or maps.min() < 0 or shares.min() < 0 or shares.max() > 1:
        raise ValueError("maps must be finite and not negative, shares must lie between 0 and 1")
    maps, shares = maps.reshape(len(maps), -1), shares.reshape(len(shares), -1)  # (Q, N) each
    region, total = shares.sum(axis=1), maps.sum(axis=1)  # (Q,) each
    if not region.all():
        raise ValueError(f"{np.sum(region == 0)} regions are empty; leave these questions out")
    order = np.argsort(-maps, axis=1, kind="stable")  # (Q, N)
    ranked, inside = (np.take_along_axis(x, order, axis=1) for x in (maps, shares))  # (Q, N) each
    both, first = inside.cumsum(axis=1), np.arange(1.0, maps.shape[1] + 1)  # (Q, N), (N,): of the first k cells
    ends = np.append(np.diff(ranked, axis=1) != 0, np.ones((len(maps), 1), dtype=bool), axis=1)  # last of equals
    before = np.maximum.accumulate(np.where(ends, both, 0.0), axis=1)  # (Q, N), at the last threshold so far
    gained = np.diff(before, axis=1, prepend=0.0)  # (Q, N), recall times region
    highest = maps == ranked[:, :1]  # (Q, N)
    target = shares > 0 if touching else shares  # (Q, N)
    return {
        "pointing_game": (highest * target).sum(axis=1) / highest.sum(axis=1),
        "iou": (both / (first + region[:, None] - both) * ends).max(axis=1),
        "energy_inside": np.where(
            total > 0, (maps * shares).sum(axis=1) / np.where(total > 0, total, 1.0), shares.mean(axis=1)
        ),
        "auprc": (gained * both / first).sum(axis=1) / region,
    }
