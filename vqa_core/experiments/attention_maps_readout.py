"""From the records of ``attention_maps`` to the tables and claims of the chapter on maps."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np

from vqa_core.data.types import Sample
from vqa_core.evaluation.statistics import Interval, mean_over_seeds, paired_difference, seeds_and_questions
from vqa_core.experiments.attention_maps import BASELINES, METHODS, is_phantom
from vqa_core.experiments.readout import row
from vqa_core.experiments.records import Record
from vqa_core.explain.scores import SCORES

if TYPE_CHECKING:
    import pandas as pd

OWN = "own"  # the model's own attention, whatever the model calls it
NO_MODEL = "no model"
RANKS = "rank_agreement"
RESAMPLES = 1000  # of the intervals in tables
#: Method of explanation → how it is called; the order of figures.
TITLES = {
    OWN: "own attention",
    "rollout": "rollout",
    "relevance": "relevance",
    "grad_cam": "Grad-CAM",
    "grad_cam_plus_plus": "Grad-CAM++",
    "integrated_gradients": "integrated gradients",
    "occlusion": "occlusion",
}
#: Map that knows no model → how it is called.
BASELINE_TITLES = {
    "random": "random cell",
    "centre_bias": "centre bias",
    "edges": "edge detector",
    "objects": "any object",
    "ceiling": "the right cells",
}


def by_name(records: Iterable[Record], of_phantoms: bool = False) -> dict[str, Record]:
    """Records of models of scenes (or of phantoms) by unit, in the order of the experiment's ``METHODS``."""
    found = {r.spec.unit: r for r in records}
    return {unit: found[unit] for unit in METHODS if unit in found and is_phantom(unit) is of_phantoms}


def baselines_of(records: Iterable[Record], of_phantoms: bool = False) -> Record:
    """The record of the maps that know no model, of scenes or of phantoms."""
    unit = BASELINES[of_phantoms]
    for record in records:
        if record.spec.unit == unit:
            return record
    raise ValueError(f"there is no record of unit {unit!r}; make it: python -m vqa_core run attention_maps")


def method_names(record: Record) -> dict[str, str]:
    """Name in :data:`TITLES` → name in the record's arrays."""
    own = record.details["own"]
    return {OWN if m == own else m: m for m in record.details["methods"]}


def values(record: Record, method: str, of: str) -> np.ndarray:
    """An array of a method by its name in :data:`TITLES`, as ``values(record, "own", "iou")``; float64."""
    return record.arrays[f"{method_names(record)[method]}.{of}"].astype(np.float64)


# ------------------------------------------------------------------------------------------------------------ tables


def over_seeds_and_questions(matrix: np.ndarray, pictures: Sequence[str]) -> Interval:
    """The interval of the book, from fewer resamples: tables have hundreds of them. Claims take all."""
    return seeds_and_questions(matrix, pictures, resamples=RESAMPLES)


def score_table(records: Mapping[str, Record], known: Record, pictures: Sequence[str]) -> pd.DataFrame:
    """Every score of every map.

    Parameters
    ----------
    records
        Unit → record.
    known
        The record of the baselines.
    pictures
        (Q,) picture ids of the explained questions.

    Returns
    -------
    pandas.DataFrame
        Columns model, method, metric, mean, low, high, n (questions), seeds; baselines have the model ``"no model"``.
    """
    import pandas as pd

    rows = []
    for metric in SCORES:
        for unit, record in records.items():
            for method in method_names(record):
                interval = over_seeds_and_questions(values(record, method, metric), pictures)
                named = {"model": METHODS[unit].title, "method": TITLES[method], "metric": metric}
                rows.append({**named, **row(interval), "seeds": interval.seeds})
        for name, title in BASELINE_TITLES.items():
            interval = over_seeds_and_questions(known.arrays[f"{name}.{metric}"], pictures)
            rows.append({"model": NO_MODEL, "method": title, "metric": metric, **row(interval), "seeds": 1})
    return pd.DataFrame(rows)


def ratio(
    numerator: np.ndarray, denominator: np.ndarray, pictures: Sequence[str], interval_of=seeds_and_questions
) -> Interval | None:
    """Mean of one matrix (S, Q) over that of another, with its interval; None where the second mean is not positive.

    Notes
    -----
    The ratio r = a / b is linearised around its value: r + (x − r y) / b for each seed and question, whose mean is r,
    goes into :func:`~vqa_core.evaluation.statistics.seeds_and_questions` (the delta method).
    """
    below = float(denominator.mean())
    if below <= 0:
        return None
    r = float(numerator.mean()) / below
    return interval_of(r + (numerator - r * denominator) / below, pictures)


