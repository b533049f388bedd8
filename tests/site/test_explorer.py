"""The rejection explorer in Chromium: see explorer.test.mjs. What it shows is compared with what Python computes."""

from __future__ import annotations

import json
from pathlib import Path

import matplotlib as mpl
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest

from vqa_core.evaluation import rejection, statistics
from vqa_core.experiments.rejection_explorer import Answers, fragment
from vqa_core.figures import Chapter

mpl.use("Agg")
CSS = Path(__file__).parents[2] / "book" / "_static" / "book.css"
N = 60
PAGE = """<!doctype html><html lang="en" data-theme="light"><meta charset="utf-8"><title>Two explorers</title>
<meta name="viewport" content="width=device-width"><style>{css}
html[data-theme="light"] {{ --pst-color-text-base: #1f2329; --pst-color-background: #ffffff; }}
html[data-theme="dark"] {{ --pst-color-text-base: #ced6dd; --pst-color-background: #14181e; }}
html {{ color: var(--pst-color-text-base); background: var(--pst-color-background); }}</style>
<main class="bd-article">{figures}</main></html>"""


def drawn(folder: Path, name: str, html: str) -> str:
    """A figure as the page has it: the interactive part, the drawing, the caption."""
    chapter = Chapter("08_bayes", profile="cpu", folder=folder)
    words = {"caption": "Risk falls.", "alt": "A curve that rises from left to right"}
    shown = chapter.figure(plt.figure(), name, data=pd.DataFrame({"x": [1]}), interactive=html, **words)
    return f"<figure>{shown.preview['text/html']}<figcaption>Risk falls.</figcaption></figure>"


def readings(errors: np.ndarray, confidence: np.ndarray, of: np.ndarray) -> list[dict]:
    """What is to be read at each threshold, from the lowest, about the questions ``of``; None where none is left."""
    rows = []
    for threshold in [*np.unique(confidence), np.inf]:
        given = confidence[of] >= threshold
        e, n = errors[of], int(given.sum())
        row = {"coverage": n / of.sum(), "answered": n, "declined": int((~given).sum())}
        row |= {"wrong": int((e[given] == 1).sum()), "lost": int((e[~given] < 1).sum()), "risk": None, "interval": None}
        if n:
            row["risk"] = float(rejection.risk_coverage(e, confidence[of], [n / of.sum()]).risk[0])
            if set(errors) <= {0, 1}:
                around = statistics.wilson(row["wrong"], n)
                row["interval"] = [around.low, around.high]
        rows.append(row)
    return rows


@pytest.mark.browser
def test_explorer_shows_what_python_computes(tmp_path, node_test):
    rng = np.random.default_rng(0)
    groups = rng.choice(["closed", "open"], N)
    asked = [f"What is in picture {i}?" for i in range(N - 1)] + ["</script><img src=x onerror='window.broken = 1'>"]
    about = {"question": asked, "picture": "p1.png", "right": "<b>lung</b>", "group": groups}
    questions, everything = pd.DataFrame(about), np.ones(N, bool)
    models, expected = {}, {"models": {}, "soft": None}
    for name, levels in (("softmax", 12), ("Bayes head", N)):  # many ties, and none
        confidence = rng.choice(rng.random(levels), N) if levels < N else rng.random(N)
        errors = (rng.random(N) > confidence).astype(int)
        threshold = float(np.sort(np.unique(confidence))[levels // 3]) - 1e-9  # between two confidences
        models[name] = Answers(["liver"] * N, errors, confidence, threshold)
        expected["models"][name] = {
            "all": readings(errors, confidence, everything),
            "open": readings(errors, confidence, groups == "open"),
            "curve": rejection.risk_coverage(errors, confidence).risk.tolist(),
            "guaranteed": float((confidence >= threshold).mean()),
        }
    soft, level = rng.choice([0, 0.3, 1], N), rng.random(N).round(1)
    expected["soft"] = readings(soft, level, everything)
    first = fragment(questions, models, title="Two models", max_risk=0.2, delta=0.1)
    second = fragment(questions[["question", "picture", "right"]], {"soft": Answers(["x"] * N, soft, level)}, title="S")
    figures = drawn(tmp_path, "first", first) + drawn(tmp_path, "second", second)
    (tmp_path / "page.html").write_text(PAGE.format(css=CSS.read_text(encoding="utf-8"), figures=figures), "utf-8")
    (tmp_path / "expected.json").write_text(json.dumps(expected), "utf-8")
    assert node_test("explorer.test.mjs", EXPLORER=str(tmp_path)) >= 6
