"""Weave, gate and publish executed notebooks, stage the sources of the site, and build it.

Nothing reaches ``figures/`` or the site unless every gate lets it pass.
"""

from __future__ import annotations

import argparse
import os
import re
import shutil
import subprocess
import sys
from datetime import UTC, datetime
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import yaml

from book.pipeline import (
    PROFILES,
    PUBLISHED,
    ROOT,
    data_state,
    digest,
    dumps,
    gates,
    load,
    notebooks,
    parameters,
    weave,
    write_if_changed,
)

VOLATILE = ("revision", "dirty", "hardware", "versions")  # a run that finds the same keeps the sidecar that is there
MADE_FROM = ("fingerprint", "parameters", "data")  # of an execution's stamp: what staleness is judged by
LEFT_OUT = {"pipeline", "_ext", "__pycache__", ".ipynb_checkpoints", "_build"}


class GateError(SystemExit):
    """A gate stopped the build."""


def figures_of(profile: str, root: Path = ROOT) -> Path:
    """Where a profile's figures are read from: the committed folder, or the smoke build's own."""
    return root / "figures" if profile in PUBLISHED else root / "build" / profile / "figures"


def html_of(profile: str, root: Path = ROOT) -> Path:
    base = root / "build/site" if profile in PUBLISHED else root / "build" / profile / "site"
    return base / "_build/html"


def site_sources(root: Path = ROOT) -> list[str]:
    """Files of the book's frame, as inputs of the rule that builds the site."""
    files = [
        p for p in (root / "book").rglob("*") if p.is_file() and "pipeline" not in p.relative_to(root / "book").parts
    ]
    files = [
        p for p in files if "__pycache__" not in p.parts and p != root / "book/claims.yml"
    ]  # the verdicts go there
    files.append(root / "_config.yml")
    files += [root / name for name in listed_sources(root)]
    return sorted(p.relative_to(root).as_posix() for p in files)


def listed_sources(root: Path = ROOT) -> list[str]:
    """Files of ``vqa_core`` that a chapter prints by ``{literalinclude} /vqa_core/…``; the site is built from copies.

    Raises
    ------
    FileNotFoundError
        A chapter names a file that is not there.
    """
    chapters = sorted((root / "notebooks").glob("*.py"))
    names = {n for c in chapters for n in re.findall(r"\{literalinclude\} /(\S+)", c.read_text(encoding="utf-8"))}
    for name in sorted(names):
        if not name.startswith("vqa_core/") or not (root / name).is_file():
            raise FileNotFoundError(f"a chapter includes /{name}; only files of vqa_core/ that exist can be printed")
    return sorted(names)


# -- figures, values and verdicts ------------------------------------------------------------------------------------


def publish_figures(chapter: str, profile: str, stamp: dict[str, Any], root: Path = ROOT) -> None:
    """Bring the chapter's folder of figures to what its last run made; files that did not change are not touched."""
    made, target = root / "build" / profile / "figures" / chapter, figures_of(profile, root) / chapter
    keep = set()
    for path in sorted(made.iterdir()):
        keep.add(path.name)
        if path.suffix == ".json" and path.stem not in ("values", "claims"):
            about = load(path) | {"made_from": {k: stamp[k] for k in MADE_FROM}}
            pictures = sorted(p for p in made.glob(f"{path.stem}.*") if p.suffix in (".svg", ".png", ".html"))
            about["pictures_sha256"] = {p.name: digest(p.read_bytes()) for p in pictures}
            old = load(target / path.name, {})
            same = {k: v for k, v in old.items() if k not in VOLATILE} == {
                k: v for k, v in about.items() if k not in VOLATILE
            }
            write_if_changed(target / path.name, dumps(old if same else about))
        elif target != made:
            write_if_changed(target / path.name, path.read_bytes())
    for path in target.iterdir() if target.exists() else ():
        if path.name not in keep:
            path.unlink()


def merge_values(profile: str, root: Path = ROOT) -> dict[str, Any]:
    """All chapters' values under ``<chapter>.<key>``."""
    merged = {}
    for path in sorted(figures_of(profile, root).glob("*/values.json")):
        merged |= {f"{path.parent.name}.{k}": v for k, v in load(path).items()}
    return merged


