"""Drawings of the chapter on encoders say what their tables say."""

from __future__ import annotations

import matplotlib
import numpy as np
import pandas as pd
import pytest

matplotlib.use("agg")

from vqa_core.experiments import vit_cifar_drawing as drawing
from vqa_core.figures import MARKERS


@pytest.fixture(autouse=True)
def close_figures():
    yield
    drawing.plt.close("all")


def row(mean: float, **more) -> dict:
    return more | {"mean": mean, "low": mean - 0.05, "high": mean + 0.05, "n": 5}


def test_units_differ_without_colour():
    assert len({drawing.look(u)["marker"] for u in drawing.TITLES}) == len(drawing.TITLES) <= len(MARKERS)


def test_patches_are_numbered_in_reading_order():
    patches = np.zeros((2, 3, 4, 4, 3), np.uint8)
    patches[1, 0] = 255
    figure = drawing.cut(np.zeros((8, 12, 3), np.uint8), patches)
    titled = {ax.get_title(): ax for ax in figure.axes if ax.get_title()}
    assert list(titled) == ["1", "2", "3", "4", "5", "6"]
    bright = [t for t, ax in titled.items() if ax.images[0].get_array().max() == 255]
    assert bright == ["4"]


def test_positions_show_every_place_and_scale_by_the_others():
    similar = np.full((6, 6), 0.2)
    np.fill_diagonal(similar, 1.0)
    figure = drawing.positions(similar, (2, 3))
    images = [ax.images[0] for ax in figure.axes if ax.images]
    assert len(images) == 6
    assert images[0].get_clim() == pytest.approx((-0.2, 0.2))
    assert images[4].get_array()[1, 1] == 1.0


def test_attention_has_a_map_for_each_layer_and_head():
    maps = np.full((2, 3, 2, 2), 0.1)
    maps[1, 2, 0, 1] = 0.4
    figure = drawing.attention(maps)
    panels = [ax for ax in figure.axes if ax.get_title()]
    assert [ax.get_title() for ax in panels] == ["40%"] * 5 + ["70%"]
    assert panels[3].get_ylabel() == "layer 2"
    assert all(ax.images[0].get_clim() == (0, 0.4) for ax in panels)
    assert panels[5].images[0].get_array()[0, 1] == 0.4


def test_masks_mark_what_is_no_number():
    wrong = np.array([[1.0, np.nan, 0], [np.inf, -np.inf, 0.5], [0, 0, 0]])
    rows = {
        "added": [("scores", np.eye(3)), ("softmax", np.eye(3))],
        "multiplied": [("scores", wrong), ("softmax", wrong)],
    }
    figure = drawing.masks(rows)
    texts = [t.get_text() for t in figure.axes[2].texts]
    assert texts == ["1", "NaN", "0", "∞", "−∞", "0.5", "0", "0", "0"]
    weights = [t.get_fontweight() for t in figure.axes[2].texts]
    assert [w == "bold" for w in weights] == [False, True, False, True, False, False, False, False, False]
    table = drawing.mask_table(rows)
    assert len(table) == 4 * 9
    assert table[(table["way"] == "multiplied") & (table["row"] == 2)]["entry"].tolist()[:3] == ["∞", "−∞", "0.5"]
    assert "not a number" in set(table["entry"])  # the gates of the book let no NaN pass, not even a meant one
    assert not table["entry"].str.lower().isin({"nan", "inf", "-inf"}).any()


def test_learning_curves_have_a_band_each():
    curves = pd.DataFrame(
        [row(0.1 * e + k / 10, unit=u, epoch=e) for k, u in enumerate(("vit", "cnn")) for e in (1, 2)]
    )
    ax = drawing.learning_curves(curves).axes[0]
    assert [t.get_text() for t in ax.get_legend().get_texts()] == ["ViT", "convolutions", "chance"]
    assert ax.lines[1].get_ydata().tolist() == pytest.approx([0.2, 0.3])
    assert len(ax.collections) == 2


def test_published_stands_beside_theirs():
    curve = pd.DataFrame([row(0.1 * e, what=w, epoch=e) for w in ("training", "test") for e in (1, 2)])
    ax = drawing.published(curve, (0.3, 0.4)).axes[0]
    lines = {line.get_label(): list(line.get_ydata()) for line in ax.lines}
    assert lines["published"] == [0.3, 0.4]
    assert lines["test, here"] == pytest.approx([0.1, 0.2])


def test_shuffled_pictures_are_hollow():
    table = pd.DataFrame(
        [
            row(m, unit=u, pictures=p)
            for u, p, m in (("vit", "whole", 0.4), ("vit", "shuffled", 0.2), ("cnn", "whole", 0.6))
        ]
    )
    ax = drawing.shuffled(table).axes[0]
    points = [
        (c.lines[0].get_xdata()[0], c.lines[0].get_ydata()[0], c.lines[0].get_markerfacecolor()) for c in ax.containers
    ]
    assert [p[:2] for p in points] == [(0.4, -0.12), (0.2, 0.12), (0.6, 0.88)]
    assert [p[2] == "none" for p in points] == [False, True, False]


def test_distances_show_every_seed_and_the_uniform_head():
    table = pd.DataFrame({"seed": [0, 1, 0, 1], "layer": [1, 1, 2, 2], "head": 1, "pixels": [3.0, 4, 9, 10]})
    ax = drawing.distances(table, 12.5).axes[0]
    assert ax.lines[0].get_ydata().tolist() == [3, 4, 9, 10]
    assert ax.lines[1].get_ydata()[0] == 12.5
    assert [t.get_text() for t in ax.get_xticklabels()] == ["1", "2"]


def test_gradients_before_the_first_step_are_drawn_once():
    units = [(n, w) for n in ("pre", "post") for w in ("warm", "cold")]
    found = [row(1.0, norm=n, warmup=w, step=s, layer=k) for n, w in units for s in ("first", "last") for k in (1, 2)]
    losses = [row(2.0, norm=n, warmup=w, step=s) for n, w in units for s in range(3)]
    figure = drawing.gradients(pd.DataFrame(found), pd.DataFrame(losses))
    start, end, loss = figure.axes
    assert (len(start.lines), len(end.lines), len(loss.lines)) == (2, 4, 4)
    assert start.get_yscale() == end.get_yscale() == "log"
    labels = [t.get_text() for t in figure.legends[0].get_texts()]
    assert labels == ["Pre-LN, with warm-up", "Pre-LN, without", "Post-LN, with warm-up", "Post-LN, without"]
