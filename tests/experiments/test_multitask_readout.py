"""Readout and drawings of ``multitask`` on planted records: known accuracies, gains, conflicts, failures."""

from __future__ import annotations

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest

from vqa_core.evaluation.claims import judge
from vqa_core.experiments import multitask as mt
from vqa_core.experiments import multitask_drawing as drawing
from vqa_core.experiments import multitask_readout as readout
from vqa_core.experiments.records import Metric, Record, Spec

SEEDS, PICTURES, EACH = 5, 40, 5
Q = PICTURES * EACH


def record(arm, amount=200, right=(0.9, 0.5, 0.8), seed=0, cosine=None):
    """A record whose arm is right in exactly these shares of the questions of every seed."""
    rng = np.random.default_rng([seed, SEEDS])
    labels = rng.integers(0, 3, (Q, 3))
    predicted = np.repeat(labels[None], SEEDS, axis=0)
    for s in range(SEEDS):
        for k, share in enumerate(right):
            wrong = rng.permutation(Q)[: round(Q * (1 - share))]
            predicted[s, wrong, k] = (labels[wrong, k] + 1) % 3
    arrays = {
        "predicted_test": predicted.astype(np.int16),
        "label_test": labels.astype(np.int16),
        "picture_test": np.repeat(np.arange(PICTURES), EACH).astype(np.int32),
        "usual": np.zeros(3, np.int16),
    }
    if cosine is not None:
        pull = np.broadcast_to(np.eye(3) + cosine * (1 - np.eye(3)), (SEEDS, 4, 3, 3)).astype(np.float32)
        arrays |= {"cosine": pull, "norm": np.broadcast_to(np.float32([1, 2, 4]), (SEEDS, 4, 3))}
        arrays["step"] = np.arange(4, dtype=np.int32) * 10
    kinds = ("loss", "weight", "validation")
    points = [
        {"epoch": e, "step": 10 * e + 10}
        | {f"{w}.{t}": (e + 1) / (i + 2) for w in kinds for i, t in enumerate(mt.TASKS)}
        for e in range(2)
    ]
    details = {"history": [points] * SEEDS, "questions": {"train": 8 * amount}, "parameters": 100, "answers": ["a"] * 3}
    spec = Spec("multitask", f"{arm}.{amount}", 0, "smoke", None, None, None)
    metrics = {"accuracy_test.answer": Metric(right[1], Q)}
    return Record(spec, metrics, arrays, details, provenance={"data_hash": "planted"})


def planted(together=(0.9, 0.6, 0.7), alone=(0.9, 0.5, 0.8), amount=200):
    records = [record("equal", amount, together, cosine=-0.5)]
    return records + [record(f"alone_{t}", amount, alone) for t in mt.TASKS]


def test_accuracies_are_the_planted_ones():
    runs = readout.by_amount(planted())[200]
    table = readout.accuracy_table(runs).set_index(["arm", "task"])
    for task, together, alone in zip(mt.TASKS, (0.9, 0.6, 0.7), (0.9, 0.5, 0.8)):
        assert table.loc[("equal", task), "mean"] == pytest.approx(together)
        assert table.loc[("alone", task), "mean"] == pytest.approx(alone)
    assert table.loc[("equal", readout.MEAN), "mean"] == pytest.approx(2.2 / 3)
    labels = runs["equal"].arrays["label_test"]
    assert table.loc[("usual", "organ"), "mean"] == pytest.approx((labels[:, 2] == 0).mean())
    assert (table["n"] == Q).all()
    assert table["low"].min() >= 0
    assert table["high"].max() <= 1
    assert "dwa" not in table.index.get_level_values(0)


@pytest.mark.parametrize(
    ("together", "verdict"),
    [((0.99, 0.7, 0.95), "supported"), ((0.9, 0.5, 0.5), "refuted"), ((0.9, 0.53, 0.8), "inconclusive")],
)
def test_the_effect_of_f11_and_its_verdict(together, verdict):
    effect = readout.multitask_effect(planted(together), 200)
    assert effect.mean == pytest.approx(np.mean(np.subtract(together, (0.9, 0.5, 0.8))), abs=1e-9)
    assert effect.seeds == SEEDS
    rule = "supported if low > 0.01; refuted if high < 0.01"
    assert judge(rule, effect.mean, effect.low, effect.high, effect.n) == verdict


def test_absent_records_are_none_and_no_error():
    assert readout.multitask_effect([], 200) is None
    assert readout.multitask_effect(planted(), 800) is None
    assert readout.multitask_effect(planted()[:-1], 200) is None  # one task alone is missing
    assert readout.gain(readout.by_amount(planted())[200], "dwa") is None


def test_gains_by_amount():
    amounts = readout.by_amount([*planted(amount=800), *planted((0.9, 0.9, 0.8), amount=50)])
    assert list(amounts) == [50, 800]
    table = readout.gain_table(amounts).set_index(["pictures", "task"])
    assert table.loc[(50, "answer"), "mean"] == pytest.approx(0.4)
    assert table.loc[(800, "organ"), "mean"] == pytest.approx(-0.1)
    assert table.loc[(50, "answer"), "questions"] == 400


