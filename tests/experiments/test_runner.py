"""The runner: what is there is read, what is missing is run, a killed run loses one unit."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from vqa_core import experiments
from vqa_core.experiments import runner

TOY = """
import os, time
from pathlib import Path
import numpy as np
from vqa_core.experiments import Metric, Outcome, Spec
PROFILES = {"smoke": None}
REQUIRES = ()
def specs(profile):
    return [Spec("toy", unit, seed, profile) for unit in ("a", "b") for seed in range(3)]
def run(spec):
    log = Path(os.environ["TOY_LOG"])
    with log.open("a") as f:
        f.write(f"{spec.unit}{spec.seed}\\n")
    time.sleep(float(os.environ.get("TOY_SLEEP", "0")))
    value = (ord(spec.unit) + spec.seed) / 200
    return Outcome({"accuracy": Metric(value, 10)}, {"x": np.full(3, value)}, {"data_hash": "d"})
"""


@pytest.fixture
def toy(tmp_path, monkeypatch):
    (tmp_path / "toy_experiment.py").write_text(TOY)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setitem(experiments.EXPERIMENTS, "toy", "toy_experiment")
    monkeypatch.setattr(runner.where_from, "code_hash", lambda names: "code-1")
    monkeypatch.setenv("TOY_LOG", str(tmp_path / "log"))
    monkeypatch.setenv("TOY_SLEEP", "0")
    return tmp_path


def ran(toy: Path) -> list[str]:
    return (toy / "log").read_text().split() if (toy / "log").is_file() else []


def test_runs_all_then_nothing(toy):
    first = runner.run_experiment("toy", "smoke", workers=1, root=toy, progress=False)
    assert sorted(ran(toy)) == ["a0", "a1", "a2", "b0", "b1", "b2"]
    again = runner.run_experiment("toy", "smoke", workers=1, root=toy, progress=False)
    assert len(ran(toy)) == 6
    assert [r.metrics for r in again] == [r.metrics for r in first]
    assert [(r.spec.unit, r.spec.seed) for r in again] == [(u, s) for u in "ab" for s in range(3)]
    assert first[0].provenance["data_hash"] == "d"
    assert first[0].seconds > 0


def test_runs_only_what_is_missing_and_index_is_stable(toy):
    runner.run_experiment("toy", "smoke", unit="a", workers=1, root=toy, progress=False)
    index = toy / "smoke/toy/index.json"
    assert not index.exists()
    runner.run_experiment("toy", "smoke", workers=1, root=toy, progress=False)
    assert len(ran(toy)) == 6
    stamp = index.stat().st_mtime_ns
    (toy / "smoke/toy/b/seed1.json").unlink()
    runner.run_experiment("toy", "smoke", workers=1, root=toy, progress=False)
    assert ran(toy)[6:] == ["b1"]
    assert index.stat().st_mtime_ns == stamp  # same findings, same file
    assert len(json.loads(index.read_text())) == 6


def test_changed_code_runs_again(toy, monkeypatch):
    runner.run_experiment("toy", "smoke", seed=0, workers=1, root=toy, progress=False)
    monkeypatch.setattr(runner.where_from, "code_hash", lambda names: "code-2")
    runner.run_experiment("toy", "smoke", seed=0, workers=1, root=toy, progress=False)
    assert ran(toy) == ["a0", "b0", "a0", "b0"]


def test_plan_counts(toy):
    runner.run_experiment("toy", "smoke", unit="b", workers=1, root=toy, progress=False)
    plan = runner.plan("toy", "smoke", toy)
    assert (plan["units"], plan["missing"]) == (6, 3)


def test_unknown_unit_names_the_units(toy):
    with pytest.raises(ValueError, match="units are a, b"):
        runner.run_experiment("toy", "smoke", unit="c", root=toy)


@pytest.mark.parametrize(
    ("unit", "expected"),
    [("a,b", "a0 a1 a2 b0 b1 b2"), ("?", "a0 a1 a2 b0 b1 b2"), ("[!b]*", "a0 a1 a2"), ("b", "b0 b1 b2")],
)
def test_units_are_chosen_by_pattern(toy, unit, expected):
    runner.run_experiment("toy", "smoke", unit=unit, workers=1, root=toy, progress=False)
    assert sorted(ran(toy)) == expected.split()


def test_a_pattern_without_a_unit_is_refused_before_anything_runs(toy):
    with pytest.raises(ValueError, match=r"no unit c\?, d"):
        runner.run_experiment("toy", "smoke", unit="a,c?, d", workers=1, root=toy, progress=False)
    assert ran(toy) == []


def test_units_of_an_experiment_whose_data_are_absent(toy, monkeypatch):
    monkeypatch.setattr(runner.module_of("toy"), "specs", lambda profile: [])
    assert runner.run_experiment("toy", "smoke", root=toy, progress=False) == []
    with pytest.raises(FileNotFoundError, match="the data are absent"):
        runner.run_experiment("toy", "smoke", unit="a", root=toy, progress=False)


def test_unknown_experiment_names_the_experiments():
    with pytest.raises(ValueError, match="fusion"):
        experiments.module_of("fuson")


def test_kill_nine_loses_only_the_unit_in_work(toy):
    """A process killed without warning: the next one computes what is missing and finds the same."""
    program = (
        "import sys; sys.path.insert(0, sys.argv[1]); from pathlib import Path\n"
        "from vqa_core import experiments; from vqa_core.experiments import runner\n"
        "experiments.EXPERIMENTS['toy'] = 'toy_experiment'\n"
        "runner.where_from.code_hash = lambda names: 'code-1'\n"
        "runner.run_experiment('toy', 'smoke', workers=1, root=Path(sys.argv[1]), progress=False)\n"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", program, str(toy)], env=os.environ | {"TOY_SLEEP": "0.4"}, start_new_session=True
    )
    deadline = time.monotonic() + 60
    while len(ran(toy)) < 3 and time.monotonic() < deadline:
        time.sleep(0.02)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    started = len(ran(toy))
    assert 3 <= started < 6
    records = runner.run_experiment("toy", "smoke", workers=1, root=toy, progress=False)
    assert len(ran(toy)) <= 6 + 1
    assert [r.metrics["accuracy"].value for r in records] == [(ord(u) + s) / 200 for u in "ab" for s in range(3)]


def test_experiment_whose_data_are_absent_has_no_records(toy, monkeypatch):
    monkeypatch.setattr(experiments.module_of("toy"), "specs", lambda profile: [])
    assert runner.run_experiment("toy", "smoke", root=toy, progress=False) == []
    assert json.loads((toy / "smoke/toy/index.json").read_text()) == []


def test_workers_of_a_killed_run_end_by_themselves(toy):
    program = (
        "import sys; sys.path.insert(0, sys.argv[1]); from pathlib import Path\n"
        "from vqa_core import experiments; from vqa_core.experiments import runner\n"
        "experiments.EXPERIMENTS['toy'] = 'toy_experiment'\n"
        "runner.where_from.code_hash = lambda names: 'code-1'\n"
        "import toy_worker\n"
        "runner._run_in_worker = toy_worker.run\n"
        "if __name__ == '__main__':\n"
        "    runner.run_experiment('toy', 'smoke', workers=2, root=Path(sys.argv[1]), progress=False)\n"
    )
    (toy / "toy_worker.py").write_text(
        "import os, time\nfrom pathlib import Path\n"
        "def run(spec, code, root):\n"
        "    Path(root, f'worker{os.getpid()}').touch()\n"
        "    time.sleep(60)\n"
    )
    (toy / "parent.py").write_text(program)
    process = subprocess.Popen(
        [sys.executable, str(toy / "parent.py"), str(toy)], env=os.environ | {"PYTHONPATH": str(toy)}
    )
    deadline = time.monotonic() + 60
    while len(list(toy.glob("worker*"))) < 2 and time.monotonic() < deadline:
        time.sleep(0.1)
    workers = [int(p.name.removeprefix("worker")) for p in toy.glob("worker*")]
    assert len(workers) == 2
    process.kill()
    process.wait()
    deadline = time.monotonic() + 10
    while any(_alive(w) for w in workers) and time.monotonic() < deadline:
        time.sleep(0.1)
    assert not any(_alive(w) for w in workers)


def _alive(pid: int) -> bool:
    """Running, not a zombie that waits for a parent to fetch it."""
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False
