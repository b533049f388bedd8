"""A figure that a reader can use is put before its drawing, into the same numbered figure.

``curve.svg`` with ``curve.html`` beside it becomes that HTML, the drawing and the caption. The HTML hides the drawing
when its script runs, so that the drawing is what is seen without scripts and on paper.
"""

from __future__ import annotations

from pathlib import Path

from docutils import nodes
from sphinx.application import Sphinx
from sphinx.transforms import SphinxTransform


class InteractiveTwin(SphinxTransform):
    """Put the interactive part at the head of every figure that has one."""

    default_priority = 200

    def apply(self, **kwargs: object) -> None:
        for figure in self.document.findall(nodes.figure):
            image = next(figure.findall(nodes.image))
            if "://" in image["uri"]:
                continue
            relative, absolute = self.env.relfn2path(str(Path(image["uri"]).with_suffix(".html")), self.env.docname)
            if not Path(absolute).is_file():
                continue
            self.env.note_dependency(relative)
            figure.insert(0, nodes.raw("", Path(absolute).read_text(encoding="utf-8"), format="html"))


def setup(app: Sphinx) -> dict:
    app.add_transform(InteractiveTwin)
    return {"version": "1", "parallel_read_safe": True, "parallel_write_safe": True}
