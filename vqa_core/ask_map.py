"""``python -m vqa_core ask … --map out.png``: where the answer comes from, and how far such maps are to be trusted."""

from __future__ import annotations

import io
import textwrap
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from vqa_core.ask import Answerer
    from vqa_core.experiments.records import Spec

EXPERIMENT, UNIT = "attention_maps", "fusion.kept"  # where maps of this very model are held against the truth
DESCRIBED = {".png": "Description", ".svg": "Description", ".pdf": "Subject", ".jpg": None}  # where alt text goes


@dataclass(frozen=True)
class Score:
    """How often a map's highest cell touched the region that the answer depends on, for questions held out.

    Attributes
    ----------
    method
        Of the maps.
    value, low, high
        Share of questions, with its 95 % interval.
    centre, centre_low, centre_high
        The same for a map that knows nothing: where such regions are in training pictures.
    n
        Questions.
    current
        False when the code has changed since.
    """

    method: str
    value: float
    low: float
    high: float
    centre: float
    centre_low: float
    centre_high: float
    n: int
    current: bool

    def __str__(self) -> str:
        if self.low > self.centre_high:
            verdict = "better than that, and far from a proof"
        elif self.high < self.centre_low:
            verdict = "worse than that: do not trust it"
        else:
            verdict = "no better than that: do not trust it"
        old = "" if self.current else " (measured with other code than today's)"
        own = f"{self.value:.1%} [{self.low:.1%}, {self.high:.1%}]"
        centre = f"{self.centre:.1%} [{self.centre_low:.1%}, {self.centre_high:.1%}]"
        return (
            f"how far to trust the map: on n = {self.n:,} test questions the highest cell of {self.method} touched the "
            f"region that the answer depends on in {own}; a map that never looks (centre bias) in {centre}: "
            f"{verdict}{old}. This holds for pictures drawn like these scenes: a photograph is none."
        )


@dataclass(frozen=True)
class AnswerMap:
    """The map of one answer.

    Attributes
    ----------
    method, answer
        How it was made, and what it explains.
    cells
        float (rows, columns), sums to 1; all 0 where the model sees no object.
    score
        Of such maps on held-out questions, or None.
    missing
        Why there is no score, and what to do; empty when there is one.
    """

    method: str
    answer: str
    cells: np.ndarray
    score: Score | None
    missing: str

    @property
    def words(self) -> str:
        """How far to trust it, in one sentence or two."""
        return self.missing if self.score is None else str(self.score)

    def as_json(self, file: str) -> dict[str, Any]:
        """What ``ask --json`` says of it."""
        score = None if self.score is None else asdict(self.score)
        found = {"file": file, "method": self.method, "answer": self.answer, "cells": self.cells.round(6).tolist()}
        return {**found, "score": score, "words": self.words}


def check_file(path: str | Path) -> Path:
    """The path, if a picture can be written there.

    Raises
    ------
    ValueError
        For an ending that is no picture format, or a folder that is not there.
    """
    path = Path(path)
    if path.suffix.lower() not in DESCRIBED:
        raise ValueError(f"--map is {str(path)!r}; its ending must be one of {', '.join(DESCRIBED)}")
    if not path.parent.is_dir():
        raise ValueError(f"--map is {str(path)!r}, but there is no folder {path.parent}; make it first")
    return path


def spec_of(profile: str) -> Spec:
    """The unit of experiment ``attention_maps`` that measures the maps of this model."""
    from vqa_core.experiments import module_of

    return next(spec for spec in module_of(EXPERIMENT).specs(profile) if spec.unit == UNIT)


def score_of(method: str, profile: str, root: Path | None = None) -> tuple[Score | None, str]:
    """The score of a method, and an empty string; or None, with the reason and the line that makes it."""
    from vqa_core.experiments.records import load_record
    from vqa_core.experiments.runner import code_hash_of

    spec = spec_of(profile)
    line = f"`python -m vqa_core run {EXPERIMENT} --profile {profile} --unit {UNIT}`"
    record = load_record(spec, root=root)
    if record is None:
        why = f"{spec.path(root)} is missing or was made with other settings"
        return None, f"how far to trust the map is not known: {why}; measure it: {line}"
    keys = [f"{of}.pointing_game{end}" for of in (method, "centre_bias") for end in ("", ".low", ".high")]
    if absent := [key for key in keys if key not in record.metrics]:
        known = sorted(k.partition(".")[0] for k in record.metrics if k.endswith(".pointing_game.low"))
        return None, (
            f"how far to trust the map is not known: {spec.path(root)} has no {absent[0]} (it has {', '.join(known)}); "
            "take a --method that was measured"
        )
    found = [record.metrics[key] for key in keys]
    current = record.provenance.get("code_hash") == code_hash_of(EXPERIMENT)
    shares = (min(max(metric.value, 0.0), 1.0) for metric in found)  # an interval by Student's t may leave [0, 1]
    return Score(method, *shares, found[0].n, current), ""


