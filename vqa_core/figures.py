"""Figures, tables, values and claims that a chapter hands to the book.

A notebook opens a :class:`Chapter` and gives it what the page shows. Each call writes at once and atomically to
``build/<profile>/figures/<chapter>/``; ``make book`` publishes that folder to ``figures/`` once the notebook has
passed every gate, so that trying things out in JupyterLab never touches what is committed.

Colours are chosen for readers who cannot tell red from green, stay legible on white and on dark pages, and come with
markers and line styles that say the same.
"""

from __future__ import annotations

import base64
import dataclasses
import hashlib
import html
import json
import math
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from vqa_core.experiments import resolve_profile

PALETTE = ("#0090fc", "#cc183c", "#c08400", "#5448fc", "#a83c9c", "#909090")
MARKERS = ("o", "s", "^", "D", "v", "P")
LINESTYLES = ("-", "--", "-.", ":", (0, (5, 1)), (0, (3, 1, 1, 1, 1, 1)))
HATCHES = ("", "//", "\\\\", "..", "xx", "++")
INK = {"light": "#1f2329", "dark": "#e7ecf2"}  # text, axes, ticks
GRID = {"light": "#d1d7de", "dark": "#3c444e"}
BACKGROUND = {"light": "#ffffff", "dark": "#14181e"}  # the page's own

MIME = "application/vnd.vqa.shown+json"  # what the book's pipeline looks for among a cell's outputs
NAME = re.compile(r"[a-z0-9]+(_[a-z0-9]+)*")
KEY = re.compile(r"[a-z0-9_]+(\.[a-z0-9_]+)*")


def use_style() -> None:
    """Set matplotlib's defaults to the book's: sizes, colours, redundant line styles, reproducible SVG."""
    import matplotlib as mpl
    from cycler import cycler

    cycle = cycler(color=PALETTE) + cycler(marker=MARKERS) + cycler(linestyle=LINESTYLES)
    mpl.rcParams.update(
        {
            "figure.figsize": (6.4, 3.6),
            "figure.constrained_layout.use": True,
            "figure.dpi": 100,
            "savefig.transparent": True,
            "font.size": 10,
            "axes.prop_cycle": cycle,
            "axes.spines.top": False,
            "axes.spines.right": False,
            "axes.grid": True,
            "axes.axisbelow": True,
            "axes.facecolor": "none",
            "legend.frameon": False,
            "lines.markersize": 5,
            "svg.fonttype": "path",  # looks the same on every machine
            "svg.hashsalt": "vqa_core",
            "grid.color": GRID["light"],
            **dict.fromkeys(("axes.edgecolor", "axes.labelcolor", "text.color"), INK["light"]),
            **dict.fromkeys(("xtick.color", "ytick.color"), INK["light"]),
        }
    )


def repository_root(start: Path | None = None) -> Path:
    """Nearest folder upwards of ``start`` (default: the working folder) that holds ``notebooks`` and ``vqa_core``."""
    start = (start or Path.cwd()).resolve()
    for folder in (start, *start.parents):
        if (folder / "notebooks").is_dir() and (folder / "vqa_core").is_dir():
            return folder
    raise FileNotFoundError(f"{start} is not inside a checkout of the book (no notebooks/ and vqa_core/ above it)")


def to_json(content: Any) -> str:
    """JSON as the book stores it: sorted, indented, without NaN."""
    return json.dumps(content, indent=1, sort_keys=True, ensure_ascii=False, allow_nan=False) + "\n"


def _write(path: Path, content: str | bytes) -> None:
    from vqa_core.experiments.records import write_atomically

    write_atomically(path, content.encode() if isinstance(content, str) else content)


def label(kind: str, chapter: str, name: str) -> str:
    """Label to refer to: ``label("fig", "03_fusion", "cost_curve")`` is ``fig-03-fusion-cost-curve``."""
    return f"{kind}-{chapter}-{name}".replace("_", "-")


@dataclasses.dataclass(frozen=True)
class Shown:
    """What :meth:`Chapter.figure` and :meth:`Chapter.table` return: shows itself in JupyterLab and in the book."""

    kind: str  # "figure" or "table"
    name: str
    text: str
    preview: dict[str, str]

    def _repr_mimebundle_(self, **_: Any) -> dict[str, Any]:
        return {**self.preview, "text/plain": self.text, MIME: {"kind": self.kind, "name": self.name}}


