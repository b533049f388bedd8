"""The drawings of the chapter on multi-task learning: each function takes a table and returns a matplotlib figure.

A task has one colour and one marker in every figure, and so has a pair of tasks.
"""

from __future__ import annotations

from collections.abc import Sequence

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from vqa_core.experiments.fusion_drawing import whiskers
from vqa_core.experiments.multitask import TASKS
from vqa_core.experiments.multitask_readout import MEAN, PAIRS, TITLES, pair_name
from vqa_core.figures import GRID, INK, PALETTE

NAMES = (*TASKS, MEAN)
COLOURS = dict(zip(NAMES, (PALETTE[0], PALETTE[1], PALETTE[2], PALETTE[5])))
SHAPES = dict(zip(NAMES, "os^D"))
PAIR_STYLES = dict(zip((pair_name(a, b) for a, b in PAIRS), zip(PALETTE[3:], ("-", "--", "-."), "Dv^")))


def _points(axis: plt.Axis) -> None:
    """Ticks of differences as percentage points."""
    axis.set_major_formatter(lambda v, _: f"{100 * v:+.0f}".replace("-", "−").replace("+0", "0"))


def accuracies(table: pd.DataFrame) -> Figure:
    """A panel for each task and one for their mean, a row for each arm; a line marks what each task reaches alone.

    ``table`` is that of :func:`~vqa_core.experiments.multitask_readout.accuracy_table`.
    """
    arms = list(dict.fromkeys(table["arm"]))
    panels = [name for name in NAMES if name in set(table["task"])]
    figure, axes = plt.subplots(1, len(panels), figsize=(9.4, 1.3 + 0.28 * len(arms)), sharey=True, squeeze=False)
    for ax, task in zip(axes.flat, panels):
        for found in table[table["task"] == task].to_dict("records"):
            at = arms.index(found["arm"])
            own = {"color": COLOURS[task], "marker": SHAPES[task], "linestyle": "none"}
            ax.errorbar(found["mean"], at, xerr=whiskers(found), capsize=2, elinewidth=1.2, ms=4.5, **own)
            if found["arm"] == "alone":
                ax.axvline(found["mean"], color=INK["light"], ls="--", lw=0.9)
        ax.set_title(task, fontsize=10)
        ax.set(xlabel="accuracy", ylim=(len(arms) - 0.5, -0.5))
        ax.set_yticks(range(len(arms)), [TITLES[arm] for arm in arms])
        ax.tick_params(axis="y", length=0, labelsize=8.5)
        ax.grid(axis="y", visible=False)
        ax.locator_params(axis="x", nbins=4)
    return figure


def gains(table: pd.DataFrame, by: str = "questions") -> Figure:
    """Gain over each task alone against the number of training questions, in percentage points; one line for a task.

    ``table`` is that of :func:`~vqa_core.experiments.multitask_readout.gain_table` with a single arm.
    """
    figure, ax = plt.subplots(figsize=(6.6, 3.8))
    for shift, task in zip((0.94, 0.98, 1.02, 1.06), NAMES):
        some = table[table["task"] == task]
        low, high = some["mean"] - some["low"], some["high"] - some["mean"]
        look = {"color": COLOURS[task], "marker": SHAPES[task], "ls": "--" if task == MEAN else "-", "label": task}
        ax.errorbar(some[by] * shift, some["mean"], yerr=[low.clip(lower=0), high.clip(lower=0)], capsize=2, **look)
    ax.axhline(0, color=INK["light"], lw=1)
    ax.set_xscale("log")
    amounts = sorted(set(table[by]))
    ax.set_xticks(amounts, [f"{n:,}" for n in amounts])
    ax.minorticks_off()
    _points(ax.yaxis)
    ax.set(xlabel=f"training {by}", ylabel="together − alone, points")
    ax.legend(fontsize=8.5, loc="center left", bbox_to_anchor=(1, 0.5))
    return figure


def curves(table: pd.DataFrame, arms: Sequence[str], ylabel: str, line: float | None = None) -> Figure:
    """A panel for each arm: a quantity of each task by step, with its interval over seeds as a band.

    ``table`` is that of :func:`~vqa_core.experiments.multitask_readout.curve_table`; ``line`` is drawn across.
    """
    arms = [arm for arm in arms if arm in set(table["arm"])]
    figure, axes = plt.subplots(1, len(arms), figsize=(2.2 + 2.5 * len(arms), 3.2), sharey=True, squeeze=False)
    for ax, arm in zip(axes.flat, arms):
        for task in TASKS:
            some = table[(table["arm"] == arm) & (table["task"] == task)]
            ax.plot(some["step"], some["mean"], color=COLOURS[task], marker=SHAPES[task], ms=3.5, ls="-", label=task)
            ax.fill_between(some["step"], some["low"], some["high"], color=COLOURS[task], alpha=0.18, lw=0)
        if line is not None:
            ax.axhline(line, color=INK["light"], ls="--", lw=0.9)
        ax.set_title(TITLES[arm], fontsize=10)
        ax.set_xlabel("step")
        ax.locator_params(axis="x", nbins=4)
    axes.flat[0].set_ylabel(ylabel)
    figure.legend(*axes.flat[0].get_legend_handles_labels(), loc="outside lower center", ncols=3, fontsize=8.5)
    return figure