def answer_table(records: Mapping[str, Record], pictures: Sequence[str], metric: str = "pointing_game") -> pd.DataFrame:
    """A score where the model answers rightly and where it does not.

    Columns model, method, metric, answer (``right``, ``wrong``), mean, low, high, n: the number of pairs of seed and
    question. A model without wrong answers has no such row.
    """
    import pandas as pd

    rows = []
    for unit, record in records.items():
        for name, which in (("right", record.arrays["right"]), ("wrong", ~record.arrays["right"])):
            for method in method_names(record):
                hits, asked = values(record, method, metric) * which, which.astype(float)
                interval = ratio(hits, asked, pictures, over_seeds_and_questions)
                if interval is not None:
                    named = {"model": METHODS[unit].title, "method": TITLES[method], "metric": metric, "answer": name}
                    rows.append({**named, **row(interval), "n": int(which.sum())})
    return pd.DataFrame(rows)


def area_table(records: Mapping[str, Record], pictures: Sequence[str]) -> pd.DataFrame:
    """Areas under deletion and insertion curves: columns model, method, metric, mean, low, high, n.

    ``method`` also has ``random order``.
    """
    import pandas as pd

    rows = []
    for unit, record in records.items():
        for metric in ("deletion_area", "insertion_area"):
            arrays = {TITLES[m]: values(record, m, metric) for m in method_names(record)}
            arrays["random order"] = record.arrays[f"random.{metric}"].astype(np.float64)
            for method, matrix in arrays.items():
                interval = over_seeds_and_questions(matrix, pictures[: matrix.shape[1]])
                rows.append({"model": METHODS[unit].title, "method": method, "metric": metric, **row(interval)})
    return pd.DataFrame(rows)


def curve_table(records: Mapping[str, Record]) -> pd.DataFrame:
    """Mean curves: columns model, method, kind (deletion, insertion), share (removed or put in), mean, low, high, n.

    Intervals are t intervals over n seeds.
    """
    import pandas as pd

    rows = []
    for unit, record in records.items():
        for kind in ("deletion", "insertion"):
            arrays = {TITLES[m]: values(record, m, kind) for m in method_names(record)}
            arrays["random order"] = record.arrays[f"random.{kind}"].astype(np.float64)
            for method, matrix in arrays.items():  # (S, J + 1)
                for j, column in enumerate(matrix.T):
                    named = {"model": METHODS[unit].title, "method": method, "kind": kind}
                    share = j / (matrix.shape[1] - 1)
                    rows.append({**named, "share": share, **row(mean_over_seeds(column))})
    return pd.DataFrame(rows)


def cascade_table(records: Mapping[str, Record], pictures: Sequence[str]) -> pd.DataFrame:
    """Agreement with the trained model's maps while weights are set back from the head down.

    Columns model, method, metric, step (0: nothing), stage (what was set back at this step), mean, low, high, n.
    """
    import pandas as pd

    rows = []
    for unit, record in records.items():
        stages = ["–", *record.details["stages"]]
        for method in method_names(record):
            found = values(record, method, "cascade")  # (S', stages + 1, n)
            for step, stage in enumerate(stages):
                interval = over_seeds_and_questions(found[:, step], pictures[: found.shape[2]])
                named = {"model": METHODS[unit].title, "method": TITLES[method], "metric": RANKS}
                rows.append({**named, "step": step, "stage": stage, **row(interval)})
    return pd.DataFrame(rows)


def sanity_table(records: Mapping[str, Record], pictures: Sequence[str]) -> pd.DataFrame:
    """Rank agreement of a trained model's maps with three others.

    Columns model, method, metric, with (``random weights``, ``shuffled labels``, ``another seed``), mean, low, high, n:
    questions, for ``another seed`` seeds. A model that was not trained on shuffled labels has no such row.
    """
    import pandas as pd

    rows = []
    for unit, record in records.items():
        names = method_names(record)
        for method, name in names.items():
            found = {"random weights": values(record, method, "cascade")[:, -1]}  # (S', n)
            if f"{name}.labels" in record.arrays:
                found["shuffled labels"] = values(record, method, "labels")
            intervals = {w: over_seeds_and_questions(m, pictures[: m.shape[1]]) for w, m in found.items()}
            of_seeds = record.arrays["agreement.seeds"][:, record.details["methods"].index(name)]
            intervals["another seed"] = mean_over_seeds(of_seeds)
            for with_, interval in intervals.items():
                named = {"model": METHODS[unit].title, "method": TITLES[method], "metric": RANKS, "with": with_}
                rows.append({**named, **row(interval)})
    return pd.DataFrame(rows)


