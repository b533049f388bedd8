"""The archive: what took hours is found again in a fresh checkout, and what other code made is named."""

import dataclasses

import numpy as np
import pytest

from vqa_core.experiments import Metric, Record, Spec, archive, records


@pytest.fixture
def one(tmp_path, monkeypatch):
    """An experiment of one unit with two seeds, of which the first was run."""
    specs = [Spec("mevf", "ban.3064", seed, "smoke") for seed in (0, 1)]

    class Module:
        @staticmethod
        def specs(profile):
            return [s for s in specs if s.profile == profile]

    monkeypatch.setenv("VQA_RESULTS", str(tmp_path / "results"))
    monkeypatch.setattr(archive, "module_of", lambda name: Module)
    monkeypatch.setattr(archive, "code_hash_of", lambda name: "today")
    record = Record(
        specs[0],
        {"right": Metric(0.5, 4)},
        {"correct": np.array([1, 0, 1, 0], bool)},
        provenance={"code_hash": "today"},
    )
    records.save_record(record)
    return tmp_path, specs, record


def test_a_record_survives_the_loss_of_results(one):
    root, specs, record = one
    assert archive.keep("mevf", "smoke", root / "runs") == 1
    for path in sorted((root / "results").rglob("*"), reverse=True):
        path.rmdir() if path.is_dir() else path.unlink()
    assert records.load_record(specs[0]) is None
    (found,) = archive.load("mevf", "smoke", root / "runs")
    np.testing.assert_array_equal(found.arrays["correct"], record.arrays["correct"])
    assert archive.restore("mevf", "smoke", root / "runs") == 1
    assert records.load_record(specs[0], "today").metrics["right"].n == 4


def test_restoring_never_replaces_what_is_there(one):
    root, specs, record = one
    archive.keep("mevf", "smoke", root / "runs")
    newer = dataclasses.replace(record, metrics={"right": Metric(0.75, 4)})
    records.save_record(newer)
    assert archive.restore("mevf", "smoke", root / "runs") == 0
    assert archive.load("mevf", "smoke", root / "runs")[0].metrics["right"].value == 0.75
    assert archive.keep("mevf", "smoke", root / "runs") == 1  # the newer one is kept
    assert records.load_record(specs[0], root=root / "runs").metrics["right"].value == 0.75


def test_records_of_other_code_are_named(one):
    root, _, record = one
    assert archive.stale(archive.load("mevf", "smoke", root / "runs")) == []
    records.save_record(dataclasses.replace(record, provenance={"code_hash": "of yesterday"}))
    assert archive.stale(archive.load("mevf", "smoke", root / "runs")) == ["ban.3064, seed 0"]


def test_an_unknown_experiment_is_refused(monkeypatch, tmp_path):
    monkeypatch.setenv("VQA_RESULTS", str(tmp_path))
    with pytest.raises(ValueError, match="there is no experiment 'mefv'"):
        archive.main(["keep", "mefv", "--profile", "smoke"])
