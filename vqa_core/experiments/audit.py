"""Experiment ``audit``: what leaks between the splits of every data set that the book uses, a unit each.

Nothing is trained and nothing is random: one seed. Data sets that are not on this machine are left out.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from vqa_core.data import catalogue, phantoms, scenes
from vqa_core.evaluation import leakage
from vqa_core.evaluation.statistics import wilson
from vqa_core.experiments import Metric, Outcome, Spec
from vqa_core.experiments.records import Record

if TYPE_CHECKING:
    import pandas as pd

REQUIRES = ()
DATASETS = {
    "vqa_rad": "VQA-RAD",
    "nlvr": "NLVR",
    "easy_vqa": "easy-VQA",
    "daquar": "DAQUAR",
    "scenes": "scenes",
    "phantoms": "phantoms",
}
GENERATED = {"scenes": scenes, "phantoms": phantoms}
#: Finding and part, as :func:`vqa_core.evaluation.leakage.audit` has them → name of the metric.
FINDINGS = {
    ("reworded_across_splits", "numbering"): "reworded_by_numbering",
    ("reworded_across_splits", "wording"): "reworded_by_wording",
    ("repeated_rows", None): "repeated_rows",
    ("repeated_sentences", None): "repeated_sentences",
    ("shared_pictures", "same_id"): "same_picture_id",
    ("shared_pictures", "near"): "near_duplicate_pictures",
    ("unreachable_answers", None): "unreachable_answers",
    ("lookup_accuracy", None): "lookup_accuracy",
    ("question_only_accuracy", None): "question_only_accuracy",
    ("majority_accuracy", None): "majority_accuracy",
}


#: Name of a metric → what it is called in tables.
TITLES = {
    "reworded_by_numbering": "re-worded (by numbering)",
    "reworded_by_wording": "re-worded (by words)",
    "same_picture_id": "same pictures",
    "near_duplicate_pictures": "near-duplicate pictures",
    "repeated_sentences": "same sentences",
    "unreachable_answers": "answers not in training",
    "lookup_accuracy": "right by lookup",
    "question_only_accuracy": "right by the question alone",
}


@dataclass(frozen=True)
class Audited:
    """A data set, its pictures opened or not; ``questions`` of each split of a generated one, None takes all."""

    name: str
    pictures: bool
    n: int | None = None


@dataclass(frozen=True)
class Nothing:
    """There is no model, and no training."""


PROFILES = {
    "smoke": (Audited("scenes", True, 30), Audited("phantoms", True, 30)),
    "cpu": tuple(Audited(name, True) for name in DATASETS),
    "gpu": tuple(Audited(name, True) for name in DATASETS),
}


def present() -> tuple[str, ...]:
    """Names of the data sets that are on this machine, or generated."""
    found = []
    for name in DATASETS:
        find = catalogue.NAMES[name].find
        try:
            if find is not None:
                find()
        except FileNotFoundError:
            continue
        found.append(name)
    return tuple(found)


def specs(profile: str) -> list[Spec]:
    """One spec for each data set that is here."""
    here = present()
    return [
        Spec("audit", audited.name, 0, profile, audited, Nothing(), Nothing())
        for audited in PROFILES[profile]
        if audited.name in here
    ]


def run(spec: Spec) -> Outcome:
    """Audit a data set: every share that was found, by pair of splits."""
    data = spec.data
    if data.n is None:
        found = leakage.audit(data.name, pictures=data.pictures)
        splits = {name: catalogue.load(data.name, name) for name in {s for pair in found["pairs"] for s in pair}}
    else:
        module = GENERATED[data.name]
        splits = {name: module.load(name, n=data.n) for name in catalogue.NAMES[data.name].splits}
        found = leakage.audit_splits(data.name, list(splits.values()), pictures=data.pictures)
    metrics = {}
    for pair in found["pairs"]:
        for (finding, part), metric in FINDINGS.items():
            share = found[finding][pair] if part is None else found[finding][pair][part]
            if share is not None:
                metrics[f"{'>'.join(pair)}.{metric}"] = Metric(share.count / share.n, share.n)
    rules = {">".join(pair): r["numbering"].rule for pair, r in found["rewordings"].items() if r["numbering"]}
    digest = hashlib.sha256("".join(splits[name].content_hash() for name in sorted(splits)).encode())
    details = {"pairs": [list(pair) for pair in found["pairs"]], "rules": rules, "data_hash": digest.hexdigest()}
    return Outcome(metrics, {}, details)


def table(records: Iterable[Record], wanted: Mapping[str, Sequence[str]]) -> pd.DataFrame:
    """What was found for some pairs of splits: columns data, splits, finding, count, mean, low, high, n.

    Parameters
    ----------
    records
        Of this experiment.
    wanted
        Data set → pairs, as ``"train>test"``; those that were not audited are left out, and so are findings of 0.
    """
    import pandas as pd

    rows = []
    for record in records:
        for pair in wanted.get(record.spec.unit, ()):
            for metric, title in TITLES.items():
                m = record.metrics.get(f"{pair}.{metric}")
                if m is None or m.value == 0:
                    continue
                i = wilson(round(m.value * m.n), m.n)
                about = {"data": DATASETS[record.spec.unit], "splits": pair.replace(">", " → "), "finding": title}
                rows.append(
                    about | {"count": round(m.value * m.n), "mean": i.mean, "low": i.low, "high": i.high, "n": m.n}
                )
    return pd.DataFrame(rows)
