import json
import os
from dataclasses import dataclass

import numpy as np
import pytest

from vqa_core.experiments.records import Metric, Record, Spec, load_record, save_record, write_atomically


@dataclass(frozen=True)
class Model:
    dim: int = 8
    sizes: tuple[int, ...] = (1, 2)


def record(seed=0, **options) -> Record:
    spec = Spec("toy", "unit-a", seed, "smoke", model=Model(**options))
    return Record(
        spec=spec,
        metrics={"accuracy": Metric(0.75, 8)},
        arrays={"correct": np.array([1, 0, 1], np.uint8)},
        details={"history": [{"epoch": 0}]},
        provenance={"code_hash": "abc"},
    )


def test_round_trip(tmp_path):
    save_record(record(), tmp_path)
    back = load_record(record().spec, "abc", tmp_path)
    assert back.metrics == record().metrics
    assert back.details == record().details
    np.testing.assert_array_equal(back.arrays["correct"], [1, 0, 1])
    assert (tmp_path / "smoke/toy/unit-a/seed0.json").is_file()


def test_spec_is_hashable_and_its_hash_depends_on_every_part():
    specs = [record().spec, record(seed=1).spec, record(dim=9).spec, record(sizes=(2, 1)).spec]
    assert len({s.hash for s in specs}) == len(set(specs)) == 4
    assert record().spec.hash == record().spec.hash


def test_record_of_another_spec_or_other_code_is_refused(tmp_path):
    save_record(record(), tmp_path)
    assert load_record(record(dim=9).spec, "abc", tmp_path) is None
    assert load_record(record().spec, "other code", tmp_path) is None
    assert load_record(record(seed=5).spec, "abc", tmp_path) is None


def test_damaged_files_are_named(tmp_path):
    path = save_record(record(), tmp_path)
    tensors = path.with_suffix(".safetensors")
    good = tensors.read_bytes()
    tensors.write_bytes(good[:-1] + bytes([good[-1] ^ 1]))
    with pytest.raises(ValueError, match=r"seed0\.safetensors is missing or does not belong"):
        load_record(record().spec, "abc", tmp_path)
    path.write_text(path.read_text()[:40])
    with pytest.raises(ValueError, match=r"seed0\.json is damaged"):
        load_record(record().spec, "abc", tmp_path)


def test_metric_needs_n_and_a_finite_value():
    with pytest.raises(TypeError):
        Metric(0.5)
    with pytest.raises(ValueError, match="n ≥ 1"):
        Metric(0.5, 0)
    with pytest.raises(ValueError, match="finite"):
        Metric(float("nan"), 3)


def test_spec_refuses_names_that_leave_the_folder_and_values_json_cannot_hold():
    with pytest.raises(ValueError, match="names a file"):
        Spec("toy", "../elsewhere", 0, "cpu")
    with pytest.raises(TypeError, match="ndarray"):
        Spec("toy", "a", 0, "cpu", data={"x": np.zeros(2)}).as_json()


def test_a_crash_while_writing_leaves_the_old_content(tmp_path, monkeypatch):
    path = tmp_path / "x.json"
    write_atomically(path, b"old")

    def crash(*_):
        raise OSError("disk full")

    monkeypatch.setattr(os, "replace", crash)
    with pytest.raises(OSError, match="disk full"):
        write_atomically(path, b"new")
    assert path.read_bytes() == b"old"
    assert [p.name for p in tmp_path.iterdir()] == ["x.json"]


def test_json_is_strict(tmp_path):
    path = save_record(record(), tmp_path)
    assert json.loads(path.read_text())["metrics"]["accuracy"] == {"value": 0.75, "n": 8}
