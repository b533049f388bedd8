"""The drawings of the chapter on fusion: each function takes a table and returns a matplotlib figure.

One colour and one marker for each place where picture and question meet, the same in every figure.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from vqa_core.experiments.fusion import HEADS, METHODS
from vqa_core.figures import GRID, INK, MARKERS, PALETTE

#: Place → how it is called in legends, in the order of the rows of every figure.
PLACES = {
    "nowhere": "one side hidden",
    "answers": "answers (late)",
    "linear": "pooled vectors, linear head",
    "pooled": "pooled vectors",
    "tokens": "every token",
    "sequence": "one sequence (early)",
    "attended": "attended tokens",
}
COLOURS = dict(zip(PLACES, (PALETTE[i] for i in (5, 2, 0, 0, 4, 3, 1))))
SHAPES = dict(zip(PLACES, "Psoo^Dv"))


def place(unit: str) -> str:
    """Where the modalities meet in a method: a key of :data:`PLACES`."""
    return "linear" if METHODS[unit].head == "linear" else METHODS[unit].meets


#: All methods in the order of the rows.
ORDER = [unit for name in PLACES for unit in METHODS if place(unit) == name]


def title(unit: str) -> str:
    """Name of a method for people."""
    return METHODS[unit].title


def style(unit: str) -> dict[str, Any]:
    """Colour and marker of a method; hollow where the head is linear."""
    name = place(unit)
    face = "none" if name == "linear" else COLOURS[name]
    return {"color": COLOURS[name], "marker": SHAPES[name], "markerfacecolor": face, "linestyle": "none"}


def whiskers(row: Mapping[str, float]) -> list[list[float]]:
    """An interval as matplotlib's ``errorbar`` wants it: its length to the left and to the right."""
    return [[max(0.0, row["mean"] - row["low"])], [max(0.0, row["high"] - row["mean"])]]


def legend(figure: Figure, units: Sequence[str], columns: int = 3) -> None:
    """Below the drawing: what the colours and markers of these methods mean."""
    names = [n for n in PLACES if n in {place(u) for u in units}]
    first = {n: next(u for u in units if place(u) == n) for n in names}
    marks = [plt.Line2D([], [], **style(first[n]), label=PLACES[n]) for n in names]
    figure.legend(handles=marks, loc="outside lower center", ncols=columns, fontsize=8)


def _rows(ax, units: Sequence[str]) -> None:
    """Name the rows, top to bottom, and part the places by lines."""
    ax.set_yticks(range(len(units)), [title(u) for u in units])
    ax.set_ylim(len(units) - 0.4, -0.6)
    ax.grid(axis="y", visible=False)
    ax.tick_params(axis="y", length=0, labelsize=8.5)
    for i in range(1, len(units)):
        if place(units[i]) != place(units[i - 1]):
            ax.axhline(i - 0.5, color=GRID["light"], lw=1)


# -- flow of tensors --------------------------------------------------------------------------------------------------


