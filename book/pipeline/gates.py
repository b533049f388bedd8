"""What may not get into the book. Each gate returns the problems it found; an empty list lets pass."""

from __future__ import annotations

import csv
import re
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from book.pipeline import PUBLISHED, ROOT, load
from book.pipeline.weave import SHOWN

NOT_NUMBERS = {"nan", "none", "inf", "-inf", "nat", "<na>", "&lt;na&gt;", "+inf", "infinity", "-infinity"}
ABSOLUTE = re.compile(
    r"(?<![\w.~-])(?:/(?:home|root|tmp|Users|mnt|opt|srv|workspace|private|scratch|var/folders)/[\w.~-]"
    r"|[A-Za-z]:\\(?:Users|Windows|Temp|Program Files|[\w .-]+\\)|file:///)"
)


def errors(notebook: Any) -> list[str]:
    """No cell ended in an exception."""
    return [
        f"cell {i}: error output {output.get('ename', '')}: {output.get('evalue', '')}"
        for i, cell in enumerate(notebook.cells)
        for output in cell.get("outputs", [])
        if output.output_type == "error"
    ]


def execution_order(notebook: Any) -> list[str]:
    """Every code cell ran, once, from top to bottom."""
    expected, problems = 1, []
    for i, cell in enumerate(notebook.cells):
        if cell.cell_type != "code" or not cell.source.strip():
            continue
        if cell.execution_count is None:
            problems.append(f"cell {i}: was not executed")
        elif cell.execution_count != expected:
            problems.append(f"cell {i}: executed as number {cell.execution_count}, should be {expected}")
        expected += 1
    return problems


def _texts(cell: Any) -> Iterable[str]:
    yield cell.source
    for output in cell.get("outputs", []):
        yield output.get("text", "")
        for kind, content in output.get("data", {}).items():
            if isinstance(content, str) and not kind.startswith("image/png"):
                yield content


def absolute_paths(notebook: Any, root: Path = ROOT) -> list[str]:
    """Nothing in sources or outputs says where this machine keeps its files."""
    own = re.compile("|".join(re.escape(str(p)) for p in {root, Path.home()} if len(p.parts) > 1) or r"(?!)")
    problems = []
    for i, cell in enumerate(notebook.cells):
        for text in _texts(cell):
            found = ABSOLUTE.search(text) or own.search(text)
            if found:
                problems.append(f"cell {i}: absolute path in {text[max(0, found.start() - 20) : found.end() + 30]!r}")
    return problems


def broken_numbers(notebook: Any) -> list[str]:
    """No NaN, None or infinity in a table that a cell shows."""
    problems = []
    for i, cell in enumerate(notebook.cells):
        for output in cell.get("outputs", []):
            html = output.get("data", {}).get("text/html", "")
            cells = re.findall(r"<td[^>]*>\s*(.*?)\s*</td>", html, re.DOTALL)
            problems += [f"cell {i}: {x} in a table" for x in cells if x.lower() in NOT_NUMBERS]
    return problems


def loose_pictures(notebook: Any) -> list[str]:
    """Every picture was made by ``chapter.figure``, with caption, alternative text and provenance.

    A matplotlib figure that is left open at the end of a cell is shown by Jupyter on its own, without any of these.
    """
    return [
        f"cell {i}: a picture without provenance; give it to chapter.figure in the cell that makes it"
        for i, cell in enumerate(notebook.cells)
        for output in cell.get("outputs", [])
        if SHOWN not in output.get("data", {}) and any(kind.startswith("image/") for kind in output.get("data", {}))
    ]


def broken_csv(folder: Path) -> list[str]:
    """No NaN, None, infinity or empty field in the data of a figure or table."""
    problems = []
    for path in sorted(folder.glob("*.csv")):
        with path.open(newline="", encoding="utf-8") as file:
            for number, row in enumerate(csv.reader(file), 1):
                bad = [x for x in row if not x.strip() or x.strip().lower() in NOT_NUMBERS]
                problems += [f"{path.name}, line {number}: {x!r}" for x in bad]
    return problems


def network(folder: Path) -> list[str]:
    """No interactive part of a figure loads anything, or is seen where no script runs."""
    from vqa_core.figures import fragment_problems

    return [f"{p.name}: {x}" for p in sorted(folder.glob("*.html")) for x in fragment_problems(p.read_text("utf-8"))]


def shown_once(names: list[tuple[str, str]], folder: Path) -> list[str]:
    """Every figure and table that was saved is shown on the page, once."""
    saved = {p.stem for p in folder.glob("*.json")} - {"values", "claims"}
    count = Counter(name for _, name in names)
    problems = [f"{n}: saved but not shown; make it the cell's last line or display() it" for n in saved - count.keys()]
    problems += [f"{n}: shown {k} times; its label would be ambiguous" for n, k in count.items() if k > 1]
    return sorted(problems + [f"{n}: shown but not saved" for n in count.keys() - saved])


def profile_of_figures(folder: Path, allowed: Iterable[str] = PUBLISHED) -> list[str]:
    """Nothing under ``folder`` (figures, values, claims) comes from a profile that may not be published."""
    allowed, problems = set(allowed), []
    for path in sorted(folder.rglob("*.json")):
        content = load(path)
        entries = {path.stem: content} if "profile" in content else content
        if path.name in ("timings.json", "status.json"):
            continue
        for key, entry in entries.items():
            profile = entry.get("profile") if isinstance(entry, dict) else None
            if profile not in allowed:
                where = path.relative_to(folder).as_posix()
                problems.append(f"{where}: {key} comes from profile {profile!r}; allowed: {', '.join(sorted(allowed))}")
    return problems


def toc_files(toc: Any) -> list[str]:
    """Every ``file:`` and ``root:`` of a table of contents, in order."""
    if isinstance(toc, list):
        return [f for entry in toc for f in toc_files(entry)]
    if not isinstance(toc, dict):
        return []
    own = [str(toc[k]) for k in ("root", "file") if k in toc]
    return own + [f for k in ("parts", "chapters", "sections", "entries", "subtrees") for f in toc_files(toc.get(k))]


def pages(toc: Any, html: Path) -> list[str]:
    """Every page of the table of contents was written, and is more than a shell."""
    files = toc_files(toc)
    if not files:
        return ["the table of contents names no page"]
    missing = [f for f in files if not (html / f"{f}.html").is_file() or (html / f"{f}.html").stat().st_size < 1000]
    return [f"{len(missing)} of {len(files)} pages missing: {', '.join(missing)}"] if missing else []


def notebook(notebook: Any, root: Path = ROOT) -> list[str]:
    """Every gate that looks at an executed notebook."""
    return [
        *errors(notebook),
        *execution_order(notebook),
        *absolute_paths(notebook, root),
        *broken_numbers(notebook),
        *loose_pictures(notebook),
    ]
