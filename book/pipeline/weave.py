"""Put the outputs of the executed code back into the full notebook, and figures and tables into MyST."""

from __future__ import annotations

import ast
import re
from pathlib import Path
from typing import Any

from book.pipeline import load
from book.pipeline.prepare import is_parameters, meaning

SHOWN = "application/vnd.vqa.shown+json"  # vqa_core.figures.MIME
WIDGET = "application/vnd.jupyter.widget-view+json"
KEPT_METADATA = ("tags", "mystnb")


class WeaveError(ValueError):
    """The executed notebook does not belong to the full one."""


def merge(full: Any, executed: Any) -> Any:
    """The full notebook with the outputs of the executed one; cells must be the same code in the same order.

    The injected parameters stay, marked ``remove-cell``; progress bars, ``stderr`` and timings go.
    """
    import copy

    woven = copy.deepcopy(full)
    ran = [c for c in executed.cells if c.cell_type == "code"]
    injected = [c for c in ran if "injected-parameters" in c.metadata.get("tags", [])]
    ran = [c for c in ran if "injected-parameters" not in c.metadata.get("tags", [])]
    own = [c for c in woven.cells if c.cell_type == "code"]
    if len(own) != len(ran):
        raise WeaveError(f"{len(own)} code cells in the notebook, {len(ran)} were executed")
    for number, (cell, done) in enumerate(zip(own, ran, strict=True)):
        if meaning(cell.source) != meaning(done.source):
            raise WeaveError(f"code cell {number} was executed with other code: {done.source.strip()[:60]!r}")
        cell.execution_count, cell.outputs = done.execution_count, _clean(done.outputs)
    if injected:
        place = next(i for i, c in enumerate(woven.cells) if is_parameters(c)) + 1
        injected[0].metadata = {"tags": ["injected-parameters", "remove-cell"]}
        woven.cells.insert(place, copy.deepcopy(injected[0]))
    for number, cell in enumerate(woven.cells):
        cell.id = f"cell-{number}"
        cell.metadata = type(cell.metadata)({k: v for k, v in cell.metadata.items() if k in KEPT_METADATA})
    woven.metadata["vqa"] = executed.metadata["vqa"]
    return woven


def _clean(outputs: list[Any]) -> list[Any]:
    kept = []
    for output in outputs:
        if output.output_type == "stream" and output.name == "stderr":
            continue
        if WIDGET in output.get("data", {}):
            continue
        if "metadata" in output:
            output.metadata = type(output)()
        if output.output_type == "execute_result":
            output.execution_count = None  # the cell's own says it
        kept.append(output)
    return kept


def shown(cell: Any) -> list[tuple[str, str]]:
    """``(kind, name)`` of the figures and tables among a cell's outputs."""
    found = [o.data[SHOWN] for o in cell.get("outputs", []) if SHOWN in o.get("data", {})]
    return [(f["kind"], f["name"]) for f in found]


def would_show(cell: Any) -> list[tuple[str, str]]:
    """The same for a cell that was not executed, read from its ``.figure(…)`` and ``.table(…)`` calls."""
    if cell.cell_type != "code":
        return []
    try:
        tree = ast.parse(cell.source)
    except SyntaxError:
        return []
    calls = [n for n in ast.walk(tree) if isinstance(n, ast.Call) and isinstance(n.func, ast.Attribute)]
    calls = [c for c in calls if c.func.attr in ("figure", "table") and len(c.args) >= 2]
    names = [(c.func.attr, c.args[1].value) for c in calls if isinstance(c.args[1], ast.Constant)]
    return [(kind, name) for kind, name in names if isinstance(name, str)]


def emit(notebook: Any, chapter: str, folder: Path, *, executed: bool = True) -> Any:
    """Replace the figures and tables of ``folder`` that cells show by MyST cells with label, caption and provenance."""
    import nbformat

    cells = []
    for cell in notebook.cells:
        names = shown(cell) if executed else would_show(cell)
        if executed and names:
            cell.outputs = [o for o in cell.outputs if SHOWN not in o.get("data", {})]
        cells.append(cell)
        for kind, name in names:
            published = folder / f"{name}.json"
            if executed or published.exists():
                kind = load(published).get("kind", kind)  # the source may have made a figure of a table since
                text = (_figure if kind == "figure" else _table)(chapter, name, folder)
                cells.append(nbformat.v4.new_markdown_cell(text, id=f"shown-{name}".replace("_", "-")[:64]))
    notebook.cells = cells
    return notebook


