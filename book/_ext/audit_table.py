"""What leaks in a data set, as the audit found it: ``{audit-table} vqa_rad``.

A line says how to run the audit and under which licence the data are; below it stand tables for each training split: a
row for each finding, a column for each test split (two in a table, which is what a phone has room for), *found of n*
with share and interval in each cell. The numbers are read from the table that chapter 7 publishes,
``figures/07_medical_vqa/audit.csv`` (columns data, splits, finding, count, mean, low, high, n). Where the file is not
there, or has no row of the data set, a note says so instead.
"""

from __future__ import annotations

import csv
import difflib
from pathlib import Path

from bound import THIN, interval, number
from build_status import chapter_link
from docutils import nodes
from sphinx.application import Sphinx
from sphinx.util import logging
from sphinx.util.docutils import SphinxDirective

from vqa_core.data.catalogue import NAMES
from vqa_core.experiments.audit import DATASETS

logger = logging.getLogger(__name__)

COLUMNS = {"data", "splits", "finding", "count", "mean", "low", "high", "n"}
CHAPTER = 7  # runs the audit
TESTS = 2  # test splits in one table


class AuditTableDirective(SphinxDirective):
    """``{audit-table} NAME``: what the audit found in a data set of ``python -m vqa_core audit``."""

    required_arguments = 1

    def run(self) -> list[nodes.Node]:
        name = self.arguments[0]
        if name not in DATASETS:
            near = ", ".join(difflib.get_close_matches(name, DATASETS, n=3, cutoff=0)) or "none"
            message = f"no audit of {name!r}; nearest: {near}"
            logger.warning(message, location=self.get_location(), type="audit", subtype="name")
            return []
        about = nodes.paragraph("", "", nodes.literal("", f"python -m vqa_core audit {name}"), classes=["small"])
        about += nodes.Text(f" · licence: {NAMES[name].licence}")
        return [about, *self.found(name)]

    def found(self, name: str) -> list[nodes.Node]:
        """The tables of a data set, or a note that this build has none."""
        file = self.config.audit_file
        self.env.note_dependency(file)
        self.env.note_dependency(self.config.book_toc)
        path = Path(self.env.srcdir, file)
        if not path.is_file():
            where = nodes.Text(" runs the audit; its results are not in this build.")
            return [note(chapter_link(self.env, CHAPTER), where)]
        with path.open(encoding="utf-8", newline="") as stream:
            reader = csv.DictReader(stream)
            missing = COLUMNS - set(reader.fieldnames or ())
            rows = [] if missing else [row for row in reader if row["data"] == DATASETS[name]]
        if missing:
            message = f"{file} lacks {', '.join(sorted(missing))}"
            logger.warning(message, location=self.get_location(), type="audit", subtype="file")
            return []
        if not rows:
            return [note(nodes.Text("Not audited in this build: the files of this data set were not there."))]
        tables: dict[str, dict[str, dict[str, dict]]] = {}  # training split → finding → test split → row
        for row in rows:
            train, _, test = row["splits"].partition(" → ")
            tables.setdefault(train, {}).setdefault(row["finding"], {})[test] = row
        result = []
        for train, findings in tables.items():
            tests = list(dict.fromkeys(test for cells in findings.values() for test in cells))
            result += [table(train, tests[i : i + TESTS], findings) for i in range(0, len(tests), TESTS)]
        return result


def note(*text: nodes.Node) -> nodes.note:
    """Return a box that says why there is no table."""
    return nodes.note("", nodes.paragraph("", "", *text))


def table(train: str, tests: list[str], findings: dict[str, dict[str, dict]]) -> nodes.table:
    """Return finding × test split for one training split; findings that no test split has are left out."""
    corner = nodes.paragraph("", "", nodes.Text("trained on "), nodes.literal("", train))
    heads = [corner, *(nodes.paragraph("", "", nodes.literal("", test)) for test in tests)]
    body = nodes.tbody()
    for finding, cells in findings.items():
        if not cells.keys() & set(tests):
            continue
        entries = [nodes.entry("", *cell(cells.get(test))) for test in tests]
        body += nodes.row("", nodes.entry("", nodes.paragraph("", finding)), *entries)
    widths = [nodes.colspec(colwidth=40, stub=1), *(nodes.colspec(colwidth=60 // len(tests)) for _ in tests)]
    head = nodes.thead("", nodes.row("", *(nodes.entry("", text) for text in heads)))
    return nodes.table("", nodes.tgroup("", *widths, head, body, cols=len(widths)), classes=["audit"])


def cell(row: dict | None) -> list[nodes.Node]:
    """Return *284 of 451* and below it share and interval; a dash where the table has no such finding."""
    if row is None:
        return [nodes.paragraph("", "–")]
    ends = interval({end: float(row[end]) for end in ("low", "high")}, ".1%")
    share = f"{number(float(row['mean']), '.1%')} ({ends})"
    count = f"{int(row['count']):,} of{THIN}{int(row['n']):,}"
    return [nodes.paragraph("", count), nodes.paragraph("", share, classes=["small"])]


def setup(app: Sphinx) -> dict:
    app.setup_extension("build_status")
    app.add_config_value("audit_file", "figures/07_medical_vqa/audit.csv", "env", str)
    app.add_directive("audit-table", AuditTableDirective)
    return {"version": "1", "parallel_read_safe": True, "parallel_write_safe": True}
