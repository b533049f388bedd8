"""The drawings of the chapter on maps: each function takes tables or maps and returns a figure.

A method has the same colour and marker in every figure.
"""

from __future__ import annotations

import textwrap
from collections.abc import Mapping, Sequence

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure

from vqa_core.experiments.attention_maps_readout import BASELINE_TITLES, NO_MODEL, TITLES
from vqa_core.experiments.fusion_drawing import whiskers
from vqa_core.figures import GRID, INK, LINESTYLES, MARKERS, PALETTE

WIDTH = 7.8
HOT = "#d1495b"  # weight of a map over a picture
OUTLINE = "#0a5c8a"  # the true region
STYLE = dict(zip(TITLES.values(), zip((*PALETTE, INK["light"]), (*MARKERS, "*"), strict=True), strict=True))
RANDOM = "random order"


def style(method: str) -> dict[str, str]:
    """Colour and marker of a method by its title; grey for a random order."""
    colour, marker = STYLE.get(method, (INK["light"], "x"))
    return {"color": colour, "marker": marker}


# ------------------------------------------------------------------------------------------------------- on pictures


def overlay(ax: Axes, picture: np.ndarray, weights: np.ndarray | None, region: np.ndarray | None = None) -> None:
    """A picture in pale grey, the weights of its cells in red over it, and the outline of the true region.

    Parameters
    ----------
    ax
        Where to draw.
    picture
        uint8 (H, W, 3).
    weights
        (rows, columns), at least 0; the strongest is opaque. None: the picture itself, in colour.
    region
        bool (H, W).
    """
    h, w = picture.shape[:2]
    if weights is None:
        ax.imshow(picture)
    else:
        grey = picture.mean(axis=-1, keepdims=True) / 255  # (H, W, 1)
        share = weights / weights.max() if weights.max() > 0 else weights
        share = np.kron(share, np.ones((h // weights.shape[0], w // weights.shape[1])))[..., None]  # (H, W, 1)
        pale = 0.55 + 0.45 * np.repeat(grey, 3, axis=-1)
        ax.imshow((1 - 0.8 * share) * pale + 0.8 * share * np.array(to_rgb(HOT)))
    if region is not None and region.any():
        ax.contour(region, levels=[0.5], colors=OUTLINE, linewidths=1.3)
    ax.set(xticks=[], yticks=[])
    ax.grid(visible=False)
    ax.spines[:].set_visible(False)


def gallery(
    pictures: Sequence[np.ndarray],
    regions: Sequence[np.ndarray],
    maps: Mapping[str, np.ndarray],
    texts: Sequence[str],
    notes: Mapping[str, Sequence[str]] | None = None,
) -> Figure:
    """A row for each question: its picture with the true region, then the map of each column over it.

    Parameters
    ----------
    pictures, regions
        K times uint8 (H, W, 3) and bool (H, W).
    maps
        Title of the column → (K, rows, columns).
    texts
        K times what stands beside the picture.
    notes
        Title of the column → K times what stands below a map.
    """
    k, columns = len(pictures), len(maps) + 1
    figure, axes = plt.subplots(k, columns, figsize=(0.92 * columns + 1.4, 1.12 * k + 0.5), squeeze=False)
    for i, row in enumerate(axes):
        overlay(row[0], pictures[i], None, regions[i])
        place = {"xycoords": "axes fraction", "ha": "right", "va": "center", "fontsize": 8}
        row[0].annotate(textwrap.fill(texts[i], 18), (-0.06, 0.5), **place)
        for ax, (title, of) in zip(row[1:], maps.items()):
            overlay(ax, pictures[i], of[i], regions[i])
            if notes is not None:
                ax.set_xlabel(notes[title][i], fontsize=8, labelpad=1)
            if i == 0:
                ax.set_title(textwrap.fill(title, 13), fontsize=8.5)
    return figure


def pair_grid(
    pictures: Sequence[Sequence[np.ndarray]],
    regions: Sequence[Sequence[np.ndarray]],
    maps: Sequence[Sequence[np.ndarray]],
    questions: Sequence[str],
    answers: Sequence[Sequence[str]],
) -> Figure:
    """A row for each question, asked about two pictures: each picture, and the map of its answer beside it.

    Parameters
    ----------
    pictures, regions, maps, answers
        K times two of each: uint8 (H, W, 3), bool (H, W), (rows, columns), words.
    questions
        K sentences.
    """
    k, columns = len(questions), 2 * len(pictures[0])
    figure, axes = plt.subplots(k, columns, figsize=(1.5 * columns + 1.6, 1.75 * k), squeeze=False)
    for i, row in enumerate(axes):
        place = {"xycoords": "axes fraction", "ha": "right", "va": "center", "fontsize": 8.5}
        row[0].annotate(textwrap.fill(questions[i], 24), (-0.06, 0.5), **place)
        for j, (left, right) in enumerate(zip(row[::2], row[1::2])):
            overlay(left, pictures[i][j], None, regions[i][j])
            overlay(right, pictures[i][j], maps[i][j], regions[i][j])
            right.set_xlabel(answers[i][j], fontsize=8.5, labelpad=1)
    return figure


def word_grid(
    pictures: Sequence[np.ndarray],
    regions: Sequence[np.ndarray],
    maps: Sequence[np.ndarray],
    words: Sequence[Sequence[str]],
    texts: Sequence[str],
) -> Figure:
    """A row for each question: the picture, then where each of its words looks.

    Parameters
    ----------
    pictures, regions, texts
        As in :func:`gallery`.
    maps
        K times (T, rows, columns).
    words
        K times T labels.
    """
    columns = 1 + max(map(len, words))
    figure, axes = plt.subplots(
        len(pictures), columns, figsize=(1.25 * columns + 1.6, 1.6 * len(pictures)), squeeze=False
    )
    for i, row in enumerate(axes):
        overlay(row[0], pictures[i], None, regions[i])
        place = {"xycoords": "axes fraction", "ha": "right", "va": "center", "fontsize": 8}
        row[0].annotate(textwrap.fill(texts[i], 24), (-0.06, 0.5), **place)
        for ax in row[1:]:
            ax.axis("off")
        for ax, word, of in zip(row[1:], words[i], maps[i]):
            overlay(ax, pictures[i], of, regions[i])
            ax.axis("on")
            ax.set_title(word.replace(": ", "\n"), fontsize=8)
    return figure


def head_grid(picture: np.ndarray, region: np.ndarray, maps: np.ndarray, text: str) -> Figure:
    """What every head of every layer weighs: (layers, heads, rows, columns) over one picture."""
    layers, heads = maps.shape[:2]
    figure, axes = plt.subplots(layers, heads + 1, figsize=(1.5 * (heads + 1), 1.7 * layers + 0.4), squeeze=False)
    for layer, row in enumerate(axes):
        overlay(row[0], picture, maps[layer].mean(axis=0), region)
        row[0].set_ylabel(f"layer {layer + 1}", fontsize=8.5)
        row[0].set_title("mean of heads" if layer == 0 else "", fontsize=8.5)
        for head, ax in enumerate(row[1:]):
            overlay(ax, picture, maps[layer, head], region)
            ax.set_title(f"head {head + 1}" if layer == 0 else "", fontsize=8.5)
    figure.suptitle(text, fontsize=9)
    return figure


# ------------------------------------------------------------------------------------------------------------ tables


def score_rows(table: pd.DataFrame, label: str, lines: Sequence[str] = ()) -> Figure:
    """A row for each model, a mark with its interval for each method (shares, 0 to 1); dashed lines for baselines.

    Parameters
    ----------
    table
        Columns model, method, mean, low, high, of one metric.
    label
        Of the axis.
    lines
        Titles of baselines among the rows of ``"no model"``.
    """
    models = [m for m in dict.fromkeys(table["model"]) if m != NO_MODEL]
    figure, ax = plt.subplots(figsize=(WIDTH, 1.6 + 0.62 * len(models)))
    for at, model in enumerate(models):
        rows = table[table["model"] == model].to_dict("records")
        for k, row in enumerate(rows):
            y = at + 0.72 * ((k + 0.5) / len(rows) - 0.5)
            looks = {**style(row["method"]), "ls": "none", "ms": 4.5, "capsize": 2, "elinewidth": 1.1}
            ax.errorbar(row["mean"], y, xerr=whiskers(row), **looks)
    of_lines = table[(table["model"] == NO_MODEL) & table["method"].isin(list(lines))]
    for dash, (_, row) in zip(("--", ":", "-.", (0, (1, 3))), of_lines.iterrows()):
        ax.axvline(row["mean"], color=INK["light"], ls=dash, lw=1.3, label=f"{row['method']}, {row['mean']:.1%}")
    for method in dict.fromkeys(table.loc[table["model"] != NO_MODEL, "method"]):
        ax.plot([], [], **style(method), ls="none", label=method)
    _rows(ax, models)
    ax.set(xlabel=label, xlim=(-0.03, 1.03))
    ax.xaxis.set_major_formatter(lambda v, _: f"{v:.0%}")
    figure.legend(loc="outside lower center", ncols=3, fontsize=8)
    return figure


def answer_panels(table: pd.DataFrame, label: str) -> Figure:
    """The same score of right answers (filled) and wrong ones (hollow), a panel for each."""
    figure, axes = plt.subplots(1, 2, figsize=(WIDTH, 4.2), sharey=True)
    models = list(dict.fromkeys(table["model"]))
    for ax, answer in zip(axes, ("right", "wrong")):
        for at, model in enumerate(models):
            rows = table[(table["model"] == model) & (table["answer"] == answer)].to_dict("records")
            for k, row in enumerate(rows):
                y = at + 0.72 * ((k + 0.5) / len(rows) - 0.5)
                face = style(row["method"])["color"] if answer == "right" else "none"
                looks = {**style(row["method"]), "ls": "none", "ms": 4.5, "capsize": 2, "elinewidth": 1.1}
                ax.errorbar(row["mean"], y, xerr=whiskers(row), mfc=face, **looks)
        ax.set_title(f"{answer} answers", fontsize=9.5)
        ax.set(xlabel=label, xlim=(-0.03, 1.03))
        ax.xaxis.set_major_formatter(lambda v, _: f"{v:.0%}")
        _rows(ax, models)
    for method in dict.fromkeys(table["method"]):
        axes[0].plot([], [], **style(method), ls="none", label=method)
    figure.legend(loc="outside lower center", ncols=4, fontsize=8)
    return figure


def curve_panels(table: pd.DataFrame) -> Figure:
    """Deletion above, insertion below, a column for each model: probability against the share of the tokens."""
    models = list(dict.fromkeys(table["model"]))
    figure, axes = plt.subplots(2, len(models), figsize=(WIDTH, 5.0), sharex=True, sharey=True, squeeze=False)
    for row, kind in zip(axes, ("deletion", "insertion")):
        for ax, model in zip(row, models):
            some = table[(table["model"] == model) & (table["kind"] == kind)]
            for k, (method, points) in enumerate(some.groupby("method", sort=False)):
                dash = "--" if method == RANDOM else LINESTYLES[k % len(LINESTYLES)]
                ax.plot(points["share"], points["mean"], **style(method), ls=dash, ms=3, lw=1.2, label=method)
            if kind == "deletion":
                ax.set_title(textwrap.fill(model, 18), fontsize=8.5)
        row[0].set_ylabel(f"{kind}\nprobability", fontsize=8.5)
    for ax in axes[1]:
        ax.set_xlabel("share of tokens", fontsize=8)
        ax.xaxis.set_major_formatter(lambda v, _: f"{v:.0%}")
    handles, labels = axes[0, 0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=4, fontsize=8)
    return figure


def cascade_panels(table: pd.DataFrame) -> Figure:
    """Agreement with the trained model's maps, from the head down: a panel for each model."""
    models = list(dict.fromkeys(table["model"]))
    columns = 3
    lines = -(-len(models) // columns)
    figure, axes = plt.subplots(lines, columns, figsize=(WIDTH, 2.9 * lines), sharey=True, squeeze=False)
    for ax in axes.flat[len(models) :]:
        ax.axis("off")
    for ax, model in zip(axes.flat, models):
        some = table[table["model"] == model]
        for k, (method, points) in enumerate(some.groupby("method", sort=False)):
            ax.plot(points["step"], points["mean"], **style(method), ls=LINESTYLES[k % len(LINESTYLES)], ms=3, lw=1.2)
        stages = some.drop_duplicates("step").sort_values("step")["stage"]
        ax.set_xticks(range(len(stages)), [s.removeprefix("fusion.") for s in stages], rotation=60, ha="right")
        ax.tick_params(axis="x", labelsize=6.5)
        ax.axhline(0, color=GRID["light"], lw=1)
        ax.set_title(model, fontsize=9)
        ax.set_ylim(min(-0.35, table["mean"].min() - 0.05), 1.05)
    for row in axes:
        row[0].set_ylabel("rank agreement", fontsize=8.5)
    marks = [plt.Line2D([], [], **style(m), label=m) for m in dict.fromkeys(table["method"])]
    figure.legend(handles=marks, loc="outside lower center", ncols=4, fontsize=8)
    return figure


def sanity_panels(table: pd.DataFrame) -> Figure:
    """Agreement with maps of random weights, of shuffled labels and of another seed: a panel for each."""
    kinds = list(dict.fromkeys(table["with"]))
    models = list(dict.fromkeys(table["model"]))
    figure, axes = plt.subplots(1, len(kinds), figsize=(WIDTH, 4.0), sharey=True, squeeze=False)
    for ax, kind in zip(axes.flat, kinds):
        for at, model in enumerate(models):
            rows = table[(table["model"] == model) & (table["with"] == kind)].to_dict("records")
            for k, row in enumerate(rows):
                y = at + 0.72 * ((k + 0.5) / len(rows) - 0.5)
                looks = {**style(row["method"]), "ls": "none", "ms": 4, "capsize": 2, "elinewidth": 1.1}
                ax.errorbar(row["mean"], y, xerr=whiskers(row), **looks)
        ax.axvline(0, color=INK["light"], lw=0.9, ls="--")
        ax.set_title(kind, fontsize=9)
        ax.set(xlabel="rank agreement", xlim=(-0.7, 1.05))
        _rows(ax, models)
    marks = [plt.Line2D([], [], **style(m), ls="none", label=m) for m in dict.fromkeys(table["method"])]
    figure.legend(handles=marks, loc="outside lower center", ncols=4, fontsize=8)
    return figure


def agreement_panels(table: pd.DataFrame) -> Figure:
    """Rank agreement of every two methods, a matrix for each model; blue agrees, red disagrees."""
    models = list(dict.fromkeys(table["model"]))
    columns = 3
    lines = -(-len(models) // columns)
    figure, axes = plt.subplots(lines, columns, figsize=(9.6, 3.3 * lines), squeeze=False)
    for ax in axes.flat[len(models) :]:
        ax.axis("off")
    for ax, (model, some) in zip(axes.flat, table.groupby("model", sort=False)):
        names = list(dict.fromkeys(some["method"]))
        for cell in some.to_dict("records"):
            i, j, value = names.index(cell["method"]), names.index(cell["other"]), cell["mean"]
            colour = PALETTE[0] if value >= 0 else HOT
            ax.add_patch(plt.Rectangle((j - 0.5, i - 0.5), 1, 1, fc=colour, alpha=0.7 * min(abs(value), 1), lw=0))
            ax.text(j, i, f"{value:.2f}".replace("-", "−"), ha="center", va="center", fontsize=6.5)
        ax.set_xticks(range(len(names)), names, rotation=60, ha="right", fontsize=7)
        ax.set_yticks(range(len(names)), names, fontsize=7)
        ax.set(xlim=(-0.5, len(names) - 0.5), ylim=(len(names) - 0.5, -0.5), aspect="equal")
        ax.grid(visible=False)
        ax.tick_params(length=0)
        ax.spines[:].set_color(GRID["light"])
        ax.set_title(model, fontsize=9)
    return figure


def drop_rows(table: pd.DataFrame) -> Figure:
    """How far the probability falls when tokens are removed, a row for each model and a mark for each choice."""
    looks = {"drop, random": (INK["light"], "x"), "drop, attended": STYLE[TITLES["own"]]}
    looks["drop, best"] = STYLE[TITLES["occlusion"]]
    names = {"drop, random": "at random", "drop, attended": "most attended", "drop, best": "best by occlusion"}
    models = list(dict.fromkeys(table["model"]))
    figure, ax = plt.subplots(figsize=(WIDTH, 1.5 + 0.4 * len(models)))
    for metric, (colour, marker) in looks.items():
        for row in table[table["metric"] == metric].to_dict("records"):
            at = models.index(row["model"]) + 0.2 * (list(looks).index(metric) - 1)
            ax.errorbar(row["mean"], at, xerr=whiskers(row), color=colour, marker=marker, ls="none", ms=5, capsize=2)
        ax.plot([], [], color=colour, marker=marker, ls="none", label=names[metric])
    _rows(ax, models)
    ax.set_xlabel("fall of the answer's probability")
    figure.legend(loc="outside lower center", ncols=3, fontsize=8.5)
    return figure


def _rows(ax: Axes, names: Sequence[str]) -> None:
    ax.set_yticks(range(len(names)), names, fontsize=8.5)
    ax.set_ylim(len(names) - 0.4, -0.6)
    ax.grid(axis="y", visible=False)
    ax.tick_params(axis="y", length=0)
    for i in range(1, len(names)):
        ax.axhline(i - 0.5, color=GRID["light"], lw=0.8)


BASELINE_LINES = tuple(t for name, t in BASELINE_TITLES.items() if name != "random")
