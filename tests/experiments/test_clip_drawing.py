"""Drawings of chapter 5 place each number where its table says, and refuse what they cannot draw."""

import matplotlib
import numpy as np
import pandas as pd
import pytest

matplotlib.use("agg")

from vqa_core.experiments import clip_drawing as drawing
from vqa_core.experiments.clip_material import unseen_names


@pytest.fixture(autouse=True)
def close_figures():
    yield
    drawing.plt.close("all")


def rows(**columns):
    table = pd.DataFrame(columns)
    mean = np.linspace(0.1, 0.4, len(table))
    return table.assign(mean=mean, low=mean - 0.02, high=mean + 0.02)


def drawn(ax):
    return sorted(round(float(y), 6) for c in ax.containers for y in np.atleast_1d(c.lines[0].get_ydata()))


def test_matrices_share_one_scale():
    figure = drawing.similarity_matrices(np.zeros((3, 3)), np.eye(3))
    left, right = (ax.images[0] for ax in figure.axes[:2])
    assert left.get_clim() == right.get_clim() == (-1, 1)
    assert right.get_array()[1, 1] == 1
    with pytest.raises(ValueError, match="two equal squares"):
        drawing.similarity_matrices(np.zeros((3, 3)), np.eye(4))


def test_sizes_show_every_point():
    batches = rows(batch=[32, 512, 32, 512], rate=[1e-3, 1e-3, 3e-3, 3e-3], best=["no", "no", "yes", "yes"])
    amounts = rows(encoder=["vit", "vit", "resnet"], pairs=[2000, 20000, 2000])
    figure = drawing.sizes(batches, amounts, 0.001, {"vit": "ViT", "resnet": "ResNet"})
    left, right = figure.axes
    assert drawn(left) == [0.3, 0.4]  # only the best rates have whiskers
    assert drawn(right) == pytest.approx([0.1, 0.25, 0.4])
    assert [t.get_text() for t in left.get_xticklabels()] == ["32", "512"]
    assert {"ViT", "ResNet", "chance"} == {t.get_text() for t in right.get_legend().get_texts()}
    with pytest.raises(ValueError, match="no column pairs"):
        drawing.sizes(batches, amounts.drop(columns="pairs"), 0.001, {})


def test_temperatures_have_three_panels_in_one_order():
    names = ["0.02", "0.5", "learned"]
    table = rows(temperature=np.repeat(names, 3), quantity=["R@1", "entropy", "last loss"] * 3)
    figure = drawing.temperatures(table, 0.001)
    for ax in figure.axes:
        assert [t.get_text() for t in ax.get_xticklabels()] == names
        assert len(ax.containers) == 3


def test_rows_stand_at_their_names():
    table = rows(prompts=["a {}", "seven", "a {}", "seven"], pictures=["seen", "seen", "unseen", "unseen"])
    figure = drawing.rows_with_intervals(table, "prompts", "pictures", "accuracy", {"chance": 1 / 32})
    (ax,) = figure.axes
    assert [t.get_text() for t in ax.get_yticklabels()] == ["a {}", "seven"]
    at = [(round(float(c.lines[0].get_xdata()[0]), 3), round(float(c.lines[0].get_ydata()[0]))) for c in ax.containers]
    assert at == [(0.1, 0), (0.2, 1), (0.3, 0), (0.4, 1)]
    assert {"seen", "unseen", "chance"} == {t.get_text() for t in figure.legends[0].get_texts()}


def test_confusion_has_a_row_for_each_unseen_pair():
    shares = np.zeros((32, 32))
    classes = np.flatnonzero(unseen_names())
    shares[classes[2], 5] = 1
    figure = drawing.confusion(shares)
    ax = figure.axes[0]
    assert ax.images[0].get_array().shape == (8, 32)
    assert ax.images[0].get_array()[2, 5] == 1
    assert len(ax.patches) == 8


def test_own_captions_are_marked_wherever_they_rank():
    picture = np.zeros((8, 8, 3), np.uint8)
    found = [[("a", 0.9), ("b", 0.5)], [("a", 0.8), ("b", 0.7)]]
    figure = drawing.retrieval([picture, picture], found, ["b", "c"])
    texts = [t.get_text().strip() for ax in figure.axes for t in ax.texts]
    assert texts == ["0.90  a", "✓ 0.50  b", "0.80  a", "0.70  b", "✓ own caption: c"]
    with pytest.raises(ValueError, match="1 pictures, 2 lists"):
        drawing.retrieval([picture], found, ["b"])


def test_map_joins_pairs():
    figure = drawing.embedding_map(np.arange(20.0).reshape(2, 5, 2), shown=3)
    (ax,) = figure.axes
    assert len(ax.lines) == 3 + 2
    assert ax.lines[0].get_xdata().tolist() == [0, 10]
    with pytest.raises(ValueError, match="pictures, then captions"):
        drawing.embedding_map(np.zeros((3, 5, 2)))


def test_curves_and_memory():
    curves = rows(curve=["a", "a", "b", "b"] * 2, quantity=["loss"] * 4 + ["temperature"] * 4, step=[1, 2] * 4)
    figure = drawing.learning_curves(curves, guess=4.8)
    assert [len(ax.lines) for ax in figure.axes] == [3, 2]
    table = pd.DataFrame(
        {"batch": [32, 32, 64, 64], "way": ["plain", "cached"] * 2, "megabytes": [1.0, 0.5, 2, 0.6], "seconds": 0.1}
    )
    left, _ = drawing.memory(table).axes
    assert left.lines[0].get_ydata().tolist() == [1, 2]
    assert left.lines[1].get_ydata().tolist() == [0.5, 0.6]
