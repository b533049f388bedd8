"""The engine survives being killed at any moment, loses one unit at most, and runs again only what changed."""

import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from book.pipeline import build, dumps, measure

ROOT = Path(__file__).parents[2]
EXPERIMENT = '''"""An experiment of four units; each unit that runs is noted in ran.txt."""
import sys, time
from pathlib import Path
from vqa_core.experiments.records import write_atomically

profile = sys.argv[sys.argv.index("--profile") + 1]
folder = Path("results") / profile / "toy"
for unit in "abcd":
    path = folder / unit / "seed0.json"
    if not path.exists():
        with open("ran.txt", "a") as log:
            log.write(unit + "\\n")
        time.sleep(0.6)
        write_atomically(path, b"{}")
write_atomically(folder / "index.json", b"[]")
'''


@pytest.fixture(scope="module")
def engine(tmp_path_factory, make_checkout):
    """A checkout with the real Snakefile and pipeline, and a package whose one experiment is a toy."""
    root = make_checkout(tmp_path_factory.mktemp("engine") / "book")
    shutil.copy(ROOT / "Snakefile", root)
    shutil.copytree(ROOT / "book/pipeline", root / "book/pipeline", dirs_exist_ok=True)
    (root / "book/pipeline/profiles.yml").write_text("notebooks:\n  01_tiny:\n    experiments: [toy]\n")
    package = root / "vqa_core"
    (package / "experiments").mkdir()
    for name in ("__init__.py", "figures.py", "experiments/provenance.py", "experiments/records.py"):
        shutil.copy(ROOT / "vqa_core" / name, package / name)
    (package / "experiments/__init__.py").write_text('EXPERIMENTS = {"toy": "vqa_core.experiments.toy"}\n')
    (package / "experiments/toy.py").write_text("REQUIRES = ()\nrate = 1  # per epoch\n")
    (package / "__main__.py").write_text(EXPERIMENT)
    return root


def start(root, *options, target="--results"):
    command = [sys.executable, "-m", "book.pipeline.build", "--profile", "smoke", "--cores", "2", target, *options]
    environment = {k: v for k, v in os.environ.items() if k != measure.OWNER}
    return subprocess.Popen(command, cwd=root, stderr=subprocess.PIPE, text=True, env=environment)


def finish(root, *options, **target):
    process = start(root, *options, **target)
    said = process.communicate(timeout=120)[1]
    assert process.returncode == 0, said
    return said


def wait_for(path, process):
    until = time.monotonic() + 60
    while not path.exists():
        assert process.poll() is None, process.stderr.read()
        assert time.monotonic() < until, f"{path} did not appear"
        time.sleep(0.02)


def test_killed_build_is_completed_by_the_next(engine):
    units = engine / "results/smoke/toy"
    first = start(engine)
    wait_for(units / "a/seed0.json", first)
    os.kill(first.pid, signal.SIGKILL)  # the build; its jobs must follow
    first.wait()

    second = start(engine)
    wait_for(units / "b/seed0.json", second)
    workers = [p for p in psutil.Process(second.pid).children() if "snakemake" in " ".join(p.cmdline())]
    assert len(workers) == 1
    workers[0].send_signal(signal.SIGKILL)  # Snakemake alone
    assert second.wait(timeout=30) != 0

    said = finish(engine)
    ran = (engine / "ran.txt").read_text().split()
    assert sorted(set(ran)) == ["a", "b", "c", "d"]
    assert len(ran) <= 6  # each kill cost one unit at most
    assert (units / "index.json").exists()
    assert "[1/1]" in said

    assert "up to date" in finish(engine)

    toy = engine / "vqa_core/experiments/toy.py"
    toy.write_text(toy.read_text().replace("per epoch", "per step"))
    assert "experiment-toy" not in finish(engine, "--plan")
    toy.write_text(toy.read_text().replace("rate = 1", "rate = 2"))
    assert re.search(r"experiment-toy +\d+ s", finish(engine, "--plan"))  # with what it took last time


def test_chapters_limit_the_plan(engine):
    source = (engine / "notebooks/01_tiny.py").read_text()
    (engine / "notebooks/10_more.py").write_text(source.replace("01_tiny", "10_more").replace("01-tiny", "10-more"))
    (engine / "book/pipeline/profiles.yml").write_text(
        "notebooks:\n  01_tiny:\n    experiments: [toy]\n  10_more: {}\n"
    )
    jobs = lambda said: re.findall(r"^  (\S+-\S+)", said, re.MULTILINE)  # noqa: E731
    assert jobs(finish(engine, "--chapters", "10", target="--plan")) == ["notebook-10_more"]
    assert set(jobs(finish(engine, "--chapters", "1 10", target="--plan"))) >= {"notebook-01_tiny", "notebook-10_more"}


def test_owner_that_is_gone_is_noticed():
    child = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    owner = measure.owner_of(psutil.Process(child.pid))
    assert not measure.owner_is_gone(owner)
    child.kill()
    child.wait()
    assert measure.owner_is_gone(owner)
    host, pid, begun = owner.rsplit(":", 2)
    assert not measure.owner_is_gone(f"another-{host}:{pid}:{begun}")  # a cluster's node cannot see it
    assert not measure.owner_is_gone(None)


