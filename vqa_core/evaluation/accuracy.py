"""Accuracy of answers: exact match, by question family, and the soft accuracy of the VQA data sets."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from vqa_core.evaluation.statistics import Interval, seeds_and_questions, wilson

if TYPE_CHECKING:
    import pandas as pd


def plain(answer: str) -> str:
    """An answer in lower case with single spaces, the form in which answers are compared.

    >>> plain(" Right  Lung ")
    'right lung'
    """
    return " ".join(answer.lower().split())


def is_correct(predicted: Sequence[str], answers: Sequence[str]) -> np.ndarray:
    """Which predictions equal their answers up to case and spaces, bool (n,)."""
    if len(predicted) != len(answers):
        raise ValueError(f"{len(predicted)} predictions for {len(answers)} answers")
    return np.array([plain(p) == plain(a) for p, a in zip(predicted, answers)], dtype=bool)


def accuracy(predicted: Sequence[str], answers: Sequence[str], level: float = 0.95) -> Interval:
    """Share of right answers of one run with Wilson's interval."""
    correct = is_correct(predicted, answers)
    return wilson(int(correct.sum()), len(correct), level)


def by_family(
    correct: np.ndarray, families: Sequence[str], groups: Sequence | None = None, level: float = 0.95
) -> pd.DataFrame:
    """Accuracy of every question family, and of all questions in the last row, ``"all"``.

    Parameters
    ----------
    correct
        (Q,) one run: Wilson intervals, questions taken as independent. (S, Q) several seeds: the intervals of
        :func:`~vqa_core.evaluation.statistics.seeds_and_questions`.
    families
        (Q,) family names; open/closed or any other partition works as well.
    groups
        (Q,) picture ids; only for (S, Q).

    Returns
    -------
    pandas.DataFrame
        Index ``family``, sorted; columns mean, low, high (fractions of 1) and n (questions).
    """
    import pandas as pd

    correct, names = np.asarray(correct), np.asarray(families)
    if correct.ndim not in (1, 2) or correct.shape[-1] != len(names):
        raise ValueError(f"correct has shape {correct.shape}, needed is (Q,) or (S, Q) with Q = {len(names)} families")
    if correct.ndim == 1 and not np.isin(correct, (0, 1)).all():
        raise ValueError("a single run needs right/wrong; give soft scores as (1, Q)")
    if correct.ndim == 1 and groups is not None:
        raise ValueError("Wilson's interval knows no groups; give the run as (1, Q)")
    if "all" in names:
        raise ValueError("a family is named 'all', which is the name of the last row")
    labels = None if groups is None else np.asarray(groups)
    rows = {}
    for family in [*np.unique(names), "all"]:
        keep = np.ones(len(names), bool) if family == "all" else names == family
        if correct.ndim == 1:
            i = wilson(int(correct[keep].sum()), int(keep.sum()), level)
        else:
            i = seeds_and_questions(correct[:, keep], None if labels is None else labels[keep], level=level)
        rows[str(family)] = {"mean": i.mean, "low": i.low, "high": i.high, "n": i.n}
    table = pd.DataFrame.from_dict(rows, orient="index")
    return table.rename_axis("family")


# -- VQA v1/v2 ---------------------------------------------------------------------------------------------------------

_PUNCTUATION = ';/[]"{}()=+\\_-><@`,?!'
_NUMBERS = ["none", "zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten"]
_DIGITS = {word: str(max(0, i - 1)) for i, word in enumerate(_NUMBERS)}  # "none" and "zero" are 0
_ENDINGS = {  # ending: the words that take it
    "n't": "ai are ca could did does do had has have is might must need ought sha should was were wo would",
    "'d": "he how it someone something there they where who you",
    "'ll": "how it somebody someone something they what who why y'all you",
    "'re": "there they what why you",
    "'s": "he how somebody someone that there what when where who why",
    "'ve": "could might must not should they we what where who would you couldn't hadn't mightn't shouldn't wouldn't "
    "he'd it'd she'd somebody'd someone'd something'd there'd they'd we'd who'd y'all'd you'd",
}


def _contractions() -> dict[str, str]:
    """Contractions with one apostrophe left out → the whole one; only where that is no other word (not *well*)."""
    whole = ["ma'am", "o'clock", "'ow's'at", "'twas", "y'all"]
    whole += [word + ending for ending, words in _ENDINGS.items() for word in words.split()]
    return {w[:i] + w[i + 1 :]: w for w in whole for i, character in enumerate(w) if character == "'"}


# The protocol has this one the wrong way round; a score that is to be comparable has to follow.
_CONTRACTIONS = _contractions() | {"somebody'd": "somebodyd"}


def normalize_answer(answer: str) -> str:
    """The answer normalisation of the official VQA evaluation (visualqa.org/evaluation; Antol et al. 2015).

    Punctuation is dropped where it touches a space or where the answer has a comma between digits, and is a space
    otherwise; a full stop stays only before a digit; then lower case, number words to digits, articles away,
    apostrophes back into contractions.

    >>> normalize_answer("The two dogs, dont bark.")
    "2 dogs don't bark"
    >>> normalize_answer("1,000"), normalize_answer("2.5"), normalize_answer("black/white")
    ('1000', '2.5', 'black white')
    """
    answer = answer.replace("\n", " ").replace("\t", " ").strip()
    comma_in_number = re.search(r"\d,\d", answer)
    text = answer
    for mark in _PUNCTUATION:
        drop = comma_in_number or f"{mark} " in answer or f" {mark}" in answer
        text = text.replace(mark, "" if drop else " ")
    text = re.sub(r"\.(?!\d)", "", text)
    words = (_DIGITS.get(word, word) for word in text.lower().split())
    return " ".join(_CONTRACTIONS.get(word, word) for word in words if word not in ("a", "an", "the"))


def vqa_v2_accuracy(predicted: str, human_answers: Sequence[str]) -> float:
    """Soft accuracy of one answer against ten people's: min(agreeing / 3, 1), averaged over every nine of the ten.

    Parameters
    ----------
    predicted
        The model's answer.
    human_answers
        10 answers. (The formula holds for any number of at least 2, which is accepted.)

    Returns
    -------
    float
        Between 0 and 1. With ten people: 1 agreeing 0.3, 2 agreeing 0.6, 3 agreeing 0.9, 4 or more 1.

    Notes
    -----
    Both sides are normalised. The official script leaves people's answers alone when all ten are the same string and
    treats only their punctuation otherwise; released annotations are in normal form already.
    """
    if len(human_answers) < 2:
        raise ValueError(f"the VQA accuracy leaves one person out of several; got {len(human_answers)} answer(s)")
    target = normalize_answer(predicted)
    agrees = np.array([normalize_answer(h) == target for h in human_answers])
    return float(np.minimum((agrees.sum() - agrees) / 3, 1).mean())
