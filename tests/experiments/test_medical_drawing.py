"""Drawings of the medical chapter show the numbers that they are given."""

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
from matplotlib.colors import to_hex

from vqa_core import figures
from vqa_core.data import phantoms
from vqa_core.experiments import medical_drawing as drawing


@pytest.fixture(autouse=True)
def _style():
    figures.use_style()
    yield
    plt.close("all")


def interval(mean: float, **about) -> dict:
    return about | {"mean": mean, "low": mean - 0.1, "high": mean + 0.1, "n": 10}


def test_groups_of_bars_stand_at_their_means_and_lines_are_named():
    table = pd.DataFrame(
        [interval(0.2, row="a", group="x"), interval(0.4, row="a", group="y"), interval(0.6, row="b", group="x")]
    )
    figure = drawing.bars_with_rows(table, {"x": "X", "y": "Y"}, "accuracy", {"chance": 0.5})
    (ax,) = figure.axes
    drawn = sorted(float(x) for line in ax.lines if line.get_marker() in ("o", "s") for x in line.get_xdata())
    assert drawn == pytest.approx([0.2, 0.4, 0.6])
    assert [t.get_text() for t in ax.get_yticklabels()] == ["a", "b"]
    assert "chance, 50.0%" in [t.get_text() for t in figure.legends[0].get_texts()]


def test_the_best_of_each_column_is_framed():
    table = pd.DataFrame([interval(m, row=r, column=c) for r, c, m in [("a", "x", 0.2), ("b", "x", 0.3)]])
    (ax,) = drawing.heat_table(table, ["a", "b"], ["x"]).axes
    (frame,) = [p for p in ax.patches if not p.get_fill()]
    assert round(frame.get_y() + frame.get_height() / 2) == 1
    assert [t.get_text() for t in ax.texts] == ["20.0% ± 10.0", "30.0% ± 10.0"]


def test_an_audit_without_a_finding_shows_a_dash():
    table = pd.DataFrame(
        [
            {"data": "d", "splits": "train → test", "finding": "same pictures", "mean": 0.5},
            {"data": "e", "splits": "train → test", "finding": "same sentences", "mean": 0.25},
        ]
    )
    (ax,) = drawing.audit_map(table).axes
    assert [t.get_text() for t in ax.texts] == ["50.0%", "–", "–", "25.0%"]


def test_counts_of_phantoms_stand_in_their_cells():
    rows = [("finding", "mass", "head", 3), ("finding", "mass", "chest", 0)]
    table = pd.DataFrame([*rows, ("view", "ct", "axial", 1200)], columns=["of", "row", "column", "pictures"])
    findings, views = drawing.phantom_counts(table).axes
    assert [t.get_text() for t in findings.texts] == ["3", "–"]
    assert [t.get_text() for t in views.texts] == ["1,200"]
    assert [t.get_text() for t in findings.get_xticklabels()] == ["head", "chest"]
    assert [p.get_alpha() for p in findings.patches] == [0.65, 0.0]


def test_adaptation_draws_both_starts_and_chance():
    table = pd.DataFrame([interval(0.2 + 0.1 * k, start=s, step=k) for s in ("maml", "scratch") for k in range(3)])
    (ax,) = drawing.adaptation(table, 0.2).axes
    curves = [line for line in ax.lines if len(line.get_xdata()) == 3]
    assert [line.get_ydata().tolist() for line in curves] == [pytest.approx([0.2, 0.3, 0.4])] * 2
    assert len({to_hex(line.get_color()) for line in curves}) == 2


def test_the_gallery_outlines_what_a_small_answer_depends_on():
    shown = phantoms.generate(6, seed=1, size=48)
    small = [i for i in range(len(shown)) if 0 < shown.region_mask(i).mean() < 0.25][:2]
    whole = [i for i in range(len(shown)) if shown.region_mask(i).mean() >= 0.25][:2]
    axes = drawing.phantom_gallery(shown, [*small, *whole]).axes[:4]
    assert [len(ax.collections) for ax in axes] == [1, 1, 0, 0]
    assert np.array_equal(axes[0].images[0].get_array(), shown.picture(shown[small[0]].picture_id))
