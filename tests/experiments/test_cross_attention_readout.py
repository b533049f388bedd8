"""Tables of chapter 6 are their closed forms on records made by hand; its propositions hold where they should."""

import math

import numpy as np
import pandas as pd
import pytest
import torch
from scipy.stats import t as student

from vqa_core.evaluation.statistics import mean_over_seeds
from vqa_core.experiments import cross_attention
from vqa_core.experiments import cross_attention_readout as readout
from vqa_core.experiments.caption_encoder import MatchingTokens
from vqa_core.experiments.cross_attention import Model
from vqa_core.experiments.records import Record, Spec
from vqa_core.fusion.cross_attention import VERSIONS
from vqa_core.training.matching import Matcher

PICTURES, GALLERIES = 4, 2  # 16 queries: R@1 is a multiple of 1/16
BASE = (8, 9, 7, 8, 10)  # right answers of five seeds, of 16
COLUMNS = ["protocol", "version", "metric", "mean", "low", "high", "n"]
every = pytest.mark.parametrize("version", VERSIONS)


def hits_of(right, seed=0):
    """Hits (S, galleries, 2, pictures): seed s is right about right[s] queries, whichever these are."""
    rng = np.random.default_rng(seed)
    rows = [rng.permutation(np.arange(16) < n) for n in right]
    return np.array(rows, np.float32).reshape(-1, GALLERIES, 2, PICTURES)


def record(version, right, protocol="tokens", curve=(), **arrays):
    spec = Spec("cross_attention", f"{protocol}.{version}", 0, "smoke", None, Model(version, 8, len(right)))
    values = {name: np.array(v, float) for name, v in arrays.items()}
    return Record(spec, {}, {"hits": hits_of(right)} | values, {"curve": list(curve)})


def versions_of(**right):
    return {version: record(version, values) for version, values in right.items()}


# ------------------------------------------------------------------------------------------------------------- tables


def test_records_are_found_by_protocol_and_version_with_dots_in_it():
    runs = [record("v2", BASE), record("v2", BASE, "pairwise"), record("mine.attention", BASE)]
    found = readout.by_protocol(runs)
    assert {p: list(v) for p, v in found.items()} == {"tokens": ["v2", "mine.attention"], "pairwise": ["v2"]}
    assert found["pairwise"]["v2"] is runs[1]