def flow(
    cells: int, image: int, text: int, slots: int, dim: int, narrow: int, answers: int
) -> tuple[Figure, pd.DataFrame]:
    """Six ways from tokens to an answer, with their shapes; the figure, and a table of what stands in its frames.

    Parameters
    ----------
    cells, image
        Image tokens and their features.
    text, slots
        Features of the question, and the most tokens that it has.
    dim, narrow
        Width of the fused vector, and of the fusions that work on every token.
    answers
        How many there are.
    """
    i, q = f"image tokens\n{cells} × {image}", f"question\n{text}"
    pooled, head = f"pooled picture\n{image}", f"head\n{answers}"
    own = f"classifier\n{answers}"
    panels: dict[str, tuple[dict[str, tuple[float, float, str]], str]] = {
        "answers (late)": (
            {
                "i": (0, 4, pooled),
                "q": (2, 4, q),
                "a": (0, 2.8, own),
                "b": (2, 2.8, own),
                "j": (1, 1.6, f"mean\n{answers}"),
            },
            "ia qb aj bj",
        ),
        "pool, then fuse": (
            {"i": (0, 4, i), "q": (2, 4, q), "a": (0, 2.8, pooled), "f": (1, 1.6, f"fuse\n{dim}"), "j": (1, 0.4, head)},
            "ia af qf fj",
        ),
        "fuse at every token": (
            {
                "i": (0, 4, i),
                "q": (2, 4, q),
                "f": (1, 2.8, f"fuse\n{cells} × {narrow}"),
                "s": (1, 1.6, f"sum\n{narrow}"),
            }
            | {"j": (1, 0.4, head)},
            "if qf fs sj",
        ),
        "attend, then fuse": (
            {"i": (0, 4, i), "q": (2, 4, q), "a": (0, 2.8, f"{HEADS} looks\n{HEADS} × {cells}"), "j": (2, 0.4, head)}
            | {"r": (0, 1.6, f"what was seen\n{HEADS * image}"), "f": (2, 1.6, f"fuse\n{dim}")},
            "ia qa ar rf qf fj",
        ),
        "one sequence (early)": (
            {"i": (0, 4, i), "q": (2, 4, f"slots\nup to {slots} × {text}"), "j": (1, 0.4, head)}
            | {"s": (1, 2.8, f"sequence\n(1 + {cells} + slots) × {narrow}")}
            | {"t": (1, 1.6, f"two transformer blocks\n{narrow}")},
            "is qs st tj",
        ),
        "hybrid": (
            {"i": (0, 4, i), "q": (2, 4, q), "a": (0, 2.8, f"alone\n{dim}"), "b": (2, 2.8, f"alone\n{dim}")}
            | {"f": (1, 2.8, f"attend, fuse\n{dim}"), "c": (1, 1.6, f"joined\n{dim}"), "j": (1, 0.4, head)},
            "ia qb if qf ac bc fc cj",
        ),
    }
    figure, axes = plt.subplots(2, 3, figsize=(8.6, 6.6))
    for ax, (name, (nodes, edges)) in zip(axes.flat, panels.items()):
        _draw_flow(ax, nodes, edges.split())
        ax.set(xlim=(-0.7, 2.7), ylim=(-0.1, 4.5), title=name)
        ax.axis("off")
    frames = [(name, text.replace("\n", " ")) for name, (nodes, _) in panels.items() for *_, text in nodes.values()]
    return figure, pd.DataFrame(frames, columns=["way", "frame"])


def _draw_flow(ax, nodes, edges) -> None:
    seen = {"i": {2}, "q": {0}}  # what a node depends on: picture, question
    for key in sorted(nodes, key=lambda k: -nodes[k][1]):
        seen.setdefault(key, set()).update(*(seen[a] for a, b in edges if b == key))
    frames = {}
    for key, (x, y, text) in nodes.items():
        both = len(seen[key]) > 1
        box = {
            "boxstyle": "round,pad=0.3",
            "fc": "none",
            "ec": PALETTE[4 if both else min(seen[key])],
            "lw": 2.2 if both else 1.3,
        }
        frames[key] = ax.text(x, y, text, ha="center", va="center", fontsize=8, bbox=box).get_bbox_patch()
    for a, b in edges:
        ends = {"patchA": frames[a], "patchB": frames[b], "shrinkA": 1, "shrinkB": 2}
        ax.annotate(
            "", nodes[b][:2], nodes[a][:2], arrowprops={"arrowstyle": "-|>", "color": INK["light"], "lw": 0.9} | ends
        )


# -- accuracies -------------------------------------------------------------------------------------------------------


