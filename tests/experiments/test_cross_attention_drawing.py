"""Drawings of chapter 6 say what their tables say, can be read, and mark exactly the cells that a rule names."""

import io
from itertools import combinations, product

import matplotlib
import numpy as np
import pandas as pd
import pytest
from matplotlib.colors import to_hex
from matplotlib.patches import Circle, FancyBboxPatch, Rectangle

matplotlib.use("agg")

from vqa_core import figures
from vqa_core.experiments import cross_attention_drawing as drawing
from vqa_core.fusion.cross_attention import VERSIONS, differences

ALL = list(VERSIONS)


@pytest.fixture(autouse=True)
def book_style():
    with matplotlib.rc_context():
        figures.use_style()
        yield
    drawing.plt.close("all")


# -- made-up tables ---------------------------------------------------------------------------------------------------


def interval(mean, half=0.02):
    return {"mean": mean, "low": mean - half, "high": mean + half, "n": 5}


def measured(**names):
    """A long table with a row for each version and each of the values of ``names``; means differ."""
    (name, values) = next(iter(names.items()))
    rows = [(v, x) for x in values for v in ALL]
    return pd.DataFrame(
        [{"version": v, name: x, **interval(0.3 + 0.6 * i / len(rows))} for i, (v, x) in enumerate(rows)]
    )


def published(**changes):
    """Four sound rows of a table like the published one; ``changes`` are columns by position."""
    table = pd.DataFrame({"version": ["v0", "v1", "v2", "v3"], "best_caption": "A cat sleeping"})
    similar = np.array([[1, 8, -2, 0.5, 3], [1, 6, -2, 0.5, 3], [1, 5, -2, 0.5, 3], [1, 4, -2, 0.5, 3]], float)
    table[drawing.SIMILARITIES] = similar
    table = table.assign(similarity_ratio=similar[:, 1] / 3, similarity_gap=similar[:, 1] - 3, ratio_rank=[1, 2, 3, 4])
    table = table.assign(trained_well=True, verdict_in_text="success")
    for column, (at, value) in changes.items():
        table[column] = [value if i == at else old for i, old in enumerate(table[column])]
    return table


def doubtful():
    """A table with cells of every kind of doubt, and with the widest numbers."""
    table = published(similarity_gap=(2, 0.0), verdict_in_text=(2, "failure"), ratio_rank=(3, 14))
    table.loc[2, drawing.SIMILARITIES] = -34.882
    table.loc[3, drawing.SIMILARITIES] = table.loc[0, drawing.SIMILARITIES] = [
        -10.428,
        15.491,
        -10.428,
        -10.428,
        -10.428,
    ]
    return table.assign(
        best_caption="Children playing soccer", similarity_gap=table["similarity_gap"] + 10 * (table.index == 0)
    )


def costs(rng):
    prices = {row["version"]: row["parameters"] for row in differences(16)}
    rows = [
        {"version": v, "parameters": p, "flops": 1e4 + 9 * p, "seconds": 1e-5 + 1e-9 * p}
        | interval(rng.uniform(0.4, 0.6))
        for v, p in prices.items()
    ]
    return pd.DataFrame(rows)


def loss_and_recall(versions=("v2", "v3", "v5", "v7", "v9"), protocols=("published", "pairwise")):
    rows = [
        {"protocol": p, "version": v, "quantity": q, "step": step, **interval(0.5 + 0.4 / step + 0.01 * k, 0.05)}
        for p in protocols
        for k, v in enumerate(versions)
        for q in drawing.CURVES
        for step in (10, 20, 40)
    ]
    return pd.DataFrame(rows)


def scene(weights):
    words = ["a", "red", "thing"][: len(weights)]
    return drawing.attention_on_scene(
        np.full((64, 64, 3), (200, 0, 0), np.uint8), words, weights, np.array([[-1, -1], [1, 1 / 7]])
    )


