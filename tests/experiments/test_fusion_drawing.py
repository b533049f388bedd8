"""Drawings say what their tables say: rows, frames, frontiers, and a reader who sees no colour."""

import matplotlib
import numpy as np
import pandas as pd
import pytest

matplotlib.use("agg")

from vqa_core.experiments import fusion_drawing as drawing
from vqa_core.experiments.fusion import METHODS


@pytest.fixture(autouse=True)
def close_figures():
    yield
    drawing.plt.close("all")


def table(units, value=0.6):
    return pd.DataFrame({"unit": units, "mean": value, "low": value - 0.1, "high": value + 0.1})


def test_every_method_has_one_row_and_places_stand_together():
    assert sorted(drawing.ORDER) == sorted(METHODS)
    places = [drawing.place(u) for u in drawing.ORDER]
    assert list(dict.fromkeys(places)) == [p for p in drawing.PLACES if p in places]
    assert places == sorted(places, key=list(drawing.PLACES).index)


def test_places_differ_without_colour():
    looks = {(drawing.style(u)["marker"], drawing.style(u)["markerfacecolor"] == "none") for u in METHODS}
    assert len(looks) == len({drawing.place(u) for u in METHODS})


def test_frontier_keeps_what_nothing_cheaper_beats():
    priced = pd.DataFrame({"mean": [0.5, 0.7, 0.6, 0.9], "flops": [1, 2, 3, 4]}, index=list("abcd"))
    assert drawing.frontier(priced, "flops") == ["a", "b", "d"]
    assert drawing.frontier(priced.assign(flops=[1, 1, 1, 1]), "flops") == ["d"]


def test_flow_gives_the_shapes_it_was_told():
    figure, frames = drawing.flow(64, 19, 69, 15, 256, 32, 23)
    assert len(figure.axes) == frames["way"].nunique() == 6
    assert (frames["frame"] == "what was seen 152").sum() == 1  # 8 heads × 19
    assert (frames["frame"] == "head 23").sum() == 5  # late fusion has none


def test_forest_places_each_number_in_its_row():
    found = table(["late_mean", "pool_concat", "attend_film"]).assign(mean=[0.4, 0.5, 0.6])
    figure = drawing.forest(found, "accuracy", lines={"chance": 0.25}, stars=lambda row: row["mean"] > 0.55)
    ax = figure.axes[0]
    assert [t.get_text() for t in ax.get_yticklabels()] == ["late (mean)", "concat", "attend, FiLM"]
    points = [(c.lines[0].get_xdata()[0], c.lines[0].get_ydata()[0]) for c in ax.containers]
    assert points == [(0.4, 0), (0.5, 1), (0.6, 2)]
    assert sum(t.get_text() == "∗" for t in ax.texts) == 1
    assert "chance 25.0%" in [t.get_text() for t in ax.get_legend().get_texts()]


def test_whiskers_never_point_backwards():
    assert drawing.whiskers({"mean": 0.5, "low": 0.5 + 1e-17, "high": 0.7}) == [[0.0], [pytest.approx(0.2)]]


def test_attention_is_brightest_where_the_weight_is():
    heat = np.zeros((8, 4, 4))
    heat[:, 1, 2] = 0.9
    figure = drawing.attention_panels(np.full((32, 32, 3), 255, np.uint8), heat, "?")
    veil = figure.axes[1].images[1].get_array()[..., 3]
    assert np.unravel_index(veil.argmin(), veil.shape) == (1, 2)
    assert veil[0, 0] == pytest.approx(0.75)
