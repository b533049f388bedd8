"""Run one job of the pipeline: its output goes to a log, one line to the terminal, time and memory to a record.

The job dies with the ``make book`` that started it, so that after a ``kill -9`` nothing goes on writing behind the back
of the next one.
"""

from __future__ import annotations

import argparse
import ctypes
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import psutil

from book.pipeline import ROOT, dumps, load, write_if_changed

OWNER = "VQA_BUILD"  # host:pid:start of the `make book` that owns this job
QUIET_SECONDS = 60  # a long job says every so often how far it is


def owner_of(process: psutil.Process) -> str:
    return f"{socket.gethostname()}:{process.pid}:{process.create_time()}"


def owner_is_gone(owner: str | None) -> bool:
    """True when the owner ran on this host and runs no more."""
    if not owner:
        return False
    host, pid, start = owner.rsplit(":", 2)
    if host != socket.gethostname():
        return False
    try:
        process = psutil.Process(int(pid))
        return process.create_time() != float(start) or process.status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True


def tree_memory_mb(process: psutil.Process) -> float:
    """Resident memory of a process and all its descendants, in MiB."""
    total = 0
    try:
        for member in (process, *process.children(recursive=True)):
            try:
                total += member.memory_info().rss
            except psutil.NoSuchProcess:
                continue
    except psutil.NoSuchProcess:
        return 0.0
    return total / 2**20


def run(command: list[str], log: Path, job: str = "", poll: float = 0.25) -> tuple[int, float, float]:
    """Run a command to its end; its exit status, seconds, and peak memory in MiB."""
    log.parent.mkdir(parents=True, exist_ok=True)
    owner, parent, start, peak, spoke = os.environ.get(OWNER), os.getppid(), time.monotonic(), 0.0, time.monotonic()
    with log.open("wb") as output:
        child = subprocess.Popen(
            command, stdout=output, stderr=subprocess.STDOUT, start_new_session=True, preexec_fn=_die_with_parent
        )
        process = psutil.Process(child.pid)
        try:
            while child.poll() is None:
                peak = max(peak, tree_memory_mb(process))
                if owner_is_gone(owner) or (owner and os.getppid() != parent):
                    raise KeyboardInterrupt
                if time.monotonic() - spoke > QUIET_SECONDS:
                    spoke = time.monotonic()
                    print(f"  … {job}: {last_line(log)}", file=sys.stderr, flush=True)
                time.sleep(poll)
        except KeyboardInterrupt:
            os.killpg(child.pid, signal.SIGKILL)
            child.wait()
            return 130, time.monotonic() - start, peak
    return child.returncode, time.monotonic() - start, peak


def _die_with_parent() -> None:
    """Ask Linux to kill this process when its parent is killed (``PR_SET_PDEATHSIG``)."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(1, signal.SIGKILL)


def last_line(log: Path) -> str:
    lines = log.read_bytes()[-2000:].decode(errors="replace").replace("\r", "\n").split("\n")
    return next((x.strip() for x in reversed(lines) if x.strip()), "started")[:150]


def pretty(seconds: float) -> str:
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"


def expected(profile: str, root: Path = ROOT) -> dict[str, dict[str, Any]]:
    """What each job took last: here, or as committed in ``figures/timings.json``."""
    here = {p.stem: load(p) for p in sorted((root / "build" / profile / "timings").glob("*.json"))}
    return {**load(root / "figures/timings.json", {}).get(profile, {}), **here}


def remaining(profile: str, root: Path = ROOT) -> str:
    """How many planned jobs are done and how long the others should take, from the plan of this build."""
    plan = load(root / "build" / profile / "plan.json", {"jobs": {}, "started": 0.0, "cores": 1})
    took = {p.stem: load(p) for p in (root / "build" / profile / "timings").glob("*.json")}
    done = [j for j in plan["jobs"] if j in took and took[j]["finished"] >= plan["started"]]
    open_ = {j: s for j, s in plan["jobs"].items() if j not in done}
    head = f"[{len(done)}/{len(plan['jobs'])}]"
    if not open_ or any(s is None for s in open_.values()):
        return head
    known = [(took[j]["seconds"], plan["jobs"][j]) for j in done if plan["jobs"][j]]
    pace = sum(a for a, _ in known) / sum(b for _, b in known) if known else 1.0
    return f"{head} about {pretty(pace * plan_seconds(open_, plan['cores']))} left after"


def plan_seconds(jobs: dict[str, float], cores: int) -> float:
    """Wall time of experiments one after the other, then notebooks side by side, one per core."""
    tables = [s for j, s in jobs.items() if j.startswith("notebook-")]
    others = sum(s for j, s in jobs.items() if not j.startswith("notebook-"))
    return others + max(sum(tables) / max(cores, 1), max(tables, default=0.0))


def computed_all(job: str, profile: str, since: float, root: Path = ROOT) -> bool:
    """Whether an experiment's run made every unit itself rather than finding some on disk."""
    if not job.startswith("experiment-"):
        return True
    units = list((root / "results" / profile / job.removeprefix("experiment-")).glob("*/seed*.json"))
    return all(u.stat().st_mtime >= since for u in units)


def main() -> None:
    """Run a job and keep its cost in ``build/<profile>/timings/<job>.json``."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("profile")
    parser.add_argument("job")
    parser.add_argument("--log", type=Path, required=True)
    parser.add_argument("command", nargs="+")
    asked = parser.parse_args()
    record = ROOT / "build" / asked.profile / "timings" / f"{asked.job}.json"
    since = time.time()
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # told to end: as by Ctrl-C
    code, seconds, peak = run(asked.command, asked.log, asked.job)
    if code:
        tail = "\n".join(asked.log.read_text(encoding="utf-8", errors="replace").splitlines()[-30:])
        print(
            f"{asked.job} FAILED after {pretty(seconds)} (status {code}); end of {asked.log}:\n{tail}", file=sys.stderr
        )
        sys.exit(code if 0 < code < 256 else 1)
    before = load(record)
    if before and not computed_all(asked.job, asked.profile, since):
        seconds, peak = max(seconds, before["seconds"]), max(peak, before["peak_mb"])  # a resumed run tells too little
    cost = {"seconds": round(seconds, 1), "peak_mb": round(peak), "finished": time.time()}
    write_if_changed(record, dumps(cost))
    print(f"{remaining(asked.profile)} {asked.job}: {pretty(seconds)}, {peak:.0f} MiB", file=sys.stderr, flush=True)


if __name__ == "__main__":
    main()