def agreement_table(records: Mapping[str, Record]) -> pd.DataFrame:
    """Rank agreement of every two methods: columns model, method, other, metric, mean, low, high, n (t over seeds)."""
    import pandas as pd

    rows = []
    for unit, record in records.items():
        names = list(method_names(record))
        for i, a in enumerate(names):
            for j, b in enumerate(names):
                interval = mean_over_seeds(record.arrays["agreement"][:, i, j])
                named = {"model": METHODS[unit].title, "method": TITLES[a], "other": TITLES[b], "metric": RANKS}
                rows.append({**named, **row(interval)})
    return pd.DataFrame(rows)


def models_table(records: Mapping[str, Record]) -> pd.DataFrame:
    """Columns model, parameters, methods (how many fit), accuracy (all test questions, mean over seeds), n."""
    import pandas as pd

    rows = []
    for unit, record in records.items():
        right, d = record.metrics["accuracy_test"], record.details
        named = {"model": METHODS[unit].title, "parameters": d["parameters"], "methods": len(d["methods"])}
        rows.append({**named, "accuracy": right.value, "n": right.n})
    return pd.DataFrame(rows)


def spread(table: pd.DataFrame) -> str:
    """In words: from the lowest to the highest mean of each model, with their methods."""
    found = []
    for model, of in table.groupby("model", sort=False):
        low, high = of.loc[of["mean"].idxmin()], of.loc[of["mean"].idxmax()]
        found.append(f"{model}: from {low['mean']:.0%} ({low['method']}) to {high['mean']:.0%} ({high['method']})")
    return "; ".join(found) + "."


# ------------------------------------------------------------------------------------------------------------ claims


def faithfulness(records: Mapping[str, Record], pictures: Sequence[str]) -> Interval | None:
    """Effect of E3: (drop by the most attended tokens − drop by random ones) / drop by the best by occlusion.

    The probabilities of all models are averaged, question by question and seed by seed. None without models, or where
    no removal lowers the probability.
    """
    if not records:
        return None
    a = {k: np.mean([r.arrays[f"drop.{k}"] for r in records.values()], axis=0) for k in ("attended", "random", "best")}
    return ratio(a["attended"] - a["random"], a["best"], pictures)


def faithfulness_table(records: Mapping[str, Record], pictures: Sequence[str]) -> pd.DataFrame:
    """The same for each model: columns model, metric, mean, low, high, n; ``metric`` is a drop or ``faithfulness``."""
    import pandas as pd

    rows = []
    for unit, record in records.items():
        intervals = {
            f"drop, {kind}": over_seeds_and_questions(record.arrays[f"drop.{kind}"].astype(np.float64), pictures)
            for kind in ("attended", "random", "best")
        }
        whole = faithfulness({unit: record}, pictures)
        if whole is not None:
            intervals["faithfulness"] = whole
        rows += [{"model": METHODS[unit].title, "metric": metric, **row(i)} for metric, i in intervals.items()]
    return pd.DataFrame(rows)


def propagation_gain(records: Mapping[str, Record], pictures: Sequence[str]) -> Interval | None:
    """Effect of E4: pointing-game accuracy of rollout and relevance, averaged, minus that of the model's own attention.

    Over all models that have both; None where there is none.
    """
    able = [r for r in records.values() if {"rollout", "relevance"} <= set(method_names(r))]
    if not able:
        return None
    first = [values(r, m, "pointing_game") for r in able for m in ("rollout", "relevance")]
    second = [values(r, OWN, "pointing_game") for r in able]
    return paired_difference(np.mean(first, axis=0), np.mean(second, axis=0), pictures).interval


def claims(records: Mapping[str, Record], pictures: Sequence[str]) -> dict[str, Interval | None]:
    """Effects of E3 and E4; None where records are absent."""
    return {"E3": faithfulness(records, pictures), "E4": propagation_gain(records, pictures)}


