"""Bound text: the role ``{val}`` prints a measured number from ``figures/values.json``, so that no number is typed.

=====================================  ==========================================================
``{val}`03_fusion.best```              the value as it is
``{val}`03_fusion.best:.1%```          any Python format specification: 87.3 %
``{val}`03_fusion.gap:+.1p```          percentage points of a fraction: +15.3 points
``{val}`03_fusion.best:range.1%```     the interval: 86.1–88.4 %
``{val}`03_fusion.best:ci.1%```        all of it: 87.3 % (95 % CI 86.1–88.4, n = 5 seeds)
``{val}`03_fusion.best.n```            one field of the entry: low, high, n, of, level, profile
=====================================  ==========================================================

An entry of ``values.json`` is a bare value, or
``{"value": …, "low": …, "high": …, "n": …, "of": "seeds", "level": 0.95, "profile": "cpu"}``; fractions are stored as
fractions. An unknown key, a missing interval or a format that does not fit is a warning, and warnings are errors in the
build of the book. Every page that quotes a value depends on the file, so an incremental build refreshes it.

``{typed}`62.6``` marks a published number that is quoted, not measured here.
"""

from __future__ import annotations

import difflib
import json
from pathlib import Path

from docutils import nodes
from sphinx.application import Sphinx
from sphinx.util import logging
from sphinx.util.docutils import SphinxRole

logger = logging.getLogger(__name__)

THIN = "\N{NARROW NO-BREAK SPACE}"


class bound_value(nodes.inline):
    """A number in the text, with where it comes from as a tooltip."""


def entry_of(raw: object) -> dict:
    """Return a values.json entry as a mapping that has at least ``value``."""
    return raw if isinstance(raw, dict) and "value" in raw else {"value": raw}


def look_up(values: dict, key: str) -> tuple[dict, object]:
    """Return the entry that ``key`` names and the number it asks for.

    The last part of a key may be a field of the entry (``….low``). Raises KeyError with the nearest keys.
    """
    if key in values:
        entry = entry_of(values[key])
        return entry, entry["value"]
    parent, _, field = key.rpartition(".")
    if parent in values:
        entry = entry_of(values[parent])
        if field in entry:
            return entry, entry[field]
        raise KeyError(f"{parent!r} has no field {field!r}; it has {', '.join(sorted(entry))}")
    near = difflib.get_close_matches(key, values, n=3, cutoff=0.4)
    raise KeyError(f"unknown value {key!r}; " + (f"nearest: {', '.join(near)}" if near else "no key resembles it"))


def number(value: object, spec: str = "") -> str:
    """Format one number: a Python format specification, or one ending in ``p`` for percentage points."""
    if spec.endswith("p"):
        return number(100 * value, spec[:-1] + "f")
    text = format(value, spec)
    if isinstance(value, int | float):
        text = text.replace("-", "−")
    return f"{text[:-1]}{THIN}%" if spec.endswith("%") else text


def interval(entry: dict, spec: str) -> str:
    """Format ``low`` to ``high``; the unit is left to the caller. An en dash joins what has no sign of its own."""
    low, high = (number(entry[end], spec).removesuffix(f"{THIN}%") for end in ("low", "high"))
    return f"{low} to {high}" if low[0] in "+−" or high[0] in "+−" else f"{low}–{high}"


def unit_of(spec: str) -> str:
    """Return the unit that a format specification implies, with its space."""
    return f"{THIN}%" if spec.endswith("%") else " points" if spec.endswith("p") else ""


def sample_size(entry: dict) -> str:
    """Return ``n = 5 seeds``, or an empty string when the entry has no n."""
    return f"n = {entry['n']:,} {entry.get('of', '')}".strip() if entry.get("n") is not None else ""


def render(entry: dict, value: object, spec: str) -> str:
    """Return the text of a bound value.

    Raises ValueError for a format that does not fit the value and KeyError for an interval that is not there.
    """
    kind = next((kind for kind in ("range", "ci") if spec.startswith(kind)), None)
    if kind is None:
        return number(value, spec) + (" points" if spec.endswith("p") else "")
    spec = spec.removeprefix(kind)
    if entry.get("low") is None or entry.get("high") is None:
        raise KeyError("the entry has no interval (low, high)")
    if kind == "range":
        return interval(entry, spec) + unit_of(spec)
    size = sample_size(entry)
    bracket = f"{number(entry.get('level', 0.95), '.0%')} CI {interval(entry, spec)}" + (f", {size}" if size else "")
    main = number(value, spec) + (" points" if spec.endswith("p") else "")
    return f"{main} ({bracket})".replace(" CI ", f"{THIN}CI ").replace("n = ", f"n{THIN}={THIN}")


class ValueRole(SphinxRole):
    """``{val}`key:format```."""

    def run(self) -> tuple[list[nodes.Node], list[nodes.system_message]]:
        file = self.config.bound_values
        self.env.note_dependency(file)
        key, _, spec = self.text.partition(":")
        key, spec = key.strip(), spec.strip()
        try:
            values = json.loads(Path(self.env.srcdir, file).read_text(encoding="utf-8"))
            entry, value = look_up(values, key)
            text = render(entry, value, spec)
        except FileNotFoundError:
            return self.problem(f"{file} is not there: run the notebooks first")
        except KeyError as error:
            return self.problem(f"{file}: {key}: {error.args[0]}")
        except (ValueError, TypeError) as error:
            return self.problem(f"{file}: {key}: format {spec!r} does not fit {value!r}: {error}")
        title = ", ".join(filter(None, [key, sample_size(entry), f"profile {entry.get('profile', 'not recorded')}"]))
        return [bound_value(self.rawtext, text, title=title, classes=["val"])], []

    def problem(self, message: str) -> tuple[list[nodes.Node], list[nodes.system_message]]:
        """Warn (an error under -W) and print the key where the number should be."""
        logger.warning(message, location=self.get_location(), type="bound", subtype="value")
        return [nodes.literal(self.rawtext, f"?? {self.text}")], []


class PublishedRole(SphinxRole):
    """``{typed}`62.6```: a number that somebody published, quoted as printed; a citation stands beside it."""

    def run(self) -> tuple[list[nodes.Node], list[nodes.system_message]]:
        return [nodes.inline(self.rawtext, self.text, classes=["published"])], []


def visit_html(self, node: bound_value) -> None:
    self.body.append(self.starttag(node, "span", "", title=node["title"]))


def depart_html(self, node: bound_value) -> None:
    self.body.append("</span>")


def ignore(self, node: bound_value) -> None:
    """Other builders print the text alone."""


def setup(app: Sphinx) -> dict:
    app.add_config_value("bound_values", "figures/values.json", "env", str)
    app.add_node(bound_value, html=(visit_html, depart_html), latex=(ignore, ignore), text=(ignore, ignore))
    app.add_role("val", ValueRole())
    app.add_role("typed", PublishedRole())
    return {"version": "1", "parallel_read_safe": True, "parallel_write_safe": True}
