"""``make check``: is everything that is committed still what the sources make?"""

from __future__ import annotations

import hashlib
import re
import sys
import tomllib
from pathlib import Path

import yaml
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from packaging.version import Version

from book.pipeline import PUBLISHED, ROOT, digest, gates, load, notebooks
from book.pipeline.prepare import check_parameters, pairs_out_of_date, refresh
from book.pipeline.publish import merge_values, staleness


def figure_problems(root: Path = ROOT) -> list[str]:
    """Every figure and table of ``figures/`` that is stale, altered, incomplete, or has no notebook any more."""
    declared, problems = notebooks(root), []
    for about_file in sorted((root / "figures").glob("*/*.json")):
        name, chapter = about_file.stem, about_file.parent.name
        if name in ("values", "claims"):
            continue
        where, about = f"figures/{chapter}/{name}", load(about_file)
        if chapter not in declared:
            problems.append(f"{where}: there is no notebook {chapter}")
            continue
        stamp = about["made_from"] | {"profile": about["profile"]}
        problems += [f"{where}: {reason}" for reason in staleness(chapter, stamp, declared[chapter], root)]
        problems += [f"{where}: {reason}" for reason in _altered(about_file.parent, name, about)]
    return problems


def _altered(folder: Path, name: str, about: dict) -> list[str]:
    data, found = folder / f"{name}.csv", []
    if not data.exists():
        found.append("its CSV is missing")
    elif hashlib.sha256(data.read_bytes()).hexdigest() != about["csv_sha256"]:
        found.append("its CSV was altered after the run")
    for picture, known in about["pictures_sha256"].items():
        if not (folder / picture).exists():
            found.append(f"{picture} is missing")
        elif digest((folder / picture).read_bytes()) != known:
            found.append(f"{picture} was altered after the run")
    return found


def never_run(root: Path = ROOT) -> list[str]:
    """Notebooks without a published run."""
    known = {s["name"] for s in load(root / "figures/status.json", {}).get("notebooks", [])}
    return [f"notebooks/{n}: was never run for publication" for n in notebooks(root) if n not in known]


def value_problems(root: Path = ROOT) -> list[str]:
    """``figures/values.json`` is the sum of the chapters' values."""
    merged = merge_values(PUBLISHED[0], root)
    stored = load(root / "figures/values.json", {})
    wrong = sorted(k for k in merged.keys() | stored.keys() if merged.get(k) != stored.get(k))
    return [f"figures/values.json: {k} is not what its chapter wrote" for k in wrong]


def lock_problems(root: Path = ROOT) -> list[str]:
    """``requirements.lock.txt`` and ``environment.yml`` say what ``pyproject.toml`` asks for."""
    project = tomllib.loads((root / "pyproject.toml").read_text(encoding="utf-8"))
    text = (root / "requirements.lock.txt").read_text(encoding="utf-8")
    locked: dict[str, list[str]] = {}
    for name, version in re.findall(r"^([A-Za-z0-9._-]+)==([^\s;\\]+)", text, re.MULTILINE):
        locked.setdefault(_normal(name), []).append(version)
    groups = [x for group in project["dependency-groups"].values() for x in group if isinstance(x, str)]
    problems = []
    for line in project["project"]["dependencies"] + groups:
        need = Requirement(line)
        versions = locked.get(_normal(need.name), [])
        if not versions or not all(need.specifier.contains(v, prereleases=True) for v in versions):
            problems.append(
                f"requirements.lock.txt has {need.name} {versions or 'not at all'}; pyproject.toml asks for {line}"
            )
    pinned = re.findall(r"^\S+==", text, re.MULTILINE)
    if text.count("--hash=sha256:") < len(pinned):
        problems.append("requirements.lock.txt has pins without hashes")
    environment = yaml.safe_load((root / "environment.yml").read_text(encoding="utf-8"))["dependencies"]
    python = next((str(d) for d in environment if str(d).startswith("python=")), "python=0").split("=")[1]
    if not SpecifierSet(project["project"]["requires-python"]).contains(Version(f"{python}.0")):
        problems.append(f"environment.yml has python {python}; pyproject.toml {project['project']['requires-python']}")
    pip = next((d["pip"] for d in environment if isinstance(d, dict)), [])
    if pip != ["--require-hashes", "-r requirements.lock.txt"]:
        problems.append(f"environment.yml must take its packages from requirements.lock.txt with hashes; it has {pip}")
    return problems


def _normal(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def check(root: Path = ROOT) -> list[str]:
    """All problems, each naming what to look at."""
    refresh(root)
    return [
        *lock_problems(root),
        *(f"notebooks/{n}: .py and .ipynb are not a pair; run `make pairs`" for n in pairs_out_of_date(root)),
        *check_parameters(root),
        *(f"figures/{p}" for p in gates.profile_of_figures(root / "figures")),
        *never_run(root),
        *figure_problems(root),
        *value_problems(root),
    ]


def main() -> None:
    problems = check()
    for problem in problems:
        print(problem)
    print(f"{len(problems)} out of date" if problems else "all up to date", file=sys.stderr)
    sys.exit(bool(problems))


if __name__ == "__main__":
    main()
