"""The drawings of chapter 8: each function takes a table and returns a matplotlib figure."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping, Sequence

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from matplotlib.ticker import NullLocator, PercentFormatter

from vqa_core.experiments.fusion_drawing import whiskers
from vqa_core.figures import GRID, INK, LINESTYLES, MARKERS, PALETTE

WIDTH = 7.4  # inches; a page is 720 pixels wide


def panels(
    table: pd.DataFrame,
    by: str,
    titles: Mapping[str, str],
    hue: str,
    names: Mapping[str, str],
    x: str,
    xlabel: str,
    ylabel: str,
    *,
    percent: bool = True,
    log: bool = False,
    share_y: bool = False,
) -> Figure:
    """A panel for each value of ``by``, a curve with its band for each value of ``hue``.

    Parameters
    ----------
    table
        Columns by, hue, x, mean, low, high.
    by, titles
        Column of the panels, and value → title; values without rows have no panel.
    hue, names
        Column of the curves, and value → name. ``oracle``, ``random``, ``never_ask`` and ``always_ask`` are drawn thin.
    x, xlabel, ylabel
        Column of the axis, and names of both.
    percent, log, share_y
        y in per cent; x logarithmic; one scale for all panels.
    """
    titles = {k: v for k, v in titles.items() if (table[by] == k).any()}
    columns = min(3, len(titles))
    lines = -(-len(titles) // columns)
    figure, axes = plt.subplots(
        lines, columns, figsize=(max(WIDTH, 3.1 * columns), 0.9 + 2.7 * lines), squeeze=False, sharey=share_y
    )
    for ax in axes.flat[len(titles) :]:
        ax.axis("off")
    shown = {k: v for k, v in names.items() if (table[hue] == k).any()}
    for ax, (value, title) in zip(axes.flat, titles.items()):
        for k, name in enumerate(shown):
            rows = table[(table[by] == value) & (table[hue] == name)].sort_values(x)
            _line(ax, rows, x, name, k)
        ax.set(title=title, xlabel=xlabel)
        if log:
            _log_axis(ax, sorted(set(table[x])))
        if percent:
            ax.yaxis.set_major_formatter(PercentFormatter(1, decimals=None))
    for row in axes:
        row[0].set_ylabel(ylabel)
    _legend(figure, shown)
    return figure


THIN = ("oracle", "random", "never_ask", "always_ask")


def _line(ax, rows: pd.DataFrame, x: str, name: str, k: int) -> None:
    if name in THIN:
        ax.plot(rows[x], rows["mean"], color=INK["light"], ls=(":", "--")[THIN.index(name) % 2], lw=1.1, marker="")
        return
    looks = {"color": PALETTE[k % 6], "ls": LINESTYLES[k % 6], "marker": MARKERS[k % 6]}
    ax.plot(rows[x], rows["mean"], ms=3.5, lw=1.5, **looks)
    ax.fill_between(rows[x], rows["low"], rows["high"], color=PALETTE[k % 6], alpha=0.14, lw=0)


def _legend(figure: Figure, names: Mapping[str, str], columns: int = 3) -> None:
    marks = []
    for k, (name, title) in enumerate(names.items()):
        thin = {"color": INK["light"], "ls": (":", "--")[THIN.index(name) % 2] if name in THIN else "-", "lw": 1.1}
        full = {"color": PALETTE[k % 6], "ls": LINESTYLES[k % 6], "marker": MARKERS[k % 6], "ms": 4}
        marks.append(plt.Line2D([], [], label=title, **(thin | {"marker": ""} if name in THIN else full)))
    figure.legend(handles=marks, loc="outside lower center", ncols=min(columns, len(marks)), fontsize=9)


def _log_axis(ax, ticks: Sequence[float]) -> None:
    ax.set_xscale("log")
    ax.set_xticks(ticks, [f"{t:,g}" for t in ticks], fontsize=8)
    ax.xaxis.set_minor_locator(NullLocator())


def one_dimension(curves: pd.DataFrame, points: pd.DataFrame, draws: Mapping[str, np.ndarray]) -> Figure:
    """A regression whose posterior is known: the exact band, the learned one, and functions drawn from it.

    Parameters
    ----------
    curves
        Columns x, exact, exact_sd, learned, learned_sd.
    points
        Columns x, y.
    draws
        Title of a panel → functions (S, X) at the same x.
    """
    figure, axes = plt.subplots(1, 1 + len(draws), figsize=(9.6, 3.1), sharey=True)
    x = curves["x"]
    for k, name in enumerate(("exact", "learned")):
        mean, sd = curves[name], curves[f"{name}_sd"]
        axes[0].plot(x, mean, color=PALETTE[k], ls=LINESTYLES[k], marker="", label=name)
        axes[0].fill_between(x, mean - 2 * sd, mean + 2 * sd, color=PALETTE[k], alpha=0.16, lw=0)
    axes[0].set_title("mean ± 2 standard deviations", fontsize=10)
    axes[0].legend(fontsize=9, loc="upper left")
    for ax, (title, functions) in zip(axes[1:], draws.items()):
        for k, y in enumerate(functions):
            ax.plot(x, y, color=PALETTE[k % 6], marker="", ls="-", lw=1)
        ax.set_title(title, fontsize=10)
    for ax in axes:
        ax.plot(points["x"], points["y"], "o", color=INK["light"], ms=4)
        ax.set_xlabel("x")
    return figure


def posteriors(probabilities: np.ndarray, titles: Sequence[str], answers: Sequence[str], true: Sequence[str]) -> Figure:
    """Violins of the sampled probabilities of the four likeliest answers, a panel for each question.

    Parameters
    ----------
    probabilities
        (S, Q, A).
    titles, true
        Of the Q questions.
    answers
        The A answers.
    """
    columns = 2
    figure, axes = plt.subplots(
        -(-len(titles) // columns), columns, figsize=(WIDTH, 2.9 * -(-len(titles) // columns)), squeeze=False
    )
    for q, (ax, title) in enumerate(zip(axes.flat, titles)):
        best = probabilities[:, q].mean(0).argsort()[::-1][:4]
        parts = ax.violinplot(
            probabilities[:, q][:, best], positions=range(len(best)), orientation="horizontal", showmedians=True
        )
        for body in parts["bodies"]:
            body.set(facecolor=PALETTE[0], alpha=0.45)
        for key in ("cmins", "cmaxes", "cbars", "cmedians"):
            parts[key].set(color=PALETTE[0], lw=1)
        names = [f"{answers[i]} ✓" if answers[i] == true[q] else answers[i] for i in best]
        ax.set_yticks(range(len(best)), [textwrap.fill(n, 16) for n in names], fontsize=9)
        ax.set(xlim=(-0.02, 1.02), xlabel="probability")
        ax.invert_yaxis()
        ax.set_title(textwrap.fill(title, 42), fontsize=9.5, loc="left")
    return figure


def right_and_wrong(values: Mapping[str, tuple[np.ndarray, np.ndarray]], xlabel: str) -> tuple[Figure, pd.DataFrame]:
    """Densities of an uncertainty for right and for wrong answers, a panel for each data set; and their bins.

    Parameters
    ----------
    values
        Title → (values of right answers, values of wrong answers).
    xlabel
        What the values are.
    """
    figure, axes = plt.subplots(1, len(values), figsize=(max(WIDTH, 3.1 * len(values)), 3.0), squeeze=False)
    rows = []
    for ax, (title, both) in zip(axes[0], values.items()):
        top = max(float(np.concatenate(both).max()), 1e-6)
        edges = np.linspace(0, top, 26)
        for k, (name, x) in enumerate(zip(("right", "wrong"), both)):
            share = np.histogram(x, edges)[0] / max(len(x), 1)
            ax.stairs(share, edges, color=PALETTE[k], fill=True, alpha=0.25)
            ax.stairs(share, edges, color=PALETTE[k], lw=1.4, ls=LINESTYLES[k], label=name)
            rows += [{"data": title, "answers": name, "from": a, "share": s} for a, s in zip(edges, share)]
        ax.set(title=title, xlabel=xlabel)
        ax.yaxis.set_major_formatter(PercentFormatter(1, decimals=0))
    axes[0, 0].set_ylabel("share of answers")
    axes[0, 0].legend(fontsize=9)
    return figure, pd.DataFrame(rows)


def reliability(table: pd.DataFrame, names: Mapping[str, str]) -> Figure:
    """Accuracy against confidence, a panel for each method; sizes of points are numbers of questions.

    ``table`` has columns method, confidence, accuracy, count.
    """
    shown = {k: v for k, v in names.items() if (table["method"] == k).any()}
    figure, axes = plt.subplots(1, len(shown), figsize=(max(WIDTH, 2.6 * len(shown)), 2.9), sharey=True, squeeze=False)
    for k, (ax, (name, title)) in enumerate(zip(axes[0], shown.items())):
        rows = table[table["method"] == name]
        ax.plot([0, 1], [0, 1], color=INK["light"], ls="--", lw=1, marker="")
        ax.plot(rows["confidence"], rows["accuracy"], color=PALETTE[k], marker=MARKERS[k], ms=5)
        ax.set(xlim=(0, 1), ylim=(0, 1), xlabel="probability of the answer")
        ax.set_title(textwrap.fill(title, 24), fontsize=10)
        for axis in (ax.xaxis, ax.yaxis):
            axis.set_major_formatter(PercentFormatter(1, decimals=0))
    axes[0, 0].set_ylabel("share that is right")
    return figure


def sweep(table: pd.DataFrame, marked: tuple[float, float]) -> Figure:
    """Test NLL over (α, σ₀) as a heat table; the validation's best is framed, ``marked`` (σ₀, α) has a star."""
    sigmas, alphas = sorted(set(table["sigma"])), sorted(set(table["alpha"]))
    found = table.set_index(["sigma", "alpha"])
    figure, ax = plt.subplots(figsize=(WIDTH, 1.4 + 0.5 * len(sigmas)))
    low, high = table["mean"].min(), table["mean"].quantile(0.9)  # the worst would hide all other differences
    for (sigma, alpha), cell in found.iterrows():
        at = alphas.index(alpha), sigmas.index(sigma)
        strength = 0.65 * max(0.0, high - cell["mean"]) / max(high - low, 1e-9)
        ax.add_patch(plt.Rectangle((at[0] - 0.5, at[1] - 0.5), 1, 1, fc=PALETTE[0], alpha=strength, lw=0))
        star = " ★" if np.allclose((sigma, alpha), marked) else ""
        half = (cell["high"] - cell["low"]) / 2
        ax.text(*at, f"{cell['mean']:.3f} ± {half:.3f}{star}", ha="center", va="center", fontsize=9)
        if cell["best"] == "yes":
            frame = (at[0] - 0.48, at[1] - 0.46), 0.96, 0.92
            ax.add_patch(plt.Rectangle(*frame, fill=False, ec=PALETTE[1], lw=1.8))
    ax.set_xticks(range(len(alphas)), [f"{a:g}" for a in alphas])
    ax.set_yticks(range(len(sigmas)), [f"{s:g}" for s in sigmas])
    ax.set(xlim=(-0.5, len(alphas) - 0.5), ylim=(-0.5, len(sigmas) - 0.5))
    ax.set(xlabel="α, weight of the KL divergence", ylabel="σ₀ of the prior")
    ax.grid(visible=False)
    ax.tick_params(length=0)
    ax.spines[:].set_color(GRID["light"])
    return figure


