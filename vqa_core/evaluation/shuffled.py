"""The shuffled-picture baseline: the same model and questions, each about another question's picture."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np


def shuffled_pictures(picture_index: Sequence, seed: int, families: Sequence | None = None) -> np.ndarray:
    """Whose picture each question gets in the shuffled-picture baseline.

    Parameters
    ----------
    picture_index
        (Q,) id or number of each question's picture.
    families
        (Q,) pictures are exchanged inside a family only; ``None``: among all questions.

    Returns
    -------
    numpy.ndarray
        A permutation p, int64 (Q,): question i is shown picture ``picture_index[p[i]]``, which is never its own.

    Raises
    ------
    ValueError
        Where one picture has more than half of the questions (of a family): then some question must keep it.

    Notes
    -----
    Questions are sorted by picture, pictures in random order, and the row is rotated by at least the length of the
    longest run of one picture; a rotation that long leaves no run on itself.
    """
    pictures = np.unique(np.asarray(picture_index), return_inverse=True)[1]
    if families is not None and len(families) != len(pictures):
        raise ValueError(f"{len(families)} families for {len(pictures)} questions")
    names = np.zeros(len(pictures), int) if families is None else np.asarray(families)
    rng = np.random.default_rng(seed)
    result = np.empty(len(pictures), np.int64)
    for family in np.unique(names):
        members = rng.permutation(np.flatnonzero(names == family))
        rank = rng.permutation(pictures.max() + 1)[pictures[members]]
        row = members[np.argsort(rank, kind="stable")]
        longest = int(np.bincount(rank).max())
        if 2 * longest > len(row):
            where = "" if families is None else f" of family {str(family)!r}"
            raise ValueError(f"one picture has {longest} of the {len(row)} questions{where}; some would keep it")
        result[row] = np.roll(row, int(rng.integers(longest, len(row) - longest + 1)))
    return result
