"""Runs the units of an experiment that are not on disk yet, several at a time, and keeps each as soon as it is done."""

from __future__ import annotations

import hashlib
import json
import multiprocessing
import os
import sys
import threading
import time
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import asdict
from fnmatch import fnmatchcase
from pathlib import Path

from filelock import FileLock
from tqdm import tqdm

from vqa_core.experiments import EXPERIMENTS, module_of
from vqa_core.experiments import provenance as where_from
from vqa_core.experiments.records import Record, Spec, load_record, results_root, save_record, write_atomically


def code_hash_of(experiment: str, *files: Path) -> str:
    """Hash of the code that an experiment runs, with the code of those that it requires and of further files."""
    names, todo = [], [experiment]
    while todo:
        name = todo.pop()
        if name not in names:
            names.append(name)
            todo.extend(module_of(name).REQUIRES)
    return where_from.code_hash([*(EXPERIMENTS[n] for n in sorted(names)), *files])


def cores() -> int:
    """Processor cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else (os.cpu_count() or 1)


def default_workers() -> int:
    """One process per core without CUDA (small models use one core best), one process with it."""
    import torch

    return 1 if torch.cuda.is_available() else cores()


def _peak_memory_mb() -> float:
    import torch

    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated() / 2**20
    import resource

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / (2**20 if sys.platform == "darwin" else 2**10)  # bytes on macOS, KiB on Linux


def run_spec(spec: Spec, code_hash: str, root: Path) -> Record:
    """Run one spec here and now, store its record, return it."""
    import torch

    cuda = torch.cuda.is_available()
    if cuda:
        torch.cuda.reset_peak_memory_stats()
    start = time.perf_counter()
    outcome = module_of(spec.experiment).run(spec)
    record = Record(
        spec=spec,
        metrics=outcome.metrics,
        arrays=outcome.arrays,
        details={k: v for k, v in outcome.details.items() if k != "data_hash"},
        seconds=time.perf_counter() - start,
        peak_memory_mb=_peak_memory_mb(),
        device=torch.cuda.get_device_name() if cuda else f"cpu, {torch.get_num_threads()} thread(s)",
        provenance={
            "code_hash": code_hash,
            "data_hash": outcome.details["data_hash"],
            "versions": where_from.versions(),
            "hardware": where_from.hardware(),
            "git": where_from.git_state(),
        },
    )
    save_record(record, root)
    return record


def _start_worker(threads: int) -> None:
    import torch

    torch.set_num_threads(threads)
    threading.Thread(target=_end_with, args=(os.getppid(),), daemon=True).start()


def _end_with(parent: int) -> None:
    """End this process when its parent has gone: a worker of a killed run must not go on writing records."""
    while os.getppid() == parent:
        time.sleep(1)
    os._exit(1)


def _run_in_worker(spec: Spec, code_hash: str, root: Path) -> Spec:
    run_spec(spec, code_hash, root)
    return spec  # the parent reads the record from disk: nothing large goes through the pipe


def _select(specs: Sequence[Spec], unit: str | None, seed: int | None) -> list[Spec]:
    patterns = [] if unit is None else [p.strip() for p in unit.split(",")]
    of_unit = [s for s in specs if unit is None or any(fnmatchcase(s.unit, p) for p in patterns)]
    chosen = [s for s in of_unit if seed is None or s.seed == seed]
    idle = [p for p in patterns if not any(fnmatchcase(s.unit, p) for s in specs)]
    if patterns and not specs:
        raise FileNotFoundError(f"nothing of {unit} can run: the data are absent; see `python -m vqa_core data list`")
    if idle or (not chosen and (specs or seed is not None)):  # no specs at all: its data are absent
        units, seeds = ", ".join(dict.fromkeys(s.unit for s in specs)), sorted({s.seed for s in specs})
        wanted = ", ".join(idle) or unit
        raise ValueError(f"no unit {wanted} with seed {seed}; units are {units}; seeds are {seeds}")
    return chosen


def run_experiment(
    experiment: str,
    profile: str,
    *,
    unit: str | None = None,
    seed: int | None = None,
    workers: int | None = None,
    root: Path | None = None,
    progress: bool = True,
) -> list[Record]:
    """Records of an experiment; runs what is missing, was made by other code or by another spec.

    Each record is on disk as soon as it is made, so an interrupted run loses at most one unit per worker.
    When the whole experiment is there, ``index.json`` lists it.

    Parameters
    ----------
    unit, seed
        Only this unit, only this seed. Several units: separated by commas, or with ``*`` and ``?`` as in a shell.
        ``package.module:Class`` is a class of your own, where the experiment takes one.
    workers
        Processes; by default one per core on the CPU, one with CUDA.

    Returns
    -------
    list of Record
        In the order of ``specs(profile)``.
    """
    root = root or results_root()
    module = module_of(experiment)
    for needed in module.REQUIRES:
        run_experiment(needed, profile, workers=workers, root=root, progress=progress)
    every, own = module.specs(profile), []
    if unit and ":" in unit:  # a class of the reader's own
        if not hasattr(module, "specs_of_class"):
            raise ValueError(f"experiment {experiment!r} takes no class of your own; none of its units has a ':'")
        every, own, unit = module.specs_of_class(profile, unit), [module.file_of_class(unit)], None
    if len({s.path(root) for s in every}) != len(every):
        raise ValueError(f"experiment {experiment!r}: two specs name the same file")
    chosen = _select(every, unit, seed)
    code = code_hash_of(experiment, *own)
    folder = root / profile / experiment
    folder.mkdir(parents=True, exist_ok=True)
    with FileLock(folder / ".lock"):  # a notebook and the pipeline may ask at the same time
        missing = [s for s in chosen if load_record(s, code, root) is None]
        _run_missing(experiment, missing, code, root, workers, progress)
        records = [load_record(s, code, root) for s in chosen]
        if len(chosen) == len(every) and not own:
            _write_index(folder / "index.json", records)
    return records


def _run_missing(experiment: str, missing: list[Spec], code: str, root: Path, workers, progress: bool) -> None:
    workers = min(workers or default_workers(), len(missing))
    bar = tqdm(total=len(missing), desc=experiment, unit="run", disable=not (progress and missing), leave=False)
    if workers <= 1:
        for spec in missing:
            bar.set_postfix_str(f"{spec.unit}, seed {spec.seed}")
            run_spec(spec, code, root)
            bar.update()
    else:
        context = multiprocessing.get_context("spawn")
        start = {"initializer": _start_worker, "initargs": (max(1, cores() // workers),)}
        with ProcessPoolExecutor(workers, mp_context=context, **start) as pool:
            futures = [pool.submit(_run_in_worker, s, code, root) for s in missing]
            try:
                for future in as_completed(futures):
                    done = future.result()
                    bar.set_postfix_str(f"{done.unit}, seed {done.seed}")
                    bar.update()
            except BaseException:
                pool.shutdown(wait=False, cancel_futures=True)
                raise
    bar.close()


def _write_index(path: Path, records: Sequence[Record]) -> None:
    """List the records with a hash of what they found: the pipeline re-runs a notebook only when this changes."""
    rows = []
    for r in records:
        found = {"metrics": {k: asdict(m) for k, m in r.metrics.items()}, "arrays": sorted(r.arrays)}
        digest = hashlib.sha256(json.dumps(found, sort_keys=True).encode())
        for name in sorted(r.arrays):
            digest.update(r.arrays[name].tobytes())
        rows.append({"unit": r.spec.unit, "seed": r.spec.seed, "spec": r.spec.hash, "found": digest.hexdigest()})
    content = json.dumps(rows, indent=1) + "\n"
    if not path.is_file() or path.read_text(encoding="utf-8") != content:
        write_atomically(path, content.encode())


def plan(experiment: str, profile: str, root: Path | None = None) -> dict:
    """What would run: units in all, units missing, and the seconds that stored units took."""
    root = root or results_root()
    every, code = module_of(experiment).specs(profile), code_hash_of(experiment)
    stored = [r for s in every if (r := load_record(s, code, root)) is not None]
    return {
        "experiment": experiment,
        "profile": profile,
        "units": len(every),
        "missing": len(every) - len(stored),
        "seconds_of_stored": round(sum(r.seconds for r in stored), 1),
    }