def record_claims(ledger: Path, profile: str, root: Path = ROOT) -> None:
    """Judge every claim that a chapter has an effect for; a new revision alone does not rewrite the ledger."""
    from vqa_core.evaluation.claims import record_verdicts

    copy = ledger.with_name(f".{ledger.name}.judging")
    shutil.copyfile(ledger, copy)
    for path in sorted(figures_of(profile, root).glob("*/claims.json")):
        effects = load(path)
        for used in sorted({e["profile"] for e in effects.values()}):
            results = {
                k: SimpleNamespace(mean=e["effect"], low=e["low"], high=e["high"], n=e["n"])
                for k, e in effects.items()
                if e["profile"] == used
            }
            record_verdicts(copy, results, profile=used, revision=_revision_of(path.parent))
    strip = lambda p: re.sub(r"(?m)^\s+revision:.*\n", "", p.read_text(encoding="utf-8"))  # noqa: E731
    if strip(copy) != strip(ledger):
        os.replace(copy, ledger)
    else:
        copy.unlink()


def _revision_of(folder: Path) -> str:
    found = {load(p).get("revision", "") for p in folder.glob("*.json") if p.stem not in ("values", "claims")}
    return max(found, default="")


# -- status ----------------------------------------------------------------------------------------------------------


def staleness(name: str, stamp: dict[str, Any], entry: dict[str, Any], root: Path = ROOT) -> list[str]:
    """Why what was executed is no longer what the sources say; empty when it still is."""
    now = load(root / f"build/fingerprints/notebook-{name}.json", {})
    was = stamp["fingerprint"]
    reasons = []
    if now.get("cells") != was.get("cells"):
        reasons.append("its code changed")
    if now.get("modules") != was.get("modules"):
        reasons.append("a module of vqa_core that it uses changed")
    if digest_parameters(entry, stamp["profile"]) != stamp["parameters"]:
        reasons.append("its parameters changed")
    here = data_state(entry["data"])
    changed = sorted(k for k in here if here[k] != "absent" and stamp["data"].get(k) != here[k])
    return reasons + [f"data set {k} changed" for k in changed]


def digest_parameters(entry: dict[str, Any], profile: str) -> str:
    return digest(dumps(parameters(entry, profile)))


def status_of(
    name: str, stamp: dict[str, Any], profile: str, entry: dict[str, Any], root: Path = ROOT
) -> dict[str, Any]:
    timings = root / "build" / profile / "timings"
    cost = load(timings / f"notebook-{name}.json", {})
    parts = {e: load(timings / f"experiment-{e}.json") for e in entry["experiments"]}
    return {
        "name": name,
        "executed": True,
        "profile": stamp["profile"],
        "revision": stamp["revision"],
        "dirty": stamp["dirty"],
        "executed_at": stamp["executed_at"],
        "seconds": cost.get("seconds"),
        "peak_mb": cost.get("peak_mb"),
        "experiments": {e: {k: c[k] for k in ("seconds", "peak_mb")} for e, c in parts.items() if c},
        "made_from": {k: stamp[k] for k in MADE_FROM},
    }


def update_timings(profile: str, root: Path = ROOT) -> None:
    """Keep what each job took, for the plan of whoever builds next."""
    known = load(root / "figures/timings.json", {})
    here = {p.stem: load(p) for p in sorted((root / "build" / profile / "timings").glob("*.json"))}
    here = {job: {k: cost[k] for k in ("seconds", "peak_mb")} for job, cost in here.items()}
    write_if_changed(root / "figures/timings.json", dumps(known | {profile: known.get(profile, {}) | here}))


# -- staging and building --------------------------------------------------------------------------------------------


def filtered_toc(toc: Any, present: set[str]) -> Any:
    """The table of contents without the notebooks that are not there, and without parts that become empty."""
    if isinstance(toc, list):
        kept = [filtered_toc(x, present) for x in toc]
        return [x for x in kept if x is not None]
    if not isinstance(toc, dict):
        return toc
    if str(toc.get("file", "")).startswith("notebooks/") and toc["file"].removeprefix("notebooks/") not in present:
        return None
    out = {k: filtered_toc(v, present) if isinstance(v, list) else v for k, v in toc.items()}
    return None if "caption" in out and not out.get("chapters") else out


