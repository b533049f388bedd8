"""Scores of maps: by hand, at the value of a map that knows nothing, and whatever the scale of the map."""

import numpy as np
import pytest

from vqa_core.explain import scores


@pytest.fixture
def pairs():
    rng = np.random.default_rng(0)
    regions = rng.random((40, 6, 8)) < 0.3
    regions[:, 0, 0] = True
    return rng.random((40, 6, 8)), regions


def test_by_hand():
    regions = np.array([[[True, True], [False, False]]])
    maps = np.array([[[0.6, 0.1], [0.3, 0.0]]])
    assert scores.pointing_game(maps, regions) == [1]
    assert scores.pointing_game(maps[:, ::-1], regions) == [0]
    assert scores.iou(maps, regions) == [2 / 3]  # three pixels from 0.1 on: two inside; one from 0.6 on: 1/2
    assert scores.energy_inside(maps, regions) == pytest.approx([0.7])
    # precision is 1 at the first right pixel, 2/3 at the second
    assert scores.auprc(maps, regions) == pytest.approx([0.5 * 1 + 0.5 * 2 / 3])


@pytest.mark.parametrize("name", scores.SCORES)
def test_the_truth_scores_one_and_a_constant_map_the_area(name, pairs):
    _, regions = pairs
    score = scores.SCORES[name]
    np.testing.assert_allclose(score(regions * 1.0, regions), 1)
    np.testing.assert_allclose(score(np.full(regions.shape, 0.25), regions), regions.mean(axis=(1, 2)))
    np.testing.assert_allclose(score(np.zeros(regions.shape), regions), regions.mean(axis=(1, 2)))
    worst = score(1.0 - regions, regions)
    assert (worst <= regions.mean(axis=(1, 2)) + 1e-12).all()


@pytest.mark.parametrize("name", scores.SCORES)
def test_scale_order_and_other_questions_do_not_matter(name, pairs):
    maps, regions = pairs
    found = scores.SCORES[name](maps, regions)
    np.testing.assert_allclose(scores.SCORES[name](7 * maps, regions), found)
    np.testing.assert_allclose(scores.SCORES[name](maps[:, ::-1, ::-1], regions[:, ::-1, ::-1]), found)
    np.testing.assert_allclose(scores.SCORES[name](maps[3:4], regions[3:4]), found[3:4])
    np.testing.assert_allclose(scores.SCORES[name](maps[:, None], regions[:, None]), found)  # a volume of one slice


def test_pointing_game_of_random_maps_is_the_area():
    rng = np.random.default_rng(1)
    regions = np.zeros((4000, 5, 5), dtype=bool)
    regions[:, :2] = True
    found = scores.pointing_game(rng.random(regions.shape), regions)
    assert found.mean() == pytest.approx(0.4, abs=5 * 0.5 / 4000**0.5)


def test_iou_is_the_best_of_all_thresholds(pairs):
    maps, regions = np.round(pairs[0], 1), pairs[1]  # with ties
    every = [
        max(((m >= t) & r).sum() / ((m >= t) | r).sum() for t in np.unique(m)) for m, r in zip(maps, regions)
    ]  # fmt: skip
    np.testing.assert_allclose(scores.iou(maps, regions), every)


def test_cells_are_repeated():
    grown = scores.to_size(np.array([[[1, 2], [3, 4]]]), (4, 6))
    assert grown.shape == (1, 4, 6)
    assert grown[0].tolist() == [[1, 1, 1, 2, 2, 2]] * 2 + [[3, 3, 3, 4, 4, 4]] * 2
    with pytest.raises(ValueError, match="multiples"):
        scores.to_size(np.zeros((1, 2, 2)), (5, 4))


def test_maps_that_know_nothing():
    regions = np.zeros((4, 3, 3), dtype=bool)
    regions[:, 1, 1] = True
    regions[0, 0, 0] = True
    assert scores.centre_bias(regions)[1, 1] == 1
    assert scores.centre_bias(regions)[0, 0] == 0.25
    np.testing.assert_array_equal(scores.random_maps((2, 3), 5), scores.random_maps((2, 3), 5))
    picture = np.zeros((1, 8, 8, 3), dtype=np.uint8)
    picture[:, :, 4:] = 200
    found = scores.edges(picture)[0]
    assert (found[:, 3:5] > 0).all()
    assert (found[:, [0, 1, 2, 5, 6, 7]] == 0).all()
    several = np.concatenate([picture, 255 - picture, picture[:, :, ::-1]])
    np.testing.assert_array_equal(scores.edges(several), np.concatenate([scores.edges(p[None]) for p in several]))
    with pytest.raises(ValueError, match="bool mask"):
        scores.centre_bias(np.zeros((2, 3, 3)))


def test_agreement_of_ranks():
    a = np.random.default_rng(0).random((3, 4, 4))
    np.testing.assert_allclose(scores.rank_agreement(a, np.exp(a)), 1)
    np.testing.assert_allclose(scores.rank_agreement(a, -a), -1)
    np.testing.assert_array_equal(scores.rank_agreement(a, np.ones_like(a)), 0)
    from scipy.stats import spearmanr

    b = np.round(a[::-1], 1)  # with ties
    expected = [spearmanr(x.ravel(), y.ravel()).statistic for x, y in zip(a, b)]
    np.testing.assert_allclose(scores.rank_agreement(a, b), expected)
    with pytest.raises(ValueError, match="shapes"):
        scores.rank_agreement(a, b[:, :2])


@pytest.mark.parametrize(
    ("maps", "regions", "message"),
    [
        (np.zeros((2, 3, 3)), np.zeros((2, 3, 2), dtype=bool), "twice"),
        (np.zeros((2, 3, 3)), np.zeros((2, 3, 3)), "regions as bool"),
        (np.full((1, 2, 2), np.nan), np.ones((1, 2, 2), dtype=bool), "4 weights are not finite"),
        (np.zeros((2, 2, 2)), np.array([[[True] * 2] * 2, [[False] * 2] * 2]), "the first is row 1"),
    ],
)
def test_refuses_what_does_not_fit(maps, regions, message):
    for score in scores.SCORES.values():
        with pytest.raises(ValueError, match=message):
            score(maps, regions)


def test_energy_refuses_negative_weights():
    with pytest.raises(ValueError, match="least weight is -1"):
        scores.energy_inside(np.full((1, 2, 2), -1.0), np.ones((1, 2, 2), dtype=bool))
