"""Scores of maps of cells are those of the repeated maps; shares are block means."""

import numpy as np
import pytest

from vqa_core.explain import scores
from vqa_core.explain.cells import cell_scores, shares_of


def drawn(grid, by, ties):
    rng = np.random.default_rng(0)
    regions = rng.random((30, *(g * by for g in grid))) < 0.2
    regions.reshape(30, -1)[:, 0] = True
    maps = rng.random((30, *grid))
    return (np.round(maps, 1) if ties else maps), regions


@pytest.mark.parametrize("ties", [False, True])
@pytest.mark.parametrize("grid", [(3, 4), (2, 3, 4)])
@pytest.mark.parametrize("name", scores.SCORES)
def test_cells_score_as_their_pixels_do(name, grid, ties):
    maps, regions = drawn(grid, 2, ties)
    maps[:3] = 0  # a map of zeros is constant
    expected = scores.SCORES[name](scores.to_size(maps, regions.shape[1:]), regions)
    np.testing.assert_allclose(cell_scores(maps, shares_of(regions, grid))[name], expected)


def test_shares_by_hand():
    regions = np.array([[[True, True, False, False], [True, False, False, False]]])
    np.testing.assert_array_equal(shares_of(regions, (1, 2)), [[[0.75, 0.0]]])
    np.testing.assert_array_equal(shares_of(regions, (2, 4)), regions)


def test_refuses_what_does_not_fit():
    maps, regions = drawn((3, 4), 2, False)
    shares = shares_of(regions, (3, 4))
    for call, message in (
        (lambda: shares_of(regions, (4, 4)), "multiples"),
        (lambda: cell_scores(maps[:, :2], shares), "twice"),
        (lambda: cell_scores(-maps, shares), "not negative"),
        (lambda: cell_scores(maps, shares * 2), "between 0 and 1"),
        (lambda: cell_scores(maps, shares * 0), "30 regions are empty"),
    ):
        with pytest.raises(ValueError, match=message):
            call()


def test_the_highest_cell_hits_when_it_touches():
    region = np.zeros((1, 4, 4), dtype=bool)
    region[0, 1:3, 1] = True
    shares = shares_of(region, (2, 2))
    np.testing.assert_array_equal(shares, [[[0.25, 0], [0.25, 0]]])
    for cells, touched in (([[0, 0], [1, 0]], 1), ([[0, 1], [0, 0]], 0), ([[1, 1], [0, 0]], 0.5)):
        maps = np.array([cells], dtype=float)
        assert cell_scores(maps, shares, touching=True)["pointing_game"] == [touched]
        assert cell_scores(maps, shares)["pointing_game"] == [touched / 4]