FIGURES = {
    "family_tree": lambda: drawing.family_tree(differences(32)),
    "published_table": lambda: drawing.published_table(published(), {}),
    "published_table_in_doubt": lambda: drawing.published_table(doubtful(), drawing.doubts(doubtful())),
    "leak_by_version": lambda: drawing.leak_by_version(
        measured(quantity=["in_batch_accuracy", "pairwise_accuracy"]), 1 / 24
    ),
    "curves": lambda: drawing.curves(
        loss_and_recall(), {"loss": 3.2, "val_r1": 0.01}, {"published": "scores in the batch", "pairwise": "leak-free"}
    ),
    "forest": lambda: drawing.forest(measured(protocol=["a", "b", "c"]), 0.005, {"a": "one", "b": "two", "c": "three"}),
    "rank_stability": lambda: drawing.rank_stability(np.full((18, 18), 1 / 18), ALL, {"v0": 1, "v9": 18}),
    "defects": lambda: drawing.defects(measured(evaluator=drawing.EVALUATORS), {"v0": "trained", "v3": "failed"}),
    "attention_on_scene": lambda: scene(np.array([[0.5, 0.5], [0.9, 0.1]])),
    "cost_against_recall": lambda: drawing.cost_against_recall(costs(np.random.default_rng(1))),
}


def texts_of(figure):
    """All texts that a reader sees: those of the axes, their ticks inside the limits, and the legend."""
    found = [t for legend in figure.legends for t in legend.get_texts()]
    for ax in figure.axes:
        found += [*ax.texts, ax.title]
        for axis in (ax.xaxis, ax.yaxis) if ax.axison else ():
            low, high = sorted(axis.get_view_interval())
            ticks = zip(axis.get_ticklocs(), axis.get_ticklabels())
            found += [axis.label, *(text for at, text in ticks if low <= at <= high and text.get_visible())]
    return [t for t in found if t.get_text().strip()]


@pytest.mark.parametrize("name", FIGURES)
def test_every_figure_can_be_read(name):
    """Texts are large enough for the width of a page, inside the figure, and apart, and nothing is lost in the dark.

    For dark pages Chapter.figure swaps the inks; what is black or white would stay so, and one of them would vanish.
    """
    figure = FIGURES[name]()
    figure.draw_without_rendering()
    width, height = figure.bbox.size
    assert width / figure.dpi <= 7.5
    boxes = [(t.get_text(), t.get_window_extent()) for t in texts_of(figure)]
    assert len(boxes) >= 2
    assert min(t.get_fontsize() for t in texts_of(figure)) >= 9
    clipped = [t for t, b in boxes if b.x0 < -1 or b.y0 < -1 or b.x1 > width + 1 or b.y1 > height + 1]
    overlap = [(s, t) for (s, a), (t, b) in combinations(boxes, 2) if a.padded(-1).overlaps(b.padded(-1))]
    assert (clipped, overlap) == ([], [])
    assert {to_hex(t.get_color()) for t in texts_of(figure)} == {figures.INK["light"]}
    stored = io.StringIO()
    figure.savefig(stored, format="svg", transparent=True)
    assert "#000000" not in stored.getvalue()
    assert "#ffffff" not in stored.getvalue()


# -- families ---------------------------------------------------------------------------------------------------------


def test_every_version_has_the_mark_of_its_family():
    of = {name: [v for v in ALL if drawing.family(v) == name] for name in drawing.FAMILIES}
    assert of["one"] == ["v1", "v2", "v3", "v4", "v5", "v6", "v7"]
    assert of["two"] == ["v0", "v8"]
    assert of["forward"] == ALL[ALL.index("v9") :]
    for key in ("color", "marker"):  # each tells the families apart without the other
        assert len({drawing.style(v)[key] for v in ALL}) == len(drawing.FAMILIES)


def test_an_unknown_version_is_refused():
    with pytest.raises(ValueError, match="version is 'v12'; there are v0, v1"):
        drawing.in_order(["v1", "v12"])


def test_versions_stand_in_their_order_whatever_the_table_has():
    assert drawing.in_order(["v11", "v10_4_mqa", "v2", "v2", "v10_4"]) == ["v2", "v10_4", "v10_4_mqa", "v11"]


def test_the_tree_puts_every_version_below_and_right_of_its_parent():
    rows = differences(16)
    ax = drawing.family_tree(rows).axes[0]
    boxes = [p for p in ax.patches if isinstance(p, FancyBboxPatch)]
    names = [t.get_text() for t in ax.texts if t.get_text() in VERSIONS]
    assert sorted(names) == sorted(ALL)
    at = {name: (box.get_x(), box.get_y()) for name, box in zip(names, boxes, strict=True)}
    for row in rows:
        if row["from"]:
            assert at[row["version"]][0] > at[row["from"]][0]
            assert at[row["version"]][1] > at[row["from"]][1]
    written = [t.get_text() for t in ax.texts]
    mqa = next(row for row in rows if row["version"] == "v10_4_mqa")
    assert f"−{-mqa['more']:,}" in written


