"""Tables and effects of chapter 5 are what was planted in records; what is absent is None."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from vqa_core.evaluation.claims import judge
from vqa_core.experiments import clip
from vqa_core.experiments import clip_readout as readout
from vqa_core.experiments.clip_material import ENSEMBLES, NAMES, SEVEN, Gallery, unseen_names
from vqa_core.experiments.records import Metric, Record

GALLERY, SINGLE = 100, 80
SEVEN_ROW = list(ENSEMBLES).index("seven")


def planted(r1=None, val=None, entropy=None, zero_shot=0.5, alone=0.4, profile="smoke"):
    """A record for every spec: unit → share of hits (0.2), validation R@1 (0.1), entropy (0.5)."""
    r1, val, entropy = r1 or {}, val or {}, entropy or {}
    group = np.arange(GALLERY, dtype=np.int32) // 2
    records = []
    for spec in clip.specs(profile):
        if spec.unit == "cache":
            arrays = {
                "batch": np.array([32, 64]),
                "bytes": np.array([[10_000_000, 20_000_000], [4_000_000, 4_500_000]]),
                "seconds": np.array([[0.1, 0.2], [0.15, 0.3]]),
                "difference": np.array([1e-7, 2e-7]),
            }
            records.append(Record(spec, {}, arrays, {"chunk": 16}))
            continue
        share = r1.get(spec.unit, 0.2)
        hits = np.zeros((2, GALLERY), np.float32)
        hits[:, : round(share * GALLERY)] = 1
        hits[0, -1 - spec.seed] = 1  # one more, another in each seed
        arrays = {"hits": hits, "group": group}
        arrays["entropy"] = np.full(GALLERY - 4, entropy.get(spec.unit, 0.5) + 0.001 * spec.seed, np.float32)
        for kind, allowed in (("unseen", unseen_names()), ("seen", ~unseen_names())):
            label = np.resize(np.flatnonzero(allowed), SINGLE).astype(np.int16)
            wrong = (label // 4 * 4 + (label + 1) % 4).astype(np.int16)  # the right colour, another shape
            named = np.tile(wrong, (len(ENSEMBLES), 1))
            for k, name in enumerate(ENSEMBLES):
                right = round((zero_shot if name in ("seven", "all") else alone) * SINGLE) + (spec.seed == 1)
                named[k, :right] = label[:right]
            arrays |= {f"named_{kind}": named, f"label_{kind}": label}
            arrays[f"group_{kind}"] = np.arange(SINGLE, dtype=np.int32) // 2
        arrays["named_among_unseen"] = arrays["label_unseen"]
        arrays |= {"accuracy_before": np.ones(1), "accuracy_after": np.ones(1)}
        arrays |= {"image": np.eye(GALLERY, 16, dtype=np.float32), "text": -np.eye(GALLERY, 16, dtype=np.float32)}
        history = [{"step": s, "loss": 3.0 - s + 0.1 * spec.seed, "temperature": 0.07} for s in (1, 2)]
        metrics = {"r1": Metric(float(hits.mean()), 2 * GALLERY), "r1_val": Metric(val.get(spec.unit, 0.1), 80)}
        metrics |= {"r5": Metric(0.4, 200), "r10": Metric(0.6, 200), "median_rank": Metric(7.0 + spec.seed, 200)}
        records.append(Record(spec, metrics, arrays, {"history": history, "temperature": 0.05 + 0.01 * spec.seed}))
    return readout.runs_of(records)


PROFILE = clip.PROFILES["smoke"]
BASE = clip.base_unit("smoke")
SMALL_BATCH, LARGE_BATCH = clip.compared_batches("smoke")
LOW_RATE, HIGH_RATE = PROFILE.rates


# -------------------------------------------------------------------------------------------------------- the claims


def test_effects_are_those_that_were_planted():
    r1 = {BASE: 0.30, "temperature.0.02": 0.10, "temperature.0.5": 0.25}
    val = {"temperature.0.02": 0.2}
    for image, few, many in (("vit", 0.10, 0.45), ("resnet", 0.15, 0.35)):
        r1 |= dict(zip((clip.amount_unit(image, n) for n in clip.compared_amounts("smoke")), (few, many)))
    large, small = clip.batch_unit(LARGE_BATCH, HIGH_RATE), clip.batch_unit(SMALL_BATCH, LOW_RATE)
    r1 |= {large: 0.30, small: 0.22, clip.batch_unit(SMALL_BATCH, HIGH_RATE): 0.5}
    val |= {large: 0.3, small: 0.3}  # the best on test is not the best on validation
    runs = planted(r1, val, {"temperature.0.02": 0.2, "temperature.0.5": 0.9})
    found = readout.effects(runs)
    expected = {"C1a": 0.7, "C1b": 0.20, "C4": 0.35 - 0.20, "C6": 0.08}
    for claim, effect in expected.items():
        assert found[claim].mean == pytest.approx(effect, abs=1e-6), claim
        assert found[claim].low <= found[claim].mean <= found[claim].high
        assert found[claim].seeds == PROFILE.seeds
    right = readout.named(runs["small"])[0]
    assert found["C2"].mean == pytest.approx(right.mean() - 1 / 32)
    assert found["C3"].mean == pytest.approx(0.5 - 0.4, abs=1e-9)
    assert (found["C2"].n, found["C6"].n) == (SINGLE, 2 * GALLERY)


def test_effects_of_equal_units_are_none_at_all():
    found = readout.effects(planted(zero_shot=0.4))
    for claim in ("C1a", "C1b", "C3", "C4", "C6"):
        assert found[claim].mean == pytest.approx(0, abs=1e-9)
    assert judge("supported if low > 0; refuted if high < 0", 0, found["C3"].low, found["C3"].high, 1) == "inconclusive"


def test_a_guess_has_no_zero_shot_effect():
    runs = planted(zero_shot=1 / 32, alone=1 / 32)
    assert abs(readout.effects(runs)["C2"].mean) < 0.01


def test_what_is_absent_is_none():
    claims = {"C1a", "C1b", "C2", "C3", "C4", "C6"}
    assert readout.effects({}) == dict.fromkeys(claims)
    runs = planted()
    for unit, gone in (
        ("small", {"C2", "C3"}),
        ("temperature.0.02", {"C1a", "C1b"}),
        (BASE, {"C1b", "C6"}),
        ("pairs.resnet.64", {"C4"}),
    ):
        found = readout.effects({u: some for u, some in runs.items() if u != unit})
        assert {claim for claim, effect in found.items() if effect is None} == gone


def test_units_with_other_seeds_are_not_compared():
    runs = planted()
    with pytest.raises(ValueError, match=r"other seeds: \[\[0, 1\], \[0\]\]"):
        readout.difference(runs["small"], runs[BASE][:1])


# -------------------------------------------------------------------------------------------------------- the tables


def test_recall_counts_both_directions():
    runs = planted({"small": 0.2})
    x, groups = readout.hits(runs["small"])
    assert x.shape == (2, 2 * GALLERY)
    assert groups[:GALLERY].tolist() == groups[GALLERY:].tolist()
    assert readout.recall(runs["small"]).mean == pytest.approx((40 + 1) / 200)
    table = readout.metric_table(runs).set_index("metric")
    assert table.loc["R@1", "mean"] == pytest.approx(41 / 200)
    assert table.loc["median rank", "mean"] == pytest.approx(7.5)


def test_zero_shot_tables():
    runs = planted()
    table = readout.zero_shot_table(runs).set_index(["prompts", "pictures"])
    assert len(table) == 2 * len(ENSEMBLES) + 1
    assert table.loc[("seven", "unseen pairs"), "mean"] == pytest.approx(0.5 + 0.5 / SINGLE)
    assert table.loc[(SEVEN[0], "seen pairs"), "mean"] == pytest.approx(0.4 + 0.5 / SINGLE)
    assert table.loc[("seven, unseen names only", "unseen pairs"), "mean"] == 1
    parts = readout.attribute_table(runs).set_index(["pictures", "attribute"])["mean"]
    assert parts["unseen pairs", "colour"] == 1  # only shapes are wrong
    assert parts["unseen pairs", "shape"] == parts["unseen pairs", "both"] == pytest.approx(0.5 + 0.5 / SINGLE)
    matrix = readout.confusion(runs)
    rows = np.flatnonzero(unseen_names())
    np.testing.assert_allclose(matrix[rows].sum(1), 1)
    assert matrix[~unseen_names()].sum() == 0
    assert np.trace(matrix) / 8 == pytest.approx(0.5 + 0.5 / SINGLE, abs=0.02)
    assert NAMES[rows[0]].split()[0] == NAMES[np.argsort(matrix[rows[0]])[-2]].split()[0]


def test_sweeps():
    best = clip.batch_unit(SMALL_BATCH, HIGH_RATE)
    runs = planted({best: 0.4}, {best: 0.5})
    assert readout.best_by_batch(runs)[SMALL_BATCH] == best
    table = readout.batch_table(runs)
    assert list(table.columns) == ["batch", "rate", "best", "mean", "low", "high", "n"]
    (row,) = table[(table["batch"] == SMALL_BATCH) & (table["best"] == "yes")].to_dict("records")
    assert (row["rate"], row["mean"]) == (HIGH_RATE, pytest.approx(0.4 + 1 / 200))
    assert len(readout.amount_table(runs)) == 2 * len(PROFILE.amounts)
    temperature = readout.temperature_table(runs).set_index(["temperature", "quantity"])["mean"]
    assert temperature["0.5", "entropy"] == pytest.approx(0.5005)
    assert temperature["learned", "last loss"] == pytest.approx(1.05)
    assert temperature["learned", "τ at the end"] == pytest.approx(0.055)
    losses = readout.loss_table(runs)
    assert set(losses["loss"]) == set(readout.LOSSES.values())
    curves = readout.curves(runs, {"small": "CLIP"})
    assert curves[curves["quantity"] == "loss"]["mean"].tolist() == pytest.approx([2.05, 1.05])
    own = readout.self_similarity_table(runs).set_index(["captions", "quantity"])["mean"]
    assert own["of other pictures", "accuracy before training"] == 1
    assert own["their own", "last loss"] == pytest.approx(1.05)
    memory = readout.cache_table(runs)
    assert memory["megabytes"].tolist() == [10.0, 4.0, 20.0, 4.5]
    assert memory["way"].tolist() == ["plain", "cached"] * 2
    tables = (table, losses, temperature.reset_index(), curves, readout.amount_table(runs), memory)
    assert not any(t.isna().any().any() for t in tables)


def test_examples_and_map():
    (record, *_) = planted()["small"]
    record = replace(record, arrays=record.arrays | {"text": record.arrays["image"][::-1].copy()})
    captions = [f"caption {k}" for k in range(GALLERY)]
    found = readout.examples(record, captions, [0, 3], k=2)
    assert [len(best) for best in found] == [2, 2]
    assert found[0][0] == ("caption 99", 1.0)
    assert found[1][0] == ("caption 96", 1.0)
    assert readout.embedding_map(record).shape == (2, GALLERY, 2)
    (record, *_) = planted()["small"]
    assert readout.modality_gap(record) == pytest.approx(2 * np.sqrt(16) / GALLERY)


def test_tables_behind_the_drawings():
    matrices = readout.matrix_table(np.zeros((2, 2)), np.array([[0.9, 0.1], [0.2, 0.8]]))
    assert matrices[matrices["when"] == "after"]["cosine"].tolist() == [0.9, 0.1, 0.2, 0.8]
    gallery = Gallery(None, ("a", "b"), np.array([[True, True], [False, True]]), np.zeros(2))
    said = readout.example_table([[("b", 0.9), ("a", 0.8)], [("a", 0.7)]], gallery, [0, 1])
    assert said["true"].tolist() == ["yes", "yes", "no"]
    assert said["rank"].tolist() == [1, 2, 1]
    assert readout.map_table(np.arange(8.0).reshape(2, 2, 2))["second"].tolist() == [1, 3, 5, 7]
    shares = np.zeros((32, 32))
    shares[0, 5] = 0.5
    assert readout.confusion_table(shares).to_dict("records") == [{"is": NAMES[0], "named": NAMES[5], "share": 0.5}]
    runs = planted()
    titles = {"vit": "ViT", "resnet": "ResNet"}
    both = readout.size_table(readout.batch_table(runs), readout.amount_table(runs), titles)
    assert len(both) == len(PROFILE.batches) * len(PROFILE.rates) + 2 * len(PROFILE.amounts)
    assert not both.isna().any().any()
    found = readout.cell(readout.loss_table(runs), loss="SigLIP", metric="R@1")
    assert found["mean"] == pytest.approx(0.2 + 1 / 200)
    with pytest.raises(ValueError, match="0 rows have"):
        readout.cell(readout.loss_table(runs), loss="none")
    assert len(readout.of_units(runs, ["small", "cache"])) == PROFILE.seeds + 1
    assert set(readout.COUNTED) == set(readout.effects({}))
