"""Drawings of maps say what their tables say."""

import itertools

import matplotlib
import numpy as np
import pandas as pd
import pytest

matplotlib.use("agg")

from vqa_core.experiments import attention_maps_drawing as drawing
from vqa_core.experiments import attention_maps_readout as readout


@pytest.fixture(autouse=True)
def close_figures():
    yield
    drawing.plt.close("all")


@pytest.fixture
def material():
    pictures = [np.full((64, 64, 3), 200, np.uint8)] * 3
    region = np.zeros((64, 64), dtype=bool)
    region[8:24, 8:24] = True
    grid = np.zeros((8, 8))
    grid[1, 2] = 1.0
    return pictures, [region] * 3, np.stack([grid, np.zeros((8, 8)), np.ones((8, 8))])


def test_a_method_has_one_look_without_colour_too():
    looks = [drawing.style(t) for t in readout.TITLES.values()]
    assert len({look["marker"] for look in looks}) == len(looks)
    assert drawing.style("random order")["marker"] == "x"


def test_an_overlay_is_red_where_the_weight_is(material):
    pictures, regions, maps = material
    _, ax = drawing.plt.subplots()
    drawing.overlay(ax, pictures[0], maps[0], regions[0])
    image = ax.images[0].get_array()
    redness = image[..., 0] - image[..., 1]
    assert redness[8:16, 16:24].min() > 0.2
    redness[8:16, 16:24] = 0
    assert abs(redness).max() < 1e-6
    drawing.overlay(ax, pictures[1], maps[1], regions[1])  # a map of zeros is pale


def test_galleries_have_a_row_for_each_question_and_a_column_for_each_map(material):
    pictures, regions, maps = material
    notes = {"one": ["a"] * 3, "two": ["b"] * 3}
    figure = drawing.gallery(pictures, regions, {"one": maps, "two": maps}, ["why?"] * 3, notes)
    assert len(figure.axes) == 3 * 3
    assert [ax.get_title() for ax in figure.axes[:3]] == ["", "one", "two"]
    assert figure.axes[1].get_xlabel() == "a"
    words = drawing.word_grid(
        pictures, regions, [maps, maps[:2], maps], [["x", "y", "z"], ["x", "y"], list("xyz")], ["?"] * 3
    )
    assert len(words.axes) == 3 * 4
    assert not words.axes[7].axison  # the second question has a word less
    two = drawing.pair_grid(
        [pictures[:2]] * 2, [regions[:2]] * 2, [maps[:2]] * 2, ["a?", "b?"], [["red", "blue"], ["yes", "no"]]
    )
    assert [ax.get_xlabel() for ax in two.axes] == ["", "red", "", "blue", "", "yes", "", "no"]
    heads = drawing.head_grid(pictures[0], regions[0], np.stack([maps, maps]), "why?")
    assert len(heads.axes) == 2 * 4


MODELS, METHODS = ("early concatenation", "SAN"), ("own attention", "occlusion")


def table(**columns):
    """Every combination of model, method and the columns' values, each with the same numbers."""
    named = {"model": MODELS, "method": METHODS, **columns}
    rows = [dict(zip(named, values)) for values in itertools.product(*named.values())]
    return pd.DataFrame(rows).assign(mean=0.5, low=0.4, high=0.6, n=100)


def ticks(ax, axis="y"):
    return [t.get_text() for t in getattr(ax, f"get_{axis}ticklabels")()]


def test_rows_are_models_and_lines_are_baselines():
    baselines = pd.DataFrame(
        [{"model": "no model", "method": t, "mean": 0.1 * k} for k, t in enumerate(("any object", "edge detector"))]
    )
    scored = pd.concat([table(), baselines.assign(low=0, high=0.2, n=100)])
    figure = drawing.score_rows(scored, "IoU", drawing.BASELINE_LINES)
    assert ticks(figure.axes[0]) == list(MODELS)
    labels = [str(line.get_label()) for line in figure.axes[0].lines]
    assert [label for label in labels if "%" in label] == ["any object, 0.0%", "edge detector, 10.0%"]


def test_panels_are_those_of_the_tables():
    answers = drawing.answer_panels(table(answer=("right", "wrong")), "score")
    assert [ax.get_title() for ax in answers.axes] == ["right answers", "wrong answers"]
    curves = drawing.curve_panels(table(kind=("deletion", "insertion"), share=(0.0, 0.5, 1.0)))
    assert len(curves.axes) == 2 * len(MODELS)
    assert list(curves.axes[0].lines[0].get_xdata()) == [0, 0.5, 1]
    stages = pd.DataFrame({"step": [0, 1, 2], "stage": ["–", "head", "fusion.layers.1"]})
    cascade = drawing.cascade_panels(table().merge(stages, how="cross"))
    assert ticks(cascade.axes[0], "x") == ["–", "head", "layers.1"]
    sanity = drawing.sanity_panels(table(**{"with": ("random weights", "another seed")}))
    assert [ax.get_title() for ax in sanity.axes] == ["random weights", "another seed"]
    drops = drawing.drop_rows(table(metric=("drop, attended", "drop, random", "drop, best", "faithfulness")))
    assert ticks(drops.axes[0]) == list(MODELS)


def test_matrices_have_a_cell_for_every_pair():
    agreed = table(other=METHODS)
    agreed.loc[0, "mean"] = -0.25
    figure = drawing.agreement_panels(agreed)
    texts = [t.get_text() for t in figure.axes[0].texts]
    assert sorted(texts) == ["0.50", "0.50", "0.50", "−0.25"]
    assert not figure.axes[-1].axison  # a third panel has no model