def answer_map(
    answerer: Answerer, picture: np.ndarray, question: str, answer: str, method: str | None = None, root=None
) -> AnswerMap:
    """The map of an answer to a question about a picture, uint8 (H, W, 3), with its score.

    Parameters
    ----------
    answerer
        The model.
    picture, question, answer
        What was asked, and the answer that is explained.
    method
        One of :func:`~vqa_core.explain.maps.methods_for` the model; by default the first of them.
    root
        Folder of the records.

    Raises
    ------
    ValueError
        When the method does not fit the model; the message lists those that do.
    """
    from vqa_core.explain.maps import methods_for

    allowed = methods_for(answerer.model)
    if method is not None and method not in allowed:
        raise ValueError(f"--method is {method!r}; this model's fusion allows {', '.join(allowed)}")
    method = method or allowed[0]
    cells = answerer.explain(picture, question, method, answer).maps[0].numpy()  # (rows, columns)
    return AnswerMap(method, answer, cells, *score_of(method, answerer.about.profile, root))


def draw(picture: np.ndarray, fitted: np.ndarray, question: str, shown: AnswerMap) -> Figure:
    """The picture, and beside it what the model sees of it under its map; question, answer and trust as text.

    Parameters
    ----------
    picture
        As it was given, uint8 (H, W, 3).
    fitted
        As the model reads it, uint8 (size, size, 3).
    question
        What was asked.
    shown
        The map.
    """
    import matplotlib as mpl
    from matplotlib.figure import Figure

    from vqa_core.figures import use_style

    with mpl.rc_context():
        use_style()
        figure = Figure(figsize=(8, 4.5), layout="constrained")
        left, right = figure.subplots(1, 2)
        left.imshow(picture)
        left.set_title(textwrap.fill(question, 48), fontsize=10)
        side = fitted.shape[0]
        right.imshow(0.45 * fitted.mean(-1) + 0.55 * 255, cmap="gray", vmin=0, vmax=255, extent=(0, side, side, 0))
        weighed = np.ma.masked_equal(shown.cells, 0.0)  # cells without weight stay clear
        most = max(float(shown.cells.max()), 1e-6)
        image = right.imshow(weighed, cmap="viridis_r", vmin=0, vmax=most, alpha=0.7, extent=(0, side, side, 0))
        right.set_title(f"“{shown.answer}”: {shown.method.replace('_', ' ')}", fontsize=10)
        figure.colorbar(image, ax=right, label="share of the map in a cell", shrink=0.7)
        for ax in (left, right):
            ax.set(xticks=[], yticks=[])
            ax.grid(visible=False)
        trust = "how far to trust the map is not known" if shown.score is None else shown.words
        figure.supxlabel(textwrap.fill(trust[0].upper() + trust[1:], 118), fontsize=8, ha="left", x=0.02)
    return figure


def write(path: Path, picture: np.ndarray, fitted: np.ndarray, question: str, shown: AnswerMap) -> None:
    """Write :func:`draw`'s figure, with a description for those who cannot see it, if the format can hold it."""
    from vqa_core.experiments.records import write_atomically

    row, column = np.unravel_index(shown.cells.argmax(), shown.cells.shape)
    rows, columns = shown.cells.shape
    where = f"highest in row {row + 1} of {rows}, column {column + 1} of {columns}" if shown.cells.any() else "empty"
    alt = f"A picture, and the map of {shown.method} for the answer “{shown.answer}” to “{question}”: {where}."
    suffix, content = path.suffix.lower(), io.BytesIO()
    field = DESCRIBED[suffix]
    metadata = {} if field is None else {"metadata": {field: alt}}
    figure = draw(picture, fitted, question, shown)
    figure.savefig(content, format=suffix[1:], dpi=150, transparent=False, facecolor="white", **metadata)
    write_atomically(path, content.getvalue())
