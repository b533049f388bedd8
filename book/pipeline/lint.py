"""Find measured numbers typed into prose, and cells that are too long to read.

A number that was measured belongs in ``figures/values.json`` and is read by a role; one that somebody else published
is written ``{typed}`62.6``` in a paragraph with its citation. Maths, code, roles, versions and references to chapters,
figures or sections are none of this check's business.
"""

from __future__ import annotations

import ast
import re
import statistics
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from book.pipeline import ROOT

MAX_LINES, MEDIAN_LINES = 25, 8

CODE_DIRECTIVES = {
    *("code", "code-block", "code-cell", "math", "eval-rst", "raw", "mermaid", "graphviz", "literalinclude", "include"),
    *("bibliography", "toctree", "chapters"),
}
NUMBER = r"\d[\d,]*(?:\.\d+)?"
UNITS = (
    r"percent|per cent|percentage points?|points?|seconds?|minutes?|hours?|milliseconds?|ms|s|"
    r"GB|MB|KB|GiB|MiB|KiB|GFLOPs?|FLOPs?|times (?:faster|slower|more|less|better|worse|larger|smaller)|-?fold"
)
MEASURED = (
    ("percentage", re.compile(rf"(?<![\w.]){NUMBER}\s?%")),
    ("number with a unit", re.compile(rf"(?<![\w.-]){NUMBER}\s?(?:{UNITS})\b")),
    ("decimal number", re.compile(r"(?<![\w.\-/])[−+-]?\d+\.\d+(?![\w.]*\.\d|\w)")),
)
ALLOWED_BEFORE = re.compile(
    r"(?:Python(?: 3\.\d+(?:,| or| and| to|–))*|CUDA|[Tt]orch|torchvision|transformers|Sphinx|Jupyter Book|Snakemake|"
    r"[Cc]hapters?|[Ss]ections?|Figures?|Tables?|[Ee]quations?|[Ee]xercises?|[Vv]ersions?|\bv|BY|GPL|Apache|[≥≤><=]=?)"
    r"[ \N{NO-BREAK SPACE}]*$"
)
ALLOWED_AFTER = re.compile(r"^\s*(?:CI\b|confidence|credible|intervals?\b|of (?:such|the) intervals\b)")


def prose(text: str) -> str:
    """The text with everything that is not prose blanked out; lines keep their numbers."""
    kept, fences = [], []  # open fences: (marker, is it code)
    for line in text.split("\n"):
        fence = re.match(r"\s*(`{3,}|:{3,}|~{3,})\s*(?:\{([\w:-]+)\})?", line)
        if fence and not fences_code(fences, fence[1]):
            rest = line[fence.end() :].strip()
            if fences and not fence[2] and not rest and fence[1] == fences[-1][0]:
                fences.pop()
                kept.append("")
            else:
                code = (fence[1][0] != ":" and fence[2] is None) or fence[2] in CODE_DIRECTIVES
                fences.append((fence[1], code))
                kept.append("" if code or fence[2] in ("figure", "image") else rest)
        elif fences and fences[-1][1]:
            kept.append("")
        else:
            kept.append("" if fences and re.match(r"\s*:[\w-]+:(\s|$)", line) else line)
    return _blank("\n".join(kept))


def fences_code(fences: list[tuple[str, bool]], marker: str) -> bool:
    """Whether a fence line lies inside a code block that it does not close."""
    return bool(fences) and fences[-1][1] and marker != fences[-1][0]


