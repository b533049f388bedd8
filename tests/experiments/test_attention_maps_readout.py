"""Tables and claims of the chapter on maps on records made by hand: planted effects are found."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from vqa_core.data import scenes
from vqa_core.experiments import attention_maps_readout as readout
from vqa_core.experiments.attention_maps import BASELINES, METHODS
from vqa_core.experiments.records import Metric, Record, Spec
from vqa_core.explain.scores import SCORES

S, Q, STAGES = 5, 400, ["head", "fusion.layers.1"]
PICTURES = [f"p{i // 2}" for i in range(Q)]
HITS = {"raw_attention": 0.5, "rollout": 0.6, "relevance": 0.8, "occlusion": 0.7}


def around(mean, shape, seed=0, noise=0.05):
    return np.random.default_rng(seed).normal(mean, noise, shape).astype(np.float32)


def record(unit="early_concatenation", own="raw_attention", hits=None):
    hits = HITS if hits is None else hits
    methods = [own if m == "raw_attention" else m for m in hits]
    arrays = {"right": np.arange(Q)[None].repeat(S, 0) % 4 > 0}
    for i, (method, hit) in enumerate(zip(methods, hits.values())):
        for score in SCORES:
            arrays[f"{method}.{score}"] = around(hit, (S, Q), i)
        arrays[f"{method}.cascade"] = np.stack([np.ones((2, 50)), *[around(0.2, (2, 50))] * 2], axis=1)
        arrays[f"{method}.labels"] = around(0.1, (2, 50))
        for kind in ("deletion", "insertion"):
            arrays[f"{method}.{kind}"] = np.linspace(1, 0, 5)[None] + around(0, (S, 1))
            arrays[f"{method}.{kind}_area"] = around(0.3, (S, 40))
        arrays[f"maps.{method}"] = np.full((20, 3), 1 / 3, np.float16)
    for kind in ("deletion", "insertion"):
        arrays[f"random.{kind}"] = np.linspace(1, 0, 5)[None] + around(0, (S, 1))
        arrays[f"random.{kind}_area"] = around(0.5, (S, 40))
    for kind, drop in (("attended", 0.5), ("random", 0.1), ("best", 0.8)):
        arrays[f"drop.{kind}"] = around(drop, (S, Q), 9)
    m = len(methods)
    arrays["agreement"] = np.eye(m) + (1 - np.eye(m)) * around(0.4, (S, 1, 1))
    arrays["agreement.seeds"] = around(0.6, (S, m))
    arrays["cells"] = np.tile([0, 9, 63], (20, 1)).astype(np.int16)
    details = {"methods": methods, "own": own, "stages": STAGES}
    return Record(Spec("attention_maps", unit, 0, "smoke"), {}, arrays, details)


def known():
    arrays = {
        f"{name}.{score}": np.full((1, Q), 0.1 * i, np.float32)
        for i, name in enumerate(readout.BASELINE_TITLES, 1)
        for score in SCORES
    }
    return Record(Spec("attention_maps", BASELINES[0], 0, "smoke"), {}, arrays, {})


def runs():
    return readout.by_name([record("san", "san", {"raw_attention": 0.9, "occlusion": 0.9}), record(), known()])


def test_records_stand_in_the_order_of_the_models_and_own_attention_has_one_name():
    assert list(runs()) == ["early_concatenation", "san"]
    assert readout.method_names(runs()["san"]) == {"own": "san", "occlusion": "occlusion"}
    assert readout.baselines_of([record(), known()]).spec.unit == BASELINES[0]
    with pytest.raises(ValueError, match="no record of unit 'baselines'"):
        readout.baselines_of([record()])


def test_planted_effects_decide_the_claims():
    found = readout.claims(runs(), PICTURES)
    assert found["E3"].mean == pytest.approx((0.5 - 0.1) / 0.8, abs=0.01)
    assert found["E3"].low < found["E3"].mean < found["E3"].high
    assert found["E4"].mean == pytest.approx((0.6 + 0.8) / 2 - 0.5, abs=0.01)  # of the one model that has all three
    assert found["E4"].n == Q
    assert readout.claims({}, PICTURES) == {"E3": None, "E4": None}
    assert readout.claims({"san": runs()["san"]}, PICTURES)["E4"] is None
    nothing = record()
    nothing.arrays["drop.best"][:] = 0
    assert readout.claims({"early_concatenation": nothing}, PICTURES)["E3"] is None


def test_a_ratio_is_that_of_the_means_and_knows_its_noise():
    a, b = around(0.2, (S, Q), 1, 0.1), around(0.5, (S, Q), 2, 0.1)
    found = readout.ratio(a, b, PICTURES)
    assert found.mean == pytest.approx(a.mean() / b.mean())
    quiet = readout.ratio(np.full((S, Q), 0.2), np.full((S, Q), 0.5), PICTURES)
    assert quiet.high - quiet.low < 1e-9 < found.high - found.low
    assert readout.ratio(a, np.zeros((S, Q)), PICTURES) is None


def test_scores_have_models_and_baselines():
    table = readout.score_table(runs(), known(), PICTURES)
    assert len(table) == len(SCORES) * (4 + 2 + len(readout.BASELINE_TITLES))
    assert (table["low"] <= table["mean"] + 1e-6).all()
    row = table[(table["model"] == "early concatenation") & (table["method"] == "relevance")].iloc[0]
    assert row["mean"] == pytest.approx(0.8, abs=0.01)
    assert row["seeds"] == S
    better = readout.beats(table, "centre bias", 0.2)  # the centre bias has 0.2
    assert set(better["method"]) == {"own attention", "rollout", "relevance", "occlusion"}
    assert set(readout.beats(table, "the right cells", 0.25)["mean"].round(1)) == {0.8, 0.9}
    assert readout.beats(table, "the right cells", 0.5).empty


def test_right_and_wrong_answers_are_told_apart():
    planted = record()
    for method in planted.details["methods"]:
        planted.arrays[f"{method}.pointing_game"] = np.where(planted.arrays["right"], 0.9, 0.3)
    table = readout.answer_table({"early_concatenation": planted}, PICTURES).set_index(["method", "answer"])
    assert table.loc[("rollout", "right"), "mean"] == pytest.approx(0.9)
    assert table.loc[("rollout", "wrong"), "mean"] == pytest.approx(0.3)
    assert table.loc[("rollout", "wrong"), "n"] == S * Q // 4
    planted.arrays["right"][:] = True
    assert set(readout.answer_table({"early_concatenation": planted}, PICTURES)["answer"]) == {"right"}


def test_the_other_tables_hold_what_was_planted():
    areas = readout.area_table(runs(), PICTURES)
    by = areas.groupby(["method", "metric"])["mean"].mean()
    assert by["random order", "deletion_area"] == pytest.approx(0.5, abs=0.01)
    assert by["occlusion", "deletion_area"] == pytest.approx(0.3, abs=0.01)
    curves = readout.curve_table(runs())
    assert curves["share"].max() == 1
    assert set(curves["n"]) == {S}
    cascade = readout.cascade_table(runs(), PICTURES)
    assert cascade.loc[cascade["step"] == 0, "mean"].eq(1).all()
    assert list(cascade["stage"].unique()) == ["–", *STAGES]
    sane = readout.sanity_table(runs(), PICTURES).groupby("with")["mean"].mean()
    assert sane.to_dict() == pytest.approx(
        {"random weights": 0.2, "shuffled labels": 0.1, "another seed": 0.6}, abs=0.02
    )
    agreed = readout.agreement_table(runs())
    assert agreed.loc[agreed["method"] == agreed["other"], "mean"].eq(1).all()
    faithful = readout.faithfulness_table(runs(), PICTURES)
    assert set(faithful["metric"]) == {"drop, attended", "drop, random", "drop, best", "faithfulness"}
    kept = record()
    for method in kept.details["methods"]:
        del kept.arrays[f"{method}.labels"]
    assert set(readout.sanity_table({"fusion.kept": kept}, PICTURES)["with"]) == {"random weights", "another seed"}


def test_maps_stand_at_their_cells():
    grid = readout.grid_maps(runs()["early_concatenation"], "own")
    assert grid.shape == (20, 8, 8)
    assert grid[0, 0, 0] == grid[0, 1, 1] == grid[0, 7, 7] == pytest.approx(1 / 3, abs=1e-3)
    assert grid.sum() == pytest.approx(20, abs=0.05)
    padded = readout.scattered(np.array([[0.4, 0.6, 0.0]]), np.array([[5, 0, 5]]))  # padding says cell 5 too
    assert padded[0, 0, 5] == 0.4
    by_head = readout.scattered(np.ones((2, 3, 20, 3)), np.tile([0, 1, 2], (20, 1)))
    assert by_head.shape == (2, 3, 20, 8, 8)


def test_what_figures_and_their_alt_texts_need():
    records = runs()
    table = readout.weight_table({"own": readout.grid_maps(records["san"], "own")[:2]}, [4, 7], ["a?", "b?"])
    assert table["row"].value_counts().to_dict() == {4: 3, 7: 3}
    assert set(table["cell"]) == {0, 9, 63}
    planted = records["san"]
    planted.arrays["san.energy_inside"][0, :2] = (0.25, 1.0)
    assert readout.inside_notes(planted, ["own"], np.array([1, 0])) == {"own attention": ["100% inside", "25% inside"]}
    scores = pd.DataFrame({"model": ["A", "A", "B"], "method": ["x", "y", "x"], "mean": [0.1, 0.5, 1.0]})
    assert readout.spread(scores) == "A: from 10% (x) to 50% (y); B: from 100% (x) to 100% (x)."
    san = Record(
        planted.spec, {"accuracy_test": Metric(0.9, 50)}, {}, {"parameters": 7, "methods": ["san", "occlusion"]}
    )
    assert readout.models_table({"san": san}).iloc[0].to_dict() == {
        "model": "SAN", "parameters": 7, "methods": 2, "accuracy": 0.9, "n": 50,
    }  # fmt: skip


def test_partners_are_the_same_words_about_the_other_picture():
    found = scenes.generate(4, questions_per_picture=2)
    rows = np.arange(len(found))
    pairs = readout.partners(found.samples, rows)
    assert len(pairs) == len(found) // 2
    for a, b in pairs:
        assert found[int(a)].question == found[int(b)].question
        assert found[int(a)].picture_id != found[int(b)].picture_id
    assert readout.partners(found.samples, rows[:1]).shape == (0, 2)


def test_words_and_failures_follow_a_rule():
    tokens, mask = np.zeros((1, 4, 3)), np.array([[True, True, True, False]])
    tokens[0, 1, 2] = tokens[0, 2, 0] = 1
    assert readout.words_of(tokens, mask, ["a", "b", "c"]) == [["whole question", "c", "a"]]
    score = np.arange(100) / 100
    worst = readout.worst_decile(score, 5)
    assert set(worst) <= set(range(10))
    np.testing.assert_array_equal(worst, readout.worst_decile(score, 5))
    assert len(readout.worst_decile(score, 50)) == 10
    assert set(METHODS) >= set(runs())
