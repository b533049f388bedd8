"""What chapter 7 reads from experiments ``medical`` and ``medical_encoders``: tables, curves, and effects of claims.

Every interval is over seeds and over pictures drawn whole, on the same questions where two models are compared.
Several models on a side (the same comparison with SAN, BAN and CMSA) are averaged question by question.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np

from vqa_core.data import tokenize
from vqa_core.evaluation.statistics import Interval, paired_difference, seeds_and_questions, separated, wilson
from vqa_core.experiments import audit
from vqa_core.experiments.medical import INTERACTIONS, PAIR, SETS
from vqa_core.experiments.readout import best_on_validation, by_unit, gain, row
from vqa_core.experiments.records import Record

if TYPE_CHECKING:
    import pandas as pd

    from vqa_core.data import Dataset

CLAIMS = ("F4", "M3a", "M3b", "M4", "M5a", "M5b", "M6a", "M6b", "M6c", "M7", "M8", "M9")
FEW_STEPS, MANY_STEPS = 5, 25
BASELINES = ("majority", "question_only", "lookup", "ceiling")
METRICS = ("all", "closed", "open", "blank", "shuffled", "noisy")
#: Metric of experiment ``audit`` → the finding's name in tables, in their order.
_TITLES = audit.TITLES | {"repeated_rows": "same rows", "majority_accuracy": "right by the commonest answer"}
FINDINGS = {metric: _TITLES[metric] for metric in audit.FINDINGS.values()}
_PAIR, _TRIPLE = "+".join(PAIR), "maml+dae+natural"

Records = Mapping[str, Sequence[Record]]


def correct_of(records: Sequence[Record], array: str = "correct_test") -> np.ndarray:
    """An array of all records of one unit, bool (S, Q)."""
    return np.stack([r.arrays[array] for r in records])


def _grid(records: Iterable[Record]) -> dict[str, list[Record]]:
    """Units with their records, those of experiment ``medical`` only."""
    return by_unit(r for r in records if r.spec.experiment == "medical")


def is_model(unit: str) -> bool:
    """Whether a unit is a trained model that sees pictures."""
    parts = unit.split(".")
    return len(parts) >= 5 and parts[4] != "question_only"


# ------------------------------------------------------------------------------------------------------------- tables


def overview(records: Iterable[Record]) -> pd.DataFrame:
    """Accuracy of everything.

    Returns
    -------
    pandas.DataFrame
        Columns data, protocol, model (the unit without its data), metric, mean, low, high, n (questions), seeds.
        Metrics are ``all``, ``closed`` and ``open`` questions, and all questions with the average picture (``blank``),
        another question's (``shuffled``), and of phantoms a noisier one (``noisy``). Baselines and the ceiling of
        reachable answers stand as models of their own.
    """
    import pandas as pd

    rows = []
    for unit, some in _grid(records).items():
        data, _, model = unit.partition(".")
        if model == "first_words":
            continue  # predicts kinds, not answers
        first = some[0].arrays
        names = BASELINES if model == "baselines" else (model,)
        pictures, closed = first["picture_test"], first["closed_test"]
        for name in names:
            if model == "baselines":
                right = dict.fromkeys(METRICS[:3], f"correct_{name}")
            else:
                right = {m: "correct_test" if m in METRICS[:3] else f"correct_{m}" for m in METRICS}
            for metric, found in right.items():
                keep = {"closed": closed, "open": ~closed}.get(metric, np.ones(len(closed), dtype=bool))
                if found not in first or not keep.any():
                    continue
                interval = seeds_and_questions(correct_of(some, found)[:, keep], pictures[keep])
                about = {"data": data, "protocol": some[0].details["protocol"], "model": name, "metric": metric}
                rows.append(about | row(interval) | {"seeds": len(some)})
    return pd.DataFrame(rows)


def best_model(records: Iterable[Record], data: str = "vqa_rad") -> str | None:
    """The unit of a data set with the highest accuracy on *validation*; None without any."""
    found = _grid(records)
    units = [u for u in found if u.startswith(f"{data}.") and is_model(u)]
    return best_on_validation(found, units) if units else None


def beats_baselines(records: Iterable[Record], data: str = "vqa_rad") -> pd.DataFrame:
    """The best model, chosen on validation, against what needs no picture.

    Returns
    -------
    pandas.DataFrame
        Columns model, baseline, mean, low, high, n (accuracy of the model minus that of the baseline), separated
        (whether the intervals of the two accuracies do not overlap). Baselines: ``lookup``, ``question_only`` (logistic
        regression), and ``question_only_trained``, the grid's own model without a picture. Those that are not among
        the records are left out.
    """
    import pandas as pd

    records = list(records)
    found, best, rows = _grid(records), best_model(records, data), []
    if best is None:
        return pd.DataFrame(columns=["model", "baseline", "mean", "low", "high", "n", "separated"])
    right, pictures = correct_of(found[best]), found[best][0].arrays["picture_test"]
    against = {}
    if f"{data}.baselines" in found:
        against = {
            name: correct_of(found[f"{data}.baselines"], f"correct_{name}") for name in ("lookup", "question_only")
        }
    blind = f"{data}.{_PAIR}.concat.ban.question_only"
    if blind in found:
        against["question_only_trained"] = correct_of(found[blind])
    for name, other in against.items():
        same = np.broadcast_to(other, right.shape) if len(other) == 1 else other  # one answer for all seeds
        apart = separated(seeds_and_questions(right, pictures), seeds_and_questions(other, pictures))
        difference = gain([right], [same], pictures).interval
        rows.append({"model": best, "baseline": name, **row(difference), "separated": apart})
    return pd.DataFrame(rows)


def amount_table(records: Iterable[Record]) -> pd.DataFrame:
    """Accuracy by number of training phantoms: columns pictures, protocol, model, metric, mean, low, high, n."""
    import pandas as pd

    start, rows = f"phantoms.{_PAIR}.concat.ban.base", []
    for unit, some in _grid(records).items():
        if unit == start or unit.startswith(f"{start}."):
            interval = seeds_and_questions(correct_of(some), some[0].arrays["picture_test"])
            of = {"protocol": some[0].details["protocol"], "model": unit.partition(".")[2], "metric": "all"}
            rows.append({"pictures": some[0].details["pictures"]["train"], **of, **row(interval)})
    columns = ["pictures", "protocol", "model", "metric", "mean", "low", "high", "n"]
    return pd.DataFrame(rows, columns=columns).sort_values("pictures")


def word_region_table(record: Record, test: Dataset) -> pd.DataFrame:
    """What CMSA reads for the first question of each family.

    Parameters
    ----------
    record
        A CMSA unit's; its ``map`` is of the questions ``map_row``.
    test
        The test questions that the record is about.

    Returns
    -------
    pandas.DataFrame
        Columns row (of the question), family, position, word, cell (in reading order), weight, uniform (the weight of
        each pair of word and cell if all were equal).
    """
    import pandas as pd

    rows = []
    for i, weights in zip(record.arrays["map_row"].tolist(), record.arrays["map"]):
        words = tokenize(test[i].question)[: weights.shape[0]]
        uniform = 1 / (len(words) * weights.shape[1])
        rows += [
            {"row": i, "family": test[i].family, "position": t, "word": word, "cell": cell}
            | {"weight": float(weights[t, cell]), "uniform": uniform}
            for t, word in enumerate(words)
            for cell in range(weights.shape[1])
        ]
    return pd.DataFrame(rows)


def audit_table(records: Iterable[Record]) -> pd.DataFrame:
    """Everything that experiment ``audit`` found, also nothing: every data set, pair of splits and finding.

    Returns
    -------
    pandas.DataFrame
        Columns data, splits (``"train → test"``), finding, count, mean, low, high (Wilson's interval), n. What was not
        looked for in a pair of splits has no row.
    """
    import pandas as pd

    rows = []
    for record in records:
        for first, second in record.details["pairs"]:
            for metric, title in FINDINGS.items():
                m = record.metrics.get(f"{first}>{second}.{metric}")
                if m is None:
                    continue
                count = round(m.value * m.n)
                about = {"data": audit.DATASETS[record.spec.unit], "splits": f"{first} → {second}", "finding": title}
                rows.append(about | {"count": count} | row(wilson(count, m.n)))
    return pd.DataFrame(rows, columns=["data", "splits", "finding", "count", "mean", "low", "high", "n"])


# ------------------------------------------------------------------------------------------------ adaptation of MAML


def _after(records: Iterable[Record]) -> dict[str, np.ndarray]:
    """Unit ``maml`` or ``scratch`` → bool (S, T, K, Q); empty unless both are there."""
    found = by_unit(r for r in records if r.spec.experiment == "medical_encoders")
    if not {"maml", "scratch"} <= set(found):
        return {}
    return {name: correct_of(found[name], "correct") for name in ("maml", "scratch")}


def _steps(records: Iterable[Record]) -> list[int]:
    return list(next(r for r in records if r.spec.unit == "maml").details["after"])


def _by_task(correct: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(S, T, Q) → (S, T · Q), and the task of each column."""
    _, tasks, queries = correct.shape
    return correct.reshape(len(correct), -1), np.repeat(np.arange(tasks), queries)


def adaptation_table(records: Iterable[Record]) -> pd.DataFrame:
    """Accuracy on new tasks by steps of adaptation: columns start, step, mean, low, high, n (query pictures).

    Whole tasks are drawn; the interval holds for new tasks of the same classes.
    """
    import pandas as pd

    records = list(records)
    rows = []
    for start, correct in _after(records).items():
        for k, step in enumerate(_steps(records)):
            rows.append({"start": start, "step": step, **row(seeds_and_questions(*_by_task(correct[:, :, k])))})
    return pd.DataFrame(rows, columns=["start", "step", "mean", "low", "high", "n"])


def steps_from_scratch(records: Iterable[Record]) -> int | None:
    """The first measured step at which scratch is as good as MAML after at most five; None: at no measured step."""
    records = list(records)
    means = {name: c.mean(axis=(0, 1, 3)) for name, c in _after(records).items()}  # (K,) each
    if not means:
        raise ValueError("there are no records of maml and scratch; load experiment medical_encoders")
    steps = _steps(records)
    goal = max(m for m, step in zip(means["maml"], steps) if step <= FEW_STEPS)
    return next((step for step, m in zip(steps, means["scratch"]) if m >= goal), None)


# ------------------------------------------------------------------------------------------------------------- effects


def contrast(difference: np.ndarray, first: np.ndarray, pictures: np.ndarray) -> Interval:
    """Mean over the questions ``first`` minus mean over the others, of a difference (S, Q) of two models.

    The two means rest on different numbers of questions of the same pictures. Each question's share in the contrast,
    (d − mean of its part) / share of its part, is therefore resampled by pictures (the ratio estimator, linearised).

    Parameters
    ----------
    difference
        float (S, Q).
    first
        bool (Q,), with True and False.
    pictures
        (Q,) picture ids.
    """
    difference, first = np.asarray(difference, dtype=float), np.asarray(first, dtype=bool)
    if first.all() or not first.any():
        raise ValueError(f"{int(first.sum())} of {len(first)} questions are in the first part; a contrast needs both")
    means = difference[:, first].mean(), difference[:, ~first].mean()
    share = first.mean()
    parts = (difference - means[0]) * first / share - (difference - means[1]) * ~first / (1 - share)  # (S, Q)
    return seeds_and_questions(parts + means[0] - means[1], pictures)


def _pairs(records: Records, many: Iterable[tuple[str, str]]) -> list[tuple[str, str]]:
    """Pairs of units, all of which must be there; else none."""
    many = list(many)
    return many if all(unit in records for pair in many for unit in pair) else []


def _gain(found: Records, many: Iterable[tuple[str, str]], only: str = "") -> Interval | None:
    """Accuracy of the first units of all pairs minus that of the second ones, on ``open`` questions or on all."""
    pairs = _pairs(found, many)
    if not pairs:
        return None
    first, second = ([correct_of(found[pair[i]]) for pair in pairs] for i in (0, 1))
    arrays = found[pairs[0][0]][0].arrays
    keep = ~arrays["closed_test"] if only == "open" else None
    return gain(first, second, arrays["picture_test"], keep).interval


def _f4(found: Records) -> Interval | None:
    start = f"vqa_rad.{_TRIPLE}"
    return _gain(found, [(f"{start}.attention.{i}.base", f"{start}.concat.{i}.base") for i in INTERACTIONS])


def _same_encoders() -> list[tuple[str, str]]:
    """CMSA and BAN on every set of encoders of experiment 1."""
    starts = [f"vqa_rad.{'+'.join(names)}.{how}" for names, how in SETS]
    return [(f"{start}.cmsa.base", f"{start}.ban.base") for start in starts]


def _m3b(found: Records) -> Interval | None:
    pairs = _pairs(found, _same_encoders())
    if not pairs:
        return None
    difference = np.mean([correct_of(found[a]) * 1.0 - correct_of(found[b]) for a, b in pairs], axis=0)  # (S, Q)
    arrays = found[pairs[0][0]][0].arrays
    return contrast(difference, ~arrays["closed_test"], arrays["picture_test"])


def _m4(found: Records) -> Interval | None:
    return _gain(
        found,
        [(f"vqa_rad.{_PAIR}+clip.concat.{i}.base", f"vqa_rad.{_PAIR}.concat.{i}.base") for i in INTERACTIONS],
        "open",
    )


def _pretraining(found: Records, more: str, less: str) -> Interval | None:
    return _gain(
        found,
        [
            (f"phantoms.experts_{more}.alone.{i}.base", f"phantoms.experts_{less}.alone.{i}.base")
            for i in ("ban", "cmsa")
        ],
    )


def _conditional(found: Records, variant: str) -> Interval | None:
    start = f"vqa_rad.{_PAIR}.concat"
    return _gain(found, [(f"{start}.{i}.{variant}", f"{start}.{i}.base") for i in ("san", "ban")], "open")


def _m6c(found: Records) -> Interval | None:
    if "vqa_rad.first_words" not in found:
        return None
    some = found["vqa_rad.first_words"]
    return seeds_and_questions(correct_of(some, "correct_kind"), some[0].arrays["picture_test"])


def _m8(found: Records) -> Interval | None:
    pairs = _pairs(
        found, [(f"phantoms.maml.alone.{i}.base", f"phantoms.{_PAIR}.concat.{i}.base") for i in INTERACTIONS]
    )
    if not pairs:
        return None

    def loss(units: Iterable[str]) -> np.ndarray:
        each = [correct_of(found[u]) * 1.0 - correct_of(found[u], "correct_noisy") for u in units]
        return np.mean(each, axis=0)  # (S, Q)

    without, beside = zip(*pairs)
    pictures = found[pairs[0][0]][0].arrays["picture_test"]
    return paired_difference(loss(without), loss(beside), pictures).interval


def _m9(found: Records) -> Interval | None:
    return _gain(
        found, [(f"vqa_rad.natural.alone.{i}.base", f"vqa_rad.natural_random.alone.{i}.base") for i in INTERACTIONS]
    )


def _m7(records: Sequence[Record]) -> Interval | None:
    after = _after(records)
    if not after:
        return None
    k = _steps(records).index(FEW_STEPS)
    (first, tasks), (second, _) = (_by_task(after[name][:, :, k]) for name in ("maml", "scratch"))
    return paired_difference(first, second, tasks).interval


_EFFECTS: dict[str, Callable[[Records], Interval | None]] = {
    "F4": _f4,
    "M3a": lambda found: _gain(found, _same_encoders()),
    "M3b": _m3b,
    "M4": _m4,
    "M5a": lambda found: _pretraining(found, "multi", "single"),
    "M5b": lambda found: _pretraining(found, "single", "none"),
    "M6a": lambda found: _conditional(found, "qcr"),
    "M6b": lambda found: _conditional(found, "tcr"),
    "M6c": _m6c,
    "M8": _m8,
    "M9": _m9,
}


def effects(records: Iterable[Record]) -> dict[str, Interval | None]:
    """What the ledger's claims measure; None where a record that a claim needs is not there.

    Parameters
    ----------
    records
        Of ``medical`` and of ``medical_encoders``, together.

    Returns
    -------
    dict
        Id of each of :data:`CLAIMS` → effect with its interval, in the unit of accuracy (0 to 1).

        ========  ============================================================================================
        F4        three encoders: attention over them minus concatenation, mean over SAN, BAN and CMSA
        M3a, M3b  CMSA minus BAN, mean over the nine sets of encoders; open minus closed questions of that
        M4        MAML, DAE and CLIP minus MAML and DAE, open questions, mean over SAN, BAN and CMSA
        M5a, M5b  experts: multi minus single, single minus none, mean over BAN and CMSA, phantoms
        M6a, M6b  QCR, TCR minus none, open questions, mean over SAN and BAN
        M6c       share of questions whose kind is told from three words
        M7        MAML minus scratch after five steps
        M8        clean minus noisy accuracy with MAML alone, minus that with MAML and DAE, mean over SAN, BAN, CMSA
        M9        ResNet-20 from natural pictures minus the same with random weights, mean over SAN, BAN and CMSA
        ========  ============================================================================================
    """
    records = list(records)
    found = _grid(records)
    values = {claim: effect(found) for claim, effect in _EFFECTS.items()} | {"M7": _m7(records)}
    return {claim: values[claim] for claim in CLAIMS}