def stage(profile: str, pages: dict[str, Any], status: dict[str, Any], root: Path = ROOT) -> Path:
    """Fill ``build/<profile>/book_src`` with what Sphinx reads; unchanged files keep their time stamps."""
    import nbformat

    target = root / "build" / profile / "book_src"
    wanted: dict[str, bytes] = {}
    for path in sorted((root / "book").rglob("*")):
        relative = path.relative_to(root)
        if path.is_file() and not LEFT_OUT & set(relative.parts):
            wanted[relative.as_posix()] = path.read_bytes()
    wanted |= {name: (root / name).read_bytes() for name in listed_sources(root)}
    figures = figures_of(profile, root)
    for chapter in pages:
        for path in sorted((figures / chapter).glob("*")):
            wanted[f"figures/{chapter}/{path.name}"] = path.read_bytes()
    wanted["figures/values.json"] = dumps(merge_values(profile, root)).encode()
    wanted["figures/status.json"] = dumps(status).encode()
    for chapter, page in pages.items():
        wanted[f"notebooks/{chapter}.ipynb"] = (nbformat.writes(page) + "\n").encode()
    toc = yaml.safe_load((root / "book/_toc.yml").read_text(encoding="utf-8"))
    wanted["_toc.yml"] = yaml.safe_dump(filtered_toc(toc, set(pages)), sort_keys=False, allow_unicode=True).encode()
    if profile not in PUBLISHED:  # verdicts of a smoke build stay in it
        ledger = root / "build" / profile / "claims.yml"
        write_if_changed(ledger, (root / "book/claims.yml").read_bytes())
        record_claims(ledger, profile, root)
        wanted["book/claims.yml"] = ledger.read_bytes()
    for name, content in wanted.items():
        write_if_changed(target / name, content)
    for path in sorted(target.rglob("*"), reverse=True):
        if path.is_file() and path.relative_to(target).as_posix() not in wanted:
            path.unlink()
    return target


def build_site(profile: str, source: Path, log: Path, root: Path = ROOT) -> int:
    """Run Jupyter Book with every warning an error; the number of pages.

    Sphinx forgets the warnings of pages that it does not read again, so a build that fails leaves no cache behind.
    """
    html = html_of(profile, root)
    output = html.parents[1]
    frame = sorted(p for p in (root / "book/_ext").rglob("*.py")) + [root / "_config.yml"]
    key = digest(profile + dumps({p.name: digest(p.read_bytes()) for p in frame}))
    cache = output / "_build/.cache_key"
    again = ["--all"] if not cache.exists() or cache.read_text() != key else []
    cache.unlink(missing_ok=True)
    command = [str(Path(sys.executable).with_name("jupyter-book")), "build", str(source)]
    command += ["--config", str(root / "_config.yml")]
    command += ["--toc", str(source / "_toc.yml"), "--path-output", str(output), *again]
    command += ["--warningiserror", "--nitpick", "--keep-going"]
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("w") as out:
        code = subprocess.run(command, stdout=out, stderr=subprocess.STDOUT, cwd=root).returncode
    toc = yaml.safe_load((source / "_toc.yml").read_text(encoding="utf-8"))
    problems = gates.pages(toc, html)
    if code or problems:
        text = re.sub(r"\x1b\[[0-9;]*m", "", log.read_text(encoding="utf-8", errors="replace"))
        lines = [x for x in text.splitlines() if re.search(r"WARNING|ERROR|Error|CRITICAL", x)]
        raise GateError(
            "\n".join([f"jupyter-book failed (log: {log})", *(lines or text.splitlines()[-15:]), *problems])
        )
    cache.write_text(key)
    return len(gates.toc_files(toc))


