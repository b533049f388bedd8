"""The drawings of the chapter on pretext tasks: each function takes tables or pictures and returns a figure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from textwrap import fill

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from vqa_core.data.scenes import ATTRIBUTES
from vqa_core.experiments.pretext import WEIGHTINGS
from vqa_core.experiments.pretext_readout import STARTS, WAYS
from vqa_core.figures import LINESTYLES, MARKERS, PALETTE
from vqa_core.training.pretext import TASKS

TASK_TITLES = {"mlm": "masked words", "itm": "image–text matching", "order": "order of words"}
WIDTH = 7.2


def _style(index: int) -> dict:
    """Colour, marker and line of the index-th thing: three ways to say the same."""
    return {"color": PALETTE[index], "marker": MARKERS[index], "linestyle": LINESTYLES[index]}


def _line(ax, x, some: pd.DataFrame, label: str, index: int) -> None:
    """A line with its interval as a band."""
    ax.plot(x, some["mean"], label=label, **_style(index))
    ax.fill_between(x, some["low"], some["high"], color=PALETTE[index], alpha=0.15, lw=0)


def few_label_curves(table: pd.DataFrame) -> Figure:
    """Accuracy against labels per class: a panel for each way and attribute, dotted where guessing is.

    ``table`` is that of :func:`~vqa_core.experiments.pretext_readout.few_label_table`.
    """
    panels = [(w, a) for w in WAYS for a in ATTRIBUTES if ((table["way"] == w) & (table["attribute"] == a)).any()]
    figure, axes = plt.subplots(1, len(panels), figsize=(WIDTH, 2.7), sharey=True, squeeze=False)
    for ax, (way, attribute) in zip(axes[0], panels):
        part = table[(table["way"] == way) & (table["attribute"] == attribute)]
        for i, (start, title) in enumerate(STARTS.items()):
            some = part[part["start"] == start].sort_values("labels")
            _line(ax, some["labels"], some, title, i)
        ax.axhline(part["chance"].iloc[0], color=PALETTE[5], ls=":", lw=1)
        ax.set_xscale("log")
        ax.set_xticks(labels := sorted(part["labels"].unique()), [str(n) for n in labels])
        ax.minorticks_off()
        ax.set_title(f"{attribute}\n{WAYS[way]}", fontsize=9)
    axes[0, 0].set_ylabel("accuracy")
    axes[0, 0].set_ylim(0, 1.02)
    figure.supxlabel("labels per class", fontsize=9)
    handles, names = axes[0, 0].get_legend_handles_labels()
    figure.legend(handles, names, loc="outside upper center", ncols=2, fontsize=8)
    return figure


def masked(pictures: np.ndarray, hidden: np.ndarray, grid: tuple[int, int], shade: int = 128) -> np.ndarray:
    """Pictures uint8 (B, H, W, 3) with their hidden patches, bool (B, N), painted grey."""
    side = pictures.shape[1] // grid[0], pictures.shape[2] // grid[1]
    over = hidden.reshape(-1, *grid).repeat(side[0], 1).repeat(side[1], 2)  # (B, H, W)
    return np.where(over[..., None], np.uint8(shade), pictures)


def reconstructions(pictures: np.ndarray, hidden: np.ndarray, rebuilt: np.ndarray, grid: tuple[int, int]) -> Figure:
    """Three rows: what the encoder saw, what the decoder made of it, and the picture."""
    rows = {"seen": masked(pictures, hidden, grid), "rebuilt": rebuilt, "picture": pictures}
    n = len(pictures)
    figure, axes = plt.subplots(len(rows), n, figsize=(WIDTH, WIDTH * len(rows) / n), squeeze=False)
    for line, (title, images) in zip(axes, rows.items()):
        for ax, image in zip(line, images):
            ax.imshow(image)
            ax.set_xticks([])
            ax.set_yticks([])
            ax.grid(visible=False)
        line[0].set_ylabel(title)
    return figure


def balance(table: pd.DataFrame) -> Figure:
    """Above each task's share of the weights, below its loss on validation, by epoch and weighting.

    ``table`` is that of :func:`~vqa_core.experiments.pretext_readout.balance_curves`.
    """
    rows = {"weight": "share of weights", "loss": "validation loss, nats"}
    figure, axes = plt.subplots(2, len(TASKS), figsize=(WIDTH, 4.4), sharex=True, sharey="row")
    for line, (quantity, label) in zip(axes, rows.items()):
        line[0].set_ylabel(label)
        for ax, task in zip(line, TASKS):
            for i, (name, title) in enumerate(WEIGHTINGS.items()):
                keep = (table["unit"] == f"joint.{name}") & (table["task"] == task) & (table["quantity"] == quantity)
                if keep.any():
                    _line(ax, table[keep]["epoch"], table[keep], title, i)
            if quantity == "weight":
                ax.set_title(TASK_TITLES[task], fontsize=9)
        line[0].set_ylim(bottom=0)  # of the whole row, now that all of it is drawn
    for ax in axes[1]:
        ax.set_xticks(sorted(table["epoch"].unique()))
    figure.supxlabel("epoch", fontsize=9)
    handles, names = axes[0, 0].get_legend_handles_labels()
    figure.legend(handles, names, loc="outside upper center", ncols=3, fontsize=8)
    return figure


def forest(table: pd.DataFrame, names: str, label: str, lines: Mapping[str, float] | None = None) -> Figure:
    """A row for each line of a table, with its interval; ``names`` is the column of the rows' names.

    ``lines`` are values to compare with, each with its name.
    """
    figure, ax = plt.subplots(figsize=(WIDTH, 0.9 + 0.38 * len(table)))
    for i, found in enumerate(table.to_dict("records")):
        ends = [[max(0.0, found["mean"] - found["low"])], [max(0.0, found["high"] - found["mean"])]]
        style = _style(i % len(PALETTE)) | {"linestyle": "none"}
        ax.errorbar(found["mean"], i, xerr=ends, capsize=2, **style)
    for i, (name, value) in enumerate((lines or {}).items()):
        ax.axvline(value, color=PALETTE[5], ls=LINESTYLES[1 + i], marker="", label=name)
    ax.set_yticks(range(len(table)), table[names])
    ax.set_ylim(len(table) - 0.5, -0.5)
    ax.grid(axis="y", visible=False)
    ax.set_xlabel(label)
    if lines:
        figure.legend(loc="outside upper center", ncols=3, fontsize=8)
    return figure


def captions(images: np.ndarray, said: Sequence[str], true: Sequence[bool]) -> Figure:
    """Pictures uint8 (B, H, W, 3), three in a row, each with what was said of it and whether it holds."""
    columns = 3
    rows = -(-len(images) // columns)
    figure, axes = plt.subplots(rows, columns, figsize=(WIDTH, 2.9 * rows), squeeze=False)
    for ax in axes.flat:
        ax.axis("off")
    for ax, image, sentence, holds in zip(axes.flat, images, said, true):
        ax.imshow(image)
        ax.set_title(f"{fill(sentence, 30)}\n({'true' if holds else 'false'})", fontsize=8)
    return figure