def family_panels(table: pd.DataFrame, chance: Mapping[str, float]) -> Figure:
    """A panel for each family of ``chance``, a row for each method of the table; bars start at chance.

    ``table`` is that of :func:`~vqa_core.experiments.readout.accuracy_table`.
    """
    by = table.set_index(["unit", "family"])
    units = list(dict.fromkeys(table["unit"]))
    figure, axes = plt.subplots(1, len(chance), figsize=(9.6, 1.6 + 0.2 * len(units)), sharey=True)
    for ax, (family, level) in zip(axes, chance.items()):
        _rows(ax, units)
        for at, unit in enumerate(units):
            row = by.loc[(unit, family)]
            ax.barh(at, row["mean"] - level, left=level, height=0.64, color=COLOURS[place(unit)], alpha=0.3, lw=0)
            ax.errorbar(row["mean"], at, xerr=whiskers(row), capsize=2, lw=1.2, ms=3.8, elinewidth=1.2, **style(unit))
        ax.axvline(level, color=INK["light"], ls="--", lw=0.9)
        ax.set_title(family.replace("_", "\n"), fontsize=9)
        ax.set(xlim=(0, 1.03), xticks=[0, 0.5, 1], xticklabels=["0", "½", "1"])
    legend(figure, units, columns=4)
    return figure


def forest(
    table: pd.DataFrame,
    xlabel: str,
    *,
    limits: tuple[float, float] | None = None,
    lines: Mapping[str, float] | None = None,
    zero: bool = False,
    stars: Callable[[Mapping[str, Any]], bool] | None = None,
) -> Figure:
    """A row for each method: its number and its interval.

    Parameters
    ----------
    table
        Columns unit, mean, low, high, in the order of the rows.
    limits
        Of the axis; ``None`` leaves them to matplotlib.
    lines
        Name → where a vertical line stands; named above the drawing.
    zero
        A line at 0, and the axis in percentage points: for differences.
    stars
        Which rows get a star.
    """
    units = list(table["unit"])
    figure, ax = plt.subplots(figsize=(7.2, 0.9 + 0.21 * len(units) + 0.6))
    _rows(ax, units)
    for at, row in enumerate(table.to_dict("records")):
        ax.errorbar(row["mean"], at, xerr=whiskers(row), capsize=2, lw=1.2, elinewidth=1.2, **style(row["unit"]))
        if stars is not None and stars(row):
            ax.annotate("∗", (row["high"], at), xytext=(4, -5), textcoords="offset points", fontsize=11)
    for (name, at), dash in zip((lines or {}).items(), (":", "--", "-.")):
        ax.axvline(at, ls=dash, lw=1.3, color=INK["light"], label=f"{name} {at:.1%}")
    if lines:
        ax.legend(loc="lower left", bbox_to_anchor=(0, 1.0), ncols=3, fontsize=8, borderaxespad=0.2)
    if zero:
        ax.axvline(0, color=INK["light"], lw=1)
        ax.xaxis.set_major_formatter(lambda v, _: f"{100 * v:+.0f}".replace("-", "−").replace("+0", "0"))
    ax.set(xlabel=xlabel, xlim=limits)
    legend(figure, units)
    return figure


def climb(table: pd.DataFrame, chosen: Mapping[str, str], order: Sequence[str], chance: Mapping[str, float]) -> Figure:
    """Families as rows, from bottom to top in ``order``; what each of three methods reaches on them.

    Parameters
    ----------
    table
        That of :func:`~vqa_core.experiments.readout.accuracy_table`.
    chosen
        Three steps → method.
    chance
        Family → accuracy of the words alone.
    """
    by = table.set_index(["unit", "family"])
    looks = list(zip("osv", (COLOURS["nowhere"], COLOURS["pooled"], COLOURS["attended"]), strict=True))
    figure, ax = plt.subplots(figsize=(7.4, 4.4))
    for at, family in enumerate(order):
        found = [by.loc[(unit, family)] for unit in chosen.values()]
        ax.vlines(chance[family], at - 0.36, at + 0.36, color=INK["light"], ls="--", lw=1.2)
        for before, after, (_, colour) in zip(found, found[1:], looks[1:]):
            ax.hlines(at, before["mean"], after["mean"], color=colour, lw=7, alpha=0.3)
        for row, (mark, colour) in zip(found, looks):
            ax.errorbar(row["mean"], at, xerr=whiskers(row), fmt=mark, color=colour, capsize=2, ms=6, elinewidth=1.2)
    names = [f"{step}: {title(unit)}" for step, unit in chosen.items()]
    marks = [plt.Line2D([], [], marker=m, color=c, ls="none", label=n) for (m, c), n in zip(looks, names)]
    marks.append(plt.Line2D([], [], color=INK["light"], ls="--", lw=1.2, marker="", label="chance"))
    figure.legend(handles=marks, loc="outside lower center", ncols=2, fontsize=8)
    ax.set_yticks(range(len(order)), [f.replace("_", " ") for f in order])
    ax.set(xlim=(0, 1.02), xlabel="accuracy")
    return figure


