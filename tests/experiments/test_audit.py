"""Experiment ``audit``: what was found is stored with its n for every pair of splits; what is absent is left out."""

from dataclasses import replace

import pytest

from vqa_core.evaluation import leakage
from vqa_core.experiments import audit, medical_readout
from vqa_core.experiments.runner import run_spec


@pytest.fixture
def no_data(tmp_path, monkeypatch):
    monkeypatch.setenv("VQA_DATA", str(tmp_path))
    monkeypatch.setenv("VQA_RESULTS", str(tmp_path / "results"))
    return tmp_path


def test_absent_data_sets_are_left_out(no_data):
    assert audit.present() == ("scenes", "phantoms")
    assert [s.unit for s in audit.specs("cpu")] == ["scenes", "phantoms"]


@pytest.mark.parametrize("name", ["scenes", "phantoms"])
def test_every_share_is_stored_with_its_n(no_data, name):
    (spec,) = [s for s in audit.specs("smoke") if s.unit == name]
    spec = replace(spec, data=replace(spec.data, n=12))
    record = run_spec(spec, "code", no_data / "results")
    splits = [audit.GENERATED[name].load(s, n=12) for s in audit.catalogue.NAMES[name].splits]
    found = leakage.audit_splits(name, splits)
    assert [tuple(p) for p in record.details["pairs"]] == found["pairs"]
    assert found["pairs"]
    for pair in found["pairs"]:
        share = found["lookup_accuracy"][pair]
        metric = record.metrics[f"{pair[0]}>{pair[1]}.lookup_accuracy"]
        assert (metric.value, metric.n) == (share.count / share.n, share.n)
        near = found["shared_pictures"][pair]["near"]
        assert record.metrics[f"{pair[0]}>{pair[1]}.near_duplicate_pictures"].n == near.n
    assert len(record.provenance["data_hash"]) == 64


@pytest.mark.realdata("vqa_rad")
def test_the_leak_of_vqa_rad_is_in_the_record(data_root, monkeypatch):
    monkeypatch.setenv("VQA_DATA", str(data_root))
    (spec,) = [s for s in audit.specs("cpu") if s.unit == "vqa_rad"]
    outcome = audit.run(replace(spec, data=replace(spec.data, pictures=False)))
    leak = outcome.metrics["train_3064>test.reworded_by_numbering"]
    assert round(leak.value * leak.n) == 284
    assert leak.n == 451
    assert "train_3064>test" in outcome.details["rules"]
    lookup = outcome.metrics["train>test.lookup_accuracy"]
    assert round(1000 * lookup.value) == 235


def test_the_table_has_what_was_asked_for_and_no_zeros(no_data):
    (spec,) = [s for s in audit.specs("smoke") if s.unit == "scenes"]
    record = run_spec(replace(spec, data=replace(spec.data, n=12)), "code", no_data / "results")
    pair = ">".join(record.details["pairs"][0])
    table = audit.table([record], {"scenes": [pair], "nlvr": ["train>dev"]})
    assert set(table["data"]) == {"scenes"}
    assert set(table["splits"]) == {pair.replace(">", " → ")}
    found = table.set_index("finding").loc["right by lookup"]
    metric = record.metrics[f"{pair}.lookup_accuracy"]
    assert (found["count"], found["n"]) == (round(metric.value * metric.n), metric.n)
    assert found["low"] <= found["mean"] <= found["high"]
    assert (table["count"] > 0).all()
    assert "same pictures" not in set(table["finding"])  # splits of scenes share none


def test_the_whole_table_has_every_pair_and_zeros(no_data):
    (spec,) = [s for s in audit.specs("smoke") if s.unit == "scenes"]
    record = run_spec(replace(spec, data=replace(spec.data, n=12)), "code", no_data / "results")
    table = medical_readout.audit_table([record])
    assert len(table) == len(record.metrics)
    assert set(table["splits"]) == {" → ".join(pair) for pair in record.details["pairs"]}
    assert set(table["finding"]) <= set(medical_readout.FINDINGS.values())
    (shared,) = table[(table["splits"] == "train → val") & (table["finding"] == "same pictures")].to_dict("records")
    assert (shared["count"], shared["mean"]) == (0, 0)
    assert 0 < shared["high"] < 1
    part = audit.table([record], {"scenes": ["train>val"]})  # what the figure of the chapter shows
    assert set(part["finding"]) <= set(table["finding"])
