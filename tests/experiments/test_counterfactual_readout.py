"""Readout of ``counterfactual``: contributions against sklearn and a bootstrap, planted effects, absent records."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from sklearn.metrics import f1_score, roc_auc_score

from vqa_core.evaluation.statistics import bootstrap, seeds_and_questions
from vqa_core.experiments import counterfactual as experiment
from vqa_core.experiments import counterfactual_readout as readout
from vqa_core.experiments.counterfactual import Material, spec_of
from vqa_core.experiments.records import Record, Spec
from vqa_core.explain.cells import cell_scores, shares_of
from vqa_core.training.feed import Feed

Q, SEEDS = 400, 5
GRID = (4, 4, 5)


def regions():
    found = np.zeros((Q, *(2 * g for g in GRID)), dtype=bool)
    for i, at in enumerate(np.random.default_rng(5).integers(0, [6, 6, 8], (Q, 3))):
        found[i, at[0] : at[0] + 3, at[1] : at[1] + 3, at[2] : at[2] + 3] = True
    return found


def record(unit, seed, skill, aim):
    """Scores of class 1 shifted by ``skill`` standard deviations; maps with weight ``aim`` on the region."""
    rng = np.random.default_rng([seed, 1])  # the same noise in every unit
    labels = np.random.default_rng(0).integers(0, 2, Q)
    one = 1 / (1 + np.exp(-(rng.standard_normal(Q) + skill * (labels - 0.5))))
    shares = shares_of(regions(), GRID)
    maps = rng.random(shares.shape) + aim * shares
    maps /= maps.sum((1, 2, 3), keepdims=True)
    arrays = {"probability": np.stack([1 - one, one], 1).astype(np.float32), "label": labels.astype(np.int16)}
    if unit != "vector":
        arrays |= {f"score.{k}": v.astype(np.float32) for k, v in cell_scores(maps, shares).items()}
    if unit in experiment.KEPT and seed == 0:
        arrays["maps"] = maps.astype(np.float16)
    history = [{"epoch": e, "loss": 1.0, "validation": 0.6 + 0.1 * e + 0.01 * seed} for e in range(2)]
    return Record(spec_of("smoke", unit, seed), {}, arrays, {"history": history})


@pytest.fixture(scope="module")
def runs():
    planted = {"without": (1.5, 0.3), "with": (2.2, 0.8), "zero": (2.2, 0.3), "vector": (1.0, 0.0)}
    records = [record(u, s, *how) for u, how in planted.items() for s in range(SEEDS)]
    scored = cell_scores(np.ones((Q, *GRID)), shares_of(regions(), GRID))
    arrays = {f"{m}.{k}": v.astype(np.float32) for m in readout.BASELINE_TITLES for k, v in scored.items()}
    records.append(Record(Spec("counterfactual", "volume.baselines", 0, "smoke"), {}, arrays))
    return readout.runs_of(records)


@pytest.fixture(scope="module")
def material(runs):
    seen = torch.from_numpy(np.where(regions(), 0.5, -0.5).astype(np.float32))
    vectors, labels = np.zeros((Q, 1, 25), np.float32), runs["with"][0].arrays["label"].astype(np.int64)
    feed = Feed(seen, np.arange(Q), vectors, np.ones((Q, 1), bool), labels)
    return Material(feed, regions(), ("low", "high"), 0.0)


def test_contributions_have_the_metric_as_their_mean(runs):
    for r in runs["with"]:
        score, labels = r.arrays["probability"][:, 1], r.arrays["label"]
        assert readout.auroc_contributions(score, labels).mean() == pytest.approx(roc_auc_score(labels, score))
        said = score > 0.5
        expected = f1_score(labels, said, average="macro")
        assert readout.f1_contributions(said.astype(int), labels).mean() == pytest.approx(expected)


def test_ties_count_half():
    labels = np.array([0, 0, 1, 1, 1])
    for scores in (np.zeros(5), np.array([0, 1, 1, 1, 2])):
        found = readout.auroc_contributions(scores, labels).mean()
        assert found == pytest.approx(roc_auc_score(labels, scores))


def test_macro_f1_of_several_classes():
    rng = np.random.default_rng(0)
    labels, said = rng.integers(0, 5, 300), rng.integers(0, 5, 300)
    said[:150] = labels[:150]
    expected = f1_score(labels, said, average="macro")
    assert readout.f1_contributions(said, labels).mean() == pytest.approx(expected)


def test_intervals_of_contributions_are_those_of_the_bootstrap(runs):
    score, labels = runs["with"][0].arrays["probability"][:, 1].astype(float), runs["with"][0].arrays["label"]
    both = np.stack([score, labels], 1)
    for contributions, statistic in (
        (readout.auroc_contributions(score, labels), lambda x: roc_auc_score(x[:, 1], x[:, 0])),
        (
            readout.f1_contributions((score > 0.5).astype(int), labels),
            lambda x: f1_score(x[:, 1], x[:, 0] > 0.5, average="macro"),
        ),
    ):
        fast = seeds_and_questions(contributions[None])
        slow = bootstrap(both, statistic=statistic, resamples=400)
        assert fast.high - fast.low == pytest.approx(slow.high - slow.low, rel=0.2)


def test_a_planted_effect_is_found_and_none_where_nothing_differs(runs):
    found = readout.effects(runs)
    assert set(found) == {"E1a", "E1b", "E1c", "E2"}
    assert all(interval.low > 0 and interval.n == Q and interval.seeds == SEEDS for interval in found.values())
    same = readout.difference(runs["zero"], runs["with"], "auroc").interval  # the same skill, the same noise
    assert same.mean == same.low == same.high == 0
    assert readout.difference(runs["zero"], runs["with"], "pointing_game").interval.high < 0


def test_effects_are_the_differences_of_the_metrics(runs):
    found = readout.effects(runs)
    for claim, metric in readout.CLAIMS.items():
        parts = [readout.matrix(runs[u], metric).mean() for u in ("with", "without")]
        assert found[claim].mean == pytest.approx(parts[0] - parts[1])


def test_claims_without_records_have_no_effect(runs):
    assert set(readout.effects({}).values()) == {None}
    assert set(readout.effects({"with": runs["with"]}).values()) == {None}
    assert len(readout.metric_table({}, ["with"], ["accuracy"])) == 0
    assert len(readout.baseline_table({})) == 0


def test_tables(runs):
    table = readout.metric_table(runs, ["with", "vector", "max"], readout.TITLES)
    assert list(table[table["unit"] == "vector"]["metric"]) == ["accuracy", "macro F1", "AUROC"]
    assert len(table[table["unit"] == "with"]) == 7
    assert ((table["low"] <= table["mean"]) & (table["mean"] <= table["high"])).all()
    assert (table["low"] >= 0).all()
    assert (table["high"] <= 1).all()
    gains = readout.gain_table(runs, {"with": "without", "zero": "without"}, ["accuracy", "pointing_game"])
    assert len(gains) == 4
    assert (gains["p_holm"] >= gains["p"]).all()
    area = readout.baseline_table(runs)
    assert len(area) == 3 * 4
    np.testing.assert_allclose(area["mean"], regions().mean(), rtol=1e-4)


def test_other_seeds_or_cases_are_refused(runs):
    with pytest.raises(ValueError, match="run the missing"):
        readout.difference(runs["with"], runs["without"][:3], "accuracy")
    with pytest.raises(ValueError, match="has no maps"):
        readout.matrix(runs["vector"], "iou")
    with pytest.raises(ValueError, match="metric is 'recall'"):
        readout.matrix(runs["with"], "recall")
    changed = runs["with"][0].arrays | {"label": 1 - runs["with"][0].arrays["label"]}
    other = Record(runs["with"][0].spec, {}, changed)
    with pytest.raises(ValueError, match="different cases"):
        readout.matrix([runs["with"][1], other], "accuracy")


def test_maps_by_answer(runs):
    table = readout.answers_and_maps(runs, ["with"])
    assert list(table["answer"]) == ["right", "wrong"]
    right, scores = readout.matrix(runs["with"], "accuracy"), readout.matrix(runs["with"], "energy_inside")
    one = [scores[:, q][right[:, q]].mean() for q in range(Q) if right[:, q].any()]
    assert table["mean"][0] == pytest.approx(np.mean(one))
    assert table["n"][0] == len(one)


def test_cases_are_chosen_by_rule(runs):
    scores = np.array([0.5, 0.1, 0.9, 0.1, 0.7])
    assert readout.rows_at_quantiles(scores, [0, 0.25, 1]) == [1, 3, 2]


def test_examples_show_the_slice_with_most_of_the_mass(runs, material):
    found = readout.examples(runs, material, ["without", "with"], [3, 7], "iou")
    for e in found:
        assert e.region.sum() == regions()[e.row].sum((1, 2)).max()
        np.testing.assert_allclose(e.picture[e.region], 0.75)
        assert list(e.maps) == ["without", "with"]
        assert e.maps["with"].shape == GRID[1:]
        assert e.score["with"] == pytest.approx(runs["with"][0].arrays["score.iou"][e.row])
        assert set(e.answers) <= {"low", "high"}
        assert len(e.answers) == 3
    assert len(readout.example_table(found)) == 4


def test_attention_falls_with_the_distance_where_it_was_planted(runs, material):
    table = readout.mean_profile(runs, material, ["without", "with"])
    for unit, above in (("with", 1.2), ("without", 1.05)):
        some = table[table["unit"] == unit].set_index("distance")["mean"]
        assert some.index[0] == 0
        assert some.iloc[0] > above > some.loc[3]
    near = table[table["distance"] == 0].set_index("unit")["mean"]
    assert near["with"] > near["without"]