def frozen(full: Any, chapter: str, folder: Path) -> Any:
    """A notebook that was not executed in this build, with the figures that are committed."""
    import copy

    import nbformat

    notebook = emit(copy.deepcopy(full), chapter, folder, executed=False)
    note = (
        ":::{admonition} Not executed in this build\n:class: note\nThe figures, tables and numbers below are "
        "those of the committed run; their provenance says which.\n:::"
    )
    place = 1 if notebook.cells and notebook.cells[0].cell_type == "markdown" else 0
    heading, _, rest = (notebook.cells[0].source if place else "").partition("\n")
    if place and heading.startswith("#"):
        notebook.cells[0].source = f"{heading}\n\n{note}\n{rest}"
    else:
        notebook.cells.insert(0, nbformat.v4.new_markdown_cell(note, id="not-executed"))
    for number, cell in enumerate(notebook.cells):
        cell.id = f"cell-{number}"
    return notebook


def _label(kind: str, chapter: str, name: str) -> str:
    return f"{kind}-{chapter}-{name}".replace("_", "-")


def _figure(chapter: str, name: str, folder: Path) -> str:
    about = load(folder / f"{name}.json")
    suffix = "png" if about["picture"] else "svg"
    klass = "\n:class: picture-card" if about["picture"] else ""
    return (
        f"````{{figure}} /figures/{chapter}/{name}.{suffix}\n:name: {_label('fig', chapter, name)}\n"
        f":alt: {about['alt']}{klass}\n"
        f":figclass: chapter-figure profile-{about['profile']}\n\n{_one_paragraph(about['caption'])}\n````\n\n"
        f"{_provenance(chapter, about)}"
    )


def _table(chapter: str, name: str, folder: Path) -> str:
    import pandas as pd

    about = load(folder / f"{name}.json")
    data = pd.read_csv(folder / f"{name}.csv", keep_default_na=False)
    numeric = [c for c in data.columns if pd.api.types.is_numeric_dtype(data[c])]
    shown_ = {c: [_cell(x, about["formats"].get(c)) for x in data[c]] for c in data.columns}
    rule = ["---:" if c in numeric else ":---" for c in data.columns]
    lines = [list(map(_escape, data.columns)), rule, *map(list, zip(*shown_.values(), strict=True))]
    body = "\n".join("| " + " | ".join(row) + " |" for row in lines)
    return (
        f"::::{{table}} {_one_paragraph(about['caption'])}\n:name: {_label('tab', chapter, name)}\n"  # may hold `code`
        f":class: chapter-table profile-{about['profile']}\n\n{body}\n::::\n\n{_provenance(chapter, about)}"
    )


def _one_paragraph(text: str) -> str:
    return re.sub(r"\s+", " ", text).strip()


def _escape(text: str) -> str:
    return str(text).replace("|", "\\|").replace("_", "\\_").replace("\n", " ")


def _cell(value: Any, spec: str | None) -> str:
    if isinstance(value, str):
        return value.replace("|", "\\|").replace("\n", " ")
    value = value.item() if hasattr(value, "item") else value
    return format(value, spec or (",d" if isinstance(value, int) else ".3f"))


def _provenance(chapter: str, about: dict[str, Any]) -> str:
    """A folded box: what made it, and its data to download."""
    name, machine, code = about["name"], about["hardware"], about["made_from"]["fingerprint"]
    where = machine.get("gpu") or f"{machine['cpu']}, {machine['cores']} cores"
    rows = {
        "Data": f"{{download}}`{name}.csv </figures/{chapter}/{name}.csv>`",
        "Profile": about["profile"],
        "Runs": f"{len(about['specs'])} specifications, seeds {', '.join(map(str, about['seeds'])) or 'none'}"
        if about["specs"]
        else "computed in the notebook",
        "Revision": f"`{about['revision']}`" + (" with uncommitted changes" if about["dirty"] else ""),
        "Machine": where,
        "Versions": ", ".join(f"{k} {v}" for k, v in sorted(about["versions"].items())),
        "Data hashes": ", ".join(f"`{d[:12]}`" for d in about["data_hashes"]),
        "Code": f"cells `{code['cells'][:12]}`, modules `{code['modules'][:12]}`",
    }
    lines = "\n".join(f"- {k}: {v}" for k, v in rows.items() if v)
    return f":::{{dropdown}} Provenance and data\n:class-container: provenance\n{lines}\n:::"
