"""Experiment ``baselines``: how much of each data set is answered without opening a picture.

One unit is one protocol: a data set with what one trains on and what one tests on. A data set that is not on this
machine gives no unit. Nothing here is random, so there is one seed.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from vqa_core.data import OPEN, Dataset, Sample, load
from vqa_core.data.catalogue import NAMES
from vqa_core.data.scenes import SceneSet
from vqa_core.data.scenes import load as load_scenes
from vqa_core.data.vqa_rad import rewordings_of
from vqa_core.evaluation import baselines
from vqa_core.experiments import Metric, Outcome, Spec

REQUIRES = ()


@dataclass(frozen=True)
class Protocol:
    """What is trained on and what is tested on.

    Attributes
    ----------
    title
        As it stands in figures and tables.
    dataset, train, test
        Name and splits for :func:`vqa_core.data.load`.
    """

    title: str
    dataset: str
    train: str
    test: str


PROTOCOLS: dict[str, Protocol] = {
    "scenes": Protocol("scenes", "scenes", "train", "test"),
    "vqa_rad_3064": Protocol("VQA-RAD 3064", "vqa_rad", "train_3064", "test"),
    "vqa_rad_freeform": Protocol("VQA-RAD 3064, freeform", "vqa_rad", "train_3064", "test_308"),
    "vqa_rad_2780": Protocol("VQA-RAD 2780", "vqa_rad", "train_2780", "test"),
    "vqa_rad_1797": Protocol("VQA-RAD 1797", "vqa_rad", "train", "test"),
    "vqa_rad_disjoint": Protocol("VQA-RAD disjoint", "vqa_rad", "train_disjoint", "test"),
    "nlvr": Protocol("NLVR", "nlvr", "train", "dev"),
    "easy_vqa": Protocol("easy-VQA", "easy_vqa", "train", "test"),
    "daquar": Protocol("DAQUAR", "daquar", "train", "test"),
    "shapes": Protocol("SHAPES", "shapes", "small", "test"),
}
METHODS = ("majority", "majority_by_question", "question_only", "lookup")


@dataclass(frozen=True)
class Source:
    """Where the questions of a unit come from.

    Attributes
    ----------
    protocol
        Data set and splits.
    files
        (name, bytes) of the data set's files with known checksums; another copy of the data is another spec.
    train_pictures, test_pictures
        Pictures to generate, for data sets that are generated; 0 for those that are read.
    """

    protocol: Protocol
    files: tuple[tuple[str, int], ...] = ()
    train_pictures: int = 0
    test_pictures: int = 0


@dataclass(frozen=True)
class QuestionOnly:
    """Limits of the question-only classifier; its cost grows with questions × answers.

    Attributes
    ----------
    answers
        It chooses among this many most frequent training answers, as Antol et al. (2015) did among 1,000.
    questions
        It is trained on at most this many questions, evenly spaced in the training split.
    """

    answers: int
    questions: int


@dataclass(frozen=True)
class Config:
    """Sizes of a profile."""

    train_pictures: int
    test_pictures: int
    question_only: QuestionOnly


PROFILES = {
    "smoke": Config(200, 100, QuestionOnly(answers=16, questions=1500)),
    "cpu": Config(8000, 2000, QuestionOnly(answers=128, questions=8000)),
    "gpu": Config(40000, 8000, QuestionOnly(answers=1000, questions=50000)),
}


def specs(profile: str) -> list[Spec]:
    """One spec per protocol whose data are on this machine."""
    config = PROFILES[profile]
    found = []
    for unit, protocol in PROTOCOLS.items():
        if NAMES[protocol.dataset].find is None:  # generated
            source = Source(protocol, (), config.train_pictures, config.test_pictures)
        elif (folder := folder_of(protocol)) is not None:
            source = Source(protocol, _sizes(folder, NAMES[protocol.dataset].sha256))
        else:
            continue
        found.append(Spec("baselines", unit, 0, profile, source, config.question_only))
    return found


def folder_of(protocol: Protocol) -> Path | None:
    """The folder that holds both splits of a protocol, or None when it is not on this machine."""
    info = NAMES[protocol.dataset]
    try:
        folder = info.find()
    except FileNotFoundError:
        return None
    return folder if {protocol.train, protocol.test} <= info.expected(folder).keys() else None


def _sizes(folder: Path, names: Sequence[str]) -> tuple[tuple[str, int], ...]:
    return tuple((name, (folder / name).stat().st_size) for name in sorted(names) if (folder / name).is_file())


def read(source: Source) -> tuple[Dataset, Dataset]:
    """Training and test questions. Generated pictures are the smallest there are: nobody looks at them here."""
    protocol = source.protocol
    if protocol.dataset == "scenes":
        sizes = {protocol.train: source.train_pictures, protocol.test: source.test_pictures}
        return tuple(load_scenes(split, n=n, size=32) for split, n in sizes.items())
    return load(protocol.dataset, protocol.train), load(protocol.dataset, protocol.test)


def frequent(train: Sequence[Sample], limits: QuestionOnly) -> list[Sample]:
    """The training questions that the question-only classifier learns from."""
    counts = Counter(s.answer for s in train).most_common(limits.answers)
    kept = [s for s in train if s.answer in dict(counts)]
    places = np.linspace(0, len(kept) - 1, min(len(kept), limits.questions)).astype(int)
    return [kept[i] for i in places]


def run(spec: Spec) -> Outcome:
    """Let every baseline answer the test questions of one protocol."""
    from threadpoolctl import threadpool_limits

    train, test = read(spec.data)
    learned = frequent(train, spec.model)
    with threadpool_limits(1):  # matrices are small: threads of several workers would only wait for each other
        correct = {
            name: getattr(baselines, name)(learned if name == "question_only" else train.samples, test.samples).correct
            for name in METHODS
        }
    is_open = np.array([s.kind == OPEN for s in test])
    metrics = {}
    for name, right in correct.items():
        metrics[name] = Metric(float(right.mean()), len(right))
        for kind, members in (("open", is_open), ("closed", ~is_open)):
            if members.any():
                metrics[f"{name}.{kind}"] = Metric(float(right[members].mean()), int(members.sum()))
        for family in test.families:
            members = np.array([s.family == family for s in test])
            metrics[f"{name}.family.{family}"] = Metric(float(right[members].mean()), int(members.sum()))
    reachable = baselines.ceiling([s.answer for s in train], test.samples)
    metrics["ceiling"] = Metric(reachable.mean, reachable.n)
    number = {picture: i for i, picture in enumerate(test.picture_ids)}
    arrays = {
        **correct,
        "open": is_open,
        "picture": np.array([number[s.picture_id] for s in test], dtype=np.int32),
        "family": np.array([test.families.index(s.family) for s in test], dtype=np.int16),
    }
    details = {
        "title": spec.data.protocol.title,
        "families": test.families,
        "train_questions": len(train),
        "learned_questions": len(learned),
        "test_questions": len(test),
        "shared_pictures": len({*train.picture_ids} & {*test.picture_ids}),
        "test_pictures": len(test.picture_ids),
        "answers": len({s.answer for s in train}),
        "chance": {f: test.chance(f) for f in test.families} if isinstance(test, SceneSet) else {},
        "rewordings": _rewordings(spec.unit, train, test),
        "data_hash": test.content_hash(),
    }
    return Outcome(metrics, arrays, details)


def _rewordings(unit: str, train: Dataset, test: Dataset) -> int:
    """Training questions that are a test question in other words, with its picture and answer (known for VQA-RAD)."""
    labelled = unit.startswith("vqa_rad") and all("qid" in s.meta for s in train)
    return len(rewordings_of(train.samples, test.samples)) if labelled else 0