def publish(profile: str, executed: list[str], log: Path, root: Path = ROOT) -> dict[str, Any]:
    """From executed notebooks to the site; what it holds.

    Raises
    ------
    GateError
        Something may not be published; each problem on its line.
    """
    import nbformat

    declared, merged, frozen, problems = notebooks(root), {}, [], []
    for name in declared:
        source = root / "build" / profile / "executed" / f"{name}.ipynb"
        full = nbformat.read(root / f"build/notebooks/{name}.ipynb", as_version=4)
        if not source.exists():
            frozen.append(name)
            continue
        try:
            page = weave.merge(full, nbformat.read(source, as_version=4))
        except weave.WeaveError as error:
            if name in executed:
                problems.append(f"{name}: {error}")
            frozen.append(name)
            continue
        made = root / "build" / profile / "figures" / name
        shown = [s for c in page.cells for s in weave.shown(c)]
        allowed = PUBLISHED if profile in PUBLISHED else (profile,)
        found = gates.notebook(page, root) + gates.broken_csv(made) + gates.shown_once(shown, made)
        found += gates.network(made) + gates.profile_of_figures(made, allowed)
        if page.metadata["vqa"]["profile"] not in allowed:
            found.append(f"executed with profile {page.metadata['vqa']['profile']}")
        problems += [f"{name}: {p}" for p in found]
        merged[name] = page
    if profile in PUBLISHED and (root / "figures").is_dir():
        problems += [f"figures/{p}" for p in gates.profile_of_figures(root / "figures")]
    if problems:
        raise GateError("not published:\n  " + "\n  ".join(problems))

    known = {s["name"]: s for s in load(root / "figures/status.json", {}).get("notebooks", [])}
    figures, pages, rows = figures_of(profile, root), {}, {}
    for name, page in merged.items():
        stamp = page.metadata["vqa"]
        publish_figures(name, profile, stamp, root)
        rows[name] = status_of(name, stamp, profile, declared[name], root)
        pages[name] = weave.emit(page, name, figures / name)
        pages[name].metadata["vqa"] |= {k: rows[name][k] for k in ("seconds", "peak_mb")}
    for name in frozen if profile in PUBLISHED else []:
        if name in known and any((figures / name).glob("*.json")):
            full = nbformat.read(root / f"build/notebooks/{name}.ipynb", as_version=4)
            pages[name], rows[name] = weave.frozen(full, name, figures / name), known[name] | {"executed": False}

    latest = max((r["executed_at"] for r in rows.values()), default=None)
    newest = [r for r in rows.values() if r["executed_at"] == latest]
    status = {
        "profile": profile,
        "revision": newest[0]["revision"] if newest else "unknown",
        "dirty": any(r["dirty"] for r in rows.values()),
        "built_at": latest or datetime.now(UTC).isoformat(timespec="seconds"),
        "notebooks": [rows[n] for n in sorted(rows)],
    }
    if profile in PUBLISHED:
        write_if_changed(root / "figures/values.json", dumps(merge_values(profile, root)))
        write_if_changed(root / "figures/status.json", dumps(status))
        update_timings(profile, root)
        record_claims(root / "book/claims.yml", profile, root)
    shown_status = status | {
        "notebooks": [
            {k: v for k, v in r.items() if k != "made_from"}
            | {"stale": staleness(r["name"], r["made_from"] | {"profile": r["profile"]}, declared[r["name"]], root)}
            for r in status["notebooks"]
        ]
    }
    source = stage(profile, {n: pages[n] for n in sorted(pages)}, shown_status, root)
    count = build_site(profile, source, log, root)
    return {"profile": profile, "pages": count, "notebooks": sorted(pages), "figures": figures_digest(profile, root)}


def figures_digest(profile: str, root: Path = ROOT) -> str:
    folder = figures_of(profile, root)
    files = sorted(p for p in folder.rglob("*") if p.is_file()) + [root / "book/claims.yml"]
    return digest("".join(f"{p.relative_to(root)}:{digest(p.read_bytes())}\n" for p in files if p.exists()))


def forget_if_figures_changed(profile: str, root: Path = ROOT) -> None:
    """Make the site out of date when a published figure or the ledger was changed or deleted behind its back."""
    record = root / "build" / profile / "book.json"
    if record.exists() and load(record)["figures"] != figures_digest(profile, root):
        record.unlink()


def main() -> None:
    """Publish the executed notebooks of a profile and build the site."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("profile", choices=PROFILES)
    parser.add_argument("--log", type=Path, required=True)
    parser.add_argument("--executed", nargs="*", default=[])
    asked = parser.parse_args()
    done = publish(asked.profile, asked.executed, asked.log)
    write_if_changed(ROOT / "build" / asked.profile / "book.json", dumps(done))


if __name__ == "__main__":
    main()
