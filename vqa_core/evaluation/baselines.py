"""Baselines that see no picture. A model that does not beat them has learned the questions, not the pictures."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from vqa_core.data.types import Sample
from vqa_core.evaluation.accuracy import is_correct, plain
from vqa_core.evaluation.statistics import Interval, wilson

_WORD = r"[a-z0-9'\-]+"  # "t2-weighted" is one word


class Baseline(NamedTuple):
    """What a baseline answers to the test questions.

    Attributes
    ----------
    name
        Name of the function that made it.
    predictions
        One answer per test question, in :func:`~vqa_core.evaluation.accuracy.plain` form.
    correct
        bool (Q,).
    """

    name: str
    predictions: tuple[str, ...]
    correct: np.ndarray


def majority(train: Sequence[Sample], test: Sequence[Sample]) -> Baseline:
    """The most frequent training answer to everything (the first one met, among equals)."""
    return _baseline("majority", [_most_common(train)] * len(test), test)


def majority_by_question(train: Sequence[Sample], test: Sequence[Sample]) -> Baseline:
    """The most frequent training answer to the very same question; for a new question, the overall majority."""
    answers = defaultdict(Counter)
    for s in train:
        answers[plain(s.question)][plain(s.answer)] += 1
    default = _most_common(train)
    predictions = [
        answers[q].most_common(1)[0][0] if (q := plain(s.question)) in answers else default for s in test
    ]  # fmt: skip
    return _baseline("majority_by_question", predictions, test)


def lookup(train: Sequence[Sample], test: Sequence[Sample]) -> Baseline:
    """The answer to the most similar training question *about the same picture*: what a leak alone is worth.

    It knows the picture's id but no pixel. Where training and test pictures are disjoint, it is :func:`majority`.

    Notes
    -----
    Similarity is the cosine of TF-IDF vectors: single words (``[a-z0-9'-]+``, lower case), 1 + log tf, smoothed idf
    from the training questions, unit length (scikit-learn's ``TfidfVectorizer`` with ``sublinear_tf=True``). Among
    equals the first training question wins. With these settings VQA-RAD gives 62.7 % on the 3,064 released training
    questions, 22.8 % without the test questions' own re-wordings, 23.5 % without any template question.
    """
    from sklearn.feature_extraction.text import TfidfVectorizer

    default = _most_common(train)
    vectorizer = TfidfVectorizer(token_pattern=_WORD, sublinear_tf=True)
    known = vectorizer.fit_transform(s.question for s in train)  # (train, words)
    asked = vectorizer.transform(s.question for s in test)  # (test, words)
    about, wanted = defaultdict(list), defaultdict(list)
    for i, s in enumerate(train):
        about[s.picture_id].append(i)
    for j, s in enumerate(test):
        wanted[s.picture_id].append(j)
    predictions = [default] * len(test)
    for picture, rows in wanted.items():
        if picture in about:
            candidates = about[picture]
            # Rounded, so that equal questions tie exactly and the first one wins on every machine.
            similarity = (asked[rows] @ known[candidates].T).toarray().round(9)  # (rows, candidates)
            for j, best in zip(rows, similarity.argmax(axis=1)):
                predictions[j] = plain(train[candidates[best]].answer)
    return _baseline("lookup", predictions, test)


def question_only(train: Sequence[Sample], test: Sequence[Sample], seed: int = 0) -> Baseline:
    """Logistic regression on TF-IDF features of the question (words and pairs of words): the language prior.

    scikit-learn's ``LogisticRegression(C=10)`` on the weights of :func:`lookup`, over all training answers; ``seed`` is
    its ``random_state`` (the default solver has no randomness). On VQA-RAD, 1,797 training questions: 40.1 %.
    """
    from sklearn.feature_extraction.text import TfidfVectorizer
    from sklearn.linear_model import LogisticRegression

    targets = [plain(s.answer) for s in train]
    if len(set(targets)) < 2:
        return _baseline("question_only", [_most_common(train)] * len(test), test)
    vectorizer = TfidfVectorizer(token_pattern=_WORD, sublinear_tf=True, ngram_range=(1, 2))
    features = vectorizer.fit_transform(s.question for s in train)  # (train, words and pairs)
    model = LogisticRegression(C=10.0, max_iter=1000, random_state=seed).fit(features, targets)
    return _baseline("question_only", model.predict(vectorizer.transform(s.question for s in test)), test)


def ceiling(train_answers: Sequence[str], test: Sequence[Sample], level: float = 0.95) -> Interval:
    """Share of test answers that occur among the training answers: no classifier over those can do better."""
    known = {plain(a) for a in train_answers}
    return wilson(sum(plain(s.answer) in known for s in test), len(test), level)


def _most_common(train: Sequence[Sample]) -> str:
    if not len(train):
        raise ValueError("a baseline needs at least one training question")
    return Counter(plain(s.answer) for s in train).most_common(1)[0][0]


def _baseline(name: str, predictions: Sequence[str], test: Sequence[Sample]) -> Baseline:
    predictions = tuple(map(str, predictions))
    return Baseline(name, predictions, is_correct(predictions, [s.answer for s in test]))
