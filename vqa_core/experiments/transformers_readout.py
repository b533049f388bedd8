"""From the records of ``transformers`` and ``transformer_cost`` to the tables and claims of chapter 4."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np

from vqa_core.evaluation.statistics import Interval, mean_over_seeds, paired_difference, seeds_and_questions
from vqa_core.experiments import transformer_cost
from vqa_core.experiments.fusion_cost import exponent_interval
from vqa_core.experiments.readout import row
from vqa_core.experiments.records import Record
from vqa_core.experiments.transformers import METHODS, OFFSPRING, TEACHER

if TYPE_CHECKING:
    import pandas as pd

#: Claim → (method, what it is compared with): a difference of accuracies, paired by seed and question.
DIFFERENCES = {"F6a": ("bottleneck", TEACHER), "F8b": ("drop_token", TEACHER), "F9": ("shared", TEACHER)}


def by_name(records: Iterable[Record]) -> dict[str, Record]:
    """Records of ``transformers`` by unit, in the order of :data:`~vqa_core.experiments.transformers.METHODS`."""
    found = {r.spec.unit: r for r in records}
    return {unit: found[unit] for unit in METHODS if unit in found}


def right_or_wrong(records: Mapping[str, Record], answers: Sequence[str]) -> dict[str, np.ndarray]:
    """Which questions each model answered rightly.

    Parameters
    ----------
    records
        Unit → record.
    answers
        (Q,) the true answers.

    Returns
    -------
    dict
        Name → bool (S, Q). Names are those of the units; then, of the teacher's record, ``shuffled``, ``student``,
        ``distilled``, ``heads.0.5`` and so on.
    """
    truth, found = np.asarray(answers), {}
    for unit, record in records.items():
        words = np.asarray(record.details["answers"])
        for array, predicted in record.arrays.items():
            if predicted.shape[1:] != truth.shape:
                raise ValueError(f"{unit}, {array}: predictions {predicted.shape} of {len(truth)} questions")
            name = array.removeprefix("predicted_test").removeprefix(".") or unit
            found[name] = words[predicted] == truth
    return {name: found[name] for name in [*records, *(n for n in found if n not in records)]}


def title(name: str) -> str:
    """Name of a method, or of what was made of the teacher, for people.

    >>> title("heads.0.5"), title("perceiver")
    ('50 % of the heads gone', 'Perceiver')
    """
    kind, _, share = name.partition(".")
    if kind in ("heads", "weights"):
        return f"{100 * float(share):.0f} % of the {kind} gone"
    if name == "shuffled":
        return "shuffled picture"
    return OFFSPRING.get(name) or METHODS[name].title


# ------------------------------------------------------------------------------------------------------------ claims


def share_kept(student: np.ndarray, teacher: np.ndarray, majority: float, pictures: Sequence) -> Interval:
    """(accuracy of the student − majority) / (accuracy of the teacher − majority), with its interval.

    Parameters
    ----------
    student, teacher
        bool (S, Q), paired by seed and question.
    majority
        Accuracy of the most frequent answer.
    pictures
        (Q,) picture ids; questions about one picture are drawn together.

    Notes
    -----
    The ratio r = a / b is linearised around its value: r + ((s − m) − r (t − m)) / b for each seed and question, whose
    mean is r, goes into :func:`~vqa_core.evaluation.statistics.seeds_and_questions` (the delta method).
    """
    above = float(teacher.mean()) - majority
    if above <= 0:
        raise ValueError(f"the teacher has {teacher.mean():.3f}, the majority {majority:.3f}: there is nothing to keep")
    ratio = (float(student.mean()) - majority) / above
    influence = (student.astype(float) - majority) - ratio * (teacher.astype(float) - majority)  # (S, Q)
    return seeds_and_questions(ratio + influence / above, pictures)


def claims(
    correct: Mapping[str, np.ndarray], majority: float, pictures: Sequence, timed: Mapping[str, Sequence[Record]]
) -> dict[str, Interval | None]:
    """Effects of F5 to F10; None where the records that a claim needs are absent, or a teacher has learned nothing.

    Parameters
    ----------
    correct
        Name → bool (S, Q), from :func:`right_or_wrong`.
    majority
        Accuracy of the most frequent answer on the same questions.
    pictures
        (Q,) picture ids.
    timed
        Unit → repeats of ``transformer_cost``.
    """
    found: dict[str, Interval | None] = {"F5": None}
    if TEACHER in timed:
        found["F5"] = exponent_interval(timed[TEACHER])
    for claim, (a, b) in DIFFERENCES.items():
        both = a in correct and b in correct
        found[claim] = paired_difference(correct[a], correct[b], pictures).interval if both else None
    for metric, (claim, *_) in transformer_cost.RATIOS.items():
        if claim:
            found[claim] = exponent_interval(timed["steps"], metric) if "steps" in timed else None
    taught = {"distilled", TEACHER} <= set(correct) and correct[TEACHER].mean() > majority
    found["F10"] = share_kept(correct["distilled"], correct[TEACHER], majority, pictures) if taught else None
    return dict(sorted(found.items(), key=lambda item: (int(item[0][1:].rstrip("ab")), item[0])))


# ------------------------------------------------------------------------------------------------------------ tables


def cost_table(records: Mapping[str, Record]) -> pd.DataFrame:
    """What each model costs: columns unit, parameters, flops, activation_mb, seconds_per_step.

    Operations are those for one question, activations are in 10⁶ bytes. The trained offspring of the
    teacher come after the units.
    """
    import pandas as pd

    every = {unit: r.details for unit, r in records.items()}
    if TEACHER in records:
        every |= {name: records[TEACHER].details[name] for name in OFFSPRING}
    return pd.DataFrame(
        [
            {
                "unit": unit,
                "parameters": d["parameters"],
                "flops": d["flops"],
                "activation_mb": d["activation_bytes"] / 1e6,
                "seconds_per_step": d["seconds_per_step"],
            }
            for unit, d in every.items()
        ]
    )


def pruning_table(record: Record, correct: Mapping[str, np.ndarray], pictures: Sequence) -> pd.DataFrame:
    """Accuracy of the pruned teacher: columns way, share, parameters, nonzero, flops, mean, low, high, n.

    The teacher itself comes first in each way, with a share of 0.
    """
    import pandas as pd

    whole = {"parameters": record.details["parameters"], "flops": record.details["flops"]}
    rows = []
    for way in ("heads", "weights"):
        start = {"share": 0.0, "nonzero": whole["parameters"], **whole}
        steps = {TEACHER: start} | {n: d for n, d in record.details["pruned"].items() if n.startswith(way)}
        for name, d in steps.items():
            sizes = {key: d[key] for key in ("share", "parameters", "nonzero", "flops")}
            rows.append({"way": way, **sizes, **row(seeds_and_questions(correct[name], pictures))})
    return pd.DataFrame(rows)


def learning_curves(records: Mapping[str, Record], key: str = "validation") -> pd.DataFrame:
    """Validation accuracy by epoch: columns unit, epoch (from 1), mean, low, high, n; t intervals over n seeds."""
    import pandas as pd

    rows = []
    for unit, record in records.items():
        for epochs in zip(*record.details["history"]):
            interval = mean_over_seeds([e[key] for e in epochs])
            rows.append({"unit": unit, "epoch": int(epochs[0]["epoch"]) + 1, **row(interval)})
    return pd.DataFrame(rows)


def curves_table(timed: Mapping[str, Sequence[Record]], quantity: str = "seconds") -> pd.DataFrame:
    """A cost by number of tokens: columns unit, tokens, mean, low, high, n (repeats).

    ``quantity`` is ``seconds``, ``seconds_attention``, ``flops`` or ``kept_bytes``. Intervals are t intervals over
    repeats.
    """
    import pandas as pd

    rows = []
    for unit, repeats in timed.items():
        if unit == "steps":
            continue
        for k, tokens in enumerate(repeats[0].arrays["tokens"]):
            interval = mean_over_seeds([float(r.arrays[quantity][k]) for r in repeats])
            rows.append({"unit": unit, "tokens": int(tokens), **row(interval)})
    return pd.DataFrame(rows)


#: Metric of a curve → of what it is the exponent.
EXPONENTS = {
    "exponent": "seconds of the attention layers",
    "exponent_whole": "seconds of the whole pass",
    "exponent_flops": "FLOPs of the whole pass",
    "exponent_bytes": "bytes kept for the backward pass",
}


def exponent_table(timed: Mapping[str, Sequence[Record]]) -> pd.DataFrame:
    """Fitted exponents: columns unit, cost, predicted, mean, low, high, n (repeats); bootstrap over repeats."""
    import pandas as pd

    return pd.DataFrame(
        [
            {
                "unit": unit,
                "cost": cost,
                "predicted": repeats[0].details["predicted"],
                **row(exponent_interval(repeats, metric)),
            }
            for unit, repeats in timed.items()
            if unit != "steps"
            for metric, cost in EXPONENTS.items()
        ]
    )


def ratio_table(repeats: Sequence[Record]) -> pd.DataFrame:
    """Ratios of seconds per training step: columns ratio, claim, mean, low, high, n (repeats)."""
    import pandas as pd

    rows = []
    for metric, (claim, a, b) in transformer_cost.RATIOS.items():
        named = {"ratio": f"{a} / {b}".replace("_", " "), "claim": claim or "–"}
        rows.append({**named, **row(exponent_interval(repeats, metric))})
    return pd.DataFrame(rows)


# ---------------------------------------------------------------------------------------------------- what reads what


def patterns(image: int = 4, text: int = 3, depth: int = 2) -> dict[str, list[np.ndarray]]:
    """Which token reads which in each layer of each layout, found by running it on random tokens.

    Parameters
    ----------
    image, text
        How many tokens.
    depth
        Layers.

    Returns
    -------
    dict
        Layout → ``depth`` times bool (N, N), rows read columns, image tokens first; N is ``image`` for early summation
        and image + text for the others.
    """
    import torch

    from vqa_core.fusion.transformer import LAYOUTS

    found = {}
    for name, layout in LAYOUTS.items():
        torch.manual_seed(0)
        made = layout(8, 8, 8, depth=depth, heads=1).eval()
        with torch.no_grad():
            _, maps = made.meet(made.embed(torch.randn(1, image, 8), torch.randn(1, text, 8)), need_weights=True)
        found[name] = [(weights[0, 0] > 0).numpy() for weights in maps]
    return found


def pattern_table(found: Mapping[str, Sequence[np.ndarray]]) -> pd.DataFrame:
    """The same in long form: columns layout, layer (from 1), query, key (from 0), reads (0 or 1)."""
    import pandas as pd

    return pd.DataFrame(
        [
            {"layout": name, "layer": layer, "query": int(q), "key": int(k), "reads": int(reads)}
            for name, maps in found.items()
            for layer, pattern in enumerate(maps, 1)
            for (q, k), reads in np.ndenumerate(pattern)
        ]
    )
