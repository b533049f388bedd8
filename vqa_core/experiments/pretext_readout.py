"""From the records of ``pretext`` to tables, differences and the effects that decide the claims P1, P3 and P4."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np

from vqa_core.data.scenes import ATTRIBUTES
from vqa_core.evaluation.caption_truth import KINDS
from vqa_core.evaluation.statistics import (
    Difference,
    Interval,
    mean_over_seeds,
    paired_difference,
    seeds_and_questions,
)
from vqa_core.experiments.pretext import ATTRIBUTE, LABELS, WEIGHTINGS
from vqa_core.experiments.records import Record
from vqa_core.training.pretext import TASKS

if TYPE_CHECKING:
    import pandas as pd

STARTS = {"mae": "masked autoencoder", "random": "random weights"}
WAYS = {"tuned": "fine-tuned", "frozen": "frozen"}
BALANCED = ("dwa", "uncertainty")
Runs = Mapping[str, Sequence[Record]]


def stacked(records: Sequence[Record], name: str) -> np.ndarray:
    """An array of every seed's record, (S, …).

    Raises
    ------
    ValueError
        Where a record lacks it, or records differ in its shape: then they are not of one profile.
    """
    if missing := [r.spec.seed for r in records if name not in r.arrays]:
        raise ValueError(f"{records[0].spec.unit}: no array {name!r} for seeds {missing}; run pretext again")
    arrays = [r.arrays[name] for r in records]
    if len({a.shape for a in arrays}) != 1:
        raise ValueError(f"{records[0].spec.unit}: {name!r} has shapes {[a.shape for a in arrays]} by seed")
    return np.stack(arrays)


def around_mean(interval: Interval) -> Interval:
    """The interval with its mean inside: where nothing varies, resampled sums are rounded and the mean is not."""
    return replace(interval, low=min(interval.low, interval.mean), high=max(interval.high, interval.mean))


def row(interval: Interval) -> dict[str, float]:
    """An interval as columns of a table."""
    found = around_mean(interval)
    return {"mean": found.mean, "low": found.low, "high": found.high, "n": found.n}


# ---------------------------------------------------------------------------------------------------- masked pictures


def few_label_table(records: Sequence[Record]) -> pd.DataFrame:
    """Accuracy with few labels.

    Returns
    -------
    pandas.DataFrame
        Columns way, start, attribute, labels (per class), chance, mean, low, high, n (pictures), seeds.
    """
    import pandas as pd

    rows = []
    names = [name.split(".") for name in records[0].arrays if name.split(".")[0] in WAYS]
    for way, start, attribute, labels in sorted(names, key=lambda n: (*_place(n), int(n[3]))):
        right = stacked(records, f"{way}.{start}.{attribute}.{labels}")
        found = {"way": way, "start": start, "attribute": attribute, "labels": int(labels)}
        found["chance"] = 1 / len(ATTRIBUTES[attribute])
        rows.append(found | row(seeds_and_questions(right)) | {"seeds": len(right)})
    return pd.DataFrame(rows)


def _place(name: Sequence[str]) -> tuple[int, ...]:
    return list(WAYS).index(name[0]), list(ATTRIBUTES).index(name[2]), list(STARTS).index(name[1])


def few_label_gain(
    records: Sequence[Record], way: str = "tuned", attribute: str = ATTRIBUTE, labels: int = LABELS
) -> Difference:
    """Accuracy from the masked autoencoder's weights minus that from random ones, paired by seed and picture."""
    mae, random = (stacked(records, f"{way}.{start}.{attribute}.{labels}") for start in STARTS)
    return paired_difference(mae, random)


def error_table(records: Sequence[Record]) -> pd.DataFrame:
    """Error at hidden patches of unseen pictures: columns guess, mean, low, high, n (seeds)."""
    import pandas as pd

    named = {"error": "masked autoencoder", "error_of_mean": "mean colour of what is seen"}
    rows = [
        {"guess": title, **row(mean_over_seeds([r.metrics[key].value for r in records]))}
        for key, title in named.items()
    ]
    return pd.DataFrame(rows)


# -------------------------------------------------------------------------------------------------------- joint pretext


def downstream_table(runs: Runs) -> pd.DataFrame:
    """Accuracy on the downstream questions: columns unit, title, mean, low, high, n (questions), seeds."""
    import pandas as pd

    rows = []
    for name, title in WEIGHTINGS.items():
        if f"joint.{name}" in runs:
            some = runs[f"joint.{name}"]
            right, pictures = stacked(some, "correct_test"), some[0].arrays["picture_test"]
            found = row(seeds_and_questions(right, pictures))
            rows.append({"unit": f"joint.{name}", "title": title} | found | {"seeds": len(right)})
    return pd.DataFrame(rows)


def balanced_unit(runs: Runs) -> str:
    """DWA or uncertainty: the unit with the better downstream accuracy on validation; the first of equals."""

    def validation(unit: str) -> float:
        return float(np.mean([r.metrics["accuracy_val"].value for r in runs[unit]]))

    return max((f"joint.{name}" for name in BALANCED), key=validation)


def downstream_gain(runs: Runs, unit: str, base: str) -> Difference:
    """Downstream accuracy of a unit minus that of another, paired by seed and question."""
    a, b = (stacked(runs[u], "correct_test") for u in (unit, base))
    return paired_difference(a, b, runs[unit][0].arrays["picture_test"])


