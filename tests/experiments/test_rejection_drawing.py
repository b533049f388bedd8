"""Drawings of the chapter on declining show the numbers that they are given."""

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest

from vqa_core import figures
from vqa_core.experiments import rejection_drawing as drawing


@pytest.fixture(autouse=True)
def _style():
    figures.use_style()
    yield
    plt.close("all")


def interval(mean: float, **about) -> dict:
    return about | {"mean": mean, "low": mean - 0.1, "high": mean + 0.1, "n": 10}


def points(ax) -> list[tuple[float, float]]:
    """(x, y) of the markers of all error bars, which are lines of one point with a marker."""
    return [(float(line.get_xdata()[0]), float(line.get_ydata()[0])) for line in ax.lines
            if len(line.get_xdata()) == 1 and line.get_marker() not in ("|", "_", "None", "")]  # fmt: skip


@pytest.mark.parametrize("log", [False, True])
def test_panels_have_a_curve_with_a_band_for_each_name(log):
    table = pd.DataFrame(
        [
            interval(m + x, data=data, method=method, x=x)
            for data, method, m in [("a", "full", 0.2), ("a", "random", 0.5), ("b", "full", 0.3)]
            for x in (0.4, 0.2, 0.1)
        ]
    )
    titles, names = {"a": "A", "b": "B", "c": "C"}, {"full": "Bayes", "last": "last", "random": "chance"}
    figure = drawing.panels(table, "data", titles, "method", names, "x", "coverage", "accuracy", log=log)
    assert [ax.get_title() for ax in figure.axes] == ["A", "B"]  # c has no row
    first, second = figure.axes
    np.testing.assert_allclose(first.lines[0].get_xdata(), [0.1, 0.2, 0.4])  # sorted
    np.testing.assert_allclose(first.lines[0].get_ydata(), [0.3, 0.4, 0.6])
    np.testing.assert_allclose(first.lines[1].get_ydata(), [0.6, 0.7, 0.9])
    assert len(first.collections) == 1  # a thin line has no band
    band = first.collections[0].get_paths()[0].vertices[:, 1]
    assert (band.min(), band.max()) == pytest.approx((0.2, 0.7))
    np.testing.assert_allclose(second.lines[0].get_ydata(), [0.4, 0.5, 0.7])
    assert [t.get_text() for t in figure.legends[0].get_texts()] == ["Bayes", "chance"]
    assert first.get_xscale() == ("log" if log else "linear")


def test_one_dimension_draws_both_bands_the_points_and_the_functions():
    x = np.linspace(0, 1, 5)
    curves = pd.DataFrame({"x": x, "exact": x, "exact_sd": 0.1, "learned": 2 * x, "learned_sd": 0.2})
    given = pd.DataFrame({"x": [0.2, 0.4], "y": [0.1, 0.3]})
    left, right = drawing.one_dimension(curves, given, {"draws": np.stack([x, 1 - x])}).axes
    np.testing.assert_allclose(left.lines[1].get_ydata(), 2 * x)
    exact = left.collections[0].get_paths()[0].vertices[:, 1]
    assert (exact.min(), exact.max()) == pytest.approx((-0.2, 1.2))  # two standard deviations
    np.testing.assert_allclose(right.lines[1].get_ydata(), 1 - x)
    for ax in (left, right):
        np.testing.assert_allclose(ax.lines[-1].get_ydata(), [0.1, 0.3])


def test_posteriors_show_the_four_likeliest_answers_and_mark_the_true_one():
    p = np.tile([0.05, 0.4, 0.3, 0.15, 0.1], (20, 2, 1)) + 0.001 * np.random.default_rng(0).random((20, 2, 5))
    figure = drawing.posteriors(p, ["which?", "what?"], list("abcde"), ["c", "a"])
    first, second = figure.axes
    assert [t.get_text() for t in first.get_yticklabels()] == ["b", "c ✓", "d", "e"]
    assert [t.get_text() for t in second.get_yticklabels()] == ["b", "c", "d", "e"]  # the true one is unlikely
    assert [ax.get_title(loc="left") for ax in figure.axes] == ["which?", "what?"]
    widths = first.collections[0].get_paths()[0].vertices[:, 0]
    assert (widths.min(), widths.max()) == pytest.approx((0.4, 0.401), abs=1e-3)


def test_right_and_wrong_are_shares_of_each():
    right, wrong = np.array([0.0, 0.0, 0.0, 1.0]), np.array([1.0, 1.0])
    figure, table = drawing.right_and_wrong({"scenes": (right, wrong), "none": (np.zeros(3), np.zeros(0))}, "nats")
    shares = table[table["data"] == "scenes"].groupby("answers")["share"]
    assert shares.sum().to_dict() == pytest.approx({"right": 1, "wrong": 1})
    assert shares.first().to_dict() == pytest.approx({"right": 0.75, "wrong": 0})
    assert shares.last().to_dict() == pytest.approx({"right": 0.25, "wrong": 1})
    np.testing.assert_allclose(figure.axes[0].patches[0].get_data().values, shares.get_group("right"))
    assert [ax.get_title() for ax in figure.axes] == ["scenes", "none"]


