"""Notebooks as the pipeline needs them, made from the ``.py`` files before Snakemake looks at anything.

``build/notebooks/NN.ipynb``
    The full notebook: jupytext, then nbstripout. The pair in ``notebooks/`` is the same file.
``build/code/NN.ipynb``
    Its code cells alone. Rewritten only when the code changes, not for an edit of prose, comments or layout, so that
    Snakemake executes again only what would come out differently.
``build/fingerprints/notebook-NN.json``, ``experiment-NAME.json``
    Hash of that code and of every module of ``vqa_core`` that it uses.
"""

from __future__ import annotations

import argparse
import ast
import tempfile
from pathlib import Path
from typing import Any

from book.pipeline import PROFILES, ROOT, digest, dumps, load, notebooks, parameters, write_if_changed


def meaning(source: str) -> str:
    """Text of a cell's code that does not depend on comments, blank lines or layout, nor on Python's version."""
    from vqa_core.experiments.provenance import outline

    try:
        return outline(ast.parse(source))
    except SyntaxError:  # a cell with a magic line: its text is all we have
        return source.strip()


def is_parameters(cell: Any) -> bool:
    return "parameters" in cell.metadata.get("tags", [])


def convert(source: Path) -> str:
    """The ``.ipynb`` of a ``.py``, byte for byte what ``jupytext --to ipynb`` and then ``nbstripout`` write."""
    import nbformat
    from jupytext.cli import jupytext
    from nbstripout import strip_output

    with tempfile.TemporaryDirectory() as folder:
        made = Path(folder) / f"{source.stem}.ipynb"
        jupytext(["--quiet", "--to", "ipynb", "--output", str(made), str(source)])
        notebook = nbformat.read(made, as_version=nbformat.NO_CONVERT)
    return nbformat.writes(strip_output(notebook, keep_output=False, keep_count=False, keep_id=False)) + "\n"


def refresh(root: Path = ROOT) -> None:
    """Bring ``build/notebooks``, ``build/code`` and ``build/fingerprints`` up to date; quick when nothing changed."""
    declared = notebooks(root)
    config = (root / "pyproject.toml").read_text(encoding="utf-8")  # holds jupytext's settings
    stamps = {n: digest(config + (root / f"notebooks/{n}.py").read_text(encoding="utf-8")) for n in declared}
    full = root / "build/notebooks"
    stale = [
        n for n, stamp in stamps.items() if load(full / f"{n}.stamp") != stamp or not (full / f"{n}.ipynb").exists()
    ]
    for name in stale:
        write_if_changed(full / f"{name}.ipynb", convert(root / f"notebooks/{name}.py"))
        _write_code(full / f"{name}.ipynb", root / f"build/code/{name}.ipynb")
        write_if_changed(full / f"{name}.stamp", dumps(stamps[name]))
    for name in declared:
        write_if_changed(root / f"build/fingerprints/notebook-{name}.json", dumps(notebook_fingerprint(name, root)))
    for experiment in sorted({e for entry in declared.values() for e in entry["experiments"]}):
        print_ = {"experiment": experiment, "code": experiment_hash(experiment)}
        write_if_changed(root / f"build/fingerprints/experiment-{experiment}.json", dumps(print_))


def _write_code(full: Path, target: Path) -> None:
    import nbformat

    notebook = nbformat.read(full, as_version=4)
    notebook.cells = [c for c in notebook.cells if c.cell_type == "code"]
    for number, cell in enumerate(notebook.cells):
        cell.id = f"code-{number}"
    if target.exists() and _code(nbformat.read(target, as_version=4)) == _code(notebook):
        return
    write_if_changed(target, nbformat.writes(notebook) + "\n")


def _code(notebook: Any) -> list[tuple[str, bool]]:
    return [(meaning(c.source), is_parameters(c)) for c in notebook.cells if c.cell_type == "code"]


def notebook_fingerprint(name: str, root: Path = ROOT) -> dict[str, Any]:
    """Hashes of a notebook's own code and of the modules it uses."""
    import nbformat

    from vqa_core.experiments import provenance

    code = _code(nbformat.read(root / f"build/code/{name}.ipynb", as_version=4))
    modules = provenance.modules_used([root / f"notebooks/{name}.py"])
    return {"notebook": name, "cells": digest(dumps(code)), "modules": provenance.code_hash(modules) if modules else ""}