def task_table(runs: Runs) -> pd.DataFrame:
    """Accuracy in the pretext tasks on test pictures: columns unit, title, task, mean, low, high, n (seeds)."""
    import pandas as pd

    rows = []
    for name, title in WEIGHTINGS.items():
        some = runs.get(f"joint.{name}", ())
        if some and TASKS[0] in some[0].metrics:
            for task in TASKS:
                found = mean_over_seeds([r.metrics[task].value for r in some])
                rows.append({"unit": f"joint.{name}", "title": title, "task": task} | row(found))
    return pd.DataFrame(rows)


def balance_curves(runs: Runs) -> pd.DataFrame:
    """What balancing does along the training.

    Returns
    -------
    pandas.DataFrame
        Columns unit, task, quantity (``weight``, ``loss``, ``accuracy``), epoch (from 1), mean, low, high, n (seeds).
        Weights are shares of their sum; loss and accuracy are those of validation.
    """
    import pandas as pd

    rows = []
    for unit, some in runs.items():
        if not unit.startswith("joint.") or not some[0].details["pretraining"]:
            continue
        for epoch, of_seeds in enumerate(zip(*(r.details["pretraining"] for r in some)), start=1):
            sums = [sum(found[f"{t}.weight"] for t in TASKS) for found in of_seeds]
            for task in TASKS:
                for quantity in ("weight", "loss", "accuracy"):
                    values = [found[f"{task}.{quantity}"] for found in of_seeds]
                    if quantity == "weight":
                        values = [v / s for v, s in zip(values, sums)]
                    named = {"unit": unit, "task": task, "quantity": quantity, "epoch": epoch}
                    rows.append(named | row(mean_over_seeds(values)))
    return pd.DataFrame(rows)


def order_effect(records: Sequence[Record]) -> Interval:
    """Share of words put in their place minus chance, over seeds and pictures."""
    first = records[0].arrays
    gained = stacked(records, "order.right") - first["order.chance"]  # (S, W)
    return seeds_and_questions(gained, first["order.picture"])


def order_table(records: Sequence[Record]) -> pd.DataFrame:
    """Share of words put in their place: columns guess, mean, low, high, n (words)."""
    import pandas as pd

    first = records[0].arrays
    pictures, rows = first["order.picture"], []
    for name, title in {"right": "with its picture", "right_other": "with another picture"}.items():
        rows.append({"guess": title} | row(seeds_and_questions(stacked(records, f"order.{name}"), pictures)))
    for name, title in {"right_lookup": "usual place of the word", "chance": "chance"}.items():
        rows.append({"guess": title} | row(seeds_and_questions(first[f"order.{name}"][None].astype(float), pictures)))
    return pd.DataFrame(rows)


def order_from_picture(records: Sequence[Record]) -> Difference:
    """What the picture adds to ordering: with its own minus with another, paired by seed and word."""
    own, other = (stacked(records, f"order.{name}") for name in ("right", "right_other"))
    return paired_difference(own, other, records[0].arrays["order.picture"])


# ----------------------------------------------------------------------------------------------------------- captions

SAID = {"beam": "beam search", "greedy": "greedy", "other": "told of another picture"}


def truth_of_captions(records: Sequence[Record]) -> pd.DataFrame:
    """Captions against the world.

    Returns
    -------
    pandas.DataFrame
        Columns said, quantity, mean, low, high, n (pictures), seeds. Quantities are the share of captions that are
        ``true``, the share of the things named that are there (``found``), and, for the beam, the share that is word
        by word one of the generator's five (``exact``).
    """
    import pandas as pd

    rows = []
    for name, title in SAID.items():
        for quantity in ("true", "found"):
            values = stacked(records, f"{name}.{quantity}")
            rows.append({"said": title, "quantity": quantity} | _with_seeds(values))
    rows.append({"said": SAID["beam"], "quantity": "exact"} | _with_seeds(stacked(records, "exact")))
    return pd.DataFrame(rows)


def _with_seeds(values: np.ndarray) -> dict[str, float]:
    return row(seeds_and_questions(values)) | {"seeds": len(values)}


def kinds_of_captions(records: Sequence[Record], name: str = "beam") -> pd.DataFrame:
    """Which kinds of sentences are said, and how many of them are true: columns kind, share, true, n (captions)."""
    import pandas as pd

    kind, true = (stacked(records, f"{name}.{k}").ravel() for k in ("kind", "true"))
    rows = []
    for number, title in [*enumerate(KINDS), (-1, "no sentence of the grammar")]:
        said = kind == number
        if said.any():
            share = {"share": float(said.mean()), "true": float(true[said].mean())}
            rows.append({"kind": title, **share, "n": int(said.sum())})
    return pd.DataFrame(rows)


# ------------------------------------------------------------------------------------------------------------- claims


def effects(runs: Runs) -> dict[str, Interval | None]:
    """The effect that decides each claim; None where its runs are absent.

    Returns
    -------
    dict
        ``P1``: gain in accuracy from masked autoencoding, fine-tuned with ten labels per class. ``P3``: downstream
        accuracy of balanced losses minus that of the plain sum. ``P4``: accuracy of words' places minus chance.
    """
    found: dict[str, Interval | None] = dict.fromkeys(("P1", "P3", "P4"))
    if runs.get("mae") and f"tuned.mae.{ATTRIBUTE}.{LABELS}" in runs["mae"][0].arrays:
        found["P1"] = around_mean(few_label_gain(runs["mae"]).interval)
    if all(runs.get(f"joint.{name}") for name in ("plain", *BALANCED)):
        found["P3"] = around_mean(downstream_gain(runs, balanced_unit(runs), "joint.plain").interval)
    if runs.get("joint.plain"):
        found["P4"] = around_mean(order_effect(runs["joint.plain"]))
    return found
