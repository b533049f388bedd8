"""Scores from counts are the scores of the same maps at every pixel."""

import numpy as np
import pytest

from vqa_core.explain import scores
from vqa_core.explain.cells import cell_scores, pixels_inside


@pytest.fixture
def pairs():
    rng = np.random.default_rng(0)
    regions = np.zeros((60, 16, 24), dtype=bool)
    for region in regions:
        y, x = rng.integers(0, 12), rng.integers(0, 18)
        region[y : y + rng.integers(1, 7), x : x + rng.integers(1, 9)] = True
    maps = rng.random((60, 4, 6)).round(1)  # with ties
    maps[:20] *= rng.random((20, 4, 6)) < 0.2  # with many zeros
    maps[0] = 0
    maps[1] = 0.3
    return maps, regions


def test_counts_give_the_scores_of_all_pixels(pairs):
    maps, regions = pairs
    fast, whole = cell_scores(maps, pixels_inside(regions, (4, 6)), 16), scores.to_size(maps, (16, 24))
    for name in ("iou", "energy_inside", "auprc"):
        np.testing.assert_allclose(fast[name], scores.SCORES[name](whole, regions), atol=1e-12, err_msg=name)


def test_the_highest_cell_hits_when_it_touches():
    region = np.zeros((1, 4, 4), dtype=bool)
    region[0, 1:3, 1] = True
    inside = pixels_inside(region, (2, 2))
    assert inside.tolist() == [[[1, 0], [1, 0]]]
    assert cell_scores(np.array([[[0, 0], [1.0, 0]]]), inside, 4)["pointing_game"] == [1]
    assert cell_scores(np.array([[[0, 1.0], [0, 0]]]), inside, 4)["pointing_game"] == [0]
    assert cell_scores(np.array([[[1.0, 1.0], [0, 0]]]), inside, 4)["pointing_game"] == [0.5]


def test_errors_say_what_to_do(pairs):
    maps, regions = pairs
    with pytest.raises(ValueError, match="can't be cut into 5 × 6 equal cells"):
        pixels_inside(regions, (5, 6))
    with pytest.raises(ValueError, match="maps of cells need weights from 0"):
        cell_scores(maps - 1, pixels_inside(regions, (4, 6)), 16)
    with pytest.raises(ValueError, match="regions are empty"):
        cell_scores(maps, pixels_inside(regions & False, (4, 6)), 16)