def experiment_hash(name: str) -> str:
    """Hash of the code of an experiment and of those that its ``REQUIRES`` names; imports nothing."""
    from vqa_core.experiments import EXPERIMENTS, provenance

    found, todo = [], [name]
    while todo:
        experiment = todo.pop()
        if experiment not in EXPERIMENTS:
            raise ValueError(
                f"profiles.yml names experiment {experiment!r}; there are {', '.join(sorted(EXPERIMENTS))}"
            )
        if experiment not in found:
            found.append(experiment)
            todo.extend(_requires(provenance.parse(provenance.module_file(EXPERIMENTS[experiment]))))
    return provenance.code_hash([EXPERIMENTS[n] for n in sorted(found)])


def _requires(tree: ast.Module) -> tuple[str, ...]:
    for node in tree.body:
        targets = (
            node.targets if isinstance(node, ast.Assign) else [node.target] if isinstance(node, ast.AnnAssign) else []
        )
        if any(isinstance(t, ast.Name) and t.id == "REQUIRES" for t in targets):
            return tuple(ast.literal_eval(node.value))
    return ()


# -- parameters ----------------------------------------------------------------------------------------------------


def parameter_problems(source_cells: list[tuple[str, bool]], overrides: dict[str, Any]) -> list[str]:
    """What is wrong with overriding ``overrides`` in a notebook of ``(code, is the parameters cell)`` cells.

    A name must be assigned in the one ``parameters`` cell and read in a later cell before anything rebinds it.
    """
    marked = [i for i, (_, is_parameters_) in enumerate(source_cells) if is_parameters_]
    if len(marked) != 1:
        return [f"{len(marked)} cells are tagged `parameters`; there must be one"]
    declared = _bound(ast.parse(source_cells[marked[0]][0]))
    problems = []
    for name in overrides:
        if name not in declared:
            problems.append(
                f"{name} is not declared in the parameters cell (it declares {', '.join(sorted(declared))})"
            )
            continue
        problems += _use_problem(name, [code for code, _ in source_cells[marked[0] + 1 :]])
    return problems


def _bound(tree: ast.Module) -> set[str]:
    return {n.id for n in ast.walk(tree) if isinstance(n, ast.Name) and isinstance(n.ctx, ast.Store)}


def _use_problem(name: str, later: list[str]) -> list[str]:
    for code in later:
        try:
            tree = ast.parse(code)
        except SyntaxError:
            continue  # a magic line
        for statement in tree.body:
            names = [n for n in ast.walk(statement) if isinstance(n, ast.Name) and n.id == name]
            if any(isinstance(n.ctx, ast.Load) for n in names):
                return []  # `X = f(X)` reads before it binds
            if names:
                return [f"{name} is bound again before it is read"]
    return [f"{name} is declared but never read"]


def check_parameters(root: Path = ROOT) -> list[str]:
    """Problems of every override of ``profiles.yml``, named by notebook and profile."""
    import nbformat

    found = []
    for name, entry in notebooks(root).items():
        cells = nbformat.read(root / f"build/notebooks/{name}.ipynb", as_version=4).cells
        code = [(c.source, is_parameters(c)) for c in cells if c.cell_type == "code"]
        for profile in PROFILES:
            found += [f"{name}, profile {profile}: {p}" for p in parameter_problems(code, parameters(entry, profile))]
    return found


def pairs_out_of_date(root: Path = ROOT) -> list[str]:
    """Names of notebooks whose committed ``.ipynb`` is not what their ``.py`` gives, or that have no partner."""
    names = {p.stem for suffix in ("py", "ipynb") for p in (root / "notebooks").glob(f"*.{suffix}")}
    bad = []
    for name in sorted(names):
        made, committed = root / f"build/notebooks/{name}.ipynb", root / f"notebooks/{name}.ipynb"
        source = root / f"notebooks/{name}.py"
        if not (source.exists() and committed.exists()) or committed.read_bytes() != made.read_bytes():
            bad.append(name)
    return bad


def main() -> None:
    """``make pairs``: write ``notebooks/*.ipynb`` from ``notebooks/*.py``."""
    argparse.ArgumentParser(description=main.__doc__).parse_args()
    refresh()
    for name in notebooks():
        if write_if_changed(ROOT / f"notebooks/{name}.ipynb", (ROOT / f"build/notebooks/{name}.ipynb").read_bytes()):
            print(f"wrote notebooks/{name}.ipynb")


if __name__ == "__main__":
    main()
