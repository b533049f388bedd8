"""Records that are kept in the repository, because to make them takes hours: ``book/runs/<profile>/<experiment>``.

``results/`` is not part of the repository. An experiment of the archive is restored from there before it runs, so that
only what is missing or was made by other code runs, and what it made is kept there again::

    python -m vqa_core.experiments.archive restore mevf --profile cpu
    python -m vqa_core run mevf --profile cpu
    python -m vqa_core.experiments.archive keep mevf --profile cpu
"""

from __future__ import annotations

import argparse
import shutil
from collections.abc import Sequence
from pathlib import Path

from vqa_core.experiments import module_of, resolve_profile
from vqa_core.experiments.provenance import PACKAGE_ROOT
from vqa_core.experiments.records import Record, load_record, results_root
from vqa_core.experiments.runner import code_hash_of

FOLDER = PACKAGE_ROOT.parent / "book" / "runs"


def load(experiment: str, profile: str, folder: Path = FOLDER) -> list[Record]:
    """The records that are there, from ``results/`` or else the archive, in the order of the specs; runs nothing.

    Records of other code than today's are among them: see :func:`stale`.
    """
    found = []
    for spec in module_of(experiment).specs(profile):
        record = load_record(spec)
        if record is None:
            record = load_record(spec, root=folder)
        if record is not None:
            found.append(record)
    return found


def stale(records: Sequence[Record]) -> list[str]:
    """Names of the records that were made by other code than today's: ``unit, seed``."""
    return [
        f"{r.spec.unit}, seed {r.spec.seed}"
        for r in records
        if r.provenance.get("code_hash") != code_hash_of(r.spec.experiment)
    ]


def restore(experiment: str, profile: str, folder: Path = FOLDER) -> int:
    """Copy archived records to where the runner looks, unless it has some already; how many."""
    return _copy(folder / profile / experiment, results_root() / profile / experiment, replace=False)


def keep(experiment: str, profile: str, folder: Path = FOLDER) -> int:
    """Copy records into the archive; how many."""
    return _copy(results_root() / profile / experiment, folder / profile / experiment, replace=True)


def _copy(source: Path, target: Path, replace: bool) -> int:
    copied = 0
    for record in sorted(source.glob("*/seed*.json")):
        place = target / record.relative_to(source)
        if place.is_file() and not replace:
            continue
        place.parent.mkdir(parents=True, exist_ok=True)
        arrays = record.with_suffix(".safetensors")
        if arrays.is_file():  # first, so that a JSON file always has its arrays
            shutil.copyfile(arrays, place.with_suffix(".safetensors"))
        shutil.copyfile(record, place)
        copied += 1
    return copied


def main(argv: Sequence[str] | None = None) -> None:
    """``restore`` or ``keep`` the records of an experiment."""
    parser = argparse.ArgumentParser(prog="python -m vqa_core.experiments.archive", description=main.__doc__)
    parser.add_argument("what", choices=("restore", "keep"))
    parser.add_argument("experiment")
    parser.add_argument("--profile", default="auto")
    given = parser.parse_args(argv)
    profile = resolve_profile(given.profile)
    module_of(given.experiment)  # an unknown name is refused
    copied = {"restore": restore, "keep": keep}[given.what](given.experiment, profile)
    print(f"{given.what} {given.experiment}: {copied} record(s) at profile {profile}")


if __name__ == "__main__":
    main()