@pytest.mark.skipif(sys.platform != "linux", reason="the kernel's help is Linux's")
def test_job_dies_with_the_process_that_measures_it(tmp_path):
    job = "import os, time; print(os.getpid(), flush=True); time.sleep(60)"
    command = [sys.executable, "-c", job]
    code = f"import pathlib, book.pipeline.measure as m; m.run({command!r}, pathlib.Path('log'))"
    process = subprocess.Popen([sys.executable, "-c", code], cwd=tmp_path, env=os.environ | {"PYTHONPATH": str(ROOT)})
    until = time.monotonic() + 30
    while not ((tmp_path / "log").exists() and (tmp_path / "log").read_text().strip()):
        assert time.monotonic() < until
        time.sleep(0.05)
    pid = int((tmp_path / "log").read_text())
    process.kill()
    process.wait()
    until = time.monotonic() + 10
    while psutil.pid_exists(pid) and psutil.Process(pid).status() != psutil.STATUS_ZOMBIE:
        assert time.monotonic() < until, "the job outlived the process that started it"
        time.sleep(0.05)


def test_job_is_measured_with_its_children(tmp_path):
    child = "import time; x = bytearray(200_000_000); time.sleep(1)"
    code = f"import subprocess, sys; subprocess.run([sys.executable, '-c', {child!r}])"
    status, seconds, peak = measure.run([sys.executable, "-c", code], tmp_path / "log", poll=0.05)
    assert status == 0
    assert 1 <= seconds < 20
    assert 200 < peak < 400
    status, *_ = measure.run([sys.executable, "-c", "print('why'); raise SystemExit(3)"], tmp_path / "log", poll=0.05)
    assert status == 3
    assert measure.last_line(tmp_path / "log") == "why"


def test_expected_time_of_a_plan():
    jobs = {"experiment-a": 100.0, "notebook-1": 30.0, "notebook-2": 50.0}
    assert measure.plan_seconds(jobs, cores=1) == 180
    assert measure.plan_seconds(jobs, cores=2) == 150  # the longest notebook sets the end
    assert [measure.pretty(s) for s in (5, 600, 7200)] == ["5 s", "10 min", "2.0 h"]


def test_remaining_time_follows_the_pace(tmp_path):
    jobs = {"notebook-1": 10.0, "notebook-2": 100.0}
    timings = tmp_path / "build/cpu/timings"
    timings.mkdir(parents=True)
    (tmp_path / "build/cpu/plan.json").write_text(dumps({"jobs": jobs, "started": 50.0, "cores": 1}))
    assert measure.remaining("cpu", tmp_path) == "[0/2] about 2 min left after"
    (timings / "notebook-1.json").write_text(dumps({"seconds": 20.0, "peak_mb": 1, "finished": 60.0}))
    assert measure.remaining("cpu", tmp_path) == "[1/2] about 3 min left after"
    (timings / "notebook-2.json").write_text(
        dumps({"seconds": 90.0, "peak_mb": 1, "finished": 40.0})
    )  # an earlier build's
    assert measure.remaining("cpu", tmp_path).startswith("[1/2]")


def test_committed_timings_serve_until_there_are_own(tmp_path):
    (tmp_path / "figures").mkdir()
    (tmp_path / "figures/timings.json").write_text(
        dumps({"cpu": {"notebook-1": {"seconds": 10.0}, "experiment-a": {"seconds": 5.0}}})
    )
    (tmp_path / "build/cpu/timings").mkdir(parents=True)
    (tmp_path / "build/cpu/timings/notebook-1.json").write_text(dumps({"seconds": 20.0}))
    seconds = {k: v["seconds"] for k, v in measure.expected("cpu", tmp_path).items()}
    assert seconds == {"notebook-1": 20.0, "experiment-a": 5.0}


def test_chapters_are_chosen_by_number(monkeypatch):
    monkeypatch.setattr(build, "notebooks", lambda: {"01_a": {}, "03_b": {}})
    assert build.chosen("1 03") == "01,03"
    assert build.chosen("") == ""
    with pytest.raises(SystemExit, match="no chapter 02; there are 01, 03"):
        build.chosen("2")


def test_help_names_every_target():
    said = subprocess.run(["make", "--no-print-directory"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    targets = re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(), re.MULTILINE)
    assert {"book", "smoke", "test", "check", "lab", "bench", "clean"} <= set(targets)
    assert all(re.search(rf"^  {t} +\S", said, re.MULTILINE) for t in targets)


def test_environment_stamp_follows_content(tmp_path, monkeypatch):
    import importlib.util

    spec = importlib.util.spec_from_file_location("environment", ROOT / "book/pipeline/environment.py")
    environment = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(environment)
    for name in ("requirements.lock.txt", "pyproject.toml"):
        shutil.copy(ROOT / name, tmp_path)
    monkeypatch.setattr(environment, "ROOT", tmp_path)
    before = environment.key()
    os.utime(tmp_path / "pyproject.toml", (1, 1))
    assert environment.key() == before
    (tmp_path / "pyproject.toml").write_text("other")
    assert environment.key() != before
    with pytest.raises(SystemExit, match="missing: no-such-tool"):
        environment.needs(["no-such-tool"])
    monkeypatch.setattr(environment, "STAMP", tmp_path / "stamp")
    (tmp_path / "stamp").write_text(environment.key())
    monkeypatch.setattr(environment, "find_uv", lambda: pytest.fail("nothing to install, and still uv was called"))
    environment.main()