def broken(
    table: pd.DataFrame, by: str, titles: Mapping, rules: Mapping[str, str], delta: float, xlabel: str
) -> Figure:
    """Shares of broken promises: a panel for each value of ``by``, a row for each promise, a colour for each rule.

    Parameters
    ----------
    table
        Columns by, rule, promise, mean, low, high.
    delta
        What the guarantee allows; drawn as a line.
    """
    titles = {k: v for k, v in titles.items() if (table[by] == k).any()}
    figure, axes = plt.subplots(1, len(titles), figsize=(max(WIDTH, 3.1 * len(titles)), 3.2), squeeze=False)
    for ax, (value, title) in zip(axes[0], titles.items()):
        some = table[table[by] == value]
        promises = sorted(set(some["promise"]))
        for k, rule in enumerate(rules):
            for row in some[some["rule"] == rule].to_dict("records"):
                at = promises.index(row["promise"]) + 0.22 * (k - (len(rules) - 1) / 2)
                looks = {"color": PALETTE[k], "marker": MARKERS[k], "ls": "none", "ms": 5, "capsize": 2}
                ax.errorbar(row["mean"], at, xerr=whiskers(row), **looks)
        ax.axvline(delta, color=INK["light"], ls="--", lw=1, marker="")
        ax.set_yticks(range(len(promises)), [f"{100 * p:g} %" for p in promises])
        ax.set(title=title, xlabel=xlabel, xlim=(-0.03, 1.03), ylim=(len(promises) - 0.5, -0.5))
        ax.xaxis.set_major_formatter(PercentFormatter(1, decimals=0))
    axes[0, 0].set_ylabel("promised risk")
    marks = [
        plt.Line2D([], [], color=PALETTE[k], marker=MARKERS[k], ls="none", label=title)
        for k, title in enumerate(rules.values())
    ]
    marks.append(plt.Line2D([], [], color=INK["light"], ls="--", marker="", label=f"δ = {delta:.0%}"))
    figure.legend(handles=marks, loc="outside lower center", ncols=len(marks), fontsize=9)
    return figure