def test_other_questions_are_refused():
    records = planted()
    records[1].arrays["picture_test"][0] = 7
    with pytest.raises(ValueError, match="other questions than equal"):
        readout.multitask_effect(records, 200)


def test_conflicts_are_counted():
    runs = readout.by_amount([*planted(), record("dwa", cosine=0.25)])[200]
    table = readout.conflict_table(runs).set_index(["arm", "pair", "quantity"])["mean"]
    for pair, ratio in (("category and answer", 2), ("category and organ", 4), ("answer and organ", 2)):
        assert table["equal", pair, "negative"] == 1
        assert table["equal", pair, "cosine"] == pytest.approx(-0.5)
        assert table["equal", pair, "ratio"] == pytest.approx(ratio)
        assert table["dwa", pair, "negative"] == 0
    runs["equal"].arrays["cosine"] = np.concatenate([runs["equal"].arrays["cosine"]] * 2, axis=1)  # 8 measured steps
    runs["equal"].arrays["cosine"][:, :2] = 1.0
    runs["equal"].arrays["step"] = np.arange(8) * 10
    along = readout.cosine_table(runs, windows=4)
    assert along["step"].unique().tolist() == [5, 25, 45, 65]
    assert along.groupby("step")["mean"].unique().map(list).tolist() == [[1.0], [-0.5], [-0.5], [-0.5]]
    assert (along["n"] == SEEDS).all()


def test_curves_take_each_task_alone_from_its_own_arm():
    runs = readout.by_amount(planted())[200]
    runs["alone_organ"].details["history"][0][0]["validation.organ"]  # the column exists
    table = readout.curve_table(runs, "validation")
    assert set(table["arm"]) == {"equal", "alone"}
    assert table[table["task"] == "organ"].groupby("arm")["mean"].first().to_dict() == {"equal": 0.25, "alone": 0.25}


def test_two_quadratics():
    """The sum ends in the middle; the tasks conflict inside the circle over their minima; PCGrad stops between them."""
    minima = np.array([[1.0, 0.0], [-1.0, 0.0]])
    plain = readout.descend(minima, (0.8, 1.5), 200, 0.1)
    np.testing.assert_allclose(plain[-1], [0, 0], atol=1e-6)
    first = readout.descend(minima, (0.8, 1.5), 1, 0.1, project=True)  # outside: ‖θ‖ > 1, the same step
    np.testing.assert_allclose(first, plain[:2])
    inside = readout.descend(minima, (0.6, 0.3), 1, 0.1, project=True)
    assert not np.allclose(inside, readout.descend(minima, (0.6, 0.3), 1, 0.1))
    end = readout.descend(minima, (0.6, 0.3), 4000, 0.1, project=True)[-1]
    assert abs(end[1]) < 0.01  # on the line between the minima, where no step helps both
    assert end[0] > 0.1  # and not in the middle, where the sum is smallest


def test_failures_are_the_largest_drops_one_for_each_picture():
    records = planted((0.9, 0.6, 1.0), (0.9, 0.5, 1.0))
    runs = readout.by_amount(records)[200]
    predicted = runs["equal"].arrays["predicted_test"]
    for s, question in ((range(5), 12), (range(5), 13), (range(3), 101)):  # 12 and 13 are of one picture
        predicted[list(s), question, 2] += 1
    found = readout.failures(runs, "organ", n=2)
    assert found.lost.tolist() == [12, 101]
    assert found.drop.tolist() == pytest.approx([1.0, 0.6])
    with pytest.raises(ValueError, match="alone_organ"):
        readout.failures({"equal": runs["equal"]}, "organ")


def test_gain_by_category():
    families = ["PLANE"] * (Q // 2) + ["ABN"] * (Q // 2)
    table = readout.loss_by_family(readout.by_amount(planted())[200], families, "answer")
    assert table["category"].tolist() == ["ABN", "PLANE"]
    assert table["n"].tolist() == [Q // 2, Q // 2]
    assert np.average(table["mean"], weights=table["n"]) == pytest.approx(0.1)


def test_drawings():
    amounts = readout.by_amount([*planted(), *planted(amount=50), record("pcgrad", cosine=0.1)])
    runs = amounts[200]
    path = pd.DataFrame({"way": ["a", "a", "b"], "x": [0.0, 1, 0], "y": [0.0, 1, 1]})
    grey = np.zeros((8, 8), np.uint8)
    figures = [
        drawing.accuracies(readout.accuracy_table(runs)),
        drawing.gains(readout.gain_table(amounts)),
        drawing.curves(readout.curve_table(runs, "validation"), ("equal", "dwa", "alone"), "accuracy"),
        drawing.cosines(readout.cosine_table(runs)),
        drawing.conflicts(readout.conflict_table(runs)),
        drawing.by_category(readout.loss_by_family(runs, ["A"] * Q, "organ"), "organ"),
        drawing.quadratics(path, np.array([[1.0, 0], [-1, 0]])),
        drawing.gallery([grey] * 4, ["a", "b", "c", "d"]),
    ]
    panels = [len([ax for ax in f.axes if ax.axison]) for f in figures]
    assert panels == [4, 1, 2, 3, 1, 1, 1, 0]
    for figure in figures:
        figure.canvas.draw()
        plt.close(figure)