def cosines(table: pd.DataFrame) -> Figure:
    """Cosine of the gradients of each pair of tasks by step, a panel for each pair; below 0 they conflict.

    ``table`` is that of :func:`~vqa_core.experiments.multitask_readout.cosine_table`.
    """
    figure, axes = plt.subplots(1, len(PAIR_STYLES), figsize=(9.0, 3.0), sharey=True)
    for ax, (pair, (colour, _, marker)) in zip(axes, PAIR_STYLES.items()):
        some = table[table["pair"] == pair]
        ax.axhspan(-1, 0, color=GRID["light"], alpha=0.35, lw=0)
        ax.plot(some["step"], some["mean"], color=colour, marker=marker, ms=3, ls="-")
        ax.fill_between(some["step"], some["low"], some["high"], color=colour, alpha=0.18, lw=0)
        ax.set_title(pair, fontsize=10)
        ax.set_xlabel("step")
    low, high = min(table["low"].min(), 0.0), max(table["high"].max(), 0.0)
    axes[0].set(ylabel="cosine of the gradients", ylim=(max(-1, low - 0.05), min(1, high + 0.05)))
    return figure


def conflicts(table: pd.DataFrame, quantity: str = "negative") -> Figure:
    """A heat map of weightings and pairs of tasks: ``negative``, ``cosine`` or ``ratio`` of ``conflict_table``."""
    some = table[table["quantity"] == quantity]
    arms, pairs = list(dict.fromkeys(some["arm"])), list(PAIR_STYLES)
    values = some.pivot(index="arm", columns="pair", values="mean").loc[arms, pairs].to_numpy()
    figure, ax = plt.subplots(figsize=(6.2, 1.2 + 0.42 * len(arms)))
    shown = ax.imshow(values, cmap="cividis", aspect="auto", vmin=0, vmax=max(float(values.max()), 1e-9))
    middle = (shown.norm.vmin + shown.norm.vmax) / 2
    for i, j in np.ndindex(*values.shape):
        ax.text(j, i, f"{values[i, j]:.2f}", ha="center", va="center", color="w" if values[i, j] < middle else "k")
    ax.set_xticks(range(len(pairs)), pairs, fontsize=9)
    ax.set_yticks(range(len(arms)), [TITLES[arm] for arm in arms])
    ax.grid(visible=False)
    ax.tick_params(length=0)
    return figure


def by_category(table: pd.DataFrame, task: str) -> Figure:
    """Gain of sharing in one task by the category of the question, sorted; in percentage points."""
    table = table.sort_values("mean")
    figure, ax = plt.subplots(figsize=(6.4, 1.0 + 0.27 * len(table)))
    for at, found in enumerate(table.to_dict("records")):
        own = {"color": COLOURS[task], "marker": SHAPES[task], "linestyle": "none"}
        ax.errorbar(found["mean"], at, xerr=whiskers(found), capsize=2, elinewidth=1.2, **own)
    ax.axvline(0, color=INK["light"], lw=1)
    ax.set_yticks(range(len(table)), list(table["category"]))
    _points(ax.xaxis)
    ax.set(xlabel=f"{task}: together − alone, points")
    return figure


def quadratics(path: pd.DataFrame, minima: np.ndarray) -> Figure:
    """Two tasks in the plane: where they conflict (a disc), and the way of each optimiser.

    Parameters
    ----------
    path
        Columns way, x, y.
    minima
        Of both tasks, (2, 2).
    """
    (a, b), middle = minima, np.mean(minima, axis=0)
    figure, ax = plt.subplots(figsize=(5.6, 4.0))
    disc = plt.Circle(middle, np.linalg.norm(a - b) / 2, color=GRID["light"], alpha=0.6, lw=0, label="conflict")
    ax.add_patch(disc)
    for (x, y), task in zip(minima, TASKS):
        ax.plot(x, y, marker=SHAPES[task], color=COLOURS[task], ms=9, ls="none", label=f"minimum of {task}")
    for (way, some), (colour, style, marker) in zip(path.groupby("way", sort=False), PAIR_STYLES.values()):
        ax.plot(some["x"], some["y"], color=colour, marker=marker, ms=3.5, lw=1.2, ls=style, label=way)
    ax.set(xlabel="θ₁", ylabel="θ₂", aspect="equal")
    ax.legend(fontsize=8, loc="center left", bbox_to_anchor=(1, 0.5))
    return figure


def gallery(pictures: Sequence[np.ndarray], lines: Sequence[str], columns: int = 3) -> Figure:
    """Pictures with a few lines of text below each: failures, chosen by rule."""
    rows = -(-len(pictures) // columns)
    figure, axes = plt.subplots(rows, columns, figsize=(2.9 * columns, 3.1 * rows), squeeze=False)
    for ax in axes.flat:
        ax.axis("off")
    for ax, picture, line in zip(axes.flat, pictures, lines):
        ax.imshow(picture, cmap="gray", vmin=0, vmax=255)
        ax.set_title(line, fontsize=8, y=-0.02, va="top")
    return figure