def scatter_of_splits(seen: pd.DataFrame, unseen: pd.DataFrame) -> Figure:
    """Accuracy on unseen combinations against accuracy on seen ones; both tables have the methods as index."""
    figure, ax = plt.subplots(figsize=(6.0, 5.6))
    low = max(0.0, min(seen["low"].min(), unseen["low"].min()) - 0.02)
    ax.plot([low, 1], [low, 1], color=INK["light"], lw=1, ls="--", marker="")
    for unit in seen.index:
        a, b = seen.loc[unit], unseen.loc[unit]
        ax.errorbar(a["mean"], b["mean"], xerr=whiskers(a), yerr=whiskers(b), elinewidth=1, **style(unit))
    ax.set(xlabel="accuracy, combinations as in training", ylabel="accuracy, unseen combinations", aspect="equal")
    ax.set(xlim=(low, 1), ylim=(low, 1))
    legend(figure, list(seen.index))
    return figure


def learning_curves(curves: pd.DataFrame, runs: Mapping[str, Sequence[Any]]) -> Figure:
    """Validation accuracy by epoch: the mean of each of up to six methods, and thinly every seed."""
    figure, ax = plt.subplots(figsize=(8.0, 4.2))
    for (unit, some), colour, marker in zip(curves.groupby("unit", sort=False), PALETTE, MARKERS):
        ax.plot(some["epoch"], some["mean"], color=colour, marker=marker, ls="-", label=title(unit))
        for run in runs[unit]:
            each = [e["validation"] for e in run.details["history"]]
            ax.plot(some["epoch"], each, color=colour, lw=0.7, alpha=0.5, marker="", ls="-")
    ax.set(xlabel="epoch", ylabel="validation accuracy")
    ax.xaxis.get_major_locator().set_params(integer=True)
    ax.legend(fontsize=8.5, loc="center left", bbox_to_anchor=(1, 0.5))
    return figure


def matrix_of_panels(table: pd.DataFrame, rows: Mapping[str, str], base: Mapping[str, float], styles) -> Figure:
    """A panel for each data set (column ``data``), the same rows in each (column ``row``), a line at ``base``."""
    names = list(dict.fromkeys(table["data"]))
    figure, axes = plt.subplots(1, len(names), figsize=(9.0, 1.0 + 0.27 * len(rows)), sharey=True, squeeze=False)
    for ax, name in zip(axes.flat, names):
        for row in table[table["data"] == name].to_dict("records"):
            at = list(rows).index(row["row"])
            ax.errorbar(row["mean"], at, xerr=whiskers(row), capsize=2, elinewidth=1.2, **styles(row["row"]))
        if name in base:
            ax.axvline(base[name], ls="--", lw=1, color=INK["light"])
        ax.set_title(name, fontsize=9.5)
        ax.set(xlabel="accuracy", ylim=(len(rows) - 0.5, -0.5))
        ax.set_yticks(range(len(rows)), list(rows.values()))
        ax.tick_params(axis="y", labelsize=8.5)
        ax.locator_params(axis="x", nbins=4)
    return figure


# -- costs ------------------------------------------------------------------------------------------------------------

PRICES = {
    "flops": "FLOPs per question",
    "parameters": "parameters",
    "seconds_per_step": "seconds per training step",
    "activation_mb": "activations per training step, MB",
}


