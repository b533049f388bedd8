"""The drawings of the chapter on cross-attention: each function takes a table or an array and returns a figure.

One colour and one marker for each family of versions, the same in every figure; rows stand in the order of the
versions. Tables are long: one row per version and whatever else is named, with ``mean``, ``low`` and ``high``.
"""

from __future__ import annotations

import math
import textwrap
from collections.abc import Mapping, Sequence
from itertools import groupby
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from matplotlib.patches import Circle, FancyBboxPatch, Rectangle
from matplotlib.ticker import EngFormatter, LogLocator, NullLocator

from vqa_core.experiments.fusion_drawing import whiskers
from vqa_core.figures import GRID, INK, LINESTYLES, MARKERS, PALETTE
from vqa_core.fusion.cross_attention import V8, V9, VERSIONS, CrossAttention

#: Family → how it is called in legends.
FAMILIES = {
    "one": "one matrix of weights for both sides",
    "two": "two directions",
    "forward": "v9 and its descendants",
}
COLOURS = dict(zip(FAMILIES, (PALETTE[i] for i in (0, 2, 4))))
SHAPES = dict(zip(FAMILIES, "osD"))
WRONG = PALETTE[1]  # what leaks, and what can't be
WIDTH = 7.4  # inches; a page is 720 pixels wide, so that text keeps its size
SMALL = 9  # points, the smallest text
FILL = 0.75  # opacity of the fullest cell: ink is legible on it, on white and on dark pages


def family(version: str) -> str:
    """Which of :data:`FAMILIES` a version belongs to, read from its class."""
    if version not in VERSIONS:
        raise ValueError(f"version is {version!r}; there are {', '.join(VERSIONS)}")
    made = VERSIONS[version]
    if issubclass(made, V9):
        return "forward"
    return "two" if issubclass(made, V8) or made is CrossAttention else "one"


def style(version: str) -> dict[str, Any]:
    """Colour and marker of a version: those of its family."""
    name = family(version)
    return {"color": COLOURS[name], "marker": SHAPES[name], "linestyle": "none"}


def in_order(versions) -> list[str]:
    """The versions that are there, each once, in the order of :data:`VERSIONS`."""
    there = set(versions)
    for version in there:
        family(version)  # an unknown one is refused
    return [v for v in VERSIONS if v in there]


def _mark(label: str, **looks: Any) -> plt.Line2D:
    """An entry of a legend."""
    return plt.Line2D([], [], label=label, **looks)


def _dash(label: str) -> plt.Line2D:
    return _mark(label, color=INK["light"], ls="--", lw=1.2, marker="")


def _legend(figure: Figure, marks: Sequence[plt.Line2D], columns: int = 3) -> None:
    figure.legend(handles=list(marks), loc="outside lower center", ncols=columns, fontsize=SMALL)


def _families(versions: Sequence[str]) -> list[plt.Line2D]:
    """Entries for the families that these versions belong to."""
    first = {family(v): v for v in reversed(versions)}
    return [_mark(title, **style(first[name])) for name, title in FAMILIES.items() if name in first]


def _rows(ax, versions: Sequence[str]) -> None:
    """Name the rows, top to bottom."""
    ax.set_yticks(range(len(versions)), versions)
    ax.set_ylim(len(versions) - 0.4, -0.6)
    ax.grid(axis="y", visible=False)
    ax.tick_params(axis="y", length=0, labelsize=SMALL)


def _one(table: pd.DataFrame, **where: str) -> Mapping[str, Any]:
    """The one row that has these values; a table that lacks it or has two is refused."""
    found = table[np.logical_and.reduce([table[c] == v for c, v in where.items()])]
    if len(found) != 1:
        raise ValueError(f"{len(found)} rows of the table have {where}; it must have exactly one")
    return found.iloc[0]


# -- versions ---------------------------------------------------------------------------------------------------------


