"""Retrieval: ties count as their chance, exactly; a score that knows nothing is at chance; order does not matter."""

import itertools

import numpy as np
import pytest

from vqa_core.evaluation.retrieval import TOLERANCE, Ranks, hits_at_k, median_rank, ranks, recall_at_k, recall_both_ways

Q = 5


def with_ties(seed):
    """Scores (5, 5) of which many in a row are equal."""
    return np.random.default_rng(seed).integers(0, 3, (Q, Q)).astype(float)


def every_way_to_break_ties(scores):
    """Rank (1 is best) of each query's own candidate, for all Q! orders in which ties may be broken: (Q!, Q)."""
    found = []
    for before in itertools.permutations(range(Q)):  # candidate c is listed at place before[c] among its equals
        rows = [sorted(range(Q), key=lambda c, row=row: (-row[c], before[c])) for row in scores]
        found.append([row.index(q) + 1 for q, row in enumerate(rows)])
    return np.array(found)


@pytest.mark.parametrize("seed", range(6))
def test_closed_forms_are_the_mean_over_all_ways_to_break_ties(seed):
    scores = with_ties(seed)
    found, broken = ranks(scores), every_way_to_break_ties(scores)
    for k in range(1, Q + 1):
        np.testing.assert_allclose(found.recall_at(k), (broken <= k).mean(0), atol=1e-12)
    np.testing.assert_allclose(found.expected(), broken.mean(0), atol=1e-12)
    both = np.stack([broken, every_way_to_break_ties(scores.T)])  # (2, Q!, Q)
    for k in (1, 2, 4):
        assert recall_both_ways(scores, k) == pytest.approx((both <= k).mean())
    assert median_rank(scores) == pytest.approx(np.median(both.mean(1)))


def test_closed_forms_are_those_of_random_tie_breaking_in_a_large_gallery():
    rng = np.random.default_rng(0)
    scores, draws = rng.integers(0, 9, (40, 40)).astype(float), 2000
    broken = np.stack([ranks(scores + 1e-3 * rng.random(scores.shape), 0.0).higher + 1 for _ in range(draws)])
    found = ranks(scores)
    for k in (1, 5, 10):
        np.testing.assert_allclose(found.recall_at(k), (broken <= k).mean(0), atol=5 * 0.5 / draws**0.5)
    np.testing.assert_allclose(found.expected(), broken.mean(0), atol=5 * 3 / draws**0.5)


def test_expected_rank_is_the_sum_of_what_recall_leaves():
    """E[rank] = Σ P(rank > k) over k ≥ 0: the two closed forms belong to one distribution."""
    found = ranks(with_ties(7))
    np.testing.assert_allclose(found.expected(), sum(1 - found.recall_at(k) for k in range(Q)))


def test_ranks_made_by_hand():
    scores = [[0.9, 0.1, 0.1], [0.5, 0.5, 0.2], [0.7, 0.6, 0.1]]
    found = ranks(np.array(scores))
    assert found.higher.tolist() == [0, 0, 2]
    assert found.equal.tolist() == [1, 2, 1]
    assert found.recall_at(1).tolist() == [1, 0.5, 0]
    assert found.recall_at(2).tolist() == [1, 1, 0]
    assert found.expected().tolist() == [1, 1.5, 3]
    assert recall_both_ways(scores, 1) == pytest.approx((1.5 + 1) / 6)  # by column: the first only; 2 and 3 are second
    assert median_rank(scores) == 1.75


@pytest.mark.parametrize("noise", [0.0, 1e-7])
@pytest.mark.parametrize("n", [1, 2, 24, 150])
def test_constant_scores_are_chance_even_when_rounded(n, noise):
    """Also where an ``argmax`` would find an order in rounding errors that follow the right answer."""
    scores = 0.7 + noise * np.eye(n)
    for k in (1, 5, 10):
        assert recall_both_ways(scores, k) == pytest.approx(min(k / n, 1))
    assert median_rank(scores) == (n + 1) / 2
    if noise and n > 1:
        assert recall_both_ways(scores, 1, tolerance=0.0) == 1  # what the tolerance is for


def test_right_and_wrong_scores_are_the_best_and_the_worst():
    scores = np.eye(12)
    assert (recall_both_ways(scores, 1), median_rank(scores)) == (1, 1)
    assert (recall_both_ways(-scores, 11), recall_both_ways(-scores, 12), median_rank(-scores)) == (0, 1, 12)