def test_a_tree_without_a_way_from_the_root_is_refused():
    rows = [
        {"version": "v0", "from": "", "title": "", "more": 0},
        {"version": "v2", "from": "v1", "title": "", "more": 0},
    ]
    with pytest.raises(ValueError, match=r"no way from a root to \['v2'\]"):
        drawing.family_tree(rows)


# -- the published table ----------------------------------------------------------------------------------------------


def test_a_sound_table_raises_no_doubt():
    assert drawing.doubts(published()) == {}


def test_the_doubtful_table_has_every_doubt():
    assert set(drawing.doubts(doubtful()).values()) == set(drawing.DOUBTS)


def test_five_equal_similarities_are_marked_with_the_caption_that_was_picked_among_them():
    table = published()
    table.loc[1, drawing.SIMILARITIES] = 5.0
    assert drawing.doubts(table) == {("v1", c): "equal" for c in drawing.SIMILARITIES} | {
        ("v1", "best_caption"): "arbitrary"
    }


def test_two_equal_rows_are_twins():
    table = published()
    table.loc[3, drawing.SIMILARITIES] = table.loc[0, drawing.SIMILARITIES]
    assert drawing.doubts(table) == {(v, c): "twins" for v in ("v0", "v3") for c in drawing.SIMILARITIES}


@pytest.mark.parametrize(
    ("change", "marks"),
    [
        ({"similarity_gap": (2, 0.0)}, {("v2", "trained_well"): "trained"}),
        ({"verdict_in_text": (2, "failure")}, {("v2", "verdict_in_text"): "contradiction"}),
        ({"trained_well": (2, False)}, {("v2", "verdict_in_text"): "contradiction"}),
        ({"ratio_rank": (2, 4)}, {("v2", "ratio_rank"): "rank"}),
    ],
)
def test_one_wrong_cell_is_the_one_that_is_marked(change, marks):
    assert drawing.doubts(published(**change)) == marks


def test_ranks_of_equal_ratios_may_be_counted_from_either_end():
    for ranks in ([1, 2, 2, 4], [1, 3, 3, 4]):
        table = published().assign(similarity_ratio=[3.0, 2.0, 2.0, 1.0], ratio_rank=ranks)
        assert drawing.doubts(table) == {}


def test_neighbouring_cells_with_one_reason_share_a_frame_and_its_letter():
    marks = {("v2", c): "twins" for c in drawing.SIMILARITIES} | {("v3", "ratio_rank"): "rank"}
    ax = drawing.published_table(published(), marks).axes[0]
    frames = [p for p in ax.patches if isinstance(p, Rectangle) and to_hex(p.get_edgecolor()) == drawing.WRONG]
    cells = [p for p in ax.patches if isinstance(p, Rectangle) and p not in frames]
    assert len(frames) == 2
    assert len(cells) == 4 * len(drawing.SIMILARITIES)
    assert frames[0].get_width() == pytest.approx(sum(c.get_width() for c in cells[::4]), abs=0.05)
    letter = dict(zip(drawing.DOUBTS, "abcdefghijkl"))
    for frame, reason in zip(frames, ("twins", "rank")):
        inside = [
            t
            for t in ax.texts
            if frame.get_x() < t.get_position()[0] <= frame.get_x() + frame.get_width()
            and frame.get_y() < t.get_position()[1] < frame.get_y() + frame.get_height()
        ]
        assert inside[-1].get_text() == letter[reason]


def test_heat_follows_size_and_sign():
    ax = drawing.published_table(published(), {}).axes[0]
    first, _, third = (ax.patches[4 * k] for k in range(3))  # of v0: 1, 8, −2
    strongest = ax.patches[4]
    assert strongest.get_alpha() == pytest.approx(drawing.FILL)
    assert first.get_alpha() == pytest.approx(drawing.FILL / 8)
    assert to_hex(first.get_facecolor()) == to_hex(strongest.get_facecolor()) != to_hex(third.get_facecolor())


@pytest.mark.parametrize("mark", [("v9", "ratio_rank", "rank"), ("v1", "ratio", "rank"), ("v1", "ratio_rank", "odd")])
def test_a_mark_that_points_nowhere_is_refused(mark):
    with pytest.raises(ValueError, match="needs a version of the table"):
        drawing.published_table(published(), {mark[:2]: mark[2]})


# -- what was measured ------------------------------------------------------------------------------------------------


def points(ax):
    return [(c.lines[0].get_xdata()[0], c.lines[0].get_ydata()[0]) for c in ax.containers]


