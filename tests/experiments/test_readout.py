"""Tables of a chapter: what they say is what the predictions say, and planted effects are found."""

import numpy as np
import pytest

from vqa_core.data import scenes
from vqa_core.experiments import readout
from vqa_core.experiments.records import Record, Spec

ANSWERS = ["no", "yes"]


def record(unit, seed, predicted, validation=(0.4, 0.6)):
    history = [{"epoch": i, "loss": 1.0, "validation": v} for i, v in enumerate(validation)]
    details = {
        "answers": ANSWERS,
        "history": history,
        "parameters": 10,
        "flops": 20,
        "activation_bytes": 3_000_000,
        "seconds_per_step": 0.1 * (seed + 1),
    }
    return Record(Spec("fusion", unit, seed, "smoke"), {}, {"predicted_test": np.array(predicted, np.int16)}, details)


def test_units_keep_their_order_and_seeds_are_sorted():
    found = readout.by_unit([record("b", 1, [0]), record("a", 0, [0]), record("b", 0, [1])])
    assert list(found) == ["b", "a"]
    assert [r.spec.seed for r in found["b"]] == [0, 1]


def test_right_or_wrong_compares_words_not_positions():
    runs = [record("a", 0, [0, 1, 1]), record("a", 1, [1, 1, 0])]
    correct = readout.right_or_wrong(runs, ["no", "yes", "maybe"])
    assert correct.tolist() == [[True, True, False], [False, True, False]]
    with pytest.raises(ValueError, match="3 predictions of 2"):
        readout.right_or_wrong(runs, ["no", "yes"])


def test_accuracy_table_counts_families():
    correct = {"a": np.array([[1, 1, 0, 0], [1, 0, 0, 0]], bool)}
    table = readout.accuracy_table(correct, ["p", "p", "q", "q"], ["x", "y", "x", "y"]).set_index("family")
    assert list(table.index) == ["all", "x", "y"]
    assert table["mean"].tolist() == pytest.approx([3 / 8, 2 / 4, 1 / 4])
    assert table["n"].tolist() == [4, 2, 2]
    assert (table["low"] <= table["mean"]).all()
    assert (table["mean"] <= table["high"]).all()


def test_gain_finds_a_planted_effect_and_no_other():
    rng = np.random.default_rng(0)
    pictures = [f"p{i // 2}" for i in range(2000)]
    base = rng.random((5, 2000)) < 0.5
    better = base | (rng.random((5, 2000)) < 0.2)
    other = rng.random((5, 2000)) < 0.5
    table = readout.gain_table({"base": base, "better": better, "other": other}, "base", pictures).set_index("unit")
    assert list(table.index) == ["better", "other"]
    assert table.loc["better", "low"] > 0.05
    assert table.loc["better", "p_holm"] < 0.01
    assert table.loc["other", "low"] < 0 < table.loc["other", "high"]
    assert (table["p_holm"] >= table["p"]).all()


def test_gain_averages_methods_and_keeps_questions():
    ones, zeros = np.ones((2, 4), bool), np.zeros((2, 4), bool)
    d = readout.gain([ones, zeros], [zeros], list("abcd"), keep=[True, True, False, True])
    assert d.interval.mean == pytest.approx(0.5)
    assert d.interval.n == 3


def test_best_is_chosen_on_validation_alone():
    runs = {"a": [record("a", 0, [1], (0.2, 0.9))], "b": [record("b", 0, [0], (0.5, 0.8))]}
    assert readout.best_on_validation(runs, ["a", "b"]) == "a"


def test_costs_and_curves():
    runs = {"a": [record("a", s, [0], (0.4, 0.6 + 0.1 * s)) for s in range(3)]}
    cost = readout.cost_table(runs).iloc[0]
    assert (cost["parameters"], cost["activation_mb"], cost["seconds_per_step"]) == (10, 3.0, pytest.approx(0.2))
    curves = readout.learning_curves(runs)
    assert curves["epoch"].tolist() == [1, 2]
    assert curves["n"].tolist() == [3, 3]
    assert curves["mean"].tolist() == pytest.approx([0.4, 0.7])
    assert [curves["low"][0], curves["high"][0]] == pytest.approx([0.4, 0.4])


def test_opposite_questions_are_an_exclusive_or_that_no_additive_score_solves():
    found = scenes.generate(32, seed=3)
    four = readout.opposite_questions(found.samples)
    assert len(four) > 20
    answers = np.array([s.answer for s in found])
    assert (answers[four] == ["yes", "no", "no", "yes"]).all()
    words, pictures = (np.array([getattr(s, k) for s in found]) for k in ("question", "picture_id"))
    assert (words[four[:, 0]] == words[four[:, 1]]).all()
    assert (words[four[:, 2]] == words[four[:, 3]]).all()
    assert (pictures[four[:, 0]] == pictures[four[:, 2]]).all()
    assert (pictures[four[:, 1]] == pictures[four[:, 3]]).all()
    rng = np.random.default_rng(0)
    f = dict(zip(sorted(set(pictures)), rng.normal(size=32)))
    g = dict(zip(sorted(set(words)), rng.normal(size=len(set(words)))))
    yes = np.array([f[p] + g[w] > 0 for p, w in zip(pictures, words)])
    right = yes[four] == [True, False, False, True]  # (K, 4)
    assert right.sum(1).max() == 3