def beats(scores: pd.DataFrame, baseline: str = "centre bias", points: float = 0.2) -> pd.DataFrame:
    """Maps whose pointing-game accuracy is ``points`` above a baseline's, with intervals apart: rows of the table."""
    table = scores[scores["metric"] == "pointing_game"]
    line = table[(table["model"] == NO_MODEL) & (table["method"] == baseline)].iloc[0]
    better = (table["mean"] - line["mean"] >= points) & (table["low"] > line["high"]) & (table["model"] != NO_MODEL)
    return table[better]


# ---------------------------------------------------------------------------------------------------------- pictures


def grid_maps(record: Record, method: str, side: int = 8) -> np.ndarray:
    """Maps of seed 0 on the grid of cells, float64 (shown, side, side)."""
    return scattered(values_of_maps(record, method), record.arrays["cells"], side)


def values_of_maps(record: Record, method: str) -> np.ndarray:
    """Weights of the tokens, of seed 0: float64 (shown, N)."""
    return record.arrays[f"maps.{method_names(record)[method]}"].astype(np.float64)


def scattered(weights: np.ndarray, cells: np.ndarray, side: int = 8) -> np.ndarray:
    """Weights of tokens (…, Q, N) at their cells (Q, N): (…, Q, side, side)."""
    grid = np.zeros((*weights.shape[:-1], side * side))
    index = np.broadcast_to(cells.astype(int), weights.shape)
    for token in range(weights.shape[-1]):  # two tokens never share a cell, but padding may have any
        at = index[..., token : token + 1]
        np.put_along_axis(grid, at, np.take_along_axis(grid, at, -1) + weights[..., token : token + 1], -1)
    return grid.reshape(*weights.shape[:-1], side, side)


def weight_table(maps: Mapping[str, np.ndarray], rows: Sequence[int], questions: Sequence[str]) -> pd.DataFrame:
    """Cells with a weight, of K maps (K, side, side) by name: columns row, question, map, cell, weight."""
    import pandas as pd

    return pd.DataFrame(
        [
            {"row": int(row), "question": question, "map": name, "cell": int(cell), "weight": float(grid.flat[cell])}
            for name, of in maps.items()
            for row, question, grid in zip(rows, questions, of)
            for cell in np.flatnonzero(grid)
        ]
    )


def inside_notes(record: Record, methods: Sequence[str], at: np.ndarray) -> dict[str, list[str]]:
    """Title of each method → the share of its weight inside the region, in words, at positions ``at`` of seed 0."""
    energy = {TITLES[m]: values(record, m, "energy_inside")[0, at] for m in methods}
    return {title: [f"{v:.0%} inside" for v in of] for title, of in energy.items()}


def partners(samples: Sequence[Sample], rows: Sequence[int]) -> np.ndarray:
    """Explained questions in the same words about the two pictures of a pair: positions in ``rows``, int (K, 2)."""
    position = {samples[row].question_id: at for at, row in enumerate(rows)}
    found = [(at, position.get(samples[row].meta["partner"], -1)) for at, row in enumerate(rows)]
    return np.array([(a, b) for a, b in found if a < b], dtype=int).reshape(-1, 2)


def slot_names(profile: str) -> list[str]:
    """What each feature of a text token says, as ``"first colour: red"``; from the record of the question encoder."""
    from vqa_core.experiments.records import load_record
    from vqa_core.experiments.scene_encoders import specs

    spec = next(s for s in specs(profile) if s.unit == "questions")
    record = load_record(spec)
    if record is None:
        raise FileNotFoundError(f"{spec.path()} is missing; make it: python -m vqa_core run scene_encoders")
    return [
        f"{slot.replace('.', ' ')}: {value}" for slot, known in record.details["slots"].items() for value in known[1:]
    ]


def words_of(tokens: np.ndarray, mask: np.ndarray, names: Sequence[str]) -> list[list[str]]:
    """What each real text token (G, T, D) says: the first is the whole question, then a slot each."""
    return [
        ["whole question", *(names[int(t.argmax())] for t in of[real][1:])]
        for of, real in zip(tokens.astype(np.float64), mask)
    ]


def worst_decile(score: np.ndarray, count: int, seed: int = 0) -> np.ndarray:
    """Failure cases by rule: ``count`` rows at random from the tenth of the questions with the lowest score (Q,)."""
    cut = np.quantile(score, 0.1)
    rows = np.flatnonzero(score <= cut)
    return np.sort(np.random.default_rng(seed).choice(rows, min(count, len(rows)), replace=False))
