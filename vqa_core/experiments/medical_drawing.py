"""The drawings of the chapter on medical VQA: each function takes a table and returns a matplotlib figure."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping, Sequence

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from vqa_core.data.phantoms import PhantomSet
from vqa_core.experiments.fusion_drawing import whiskers
from vqa_core.figures import GRID, INK, MARKERS, PALETTE

WIDTH = 7.4  # inches; a page is 720 pixels wide
OUTLINE = "#ffb02e"  # of a finding, on grey pictures


def phantom_gallery(phantoms: PhantomSet, rows: Sequence[int]) -> Figure:
    """Phantoms with a question and its answer each; what the answer depends on is outlined.

    Parameters
    ----------
    phantoms
        The set.
    rows
        Positions of the questions, a multiple of four.
    """
    lines = len(rows) // 4
    figure, axes = plt.subplots(2 * lines, 4, figsize=(10.4, 3.9 * lines), height_ratios=[1, 0.42] * lines)
    figure.get_layout_engine().set(hspace=0, h_pad=0.1)
    for ax, below, row in zip(axes[::2].flat, axes[1::2].flat, rows):
        sample = phantoms[row]
        ax.imshow(phantoms.picture(sample.picture_id))
        mask = phantoms.region_mask(row)
        if 0 < mask.mean() < 0.25:  # whole-body answers need no outline
            ax.contour(mask, levels=[0.5], colors=OUTLINE, linewidths=1.4)
        ax.set(xticks=[], yticks=[])
        ax.spines[:].set_visible(False)
        title = f"{sample.family}: {sample.meta['modality']}, {sample.meta['region']}"
        ax.set_title(title, fontsize=10, color="#5c6470", loc="left")
        below.text(0.5, 1, textwrap.fill(sample.question, 28), ha="center", va="top", fontsize=11)
        below.text(0.5, 0.04, sample.answer, ha="center", va="bottom", fontsize=12, weight="bold", color="#0a5c8a")
        below.axis("off")
    return figure


def phantom_counts(table: pd.DataFrame) -> Figure:
    """How many phantoms show what: findings by region of the body, and modalities by plane; shades go from 0 to most.

    Parameters
    ----------
    table
        Columns of (``"finding"``, ``"view"``), row, column, pictures; every combination of row and column once.
    """
    titles = {"finding": "finding × region", "view": "modality × plane"}
    figure, axes = plt.subplots(1, len(titles), figsize=(WIDTH, 3.4))
    for ax, (of, title) in zip(axes, titles.items()):
        cells = table[table["of"] == of]
        rows, columns = (list(dict.fromkeys(cells[name])) for name in ("row", "column"))
        most = max(cells["pictures"].max(), 1)
        for cell in cells.to_dict("records"):
            i, j, n = rows.index(cell["row"]), columns.index(cell["column"]), cell["pictures"]
            ax.add_patch(plt.Rectangle((j - 0.5, i - 0.5), 1, 1, fc=PALETTE[0], alpha=0.65 * n / most, lw=0))
            ax.text(j, i, f"{n:,}" if n else "–", ha="center", va="center", fontsize=9)
        ax.set_xticks(range(len(columns)), columns, fontsize=9)
        ax.set_yticks(range(len(rows)), rows, fontsize=9)
        ax.set(xlim=(-0.5, len(columns) - 0.5), ylim=(len(rows) - 0.5, -0.5))
        ax.set_xlabel(title)
        ax.xaxis.tick_top()
        ax.grid(visible=False)
        ax.tick_params(length=0)
        ax.spines[:].set_color(GRID["light"])
    return figure


def bars_with_rows(table: pd.DataFrame, groups: Mapping[str, str], xlabel: str, lines: Mapping[str, float]) -> Figure:
    """Groups of horizontal intervals: a row per ``row``, a colour per ``group``; dashed lines with names.

    Parameters
    ----------
    table
        Columns row, group, mean, low, high; rows from top to bottom in order of first use.
    groups
        Group → how it is called.
    xlabel
        Of the axis.
    lines
        Name → value of a dashed line.
    """
    names = list(dict.fromkeys(table["row"]))
    figure, ax = plt.subplots(figsize=(WIDTH, 1.5 + 0.36 * len(names)))
    for k, (group, title) in enumerate(groups.items()):
        for row in table[table["group"] == group].to_dict("records"):
            at = names.index(row["row"]) + 0.2 * (k - (len(groups) - 1) / 2)
            looks = {"color": PALETTE[k], "marker": MARKERS[k], "ls": "none", "ms": 5, "capsize": 2, "elinewidth": 1.2}
            ax.errorbar(row["mean"], at, xerr=whiskers(row), **looks)
        ax.plot([], [], color=PALETTE[k], marker=MARKERS[k], ls="none", label=title)
    for style, (name, value) in zip(("--", ":", "-."), lines.items()):
        ax.axvline(value, color=INK["light"], ls=style, lw=1.2, marker="", label=f"{name}, {value:.1%}")
    ax.set_yticks(range(len(names)), names)
    ax.set_ylim(len(names) - 0.4, -0.6)
    ax.grid(axis="y", visible=False)
    ax.set_xlabel(xlabel)
    ax.xaxis.set_major_formatter(lambda v, _: f"{v:.0%}")
    figure.legend(loc="outside lower center", ncols=3, fontsize=9)
    return figure


def adaptation(table: pd.DataFrame, chance: float) -> Figure:
    """Accuracy on new tasks by steps of adaptation, from meta-trained and from random weights.

    Parameters
    ----------
    table
        Columns start (``"maml"``, ``"scratch"``), step, mean, low, high.
    chance
        1 / ways.
    """
    figure, ax = plt.subplots(figsize=(WIDTH, 3.6))
    for k, (start, title) in enumerate({"maml": "meta-trained", "scratch": "from scratch"}.items()):
        rows = table[table["start"] == start].sort_values("step")
        ax.plot(rows["step"], rows["mean"], color=PALETTE[k], marker=MARKERS[k], ms=5, label=title)
        ax.fill_between(rows["step"], rows["low"], rows["high"], color=PALETTE[k], alpha=0.15, lw=0)
    ax.axhline(chance, color=INK["light"], ls="--", lw=1.2, marker="", label=f"chance, {chance:.0%}")
    ax.set(xlabel="steps of gradient descent on the support set", ylabel="accuracy on the query set")
    ax.yaxis.set_major_formatter(lambda v, _: f"{v:.0%}")
    figure.legend(loc="outside lower center", ncols=3, fontsize=9)
    return figure


def heat_table(table: pd.DataFrame, rows: Sequence[str], columns: Sequence[str]) -> Figure:
    """Accuracies as a heat table with their half-widths; the best of each column is framed.

    Parameters
    ----------
    table
        Columns row, column, mean, low, high, one row for each cell.
    rows, columns
        In order.
    """
    found = table.set_index(["row", "column"])
    figure, ax = plt.subplots(figsize=(WIDTH, 1.1 + 0.42 * len(rows)))
    means = np.array([[found.loc[(r, c), "mean"] for c in columns] for r in rows])  # (R, C)
    low, high = means.min(), means.max()
    for j, column in enumerate(columns):
        for i, row in enumerate(rows):
            cell = found.loc[(row, column)]
            strength = 0.65 * (cell["mean"] - low) / max(high - low, 1e-9)
            ax.add_patch(plt.Rectangle((j - 0.5, i - 0.5), 1, 1, fc=PALETTE[0], alpha=strength, lw=0))
            half = (cell["high"] - cell["low"]) / 2
            ax.text(j, i, f"{cell['mean']:.1%} ± {100 * half:.1f}", ha="center", va="center", fontsize=9)
        best = int(means[:, j].argmax())
        ax.add_patch(plt.Rectangle((j - 0.48, best - 0.46), 0.96, 0.92, fill=False, ec=PALETTE[1], lw=1.8))
    ax.set_xticks(range(len(columns)), columns)
    ax.set_yticks(range(len(rows)), rows)
    ax.set(xlim=(-0.5, len(columns) - 0.5), ylim=(len(rows) - 0.5, -0.5))
    ax.xaxis.tick_top()
    ax.grid(visible=False)
    ax.tick_params(length=0)
    ax.spines[:].set_color(GRID["light"])
    return figure


def word_region_maps(table: pd.DataFrame, phantoms: PhantomSet, cells: int) -> Figure:
    """Questions with their picture, cut into the cells that CMSA sees, and the weight of each word at each cell.

    Parameters
    ----------
    table
        Columns row, position, word, cell, weight; an even number of questions.
    phantoms
        The questions' set.
    cells
        Side of the grid; cells are lettered in reading order.
    """
    questions = list(dict.fromkeys(table["row"]))
    figure, axes = plt.subplots(len(questions) // 2, 4, figsize=(10.4, 2.9 * len(questions) // 2))
    for (left, right), row in zip(axes.reshape(-1, 2), questions):
        picture = phantoms.picture(phantoms[row].picture_id)
        left.imshow(picture)
        side = picture.shape[0] / cells
        for i in range(cells**2):
            x, y = (i % cells) * side, (i // cells) * side
            left.add_patch(plt.Rectangle((x - 0.5, y - 0.5), side, side, fill=False, ec="#ffffff", lw=0.8))
            left.text(x + 2, y + 2, chr(65 + i), color="#ffffff", va="top", fontsize=10, weight="bold")
        left.set_title(textwrap.fill(phantoms[row].question, 30), fontsize=9, loc="left")
        of = table[table["row"] == row].pivot(index="position", columns="cell", values="weight")
        words = table[table["row"] == row].drop_duplicates("position")["word"]
        for t, weights in enumerate(of.to_numpy()):
            for i, weight in enumerate(weights):
                strength = 0.85 * weight / of.to_numpy().max()
                right.add_patch(plt.Rectangle((i - 0.5, t - 0.5), 1, 1, fc=PALETTE[0], alpha=strength, lw=0))
        right.set_xticks(range(cells**2), [chr(65 + i) for i in range(cells**2)])
        right.set_yticks(range(len(words)), words, fontsize=9)
        right.set(xlim=(-0.5, cells**2 - 0.5), ylim=(len(words) - 0.5, -0.5))
        right.xaxis.tick_top()
        left.set(xticks=[], yticks=[])
        for ax in (left, right):
            ax.grid(visible=False)
            ax.tick_params(length=0)
            ax.spines[:].set_color(GRID["light"])
    return figure


def audit_map(table: pd.DataFrame) -> Figure:
    """Findings of an audit: a row for each pair of splits, a column for each finding; "–": none, or not sought.

    Parameters
    ----------
    table
        Columns data, splits, finding, mean.
    """
    rows = list(dict.fromkeys(zip(table["data"], table["splits"])))
    columns = list(dict.fromkeys(table["finding"]))
    found = table.set_index(["data", "splits", "finding"])["mean"].to_dict()
    figure, ax = plt.subplots(figsize=(WIDTH, 1.6 + 0.36 * len(rows)))
    for i, (data, splits) in enumerate(rows):
        for j, finding in enumerate(columns):
            share = found.get((data, splits, finding))
            if share is not None:
                ax.add_patch(plt.Rectangle((j - 0.5, i - 0.5), 1, 1, fc=PALETTE[0], alpha=0.7 * share, lw=0))
            ax.text(j, i, "–" if share is None else f"{share:.1%}", ha="center", va="center", fontsize=9)
    ax.set_xticks(range(len(columns)), [textwrap.fill(c, 11) for c in columns], fontsize=8)
    ax.set_yticks(range(len(rows)), [textwrap.fill(f"{d}: {s}", 24) for d, s in rows], fontsize=8)
    ax.set(xlim=(-0.5, len(columns) - 0.5), ylim=(len(rows) - 0.5, -0.5))
    ax.xaxis.tick_top()
    ax.grid(visible=False)
    ax.tick_params(length=0)
    ax.spines[:].set_color(GRID["light"])
    return figure


def curve(table: pd.DataFrame, x: str, xlabel: str, ylabel: str = "accuracy") -> Figure:
    """One curve with a band; x logarithmic. Columns: x, mean, low, high."""
    figure, ax = plt.subplots(figsize=(WIDTH, 3.2))
    rows = table.sort_values(x)
    ax.plot(rows[x], rows["mean"], color=PALETTE[0], marker="o", ms=5)
    ax.fill_between(rows[x], rows["low"], rows["high"], color=PALETTE[0], alpha=0.15, lw=0)
    ax.set(xscale="log", xlabel=xlabel, ylabel=ylabel)
    ax.set_xticks(rows[x], [f"{v:,}" for v in rows[x]], minor=False)
    ax.xaxis.set_minor_locator(plt.NullLocator())
    ax.yaxis.set_major_formatter(lambda v, _: f"{v:.0%}")
    return figure
