"""The rejection explorer: a threshold to move, and what it answers, what it declines and how often it errs.

:func:`fragment` gives HTML for the argument ``interactive`` of :meth:`vqa_core.figures.Chapter.figure`. The fragment
holds its data, its style and its script, and asks nothing of any network; a page may hold several.

Coverage and risk are those of :mod:`vqa_core.evaluation.rejection`: a threshold answers all questions of equal
confidence or none. Which confidences are equal is settled here, in full precision, and the page gets ranks.
"""

from __future__ import annotations

import html
import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

COLUMNS = ("question", "picture", "right")


class Answers(NamedTuple):
    """What one model answers to the n questions, and how sure it is.

    Attributes
    ----------
    given
        (n,) the answers, as text.
    errors
        (n,) bool, or numbers from 0 (right) to 1 (wrong).
    confidence
        (n,) any scale, the higher the surer; finite.
    threshold
        Of :func:`vqa_core.evaluation.rejection.sgr` on other questions: answer where confidence ≥ threshold;
        infinite when nothing could be promised; None when no promise was asked for.
    """

    given: Sequence[str]
    errors: np.ndarray
    confidence: np.ndarray
    threshold: float | None = None


def fragment(
    questions: Any,
    models: Mapping[str, Answers],
    *,
    title: str,
    max_risk: float | None = None,
    delta: float | None = None,
) -> str:
    """HTML of an explorer.

    Parameters
    ----------
    questions
        ``pandas.DataFrame`` of n rows with the columns ``question``, ``picture`` (its name) and ``right`` (the right
        answer), and, if groups are to be looked at one by one, ``group`` (as ``"open"``, ``"closed"``).
    models
        Name → :class:`Answers` to these questions, at least one; the first is shown first.
    title
        What a screen reader calls the explorer; each on a page needs its own.
    max_risk, delta
        r and δ of the promise behind the thresholds: the risk is at most r, except with probability δ. Given
        together, when every model has a threshold; else both None.

    Returns
    -------
    str
        One hidden element that shows itself when its script runs, and then hides the images that follow it.

    Raises
    ------
    ValueError
        A column that is missing, rows of different lengths, an error outside 0 to 1, a confidence that is not finite,
        or thresholds without a promise.

    Notes
    -----
    Only an error of 1 counts as a wrong answer, as in
    :func:`~vqa_core.evaluation.rejection.effective_reliability`; the risk is the mean error. Wilson's interval takes
    questions as independent, and is wider than it need be where errors lie between 0 and 1.
    """
    missing = [c for c in COLUMNS if c not in questions.columns]
    if missing or not len(questions):
        raise ValueError(f"questions lack {missing or 'rows'}; give one row each with {', '.join(COLUMNS)}")
    if not models:
        raise ValueError("models is empty; give at least one name with its Answers")
    without = [name for name, m in models.items() if (m.threshold is None) != (max_risk is None)]
    if without or (max_risk is None) != (delta is None):
        raise ValueError(
            f"thresholds, max_risk ({max_risk}) and delta ({delta}) go together: give all or none; see {without}"
        )
    groups = sorted({str(g) for g in questions["group"]}) if "group" in questions.columns else []
    data = {
        "questions": [[str(x) for x in questions[c]] for c in COLUMNS],
        "groups": groups,
        "group": [groups.index(str(g)) for g in questions["group"]] if groups else [],
        "models": [_model(name, answers, len(questions)) for name, answers in models.items()],
        "promise": None if max_risk is None else {"risk": max_risk, "delta": delta},
    }
    here = Path(__file__)
    return (
        f'<div class="rejection-explorer" role="group" aria-label="{html.escape(title)}" hidden>\n'
        f"<style>\n{here.with_suffix('.css').read_text(encoding='utf-8')}</style>\n"
        f"{_body(title, list(models), groups, max_risk)}\n"
        f'<script type="application/json">{_json(data)}</script>\n'
        f"<script>\n{here.with_suffix('.js').read_text(encoding='utf-8')}</script>\n</div>\n"
    )


