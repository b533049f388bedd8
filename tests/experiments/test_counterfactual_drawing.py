"""Drawings of the chapter on counterfactual attention say what their tables say."""

from __future__ import annotations

import matplotlib
import numpy as np
import pandas as pd
import pytest

matplotlib.use("agg")

from vqa_core.experiments import counterfactual_drawing as drawing
from vqa_core.experiments.counterfactual import UNITS
from vqa_core.experiments.counterfactual_readout import Example


@pytest.fixture(autouse=True)
def close_figures():
    yield
    drawing.plt.close("all")


def row(unit, mean, **more):
    title = UNITS[unit].title if unit in UNITS else unit
    return {"unit": unit, "title": title, **more, "mean": mean, "low": mean - 0.05, "high": mean + 0.05, "n": 5}


def test_with_and_without_differ_without_colour():
    assert drawing.look("with")["marker"] != drawing.look("without")["marker"] != drawing.look("centre")["marker"]


def test_setting_the_maps_removes_the_arrow_that_leads_to_them():
    figure, edges = drawing.causal_graph()
    to_maps = edges[edges["to"] == "maps A"]
    assert list(to_maps["graph"]) == ["as it is"]
    assert len(edges) == 7
    texts = [[t.get_text() for t in ax.texts if t.get_text()] for ax in figure.axes]
    assert "maps A" in texts[0]
    assert "maps Ā" in texts[1]


def test_kinds_share_one_scale():
    figure = drawing.kinds({"own": np.eye(3), "reversed": 2 * np.ones((3, 3))})
    assert [ax.get_title() for ax in figure.axes] == ["own", "reversed"]
    assert all(ax.images[0].get_clim() == (0, 2) for ax in figure.axes)


def test_forest_has_a_panel_for_each_metric_and_a_row_for_each_unit():
    rows = [row(u, m, metric=k) for k, m in (("accuracy", 0.1), ("IoU", 0.2)) for u in ("with", "zero", "centre")]
    figure = drawing.forest(pd.DataFrame(rows), zero=True, lines={"accuracy": 0.013}, xlabel="points")
    assert [ax.get_title() for ax in figure.axes] == ["accuracy", "IoU"]
    assert [t.get_text() for t in figure.axes[0].get_yticklabels()] == [r["title"] for r in rows[:3]]
    marks = [line for line in figure.axes[1].lines if line.get_marker() in "os" + drawing.MARKERS[5]]
    assert {float(line.get_xdata()[0]) for line in marks if len(line.get_xdata()) == 1} == {0.2}
    dotted = [[line.get_xdata()[0] for line in ax.lines if line.get_linestyle() == ":"] for ax in figure.axes]
    assert dotted == [[0.013], []]


def test_curves_have_a_line_for_each_unit():
    rows = [row(u, 0.5 + 0.1 * e, epoch=e) for u in ("without", "with") for e in (1, 2)]
    figure = drawing.learning_curves(pd.DataFrame(rows))
    assert [t.get_text() for t in figure.axes[0].get_legend().get_texts()] == [
        UNITS[u].title for u in ("without", "with")
    ]


@pytest.mark.parametrize("colour", [False, True])
def test_panels_show_outline_map_and_whether_the_answer_is_right(colour):
    picture, region = np.full((8, 8, 3) if colour else (8, 8), 0.5), np.zeros((8, 8), dtype=bool)
    region[2:5, 2:5] = True
    maps = {"without": np.ones((4, 4)), "with": np.eye(4)}
    answers = ("low", "high", "low")
    found = [Example(k, picture, region, maps, {"without": 0.1, "with": 0.9}, answers) for k in range(3)]
    figure = drawing.panels(found, {u: UNITS[u].title for u in maps}, "IoU")
    axes = np.array(figure.axes).reshape(3, 3)
    assert all(len(ax.images) == 1 for ax in axes[0])
    assert all(len(ax.images) == 2 for ax in axes[1:].flat)
    np.testing.assert_array_equal(axes[2, 1].images[1].get_array(), np.eye(4))
    assert axes[1, 0].get_xlabel() == "high ✗\nIoU 10.0%"
    assert axes[2, 0].get_xlabel() == "low ✓\nIoU 90.0%"
    assert all(ax.collections for ax in axes.flat)  # the outline
    assert axes[2, 0].get_ylabel() == UNITS["with"].title


def test_profiles_and_answers():
    table = pd.DataFrame([row(u, 2 - d, distance=d) for u in ("without", "with") for d in (0, 1)])
    assert len(drawing.profiles(table).axes[0].get_legend().get_texts()) == 2
    table = pd.DataFrame([row(u, 0.4, answer=a) for u in ("without", "with") for a in ("right", "wrong")])
    ax = drawing.by_answer(table, "energy").axes[0]
    assert [t.get_text() for t in ax.get_xticklabels()] == [UNITS[u].title for u in ("without", "with")]
    assert sorted(t.get_text() for t in ax.texts) == ["right", "right", "wrong", "wrong"]