def test_tolerance_separates_equal_from_different():
    scores = np.array([[0.0, 0.5 * TOLERANCE], [2 * TOLERANCE, 0.0]])
    assert ranks(scores).equal.tolist() == [2, 1]
    assert ranks(scores).higher.tolist() == [0, 1]
    assert ranks(scores, tolerance=1e-9).higher.tolist() == [1, 1]


@pytest.mark.parametrize("k", [1, 3])
def test_order_scale_and_direction_change_nothing(k):
    rng = np.random.default_rng(3)
    scores = rng.integers(0, 6, (30, 30)) / 4
    order = rng.permutation(30)
    moved = scores[order][:, order]
    np.testing.assert_array_equal(ranks(moved).recall_at(k), ranks(scores).recall_at(k)[order])
    for other in (moved, scores.T, 3 * scores - 7, scores.tolist(), scores.astype(np.float32)):
        assert recall_both_ways(other, k) == pytest.approx(recall_both_ways(scores, k))
        assert median_rank(other) == median_rank(scores)
    assert recall_both_ways(scores[order], k) != pytest.approx(recall_both_ways(scores, k))  # not of the pairing


def test_recall_grows_to_one():
    found = ranks(with_ties(11))
    grown = np.stack([found.recall_at(k) for k in range(Q + 1)])
    assert (np.diff(grown, axis=0) >= 0).all()
    assert (grown[0] == 0).all()
    assert (grown[-1] == 1).all()
    assert isinstance(found, Ranks)


@pytest.mark.parametrize("score", [ranks, median_rank, lambda s: recall_both_ways(s, 1)])
def test_what_is_no_square_of_finite_scores_is_refused(score):
    for shape in ((3, 4), (3,), (2, 3, 3)):
        with pytest.raises(ValueError, match="give a square"):
            score(np.zeros(shape))
    for bad in (np.nan, np.inf):
        scores = np.eye(3)
        scores[0, 2] = scores[2, 1] = bad
        with pytest.raises(ValueError, match="2 scores are not finite"):
            score(scores)


@pytest.mark.parametrize("seed", range(4))
def test_recall_at_k_of_several_right_candidates_is_the_mean_over_all_ways_to_break_ties(seed):
    rng = np.random.default_rng(seed)
    scores, right = rng.integers(0, 3, (4, 6)).astype(float), rng.random((4, 6)) < 0.4
    right[np.arange(4), rng.integers(0, 6, 4)] = True
    for k in (1, 2, 4, 6):
        hits = [
            right[q, sorted(range(6), key=lambda c, q=q, before=before: (-scores[q, c], before[c]))[:k]].any()
            for before in itertools.permutations(range(6))
            for q in range(4)
        ]
        assert recall_at_k(scores, k, right) == pytest.approx(np.mean(hits))
    perm = rng.permutation(6)
    assert recall_at_k(scores[:, perm], 2, right[:, perm]) == pytest.approx(recall_at_k(scores, 2, right))


def test_hits_share_the_first_place_among_those_that_tie():
    rng = np.random.default_rng(0)
    scores, right = rng.normal(size=(30, 20)), rng.random((30, 20)) < 0.1
    right[:, 0] = True
    scores[:5] = 0.5  # all tie
    found = hits_at_k(scores, 1, right)
    assert found.mean() == pytest.approx(recall_at_k(scores, 1, right))
    assert found[:5] == pytest.approx(right[:5].mean(1))
    assert set(found[5:].tolist()) == {0.0, 1.0}


def test_recall_at_k_of_a_square_is_that_of_the_ranks_and_chance_without_knowledge():
    scores = with_ties(3)
    for k in (1, 3, 5):
        assert recall_at_k(scores, k) == pytest.approx(ranks(scores).recall_at(k).mean())
    assert recall_at_k(np.zeros((3000, 3000)), 1500) == pytest.approx(0.5)


def test_recall_at_k_refuses_what_does_not_fit():
    for scores, k, right, message in (
        (np.zeros((2, 3)), 1, None, "where it is no square"),
        (np.zeros((2, 2)), 3, None, "k=3"),
        (np.full((2, 2), np.nan), 1, None, "finite"),
        (np.zeros((2, 2)), 1, np.eye(2), "give bool"),
        (np.zeros((2, 2)), 1, np.array([[True, False], [False, False]]), "in every row"),
    ):
        with pytest.raises(ValueError, match=message):
            recall_at_k(scores, k, right)