def differences(
    table: pd.DataFrame, by: str, titles: Mapping[str, str], rows: Mapping[str, str], xlabel: str
) -> Figure:
    """Differences with their intervals: a panel for each value of ``by``, a row for each method, a line at zero.

    Parameters
    ----------
    table
        Columns by, method, mean, low, high.
    by, titles
        Column of the panels, and value → title; values without rows have no panel.
    rows
        Method → name, from top to bottom.
    """
    titles = {k: v for k, v in titles.items() if (table[by] == k).any()}
    rows = {k: v for k, v in rows.items() if (table["method"] == k).any()}
    figure, axes = plt.subplots(1, len(titles), figsize=(9.6, 1.2 + 0.32 * len(rows)), sharey=True, squeeze=False)
    for ax, (value, title) in zip(axes[0], titles.items()):
        for at, method in enumerate(rows):
            for row in table[(table[by] == value) & (table["method"] == method)].to_dict("records"):
                k = 0 if row["high"] < 0 else 1 if row["low"] > 0 else 5  # lower is better
                looks = {"color": PALETTE[k], "marker": MARKERS[k], "ls": "none", "ms": 5, "capsize": 2}
                ax.errorbar(row["mean"], at, xerr=whiskers(row), **looks)
        ax.axvline(0, color=INK["light"], ls="--", lw=1, marker="")
        ax.set(xlabel=xlabel)
        ax.set_title(title, fontsize=10)
    axes[0, 0].set_yticks(range(len(rows)), list(rows.values()))
    axes[0, 0].set_ylim(len(rows) - 0.5, -0.5)
    marks = [
        plt.Line2D([], [], color=PALETTE[k], marker=MARKERS[k], ls="none", label=name)
        for k, name in ((0, "lower"), (1, "higher"), (5, "interval holds zero"))
    ]
    figure.legend(handles=marks, loc="outside lower center", ncols=3, fontsize=9)
    return figure


