"""The claims ledger: verdicts that code computed, read from ``book/claims.yml`` and never typed.

``{verdict}`F1```      the verdict of one claim as a badge that links to its row in the ledger
``{claims}``           the table of claims; ``:chapter: 3`` keeps those of one chapter
``{verdict-counts}``   how many claims have which verdict

The file is read by :func:`vqa_core.evaluation.claims.read_claims`, which refuses a verdict that does not follow from
its rule and numbers. Claim, source, test and reason are inline Markdown.
"""

from __future__ import annotations

import dataclasses
import difflib
import re
from pathlib import Path
from typing import ClassVar

import yaml
from bound import THIN, interval, number, unit_of
from build_status import chapter_link
from docutils import nodes
from docutils.parsers.rst import directives
from sphinx.application import Sphinx
from sphinx.util import logging
from sphinx.util.docutils import SphinxDirective, SphinxRole

from vqa_core.evaluation.claims import INCONCLUSIVE, NOT_RUN, OUT_OF_REACH, REFUTED, SUPPORTED, Claim, read_claims

logger = logging.getLogger(__name__)

SYMBOLS = {SUPPORTED: "✓", REFUTED: "✗", INCONCLUSIVE: "≈", OUT_OF_REACH: "⊘", NOT_RUN: "○"}


class claim_link(nodes.reference):
    """A link to a row of the ledger; its address is known when the page is written."""


def badge(verdict: str, prefix: str = "") -> nodes.inline:
    """Return a verdict as symbol and words, so that colour only repeats what is said."""
    text = f"{prefix}{SYMBOLS[verdict]}{THIN}{verdict}"
    return nodes.inline("", text, classes=["verdict", verdict.replace(" ", "-")])


def thresholds(claim: Claim) -> list[float]:
    """Return the numbers with which the rule compares the interval."""
    return [float(value) for value in re.findall(r"(?:low|high|effect) *[<>]=? *(-?[\d.]+)", claim.rule)]


def format_of(claim: Claim) -> str:
    """Return how a claim's numbers are printed; a difference of fractions ("… minus …") in points, with its sign."""
    if claim.unit == "fraction":
        return "+.1p" if " minus " in claim.test else ".1%"
    return ".2f" if claim.unit in ("ratio", "exponent") else ".3g"


def forest(claim: Claim, left: float, right: float) -> str:
    """Draw effect and interval on the axis ``left`` … ``right``, with dashed lines where the rule decides."""

    def x(value: float) -> float:
        return round(6 + 148 * (value - left) / ((right - left) or 1), 1)

    low, high, effect = x(claim.low), x(claim.high), x(claim.effect)
    lines = "".join(f'<line x1="{x(at)}" x2="{x(at)}" y1="1" y2="21"/>' for at in sorted(set(thresholds(claim))))
    return (
        '<svg class="forest" viewBox="0 0 160 22" width="160" height="22" aria-hidden="true" focusable="false">'
        f'{lines}<path d="M{low} 11H{high}M{low} 7V15M{high} 7V15"/><circle cx="{effect}" cy="11" r="4"/></svg>'
    )


class LedgerMixin:
    """Reading of the ledger that the role and the directives share."""

    def claims(self) -> list[Claim]:
        file = self.config.ledger_file
        self.env.note_dependency(file)
        try:
            return read_claims(Path(self.env.srcdir, file))
        except (OSError, ValueError, yaml.YAMLError) as error:
            logger.warning("%s: %s", file, error, location=self.get_location(), type="ledger", subtype="file")
            return []


class VerdictRole(LedgerMixin, SphinxRole):
    """``{verdict}`F1```."""

    def run(self) -> tuple[list[nodes.Node], list[nodes.system_message]]:
        claims = {claim.id: claim for claim in self.claims()}
        if self.text not in claims:
            near = ", ".join(difflib.get_close_matches(self.text, claims, n=3, cutoff=0.3)) or "none"
            message = f"unknown claim {self.text!r}; nearest: {near}"
            logger.warning(message, location=self.get_location(), type="ledger", subtype="claim")
            return [nodes.literal(self.rawtext, f"?? {self.text}")], []
        claim = claims[self.text]
        return [claim_link("", "", badge(claim.verdict, f"{self.text} "), claim=self.text, internal=True)], []


def link_claims(app: Sphinx, doctree: nodes.document, docname: str) -> None:
    """Give every link to a claim its address, now that the place of both pages is known."""
    for link in doctree.findall(claim_link):
        page = app.builder.get_relative_uri(docname, app.config.ledger_page)
        address = f"{page}#claim-{link['claim']}"
        link.replace_self(nodes.reference("", "", *link.children, refuri=address, internal=True))