def test_the_leak_is_the_bar_between_both_accuracies():
    table = measured(quantity=["in_batch_accuracy", "pairwise_accuracy"]).sample(frac=1, random_state=0)
    ax = drawing.leak_by_version(table, 1 / 24).axes[0]
    by = table.set_index(["version", "quantity"])["mean"]
    bars = [bar.get_segments()[0] for bar in ax.collections if bar.get_linewidth()[0] == 4]
    for at, (version, bar) in enumerate(zip(ALL, bars, strict=True)):
        assert bar[:, 0] == pytest.approx([by[version, "in_batch_accuracy"], by[version, "pairwise_accuracy"]])
        assert set(bar[:, 1]) == {at}


def test_forest_places_each_number_in_its_row_and_panel():
    table = measured(protocol=["a", "b"]).sample(frac=1, random_state=0)
    axes = drawing.forest(table, 0.005, {"b": "second", "a": "first"}).axes
    by = table.set_index(["protocol", "version"])["mean"]
    for ax, protocol in zip(axes, ("b", "a")):
        assert points(ax) == [(by[protocol, v], at) for at, v in enumerate(ALL)]


@pytest.mark.parametrize("change", [lambda t: t.iloc[1:], lambda t: pd.concat([t, t.iloc[:1]])])
def test_a_missing_or_double_row_is_refused(change):
    table = change(measured(protocol=["a", "b"]))
    with pytest.raises(ValueError, match=r"rows of the table have \{'protocol': 'a', 'version': 'v0'\}"):
        drawing.forest(table, 0.005, {"a": "", "b": ""})


def test_curves_draw_the_means_of_each_protocol():
    table = loss_and_recall()
    table.loc[table["protocol"] == "pairwise", "mean"] += 0.01
    headings = {"published": "", "pairwise": ""}
    figure = drawing.curves(table, {"loss": 3.2, "val_r1": 0.01}, headings, ["v9", "v2"])
    assert len(figure.axes) == 4
    drawn = figure.axes[1].lines[0]  # above right: loss of v2 under pairwise
    rows = (table["protocol"] == "pairwise") & (table["version"] == "v2") & (table["quantity"] == "loss")
    assert list(drawn.get_ydata()) == list(table[rows]["mean"])
    assert [t.get_text() for t in figure.legends[0].get_texts()] == ["v2", "v9", "chance"]


def test_curves_refuse_what_can_not_be_drawn_or_told_apart():
    chance, headings = {"loss": 3.2, "val_r1": 0.01}, {"published": "", "pairwise": ""}
    with pytest.raises(ValueError, match="choose at most 6"):
        drawing.curves(loss_and_recall(ALL), chance, headings)
    with pytest.raises(ValueError, match="no rows of 'loss' of v2 under 'pairwise'"):
        drawing.curves(loss_and_recall(protocols=["published"]), chance, headings)


def test_ranks_frame_the_published_one_and_fill_by_share():
    matrix = np.array([[0.75, 0.25, 0], [0.25, 0.5, 0.25], [0, 0.25, 0.75]])
    ax = drawing.rank_stability(matrix, ["v0", "v8", "v11"], {"v0": 3, "v11": 1}).axes[0]
    frames = [p for p in ax.patches if to_hex(p.get_edgecolor()) == drawing.WRONG]
    assert [(round(p.get_center()[0]), round(p.get_center()[1])) for p in frames] == [(3, 0), (1, 2)]
    cells = np.array([p.get_alpha() for p in ax.patches if p not in frames]).reshape(3, 3)
    np.testing.assert_allclose(cells, matrix / 0.75 * drawing.FILL)
    assert sorted(t.get_text() for t in ax.texts) == ["25"] * 4 + ["50"] + ["75"] * 2


def test_ranks_that_can_not_be_are_refused():
    with pytest.raises(ValueError, match="sum 1"):
        drawing.rank_stability(np.ones((2, 2)), ["v0", "v1"], {})
    with pytest.raises(ValueError, match="published rank of v1 is 3; ranks go from 1 to 2"):
        drawing.rank_stability(np.eye(2), ["v0", "v1"], {"v1": 3})


def test_defects_stand_beside_the_published_verdict():
    table = measured(evaluator=drawing.EVALUATORS)
    ax = drawing.defects(table, {"v0": "trained", "v3": "failed"}).axes[0]
    by = table.set_index(["version", "evaluator"])["mean"]
    rows = [(v, e, at + offset) for at, v in enumerate(ALL) for e, (*_, offset) in drawing.EVALUATORS.items()]
    assert points(ax) == [(by[v, e], y) for v, e, y in rows]
    beside = [t.get_text() for t in ax.child_axes[0].get_yticklabels()]
    assert [beside[ALL.index(v)] for v in ("v0", "v3", "v10_4_mqa")] == ["trained", "failed", "–"]


