"""The drawings of the chapter on multimodal transformers: each function takes a table and returns a figure.

One colour and one marker for each group of methods, the same in every figure.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from vqa_core.experiments.fusion_drawing import PRICES, frontier, whiskers
from vqa_core.experiments.transformers import METHODS, OFFSPRING
from vqa_core.experiments.transformers_readout import title
from vqa_core.figures import GRID, INK, LINESTYLES, MARKERS, PALETTE

#: Group → how it is called in legends.
GROUPS = {
    "layout": "six layouts",
    "few tokens": "few tokens in between",
    "cheaper": "early concatenation, cheaper",
    "one side hidden": "one side hidden or exchanged",
}
COLOURS = dict(zip(GROUPS, (PALETTE[0], PALETTE[1], PALETTE[4], PALETTE[5])))
SHAPES = dict(zip(GROUPS, "osDP"))


def group(name: str) -> str:
    """Group of a method, or of what was made of the teacher: a key of :data:`GROUPS`."""
    if name in METHODS:
        return METHODS[name].group
    return "one side hidden" if name == "shuffled" else "cheaper"


#: All methods in the order of the rows, with what becomes of the teacher in its group.
ORDER = [n for g in GROUPS for n in (*METHODS, *OFFSPRING, "shuffled") if group(n) == g]


def style(name: str) -> dict[str, Any]:
    """Colour and marker of a method."""
    return {"color": COLOURS[group(name)], "marker": SHAPES[group(name)], "linestyle": "none"}


def legend(figure: Figure, names: Sequence[str], columns: int = 2) -> None:
    """Below the drawing: what the colours and markers of these methods mean."""
    first = {group(n): n for n in reversed(names)}
    marks = [plt.Line2D([], [], **style(first[g]), label=GROUPS[g]) for g in GROUPS if g in first]
    figure.legend(handles=marks, loc="outside lower center", ncols=columns, fontsize=8)


def _rows(ax, names: Sequence[str]) -> None:
    """Name the rows, top to bottom, and part the groups by lines."""
    ax.set_yticks(range(len(names)), [title(n) for n in names])
    ax.set_ylim(len(names) - 0.4, -0.6)
    ax.grid(axis="y", visible=False)
    ax.tick_params(axis="y", length=0, labelsize=8.5)
    for i in range(1, len(names)):
        if group(names[i]) != group(names[i - 1]):
            ax.axhline(i - 0.5, color=GRID["light"], lw=1)


def pattern_panels(patterns: Mapping[str, Sequence[np.ndarray]], image: int) -> Figure:
    """A column for each layout, a row for each layer: filled where the token of a row reads that of a column.

    Parameters
    ----------
    patterns
        Layout → bool (N, N) for each layer, from :func:`~vqa_core.experiments.transformers_readout.patterns`.
    image
        How many of the tokens are image tokens; they come first.
    """
    depth = len(next(iter(patterns.values())))
    figure, axes = plt.subplots(depth, len(patterns), figsize=(9.6, 1.0 + 1.5 * depth), squeeze=False)
    for column, (name, maps) in enumerate(patterns.items()):
        for layer, pattern in enumerate(maps):
            ax, n = axes[layer, column], len(pattern)
            for (q, k), reads in np.ndenumerate(pattern):
                within = (q < image) == (k < image)
                face = (COLOURS["layout"] if within else COLOURS["few tokens"]) if reads else "none"
                hatch = "" if within or not reads else "////"
                box = {"facecolor": face, "edgecolor": INK["light"], "lw": 0.6, "hatch": hatch, "alpha": 0.85}
                ax.add_patch(plt.Rectangle((k, q), 1, 1, **box))
            if n > image:  # early summation has no text tokens
                ax.axhline(image, color=INK["light"], lw=1.6)
                ax.axvline(image, color=INK["light"], lw=1.6)
            ax.set(xlim=(-0.1, n + 0.1), ylim=(n + 0.1, -0.1), aspect="equal", anchor="N")
            ax.axis("off")
        axes[0, column].set_title(name.replace("_", "\n", 1).replace("_", " "), fontsize=8.5)
    for layer in range(depth):
        place = {"xycoords": "axes fraction", "rotation": 90, "ha": "right", "va": "center"}
        axes[layer, 0].annotate(f"layer {layer + 1}", (-0.08, 0.5), fontsize=8.5, **place)
    marks = [
        plt.Rectangle((0, 0), 1, 1, facecolor=COLOURS["layout"], label="reads its own modality"),
        plt.Rectangle((0, 0), 1, 1, facecolor=COLOURS["few tokens"], hatch="////", label="reads the other modality"),
    ]
    figure.legend(handles=marks, loc="outside lower center", ncols=2, fontsize=8)
    return figure


def family_panels(table: pd.DataFrame, chance: Mapping[str, float]) -> Figure:
    """A panel for each family of ``chance``, a row for each method of the table; bars start at chance.

    ``table`` is that of :func:`~vqa_core.experiments.readout.accuracy_table`.
    """
    by = table.set_index(["unit", "family"])
    names = list(dict.fromkeys(table["unit"]))
    figure, axes = plt.subplots(1, len(chance), figsize=(9.6, 1.5 + 0.22 * len(names)), sharey=True, squeeze=False)
    for ax, (family, level) in zip(axes.flat, chance.items()):
        _rows(ax, names)
        for at, name in enumerate(names):
            row = by.loc[(name, family)]
            ax.barh(at, row["mean"] - level, left=level, height=0.64, color=COLOURS[group(name)], alpha=0.3, lw=0)
            ax.errorbar(row["mean"], at, xerr=whiskers(row), capsize=2, lw=1.2, ms=3.8, elinewidth=1.2, **style(name))
        ax.axvline(level, color=INK["light"], ls="--", lw=0.9)
        ax.set_title(family.replace("_", " "), fontsize=9)
        ax.set(xlim=(0, 1.03), xticks=[0, 0.5, 1], xticklabels=["0", "½", "1"])
    legend(figure, names, columns=4)
    return figure


def price_panels(priced: pd.DataFrame) -> Figure:
    """Accuracy against each of :data:`~vqa_core.experiments.fusion_drawing.PRICES`; the frontier is numbered and named.

    ``priced`` has the methods as index, the prices and ``mean`` as columns.
    """
    figure, axes = plt.subplots(2, 2, figsize=(8.0, 8.0), sharey=True)
    for ax, (price, label) in zip(axes.flat, PRICES.items()):
        for name, row in priced.iterrows():
            ax.plot(row[price], row["mean"], **style(name))
        front = frontier(priced, price)
        for number, name in enumerate(front, 1):
            at = priced.loc[name, price], priced.loc[name, "mean"]
            ax.annotate(str(number), at, xytext=(-4, 5), textcoords="offset points", ha="right", fontsize=8.5)
        named = "\n".join(f"{number} {title(name)}" for number, name in enumerate(front, 1))
        ax.set_title(named, loc="left", fontsize=8.5)  # above, where no point lies
        ax.set(xscale="log", xlabel=label)
        ax.xaxis.set_minor_formatter("")
        ax.margins(x=0.12, y=0.12)
    for ax in axes[:, 0]:
        ax.set_ylabel("accuracy")
    legend(figure, list(priced.index))
    return figure


def pruning_panels(table: pd.DataFrame, lines: Mapping[str, float]) -> Figure:
    """Accuracy against the share that is gone, a panel for heads and one for weights.

    Parameters
    ----------
    table
        That of :func:`~vqa_core.experiments.transformers_readout.pruning_table`.
    lines
        Name → where a horizontal line stands.
    """
    figure, axes = plt.subplots(1, 2, figsize=(8.2, 3.4), sharey=True)
    for ax, (way, some), colour, marker in zip(axes, table.groupby("way", sort=False), PALETTE, MARKERS):
        some = some.sort_values("share")
        error = [some["mean"] - some["low"], some["high"] - some["mean"]]
        ax.errorbar(some["share"], some["mean"], yerr=np.clip(error, 0, None), color=colour, marker=marker, capsize=2)
        for (name, level), dash in zip(lines.items(), LINESTYLES[1:]):
            ax.axhline(level, color=INK["light"], lw=1, ls=dash, label=f"{name} {level:.1%}")
        ax.set(xlabel=f"share of the {way} that is gone", xlim=(-0.03, 1.0))
        ax.xaxis.set_major_formatter(lambda v, _: f"{v:.0%}")
    axes[0].set_ylabel("accuracy")
    axes[0].legend(fontsize=8, loc="lower left")
    return figure


def learning_curves(curves: pd.DataFrame) -> Figure:
    """Validation accuracy by epoch: the mean of each method, in the look of its group, with its interval."""
    figure, ax = plt.subplots(figsize=(8.0, 4.2))
    looks = ((c, m, dash) for dash in LINESTYLES for c, m in zip(PALETTE, MARKERS))
    for (name, some), (colour, marker, dash) in zip(curves.groupby("unit", sort=False), looks):
        ax.plot(some["epoch"], some["mean"], color=colour, marker=marker, ls=dash, label=title(name))
        ax.fill_between(some["epoch"], some["low"], some["high"], color=colour, alpha=0.1, lw=0)
    ax.set(xlabel="epoch", ylabel="validation accuracy")
    ax.xaxis.get_major_locator().set_params(integer=True)
    ax.legend(fontsize=8, loc="center left", bbox_to_anchor=(1, 0.5))
    return figure


def two_ways(tables: Mapping[str, pd.DataFrame], names: Mapping[str, str]) -> Figure:
    """A panel for each quantity: the same layer computed in two ways, against tokens, both logarithmic.

    Parameters
    ----------
    tables
        Label of the axis → table of :func:`~vqa_core.experiments.transformers_readout.curves_table`.
    names
        Unit → name in the legend.
    """
    figure, axes = plt.subplots(1, len(tables), figsize=(8.6, 3.6))
    for ax, (label, table) in zip(axes, tables.items()):
        for (unit, some), colour, marker, dash in zip(
            table.groupby("unit", sort=False), PALETTE, MARKERS, LINESTYLES
        ):  # fmt: skip
            ax.plot(some["tokens"], some["mean"], color=colour, marker=marker, ls=dash, label=names[unit])
            low = some["low"].clip(lower=some["mean"] / 4)  # a logarithmic axis has no room for an end at 0
            ax.fill_between(some["tokens"], low, some["high"], color=colour, alpha=0.15, lw=0)
        sizes = sorted(set(table["tokens"]))
        ax.set(xscale="log", yscale="log", xlabel="tokens of both sides", ylabel=label)
        ax.set_xticks(sizes, [f"{s:,}" for s in sizes], fontsize=8)
        ax.minorticks_off()
    axes[0].legend(fontsize=8.5)
    return figure