def _blank(text: str) -> str:
    text = re.sub(r"\{term\}`([^`<]*)(?:<[^`]*>)?`", r"\1", text)  # its words are prose
    keep_lines = lambda m: "\n" * m[0].count("\n") + " "  # noqa: E731
    for pattern in (
        r"\A---\n.*?\n---\n",
        r"<!--.*?-->",
        r"\\begin\{(\w+\*?)\}.*?\\end\{\1\}",
        r"\$\$.*?\$\$",
        r"(?<![\\$])\$(?!\s)[^$\n]*(?:\n[^$\n]+)?\$",
        r"\{[\w:,-]+\}(`+)[^`].*?\1",
        r"(`+)[^`].*?\1",
        r"(?<=\])\([^)\s]*\)",
        r"https?://\S+",
        r"<[a-zA-Z/][^>]*>",
        r"(?m)^\s*\d+[.)]\s",
    ):
        text = re.sub(pattern, keep_lines, text, flags=re.DOTALL)
    return text


def typed_numbers(text: str) -> Iterator[tuple[int, str]]:
    """``(line, what is wrong)`` of measured numbers in Markdown."""
    clean = prose(text)
    for number, line in enumerate(clean.split("\n"), 1):
        taken: list[tuple[int, int]] = []
        for kind, pattern in MEASURED:
            for found in pattern.finditer(line):
                if any(a < found.end() and found.start() < b for a, b in taken):
                    continue
                if ALLOWED_BEFORE.search(line[: found.start()]) or ALLOWED_AFTER.match(line[found.end() :]):
                    continue
                taken.append(found.span())
                yield number, f"{kind} {found[0]!r} is typed; bind it to a value, or {{typed}} with a citation"
    position = 1
    for paragraph in re.split(r"(\n\s*\n)", text):
        if "{typed}`" in paragraph and not re.search(r"\{cite[\w:]*\}`", paragraph):
            yield position, "{typed} without a citation in the same paragraph"
        position += paragraph.count("\n")


def typed_captions(code: str) -> Iterator[tuple[int, str]]:
    """The same for captions and alternative texts that a code cell writes out."""
    try:
        tree = ast.parse(code)
    except SyntaxError:
        return
    for call in (n for n in ast.walk(tree) if isinstance(n, ast.Call)):
        for keyword in (k for k in call.keywords if k.arg in ("caption", "alt")):
            for node in ast.walk(keyword.value):
                if isinstance(node, ast.Constant) and isinstance(node.value, str):
                    yield from ((node.lineno, f"{keyword.arg}: {p}") for _, p in typed_numbers(node.value))


def cell_lengths(notebook: Any) -> list[str]:
    """Cells longer than 25 lines, and a median above 8."""
    lengths = [
        sum(bool(x.strip()) for x in c.source.split("\n"))
        for c in notebook.cells
        if c.cell_type == "code" and c.source.strip()
    ]
    found = [f"code cell {i} has {n} lines; at most {MAX_LINES}" for i, n in enumerate(lengths) if n > MAX_LINES]
    if lengths and statistics.median(lengths) > MEDIAN_LINES:
        found.append(f"the median code cell has {statistics.median(lengths):g} lines; at most {MEDIAN_LINES}")
    return found


def lint_notebook(path: Path) -> list[str]:
    import jupytext

    notebook, found = jupytext.read(path), []
    for number, cell in enumerate(notebook.cells):
        look = typed_numbers if cell.cell_type == "markdown" else typed_captions
        found += [f"{path.name}, cell {number}, line {line}: {problem}" for line, problem in look(cell.source)]
    return found + [f"{path.name}: {p}" for p in cell_lengths(notebook)]


def lint(root: Path = ROOT) -> list[str]:
    """Everything found in ``book/**/*.md`` and ``notebooks/*.py``."""
    found = []
    for path in sorted((root / "book").rglob("*.md")):
        if "pipeline" not in path.parts and "_build" not in path.parts:
            text = path.read_text(encoding="utf-8")
            found += [f"{path.relative_to(root)}:{line}: {problem}" for line, problem in typed_numbers(text)]
    for path in sorted((root / "notebooks").glob("*.py")):
        found += lint_notebook(path)
    return found


def main() -> None:
    problems = lint()
    print("\n".join(problems) if problems else "prose and cells: nothing found", file=sys.stderr)
    sys.exit(bool(problems))


if __name__ == "__main__":
    main()
