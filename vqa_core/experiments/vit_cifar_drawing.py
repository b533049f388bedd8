"""The drawings of the chapter on encoders: each function takes arrays or a table and returns a matplotlib figure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from vqa_core.figures import INK, MARKERS, PALETTE

#: Unit → how it is called; colours and markers follow this order.
TITLES = {
    "vit": "ViT",
    "cnn": "convolutions",
    "pixels": "logistic regression on pixels",
    "published": "ViT-B/16, published recipe",
    "majority": "majority",
}
NORMS = {"pre": "Pre-LN", "post": "Post-LN"}
WARMUPS = {"warm": "with warm-up", "cold": "without"}


def look(unit: str) -> dict:
    """Colour and marker of a unit."""
    at = list(TITLES).index(unit)
    return {"color": PALETTE[at], "marker": MARKERS[at]}


def _bare(ax) -> None:
    ax.set(xticks=[], yticks=[])
    ax.grid(visible=False)
    for side in ax.spines.values():
        side.set_visible(False)


# -- pictures and patches ---------------------------------------------------------------------------------------------


def cut(picture: np.ndarray, patches: np.ndarray) -> Figure:
    """A picture (H, W, 3), and its patches (rows, columns, P, P, 3) pulled apart and numbered in reading order."""
    rows, columns = patches.shape[:2]
    figure = plt.figure(figsize=(7.6, 3.9))
    whole, right = figure.subfigures(1, 2)
    ax = whole.subplots()
    ax.imshow(picture, interpolation="nearest")
    _bare(ax)
    for number, (ax, patch) in enumerate(
        zip(right.subplots(rows, columns).flat, patches.reshape(-1, *patches.shape[2:]))
    ):
        ax.imshow(patch, interpolation="nearest")
        ax.set_title(str(number + 1), fontsize=7, pad=1.5)
        _bare(ax)
    return figure


def positions(similarity: np.ndarray, grid: tuple[int, int]) -> Figure:
    """A small map for each place: how similar its position embedding is to that of every place; (N, N) in [−1, 1]."""
    figure, axes = plt.subplots(*grid, figsize=(5.8, 5.2), squeeze=False)
    off = similarity[~np.eye(len(similarity), dtype=bool)]
    span = max(0.05, float(np.abs(off).max()))  # a place's similarity with itself, 1, would hide all others
    for ax, of in zip(axes.flat, similarity):
        image = ax.imshow(of.reshape(grid), vmin=-span, vmax=span, cmap="PuOr")
        _bare(ax)
    bar = figure.colorbar(image, ax=axes, shrink=0.7, extend="max")
    bar.set_label("cosine similarity")
    return figure


def attention(maps: np.ndarray) -> Figure:
    """What the class token weighs in each layer and head: maps (layers, heads, rows, columns), with their sums."""
    layers, heads = maps.shape[:2]
    figure, axes = plt.subplots(layers, heads, figsize=(1.35 * heads + 1, 1.45 * layers + 0.3), squeeze=False)
    for layer, line in enumerate(axes):
        for head, ax in enumerate(line):
            image = ax.imshow(maps[layer, head], vmin=0, vmax=float(maps.max()), cmap="cividis")
            ax.set_title(f"{maps[layer, head].sum():.0%}", fontsize=8, pad=2)
            _bare(ax)
        line[0].set_ylabel(f"layer {layer + 1}", fontsize=9)
    figure.colorbar(image, ax=axes, shrink=0.7, label="weight")
    return figure


# -- masks ------------------------------------------------------------------------------------------------------------


def symbol(number: float) -> str:
    """A number in a matrix.

    >>> symbol(float("inf")), symbol(float("-inf")), symbol(float("nan")), symbol(0.25), symbol(-2.0)
    ('∞', '−∞', 'NaN', '0.25', '−2')
    """
    if np.isnan(number):
        return "NaN"
    if np.isinf(number):
        return "∞" if number > 0 else "−∞"
    return f"{number:.2f}".rstrip("0").rstrip(".").replace("-", "−")


def masks(rows: Mapping[str, Sequence[tuple[str, np.ndarray]]]) -> Figure:
    """Row name → named 3 × 3 matrices; entries of a softmax, from 0 to 1, are shaded, and what is no number is red."""
    width = max(map(len, rows.values()))
    figure, axes = plt.subplots(len(rows), width, figsize=(1.9 * width, 2.15 * len(rows)), squeeze=False)
    for line, (name, matrices) in zip(axes, rows.items()):
        for ax, (title, matrix) in zip(line, matrices, strict=True):
            shade = np.where(np.isfinite(matrix), matrix, 0.0) if title.startswith("softmax") else np.zeros((3, 3))
            ax.imshow(shade, vmin=0, vmax=1.6, cmap="Blues")
            for (i, j), number in np.ndenumerate(matrix):
                bad = np.isnan(number) or number == np.inf
                ax.text(
                    j, i, symbol(number), ha="center", va="center", fontsize=9,
                    color=PALETTE[1] if bad else INK["light"], weight="bold" if bad else "normal",
                )  # fmt: skip
            ax.set_title(title, fontsize=9)
            _bare(ax)
        line[0].set_ylabel(name, fontsize=10)
    return figure


def mask_table(rows: Mapping[str, Sequence[tuple[str, np.ndarray]]]) -> pd.DataFrame:
    """The same entries as a table, in words where they are no numbers: columns way, matrix, row, column, entry."""
    return pd.DataFrame(
        [
            {
                "way": name,
                "matrix": title,
                "row": i + 1,
                "column": j + 1,
                "entry": symbol(number).replace("NaN", "not a number"),
            }
            for name, matrices in rows.items()
            for title, matrix in matrices
            for (i, j), number in np.ndenumerate(matrix)
        ]
    )


# -- accuracies -------------------------------------------------------------------------------------------------------


def _band(ax, x, some: pd.DataFrame, **style) -> None:
    ax.plot(x, some["mean"], **style)
    ax.fill_between(x, some["low"], some["high"], color=style["color"], alpha=0.18, lw=0)


def learning_curves(curves: pd.DataFrame) -> Figure:
    """Validation accuracy by epoch with bands over seeds: columns unit, epoch, mean, low, high."""
    figure, ax = plt.subplots(figsize=(6.6, 3.8))
    for unit, some in curves.groupby("unit", sort=False):
        _band(ax, some["epoch"], some, label=TITLES[unit], ls="-", **look(unit))
    ax.axhline(0.1, color=INK["light"], ls=":", lw=1, marker="", label="chance")
    ax.set(xlabel="epoch", ylabel="validation accuracy", ylim=(0, None))
    ax.xaxis.get_major_locator().set_params(integer=True)
    ax.legend(fontsize=8.5, loc="center left", bbox_to_anchor=(1, 0.5))
    return figure


def published(curve: pd.DataFrame, theirs: Sequence[float]) -> Figure:
    """The published recipe: training and test accuracy by epoch, beside the published numbers."""
    figure, ax = plt.subplots(figsize=(6.4, 3.8))
    for (what, some), colour, marker in zip(curve.groupby("what", sort=False), PALETTE, MARKERS):
        _band(ax, some["epoch"], some, label=f"{what}, here", color=colour, marker=marker, ls="-")
    ax.plot(range(1, len(theirs) + 1), theirs, label="published", color=PALETTE[3], marker="D", ls=":")
    ax.set(xlabel="epoch", ylabel="accuracy")
    ax.xaxis.get_major_locator().set_params(integer=True)
    ax.legend(fontsize=8.5)
    return figure


def shuffled(table: pd.DataFrame) -> Figure:
    """Accuracy on whole pictures and on pictures with shuffled patches, a row for each unit."""
    units = list(dict.fromkeys(table["unit"]))
    figure, ax = plt.subplots(figsize=(6.4, 1.3 + 0.4 * len(units)))
    for at, unit in enumerate(units):
        for r in table[table["unit"] == unit].to_dict("records"):
            whole = r["pictures"] == "whole"
            face, y = (look(unit)["color"], at - 0.12) if whole else ("none", at + 0.12)
            error = [[r["mean"] - r["low"]], [r["high"] - r["mean"]]]
            ax.errorbar(r["mean"], y, xerr=error, capsize=2, ls="none", mfc=face, ms=6, **look(unit))
    ax.axvline(0.1, color=INK["light"], ls=":", lw=1, marker="")
    marks = [plt.Line2D([], [], color=INK["light"], marker="o", ls="none", mfc=f) for f in (INK["light"], "none")]
    ax.legend(
        marks, ["whole pictures", "patches shuffled"], fontsize=8.5, loc="lower left", bbox_to_anchor=(0, 1), ncols=2
    )
    ax.set_yticks(range(len(units)), [TITLES[u] for u in units])
    ax.set(xlabel="test accuracy", xlim=(0, None), ylim=(len(units) - 0.5, -0.5))
    return figure


def distances(table: pd.DataFrame, uniform: float) -> Figure:
    """How far each head looks by layer, every seed a point; the line is a head that looks everywhere alike."""
    figure, ax = plt.subplots(figsize=(6.0, 3.4))
    spread = table["layer"] + 0.06 * (table["seed"] - table["seed"].mean())
    ax.plot(spread, table["pixels"], ls="none", marker="o", ms=4, color=PALETTE[0], alpha=0.7)
    ax.axhline(uniform, color=INK["light"], ls="--", lw=1, marker="", label="all patches alike")
    ax.set(xlabel="layer", ylabel="mean distance, pixels", ylim=(0, None), xticks=sorted(set(table["layer"])))
    ax.legend(fontsize=8.5)
    return figure


# -- norms ------------------------------------------------------------------------------------------------------------


def gradients(table: pd.DataFrame, losses: pd.DataFrame) -> Figure:
    """Gradient norm by layer before the first and the last step (logarithmic), and the loss by step."""
    figure, (start, end, loss) = plt.subplots(1, 3, figsize=(10.2, 3.9))
    for ax, step in ((start, "first"), (end, "last")):
        for unit, style in _styles(table):
            some = _of(table[table["step"] == step], unit)
            if step == "last" or unit[1] == "warm":  # before the first step, both are the same
                _band(ax, some["layer"], some, **style)
        ax.set(yscale="log", xlabel="layer, bottom to top", title=f"before the {step} step")
    for unit, style in _styles(losses):
        some = _of(losses, unit)
        _band(loss, some["step"], some, **style | {"marker": ""})
    start.set_ylabel("gradient norm")
    loss.set(xlabel="step", ylabel="loss, nats", title="loss", ylim=(None, min(float(losses["mean"].max()), 4.0) + 0.1))
    handles, labels = end.get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=4, fontsize=8.5)
    return figure


def _styles(table: pd.DataFrame):
    """Units (norm, warm-up) of a table, and how their lines look."""
    for norm, warmup in dict.fromkeys(zip(table["norm"], table["warmup"])):
        at = list(NORMS).index(norm)
        yield (
            (norm, warmup),
            {
                "color": PALETTE[at],
                "marker": MARKERS[at],
                "ms": 4,
                "ls": "-" if warmup == "warm" else "--",
                "label": f"{NORMS[norm]}, {WARMUPS[warmup]}",
            },
        )


def _of(table: pd.DataFrame, unit: tuple[str, str]) -> pd.DataFrame:
    return table[(table["norm"] == unit[0]) & (table["warmup"] == unit[1])]
