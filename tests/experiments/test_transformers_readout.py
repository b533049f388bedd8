"""Tables and claims of chapter 4 on records made by hand: planted effects are found, absent records are no error."""

from __future__ import annotations

import numpy as np
import pytest

from vqa_core.evaluation.statistics import mean_over_seeds
from vqa_core.experiments import transformer_cost, transformers
from vqa_core.experiments import transformers_readout as readout
from vqa_core.experiments.readout import accuracy_table
from vqa_core.experiments.records import Metric, Record, Spec
from vqa_core.experiments.transformers import TEACHER

S, Q = 5, 400
WORDS = ["no", "yes"]
TRUTH = ["yes"] * Q
PICTURES = [f"p{i // 4}" for i in range(Q)]


def answers(share, seed=0):
    """int16 (S, Q): each seed is right (1) about this share of the questions, up to chance."""
    return (np.random.default_rng(seed).random((S, Q)) < share).astype(np.int16)


def costs(scale=1):
    history = [[{"epoch": e, "loss": 1.0, "validation": 0.1 * e + 0.01 * s} for e in range(3)] for s in range(S)]
    return {
        "parameters": 1000 * scale,
        "flops": 10_000 * scale,
        "activation_bytes": 2_000_000 * scale,
        "seconds_per_step": 0.01 * scale,
        "history": history,
    }


def record(unit, share, seed=0, **arrays):
    details = {"answers": WORDS, **costs()}
    if unit == TEACHER:
        ways = {"heads.0.5": 0.5, "weights.0.5": 0.5, "weights.0.9": 0.9}
        details |= {n: costs(0.1) for n in transformers.OFFSPRING}
        details["pruned"] = {n: {"share": s, "parameters": 900, "nonzero": 500, "flops": 8000} for n, s in ways.items()}
        arrays |= {f"predicted_test.{n}": answers(share - 0.2 * s, 7) for n, s in ways.items()}
    return Record(
        Spec("transformers", unit, 0, "smoke"), {}, {"predicted_test": answers(share, seed)} | arrays, details
    )


def runs():
    return readout.by_name(
        [
            record("shared", 0.79, 3),
            record("bottleneck", 0.65, 1),
            record("drop_token", 0.72, 2),
            record(
                TEACHER, 0.8, **{"predicted_test.distilled": answers(0.78, 5), "predicted_test.student": answers(0.6)}
            ),
        ]
    )


def timed(units=("steps", TEACHER)):
    """Repeats of the cost experiment with known metrics."""
    found = {}
    for unit in units:
        names = list(transformer_cost.RATIOS) if unit == "steps" else list(readout.EXPONENTS)
        repeats = []
        for repeat in range(5):
            metrics = {name: Metric(0.5 + 0.01 * repeat + k, 3) for k, name in enumerate(names)}
            tokens = np.array([64, 128])
            arrays = {} if unit == "steps" else {"tokens": tokens, "seconds": tokens * (1.0 + 0.1 * repeat)}
            details = {} if unit == "steps" else {"predicted": 2}
            repeats.append(Record(Spec("transformer_cost", unit, repeat, "smoke"), metrics, arrays, details))
        found[unit] = repeats
    return found


