"""Readout and drawings of ``pretext`` on records whose effects are planted."""

from __future__ import annotations

import numpy as np
import pytest

from vqa_core.evaluation.caption_truth import KINDS
from vqa_core.experiments import pretext_drawing as drawing
from vqa_core.experiments import pretext_readout as readout
from vqa_core.experiments.records import Metric, Record, Spec
from vqa_core.training.pretext import TASKS

SEEDS, PICTURES = 5, 400


def record(unit, seed, arrays, metrics=None, details=None):
    return Record(Spec("pretext", unit, seed, "smoke"), metrics or {}, arrays, details or {})


def share(rate, n=PICTURES, seed=0):
    """bool (n,), of which the given share is True."""
    return np.random.default_rng(seed).permutation(n) < round(rate * n)


def mae_records(gain=0.2):
    made = []
    for seed in range(SEEDS):
        arrays = {}
        for start, base in (("random", 0.4), ("mae", 0.4 + gain)):
            for labels in (3, 10):
                for way, attributes in (("frozen", ("colour", "shape")), ("tuned", ("shape",))):
                    for attribute in attributes:
                        name = f"{way}.{start}.{attribute}.{labels}"
                        arrays[name] = share(base + labels / 100, seed=seed)
        metrics = {"error": Metric(0.1, 8), "error_of_mean": Metric(0.3 + 0.01 * seed, 8)}
        made.append(record("mae", seed, arrays, metrics))
    return made


def joint_records(name, accuracy, validation=0.5):
    made = []
    for seed in range(SEEDS):
        words = np.arange(PICTURES)
        arrays = {
            "correct_test": share(accuracy, seed=seed), "picture_test": np.arange(PICTURES),
            "order.right": share(0.75, seed=seed), "order.right_other": share(0.5, seed=seed),
            "order.right_lookup": share(0.25), "order.chance": np.full(PICTURES, 0.125, np.float32),
            "order.picture": words // 10,
        }  # fmt: skip
        epochs = [
            {f"{t}.{q}": v * (1 + e) for t in TASKS for q, v in (("weight", 2.0), ("loss", 1.0), ("accuracy", 0.2))}
            for e in range(3)
        ]
        metrics = {t: Metric(0.5, 10) for t in TASKS} | {"accuracy_val": Metric(validation, 10)}
        made.append(record(f"joint.{name}", seed, arrays, metrics, {"pretraining": epochs}))
    return made


def runs_of(**accuracies):
    return {f"joint.{k}": joint_records(k, v) for k, v in accuracies.items()}


def test_gain_of_pretraining_is_the_planted_one():
    runs = {"mae": mae_records(0.2)}
    effect = readout.effects(runs)["P1"]
    assert effect.mean == pytest.approx(0.2)
    assert effect.low > 0.1
    assert effect.seeds == SEEDS
    found = readout.effects({"mae": mae_records(0.0)})["P1"]
    assert (found.low, found.mean, found.high) == (0, 0, 0)
    table = readout.few_label_table(runs["mae"]).set_index(["way", "start", "attribute", "labels"])
    assert table.loc[("tuned", "mae", "shape", 10), "mean"] == pytest.approx(0.7)
    assert table.loc[("frozen", "random", "colour", 3), "mean"] == pytest.approx(0.43)
    assert table.loc[("frozen", "random", "colour", 3), "chance"] == 1 / 8
    assert list(table.index.get_level_values("way").unique()) == ["tuned", "frozen"]


def test_balanced_is_chosen_on_validation_not_on_test():
    runs = runs_of(plain=0.5, dwa=0.9, uncertainty=0.6, nothing=0.4)
    runs["joint.dwa"] = joint_records("dwa", 0.9, validation=0.3)
    assert readout.balanced_unit(runs) == "joint.uncertainty"
    assert readout.effects(runs)["P3"].mean == pytest.approx(0.1)
    runs["joint.dwa"] = joint_records("dwa", 0.9, validation=0.5)
    assert readout.balanced_unit(runs) == "joint.dwa"  # the first of equals
    assert readout.effects(runs)["P3"].mean == pytest.approx(0.4)


def test_order_is_compared_with_the_chance_of_each_word():
    runs = runs_of(plain=0.5)
    effect = readout.effects(runs)["P4"]
    assert effect.mean == pytest.approx(0.75 - 0.125)
    table = readout.order_table(runs["joint.plain"]).set_index("guess")
    assert table["mean"].tolist() == pytest.approx([0.75, 0.5, 0.25, 0.125])
    assert table.loc["chance", ["low", "high"]].tolist() == pytest.approx([0.125, 0.125])
    assert readout.order_from_picture(runs["joint.plain"]).interval.mean == pytest.approx(0.25)


