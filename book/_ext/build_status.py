"""What this build holds: ``{status}`` (how each notebook ran) and ``{chapters}`` (what is there and what is planned).

``{status}`` reads ``figures/status.json``: profile, revision, dirty, built_at, and the list ``notebooks`` of name,
executed, seconds, peak_mb, profile, revision, dirty, executed_at, experiments (name → seconds, peak_mb) and stale (the
reasons; empty when fresh). ``{chapters}`` reads the whole table of contents, ``book/_toc.yml``; its body is YAML,
notebook → one sentence. A chapter that the build does not hold is marked as planned. ``{chapter}`7``` is a
link to a chapter by its number.
"""

from __future__ import annotations

import json
from pathlib import Path

import yaml
from docutils import nodes
from sphinx import addnodes
from sphinx.application import Sphinx
from sphinx.config import Config
from sphinx.environment import BuildEnvironment
from sphinx.util import logging
from sphinx.util.docutils import SphinxDirective, SphinxRole

logger = logging.getLogger(__name__)

THIN = "\N{NARROW NO-BREAK SPACE}"


def chapters(env: BuildEnvironment) -> dict[str, str]:
    """Return page → title of all chapters of the book, written or not, in order."""
    toc = yaml.safe_load(Path(env.srcdir, env.config.book_toc).read_text(encoding="utf-8"))
    entries = [entry for part in toc["parts"] for entry in part["chapters"]]
    return {entry["file"]: entry["title"] for entry in entries if entry["file"].startswith("notebooks/")}


def page_link(env: BuildEnvironment, page: str, text: str) -> nodes.Node:
    """Return a link to a page, or its title marked as planned where the build does not hold it."""
    if page not in env.found_docs:
        planned = nodes.inline("", "planned", classes=["planned"])
        return nodes.inline("", "", nodes.Text(f"{text} "), planned)
    target = {"refdoc": env.docname, "refdomain": "std", "reftype": "doc", "reftarget": f"/{page}"}
    return addnodes.pending_xref("", nodes.inline("", text), refexplicit=True, refwarn=True, **target)


def chapter_link(env: BuildEnvironment, number: int) -> nodes.Node:
    """Return ``Chapter 3 · Fusion methods``; a number that no notebook has is a page of the frame."""
    for page, title in chapters(env).items():
        if page.startswith(f"notebooks/{number:02d}_"):
            return page_link(env, page, f"Chapter {number} · {title}")
    return nodes.inline("", f"Chapter {number}")


def duration(seconds: float | None) -> str:
    """Return 41 s, 2 min 05 s or 1 h 20 min; a dash for what was not recorded."""
    if seconds is None:
        return "–"
    seconds = round(seconds)
    if seconds < 60:
        return f"{seconds}{THIN}s"
    if seconds < 3600:
        return f"{seconds // 60}{THIN}min {seconds % 60:02d}{THIN}s"
    return f"{seconds // 3600}{THIN}h {seconds % 3600 // 60:02d}{THIN}min"


def moment(iso: str | None) -> str:
    """Return an ISO time to the minute."""
    return (iso or "–").replace("T", " ")[:16]


def revision(run: dict) -> list[nodes.Node]:
    """Return the git revision, and say so when files had been changed since."""
    name = nodes.literal("", str(run.get("revision") or "–")[:10])
    return [name, nodes.Text(" with changes")] if run.get("dirty") else [name]