# -- attention --------------------------------------------------------------------------------------------------------


def test_discs_lie_on_their_cells_and_their_areas_are_the_weights():
    figure = scene(np.array([[0.8, 0.2]]))
    discs = [p for p in figure.axes[1].patches if isinstance(p, Circle)]
    assert [d.center for d in discs] == [(4, 4), (36, 60)]  # (along, down): cells (0, 0) and (7, 4) of 8 pixels each
    assert discs[0].radius ** 2 / discs[1].radius ** 2 == pytest.approx(4)


def test_only_discs_let_the_picture_through():
    veiled = np.asarray(scene(np.array([[0.0, 1.0]])).axes[1].images[0].get_array())  # 8 times as large as the picture
    assert veiled[60 * 8, 36 * 8] == pytest.approx(np.array([200 / 255, 0, 0]))
    for row, column in ((4, 4), (60, 4), (60 - 14, 36)):  # the disc has a radius of 12.8 pixels
        assert np.ptp(veiled[row * 8, column * 8]) == 0  # grey


def test_attention_of_another_shape_is_refused():
    with pytest.raises(ValueError, match=r"weights \(1, 3\) and cells \(2, 2\): needs \(1, M\)"):
        scene(np.ones((1, 3)))


def test_places_of_scaled_tokens_are_refused():
    with pytest.raises(ValueError, match=r"cells reach 1\.29; places go from -1 to 1"):
        drawing.attention_on_scene(np.zeros((64, 64, 3)), ["a"], np.ones((1, 1)), np.array([[-0.2, 1.29]]))


# -- names beside points ----------------------------------------------------------------------------------------------


def test_names_of_crowded_points_stay_apart_and_inside():
    rng = np.random.default_rng(0)
    figure, ax = drawing.plt.subplots(figsize=(7, 4))
    at = rng.normal([0.5, 0.5], [0.02, 0.06], (12, 2))
    ax.set(xlim=(0, 1), ylim=(0, 1))
    figure.draw_without_rendering()
    drawing.spread_names(ax, ALL[-12:], [(x, y - 0.02, y, y + 0.02) for x, y in at])
    boxes = [t.get_window_extent() for t in ax.texts if t.get_text()]
    assert len(boxes) == len(at)
    assert not any(a.overlaps(b) for a, b in combinations(boxes, 2))
    assert all(ax.bbox.x0 <= b.x0 and b.x1 <= ax.bbox.x1 and ax.bbox.y0 <= b.y0 and b.y1 <= ax.bbox.y1 for b in boxes)
    pixels = ax.transData.transform(at)
    assert not any(b.contains(*p) for b in boxes for p in pixels)


def test_names_without_room_are_refused():
    figure, ax = drawing.plt.subplots(figsize=(1.2, 0.8))
    figure.draw_without_rendering()
    with pytest.raises(ValueError, match="no room for 18 names"):
        drawing.spread_names(ax, ALL, [(0.5, 0.5, 0.5, 0.5)] * 18)


def test_a_price_of_zero_has_a_place_on_its_axis():
    axes = drawing.cost_against_recall(costs(np.random.default_rng(0))).axes
    assert [ax.get_xscale() for ax in axes] == ["symlog", "log", "log"]
    assert "0" in [t.get_text() for t in axes[0].get_xticklabels()]
    assert {t.get_text() for t in axes[2].texts} >= set(ALL)


def test_norm_places_draws_every_curve_at_its_values():
    rows = [
        {"norm": n, "warmup": w, "rate": r, "mean": m, "low": m - 0.1, "high": m + 0.1}
        for m, (n, w, r) in enumerate(product(("pre", "post"), ("warm", "cold"), (1e-3, 1e-2)))
    ]
    layers = [{"norm": n, "layer": k, "mean": k, "low": k, "high": k} for n in ("pre", "post") for k in (1, 2, 3)]
    left, right = drawing.norm_places(pd.DataFrame(rows), pd.DataFrame(layers)).axes
    drawn = [
        line.get_ydata().tolist() for line in left.lines if len(line.get_xdata()) == 2 and line.get_marker() in "os"
    ]
    assert drawn == [[0, 1], [2, 3], [4, 5], [6, 7]]
    assert [line.get_ydata().tolist() for line in right.lines] == [[1, 2, 3]] * 2
