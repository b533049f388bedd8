"""Drawings say what their tables say: rows, patterns, and a reader who sees no colour."""

import matplotlib
import pandas as pd
import pytest

matplotlib.use("agg")

from vqa_core.experiments import transformers_drawing as drawing
from vqa_core.experiments.transformers import METHODS, OFFSPRING
from vqa_core.experiments.transformers_readout import patterns


@pytest.fixture(autouse=True)
def close_figures():
    yield
    drawing.plt.close("all")


def test_every_method_has_one_row_and_groups_stand_together():
    assert sorted(drawing.ORDER) == sorted([*METHODS, *OFFSPRING, "shuffled"])
    groups = [drawing.group(n) for n in drawing.ORDER]
    assert groups == sorted(groups, key=list(drawing.GROUPS).index)
    assert len({drawing.style(n)["marker"] for n in drawing.ORDER}) == len(drawing.GROUPS)  # without colour, too


def test_patterns_fill_what_is_read():
    found = patterns(3, 2)
    figure = drawing.pattern_panels(found, image=3)
    assert len(figure.axes) == 2 * len(found)
    filled = [[p for p in ax.patches if p.get_facecolor()[3] > 0] for ax in figure.axes]
    for ax, (name, layer) in enumerate((n, k) for k in range(2) for n in found):
        assert len(filled[ax]) == found[name][layer].sum(), (name, layer)
    hatched = [p for p in filled[list(found).index("early_concatenation")] if p.get_hatch()]
    assert len(hatched) == 2 * 3 * 2  # the other modality, both ways


def test_families_have_panels_and_methods_have_rows():
    rows = [
        {"unit": u, "family": f, "mean": 0.6, "low": 0.5, "high": 0.7}
        for u in ("early_concatenation", "bottleneck", "distilled", "shuffled")
        for f in ("all", "existence", "counting")
    ]
    figure = drawing.family_panels(pd.DataFrame(rows), {"existence": 0.5, "counting": 0.2})
    assert [ax.get_title() for ax in figure.axes] == ["existence", "counting"]
    names = [t.get_text() for t in figure.axes[0].get_yticklabels()]
    assert names == ["early concatenation", "bottleneck (MBT)", "small stack, distilled", "shuffled picture"]
    bars = figure.axes[1].containers[0].patches if figure.axes[1].containers else figure.axes[1].patches
    assert bars[0].get_x() == 0.2
    assert bars[0].get_width() == pytest.approx(0.4)


def test_the_frontier_is_named():
    priced = pd.DataFrame(
        {"mean": [0.5, 0.7, 0.6], "flops": [1, 2, 3], "parameters": [1, 2, 3], "seconds_per_step": [3, 2, 1]}
        | {"activation_mb": [1.0, 1.0, 1.0]},
        index=["student", "perceiver", "early_concatenation"],
    )
    figure = drawing.price_panels(priced)
    assert figure.axes[0].get_title(loc="left") == "1 small stack\n2 Perceiver"


def test_lines_of_pruning_and_learning_and_two_ways():
    pruned = pd.DataFrame(
        [
            {"way": w, "share": s, "mean": 0.8 - s / 2, "low": 0.7 - s / 2, "high": 0.9 - s / 2}
            for w in ("heads", "weights")
            for s in (0.5, 0.0)
        ]
    )
    figure = drawing.pruning_panels(pruned, {"majority": 0.4})
    assert [ax.get_xlabel() for ax in figure.axes] == [f"share of the {w} that is gone" for w in ("heads", "weights")]
    assert figure.axes[0].lines[0].get_xdata().tolist() == [0.0, 0.5]
    curves = pd.DataFrame({"unit": ["perceiver"] * 2, "epoch": [1, 2], "mean": 0.5, "low": 0.4, "high": 0.6})
    assert drawing.learning_curves(curves).axes[0].get_legend().get_texts()[0].get_text() == "Perceiver"
    timed = pd.DataFrame({"unit": ["a", "a", "b", "b"], "tokens": [64, 128] * 2, "mean": 1.0, "low": -1.0, "high": 2.0})
    figure = drawing.two_ways({"seconds": timed, "bytes": timed}, {"a": "fused", "b": "explicit"})
    assert [ax.get_ylabel() for ax in figure.axes] == ["seconds", "bytes"]
    assert len(figure.axes[1].lines) == 2
