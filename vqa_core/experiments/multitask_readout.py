"""From the records of ``multitask`` to tables, gains and the effect of claim F11.

A *matrix of answers* is bool (S, Q): row s is the model of one seed, column q one test question. Intervals are over
seeds and pictures (:func:`~vqa_core.evaluation.statistics.seeds_and_questions`), or over seeds where no picture counts.
Every function takes records that may lack arms, and leaves those out; what a claim needs and lacks is ``None``.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from itertools import combinations
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import torch

from vqa_core.evaluation.statistics import Difference, Interval, mean_over_seeds, paired_difference, seeds_and_questions
from vqa_core.experiments.multitask import ARMS, TASKS, WEIGHTINGS
from vqa_core.experiments.readout import row
from vqa_core.experiments.records import Record
from vqa_core.training.multitask import project_conflicts

if TYPE_CHECKING:
    import pandas as pd

#: Arm → what it is called. ``alone`` stands for the three single-task arms together, each for its own task.
TITLES = {
    "equal": "equal weights",
    "scaled": "1 / log(classes)",
    "dwa": "DWA",
    "uncertainty": "uncertainty",
    "pcgrad": "equal, PCGrad",
    "alone": "each task alone",
    "narrow": "three narrow trunks",
    "early": "organ read early",
    "blank": "no picture",
    "mute": "no question",
    "usual": "most frequent label",
}
PAIRS = tuple(combinations(range(len(TASKS)), 2))
MEAN = "mean over tasks"


def pair_name(a: int, b: int) -> str:
    """Name of a pair of tasks.

    >>> pair_name(0, 2)
    'category and organ'
    """
    return f"{TASKS[a]} and {TASKS[b]}"


def by_amount(records: Iterable[Record]) -> dict[int, dict[str, Record]]:
    """Training pictures → arm → record, both in ascending order and in that of the experiment."""
    found: dict[int, dict[str, Record]] = {}
    for record in records:
        arm, amount = record.spec.unit.split(".")
        found.setdefault(int(amount), {})[arm] = record
    return {n: {arm: found[n][arm] for arm in ARMS if arm in found[n]} for n in sorted(found)}


def correct(runs: Mapping[str, Record], arm: str, task: str) -> np.ndarray | None:
    """Which test questions an arm does rightly, bool (S, Q); None where it was not run.

    ``"alone"`` is ``alone_<task>``; ``"usual"`` is the label that training has most often, one row.
    """
    k = TASKS.index(task)
    name = f"alone_{task}" if arm == "alone" else "equal" if arm == "usual" else arm
    if name not in runs:
        return None
    arrays = runs[name].arrays
    labels = arrays["label_test"][:, k]  # (Q,)
    if arm == "usual":
        return (labels == arrays["usual"][k])[None]  # (1, Q)
    return arrays["predicted_test"][..., k] == labels  # (S, Q)


def pictures_of(runs: Mapping[str, Record]) -> np.ndarray:
    """Picture of each test question, int (Q,).

    Raises
    ------
    ValueError
        Arms were tested on different questions.
    """
    found = {arm: record.arrays["picture_test"] for arm, record in runs.items()}
    first = next(iter(found.values()))
    if other := [arm for arm, pictures in found.items() if not np.array_equal(pictures, first)]:
        raise ValueError(f"{', '.join(other)}: tested on other questions than {next(iter(found))}; run multitask again")
    return first


def _matrices(runs: Mapping[str, Record], arm: str) -> dict[str, np.ndarray]:
    """Task → answers, and their mean over the tasks, float (S, Q), where the arm does all of them."""
    found = {task: x for task in TASKS if (x := correct(runs, arm, task)) is not None}
    if len(found) == len(TASKS):
        found[MEAN] = np.mean(list(found.values()), axis=0)
    return found


def accuracy_table(runs: Mapping[str, Record]) -> pd.DataFrame:
    """Accuracy of each arm in each task, and over the tasks: columns arm, task, mean, low, high, n (questions)."""
    import pandas as pd

    pictures, rows = pictures_of(runs), []
    for arm in TITLES:
        for task, matrix in _matrices(runs, arm).items():
            rows.append({"arm": arm, "task": task, **row(_share(seeds_and_questions(matrix, pictures)))})
    return pd.DataFrame(rows)


def _share(interval: Interval) -> Interval:
    """A mean over tasks is no bool, but a share all the same: the interval ends at 0 and 1."""
    return replace(interval, low=max(interval.low, 0.0), high=min(interval.high, 1.0))


def gain(runs: Mapping[str, Record], arm: str, base: str = "alone", task: str = MEAN) -> Difference | None:
    """Accuracy of one arm minus that of another, paired by seed and question; None where one was not run."""
    a, b = _matrices(runs, arm).get(task), _matrices(runs, base).get(task)
    return None if a is None or b is None else paired_difference(a, b, pictures_of(runs))


def gain_table(amounts: Mapping[int, Mapping[str, Record]], arms: Sequence[str] = ("equal",)) -> pd.DataFrame:
    """Gain over ``alone`` of arms, by amount and task.

    Returns
    -------
    pandas.DataFrame
        Columns pictures, questions (for training), arm, task, mean, low, high, n (test questions).
    """
    import pandas as pd

    rows = []
    for amount, runs in amounts.items():
        for arm in arms:
            for task in (*TASKS, MEAN):
                if (found := gain(runs, arm, task=task)) is not None:
                    named = {"pictures": amount, "questions": runs[arm].details["questions"]["train"]}
                    rows.append(named | {"arm": arm, "task": task, **row(found.interval)})
    return pd.DataFrame(rows)


def multitask_effect(records: Iterable[Record], amount: int) -> Interval | None:
    """Claim F11: ``equal`` minus ``alone`` at an amount of training pictures, mean over tasks; None without records."""
    runs = by_amount(records).get(amount)
    found = gain(runs, "equal") if runs else None
    return found and found.interval


# -- two tasks in the plane -------------------------------------------------------------------------------------------


def descend(minima: np.ndarray, start: Sequence[float], steps: int, rate: float, project: bool = False) -> np.ndarray:
    """Gradient descent on Σₖ ½ ‖θ − mₖ‖², the way θ takes, float (steps + 1, P).

    Parameters
    ----------
    minima
        mₖ of each task, (K, P).
    start
        θ at first, (P,).
    rate
        Of learning.
    project
        With PCGrad, the tasks in their order.
    """
    way, goals = [np.asarray(start, dtype=np.float64)], torch.as_tensor(minima, dtype=torch.float64)
    order = torch.arange(len(goals))[None]  # (1, K)
    for _ in range(steps):
        gradients = (torch.from_numpy(way[-1]) - goals)[None]  # (1, K, P)
        gradients = project_conflicts(gradients, order) if project else gradients
        way.append(way[-1] - rate * gradients[0].sum(0).numpy())
    return np.stack(way)


# -- conflict ---------------------------------------------------------------------------------------------------------


def cosine_table(runs: Mapping[str, Record], arm: str = "equal", windows: int = 10) -> pd.DataFrame:
    """Cosine of the gradients of each pair of tasks along the training.

    Single steps are noisy: each seed's mean over a window of measured steps is one value.

    Returns
    -------
    pandas.DataFrame
        Columns step (mean of the window), pair, mean, low, high, n (seeds).
    """
    import pandas as pd

    steps, cosine = runs[arm].arrays["step"], runs[arm].arrays["cosine"]  # (M,), (S, M, K, K)
    rows = []
    for window in np.array_split(np.arange(len(steps)), min(windows, len(steps))):
        for a, b in PAIRS:
            found = mean_over_seeds(cosine[:, window, a, b].mean(1))
            rows.append({"step": float(steps[window].mean()), "pair": pair_name(a, b), **row(found)})
    return pd.DataFrame(rows)


def conflict_table(runs: Mapping[str, Record]) -> pd.DataFrame:
    """How often and how much tasks conflict in each arm.

    Returns
    -------
    pandas.DataFrame
        Columns arm, pair, quantity, mean, low, high, n (seeds). Quantities are ``negative`` (share of the measured
        steps with a negative cosine), ``cosine`` (its mean) and ``ratio`` (of the longer gradient to the shorter one,
        geometric mean over the steps).
    """
    import pandas as pd

    rows = []
    for arm in (w for w in WEIGHTINGS if w in runs and "cosine" in runs[w].arrays):
        cosine, norm = runs[arm].arrays["cosine"], runs[arm].arrays["norm"]  # (S, M, K, K), (S, M, K)
        logs = np.log(np.maximum(norm, 1e-12))
        for a, b in PAIRS:
            quantities = {
                "negative": (cosine[..., a, b] < 0).mean(1),
                "cosine": cosine[..., a, b].mean(1),
                "ratio": np.exp(np.abs(logs[..., a] - logs[..., b]).mean(1)),
            }  # (S,) each
            for quantity, values in quantities.items():
                found = mean_over_seeds(values)
                if quantity == "negative":
                    found = _share(found)
                rows.append({"arm": arm, "pair": pair_name(a, b), "quantity": quantity, **row(found)})
    return pd.DataFrame(rows)


def curve_table(runs: Mapping[str, Record], quantity: str) -> pd.DataFrame:
    """``loss``, ``weight`` or ``validation`` of each task along the training.

    Returns
    -------
    pandas.DataFrame
        Columns arm, task, step, mean, low, high, n (seeds). Of ``alone`` each task is that of its own arm.
    """
    import pandas as pd

    rows = []
    for arm in TITLES:
        for task in TASKS:
            name = f"alone_{task}" if arm == "alone" else arm
            if name not in runs:
                continue
            for points in zip(*runs[name].details["history"]):
                found = mean_over_seeds([p[f"{quantity}.{task}"] for p in points])
                found = _share(found) if quantity == "validation" else found
                rows.append({"arm": arm, "task": task, "step": points[0]["step"], **row(found)})
    return pd.DataFrame(rows)


# -- failures ---------------------------------------------------------------------------------------------------------


class Failures(NamedTuple):
    """What :func:`failures` found.

    Attributes
    ----------
    lost
        Test questions, int (N,), that sharing costs most: sorted by (share of seeds right alone − together).
    drop
        That share for each of them, (N,).
    """

    lost: np.ndarray
    drop: np.ndarray


def failures(runs: Mapping[str, Record], task: str, n: int = 6) -> Failures:
    """The test questions whose ``task`` suffers most from sharing, one for each picture; ties keep their order."""
    alone, together = correct(runs, "alone", task), correct(runs, "equal", task)
    if alone is None or together is None:
        raise ValueError(f"failures of {task!r} need the arms equal and alone_{task}; run multitask with both")
    drop = alone.mean(0) - together.mean(0)  # (Q,)
    order = np.argsort(-drop, kind="stable")
    _, first = np.unique(pictures_of(runs)[order], return_index=True)  # the worst question of each picture
    lost = order[np.sort(first)][:n]
    return Failures(lost, drop[lost])


def loss_by_family(runs: Mapping[str, Record], families: Sequence[str], task: str) -> pd.DataFrame:
    """Gain of ``equal`` over ``alone`` in one task by the questions' category: columns category, mean, low, high, n."""
    import pandas as pd

    a, b, pictures = correct(runs, "equal", task), correct(runs, "alone", task), pictures_of(runs)
    families, rows = np.asarray(families), []
    for family in sorted(set(families)):
        keep = families == family
        found = paired_difference(a[:, keep], b[:, keep], pictures[keep])
        rows.append({"category": family, **row(found.interval)})
    return pd.DataFrame(rows)