def test_hits_know_which_picture_each_query_is_about():
    one = record("v2", BASE)
    x, pictures = readout.hits(one)
    assert x.shape == (5, 16)
    assert x.dtype == np.float64
    assert pictures.tolist() == [0, 1, 2, 3] * 2 + [4, 5, 6, 7] * 2  # both directions ask about the same pictures
    for i in (3, 6, 12):
        gallery, picture = divmod(int(pictures[i]), PICTURES)
        np.testing.assert_array_equal(x[:, i], one.arrays["hits"][:, gallery, i // PICTURES % 2, picture])


def test_recall_is_the_mean_hit_and_stays_between_0_and_1():
    found = readout.recall(record("v2", BASE))
    assert found.mean == pytest.approx(np.mean(BASE) / 16)
    assert (found.n, found.seeds) == (16, 5)
    assert found.low < found.mean < found.high
    for right, end in (((15, 16, 16, 16, 14), "high"), ((0, 1, 0, 2, 0), "low")):
        found = readout.recall(record("v2", right))
        assert getattr(found, end) == {"high": 1, "low": 0}[end]
        assert found.low <= found.mean <= found.high


def test_recall_of_equal_shares_has_no_spread_and_no_rounding():
    constant = record("v0", BASE)
    constant.arrays["hits"][:] = np.float32(1 / 150)  # a score that knows nothing
    found = readout.recall(constant)
    assert found.low <= found.mean <= found.high
    assert found.high - found.low < 1e-9


def full(version, protocol):
    """A record with every metric; R@1 from its hits."""
    shares = {k: [0.1, 0.2, 0.4, 0.3, 0.5] for k in readout.SHARES} | {"r1": np.array(BASE) / 16}
    others = {k: [-3.0, 5.0, 1.0, 2.0, 2.5] for k in readout.OTHERS}
    return record(version, BASE, protocol, **shares, **others)


def test_ablation_has_every_metric_of_every_version_and_protocol():
    table = readout.ablation([full(v, p) for p in ("published", "tokens") for v in ("v2", "v5")])
    assert list(table.columns) == COLUMNS
    assert len(table.groupby(["protocol", "version", "metric"])) == len(table)  # no row twice
    metrics = table.groupby(["protocol", "version"])["metric"].apply(set)
    names = readout.SHARES | readout.OTHERS
    forensic = {names[k] for k in readout.FORENSIC}
    assert metrics["tokens", "v2"] == set(names.values())
    assert metrics["forensic", "v5"] == forensic
    assert metrics["published", "v5"] == set(names.values()) - forensic | {"five-caption test"}
    assert set(table["protocol"]) == {"published", "tokens", "forensic"}  # nothing is forensic but what was published
    assert ((table["low"] <= table["mean"]) & (table["mean"] <= table["high"])).all()


def test_ablation_has_the_interval_over_seeds_and_for_recall_over_pictures_too():
    one = full("v2", "tokens")
    table = readout.ablation([one])
    r1 = readout.cell(table, "tokens", "v2", "r1")
    found = readout.recall(one)
    assert r1 == {"mean": found.mean, "low": found.low, "high": found.high, "n": 16}
    gap = readout.cell(table, "tokens", "v2", "five.gap")
    expected = mean_over_seeds(one.arrays["five.gap"])
    assert gap == {"mean": expected.mean, "low": expected.low, "high": expected.high, "n": 5}
    assert gap["low"] < 0  # no share, so nothing is cut off
    share = readout.cell(table, "tokens", "v2", "r5")
    half = student.ppf(0.975, 4) * np.std([0.1, 0.2, 0.4, 0.3, 0.5], ddof=1) / math.sqrt(5)
    assert share["mean"] == pytest.approx(0.3)
    assert share["low"] == pytest.approx(0.3 - half)
    certain = readout.ablation([record("v5", BASE, in_batch_accuracy=[0.9, 1, 1, 1, 1])])
    assert certain["high"].tolist() == [1]


def test_ablation_leaves_out_what_a_record_does_not_have():
    table = readout.ablation([record("v2", BASE, leak=[0.1] * 5)])
    assert table["metric"].tolist() == ["leak"]
    with pytest.raises(ValueError, match="not enough values"):
        readout.cell(table, "tokens", "v2", "r1")


def test_curves_have_each_point_with_its_interval():
    points = [
        {"step": 10, "loss": [3.0, 3.2], "val_r1": [0.0, 0.1]},
        {"step": 20, "loss": [1.0, 1.0], "val_r1": [1, 1]},
    ]
    runs = readout.by_protocol([record("v2", (8, 9), curve=points), record("v9", (8, 9), curve=points[:1])])
    table = readout.curves(runs, ["v2", "v9"])
    assert list(table.columns) == ["protocol", "version", "quantity", *("step", "mean", "low", "high", "n")]
    assert len(table) == 6
    first = table[(table.version == "v2") & (table.step == 10)].set_index("quantity")
    assert first["mean"].tolist() == pytest.approx([3.1, 0.05])
    assert first.loc["loss", "high"] == pytest.approx(mean_over_seeds([3.0, 3.2]).high)
    assert first.loc["val_r1", "low"] == 0


def test_forensics_sets_what_was_said_beside_what_each_evaluator_finds():
    sound = record("v3", BASE, "published", **{k: [x] * 5 for x, k in zip((0.9, 0.2, 0.4, 7.0, 0.0), readout.FORENSIC)})
    said = pd.DataFrame(
        {"version": ["v3", "v3"], "similarity_gap": [1.0, 0.0], "verdict_in_text": ["success", "success"]}
    )
    table = readout.forensics(said, readout.ablation([sound]))
    assert table["published"].tolist() == ["success", "five equal"]
    expected = {"sound": 0.9, "as v0": 0.2, "weights dropped": 0.4, "spread, sound": 7.0, "spread, as v0": 0.0}
    assert table.iloc[0].drop(["version", "published"]).to_dict() == pytest.approx(expected)


def test_real_data_have_one_row_for_each_metric_over_the_records_of_all_seeds():
    def real(seed, right, r5):
        arrays = {"hits": hits_of(right), "r10": np.array(right) / 16, "r5": np.array(r5)}
        arrays["group"] = np.arange(8).reshape(GALLERIES, PICTURES)
        return Record(Spec("matching_real", "nlvr.tokens.v2", seed, "smoke"), {}, arrays)

    table = readout.on_real_data([real(0, (8,), [0.1]), real(1, (12,), [0.3])]).set_index("metric")
    assert (table["data"] + table["protocol"] + table["version"] == "nlvrtokensv2").all()
    assert table.loc["R@10", "mean"] == pytest.approx(20 / 32)
    assert table.loc["R@10", "n"] == 16
    expected = mean_over_seeds([0.1, 0.3])
    assert table.loc["R@5", "mean"] == pytest.approx(0.2)
    assert table.loc["R@5", "low"] == max(expected.low, 0) == 0
    assert set(table.index) == {"R@5", "R@10"}


# -------------------------------------------------------------------------------------------------------------- tests


def paired(right, base=BASE):
    """Mean and p-value of a paired t test on R@1, from its formula."""
    d = (np.array(right) - np.array(base)) / 16
    statistic = d.mean() / (d.std(ddof=1) / math.sqrt(len(d)))
    return d.mean(), 2 * student.sf(abs(statistic), len(d) - 1)


def test_differences_are_paired_by_seed_with_p_values_by_holm():
    right = {"v3": (12, 13, 10, 12, 15), "v6": (9, 9, 8, 9, 10), "v9": (8, 9, 8, 7, 10)}
    versions = versions_of(v2=BASE, **right)
    table = readout.differences_to(versions, "v2").set_index("version")
    assert list(table.index) == ["v3", "v6", "v9"]
    means, p = np.array([paired(r) for r in right.values()]).T
    np.testing.assert_allclose(table["mean"], means)
    np.testing.assert_allclose(table["p"], p)
    assert p[0] < p[1] < p[2]
    first, second = min(3 * p[0], 1), min(2 * p[1], 1)
    steps = [first, max(first, second), max(first, second, p[2])]
    np.testing.assert_allclose(table["p_holm"], steps)
    assert ((table["low"] <= table["mean"]) & (table["mean"] <= table["high"])).all()
    assert (table["n"] == 16).all()
    assert readout.difference(versions["v3"], versions["v2"]).interval.low > 0


def test_a_version_is_no_better_than_its_equal():
    versions = versions_of(v2=BASE, v3=BASE)
    row = readout.differences_to(versions, "v2").iloc[0]
    assert row[["mean", "p", "p_holm"]].tolist() == [0, 1, 1]
    found = readout.difference(versions["v2"], versions_of(v9=(12, 13, 10, 12, 15))["v9"])
    assert found.interval.mean == -paired((12, 13, 10, 12, 15))[0]


def test_detectable_difference_is_the_formula_and_is_found_as_often_as_promised():
    found = readout.detectable(versions_of(v2=BASE, v3=(9, 9, 9, 9, 9), v5=BASE), "v2")
    assert list(found) == ["v3", "v5"]
    d = (9 - np.array(BASE)) / 16
    factor = student.ppf(0.975, 4) + student.ppf(0.8, 4)
    assert found["v3"] == pytest.approx(factor * d.std(ddof=1) / math.sqrt(5))
    assert found["v5"] == 0
    less = readout.detectable(versions_of(v2=BASE, v3=(9,) * 5), "v2", power=0.5)["v3"]
    assert less == pytest.approx(student.ppf(0.975, 4) * d.std(ddof=1) / math.sqrt(5))
    rng = np.random.default_rng(0)  # a true difference of that size, standard deviation 1
    draws = rng.standard_normal((20_000, 5)) + factor / math.sqrt(5)
    statistic = draws.mean(1) / (draws.std(1, ddof=1) / math.sqrt(5))
    assert np.mean(statistic > student.ppf(0.975, 4)) == pytest.approx(0.8, abs=0.06)  # the usual approximation


def test_ranks_of_seeds_made_by_hand():
    """v9 is always best; v2 beats v3 in one of four draws, and they are equal in one."""
    probabilities, orders = readout.rank_probabilities(versions_of(v2=(4, 6), v3=(6, 8), v9=(12, 15)))
    assert orders.shape == (10_000, 3)
    assert (np.sort(orders, axis=1) == np.arange(3)).all()
    expected = [[0, 1 / 8, 7 / 8], [0, 7 / 8, 1 / 8], [1, 0, 0]]
    np.testing.assert_allclose(probabilities, expected, atol=0.02)
    np.testing.assert_allclose(probabilities.sum(0), 1)
    np.testing.assert_allclose(probabilities.sum(1), 1)
    again, _ = readout.rank_probabilities(versions_of(v2=(4, 6), v3=(6, 8), v9=(12, 15)))
    np.testing.assert_array_equal(again, probabilities)


def test_equal_versions_have_every_rank_alike():
    probabilities, _ = readout.rank_probabilities(versions_of(v2=(8, 8), v3=(8, 8), v5=(8, 8), v9=(8, 8)))
    np.testing.assert_allclose(probabilities, 1 / 4, atol=0.03)


def test_two_studies_agree_as_often_as_chance_says():
    orders = np.array([[0, 1, 2], [0, 2, 1], [2, 1, 0], [0, 1, 2], [0, 1, 2], [2, 0, 1], [9, 9, 9]])
    found = readout.stability(orders)  # rows 0–2 against 3–5; the seventh has no partner
    assert found == {"same_best": pytest.approx(2 / 3), "same_order": pytest.approx(1 / 3), "pairs": 3}
    equal = readout.rank_probabilities(versions_of(v2=(8, 8), v3=(8, 8), v5=(8, 8)))[1]
    assert readout.stability(equal)["same_best"] == pytest.approx(1 / 3, abs=0.03)
    assert readout.stability(equal)["same_order"] == pytest.approx(1 / 6, abs=0.03)
    certain = readout.rank_probabilities(versions_of(v2=(2, 3), v3=(7, 8), v5=(12, 13)))[1]
    assert (readout.stability(certain)["same_best"], readout.stability(certain)["same_order"]) == (1, 1)


def test_spread_of_seeds_is_compared_with_the_median_of_the_others():
    """Of wide against two narrow ones; and of three equal ones, nothing."""
    wide, narrow = (1, 15, 3, 13, 8), (8, 9, 8, 9, 8)
    found = readout.spread_difference(versions_of(v11=wide, v2=narrow, v3=narrow[::-1]), "v11", resamples=500)
    assert found.mean == pytest.approx((np.std(wide, ddof=1) - np.std(narrow, ddof=1)) / 16)
    assert 0 < found.low < found.mean < found.high
    assert found.n == found.seeds == 5
    equal = readout.spread_difference(versions_of(v11=narrow, v2=narrow, v3=narrow), "v11", resamples=500)
    assert (equal.low, equal.mean, equal.high) == (0, 0, 0)


def test_kendall_counts_pairs():
    assert readout.kendall([1, 2, 3], [10, 20, 30]) == 1
    assert readout.kendall([1, 2, 3], [3, 2, 1]) == -1
    assert readout.kendall([1, 2, 3, 4], [1, 2, 4, 3]) == pytest.approx((5 - 1) / 6)


# ------------------------------------------------------------------------------------------------------------- models


def tokens_of(pictures=3, cells=4, words=5):
    """Random tokens with a mask on both sides."""
    chance = torch.Generator().manual_seed(0)
    image, text = (
        torch.randn(pictures, cells, 7, generator=chance),
        torch.randn(pictures, 5, words, 6, generator=chance),
    )
    image_mask = torch.arange(cells) < torch.arange(pictures)[:, None] + 2
    text_mask = (torch.arange(words) < torch.arange(pictures)[:, None] + 3)[:, None].expand(-1, 5, -1)
    return MatchingTokens(image, image_mask, text, text_mask)


def kept(version):
    """A matcher, and a record that keeps its weights."""
    torch.manual_seed(5)
    matcher = Matcher(7, 6, VERSIONS[version](16))
    weights = {f"model.{k}": v.numpy() for k, v in matcher.state_dict().items()}
    spec = Spec("cross_attention", f"tokens.{version}", 0, "smoke", None, Model(version, 16, 1))
    return matcher.eval(), Record(spec, {}, weights | {"r1": np.zeros(1)})


@pytest.mark.parametrize("version", ["v2", "v9"])
def test_a_loaded_matcher_is_the_one_that_was_kept(version):
    matcher, stored = kept(version)
    tokens = tokens_of()
    loaded = readout.load_matcher(stored, tokens)
    assert not loaded.training
    scores = [cross_attention.pair_cosines(m, tokens, slice(None)) for m in (matcher, loaded)]
    np.testing.assert_array_equal(*scores)
    stored.arrays["model.image_projection.weight"][0] += 1  # the weights are really in use
    moved = cross_attention.pair_cosines(readout.load_matcher(stored, tokens), tokens, slice(None))
    assert not np.allclose(moved, scores[0])
    del stored.arrays["model.temperature"]
    with pytest.raises(RuntimeError, match="temperature"):
        readout.load_matcher(stored, tokens)


@pytest.mark.parametrize("row", [0, 2])
def test_attention_of_words_is_over_the_cells_that_are_there(row):
    """v2 from its formula: A = softmax(LN(I) LN(T)ᵀ/√D) over real words, its columns made to sum to 1."""
    (matcher, _), tokens = kept("v2"), tokens_of()
    found = readout.attended(matcher, tokens, row)
    assert found.shape == (min(row + 3, 5), row + 2)
    np.testing.assert_allclose(found.sum(1), 1, rtol=1e-5)
    with torch.no_grad():
        image = matcher.module.norm(matcher.image_projection(tokens.image[row, : row + 2]))
        text = matcher.module.norm(matcher.text_projection(tokens.text[row, 0, : row + 3]))
        a = (image @ text.T / 4).softmax(-1)  # (M, T)
    np.testing.assert_allclose(found, (a / a.sum(0)).T.numpy(), rtol=1e-4)


# ------------------------------------------------------------------------------------------------------- propositions


OWN_SIDE = {"v3": (True, True), "v5": (True, True), "v7": (False, True), "v10_2": (True, True), "v10_6": (True, True)}


@every
def test_with_one_token_an_output_reads_the_other_side_alone(version):
    """But where a residual, a mixture, a gate or a cosine lets the own side through; v7 reads no picture at all."""
    own_image, own_text = OWN_SIDE.get(version, (False, False))
    expected = {"I' of I": own_image, "I' of T": True, "T' of I": version != "v7", "T' of T": own_text}
    assert readout.reads(version) == expected


@every
def test_with_more_tokens_every_output_reads_both_sides(version):
    assert all(readout.reads(version, tokens=3).values())


@every
def test_queries_learn_nothing_from_one_token_and_something_from_three(version):
    maps = int(version.removeprefix("v").split("_")[0]) >= 6
    assert readout.has_score_maps(version) is maps
    if maps:
        assert readout.score_maps_gradient(version, 1) < 1e-9
        assert readout.score_maps_gradient(version, 3) > 1e-4


@pytest.mark.parametrize("version", ["v5", "v7"])
@pytest.mark.parametrize("batch", [4, 24])
def test_random_pairs_look_matched_in_the_batch_where_the_diagonal_is_one(version, batch):
    found = readout.untrained_batch(version, batch)
    assert found["diagonal"] == pytest.approx(1)
    assert found["in_batch_loss"] <= found["bound"] + 1e-9 < math.log(batch) / 2
    assert found["pairwise_loss"] == pytest.approx(found["chance"]) == pytest.approx(math.log(batch))
    assert found["spread"] == pytest.approx(0, abs=1e-9)


def test_the_bound_is_reached_where_all_others_have_the_largest_cosine():
    """A batch of two: one cosine off the diagonal, so that the largest of them is that of both (v7's are symmetric)."""
    found = readout.untrained_batch("v7", batch=2, temperature=0.5)
    assert found["in_batch_loss"] == pytest.approx(found["bound"])


def test_without_a_leak_an_untrained_module_is_near_chance_in_the_batch():
    found = readout.untrained_batch("v2")
    assert found["diagonal"] < 0.5
    assert found["in_batch_loss"] == pytest.approx(found["pairwise_loss"])  # the same scores, transposed
    assert found["spread"] > 0.05


@pytest.mark.parametrize("sizes", [(1, 1), (5, 1), (1, 5), (5, 5)])
@pytest.mark.parametrize("version", ["v3", "v5", "v7", "v9"])
def test_values_of_the_picture_do_not_matter_to_v7_with_one_word_nor_to_v5_with_one_token(version, sizes):
    blind = (version == "v7" and sizes[1] == 1) or (version == "v5" and sizes == (1, 1))
    moved = readout.image_values_matter(version, *sizes)
    assert moved < 1e-9 if blind else moved > 1e-5


def test_parameters_of_attention_are_those_of_its_maps():
    d = 64
    linear = d * d + d
    assert readout.attention_parameters("v2", d) == 0
    assert readout.attention_parameters("v6", d) == 3 * linear
    assert readout.attention_parameters("v9", d) == 4 * linear  # feed-forward and norms do not count
    assert readout.attention_parameters("v10_1", d) == 7 * linear
    assert readout.attention_parameters("v10_4", d) == 4 * linear
    assert readout.attention_parameters("v10_4_mqa", d) == 2 * linear + d * 2 * d // 8 + 2 * d // 8
    assert readout.attention_parameters("v9", 32) < readout.attention_parameters("v9", d)


def test_random_sides_and_fresh_modules_come_again():
    a, b, c = (readout.random_sides(8, 3, 2, 4, seed=s) for s in (0, 0, 1))
    assert [tuple(x.shape) for x in a] == [(3, 2, 8), (3, 4, 8)]
    assert torch.equal(a[0], b[0])
    assert not torch.equal(a[0], c[0])
    one, same, other = (readout.fresh("v6", 8, seed=s) for s in (0, 0, 1))
    assert torch.equal(one.query.weight, same.query.weight)
    assert not torch.equal(one.query.weight, other.query.weight)
    assert one.query.weight.dtype == torch.float64
    assert not one.training
