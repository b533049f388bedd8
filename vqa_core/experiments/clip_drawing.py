"""The drawings of the chapter on CLIP: each function takes a table or an array and returns a matplotlib figure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from vqa_core.experiments.clip_material import NAMES, unseen_names
from vqa_core.experiments.fusion_drawing import whiskers
from vqa_core.figures import INK, LINESTYLES, MARKERS, PALETTE

WIDTH = 7.4  # inches; a page is 720 pixels wide, so that text keeps its size
SMALL = 9  # points, the smallest text


def _dash(ax, y: float, label: str) -> None:
    ax.axhline(y, color=INK["light"], ls="--", lw=1.2, marker="", label=label)


def _looks(k: int) -> dict[str, Any]:
    return {"color": PALETTE[k], "marker": MARKERS[k], "linestyle": LINESTYLES[k]}


def _percent(axis) -> None:
    axis.set_major_formatter(lambda v, _: f"{v:.0%}")


def _check(table: pd.DataFrame, *columns: str) -> None:
    if missing := [c for c in columns if c not in table.columns]:
        raise ValueError(f"the table has no column {', '.join(missing)}; it has {', '.join(table.columns)}")


def similarity_matrices(before: np.ndarray, after: np.ndarray) -> Figure:
    """Cosines of some pictures (rows) with their captions (columns) before and after training, on one scale.

    Parameters
    ----------
    before, after
        (n, n); pairs stand on the diagonal.
    """
    if before.shape != after.shape or before.ndim != 2 or len(before) != before.shape[1]:
        raise ValueError(f"matrices have shapes {before.shape} and {after.shape}; give two equal squares")
    figure, axes = plt.subplots(1, 2, figsize=(WIDTH, 3.9))
    for ax, matrix, title in zip(axes, (before, after), ("before training", "after training")):
        image = ax.imshow(matrix, vmin=-1, vmax=1, cmap="coolwarm")
        ax.set(title=title, xlabel="caption", ylabel="picture")
        ax.grid(visible=False)
    figure.colorbar(image, ax=axes, label="cosine", shrink=0.85)
    return figure


def learning_curves(table: pd.DataFrame, guess: float | None = None) -> Figure:
    """Loss and temperature along the training, one line for each ``curve``.

    Parameters
    ----------
    table
        Columns curve, quantity (``"loss"`` or ``"temperature"``), step, mean, low, high.
    guess
        Loss of a guess, drawn as a dashed line; None for none.
    """
    _check(table, "curve", "quantity", "step", "mean", "low", "high")
    quantities = {"loss": "loss (nats)", "temperature": "temperature"}
    figure, axes = plt.subplots(1, 2, figsize=(WIDTH, 3.3))
    for ax, (quantity, title) in zip(axes, quantities.items()):
        for k, (name, some) in enumerate(table[table["quantity"] == quantity].groupby("curve", sort=False)):
            looks = _looks(k) | {"markevery": max(1, len(some) // 6)}
            ax.plot(some["step"], some["mean"], label=name, **looks)
            ax.fill_between(some["step"], some["low"], some["high"], color=looks["color"], alpha=0.15, lw=0)
        ax.set(xlabel="step", ylabel=title)
    if guess is not None:
        _dash(axes[0], guess, "a guess")
    axes[1].set_yscale("log")
    handles, labels = axes[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=3, fontsize=SMALL)
    return figure


def temperatures(table: pd.DataFrame, chance: float) -> Figure:
    """R@1, entropy of the in-batch softmax and the last loss by temperature, fixed and learned.

    Parameters
    ----------
    table
        Columns temperature (a number as text, or "learned"), quantity, mean, low, high.
    chance
        R@1 of a guess.
    """
    _check(table, "temperature", "quantity", "mean", "low", "high")
    shown = {"R@1": "R@1", "entropy": "entropy / largest", "last loss": "last loss (nats)"}
    order = list(dict.fromkeys(table["temperature"]))
    figure, axes = plt.subplots(1, 3, figsize=(WIDTH, 3.0))
    for ax, (quantity, title) in zip(axes, shown.items()):
        some = table[table["quantity"] == quantity].set_index("temperature")
        for at, name in enumerate(order):
            looks = _looks(1 if name == "learned" else 0) | {"linestyle": "none"}
            ax.errorbar(at, some.loc[name, "mean"], yerr=whiskers(some.loc[name]), capsize=3, **looks)
        ax.set_xticks(range(len(order)), order, fontsize=SMALL)
        ax.set(title=title, xlabel="temperature", xlim=(-0.5, len(order) - 0.5))
    _dash(axes[0], chance, "chance")
    _percent(axes[0].yaxis)
    axes[0].legend(fontsize=SMALL)
    return figure


def sizes(batches: pd.DataFrame, amounts: pd.DataFrame, chance: float, titles: Mapping[str, str]) -> Figure:
    """R@1 against the batch size (each rate, the best one full) and against the number of training pairs.

    Parameters
    ----------
    batches
        Columns batch, rate, best ("yes" or "no"), mean, low, high.
    amounts
        Columns encoder, pairs, mean, low, high.
    chance
        R@1 of a guess.
    titles
        Encoder → how it is called.
    """
    _check(batches, "batch", "rate", "best", "mean", "low", "high")
    _check(amounts, "encoder", "pairs", "mean", "low", "high")
    figure, (left, right) = plt.subplots(1, 2, figsize=(WIDTH, 3.4), sharey=True)
    for k, (rate, some) in enumerate(batches.groupby("rate")):
        looks = _looks(k)
        left.plot(some["batch"], some["mean"], label=f"rate {rate:g}", mfc="none", **looks)
        best = some[some["best"] == "yes"]
        if len(best):
            left.errorbar(best["batch"], best["mean"], yerr=_many(best), capsize=3, **looks | {"linestyle": "none"})
    for k, (encoder, some) in enumerate(amounts.groupby("encoder", sort=False)):
        right.errorbar(some["pairs"], some["mean"], yerr=_many(some), capsize=3, label=titles[encoder], **_looks(3 + k))
    for ax, label, at in ((left, "batch size", batches["batch"]), (right, "training pairs", amounts["pairs"])):
        ax.set_xscale("log")
        ax.set_xticks(sorted(set(at)), [f"{x:,}" for x in sorted(set(at))])
        ax.minorticks_off()
        ax.set_xlabel(label)
        _dash(ax, chance, "chance")
        ax.legend(fontsize=SMALL)
    left.set_ylabel("R@1")
    _percent(left.yaxis)
    return figure


def _many(table: pd.DataFrame) -> np.ndarray:
    """Intervals of several rows as matplotlib's ``errorbar`` wants them, (2, n)."""
    return np.hstack([whiskers(row) for _, row in table.iterrows()])


