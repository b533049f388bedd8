"""The drawings of chapter 10: each function takes arrays or a table and returns a matplotlib figure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from vqa_core.experiments.counterfactual import UNITS
from vqa_core.experiments.counterfactual_readout import BASELINE_TITLES, Example
from vqa_core.figures import INK, MARKERS, PALETTE

LOOKS = {True: {"color": PALETTE[1], "marker": MARKERS[1]}, False: {"color": PALETTE[0], "marker": MARKERS[0]}}
OTHER = {"color": PALETTE[5], "marker": MARKERS[5]}


def look(unit: str) -> dict[str, str]:
    """Colour and marker: whether trained with an effect term, without one, or no network at all."""
    return OTHER if unit in BASELINE_TITLES else LOOKS[UNITS[unit].counterfactual]


def _bare(ax) -> None:
    ax.set(xticks=[], yticks=[])
    ax.grid(visible=False)
    for side in ax.spines.values():
        side.set_visible(False)


def causal_graph() -> tuple[Figure, pd.DataFrame]:
    """Two graphs: how an answer comes about, and what remains when the maps are set; and the edges as a table."""
    panels = {
        "as it is": ("AY XA XY VY", "the maps are made of the picture"),
        "do(A = Ā)": ("AY XY VY", "the maps are set: nothing leads to them"),
    }
    names = {"X": "features X", "A": "maps A", "V": "vector v", "Y": "answer Y"}
    places = {"X": (0, 1), "A": (1, 2), "V": (1, 0), "Y": (2, 1)}
    figure, axes = plt.subplots(1, 2, figsize=(7.4, 2.9))
    for ax, (title, (edges, note)) in zip(axes, panels.items()):
        frames = {}
        for key, (x, y) in places.items():
            is_set = key == "A" and "do" in title
            box = {"boxstyle": "round,pad=0.4", "fc": "none", "ec": PALETTE[1] if is_set else PALETTE[0], "lw": 1.6}
            text = "maps Ā" if is_set else names[key]
            frames[key] = ax.text(x, y, text, ha="center", va="center", bbox=box).get_bbox_patch()
        for a, b in edges.split():
            ends = {"patchA": frames[a], "patchB": frames[b], "shrinkA": 1, "shrinkB": 2}
            style = {"arrowstyle": "-|>", "color": INK["light"], "lw": 1.1}
            ax.annotate("", places[b], places[a], arrowprops=style | ends)
        ax.set(xlim=(-0.6, 2.6), ylim=(-0.6, 2.5), title=title)
        ax.set_xlabel(note, fontsize=9)
        _bare(ax)
    rows = [
        {"graph": title, "from": names[a], "to": names[b]}
        for title, (edges, _) in panels.items()
        for a, b in edges.split()
    ]
    return figure, pd.DataFrame(rows)


def kinds(maps: Mapping[str, np.ndarray]) -> Figure:
    """Maps by kind (rows, columns) each, with one scale: the own map, and what replaces it."""
    highest = max(float(m.max()) for m in maps.values())
    figure, axes = plt.subplots(1, len(maps), figsize=(1.7 * len(maps), 2.1))
    for ax, (name, values) in zip(axes, maps.items()):
        ax.imshow(values, cmap="viridis", vmin=0, vmax=highest)
        ax.set_title(name, fontsize=9)
        _bare(ax)
    return figure


def forest(
    table: pd.DataFrame, *, lines: Mapping[str, float] | None = None, zero: bool = False, xlabel: str = ""
) -> Figure:
    """A panel for each metric, a row for each unit: its number and its interval.

    Parameters
    ----------
    table
        Columns unit, title, metric, mean, low, high.
    lines
        Metric → where a dotted line stands.
    zero
        A line at 0, and the axis in percentage points: for differences.
    """
    metrics, titles = list(dict.fromkeys(table["metric"])), list(dict.fromkeys(table["title"]))
    figure, axes = plt.subplots(
        1, len(metrics), figsize=(2.4 + 1.75 * len(metrics), 1.1 + 0.27 * len(titles)), sharey=True, squeeze=False
    )
    for ax, metric in zip(axes.flat, metrics):
        for r in table[table["metric"] == metric].to_dict("records"):
            ends = [[r["mean"] - r["low"]], [r["high"] - r["mean"]]]
            ax.errorbar(
                r["mean"], titles.index(r["title"]), xerr=ends, ls="none", capsize=2, elinewidth=1.2, **look(r["unit"])
            )
        if zero:
            ax.axvline(0, color=INK["light"], lw=1)
            ax.xaxis.set_major_formatter(lambda v, _: f"{100 * v:+.0f}".replace("-", "−").replace("+0", "0"))
        if metric in (lines or {}):
            ax.axvline(lines[metric], color=INK["light"], lw=1.2, ls=":")
        ax.set_title(metric, fontsize=9)
        ax.set_yticks(range(len(titles)), titles)
        ax.set_ylim(len(titles) - 0.4, -0.6)
        ax.grid(axis="y", visible=False)
        ax.tick_params(labelsize=8.5)
        ax.locator_params(axis="x", nbins=4)
    figure.supxlabel(xlabel, fontsize=9)
    return figure


def learning_curves(curves: pd.DataFrame) -> Figure:
    """Validation accuracy by epoch: columns unit, epoch, mean, low, high."""
    figure, ax = plt.subplots(figsize=(6.4, 3.4))
    for unit, some in curves.groupby("unit", sort=False):
        ends = np.clip([some["mean"] - some["low"], some["high"] - some["mean"]], 0, None)
        ax.errorbar(
            some["epoch"], some["mean"], yerr=ends, ls="-" if UNITS[unit].counterfactual else "--", capsize=2,
            elinewidth=0.9, label=UNITS[unit].title, **look(unit),
        )  # fmt: skip
    ax.set(xlabel="epoch", ylabel="validation accuracy")
    ax.xaxis.get_major_locator().set_params(integer=True)
    ax.legend(fontsize=9)
    return figure


def panels(found: Sequence[Example], titles: Mapping[str, str], score: str) -> Figure:
    """A column for each case: the picture with the region's outline, then the map of each unit over it.

    Parameters
    ----------
    found
        Cases, with the same units.
    titles
        Unit → what stands beside its row.
    score
        Name of the score under each map.
    """
    units = list(found[0].maps)
    figure, axes = plt.subplots(
        1 + len(units), len(found), figsize=(1.55 * len(found) + 0.6, 1.75 * (1 + len(units))), squeeze=False
    )
    for column, e in zip(axes.T, found):
        height, width = e.region.shape
        extent = (0, width, height, 0)
        for ax, unit in zip(column, (None, *units)):
            ax.imshow(e.picture, cmap="gray", vmin=0, vmax=1, extent=extent)
            if unit is not None:
                ax.imshow(e.maps[unit], cmap="inferno", alpha=0.65, extent=extent, vmin=0)
            inside = (np.arange(width) + 0.5, np.arange(height) + 0.5)
            ax.contour(*inside, e.region.astype(float), levels=[0.5], colors=PALETTE[0], linewidths=1.1)
            _bare(ax)
        column[0].set_title(e.answers[0], fontsize=9)
        for ax, unit, said in zip(column[1:], units, e.answers[1:]):
            ax.set_xlabel(f"{said} {'✓' if said == e.answers[0] else '✗'}\n{score} {e.score[unit]:.1%}", fontsize=8)
    for ax, name in zip(axes[:, 0], ("with its mass" if found[0].picture.ndim == 2 else "picture", *titles.values())):
        ax.set_ylabel(name, fontsize=9)
    return figure


def profiles(table: pd.DataFrame) -> Figure:
    """Attention against distance: columns unit, distance, mean, low, high; a line at 1, where all cells are equal."""
    figure, ax = plt.subplots(figsize=(6.0, 3.3))
    for unit, some in table.groupby("unit", sort=False):
        ends = np.clip([some["mean"] - some["low"], some["high"] - some["mean"]], 0, None)
        style = "-" if UNITS[unit].counterfactual else "--"
        ax.errorbar(
            some["distance"], some["mean"], yerr=ends, ls=style, capsize=2, label=UNITS[unit].title, **look(unit)
        )
    ax.axhline(1, color=INK["light"], lw=1, ls=":")
    ax.set(xlabel="cells from the centre of the mass", ylabel="attention / its mean")
    ax.legend(fontsize=9)
    return figure


def by_answer(table: pd.DataFrame, ylabel: str) -> Figure:
    """Scores of maps where answers are right and where they are wrong: columns unit, title, answer, mean, low, high."""
    titles = list(dict.fromkeys(table["title"]))
    figure, ax = plt.subplots(figsize=(5.6, 3.0))
    for answer, shift, face in (("right", -0.1, None), ("wrong", 0.1, "none")):
        for r in table[table["answer"] == answer].to_dict("records"):
            at = titles.index(r["title"]) + shift
            ends = [[r["mean"] - r["low"]], [r["high"] - r["mean"]]]
            shown = look(r["unit"])
            ax.errorbar(at, r["mean"], yerr=ends, ls="none", capsize=2, markerfacecolor=face or shown["color"], **shown)
            ax.annotate(
                answer, (at, r["mean"]), xytext=(-30 if shift < 0 else 7, -3), textcoords="offset points", fontsize=8
            )
    ax.set_xticks(range(len(titles)), titles)
    ax.set(xlim=(-0.5, len(titles) - 0.5), ylabel=ylabel)
    return figure