def test_claims_without_records_are_none():
    assert readout.effects({}) == {"P1": None, "P3": None, "P4": None}
    assert readout.effects(runs_of(dwa=0.5, uncertainty=0.5))["P3"] is None
    some = mae_records()
    for r in some:
        del r.arrays["tuned.mae.shape.10"]
    assert readout.effects({"mae": some})["P1"] is None


def test_tables_hold_intervals_and_no_gaps():
    runs = runs_of(plain=0.5, dwa=0.6, nothing=0.4) | {"mae": mae_records(), "captioner": caption_records()}
    for table in (
        readout.downstream_table(runs),
        readout.task_table(runs),
        readout.balance_curves(runs),
        readout.error_table(runs["mae"]),
        readout.truth_of_captions(runs["captioner"]),
    ):
        assert not table.isna().to_numpy().any()
        assert ((table["low"] <= table["mean"]) & (table["mean"] <= table["high"])).all()
    curves = readout.balance_curves(runs)
    assert curves[curves["quantity"] == "weight"]["mean"].tolist() == pytest.approx([1 / 3] * 27)
    loss = curves[(curves["quantity"] == "loss") & (curves["task"] == "mlm") & (curves["unit"] == "joint.dwa")]
    assert loss["mean"].tolist() == pytest.approx([1, 2, 3])
    assert readout.downstream_table(runs)["mean"].tolist() == pytest.approx([0.5, 0.6, 0.4])


def caption_records():
    made = []
    for seed in range(2):
        kind = np.array([0, 0, 1, -1], np.int8)
        true = np.array([True, False, True, False])
        arrays = {"exact": np.array([True, False, False, False])}
        for name in readout.SAID:
            arrays |= {f"{name}.true": true, f"{name}.kind": kind, f"{name}.found": true.astype(np.float32)}
        made.append(record("captioner", seed, arrays))
    return made


def test_kinds_of_captions_are_counted():
    table = readout.kinds_of_captions(caption_records()).set_index("kind")
    assert table.loc[KINDS[0]].tolist() == [0.5, 0.5, 4]
    assert table.loc[KINDS[1]].tolist() == [0.25, 1.0, 2]
    assert table.loc["no sentence of the grammar"].tolist() == [0.25, 0.0, 2]
    assert KINDS[2] not in table.index


def test_records_that_do_not_fit_together_are_refused():
    some = mae_records()
    some[1].arrays["tuned.mae.shape.10"] = np.ones(3, bool)
    with pytest.raises(ValueError, match="has shapes"):
        readout.few_label_gain(some)
    del some[1].arrays["tuned.mae.shape.10"]
    with pytest.raises(ValueError, match=r"no array 'tuned.mae.shape.10' for seeds \[1\]; run pretext again"):
        readout.few_label_gain(some)


# ----------------------------------------------------------------------------------------------------------- drawings


def test_hidden_patches_are_grey_and_the_others_as_they_were():
    pictures = np.random.default_rng(0).integers(0, 256, (2, 16, 24, 3), dtype=np.uint8)
    hidden = np.array([[True, False, False, False, False, True], [False] * 6])
    found = drawing.masked(pictures, hidden, (2, 3))
    assert (found[0, :8, :8] == 128).all()
    assert (found[0, 8:, 16:] == 128).all()
    assert np.array_equal(found[0, 8:, :16], pictures[0, 8:, :16])
    assert np.array_equal(found[1], pictures[1])


def test_every_drawing_draws_what_its_table_holds():
    import matplotlib.pyplot as plt

    runs = runs_of(plain=0.5, dwa=0.6, uncertainty=0.6, nothing=0.4)
    few = drawing.few_label_curves(readout.few_label_table(mae_records()))
    assert [ax.get_title() for ax in few.axes] == ["shape\nfine-tuned", "colour\nfrozen", "shape\nfrozen"]
    assert few.axes[0].lines[0].get_ydata().tolist() == pytest.approx([0.63, 0.7])
    curves = drawing.balance(readout.balance_curves(runs))
    assert len(curves.axes) == 6
    assert curves.axes[3].lines[0].get_ydata().tolist() == pytest.approx([1, 2, 3])
    table = readout.downstream_table(runs)
    rows = drawing.forest(table, "title", "accuracy", {"majority": 0.3})
    assert [t.get_text() for t in rows.axes[0].get_yticklabels()] == table["title"].tolist()
    images = np.zeros((4, 16, 16, 3), np.uint8)
    told = drawing.captions(images, ["a", "b", "c", "d"], [True, False, True, True])
    assert [ax.get_title() for ax in told.axes[:2]] == ["a\n(true)", "b\n(false)"]
    gallery = drawing.reconstructions(images, np.zeros((4, 4), bool), images, (2, 2))
    assert len(gallery.axes) == 12
    for figure in (few, curves, rows, told, gallery):
        figure.canvas.draw()
        plt.close(figure)
