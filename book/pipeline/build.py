"""``make book``: the plan, one lock, Snakemake, and where to read the result.

A ``kill -9`` at any moment leaves nothing to clean up by hand: the lock is the kernel's and dies with its holders, jobs
die with their owner, half-written outputs are known to Snakemake and made again.
"""

from __future__ import annotations

import argparse
import fcntl
import os
import re
import subprocess
import sys
import time

import psutil

from book.pipeline import PROFILES, ROOT, dumps, load, notebooks, write_if_changed
from book.pipeline.measure import OWNER, expected, owner_of, plan_seconds, pretty
from book.pipeline.prepare import check_parameters, refresh
from book.pipeline.publish import html_of


def pick_profile(asked: str) -> str:
    """``auto`` is ``gpu`` where CUDA is to be had, else ``cpu``."""
    if asked != "auto":
        return asked
    import torch

    return "gpu" if torch.cuda.is_available() else "cpu"


def take_lock() -> int:
    """The lock of this checkout's builds; waits for a build that is under way."""
    (ROOT / "build").mkdir(exist_ok=True)
    handle = os.open(ROOT / "build/.lock", os.O_RDWR | os.O_CREAT, 0o644)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        print("another build is under way in this checkout; waiting for it", file=sys.stderr, flush=True)
        fcntl.flock(handle, fcntl.LOCK_EX)
    os.set_inheritable(handle, True)  # Snakemake keeps it too, should this process be killed
    return handle


def snakemake(
    *options: str, target: str, profile: str, chapters: str, capture: bool = False, lock: int | None = None
) -> subprocess.CompletedProcess:
    config = ["--config", f"profile={profile}", *([f"chapters={chapters}"] if chapters else [])]
    command = [sys.executable, "-m", "snakemake", target, "--nolock", "--rerun-incomplete", *options, *config]
    owner = {OWNER: owner_of(psutil.Process())}
    return subprocess.run(
        command, cwd=ROOT, text=True, capture_output=capture, env=os.environ | owner, pass_fds=[lock] if lock else []
    )


def planned(output: str) -> list[str]:
    """Jobs of a dry run: ``experiment-NAME``, ``notebook-NAME``, ``book``."""
    blocks = re.split(r"^(?:local)?rule ", output, flags=re.MULTILINE)[1:]
    jobs = [(b.partition(":")[0], re.search(r"^ +wildcards: \w+=(\S+)", b, re.MULTILINE)) for b in blocks]
    return sorted({rule + (f"-{found[1]}" if found else "") for rule, found in jobs if rule not in ("all", "results")})


def show_plan(jobs: list[str], profile: str, cores: int) -> None:
    """Print what will run and how long it took last time; keep it for the jobs' own progress lines."""
    costs = expected(profile)
    seconds = {j: costs.get(j, {}).get("seconds") for j in jobs if j != "book"}
    write_if_changed(
        ROOT / "build" / profile / "plan.json", dumps({"jobs": seconds, "started": time.time(), "cores": cores})
    )
    print(f"profile {profile}: {len(seconds)} jobs, then the site", file=sys.stderr)
    for job, cost in seconds.items():
        print(f"  {job:<44} {pretty(cost) if cost is not None else 'not timed yet'}", file=sys.stderr)
    known = {j: s for j, s in seconds.items() if s is not None}
    if known:
        more = f", and {len(seconds) - len(known)} jobs not timed yet" if len(known) < len(seconds) else ""
        print(f"expected: about {pretty(plan_seconds(known, cores))}{more}", file=sys.stderr, flush=True)


def chosen(chapters: str) -> str:
    """``"1 03"`` as ``"01,03"``; an unknown chapter is an error."""
    numbers = [c.zfill(2)[:2] for c in re.split(r"[\s,]+", chapters.strip()) if c]
    known = {n[:2] for n in notebooks()}
    unknown = sorted(set(numbers) - known)
    if unknown:
        raise SystemExit(f"no chapter {', '.join(unknown)}; there are {', '.join(sorted(known)) or 'none yet'}")
    return ",".join(numbers)


def main() -> None:
    """Build the book."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("--profile", default="auto", choices=("auto", *PROFILES))
    parser.add_argument("--chapters", default="", help='numbers, as "01 03"; default: all')
    parser.add_argument(
        "--cores",
        type=int,
        default=len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
    )
    parser.add_argument("--slurm", action="store_true", help="run the jobs on a SLURM cluster (book/pipeline/slurm)")
    parser.add_argument("--results", action="store_true", help="stop after the experiments: no notebook, no site")
    parser.add_argument("--plan", action="store_true", help="only say what would run")
    asked = parser.parse_args()
    profile, chapters = pick_profile(asked.profile), chosen(asked.chapters)
    lock = take_lock()
    refresh()
    problems = check_parameters()
    if problems:
        raise SystemExit("parameters:\n  " + "\n  ".join(problems))
    what = {"target": "results" if asked.results else "all", "profile": profile, "chapters": chapters}
    dry = snakemake("--dry-run", "--cores", str(asked.cores), **what, capture=True)
    if dry.returncode:
        raise SystemExit(dry.stdout[-3000:] + dry.stderr[-3000:])
    jobs = planned(dry.stdout)
    if jobs:
        show_plan(jobs, profile, asked.cores)
    if asked.plan:
        return
    if jobs:
        where = ["--workflow-profile", "book/pipeline/slurm"] if asked.slurm else ["--resources", "gpu=1"]
        options = ["--cores", str(asked.cores), "--keep-going", "--quiet", "all", *where]
        done = snakemake(*options, **what, lock=lock)
        if done.returncode:
            raise SystemExit(f"the build failed; logs are in build/{profile}/logs")
    if asked.results:
        print(f"results/{profile} {'made' if jobs else 'up to date'}", file=sys.stderr)
        return
    book = load(ROOT / "build" / profile / "book.json")
    page = (html_of(profile) / "index.html").relative_to(ROOT)
    print(f"{'built' if jobs else 'nothing to do'}: {book['pages']} pages, {page}", file=sys.stderr)


if __name__ == "__main__":
    main()