def test_reliability_lies_beside_its_diagonal():
    table = pd.DataFrame({"method": "full", "confidence": [0.2, 0.8], "accuracy": [0.1, 0.9], "count": 5})
    (ax,) = drawing.reliability(table, {"last": "last", "full": "Bayes"}).axes
    diagonal, found = ax.lines
    assert list(diagonal.get_xdata()) == list(diagonal.get_ydata()) == [0, 1]
    np.testing.assert_allclose(found.get_xydata(), [[0.2, 0.1], [0.8, 0.9]])
    assert ax.get_title() == "Bayes"


def test_sweep_frames_the_best_and_stars_the_marked():
    cells = [(0.1, 1e-4, 0.6, "no"), (0.1, 1.0, 0.5, "yes"), (1.0, 1e-4, 0.9, "no")]
    table = pd.DataFrame([interval(m, sigma=s, alpha=a, best=b) for s, a, m, b in cells])
    (ax,) = drawing.sweep(table, (0.1, 1e-4)).axes
    assert [t.get_text() for t in ax.texts] == ["0.600 ± 0.100 ★", "0.500 ± 0.100", "0.900 ± 0.100"]
    (frame,) = [p for p in ax.patches if not p.get_fill()]
    assert frame.get_x() + frame.get_width() / 2 == pytest.approx(1)
    assert frame.get_y() + frame.get_height() / 2 == pytest.approx(0)
    strengths = [p.get_alpha() for p in ax.patches if p.get_fill()]
    assert max(strengths) == strengths[1]  # the least NLL is the strongest
    assert strengths[2] == 0
    assert [t.get_text() for t in ax.get_xticklabels()] == ["0.0001", "1"]


def test_broken_promises_stand_in_the_row_of_their_promise():
    table = pd.DataFrame(
        [interval(m, data="a", rule=rule, promise=p) for rule, p, m in
         [("empirical", 0.05, 0.5), ("empirical", 0.1, 0.6), ("sgr", 0.05, 0.2), ("sgr", 0.1, 0.3)]]
    )  # fmt: skip
    rules = {"empirical": "read off", "sgr": "guaranteed"}
    figure = drawing.broken(table, "data", {"a": "A", "b": "B"}, rules, 0.05, "broken")
    (ax,) = figure.axes
    found = dict(points(ax))
    assert {x: round(y) for x, y in found.items()} == {0.5: 0, 0.6: 1, 0.2: 0, 0.3: 1}
    assert found[0.5] < found[0.2]  # one above the other
    assert [t.get_text() for t in ax.get_yticklabels()] == ["5 %", "10 %"]
    assert [0.05, 0.05] in [list(line.get_xdata()) for line in ax.lines]
    assert [t.get_text() for t in figure.legends[0].get_texts()] == ["read off", "guaranteed", "δ = 5%"]


def test_shift_has_a_row_for_each_part_and_the_promise_in_the_panel_of_the_risk():
    table = pd.DataFrame(
        [interval(m, part=p, metric=k) for p, k, m in
         [("test", "risk", 0.2), ("noise", "risk", 0.4), ("test", "epistemic", 0.3), ("noise", "epistemic", 0.7)]]
    )  # fmt: skip
    parts = {"test": "test", "unseen": "unseen", "noise": "noisy"}
    risk, epistemic = drawing.shift(table, parts, {"risk": "risk", "epistemic": "nats"}, 0.05).axes
    assert points(risk) == [(0.2, 0), (0.4, 1)]
    assert points(epistemic) == [(0.3, 0), (0.7, 1)]
    assert [0.05, 0.05] in [list(line.get_xdata()) for line in risk.lines]
    assert [0.05, 0.05] not in [list(line.get_xdata()) for line in epistemic.lines]
    assert [t.get_text() for t in risk.get_yticklabels()] == ["test", "noisy"]


def test_differences_are_coloured_by_the_side_of_zero_on_which_their_interval_lies():
    rows = [("a", "full", -0.2, -0.3, -0.1), ("a", "last", 0.2, 0.1, 0.3), ("b", "full", 0.0, -0.1, 0.1)]
    table = pd.DataFrame([dict(zip(("data", "method", "mean", "low", "high"), row)) for row in rows])
    names = {"last": "last layer", "full": "whole head", "laplace": "Laplace"}
    figure = drawing.differences(table, "data", {"a": "A", "b": "B", "c": "C"}, names, "AURC")
    first, second = figure.axes
    assert points(first) == [(0.2, 0), (-0.2, 1)]
    assert points(second) == [(0.0, 1)]
    assert [t.get_text() for t in first.get_yticklabels()] == ["last layer", "whole head"]
    colours = [c.lines[0].get_color() for ax in figure.axes for c in ax.containers]
    assert len(set(colours)) == 3
