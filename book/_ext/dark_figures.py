"""A figure that was also drawn for the dark theme is shown in the colours of the theme.

``accuracy.svg`` with ``accuracy.dark.svg`` beside it becomes two images, of which the theme's style sheet shows one.
"""

from __future__ import annotations

from pathlib import Path

from docutils import nodes
from sphinx.application import Sphinx
from sphinx.transforms import SphinxTransform


class DarkTwin(SphinxTransform):
    """Put the dark drawing after every image that has one."""

    default_priority = 200

    def apply(self, **kwargs: object) -> None:
        for image in list(self.document.findall(nodes.image)):
            uri = image["uri"]
            if "://" in uri or not uri.endswith(".svg") or uri.endswith(".dark.svg"):
                continue
            dark = f"{uri.removesuffix('.svg')}.dark.svg"
            if not Path(self.env.relfn2path(dark, self.env.docname)[1]).is_file():
                continue
            twin = image.deepcopy()
            twin["uri"] = dark
            twin["ids"], twin["names"] = [], []
            image["classes"].append("only-light")
            twin["classes"].append("only-dark")
            image.parent.insert(image.parent.index(image) + 1, twin)


def setup(app: Sphinx) -> dict:
    app.add_transform(DarkTwin)
    return {"version": "1", "parallel_read_safe": True, "parallel_write_safe": True}