def test_units_stand_in_the_order_of_the_methods_and_offspring_after_them():
    correct = readout.right_or_wrong(runs(), TRUTH)
    assert list(correct)[:4] == [TEACHER, "bottleneck", "drop_token", "shared"]
    assert set(list(correct)[4:]) == {"distilled", "student", "heads.0.5", "weights.0.5", "weights.0.9"}
    np.testing.assert_array_equal(correct["bottleneck"], answers(0.65, 1) == 1)
    swapped = TRUTH[: Q // 2] + ["no"] * (Q // 2)
    again = readout.right_or_wrong(runs(), swapped)["bottleneck"]
    assert (again[:, Q // 2 :] != correct["bottleneck"][:, Q // 2 :]).all()
    with pytest.raises(ValueError, match=rf"predictions \(5, {Q}\) of 3 questions"):
        readout.right_or_wrong(runs(), ["yes"] * 3)


def test_names_for_people():
    names = [*transformers.METHODS, *transformers.OFFSPRING, "shuffled", "heads.0.25", "weights.0.9"]
    assert len({readout.title(n) for n in names}) == len(names)
    assert readout.title("weights.0.9") == "90 % of the weights gone"


def test_claims_find_planted_effects():
    correct = readout.right_or_wrong(runs(), TRUTH)
    found = readout.claims(correct, 0.5, PICTURES, timed())
    assert list(found) == ["F5", "F6a", "F6b", "F7", "F8a", "F8b", "F9", "F10"]
    for claim, effect in {"F6a": -0.15, "F8b": -0.08, "F9": -0.01}.items():
        assert found[claim].mean == pytest.approx(effect, abs=0.03)
        assert found[claim].low < effect + 0.02
    assert found["F6a"].high < -0.02  # a bottleneck that loses is found out
    assert found["F5"].mean == pytest.approx(0.52)
    metrics = {claim: k for k, (claim, *_) in enumerate(transformer_cost.RATIOS.values())}
    for claim in ("F6b", "F7", "F8a"):
        assert found[claim].mean == pytest.approx(0.52 + metrics[claim])
        assert found[claim].n == 5


def test_claims_without_their_records_are_none():
    found = readout.claims({}, 0.5, PICTURES, {})
    assert set(found.values()) == {None}
    assert len(found) == 8
    some = readout.claims(readout.right_or_wrong({"shared": record("shared", 0.8)}, TRUTH), 0.5, PICTURES, {})
    assert some["F9"] is None
    learned_nothing = readout.claims(readout.right_or_wrong(runs(), TRUTH), 0.95, PICTURES, {})
    assert learned_nothing["F10"] is None
    assert learned_nothing["F9"] is not None


def test_the_share_that_a_student_keeps():
    teacher, student = answers(0.9, 1) == 1, answers(0.7, 2) == 1
    found = readout.share_kept(student, teacher, 0.5, PICTURES)
    assert found.mean == pytest.approx((student.mean() - 0.5) / (teacher.mean() - 0.5))
    rng = np.random.default_rng(0)  # a plain bootstrap over questions, which the delta method has to match
    draws = rng.integers(0, Q, (2000, Q))
    ratios = (student[:, draws].mean((0, 2)) - 0.5) / (teacher[:, draws].mean((0, 2)) - 0.5)
    low, high = np.percentile(ratios, [2.5, 97.5])
    assert found.low < low + 0.02
    assert found.high > high - 0.02
    assert found.high - found.low < 3 * (high - low)
    same = readout.share_kept(teacher, teacher, 0.5, PICTURES)
    assert (same.mean, same.low, same.high) == pytest.approx((1, 1, 1))
    with pytest.raises(ValueError, match="nothing to keep"):
        readout.share_kept(student, teacher, 0.95, PICTURES)


def test_tables():
    some = runs()
    correct = readout.right_or_wrong(some, TRUTH)
    cost = readout.cost_table(some).set_index("unit")
    assert list(cost.index) == [*some, "student", "distilled"]
    assert cost.loc["shared", "activation_mb"] == 2.0
    pruning = readout.pruning_table(some[TEACHER], correct, PICTURES)
    assert pruning[["way", "share"]].values.tolist() == [
        ["heads", 0.0],
        ["heads", 0.5],
        ["weights", 0.0],
        ["weights", 0.5],
        ["weights", 0.9],
    ]
    assert pruning["mean"].iloc[0] == pytest.approx(correct[TEACHER].mean())
    curves = readout.learning_curves(some)
    assert len(curves) == 4 * 3
    assert curves["mean"].iloc[1] == pytest.approx(mean_over_seeds([0.1 + 0.01 * s for s in range(S)]).mean)
    assert accuracy_table(correct, PICTURES)["unit"].tolist() == list(correct)


def test_tables_of_cost():
    repeats = timed()
    curves = readout.curves_table(repeats)
    assert curves["unit"].unique().tolist() == [TEACHER]
    assert curves["mean"].tolist() == pytest.approx([64 * 1.2, 128 * 1.2])
    exponents = readout.exponent_table(repeats)
    assert exponents["cost"].tolist() == list(readout.EXPONENTS.values())
    assert (exponents["low"] < exponents["high"]).all()
    ratios = readout.ratio_table(repeats["steps"])
    assert ratios["claim"].tolist() == ["F6b", "F7", "–", "F8a"]
    assert ratios["ratio"][0] == "bottleneck / early concatenation"


def test_patterns_are_found_by_running_the_layouts():
    found = readout.patterns(4, 3)
    assert {n: [p.shape for p in maps] for n, maps in found.items()} == {
        n: [(4, 4) if n == "early_summation" else (7, 7)] * 2 for n in transformers.LAYOUTS
    }
    cross, joint = found["cross_attention"][0], found["early_concatenation"][0]
    assert joint.all()
    assert cross.sum() == 2 * 4 * 3
    assert not cross[:4, :4].any()
    table = readout.pattern_table(found)
    assert len(table) == 2 * (4 * 4 + 5 * 7 * 7)
    assert table[table["layout"] == "cross_attention"]["reads"].sum() == 2 * 24