def rows_with_intervals(table: pd.DataFrame, label: str, group: str, xlabel: str, lines: Mapping[str, float]) -> Figure:
    """A dot and an interval for each row; groups differ by colour and marker.

    Parameters
    ----------
    table
        Columns ``label`` (names of rows, top to bottom), ``group``, mean, low, high.
    label, group
        Names of those columns.
    xlabel
        What is drawn; shares are shown in percent.
    lines
        Name → where a dashed line stands.
    """
    _check(table, label, group, "mean", "low", "high")
    names, groups = list(dict.fromkeys(table[label])), list(dict.fromkeys(table[group]))
    figure, ax = plt.subplots(figsize=(WIDTH, 1.3 + 0.3 * len(names)))
    for g, name in enumerate(groups):
        for _, row in table[table[group] == name].iterrows():
            at = names.index(row[label]) + 0.16 * (g - (len(groups) - 1) / 2)
            first = row[label] == table[table[group] == name][label].iloc[0]
            looks = _looks(g) | {"linestyle": "none"}
            ax.errorbar(row["mean"], at, xerr=whiskers(row), label=name if first else None, **looks)
    for k, (name, x) in enumerate(lines.items()):
        ax.axvline(x, color=INK["light"], ls=LINESTYLES[1 + k], lw=1.2, marker="", label=name)
    ax.set_yticks(range(len(names)), names, fontsize=SMALL)
    ax.set_ylim(len(names) - 0.5, -0.5)
    ax.grid(axis="y", visible=False)
    ax.set_xlabel(xlabel)
    _percent(ax.xaxis)
    figure.legend(loc="outside lower center", ncols=4, fontsize=SMALL)
    return figure


