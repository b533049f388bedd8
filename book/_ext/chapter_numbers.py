"""A chapter keeps its number: ``notebooks/03_fusion`` is chapter 3, and its figures are 3.1, 3.2 …

Sphinx counts the pages that are there, so that a book with chapters 1 and 3 would call them 1 and 2, and every figure
would be renumbered with each new chapter. The number in the file name is taken instead.
"""

from __future__ import annotations

import re

from docutils import nodes
from sphinx.application import Sphinx
from sphinx.environment import BuildEnvironment
from sphinx.environment.collectors.toctree import TocTreeCollector


def chapter_of(docname: str) -> int | None:
    """Return 3 for ``notebooks/03_fusion``, None for a page that is no chapter."""
    match = re.match(r"notebooks/(\d\d)_", docname)
    return int(match[1]) if match else None


def renumber(app: Sphinx, env: BuildEnvironment) -> list[str]:
    """Put the chapter's own number first in all its section numbers, then number the figures again.

    Returns the pages to be written again.
    """
    renumbered = []
    for docname, sections in env.toc_secnumbers.items():
        chapter = chapter_of(docname)
        if chapter is None or sections.get("", (chapter,))[0] == chapter:
            continue
        renumbered.append(docname)
        for anchor, numbers in sections.items():
            sections[anchor] = (chapter, *numbers[1:]) if numbers else numbers
        for node in [*env.tocs[docname].findall(nodes.reference), env.titles[docname]]:
            if node.get("secnumber"):
                node["secnumber"] = [chapter, *node["secnumber"][1:]]
    return [*renumbered, *TocTreeCollector().assign_figure_numbers(env)] if renumbered else []


def setup(app: Sphinx) -> dict:
    app.connect("env-get-updated", renumber, priority=900)  # after Sphinx has counted
    return {"version": "1", "parallel_read_safe": True, "parallel_write_safe": True}