def family_tree(rows: Sequence[Mapping[str, Any]]) -> Figure:
    """Every version under the one that it changes: what it changes, and how many parameters that adds.

    Parameters
    ----------
    rows
        Mappings with version, from (``""`` for the root), title, more; those of
        :func:`~vqa_core.fusion.cross_attention.differences`.
    """
    by = {str(row["version"]): row for row in rows}
    found = [(version, depth) for root in by if not by[root]["from"] for version, depth in _walk(by, root)]
    if len(found) < len(by):
        raise ValueError(f"no way from a root to {sorted(set(by) - {v for v, _ in found})}; check their 'from'")
    step, height, tall = 0.3, 0.34, 0.26  # inches: indentation, from row to row, of a box
    titles = step * max(depth for _, depth in found) + 1.3
    figure, ax = plt.subplots(figsize=(WIDTH, height * len(found) + 0.75))
    ax.set(xlim=(-0.05, WIDTH - 0.15), ylim=(height * len(found) - 0.05, -0.42))
    ax.axis("off")
    at = {version: (step * depth, i * height + tall / 2) for i, (version, depth) in enumerate(found)}
    right = WIDTH - 0.2
    edge = {"color": INK["light"], "lw": 0.9, "ls": "-", "marker": ""}
    for version, (x, y) in at.items():
        row, looks = by[version], style(version)
        box = FancyBboxPatch(
            (x, y - tall / 2), right - x, tall, boxstyle="round,pad=0,rounding_size=0.06", ec=looks["color"], fc="none"
        )
        ax.add_patch(box)
        ax.plot(x + 0.16, y, ms=6, **looks)
        ax.text(x + 0.32, y, version, va="center", weight="bold", fontsize=SMALL)
        ax.text(titles, y, row["title"], va="center", fontsize=SMALL)
        more = int(row["more"])
        ax.text(
            right - 0.1, y, f"{more:+,}".replace("-", "−") if more else "0", va="center", ha="right", fontsize=SMALL
        )
        children = [at[child] for child in by if by[child]["from"] == version]
        if children:  # one line down, and a branch to each
            ax.plot([x + 0.16] * 2, [y + tall / 2, children[-1][1]], **edge)
            ax.hlines([cy for _, cy in children], x + 0.16, children[0][0], color=edge["color"], lw=edge["lw"])
    for x, side, heading in ((0, "left", "version"), (titles, "left", "what it changes")):
        ax.text(x, -0.16, heading, ha=side, va="center", fontsize=SMALL, style="italic")
    ax.text(right - 0.1, -0.16, "parameters added", ha="right", va="center", fontsize=SMALL, style="italic")
    _legend(figure, _families(list(by)))
    return figure


def _walk(by: Mapping[str, Mapping], version: str, depth: int = 0):
    """A version, and then everything that descends from it, with the number of steps from the root."""
    yield version, depth
    for child, row in by.items():
        if row["from"] == version:
            yield from _walk(by, child, depth + 1)


# -- what was published -----------------------------------------------------------------------------------------------

#: Columns of the published table → heading, and inches that its text needs.
PUBLISHED = {
    "sim_dog_park": ("dog,\npark", 0.6),
    "sim_cat_couch": ("cat,\ncouch", 0.6),
    "sim_children_soccer": ("children,\nsoccer", 0.64),
    "sim_sunset_ocean": ("sunset,\nocean", 0.6),
    "sim_person_kitchen": ("person,\nkitchen", 0.6),
    "best_caption": ("best\ncaption", 0.62),
    "similarity_ratio": ("ratio", 0.48),
    "similarity_gap": ("gap", 0.57),
    "ratio_rank": ("rank", 0.4),
    "trained_well": ("trained", 0.53),
    "verdict_in_text": ("in the\ntext", 0.55),
}
SIMILARITIES = [c for c in PUBLISHED if c.startswith("sim_")]
#: Why a published cell can't be, or says nothing.
DOUBTS = {
    "equal": "five captions, one similarity to all printed digits: nothing is told apart",
    "arbitrary": "a best caption is named although all five are equal",
    "twins": "two versions, the same five similarities",
    "trained": "called trained, with a gap of 0 between the captions",
    "contradiction": "the table calls it trained, the text a failure",
    "rank": "not the rank of this ratio among the seventeen",
}


def doubts(table: pd.DataFrame) -> dict[tuple[str, str], str]:
    """Which cells of the published table contradict others of it, or say nothing: by rule, not by eye.

    Parameters
    ----------
    table
        Columns version, those of :data:`PUBLISHED`.

    Returns
    -------
    dict
        (version, column) → key of :data:`DOUBTS`.
    """
    marks: dict[tuple[str, str], str] = {}
    ranks = {way: table["similarity_ratio"].rank(ascending=False, method=way) for way in ("min", "max")}
    twins = table.duplicated(SIMILARITIES, keep=False)
    for i, row in table.iterrows():
        name, equal = row["version"], row[SIMILARITIES].nunique() == 1
        if twins[i]:
            marks |= {(name, c): "twins" for c in SIMILARITIES}
        if equal:
            marks |= {(name, c): "equal" for c in SIMILARITIES} | {(name, "best_caption"): "arbitrary"}
        if row["trained_well"] and row["similarity_gap"] == 0:
            marks[name, "trained_well"] = "trained"
        if row["trained_well"] != (row["verdict_in_text"] == "success"):
            marks[name, "verdict_in_text"] = "contradiction"
        if not ranks["min"][i] <= row["ratio_rank"] <= ranks["max"][i]:
            marks[name, "ratio_rank"] = "rank"
    return marks