class ClaimsDirective(LedgerMixin, SphinxDirective):
    """``{claims}``: the ledger, one table per chapter."""

    option_spec: ClassVar[dict] = {"chapter": directives.nonnegative_int}

    def run(self) -> list[nodes.Node]:
        self.env.note_dependency(self.config.book_toc)
        claims = self.claims()
        if "chapter" in self.options:
            chapter = self.options["chapter"]
            if chosen := [claim for claim in claims if claim.chapter == chapter]:
                return [self.table(chosen)]
            logger.warning("no claim of chapter %s", chapter, location=self.get_location(), type="ledger")
            return []
        result: list[nodes.Node] = []
        for chapter in sorted({claim.chapter for claim in claims}):
            result += [
                nodes.rubric("", "", chapter_link(self.env, chapter), classes=["ledger-chapter"]),
                self.table([claim for claim in claims if claim.chapter == chapter]),
            ]
        return result

    def table(self, claims: list[Claim]) -> nodes.table:
        """Return claim · effect · verdict; claims whose numbers are printed alike share one axis."""
        axes: dict[str, list[float]] = {}
        for claim in claims:
            if claim.effect is not None:
                axes.setdefault(format_of(claim), []).extend((claim.low, claim.high, *thresholds(claim)))
        head = nodes.row("", *(nodes.entry("", nodes.paragraph("", text)) for text in ("Claim", "Effect", "Verdict")))
        body = nodes.tbody("", *(self.row(claim, axes.get(format_of(claim), [0.0])) for claim in claims))
        widths = (nodes.colspec(colwidth=width) for width in (58, 26, 16))
        group = nodes.tgroup("", *widths, nodes.thead("", head), body, cols=3)
        return nodes.table("", group, classes=["ledger"])

    def row(self, claim: Claim, axis: list[float]) -> nodes.row:
        verdict = nodes.entry("", nodes.paragraph("", "", badge(claim.verdict)))
        if claim.reason:
            verdict += nodes.paragraph("", "", *self.inline(claim.reason), classes=["small"])
        entries = (nodes.entry("", *self.statement(claim)), nodes.entry("", *self.effect(claim, axis)), verdict)
        return nodes.row("", *entries, ids=[f"claim-{claim.id}"], classes=[claim.verdict.replace(" ", "-")])

    def inline(self, text: str) -> list[nodes.Node]:
        return self.parse_inline(text, lineno=self.lineno)[0]

    def statement(self, claim: Claim) -> list[nodes.Node]:
        """Return the claim, who made it, and its rule folded away."""
        name = nodes.strong("", claim.id, classes=["claim-id"])
        said = [
            nodes.paragraph("", "", name, nodes.Text(" "), *self.inline(claim.claim)),
            nodes.paragraph("", "", *self.inline(claim.source), classes=["small", "claim-source"]),
        ]
        if not claim.rule:
            return said
        origin = {"experiment": claim.experiment, "profile": claim.profile, "revision": claim.revision[:10]}
        facts = " · ".join(f"{name} {value}" for name, value in origin.items() if value)
        return [
            *said,
            nodes.raw("", "<details class='fold'><summary>Rule, fixed before the run</summary>", format="html"),
            nodes.paragraph("", "", nodes.Text("Measured: "), *self.inline(claim.test), classes=["small"]),
            nodes.paragraph("", "", nodes.literal("", claim.rule), classes=["small"]),
            *([nodes.paragraph("", facts, classes=["small"])] if facts else []),
            nodes.raw("", "</details>", format="html"),
        ]

    def effect(self, claim: Claim, axis: list[float]) -> list[nodes.Node]:
        """Return a drawing of effect and interval, and the same in words."""
        if claim.effect is None:
            return [nodes.paragraph("", "–")]
        spec = format_of(claim)
        value = number(claim.effect, spec) + (unit_of(spec) if spec.endswith("p") else "")
        value = (
            f"×{value}" if claim.unit == "ratio" else value if claim.unit == "fraction" else f"{value} ({claim.unit})"
        )
        words = f"95{THIN}% CI {interval(dataclasses.asdict(claim), spec)}, n = {claim.n:,}"
        return [
            nodes.raw("", forest(claim, min(axis), max(axis)), format="html"),
            nodes.paragraph("", "", nodes.strong("", value)),
            nodes.paragraph("", words, classes=["small"]),
        ]


class VerdictCountsDirective(LedgerMixin, SphinxDirective):
    """``{verdict-counts}``: the score so far."""

    def run(self) -> list[nodes.Node]:
        found = [claim.verdict for claim in self.claims()]
        counts = nodes.bullet_list("", classes=["verdict-counts"])
        for verdict in SYMBOLS:
            count = nodes.strong("", str(found.count(verdict)))
            counts += nodes.list_item("", nodes.paragraph("", "", count, nodes.Text(" "), badge(verdict)))
        return [counts]


def setup(app: Sphinx) -> dict:
    app.setup_extension("build_status")
    app.add_config_value("ledger_file", "book/claims.yml", "env", str)
    app.add_config_value("ledger_page", "book/claims", "env", str)
    app.add_role("verdict", VerdictRole())
    app.add_directive("claims", ClaimsDirective)
    app.add_directive("verdict-counts", VerdictCountsDirective)
    app.connect("doctree-resolved", link_claims)
    return {"version": "1", "parallel_read_safe": True, "parallel_write_safe": True}