def shift(table: pd.DataFrame, parts: Mapping[str, str], metrics: Mapping[str, str], promise: float) -> Figure:
    """What a fixed threshold does while the pictures change: a row for each part, a panel for each metric.

    Parameters
    ----------
    table
        Columns part, metric, mean, low, high.
    parts, metrics
        Name → title; parts from top to bottom.
    promise
        Drawn as a line in the panel ``risk``.
    """
    parts = {k: v for k, v in parts.items() if (table["part"] == k).any()}
    figure, axes = plt.subplots(1, len(metrics), figsize=(9.6, 1.2 + 0.3 * len(parts)), sharey=True)
    for k, (ax, (metric, title)) in enumerate(zip(axes, metrics.items())):
        for at, part in enumerate(parts):
            for row in table[(table["part"] == part) & (table["metric"] == metric)].to_dict("records"):
                looks = {"color": PALETTE[k], "marker": MARKERS[k], "ls": "none", "ms": 5, "capsize": 2}
                ax.errorbar(row["mean"], at, xerr=whiskers(row), **looks)
        if metric == "risk":
            ax.axvline(promise, color=INK["light"], ls="--", lw=1, marker="")
        ax.set_title(title, fontsize=10)
        ax.set_xlim(left=0)
        if metric in ("accuracy", "coverage", "risk"):
            ax.xaxis.set_major_formatter(PercentFormatter(1, decimals=0))
    axes[0].set_yticks(range(len(parts)), list(parts.values()))
    axes[0].set_ylim(len(parts) - 0.5, -0.5)
    return figure