def published_table(
    table: pd.DataFrame, marks: Mapping[tuple[str, str], str], reasons: Mapping[str, str] = DOUBTS
) -> Figure:
    """The published ablation, redrawn: similarities as a heat table, and a frame with a letter about what can't be.

    Parameters
    ----------
    table
        Columns version, those of :data:`PUBLISHED`; drawn in the order of its rows.
    marks
        (version, column) → key of ``reasons``; :func:`doubts` finds those that follow from the table alone.
    reasons
        Key → what is wrong, for the legend. Their order gives the letters.
    """
    versions = list(table["version"])
    for (version, column), reason in marks.items():
        if version not in versions or column not in PUBLISHED or reason not in reasons:
            raise ValueError(
                f"mark ({version!r}, {column!r}) → {reason!r}: needs a version of the table, a column of PUBLISHED "
                f"and a reason among {', '.join(reasons)}"
            )
    letters = dict(zip(reasons, "abcdefghijklmnopqrstuvwxyz"))
    columns = list(PUBLISHED)
    frames = []  # (row, first column, column after the last, reason): cells side by side share a frame
    for i, version in enumerate(versions):
        for reason, some in groupby(columns, key=lambda c: marks.get((version, c))):
            run = list(some)
            if reason is not None:
                frames.append((i, columns.index(run[0]), columns.index(run[-1]) + 1, reason))
    gutters = [0.14 * any(end == k + 1 for _, _, end, _ in frames) for k in range(len(columns))]  # for the letters
    edges = 0.5 + np.cumsum([0, *(width + more for (_, width), more in zip(PUBLISHED.values(), gutters))])
    right, line = float(edges[-1]), 0.27
    bottom = line * len(versions)
    wide = int((right / 2 - 0.25) / 0.062)  # characters of half a line, 0.062 inches each
    texts = {reason: textwrap.wrap(text, wide) for reason, text in reasons.items()}
    half = -(-len(texts) // 2)
    below = 0.17 * max(sum(map(len, list(texts.values())[part])) for part in (slice(half), slice(half, None)))
    figure, ax = plt.subplots(figsize=(right + 0.1, bottom + below + 0.75))
    ax.set(xlim=(-0.01, right + 0.03), ylim=(bottom + below + 0.2, -0.45))
    ax.axis("off")
    most = float(table[SIMILARITIES].abs().to_numpy().max())
    for column, start, end, gutter in zip(columns, edges, edges[1:], gutters):
        ends = end - gutter - 0.04
        ax.text(ends, -0.06, PUBLISHED[column][0], ha="right", va="bottom", fontsize=SMALL)
        for i, value in enumerate(table[column]):
            if column in SIMILARITIES:
                colour = PALETTE[0] if value >= 0 else PALETTE[2]
                cell = Rectangle((start, i * line), end - start, line, fc=colour, alpha=FILL * abs(value) / most, lw=0)
                ax.add_patch(cell)
            ax.text(ends, (i + 0.5) * line, _in_print(column, value), ha="right", va="center", fontsize=SMALL)
    for i, version in enumerate(versions):
        ax.text(0, (i + 0.5) * line, version, va="center", weight="bold", fontsize=SMALL)
    for i, first, last, reason in frames:
        low, high = edges[first] + 0.01, edges[last] - 0.01
        ax.add_patch(Rectangle((low, i * line + 0.02), high - low, line - 0.04, fc="none", ec=WRONG, lw=1.6))
        bold = {"weight": "bold", "fontsize": SMALL, "va": "center"}
        ax.text(high - 0.035, (i + 0.5) * line, letters[reason], ha="right", **bold)
    y = bottom + 0.2
    for k, (reason, lines) in enumerate(texts.items()):
        x, y = (right / 2, bottom + 0.2) if k == half else (0 if k < half else right / 2, y)
        ax.text(x, y, letters[reason], va="top", weight="bold", fontsize=SMALL)
        for text in lines:
            ax.text(x + 0.17, y, text, va="top", fontsize=SMALL)
            y += 0.17
    return figure


def _in_print(column: str, value: Any) -> str:
    """A value of the published table as a reader sees it."""
    if column == "best_caption":
        words = [w for w in str(value).lower().split() if w not in ("a", "the")]
        return words[0]
    if column == "trained_well":
        return "yes" if value else "no"
    return f"{value:.3f}".replace("-", "−") if isinstance(value, float) else str(value)


# -- what was measured ------------------------------------------------------------------------------------------------


def leak_by_version(table: pd.DataFrame, chance: float) -> Figure:
    """Accuracy in a batch whose scores leak, against the same when each pair is scored on its own.

    Parameters
    ----------
    table
        Columns version, quantity (``"in_batch_accuracy"`` or ``"pairwise_accuracy"``), mean, low, high.
    chance
        Accuracy of a guess: 1 / size of the batch.
    """
    versions = in_order(table["version"])
    looks = {
        "in_batch_accuracy": {"color": WRONG, "marker": "s", "linestyle": "none", "ms": 9, "mfc": "none", "mew": 1.6},
        "pairwise_accuracy": {"color": PALETTE[0], "marker": "o", "linestyle": "none", "ms": 5},
    }
    figure, ax = plt.subplots(figsize=(WIDTH, 1.2 + 0.24 * len(versions)))
    _rows(ax, versions)
    for at, version in enumerate(versions):
        found = {name: _one(table, version=version, quantity=name) for name in looks}
        ax.hlines(at, *(row["mean"] for row in found.values()), color=INK["light"], lw=4, alpha=0.25)
        for name, row in found.items():
            ax.errorbar(row["mean"], at, xerr=whiskers(row), elinewidth=1.2, **looks[name])
    ax.axvline(chance, color=INK["light"], ls="--", lw=1.2, marker="")
    ax.set(xlim=(-0.02, 1.03), xlabel="accuracy in a batch of matched pairs")
    ax.xaxis.set_major_formatter(lambda v, _: f"{v:.0%}")
    marks = [
        _mark("as published: every output has seen its partner", **looks["in_batch_accuracy"]),
        _mark("each pair on its own", **looks["pairwise_accuracy"]),
        _dash(f"chance, {chance:.1%}"),
    ]
    _legend(figure, marks)
    return figure


#: What the curves show → how the axis is called.
CURVES = {"loss": "loss", "val_r1": "R@1, held out"}


def curves(
    table: pd.DataFrame, chance: Mapping[str, float], headings: Mapping[str, str], versions: Sequence[str] = ()
) -> Figure:
    """Loss, and recall on held-out pictures, over the steps of training; a column of panels for each protocol.

    Parameters
    ----------
    table
        Columns protocol, version, quantity (of :data:`CURVES`), step, mean, low, high (over seeds).
    chance
        Quantity → value of a guess.
    headings
        Protocol → what stands above its panels, in the order of the columns.
    versions
        Which to draw, at most six; none means all of the table.
    """
    chosen = in_order(versions or table["version"])
    if len(chosen) > len(PALETTE):
        raise ValueError(f"{len(chosen)} versions are too many lines for a panel; choose at most {len(PALETTE)}")
    looks = dict(zip(chosen, zip(PALETTE, MARKERS, LINESTYLES)))
    figure, axes = plt.subplots(
        2, len(headings), figsize=(WIDTH, 5.2), sharex="col", sharey="row", squeeze=False, height_ratios=(1, 1.1)
    )
    for (protocol, heading), column in zip(headings.items(), axes.T):
        column[0].set_title(heading, fontsize=10)
        column[1].set_xlabel("training step")
        for ax, (quantity, label) in zip(column, CURVES.items()):
            for version, (colour, marker, dash) in looks.items():
                rows = (table["protocol"] == protocol) & (table["version"] == version) & (table["quantity"] == quantity)
                some = table[rows].sort_values("step")
                if some.empty:
                    raise ValueError(f"the table has no rows of {quantity!r} of {version} under {protocol!r}")
                low, high = some["low"].clip(lower=some["mean"] / 4), some["high"]
                if quantity != "loss":  # shares
                    low, high = some["low"].clip(0, 1), high.clip(0, 1)
                ax.fill_between(some["step"], low, high, color=colour, alpha=0.15, lw=0)
                ax.plot(some["step"], some["mean"], color=colour, marker=marker, ls=dash, ms=4.5, lw=1.4)
            ax.axhline(chance[quantity], color=INK["light"], ls="--", lw=1.2, marker="")
            if ax is axes[0, 0] or ax is axes[1, 0]:
                ax.set_ylabel(label)
    axes[0, 0].set_yscale("log")  # a band that would reach 0 ends at a quarter of its mean
    axes[1, 0].set_ylim(bottom=-0.01)
    axes[1, 0].yaxis.set_major_formatter(lambda v, _: f"{v:.0%}")
    marks = [_mark(v, color=c, marker=m, ls=d, lw=1.4) for v, (c, m, d) in looks.items()]
    _legend(figure, [*marks, _dash("chance")], columns=len(marks) + 1)
    return figure


def forest(table: pd.DataFrame, chance: float, headings: Mapping[str, str], xlabel: str = "R@1") -> Figure:
    """A row for each version, a panel for each protocol: the number and its 95 % interval.

    Parameters
    ----------
    table
        Columns protocol, version, mean, low, high.
    chance
        Recall of a guess: 1 / size of the gallery.
    headings
        Protocol → what stands above its panel, in the order of the panels.
    """
    versions = in_order(table["version"])
    size = (WIDTH, 1.3 + 0.23 * len(versions))
    figure, axes = plt.subplots(1, len(headings), figsize=size, sharey=True, sharex=True, squeeze=False)
    for ax, (protocol, heading) in zip(axes.flat, headings.items()):
        _rows(ax, versions)
        for i in range(1, len(versions)):
            if family(versions[i]) != family(versions[i - 1]):
                ax.axhline(i - 0.5, color=GRID["light"], lw=1, marker="", ls="-")
        for at, version in enumerate(versions):
            row = _one(table, protocol=protocol, version=version)
            ax.errorbar(row["mean"], at, xerr=whiskers(row), capsize=2.5, elinewidth=1.3, **style(version))
        ax.axvline(chance, color=INK["light"], ls="--", lw=1.2, marker="")
        ax.set_title(heading, fontsize=10)
        ax.set_xlabel(xlabel)
        ax.xaxis.set_major_formatter(lambda v, _: f"{v:.0%}")
        ax.tick_params(axis="x", labelsize=SMALL)
    axes[0, 0].set_xlim(-0.02, min(1.03, axes[0, 0].get_xlim()[1]))
    axes[0, 0].locator_params(axis="x", nbins=5)
    _legend(figure, [*_families(versions), _dash(f"chance, {chance:.1%}")], columns=2)
    return figure


def rank_stability(matrix: np.ndarray, versions: Sequence[str], published: Mapping[str, int]) -> Figure:
    """How often each version has each rank, and the one rank that was published.

    Parameters
    ----------
    matrix
        (V, R), share of the draws of seeds in which the version of the row has the rank 1 … R of the column.
    versions
        (V,) names of the rows.
    published
        Version → published rank; a version may be missing.
    """
    if np.shape(matrix)[0] != len(versions) or not np.allclose(np.sum(matrix, axis=1), 1):
        raise ValueError(f"matrix has shape {np.shape(matrix)}; one row for each of {len(versions)} versions, sum 1")
    ranks = np.shape(matrix)[1]
    figure, ax = plt.subplots(figsize=(WIDTH, 1.3 + 0.27 * len(versions)))
    _rows(ax, versions)
    for at, (version, row) in enumerate(zip(versions, matrix)):
        for rank, share in enumerate(row, 1):
            fill = FILL * share / np.max(matrix)
            ax.add_patch(Rectangle((rank - 0.5, at - 0.5), 1, 1, fc=PALETTE[0], alpha=fill, lw=0))
            if share >= 0.01:
                ax.text(rank, at, f"{100 * share:.0f}", ha="center", va="center", fontsize=SMALL)
        if version in published:
            place = published[version]
            if not 1 <= place <= ranks:
                raise ValueError(f"published rank of {version} is {place}; ranks go from 1 to {ranks}")
            frame = Rectangle((place - 0.45, at - 0.42), 0.9, 0.84, fc="none", ec=WRONG, lw=1.8)
            ax.add_patch(frame)
    ax.set(xlim=(0.4, ranks + 0.6), xlabel="rank by R@1 (numbers: per cent of the draws of seeds)")
    ax.set_xticks(range(1, ranks + 1))
    ax.tick_params(axis="x", labelsize=SMALL)
    ax.grid(visible=False)
    blue = {"color": PALETTE[0], "marker": "s", "ls": "none", "ms": 9, "lw": 0}
    frame = {"color": WRONG, "marker": "s", "ls": "none", "ms": 9, "mfc": "none", "mew": 1.8}
    _legend(figure, [_mark("measured (fuller colour: more often)", alpha=FILL, **blue), _mark("published", **frame)])
    return figure


#: How the published evaluator is simulated → what stands in the legend, colour, marker, offset of the row.
EVALUATORS = {
    "sound": ("as trained", PALETTE[0], "o", -0.22),
    "as_v0": ("loaded as v0", PALETTE[2], "s", 0.0),
    "dropped": ("norms, projections and output maps not loaded", WRONG, "^", 0.22),
}


def defects(table: pd.DataFrame, published: Mapping[str, str], chance: float = 0.2) -> Figure:
    """How often the own caption wins among five: with the weights that were trained, and with those that were loaded.

    Parameters
    ----------
    table
        Columns version, evaluator (of :data:`EVALUATORS`), mean, low, high.
    published
        Version → what was published about it, written beside its row; a version may be missing.
    chance
        Share of a guess.
    """
    versions = in_order(table["version"])
    figure, ax = plt.subplots(figsize=(WIDTH, 1.2 + 0.31 * len(versions)))
    _rows(ax, versions)
    for at in range(0, len(versions), 2):
        ax.axhspan(at - 0.5, at + 0.5, color=GRID["light"], alpha=0.35, lw=0)
    for at, version in enumerate(versions):
        for evaluator, (_, colour, marker, offset) in EVALUATORS.items():
            row = _one(table, version=version, evaluator=evaluator)
            looks = {"color": colour, "marker": marker, "linestyle": "none", "ms": 4.5}
            ax.errorbar(row["mean"], at + offset, xerr=whiskers(row), capsize=0, elinewidth=1.2, **looks)
    ax.axvline(chance, color=INK["light"], ls="--", lw=1.2, marker="")
    ax.set(xlim=(-0.02, 1.03), xlabel="pictures whose own caption wins among five")
    ax.xaxis.set_major_formatter(lambda v, _: f"{v:.0%}")
    beside = ax.secondary_yaxis("right")
    beside.set_yticks(range(len(versions)), [published.get(v, "–") for v in versions])
    beside.tick_params(length=0, labelsize=SMALL)
    beside.spines["right"].set_visible(False)
    beside.set_ylabel("published verdict", rotation=270, va="bottom")
    marks = [_mark(title, color=c, marker=m, ls="none") for title, c, m, _ in EVALUATORS.values()]
    _legend(figure, [*marks, _dash(f"chance, {chance:.0%}")], columns=2)
    return figure


# -- attention --------------------------------------------------------------------------------------------------------


def attention_on_scene(
    picture: np.ndarray, words: Sequence[str], weights: np.ndarray, cells: np.ndarray, grid: int = 8
) -> Figure:
    """A picture, and for each word of a caption which of its objects the word attends to.

    Discs let the picture through; their areas are the weights. Below a word stands its largest weight.

    Parameters
    ----------
    picture
        uint8 (H, H, 3).
    words
        (T,) the caption.
    weights
        (T, M), each word's weights on the cells; they need not sum to 1.
    cells
        (M, 2), row and column of the cells, from −1 (first) to 1 (last), as
        :class:`~vqa_core.experiments.scene_encoders.NamedCells` has them (before any scaling of features).
    grid
        Cells on a side of the picture.
    """
    picture, weights, cells = np.asarray(picture), np.asarray(weights, float), np.asarray(cells, float)
    if weights.shape != (len(words), len(cells)) or cells.shape[1:] != (2,):
        raise ValueError(f"weights {weights.shape} and cells {cells.shape}: needs ({len(words)}, M) and (M, 2)")
    if np.abs(cells).max() > 1:
        raise ValueError(
            f"cells reach {np.abs(cells).max():.2f}; places go from -1 to 1, so take raw tokens, not scaled ones"
        )
    side = picture.shape[0]
    centres = ((cells + 1) / 2 * (grid - 1) + 0.5) / grid * side  # (M, 2), pixels down and to the right
    columns, span = 6, 2
    beside = (columns - span) * span
    lines = span + max(0, -(-(len(words) - beside) // columns))
    figure = plt.figure(figsize=(WIDTH, 1.52 * lines))
    places = figure.add_gridspec(lines, columns)
    whole = figure.add_subplot(places[:span, :span])
    whole.imshow(picture, interpolation="nearest", extent=(0, side, side, 0))
    free = [(r, c) for r in range(lines) for c in range(columns) if r >= span or c >= span]
    zoom = 8  # so that discs are round on large pixels
    large = picture.repeat(zoom, 0).repeat(zoom, 1) / 255  # (zoom · H, zoom · H, 3)
    y, x = (np.indices(large.shape[:2]) + 0.5) / zoom
    for word, weight, (r, c) in zip(words, weights, free):
        ax = figure.add_subplot(places[r, c])
        radii = radius(weight, side)  # (M,)
        inside = (np.hypot(y[..., None] - centres[:, 0], x[..., None] - centres[:, 1]) <= radii).any(-1)
        veiled = np.where(inside[..., None], large, 0.8 + 0.2 * large.mean(-1, keepdims=True))
        ax.imshow(veiled, interpolation="nearest", extent=(0, side, side, 0))
        for (down, along), size in zip(centres, radii):
            ax.add_patch(Circle((along, down), size, fc="none", ec=INK["light"], lw=1))
        ax.set_xlabel(f"{word}\n{weight.max():.0%}", fontsize=SMALL, labelpad=3)
    for ax in figure.axes:
        ax.set(xticks=[], yticks=[], xlim=(0, side), ylim=(side, 0))
        ax.grid(visible=False)
        ax.spines[:].set(visible=True, color=GRID["light"])
    return figure


def radius(weight: np.ndarray, side: int) -> np.ndarray:
    """Radius of a disc whose area is as its weight, in pixels: a fifth of the picture's side at weight 1."""
    return 0.2 * side * np.sqrt(weight)


# -- costs ------------------------------------------------------------------------------------------------------------

#: Price → how the axis is called, and its unit.
PRICES = {"parameters": ("parameters", ""), "flops": ("FLOPs per pair", ""), "seconds": ("time per pair", "s")}


def cost_against_recall(table: pd.DataFrame) -> Figure:
    """R@1 over real tokens against parameters, operations and time; every point is named.

    Parameters
    ----------
    table
        Columns version, those of :data:`PRICES`, mean, low, high. An axis with a price of 0 is linear up to the lowest
        other price, and logarithmic from there.
    """
    versions = in_order(table["version"])
    rows = [_one(table, version=v) for v in versions]
    figure, axes = plt.subplots(len(PRICES), 1, figsize=(WIDTH, 8.8), sharey=True)
    for ax, (price, (label, unit)) in zip(axes, PRICES.items()):
        prices = [float(row[price]) for row in rows]
        least = min(p for p in prices if p > 0)
        if min(prices) > 0:
            ax.set_xscale("log")
            ax.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        else:
            decades = range(math.ceil(math.log10(least)), math.ceil(math.log10(max(prices))) + 1)
            ax.set_xscale("symlog", linthresh=least, linscale=0.4)
            ax.set_xticks([0, *(10.0**k for k in decades)])
        ax.xaxis.set_minor_locator(NullLocator())
        ax.xaxis.set_major_formatter(EngFormatter(unit, sep="\N{THIN SPACE}"))
        for version, row, at in zip(versions, rows, prices):
            ax.errorbar(at, row["mean"], yerr=whiskers(row), elinewidth=0.9, ms=5, **style(version))
        ax.set(xlabel=label, ylabel="R@1")
        ax.yaxis.set_major_formatter(lambda v, _: f"{v:.0%}")
        ax.margins(x=0.12, y=0.16)
    _legend(figure, _families(versions))
    figure.draw_without_rendering()  # the layout is settled, so that names can be measured
    for ax, price in zip(axes, PRICES):
        spread_names(ax, versions, [(float(row[price]), row["low"], row["mean"], row["high"]) for row in rows])
    return figure


NORM_COLOURS = {"pre": PALETTE[0], "post": PALETTE[1]}
NORM_TITLES = {"pre": "Pre-LN", "post": "Post-LN"}


def norm_places(accuracies: pd.DataFrame, gradients: pd.DataFrame) -> Figure:
    """Pre-LN and Post-LN: accuracy by learning rate, with warm-up and without; gradients by layer at the start.

    Parameters
    ----------
    accuracies
        Columns norm, warmup (``"warm"``, ``"cold"``), rate, mean, low, high.
    gradients
        Columns norm, layer, mean, low, high.
    """
    figure, (left, right) = plt.subplots(1, 2, figsize=(WIDTH, 3.6))
    for norm, colour in NORM_COLOURS.items():
        for warmup, line in {"warm": "-", "cold": "--"}.items():
            rows = accuracies[(accuracies["norm"] == norm) & (accuracies["warmup"] == warmup)].sort_values("rate")
            bars = [(rows["mean"] - rows["low"]).clip(lower=0), (rows["high"] - rows["mean"]).clip(lower=0)]
            looks = {"color": colour, "ls": line, "marker": MARKERS[norm == "post"], "ms": 5, "capsize": 2}
            left.errorbar(rows["rate"], rows["mean"], yerr=bars, **looks)
        rows = gradients[gradients["norm"] == norm]
        right.plot(rows["layer"], rows["mean"], color=colour, marker=MARKERS[norm == "post"], ms=5)
        right.fill_between(rows["layer"], rows["low"], rows["high"], color=colour, alpha=0.15, lw=0)
    left.set(xscale="log", xlabel="learning rate", ylabel="accuracy")
    left.yaxis.set_major_formatter(lambda v, _: f"{v:.0%}")
    right.set(xlabel="layer", ylabel="gradient norm at the start", ylim=(0, None))
    right.set_xticks(sorted(gradients["layer"].unique()))
    names = [_mark(NORM_TITLES[n], color=c, marker=MARKERS[n == "post"], ls="none") for n, c in NORM_COLOURS.items()]
    lines = [_mark(t, color=INK["light"], ls=s, marker="") for t, s in {"warm-up": "-", "no warm-up": "--"}.items()]
    _legend(figure, [*names, *lines], columns=4)
    return figure


def spread_names(ax, names: Sequence[str], points: Sequence[tuple[float, float, float, float]]) -> None:
    """Write a name at each point, as near as it can be without touching a name, a point or a whisker.

    Axes and layout must be as they will be drawn. A name that had to move away is tied to its point by a line.

    Parameters
    ----------
    names
        (V,) texts.
    points
        (V,) x, low, y, high in data coordinates; from low to high goes a whisker.

    Raises
    ------
    ValueError
        Where a name finds no room inside the axes.
    """
    scale = 72 / ax.figure.dpi  # everything below is in points of 1/72 inch; boxes are left, bottom, right, top
    x, low, y, high = np.transpose(points)
    at, foot, head = (ax.transData.transform(np.stack([x, v], axis=1)) * scale for v in (y, low, high))  # (V, 2) each
    texts = [
        ax.annotate(name, here, (0, 0), textcoords="offset points", fontsize=SMALL, annotation_clip=False)
        for name, here in zip(names, zip(x, y))
    ]
    sizes = [np.array(text.get_window_extent().size) * scale for text in texts]
    bars = np.concatenate([foot - (1, 0), head + (1, 0)], axis=1)  # (V, 4)
    rng = np.random.default_rng(0)  # who comes first has the choice: try some orders, keep the one with short ties
    orders = [np.argsort(key * sign, kind="stable") for key in at.T for sign in (1, -1)]
    orders += [rng.permutation(len(names)) for _ in range(12)]
    found = [_place(order, at, sizes, bars, ax.bbox.extents * scale) for order in orders]
    moves = min(
        (f for f in found if f), key=lambda f: sum(np.sum(_gap(m, s) ** 2) for m, s in zip(f, sizes)), default=0
    )
    if not moves:
        raise ValueError(f"no room for {len(names)} names beside their points; make the axes larger")
    for text, move, size, here in zip(texts, moves, sizes, zip(x, y)):
        text.set_position(move)
        text.set_in_layout(False)
        gap = _gap(move, size)
        if np.hypot(*gap) > NEAR:
            line = {"arrowstyle": "-", "color": INK["light"], "lw": 0.6, "shrinkA": 0, "shrinkB": 3}
            ax.annotate("", here, gap, textcoords="offset points", arrowprops=line).set_in_layout(False)


NEAR = 9  # points; a name further from its point than that is tied to it


def _gap(move: np.ndarray, size: np.ndarray) -> np.ndarray:
    """From a point to the nearest edge of a name of this size, whose lower left corner is moved from it."""
    return np.clip(0, move, move + size)


def _place(order, at: np.ndarray, sizes, bars: np.ndarray, frame: np.ndarray) -> list[np.ndarray] | None:
    """Offset of every name, when they choose in this order; None where one finds no room."""
    marks = np.concatenate([at - 4, at + 4], axis=1)  # (V, 4)
    texts, ties = np.empty((0, 4)), np.empty((0, 4))
    moves: list = [None] * len(at)
    for k in order:
        others = marks[np.hypot(*(at - at[k]).T) > 4]  # a tie may not cross them
        for move in _moves(sizes[k]):
            low, high = at[k] + move, at[k] + move + sizes[k]
            gap = _gap(move, sizes[k])
            tied = np.hypot(*gap) > NEAR
            dots = at[k] + np.linspace(0.1, 1, 15 if tied else 0)[:, None] * gap  # (15, 2), along the tie
            dots, box = np.tile(dots, 2), np.concatenate([low, high])[None]
            if (
                (low > frame[:2]).all()
                and (high < frame[2:]).all()
                and not any(_touches(box, some).any() for some in (marks, bars, texts, ties))
                and not any(_touches(dots, some).any() for some in (others, texts, ties))
            ):
                texts, ties = np.concatenate([texts, box]), np.concatenate([ties, dots])
                moves[k] = move
                break
        else:
            return None
    return moves


def _moves(size: np.ndarray):
    """Offsets of a name's lower left corner from its point, the nearest first."""
    for far in range(6, 160, 3):
        for angle in np.deg2rad((0, 180, 30, -30, 150, -150, 60, -60, 120, -120, 90, -90)):
            way = np.round([np.cos(angle), np.sin(angle)], 6)
            yield far * way - size * ((1 - np.sign(way[0])) / 2, 0.5)


def _touches(boxes: np.ndarray, others: np.ndarray) -> np.ndarray:
    """Which of the boxes (N, 4) come within a point of any of the others (M, 4): bool (N,)."""
    apart = (boxes[:, None, :2] > others[:, 2:] + 1) | (boxes[:, None, 2:] < others[:, :2] - 1)  # (N, M, 2)
    return (~apart.any(-1)).any(-1)