def frontier(priced: pd.DataFrame, price: str) -> list[str]:
    """Methods that no other beats at a lower or equal price; ``priced`` has the methods as index and ``mean``."""
    ordered = priced.sort_values([price, "mean"], ascending=[True, False])
    return list(ordered.index[ordered["mean"] > ordered["mean"].cummax().shift(fill_value=-1)])


def price_panels(priced: pd.DataFrame) -> Figure:
    """Accuracy against each of :data:`PRICES`; the frontier is numbered, and its methods are named in the panel."""
    figure, axes = plt.subplots(2, 2, figsize=(8.8, 7.2), sharey=True)
    for ax, (price, label) in zip(axes.flat, PRICES.items()):
        front = frontier(priced, price)
        ax.step(
            priced.loc[front, price],
            priced.loc[front, "mean"],
            where="post",
            color=INK["light"],
            lw=0.9,
            ls=":",
            marker="",
        )
        for unit, row in priced.iterrows():
            ax.plot(row[price], row["mean"], **style(unit))
        for number, unit in enumerate(front, 1):
            at = priced.loc[unit, price], priced.loc[unit, "mean"]
            ax.annotate(
                str(number), at, xytext=(-4, 5), textcoords="offset points", ha="right", fontsize=8.5, weight="bold"
            )
        named = "\n".join(f"{number} {title(unit)}" for number, unit in enumerate(front, 1))
        ax.annotate(named, (0.02, 0.98), xycoords="axes fraction", ha="left", va="top", fontsize=8)
        ax.set(xscale="log", xlabel=label)
        ax.xaxis.set_minor_formatter("")
        ax.margins(x=0.12, y=0.12)
    for ax in axes[:, 0]:
        ax.set_ylabel("accuracy")
    legend(figure, list(priced.index))
    return figure


def cost_curves(timings: pd.DataFrame, names: Mapping[str, str]) -> Figure:
    """Seconds against tokens, both logarithmic: columns unit, tokens, mean, low, high; up to seven methods."""
    figure, ax = plt.subplots(figsize=(8.6, 4.6))
    colours, markers = (*PALETTE, INK["light"]), (*MARKERS, "X")
    for (unit, some), colour, marker in zip(timings.groupby("unit", sort=False), colours, markers):
        ax.plot(some["tokens"], some["mean"], label=names[unit], ms=4.5, color=colour, marker=marker, ls="-")
        low = some["low"].clip(lower=some["mean"] / 4)  # a logarithmic axis has no room for an end at 0
        ax.fill_between(some["tokens"], low, some["high"], color=colour, alpha=0.15, lw=0)
    sizes = sorted(set(timings["tokens"]))
    ax.set(xscale="log", yscale="log", xlabel="tokens of both sides", ylabel="seconds per question (forward)")
    ax.set_xticks(sizes, [f"{s:,}" for s in sizes])
    ax.minorticks_off()
    ax.legend(
        fontsize=8.5,
        title="exponent, measured (predicted)",
        title_fontsize=8.5,
        loc="center left",
        bbox_to_anchor=(1, 0.5),
    )
    return figure


# -- attention --------------------------------------------------------------------------------------------------------


def attention_panels(image: np.ndarray, heat: np.ndarray, heading: str) -> Figure:
    """A picture (H, W, 3), and over it the weights of eight heads (8, rows, columns)."""
    side = image.shape[1]
    figure, axes = plt.subplots(3, 3, figsize=(6.2, 6.9))
    for ax in axes.flat:
        ax.imshow(image, extent=(0, side, side, 0))
        ax.axis("off")
    axes[0, 0].set_title("the picture", fontsize=9)
    for number, (weights, ax) in enumerate(zip(heat, axes.flat[1:], strict=True), 1):
        veil = 0.75 * (1 - weights / max(float(heat.max()), 1e-6))  # what has no weight is dark
        ax.imshow(np.dstack([np.zeros((*veil.shape, 3)), veil]), extent=(0, side, side, 0))
        ax.set_title(f"head {number}: {weights.sum():.0%} on cells", fontsize=9)
    figure.suptitle(heading, fontsize=10)
    return figure
