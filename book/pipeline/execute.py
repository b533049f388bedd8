"""Execute the code cells of one notebook with papermill and stamp what it was made from."""

from __future__ import annotations

import argparse
import os
import shutil
from datetime import UTC, datetime
from pathlib import Path

from book.pipeline import ROOT, data_state, digest, dumps, load, notebooks, parameters
from book.pipeline.prepare import is_parameters, parameter_problems


def execute(name: str, profile: str, root: Path = ROOT) -> Path:
    """Run ``build/code/<name>.ipynb`` under a profile; write ``build/<profile>/executed/<name>.ipynb``.

    The file appears only when every cell ran. An unknown parameter is an error before anything runs.
    """
    import nbformat
    import papermill

    from vqa_core.experiments import provenance

    source = root / f"build/code/{name}.ipynb"
    entry = notebooks(root)[name]
    values = parameters(entry, profile)
    cells = nbformat.read(source, as_version=4).cells
    problems = parameter_problems([(c.source, is_parameters(c)) for c in cells], values)
    if problems:
        raise SystemExit(f"notebook {name}, profile {profile}: " + "; ".join(problems))

    figures = root / "build" / profile / "figures" / name
    shutil.rmtree(figures, ignore_errors=True)
    figures.mkdir(parents=True)
    target = root / "build" / profile / "executed" / f"{name}.ipynb"
    target.parent.mkdir(parents=True, exist_ok=True)
    partial = target.with_name(f".{name}.partial.ipynb")
    state, started = provenance.git_state(root), datetime.now(UTC).isoformat(timespec="seconds")
    papermill.execute_notebook(
        str(source),
        str(partial),
        parameters=values,
        cwd=str(root),
        progress_bar=False,
        log_output=True,
        request_save_on_cell_execute=False,
        kernel_name="python3",
    )
    notebook = nbformat.read(partial, as_version=4)
    notebook.metadata["vqa"] = {
        "profile": profile,
        "executed_at": started,
        **state,
        "fingerprint": load(root / f"build/fingerprints/notebook-{name}.json"),
        "parameters": digest(dumps(values)),
        "data": data_state(entry["data"]),
    }
    nbformat.write(notebook, partial)
    os.replace(partial, target)
    return target


def main() -> None:
    """Execute one notebook."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("name")
    parser.add_argument("--profile", required=True)
    asked = parser.parse_args()
    execute(asked.name, asked.profile)


if __name__ == "__main__":
    main()
