"""What a VQA-RAD number means: trained on what, tested on what, what counts as closed, over which answers.

Published accuracies on VQA-RAD follow at least six protocols, and one model moves by twenty points between them. So
a number is printed together with its :class:`Protocol` (:class:`Score`), and beside it what needs no picture
(:func:`beside`).
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple

import numpy as np

from vqa_core.data import vqa_rad
from vqa_core.data.text import Vocabulary
from vqa_core.data.types import CLOSED, Dataset
from vqa_core.evaluation import baselines, leakage
from vqa_core.evaluation.accuracy import is_correct, plain
from vqa_core.evaluation.shuffled import shuffled_pictures
from vqa_core.evaluation.statistics import Interval, wilson

#: Training set → split of the loader.
TRAIN = {"3064": "train_3064", "2780": "train_2780", "1797": "train", "disjoint": "train_disjoint"}
#: Test set → split of the loader.
TEST = {"451": "test", "308": "test_308"}
CLOSED_RULES = ("official", "yes/no")
VOCABULARIES = ("train", "train+test")
PARTS = ("all", "closed", "open")
BLANK = np.full((64, 64, 3), 128, dtype=np.uint8)  # one for all: even its size must not tell which picture it replaces

#: A model as a protocol sees it: one answer to each question of a split, whose pictures it reads itself.
Predict = Callable[[Dataset], Sequence[str]]


@dataclass(frozen=True, slots=True)
class Protocol:
    """How a model is trained and scored on VQA-RAD.

    Attributes
    ----------
    train
        ``"3064"``: as released; 284 of the 451 test questions are in it, re-worded. ``"2780"``: without these
        re-wordings. ``"1797"``: without any template re-wording. ``"disjoint"``: of these, the rows about pictures that
        no test question is about.
    test
        ``"451"``: all; ``"308"``: the freeform questions only.
    closed
        ``"official"``: as the release says (272 of 451); ``"yes/no"``: answered by yes or no (251).
    vocabulary
        ``"train"``: answers of the training set. ``"train+test"``: with those of the test, which makes every answer
        reachable; some published numbers do.
    validation
        Share of the training *pictures* whose questions choose the checkpoint, between 0 and 1. The test never does.

    Notes
    -----
    The default is the cleanest protocol that others also report; on ``"disjoint"`` not even the pictures are known.
    """

    train: str = "1797"
    test: str = "451"
    closed: str = "official"
    vocabulary: str = "train"
    validation: float = 0.1

    def __post_init__(self) -> None:
        for field, allowed in (
            ("train", TRAIN),
            ("test", TEST),
            ("closed", CLOSED_RULES),
            ("vocabulary", VOCABULARIES),
        ):
            if getattr(self, field) not in allowed:
                raise ValueError(f"{field} is {getattr(self, field)!r}, allowed are {', '.join(allowed)}")
        if not 0 < self.validation < 1:
            raise ValueError(f"validation is {self.validation}; the share of pictures must lie between 0 and 1")

    @property
    def label(self) -> str:
        """What is printed with every number.

        >>> Protocol().label
        'VQA-RAD 1797 → 451, closed official, train vocabulary'
        """
        leaky = " (leaky)" if self.train == "3064" else ""
        return f"VQA-RAD {self.train}{leaky} → {self.test}, closed {self.closed}, {self.vocabulary} vocabulary"

    def __str__(self) -> str:
        return self.label

    def load(self, root: str | Path | None = None) -> ProtocolData:
        """Read the questions; see :func:`vqa_core.data.load` for ``root``.

        Raises
        ------
        FileNotFoundError
            When VQA-RAD is missing.
        ValueError
            When a record is damaged, when the form on disk lacks what the protocol needs (the parquet form has neither
            template questions nor official kinds), or when there are too few pictures for a validation split.
        """
        return self.apply(vqa_rad.load(TRAIN[self.train], root), vqa_rad.load(TEST[self.test], root))

    def apply(self, train: Dataset, test: Dataset) -> ProtocolData:
        """The protocol on a training set and a test set that are at hand."""
        if self.closed == "official" and any("qid" not in s.meta for s in test):
            raise ValueError(
                "the parquet form of VQA-RAD has no official closed questions; use closed='yes/no', or get the JSON "
                "form with: python -m vqa_core data fetch vqa_rad --source json"
            )
        fit, validation = split_by_picture(train, self.validation)
        answers = [s.answer for s in train] + [s.answer for s in test if self.vocabulary == "train+test"]
        yes_no = [plain(s.answer) in ("yes", "no") for s in test]
        closed = [s.kind == CLOSED for s in test] if self.closed == "official" else yes_no
        return ProtocolData(
            self, train, fit, validation, test, Vocabulary.of_answers(answers), np.array(closed, dtype=bool)
        )


class ProtocolData(NamedTuple):
    """The questions of a protocol.

    Attributes
    ----------
    protocol
        Where they come from.
    known
        The whole training set, from which the baselines learn.
    train, validation
        Its two parts; no picture is in both.
    test
        Q questions.
    vocabulary
        The answers to choose from. Those of ``validation`` are among them: it is a part of the training set.
    closed
        bool (Q,), the protocol's closed test questions.
    """

    protocol: Protocol
    known: Dataset
    train: Dataset
    validation: Dataset
    test: Dataset
    vocabulary: Vocabulary
    closed: np.ndarray

    def score(self, predictions: Sequence[str]) -> Score:
        """Accuracy of one answer per test question."""
        return self.score_of(is_correct(predictions, [s.answer for s in self.test]))

    def score_of(self, correct: np.ndarray) -> Score:
        """Accuracy from what is right, bool (Q,)."""
        if correct.shape != self.closed.shape:
            raise ValueError(f"correct is {correct.shape}; {self.protocol} has {len(self.closed)} test questions")
        parts = {"all": correct, "closed": correct[self.closed], "open": correct[~self.closed]}
        intervals = {k: wilson(int(v.sum()), len(v)) if len(v) else None for k, v in parts.items()}
        return Score(self.protocol.label, **intervals)

    def ceiling(self) -> Score:
        """The best that a classifier over the vocabulary can do: the share of test answers that are in it."""
        known = {plain(a) for a in self.vocabulary.symbols}
        return self.score_of(np.array([plain(s.answer) in known for s in self.test], dtype=bool))


@dataclass(frozen=True, slots=True)
class Score:
    """Accuracies under a protocol, with Wilson's intervals; a part without questions is None.

    Printed, it names its protocol.
    """

    label: str
    all: Interval | None
    closed: Interval | None
    open: Interval | None

    def __str__(self) -> str:
        parts = ((part, getattr(self, part)) for part in PARTS)
        return f"{self.label}: " + "; ".join(
            f"{part} {100 * i.mean:.1f} % [{100 * i.low:.1f}, {100 * i.high:.1f}], n = {i.n}" for part, i in parts if i
        )


def split_by_picture(dataset: Dataset, share: float) -> tuple[Dataset, Dataset]:
    """A data set in two parts that share no picture: the rest, and about ``share`` of the pictures.

    Pictures are ranked by a hash of their ids: the split depends neither on a seed nor on the order of the rows, and a
    smaller training set of the same pictures is split the same way, up to the number of pictures.

    Raises
    ------
    ValueError
        When one part would be empty.
    """
    ranked = sorted(dataset.picture_ids, key=lambda i: hashlib.sha256(i.encode()).digest())
    taken = round(share * len(ranked))
    if not 0 < taken < len(ranked):
        raise ValueError(f"{share:g} of the {len(ranked)} pictures of {dataset!r} leaves one part of the split empty")
    chosen = set(ranked[:taken])
    parts = ([i for i, s in enumerate(dataset) if (s.picture_id in chosen) is wanted] for wanted in (False, True))
    rest, validation = parts
    return dataset.subset(rest, f"{dataset.split} (fit)"), dataset.subset(validation, f"{dataset.split} (validation)")


def with_blank_pictures(dataset: Dataset) -> Dataset:
    """The same questions about one grey picture: what a model answers without seeing anything."""
    return Dataset(dataset.name, f"{dataset.split} (blank)", dataset.samples, lambda _: BLANK, dataset.notes)


def with_shuffled_pictures(dataset: Dataset, seed: int = 0) -> Dataset:
    """The same questions, each about another question's picture (:func:`~.shuffled.shuffled_pictures`)."""
    pictures = [s.picture_id for s in dataset]
    samples = [replace(s, picture_id=pictures[j]) for s, j in zip(dataset, shuffled_pictures(pictures, seed))]
    return Dataset(dataset.name, f"{dataset.split} (shuffled)", samples, dataset.picture, dataset.notes)


def beside(data: ProtocolData, predict: Predict | None = None, seed: int = 0) -> dict[str, Score]:
    """What is printed beside a model's accuracy.

    Parameters
    ----------
    data
        Of a protocol.
    predict
        The model; with it, the model on blank and on shuffled pictures is given, too.
    seed
        Of the shuffling.

    Returns
    -------
    dict
        ``ceiling`` (reachable answers); ``majority``, ``question_only`` and ``lookup``, which learn from the whole
        training set; with a model also ``model``, ``blank`` and ``shuffled``.
    """
    known, test = data.known.samples, data.test.samples
    scores = {
        "ceiling": data.ceiling(),
        "majority": data.score_of(baselines.majority(known, test).correct),
        "question_only": data.score_of(leakage.language_prior(known, test).correct),
        "lookup": data.score_of(baselines.lookup(known, test).correct),
    }
    if predict is not None:
        shown = {
            "model": data.test,
            "blank": with_blank_pictures(data.test),
            "shuffled": with_shuffled_pictures(data.test, seed),
        }
        scores |= {name: data.score(predict(dataset)) for name, dataset in shown.items()}
    return scores