class StatusDirective(SphinxDirective):
    """``{status}``: what was built from which revision, and a row per notebook."""

    columns = ("Notebook", "State", "Its time", "Its experiments", "Peak memory", "Executed")

    def run(self) -> list[nodes.Node]:
        file = self.config.status_file
        self.env.note_dependency(file)
        self.env.note_dependency(self.config.book_toc)
        try:
            status = json.loads(Path(self.env.srcdir, file).read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            logger.warning("%s: %s", file, error, location=self.get_location(), type="status")
            return []
        head = nodes.row("", *(nodes.entry("", nodes.paragraph("", text)) for text in self.columns))
        body = nodes.tbody("", *(self.row(run) for run in status["notebooks"]))
        widths = (nodes.colspec(colwidth=1) for _ in self.columns)
        group = nodes.tgroup("", *widths, nodes.thead("", head), body, cols=len(self.columns))
        built = nodes.paragraph("", "", nodes.Text(f"Built {moment(status.get('built_at'))} UTC from revision "))
        built += [*revision(status), nodes.Text(f" at the profile {status.get('profile') or 'not recorded'}.")]
        return [built, nodes.table("", group, classes=["status"])]

    def row(self, run: dict) -> nodes.row:
        page = f"notebooks/{run['name']}"
        experiments = [part for part in (run.get("experiments") or {}).values() if part.get("seconds") is not None]
        peaks = [part["peak_mb"] for part in [run, *experiments] if part.get("peak_mb") is not None]
        if not run.get("executed", True):
            state = nodes.inline("", "○ not executed in this build")
        elif run.get("stale"):
            state = nodes.inline("", f"!{THIN}stale", classes=["verdict", "stale"])
        else:
            state = nodes.inline("", f"✓{THIN}fresh", classes=["verdict", "supported"])
        cells = [
            [page_link(self.env, page, chapters(self.env).get(page, run["name"]))],
            [state],
            [nodes.Text(duration(run.get("seconds")))],
            [nodes.Text(duration(sum(part["seconds"] for part in experiments)) if experiments else "–")],
            [nodes.Text(f"{max(peaks):,.0f}{THIN}MB" if peaks else "–")],
            [nodes.Text(f"{moment(run.get('executed_at'))} UTC")],
        ]
        entries = [nodes.entry("", nodes.paragraph("", "", *cell)) for cell in cells]
        if run.get("stale"):
            entries[1] += nodes.paragraph("", "; ".join(run["stale"]), classes=["small"])
        profile = nodes.Text(f"profile {run.get('profile') or 'not recorded'}, revision ")
        entries[-1] += nodes.paragraph("", "", profile, *revision(run), classes=["small"])
        return nodes.row("", *entries)


class ChaptersDirective(SphinxDirective):
    """``{chapters}``: all chapters of the book with one sentence each."""

    has_content = True

    def run(self) -> list[nodes.Node]:
        self.env.note_dependency(self.config.book_toc)
        sentences = yaml.safe_load("\n".join(self.content)) or {}
        known = {Path(page).name: (page, title) for page, title in chapters(self.env).items()}
        problems = [f"no such chapter: {name}" for name in sorted(sentences.keys() - known)]
        problems += [f"no sentence: {name}" for name in sorted(known.keys() - sentences)]
        for problem in problems:
            logger.warning("chapters: %s", problem, location=self.get_location(), type="chapters")
        items = nodes.enumerated_list(enumtype="arabic", prefix="", suffix=".", classes=["chapters"])
        for name, (page, title) in known.items():
            link = nodes.strong("", "", page_link(self.env, page, title))
            sentence = self.parse_inline(str(sentences.get(name, "")), lineno=self.lineno)[0]
            items += nodes.list_item("", nodes.paragraph("", "", link, nodes.Text(" "), *sentence))
        return [items]


class ChapterRole(SphinxRole):
    """``{chapter}`7```: a link to a chapter, or its title marked as planned where the build does not hold it."""

    def run(self) -> tuple[list[nodes.Node], list[nodes.system_message]]:
        self.env.note_dependency(self.config.book_toc)
        return [chapter_link(self.env, int(self.text))], []


def announce_smoke(app: Sphinx, config: Config) -> None:
    """Put a banner on every page of a smoke build, so that nobody takes its numbers for results."""
    path = Path(app.srcdir, config.status_file)
    if path.is_file() and json.loads(path.read_text(encoding="utf-8")).get("profile") == "smoke":
        text = "Smoke build: it shows that everything runs. Its numbers are not results."
        config.html_theme_options = {**config.html_theme_options, "announcement": text}


def setup(app: Sphinx) -> dict:
    app.connect("config-inited", announce_smoke)
    app.add_config_value("status_file", "figures/status.json", "env", str)
    app.add_config_value("book_toc", "book/_toc.yml", "env", str)
    app.add_role("chapter", ChapterRole())
    app.add_directive("status", StatusDirective)
    app.add_directive("chapters", ChaptersDirective)
    return {"version": "1", "parallel_read_safe": True, "parallel_write_safe": True}
