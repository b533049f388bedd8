"""From the records of ``counterfactual`` to the tables, effects of claims and examples of chapter 10.

Every metric is a matrix (S, Q), one number for each seed and volume (or picture) whose mean is the metric: a share for
the accuracy, a map's score for the maps, and for AUROC and F1, which are no means, each volume's *contribution*
(:func:`auroc_contributions`, :func:`f1_contributions`). So all intervals are those of
:func:`~vqa_core.evaluation.statistics.seeds_and_questions`, and differences are paired by seed and volume.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from vqa_core.evaluation.statistics import Difference, Interval, holm, paired_difference, seeds_and_questions
from vqa_core.experiments.counterfactual import BASELINES, UNITS, Material
from vqa_core.experiments.readout import by_unit, row
from vqa_core.experiments.records import Record
from vqa_core.explain.cells import shares_of
from vqa_core.explain.scores import SCORES

if TYPE_CHECKING:
    import pandas as pd

Runs = Mapping[str, Sequence[Record]]
RESAMPLES = 1_000  # of tables; claims have ten times as many

ANSWERS = {"accuracy": "accuracy", "f1": "macro F1", "auroc": "AUROC"}
MAPS = {"pointing_game": "pointing game", "iou": "IoU", "energy_inside": "energy inside", "auprc": "AUPRC"}
TITLES = ANSWERS | MAPS
#: Claim → metric whose difference decides it.
CLAIMS = {"E1a": "accuracy", "E1b": "f1", "E1c": "auroc", "E2": "pointing_game"}
#: Claim → what the note reports, as a share.
PUBLISHED = {"E1a": 0.013, "E1b": 0.023, "E1c": 0.033}
BASELINE_TITLES = {"centre": "usual places", "chance": "chance", "salience": "brightness or contrast"}
KINDS = ("with", "uniform", "shuffled", "reversed", "zero")


def runs_of(records: Iterable[Record]) -> dict[str, list[Record]]:
    """Unit → its records in the order of their seeds."""
    return by_unit(records)


def of_units(runs: Runs, units: Iterable[str]) -> list[Record]:
    """All records of some units."""
    return [record for unit in units for record in runs.get(unit, ())]


# ------------------------------------------------------------------------------------------------------------- metrics


def auroc_contributions(scores: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """One number for each case, whose mean is the area under the ROC curve, (Q,).

    For a positive, the share of negatives that it outscores (ties count half); for a negative, the share of positives
    that outscore it; centred on the area, and scaled by how rare the class is. These are the structural components of
    DeLong et al. 1988: their spread gives the variance of the area, and differences of two models can be paired.

    Parameters
    ----------
    scores
        Of class 1, (Q,).
    labels
        0 or 1, (Q,), both present.
    """
    from scipy.stats import rankdata

    scores, positive = np.asarray(scores, dtype=np.float64), np.asarray(labels) == 1
    n, ones = len(scores), int(positive.sum())
    if not 0 < ones < n:
        raise ValueError(f"{ones} of {n} cases are positive; AUROC needs both classes")
    ranks = rankdata(scores)  # (Q,)
    own = np.empty(n)
    own[positive], own[~positive] = rankdata(scores[positive]), rankdata(scores[~positive])
    outscored = np.where(positive, (ranks - own) / (n - ones), 1 - (ranks - own) / ones)  # (Q,) in [0, 1]
    area = outscored[positive].mean()
    return area + (outscored - area) * np.where(positive, n / ones, n / (n - ones))


def f1_contributions(predicted: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """One number for each case, whose mean is the macro F1, (Q,).

    F1 of a class is a ratio of two means, A = 2 TP / n and B = (2 TP + FP + FN) / n. A case adds to it what its own
    terms change, to first order: F + (a − F b) / B. Classes that neither occur nor are predicted are left out.
    """
    predicted, labels = np.asarray(predicted), np.asarray(labels)
    found = []
    for k in np.union1d(predicted, labels):
        said, true = predicted == k, labels == k
        a, b = 2.0 * (said & true), said * 1.0 + true  # 2 TP = a, 2 TP + FP + FN = b
        f1 = a.mean() / b.mean()
        found.append(f1 + (a - f1 * b) / b.mean())
    return np.mean(found, axis=0)  # (Q,)


def matrix(records: Sequence[Record], metric: str) -> np.ndarray:
    """A metric of one unit, (S, Q); bool for the accuracy.

    Raises
    ------
    ValueError
        When the records were not tested on the same cases, or have no such metric.
    """
    labels = records[0].arrays["label"]
    if any(not np.array_equal(r.arrays["label"], labels) for r in records):
        raise ValueError(f"records of {records[0].spec.unit} were tested on different cases; run counterfactual again")
    if metric in MAPS:
        if f"score.{metric}" not in records[0].arrays:
            raise ValueError(f"{records[0].spec.unit} has no maps, so no {MAPS[metric]}")
        return np.stack([r.arrays[f"score.{metric}"] for r in records]).astype(np.float64)
    if metric not in ANSWERS:
        raise ValueError(f"metric is {metric!r}, allowed are {', '.join(TITLES)}")
    said = [r.arrays["probability"].argmax(1) for r in records]
    if metric == "accuracy":
        return np.stack([s == labels for s in said])
    if metric == "f1":
        return np.stack([f1_contributions(s, labels) for s in said])
    return np.stack([auroc_contributions(r.arrays["probability"][:, 1], labels) for r in records])


def measured(records: Sequence[Record], metric: str) -> Interval:
    """A metric of one unit over seeds and cases, its interval inside [0, 1]."""
    found = seeds_and_questions(matrix(records, metric), resamples=RESAMPLES)
    return replace(found, low=min(max(found.low, 0.0), found.mean), high=max(min(found.high, 1.0), found.mean))


def difference(a: Sequence[Record], b: Sequence[Record], metric: str, resamples: int = RESAMPLES) -> Difference:
    """A metric of unit a minus that of unit b, paired by seed and case.

    Raises
    ------
    ValueError
        When the two have other seeds or other cases.
    """
    seeds = [[r.spec.seed for r in records] for records in (a, b)]
    if seeds[0] != seeds[1] or not np.array_equal(a[0].arrays["label"], b[0].arrays["label"]):
        raise ValueError(
            f"{a[0].spec.unit} has seeds {seeds[0]}, {b[0].spec.unit} has {seeds[1]}; both need the same seeds and "
            "cases: run the missing"
        )
    return paired_difference(matrix(a, metric), matrix(b, metric), resamples=resamples)


# -------------------------------------------------------------------------------------------------------------- tables


def metric_table(runs: Runs, units: Iterable[str], metrics: Iterable[str]) -> pd.DataFrame:
    """Columns unit, title, metric, mean, low, high, n (cases), seeds; metrics that a unit lacks are left out."""
    import pandas as pd

    rows = []
    for unit in units:
        if not runs.get(unit):
            continue
        for metric in metrics:
            if metric in MAPS and f"score.{metric}" not in runs[unit][0].arrays:
                continue
            found = {"unit": unit, "title": UNITS[unit].title, "metric": TITLES[metric]}
            rows.append(found | row(measured(runs[unit], metric)) | {"seeds": len(runs[unit])})
    columns = ["unit", "title", "metric", "mean", "low", "high", "n", "seeds"]
    return pd.DataFrame(rows, columns=columns)


def baseline_table(runs: Runs, part: str = "volume") -> pd.DataFrame:
    """Scores of the maps that know nothing: columns unit, title, metric, mean, low, high, n, seeds.

    ``part`` is ``"volume"`` or ``"scene"``.
    """
    import pandas as pd

    rows = []
    for record in runs.get(f"{part}.{BASELINES}", ()):
        for name, title in BASELINE_TITLES.items():
            for metric in SCORES:
                found = seeds_and_questions(record.arrays[f"{name}.{metric}"][None].astype(np.float64), None, RESAMPLES)
                rows.append({"unit": name, "title": title, "metric": MAPS[metric], **row(found), "seeds": 1})
    columns = ["unit", "title", "metric", "mean", "low", "high", "n", "seeds"]
    return pd.DataFrame(rows, columns=columns)


def gain_table(runs: Runs, pairs: Mapping[str, str], metrics: Iterable[str]) -> pd.DataFrame:
    """Differences of units and their bases.

    Parameters
    ----------
    runs
        Records by unit.
    pairs
        Unit → base.
    metrics
        Keys of :data:`TITLES`.

    Returns
    -------
    pandas.DataFrame
        Columns unit, title, base, metric, mean, low, high, n, p (paired t test over seeds), p_holm (adjusted for all
        rows of the table).
    """
    import pandas as pd

    rows = []
    for unit, base in pairs.items():
        for metric in metrics:
            found = difference(runs[unit], runs[base], metric)
            names = {"unit": unit, "title": UNITS[unit].title, "base": UNITS[base].title, "metric": TITLES[metric]}
            rows.append(names | row(found.interval) | {"p": found.test.p_value})
    table = pd.DataFrame(rows)
    return table.assign(p_holm=holm(table["p"]))


def effects(runs: Runs) -> dict[str, Interval | None]:
    """Effect of every claim of the chapter by its id: with CAL minus without, on volumes; None without records."""
    there = runs.get("with") and runs.get("without")
    return {
        claim: difference(runs["with"], runs["without"], metric, 10_000).interval if there else None
        for claim, metric in CLAIMS.items()
    }


def answers_and_maps(runs: Runs, units: Iterable[str], metric: str = "energy_inside") -> pd.DataFrame:
    """A map's mean score where the answer is right, and where it is wrong: columns unit, title, answer, mean … n.

    n counts cases with such an answer in any seed; a case that some seeds answer rightly counts in both rows, with the
    mean over those seeds.
    """
    import pandas as pd

    rows = []
    for unit in units:
        right, scores = matrix(runs[unit], "accuracy"), matrix(runs[unit], metric)  # (S, Q) each
        for name, keep in (("right", right), ("wrong", ~right)):
            cases = keep.any(axis=0)
            if not cases.any():
                continue
            mean = np.where(keep, scores, 0).sum(axis=0)[cases] / keep.sum(axis=0)[cases]  # (cases,)
            found = {"unit": unit, "title": UNITS[unit].title, "answer": name}
            rows.append(found | row(seeds_and_questions(mean[None], resamples=RESAMPLES)))
    return pd.DataFrame(rows)


# ------------------------------------------------------------------------------------------------------- what is shown


class Example(NamedTuple):
    """A slice of a volume, or a picture, with its maps.

    Attributes
    ----------
    row
        Its position in the test split.
    picture
        (H, W) or (H, W, 3), in [0, 1].
    region
        bool (H, W).
    maps
        Unit → share of attention in each cell of the slice, (rows, columns).
    score
        Unit → the score by which it was chosen.
    answers
        True label, then what each unit said.
    """

    row: int
    picture: np.ndarray
    region: np.ndarray
    maps: dict[str, np.ndarray]
    score: dict[str, float]
    answers: tuple[str, ...]


def rows_at_quantiles(scores: np.ndarray, quantiles: Sequence[float]) -> list[int]:
    """Positions of the cases at quantiles (0 worst, 1 best) of a score (Q,); the first of equals is the worse one."""
    order = np.argsort(scores, kind="stable")
    return [int(order[round(q * (len(order) - 1))]) for q in quantiles]


def examples(runs: Runs, material: Material, units: Sequence[str], rows: Sequence[int], metric: str) -> list[Example]:
    """Cases of the first seed; of a volume the slice in which the mass is largest.

    Parameters
    ----------
    runs, units
        Units that keep their maps.
    material
        The test split.
    rows
        Cases.
    metric
        Which score stands beside each map.
    """
    found = []
    for i in rows:
        region, picture = material.regions[i], material.feed.pictures[i].numpy()
        maps = {u: runs[u][0].arrays["maps"][i].astype(np.float64) for u in units}
        if region.ndim == 3:
            z = int(region.sum((1, 2)).argmax())
            depth = {u: z * m.shape[0] // len(region) for u, m in maps.items()}
            picture, region = (picture[z] + 1) / 2, region[z]
            maps = {u: m[depth[u]] for u, m in maps.items()}
        else:
            picture = picture / 255
        said = [material.answers[int(runs[u][0].arrays["probability"][i].argmax())] for u in units]
        score = {u: float(runs[u][0].arrays[f"score.{metric}"][i]) for u in units}
        truth = material.answers[int(material.feed.answers[i])]
        found.append(Example(int(i), picture, region, maps, score, (truth, *said)))
    return found


def example_table(found: Sequence[Example]) -> pd.DataFrame:
    """What is shown, as a table: columns case, unit, truth, answer, score."""
    import pandas as pd

    return pd.DataFrame(
        [
            {"case": e.row, "unit": unit, "truth": e.answers[0], "answer": said, "score": e.score[unit]}
            for e in found
            for unit, said in zip(e.maps, e.answers[1:])
        ]
    )


def mean_profile(runs: Runs, material: Material, units: Sequence[str]) -> pd.DataFrame:
    """Attention against distance from the mass: columns unit, title, distance, mean, low, high, n.

    ``distance`` is that of a cell's centre from the mass's centre, in cells, rounded down; ``mean`` the average weight
    of such a cell, as a multiple of what it would get if all cells had the same. First seed.
    """
    import pandas as pd

    grid = runs[units[0]][0].arrays["maps"].shape[1:]
    shares = shares_of(material.regions, grid)  # (Q, *grid)
    places = np.stack(np.meshgrid(*map(np.arange, grid), indexing="ij"), axis=-1).reshape(-1, len(grid))  # (N, axes)
    weights = shares.reshape(len(shares), -1)  # (Q, N)
    centres = weights @ places / weights.sum(1, keepdims=True)  # (Q, axes)
    away = np.sqrt(((places - centres[:, None]) ** 2).sum(-1)).astype(int)  # (Q, N)
    rows = []
    for unit in units:
        maps = runs[unit][0].arrays["maps"].reshape(len(shares), -1).astype(np.float64) * len(places)  # (Q, N)
        for distance in range(min(9, away.max() + 1)):
            near = away == distance
            cases = near.any(1)
            mean = (maps * near).sum(1)[cases] / near.sum(1)[cases]
            if len(mean):
                names = {"unit": unit, "title": UNITS[unit].title, "distance": distance}
                rows.append(names | row(seeds_and_questions(mean[None], resamples=RESAMPLES)))
    return pd.DataFrame(rows)