class Chapter:
    """Where one chapter puts its figures, tables, values and claims.

    Parameters
    ----------
    name
        Stem of the notebook, as ``"03_fusion"``.
    profile
        ``"smoke"``, ``"cpu"``, ``"gpu"`` or ``"auto"``. Figures of the smoke profile carry a watermark.
    folder
        Where to write; by default ``build/<profile>/figures/<name>`` of the checkout around the working folder.

    Examples
    --------
    >>> chapter = Chapter("03_fusion", profile="cpu")                                  # doctest: +SKIP
    >>> chapter.value("best.accuracy", interval, of="seeds")                           # doctest: +SKIP
    >>> chapter.figure(fig, "cost_curve", caption="…", alt="…", data=table)            # doctest: +SKIP
    """

    def __init__(self, name: str, profile: str, folder: Path | str | None = None) -> None:
        if not NAME.fullmatch(name):
            raise ValueError(f"chapter name is {name!r}; use the notebook's stem, such as '03_fusion'")
        self.name, self.profile = name, resolve_profile(profile)
        default = lambda: repository_root() / "build" / self.profile / "figures" / name  # noqa: E731
        self.folder = Path(folder) if folder is not None else default()

    # -- pictures and tables -------------------------------------------------------------------------------------

    def figure(
        self,
        fig: Any,
        name: str,
        *,
        caption: str,
        alt: str,
        data: Any,
        records: Iterable = (),
        picture: bool = False,
        interactive: str | None = None,
    ) -> Shown:
        """Save a matplotlib figure, its data and where it comes from.

        Parameters
        ----------
        fig
            ``matplotlib.figure.Figure``; it is closed afterwards.
        name
            Lower-case words joined by underscores; the page refers to it by ``{numref}`fig-<chapter>-<name>```
            with hyphens.
        caption
            What the reader should see in it; MyST, may hold roles.
        alt
            The same for a reader who does not see it: at least 20 characters, not the caption again.
        data
            ``pandas.DataFrame`` of what is drawn. With a column ``mean`` it must have ``low``, ``high`` and ``n``.
        records
            Records of the runs behind it, for its provenance (specs, seeds, data).
        picture
            True for figures full of pixels: a PNG on white instead of two SVG files.
        interactive
            HTML that the page puts before the drawing, in the same figure: one element, hidden until its script runs
            and then hides the ``img`` elements that follow it. So the drawing is seen without scripts and on paper.
            See :func:`fragment_problems` for what it may not hold.

        Raises
        ------
        ValueError
            A name, alt text, table or HTML that does not meet the above, or a table with NaN or infinity.
        """
        import matplotlib.pyplot as plt

        self._check_name(name)
        _check_alt(alt, caption)
        problems = fragment_problems(interactive) if interactive is not None else []
        if problems:
            raise ValueError(f"{name}: the interactive part has {'; '.join(problems)}")
        table = _checked_table(data, name)
        if self.profile == "smoke":
            fig.text(0.5, 0.5, "smoke", fontsize=48, alpha=0.3, rotation=25, ha="center", va="center", color="#808080")
        if picture:
            image = _png(fig)
            _write(self.folder / f"{name}.png", image)
            preview = {"image/png": base64.b64encode(image).decode()}
        else:
            light = _svg(fig)
            dark = light.replace(INK["light"], INK["dark"]).replace(GRID["light"], GRID["dark"])
            _write(self.folder / f"{name}.svg", light)
            _write(self.folder / f"{name}.dark.svg", dark)
            preview = {"image/svg+xml": light}
        plt.close(fig)
        if interactive is not None:
            _write(self.folder / f"{name}.html", interactive)
            preview["text/html"] = interactive + _image(preview, alt)
        self._write_table(name, table, records, kind="figure", picture=picture, caption=caption, alt=alt)
        return Shown("figure", name, alt, preview)

    def table(
        self, data: Any, name: str, *, caption: str, formats: Mapping[str, str] | None = None, records: Iterable = ()
    ) -> Shown:
        """Save a numbered table; the page shows it with ``formats``, the CSV keeps every digit.

        Parameters
        ----------
        data
            ``pandas.DataFrame``, under the rules of :meth:`figure`. Its column names head the table.
        formats
            Format specification by column, as ``{"mean": ".1%"}``; other floats are shown with three digits.
        """
        self._check_name(name)
        table = _checked_table(data, name)
        unknown = set(formats or {}) - set(table.columns)
        if unknown:
            raise ValueError(f"formats name {sorted(unknown)}; the columns are {list(table.columns)}")
        self._write_table(name, table, records, kind="table", caption=caption, formats=dict(formats or {}))
        preview = {"text/html": table.to_html(index=False, float_format="%.3g", border=0)}
        return Shown("table", name, caption, preview)

    # -- numbers -------------------------------------------------------------------------------------------------

    def value(
        self,
        key: str,
        value: Any,
        *,
        n: int | None = None,
        of: str | None = None,
        unit: str | None = None,
        exact: bool = False,
    ) -> None:
        """Write a number that prose reads by ``{val}`<chapter>.<key>```.

        Parameters
        ----------
        key
            Lower-case dotted name, unique in the chapter.
        value
            int, float, str, or an interval: anything with ``mean``, ``low``, ``high`` and ``n``.
        n
            How many measurements a bare float rests on.
        of
            What ``n`` counts: ``"seeds"``, ``"questions"``, ``"pictures"``.
        unit
            Unit of the value, where it has one.
        exact
            True for a float that is not measured (a constant, a ratio of counts of parameters).

        Raises
        ------
        ValueError
            A measured float without ``n``, a number that is not finite, or a malformed key.
        """
        entry = _entry(value)
        if n is not None:
            entry["n"] = int(n)
        if isinstance(entry["value"], float) and "n" not in entry and not exact:
            raise ValueError(
                f"value {key!r} is a bare float: give an interval or n, or exact=True if nothing is measured"
            )
        entry |= {k: v for k, v in {"of": of, "unit": unit}.items() if v is not None}
        self._store("values.json", key, entry | {"profile": self.profile})

    def claim(self, identifier: str, effect: Any, *, of: str | None = None) -> None:
        """Write the effect that decides a claim of ``book/claims.yml``; the verdict is the rule's, not ours.

        ``effect`` is an interval (``mean``, ``low``, ``high``, ``n``).
        """
        if not re.fullmatch(r"[A-Z][0-9]+[a-z]?", identifier):
            raise ValueError(f"claim is {identifier!r}; an identifier of book/claims.yml, such as 'F1', is needed")
        entry = _entry(effect)
        if not {"low", "high", "n"} <= entry.keys():
            raise ValueError(f"claim {identifier} needs an effect with mean, low, high and n; got {effect!r}")
        entry["effect"] = entry.pop("value")
        if of is not None:
            entry["of"] = of
        self._store("claims.json", identifier, entry | {"profile": self.profile, "chapter": self.name})

    # -- files ---------------------------------------------------------------------------------------------------

    def _check_name(self, name: str) -> None:
        if not NAME.fullmatch(name):
            raise ValueError(f"name is {name!r}; use lower-case words joined by underscores, such as 'cost_curve'")

    def _store(self, file: str, key: str, entry: dict[str, Any]) -> None:
        if file == "values.json" and not KEY.fullmatch(key):
            raise ValueError(f"key is {key!r}; use lower-case names joined by dots, such as 'best.accuracy'")
        path = self.folder / file
        stored = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
        _write(path, to_json(stored | {key: entry}))

    def _write_table(self, name: str, table: Any, records: Iterable, **described: Any) -> None:
        csv = table.to_csv(index=False, float_format="%.10g", lineterminator="\n")
        _write(self.folder / f"{name}.csv", csv)
        sidecar = {"name": name, "chapter": self.name, "profile": self.profile, **described, **_provenance(records)}
        sidecar["csv_sha256"] = hashlib.sha256(csv.encode()).hexdigest()
        _write(self.folder / f"{name}.json", to_json(sidecar))


