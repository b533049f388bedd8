"""From records to what a chapter prints: right or wrong by seed and question, tables with intervals, curves.

A *matrix of answers* is bool (S, Q): row s is the run of one seed, column q one test question. All intervals are those
of :func:`~vqa_core.evaluation.statistics.seeds_and_questions`: over seeds, and over pictures drawn whole.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np

from vqa_core.data.types import Sample
from vqa_core.evaluation.statistics import (
    Difference,
    Interval,
    holm,
    mean_over_seeds,
    paired_difference,
    seeds_and_questions,
)
from vqa_core.experiments.records import Record

if TYPE_CHECKING:
    import pandas as pd

EVERY = "all"  # the name under which all families together stand


def by_unit(records: Iterable[Record]) -> dict[str, list[Record]]:
    """Records of each unit in the order of their seeds; units in the order in which they first come."""
    found: dict[str, list[Record]] = {}
    for record in records:
        found.setdefault(record.spec.unit, []).append(record)
    return {unit: sorted(some, key=lambda r: r.spec.seed) for unit, some in found.items()}


def right_or_wrong(records: Sequence[Record], answers: Sequence[str], array: str = "predicted_test") -> np.ndarray:
    """Which questions each run answered rightly.

    Parameters
    ----------
    records
        Runs of one unit, one per seed.
    answers
        (Q,) the true answers, in the order in which the questions were predicted.
    array
        Name of the record's array int (Q,) of predictions, which points into ``details["answers"]``.

    Returns
    -------
    numpy.ndarray
        bool (S, Q).
    """
    truth = np.asarray(answers)
    rows = []
    for record in records:
        predicted = np.asarray(record.details["answers"])[record.arrays[array]]  # (Q,)
        if predicted.shape != truth.shape:
            raise ValueError(
                f"{record.spec.unit}, seed {record.spec.seed}: {len(predicted)} predictions of {len(truth)}"
            )
        rows.append(predicted == truth)
    return np.stack(rows)


def row(interval: Interval) -> dict[str, float]:
    """An interval as columns of a table."""
    return {"mean": interval.mean, "low": interval.low, "high": interval.high, "n": interval.n}


def accuracy_table(
    correct: Mapping[str, np.ndarray], pictures: Sequence[str], families: Sequence[str] | None = None
) -> pd.DataFrame:
    """Accuracy of every unit, in all and by family.

    Parameters
    ----------
    correct
        unit → bool (S, Q).
    pictures
        (Q,) picture ids; questions about one picture are drawn together.
    families
        (Q,) names; None gives only the rows ``"all"``.

    Returns
    -------
    pandas.DataFrame
        Columns unit, family, mean, low, high, n (questions), seeds; families in the order in which they first come.
    """
    import pandas as pd

    pictures = np.asarray(pictures)
    names = [EVERY] if families is None else [EVERY, *dict.fromkeys(families)]
    rows = []
    for unit, matrix in correct.items():
        for name in names:
            keep = np.ones(len(pictures), bool) if name == EVERY else np.asarray(families) == name
            interval = seeds_and_questions(matrix[:, keep], pictures[keep])
            rows.append({"unit": unit, "family": name, **row(interval), "seeds": len(matrix)})
    return pd.DataFrame(rows)


def gain_table(correct: Mapping[str, np.ndarray], base: str, pictures: Sequence[str]) -> pd.DataFrame:
    """Gain of every other unit over ``base`` on the same questions and seeds.

    Returns
    -------
    pandas.DataFrame
        Columns unit, mean, low, high, n, p (paired t test over seeds), p_holm (adjusted for all rows together).
    """
    import pandas as pd

    others = {unit: gain([matrix], [correct[base]], pictures) for unit, matrix in correct.items() if unit != base}
    table = pd.DataFrame([{"unit": u, **row(d.interval), "p": d.test.p_value} for u, d in others.items()])
    return table.assign(p_holm=holm(table["p"]))


def gain(a: Sequence[np.ndarray], b: Sequence[np.ndarray], pictures: Sequence[str], keep=None) -> Difference:
    """Mean of the matrices ``a`` minus mean of the matrices ``b``, paired by seed and question.

    Parameters
    ----------
    a, b
        bool (S, Q) each; several are averaged, question by question.
    pictures
        (Q,) picture ids.
    keep
        bool (Q,), the questions that count; None for all.
    """
    keep = np.ones(len(pictures), bool) if keep is None else np.asarray(keep)
    first, second = np.mean(a, axis=0)[:, keep], np.mean(b, axis=0)[:, keep]  # (S, Q')
    return paired_difference(first, second, np.asarray(pictures)[keep])


def best_on_validation(records: Mapping[str, Sequence[Record]], units: Iterable[str]) -> str:
    """The unit with the highest mean validation accuracy; the test set has no say in it."""
    return max(units, key=lambda u: np.mean([max(e["validation"] for e in r.details["history"]) for r in records[u]]))


def cost_table(records: Mapping[str, Sequence[Record]]) -> pd.DataFrame:
    """What a unit costs.

    Returns
    -------
    pandas.DataFrame
        Columns unit, parameters, flops (one question, forward), activation_mb (one training step, 10⁶ bytes),
        seconds_per_step (median over seeds).
    """
    import pandas as pd

    rows = []
    for unit, some in records.items():
        d = some[0].details
        seconds = float(np.median([r.details["seconds_per_step"] for r in some]))
        rows.append(
            {
                "unit": unit,
                "parameters": d["parameters"],
                "flops": d["flops"],
                "activation_mb": d["activation_bytes"] / 1e6,
                "seconds_per_step": seconds,
            }
        )
    return pd.DataFrame(rows)


def learning_curves(records: Mapping[str, Sequence[Record]], key: str = "validation") -> pd.DataFrame:
    """A number of ``details["history"]`` by epoch: columns unit, epoch (from 1), mean, low, high, n (seeds).

    The interval is the t interval over seeds.
    """
    import pandas as pd

    rows = []
    for unit, some in records.items():
        for epochs in zip(*(r.details["history"] for r in some)):
            interval = mean_over_seeds([e[key] for e in epochs])
            rows.append({"unit": unit, "epoch": int(epochs[0]["epoch"]) + 1, **row(interval)})
    return pd.DataFrame(rows)


def opposite_questions(samples: Sequence[Sample]) -> np.ndarray:
    """Two yes/no questions and two pictures, such that each question separates the pictures, in opposite directions.

    Parameters
    ----------
    samples
        Questions whose ``meta["partner"]`` is the id of the same words about the other picture of a pair.

    Returns
    -------
    numpy.ndarray
        int (K, 4): positions of (first question, picture A), (first, B), (second, A), (second, B), with the answers
        yes, no, no, yes. This is an exclusive-or of picture and question: whatever scores s(picture) + t(question)
        has at most three of the four right.
    """
    position = {s.question_id: i for i, s in enumerate(samples)}
    yes_at: dict[tuple[str, str], list[tuple[int, int]]] = defaultdict(list)
    for i, s in enumerate(samples):
        if s.answer == "yes" and s.meta["partner"] in position:
            j = position[s.meta["partner"]]
            yes_at[s.picture_id, samples[j].picture_id].append((i, j))
    found = [
        (i, j, n, m)
        for (a, b), firsts in yes_at.items()
        if a < b
        for i, j in firsts
        for m, n in yes_at.get((b, a), ())  # m: yes on B, n: no on A
    ]
    return np.array(found, dtype=np.int64).reshape(-1, 4)
