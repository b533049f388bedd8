"""What a screen reader says about a folded cell is what the cell's button shows.

MyST-NB labels each such button "Toggle hidden content", while it reads "Show code cell source". WCAG 2.5.3 asks for one
name: who speaks to the computer says what stands there. Without the label the text is the name.
"""

from __future__ import annotations

from sphinx.application import Sphinx

LABELLED = '<summary aria-label="Toggle hidden content">'


def unlabel(app: Sphinx, page: str, template: str, context: dict, doctree: object) -> None:
    """Take the label off every button of a page."""
    if "body" in context:
        context["body"] = context["body"].replace(LABELLED, "<summary>")


def setup(app: Sphinx) -> dict:
    app.connect("html-page-context", unlabel)
    return {"version": "1", "parallel_read_safe": True, "parallel_write_safe": True}