def confusion(shares: np.ndarray) -> Figure:
    """Which class pictures of the unseen pairs are given: a row for each unseen pair, a column for each of all 32.

    Parameters
    ----------
    shares
        (32, 32), rows of classes that occur sum to 1. Unseen pairs are framed.
    """
    rows = np.flatnonzero(unseen_names())
    figure, ax = plt.subplots(figsize=(WIDTH, 3.5))
    image = ax.imshow(shares[rows], vmin=0, vmax=1, cmap="Blues", aspect="auto")
    for at, k in enumerate(rows):
        ax.add_patch(plt.Rectangle((k - 0.5, at - 0.5), 1, 1, fill=False, ec=PALETTE[1], lw=1.6))
    ax.set_xticks(range(len(NAMES)), NAMES, rotation=90, fontsize=7)
    ax.set_yticks(range(len(rows)), [NAMES[k] for k in rows], fontsize=SMALL)
    ax.set(xlabel="named", ylabel="is")
    ax.grid(visible=False)
    figure.colorbar(image, ax=ax, label="share of pictures")
    return figure


def retrieval(
    pictures: Sequence[np.ndarray], found: Sequence[Sequence[tuple[str, float]]], own: Sequence[str]
) -> Figure:
    """Some pictures with the captions that come first for them; the picture's own caption is marked.

    Parameters
    ----------
    pictures
        uint8 (H, W, 3) each.
    found
        For each picture its best captions with their cosines, best first.
    own
        The caption of each picture.
    """
    if not len(pictures) == len(found) == len(own):
        raise ValueError(f"{len(pictures)} pictures, {len(found)} lists and {len(own)} captions; give one of each")
    figure, axes = plt.subplots(
        len(pictures), 2, figsize=(WIDTH, 1.15 * len(pictures)), width_ratios=(1, 5.4), squeeze=False
    )
    for (left, right), picture, best, caption in zip(axes, pictures, found, own):
        left.imshow(picture)
        for ax in (left, right):
            ax.axis("off")
        lines = [(c == caption, f"{score:.2f}  {c}") for c, score in best]
        if not any(mine for mine, _ in lines):
            lines.append((True, f"own caption: {caption}"))
        for k, (mine, text) in enumerate(lines):
            mark, weight = ("✓ ", "bold") if mine else ("   ", "normal")
            right.text(0, 0.85 - 0.24 * k, mark + text, fontsize=SMALL, weight=weight, va="center")
    return figure


def embedding_map(points: np.ndarray, shown: int = 40) -> Figure:
    """Pictures and captions of a gallery in two dimensions; some pairs are joined by a line.

    Parameters
    ----------
    points
        (2, G, 2): pictures first, then captions.
    shown
        How many pairs are joined.
    """
    if points.ndim != 3 or points.shape[0] != 2 or points.shape[2] != 2:
        raise ValueError(f"points have shape {points.shape}; give (2, G, 2): pictures, then captions")
    figure, ax = plt.subplots(figsize=(WIDTH, 4.2))
    for image, text in zip(points[0, :shown], points[1, :shown]):
        ax.plot(*np.stack([image, text]).T, color=INK["light"], lw=0.6, alpha=0.6, ls="-", marker="")
    for k, name in enumerate(("pictures", "captions")):
        ax.plot(*points[k].T, label=name, ms=3.5, alpha=0.7, **_looks(k) | {"linestyle": "none"})
    ax.set(xlabel="first component", ylabel="second component")
    ax.legend(fontsize=SMALL)
    return figure


def memory(table: pd.DataFrame) -> Figure:
    """Bytes kept for the backward pass and seconds of one step against the batch size, plain and cached.

    Parameters
    ----------
    table
        Columns batch, way ("plain" or "cached"), megabytes, seconds.
    """
    _check(table, "batch", "way", "megabytes", "seconds")
    figure, axes = plt.subplots(1, 2, figsize=(WIDTH, 3.0))
    for ax, (column, title) in zip(axes, {"megabytes": "kept (MB)", "seconds": "seconds of a step"}.items()):
        for k, (way, some) in enumerate(table.groupby("way", sort=False)):
            ax.plot(some["batch"], some[column], label=way, **_looks(k))
        ax.set(xscale="log", yscale="log", xlabel="batch size", ylabel=title)
        ax.set_xticks(sorted(set(table["batch"])), [f"{x:,}" for x in sorted(set(table["batch"]))])
        ax.minorticks_off()
    axes[0].legend(fontsize=SMALL)
    return figure