def _check_alt(alt: str, caption: str) -> None:
    text = alt.strip()
    if len(text) < 20:
        raise ValueError(f"alt text {alt!r} is too short: say in at least 20 characters what the figure shows")
    if text == caption.strip():
        raise ValueError("alt text repeats the caption: say what is drawn, the caption says what it means")
    if re.search(r"\.(svg|png|jpe?g|csv)\b|^/|[\\{}`\n]", text):
        raise ValueError(f"alt text {alt!r} is not plain text: no path, no markup, one line")


def _checked_table(data: Any, name: str) -> Any:
    import numpy as np
    import pandas as pd

    if not isinstance(data, pd.DataFrame) or data.empty:
        raise ValueError(f"{name}: data must be a DataFrame with rows; got {type(data).__name__}")
    table = data.copy()
    table.columns = [str(c) for c in table.columns]
    missing = {"low", "high", "n"} - set(table.columns)
    if "mean" in table.columns and missing:
        raise ValueError(f"{name}: a column 'mean' needs low, high and n beside it; missing: {sorted(missing)}")
    bad = [c for c in table.columns if table[c].isna().any()]
    bad += [c for c in table.select_dtypes("number").columns if not np.isfinite(table[c].astype(float)).all()]
    if bad:
        raise ValueError(f"{name}: NaN or infinity in column {', '.join(sorted(set(bad)))}")
    return table


def _plain(number: Any) -> int | float | str:
    """Python's own number for numpy's and torch's."""
    number = number.item() if hasattr(number, "item") else number
    if isinstance(number, bool) or not isinstance(number, int | float | str):
        raise ValueError(f"value is {number!r}; int, float, str or an interval is needed")
    if isinstance(number, float) and not math.isfinite(number):
        raise ValueError(f"value is {number!r}; only finite numbers can be shown")
    return number