def _model(name: str, answers: Answers, n: int) -> dict[str, Any]:
    """What the page needs of a model: the rank of each question's confidence, 0 the surest, equal ones equal."""
    errors, confidence = np.asarray(answers.errors, float), np.asarray(answers.confidence, float)
    lengths = {"given": len(answers.given), "errors": errors.shape, "confidence": confidence.shape}
    if lengths != {"given": n, "errors": (n,), "confidence": (n,)}:
        raise ValueError(f"{name}: there are {n} questions, but {lengths}; give one of each per question")
    if not ((errors >= 0) & (errors <= 1)).all():  # NaN fails too
        raise ValueError(f"{name}: errors range from {errors.min()} to {errors.max()}; they must lie between 0 and 1")
    if not np.isfinite(confidence).all():
        raise ValueError(f"{name}: {(~np.isfinite(confidence)).sum()} confidences are not finite; leave them out")
    if answers.threshold is not None and math.isnan(answers.threshold):
        raise ValueError(f"{name}: threshold is NaN; give a number, or inf when nothing could be promised")
    levels, rank = np.unique(-confidence, return_inverse=True)  # (G,), (n,)
    model = {
        "name": name,
        "given": [str(x) for x in answers.given],
        "errors": [int(e) if e in (0, 1) else float(e) for e in errors],
        "rank": rank.tolist(),
        "confidence": [float(f"{-x:.6g}") for x in levels],  # to be read; what is equal, the ranks say
    }
    if answers.threshold is not None:
        kept = int((-levels >= answers.threshold).sum())
        model["guaranteed"] = {"groups": kept, "threshold": float(f"{answers.threshold:.6g}") if kept else None}
    return model


def _json(data: Any) -> str:
    """JSON that cannot end the element it stands in."""
    text = json.dumps(data, ensure_ascii=False, separators=(",", ":"), allow_nan=False)
    return text.replace("&", "\\u0026").replace("<", "\\u003c").replace(">", "\\u003e")


def _select(part: str, label: str, names: Sequence[str]) -> str:
    options = "".join(f'<option value="{i}">{html.escape(name)}</option>' for i, name in enumerate(names))
    return f'<label>{label} <select data-part="{part}" autocomplete="off">{options}</select></label>'


def _body(title: str, models: Sequence[str], groups: Sequence[str], max_risk: float | None) -> str:
    """The elements that the script fills; without ids, so that two explorers do not meet."""
    several, promised = len(models) > 1, max_risk is not None
    choices = _select("model", "Model", models) if several else ""
    choices += _select("group", "Questions", ["all", *groups]) if len(groups) > 1 else ""
    jump = '<button type="button" data-part="guaranteed">Guaranteed threshold</button>' if promised else ""
    ticks = "".join(
        f'<text x="{44 + 3 * x}" y="198" text-anchor="{anchor}">{x}\N{NO-BREAK SPACE}%</text>'
        for x, anchor in ((0, "start"), (50, "middle"), (100, "end"))
    )
    keys = ['<span class="key chosen">this model</span>', '<span class="key">the others</span>'] if several else []
    keys += ['<span class="key dashed">promised risk, and the threshold for it</span>'] if promised else []
    rows = {
        "coverage": "Coverage",
        "risk": "Risk of what is answered",
        "interval": "its 95\N{NO-BREAK SPACE}% interval (Wilson)",
        "answered": "Answered",
        "declined": "Declined",
        "wrong": "Wrong answers given",
        "lost": "Right answers declined",
    }
    readings = "".join(f'<div><dt>{label}</dt><dd data-part="{part}"></dd></div>' for part, label in rows.items())
    return f"""<div class="choices">{choices}</div>
<label class="slider">Threshold <span data-part="threshold"></span>
<input type="range" data-part="slider" min="0" step="1" autocomplete="off">
<span class="ends" aria-hidden="true"><span>answer all</span><span>decline all</span></span></label>
<div class="choices"><button type="button" data-part="all">Answer all</button>{jump}</div>
{'<p class="note" data-part="promise"></p>' if promised else ""}
<div class="columns"><div>
<svg viewBox="0 0 360 220" role="img" data-part="chart">
<path class="axis" d="M44 20V180H344"/>
<svg x="44" y="20" width="300" height="160">{'<path class="curve" data-part="other"/>' * (len(models) - 1)}
<path class="promise" data-part="limits"/><path class="curve chosen" data-part="curve"/></svg>
<circle r="5" data-part="marker"/>
<g data-part="heights"><text x="38" y="25"></text><text x="38" y="104"></text><text x="38" y="182"></text></g>
{ticks}<text x="194" y="215" text-anchor="middle">coverage</text><text x="44" y="11">risk</text>
</svg>
<p class="note">{" ".join(keys)}</p></div>
<dl>{readings}</dl></div>
<p class="heading" data-part="heading"></p>
<div class="list" role="region" tabindex="0" aria-label="Declined questions: {html.escape(title)}" data-part="region">
<ol data-part="list"></ol><button type="button" data-part="more">Show more</button></div>
<p class="unseen" aria-live="polite" data-part="live"></p>"""