def _entry(value: Any) -> dict[str, Any]:
    names = ("mean", "low", "high", "n", "level", "seeds")
    fields = value if isinstance(value, Mapping) else {k: getattr(value, k, None) for k in names}
    if fields.get("mean") is None or callable(fields["mean"]):  # a numpy scalar has a method of that name
        if isinstance(value, Mapping):
            raise ValueError(f"value is {value!r}; an interval needs mean, low, high and n")
        return {"value": _plain(value)}
    if any(fields.get(k) is None for k in ("low", "high", "n")):
        raise ValueError(f"value is {value!r}; an interval needs mean, low, high and n")
    low, mean, high = (float(_plain(fields[k])) for k in ("low", "mean", "high"))
    if not low <= mean <= high or int(fields["n"]) < 1:
        raise ValueError(f"interval needs low <= mean <= high and n >= 1; got {low}, {mean}, {high}, n = {fields['n']}")
    entry = {"value": mean, "low": low, "high": high, "n": int(fields["n"])}
    return entry | {k: fields[k] for k in ("level", "seeds") if fields.get(k) is not None}


def _svg(fig: Any) -> str:
    import io

    import matplotlib as mpl

    with mpl.rc_context({"svg.hashsalt": "vqa_core", "svg.fonttype": "path"}):
        buffer = io.StringIO()
        fig.savefig(buffer, format="svg", transparent=True, metadata={"Date": None, "Creator": None})
    return re.sub(r"[ \t]+$", "", buffer.getvalue(), flags=re.MULTILINE)


def _png(fig: Any) -> bytes:
    import io

    buffer = io.BytesIO()
    fig.savefig(buffer, format="png", dpi=150, facecolor="white", transparent=False, metadata={"Software": None})
    return buffer.getvalue()


def _image(preview: Mapping[str, str], alt: str) -> str:
    """The drawing as an ``img`` element that holds it, for JupyterLab."""
    ((kind, content),) = preview.items()
    content = content if kind == "image/png" else base64.b64encode(content.encode()).decode()
    return f'<img alt="{html.escape(alt)}" src="data:{kind};base64,{content}">'


#: What an interactive part may not hold (pattern) and how to do without it.
FORBIDDEN = {
    "a network address": (r"(?:https?|wss?|ftp)://(?!www\.w3\.org/)[^\s\"'<>]*", "take it out"),  # XML names are none
    "a reference": (
        r"<[a-z][^<>]*\s(?:src|srcset|href|xlink:href|data|poster|action)\s*=\s*[\"']?(?!data:|#)[^\s\"'>]+",
        "write what it names into the fragment",
    ),
    "something that is loaded": (
        r"<(?:link|base|i?frame|object|embed)\b|@import\b|\burl\((?!\s*[\"']?(?:data:|#))[^)]*"
        r"|\b(?:fetch|import|importScripts|sendBeacon)\s*\(|\b(?:XMLHttpRequest|WebSocket|EventSource)\b",
        "write it into the fragment",
    ),
    "an inline handler": (r"<[a-z][^<>]*\son[a-z]+\s*=[^<>]*|\bjavascript:[^\s\"']*", "use addEventListener"),
}
DATA_BLOCK = re.compile(r'(<script type="application/json">)[^<]*(</script>)')  # without "<" nothing gets out of it


def fragment_problems(fragment: str) -> list[str]:
    """Why some HTML may not be the interactive part of a figure; empty when it may.

    Parameters
    ----------
    fragment
        HTML that holds its style and script; the texts of ``<script type="application/json">`` are not looked at.

    Examples
    --------
    >>> fragment_problems("<p hidden>whole in itself</p>")
    []
    >>> fragment_problems("<p hidden><script src=plot.js></script></p>")
    ["a reference ('<script src=plot.js'): write what it names into the fragment"]
    """
    code = DATA_BLOCK.sub(r"\1\2", fragment)
    found = [(what, re.search(pattern, code, re.IGNORECASE), remedy) for what, (pattern, remedy) in FORBIDDEN.items()]
    problems = [f"{what} ({match[0][:60]!r}): {remedy}" for what, match, remedy in found if match]
    if not re.match(r"\s*<[a-z]+[^<>]*\shidden(?=[\s=>])", code):
        problems.append(f"a first element that is seen without its script ({code[:60]!r}): give it `hidden`")
    return problems


def _provenance(records: Iterable) -> dict[str, Any]:
    """Runs, seeds, data, machine, versions and revision behind a figure."""
    from vqa_core.experiments import provenance

    records = list(records)
    return {
        "specs": sorted({r.spec.hash[:16] for r in records}),
        "seeds": sorted({r.spec.seed for r in records}),
        "data_hashes": sorted({str(r.provenance["data_hash"]) for r in records}),
        "hardware": provenance.hardware(),
        "versions": provenance.versions(),
        **provenance.git_state(),
    }
