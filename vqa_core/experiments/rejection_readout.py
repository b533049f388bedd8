"""What chapter 8 reads from experiment ``rejection``: curves, areas, promises, shifts, sets, and the effects of claims.

A question is wrong (error 1) or right (0); the confidence is the probability of the given answer, unless another score
is named. Intervals are over seeds and pictures.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from vqa_core.evaluation import calibration, conformal, rejection
from vqa_core.evaluation.statistics import Interval, mean_over_seeds, seeds_and_questions
from vqa_core.experiments.readout import by_unit, row
from vqa_core.experiments.records import Record
from vqa_core.experiments.rejection import DATASETS, GROWING, HEADS, METHODS, PRUNED, RULES

if TYPE_CHECKING:
    import pandas as pd

CLAIMS = ("B1a", "B1b", "B2", "B3", "B4", "B5", "B6a", "B6b")
COVERAGE = 0.8  # of claim B5
RESAMPLES = 250  # of curves and areas
RESAMPLED_MEANS = 2000  # of the tables' mean scores; a claim's takes more
HEAD_OF = {method: head for head, methods in HEADS.items() for method in methods}
SCORES = {
    "probability": "probability of the answer",
    "total": "total uncertainty",
    "aleatoric": "aleatoric part",
    "epistemic": "epistemic part",
}


class Said(NamedTuple):
    """What one method said about one part of the questions, in S runs.

    Attributes
    ----------
    correct
        bool (S, Q).
    probability, total, aleatoric, epistemic, log_true, squares
        float (S, Q), see :func:`~vqa_core.experiments.rejection.answered`.
    answers
        int (Q,), −100 where the right answer can't be given.
    pictures
        int (Q,).
    closed
        bool (Q,), or None where the data set has no such kind.
    """

    correct: np.ndarray
    probability: np.ndarray
    total: np.ndarray
    aleatoric: np.ndarray
    epistemic: np.ndarray
    log_true: np.ndarray
    squares: np.ndarray
    answers: np.ndarray
    pictures: np.ndarray
    closed: np.ndarray | None

    @property
    def errors(self) -> np.ndarray:
        """1 where wrong, float (S, Q)."""
        return 1.0 - self.correct

    @property
    def reachable(self) -> np.ndarray:
        """Questions whose right answer can be given, bool (Q,)."""
        return self.answers >= 0

    def confidence(self, score: str = "probability") -> np.ndarray:
        """A score of :data:`SCORES` with the sign that more is surer, (S, Q)."""
        return self.probability if score == "probability" else -getattr(self, score)


def said(records: Iterable[Record], data: str, method: str, part: str = "test", tail: str = "") -> Said | None:
    """What a method said; None when it was not run here.

    Parameters
    ----------
    records
        Of experiment ``rejection``.
    data, method
        Keys of :data:`~vqa_core.experiments.rejection.DATASETS` and ``METHODS``.
    part
        ``test``, ``calibration``, or one of the shifted parts.
    tail
        What stands behind ``data.head`` in the unit, as ``".n100"``.
    """
    some = by_unit(records).get(f"{data}.{HEAD_OF[method]}{tail}", [])
    if not some or f"{method}.{part}.correct" not in some[0].arrays:
        return None
    names = Said._fields[:7]
    stacked = [np.stack([r.arrays[f"{method}.{part}.{name}"] for r in some]) for name in names]
    first = some[0].arrays
    return Said(*stacked, first[f"answers.{part}"], first[f"pictures.{part}"], first.get(f"closed.{part}"))


def _each(records: Iterable[Record]) -> Iterable[tuple[str, str, Said]]:
    """Data set, method and its test answers, all that there are."""
    records = list(records)
    for data in DATASETS:
        for method in METHODS:
            if (found := said(records, data, method)) is not None:
                yield data, method, found


def _gap(a: np.ndarray, b: np.ndarray, pictures: np.ndarray, resamples: int = 10_000) -> Interval:
    """Mean of a − b, (S, Q) each, paired by seed and question."""
    return seeds_and_questions(np.subtract(a, b, dtype=float), pictures, resamples)


# ------------------------------------------------------------------------------------------------------------- methods


def overview(records: Iterable[Record]) -> pd.DataFrame:
    """Every method on the test questions.

    Returns
    -------
    pandas.DataFrame
        Columns data, method, metric, mean, low, high, n, seeds. Metrics: ``accuracy``; ``nll`` (nats) and ``brier`` of
        the questions whose answer can be given; ``ece`` (15 bins of equal mass, interval over seeds); ``aurc``,
        ``augrc``; ``accuracy_80`` (accuracy of the surest 80 %) and ``gain_80`` (that minus accuracy of all).
    """
    import pandas as pd

    rows = []
    for data, method, x in _each(records):
        keep, groups = x.reachable, x.pictures
        bands = rejection.bands_over_seeds(x.errors, x.probability, None, groups, (COVERAGE,), RESAMPLES)
        risk = bands.risk.at(0)
        brier = x.squares - 2 * np.exp(x.log_true) + 1  # (S, Q)
        calibrated = [calibration.ece(p, c, scheme="mass") for p, c in zip(x.probability, x.correct)]
        found = {
            "accuracy": seeds_and_questions(x.correct, groups),
            "nll": seeds_and_questions(-x.log_true[:, keep], groups[keep], RESAMPLED_MEANS),
            "brier": seeds_and_questions(brier[:, keep], groups[keep], RESAMPLED_MEANS),
            "ece": mean_over_seeds(calibrated),
            "aurc": bands.aurc,
            "augrc": bands.augrc,
            "accuracy_80": Interval(1 - risk.mean, 1 - risk.high, 1 - risk.low, risk.n),
            "gain_80": bands.gain.at(0),
        }
        about = {"data": data, "method": method}
        rows += [about | {"metric": k} | row(v) | {"seeds": len(x.correct)} for k, v in found.items()]
    return pd.DataFrame(rows)


def curves(
    records: Iterable[Record], methods: Sequence[str], coverages: np.ndarray = rejection.COVERAGES[4::5]
) -> pd.DataFrame:
    """Accuracy of what is answered, by coverage: columns data, method, coverage, mean, low, high, n.

    Bounds stand beside the methods: ``oracle`` (right answers first) and ``random``, both of the first method's
    errors.
    """
    import pandas as pd

    rows = []
    for data, method, x in _each(records):
        if method not in methods:
            continue
        scores = {method: x.probability}
        if method == methods[0]:
            scores |= {"oracle": -x.errors, "random": np.zeros_like(x.errors)}
        for name, score in scores.items():
            band = rejection.bands_over_seeds(x.errors, score, None, x.pictures, coverages, RESAMPLES).risk
            rows += _points({"data": data, "method": name}, band)
    return pd.DataFrame(rows)


def _points(about: dict, band: rejection.CurveBand) -> list[dict]:
    """A curve of risks as rows of accuracies."""
    zipped = zip(band.coverage, band.risk, band.low, band.high)
    return [
        about | {"coverage": float(c), "mean": 1 - float(r), "low": 1 - float(h), "high": 1 - float(lo), "n": band.n}
        for c, r, lo, h in zipped
    ]


def against(records: Iterable[Record], base: str = "deterministic") -> pd.DataFrame:
    """Each method minus ``base``, paired.

    Columns data, method, metric (accuracy, nll, aurc, augrc), mean, low, high, n.
    """
    import pandas as pd

    records, rows = list(records), []
    for data, method, x in _each(records):
        if method == base or (b := said(records, data, base)) is None:
            continue
        areas = rejection.bands_over_seeds(
            x.errors, x.probability, (b.errors, b.probability), x.pictures, (1.0,), RESAMPLES
        )
        keep = x.reachable
        found = {
            "accuracy": _gap(x.correct, b.correct, x.pictures, RESAMPLED_MEANS),
            "nll": _gap(-x.log_true[:, keep], -b.log_true[:, keep], x.pictures[keep], RESAMPLED_MEANS),
            "aurc": areas.aurc,
            "augrc": areas.augrc,
        }
        rows += [{"data": data, "method": method, "metric": k, **row(v)} for k, v in found.items()]
    return pd.DataFrame(rows)


def reliable(
    records: Iterable[Record], methods: Sequence[str], risks: Sequence[float] = (0.01, 0.05), prices=(1.0, 10.0)
) -> pd.DataFrame:
    """The two numbers of *Reliable VQA* (Whitehead et al. 2022), over seeds.

    Returns
    -------
    pandas.DataFrame
        Columns data, method, metric, mean, low, high, n (seeds). ``coverage at r`` is the largest coverage whose
        selective risk on the test is at most r: it describes, and promises nothing. ``phi c`` is the effective
        reliability at cost c of a wrong answer, with the best threshold of the calibration questions, or of one half of
        the test pictures where there are none.
    """
    import pandas as pd

    records, rows = list(records), []
    for data, method, x in _each(records):
        if method not in methods:
            continue
        seeds = range(len(x.errors))
        found = {
            f"coverage at {r:g}": [rejection.coverage_at_risk(x.errors[s], x.probability[s], r) for s in seeds]
            for r in risks
        }
        for price in prices:
            values = []
            for s in seeds:
                known, test = _thresholds_from(said(records, data, method, "calibration"), x, s)
                answered = x.probability[s][test] >= rejection.best_threshold(*known, price)
                values.append(rejection.effective_reliability(x.errors[s][test], answered, price))
            found[f"phi {price:g}"] = values
        about = {"data": data, "method": method}
        rows += [about | {"metric": k} | row(mean_over_seeds(v)) for k, v in found.items()]
    return pd.DataFrame(rows)


def _thresholds_from(known: Said | None, x: Said, s: int) -> tuple[tuple[np.ndarray, np.ndarray], np.ndarray]:
    """Errors and confidences that a threshold is chosen on in run s, and the test questions to judge it on, bool (Q,).

    Without calibration questions they are one half of the test pictures, and the other half is judged.
    """
    if known is not None:
        return (known.errors[s], known.probability[s]), np.ones(len(x.pictures), dtype=bool)
    half = next(iter(_halves(x.pictures, 1)))
    return (x.errors[s][half], x.probability[s][half]), ~half


def by_kind(records: Iterable[Record], data: str, method: str) -> pd.DataFrame:
    """Open and closed questions apart: columns kind, coverage, mean (accuracy), low, high, n."""
    import pandas as pd

    x, rows = said(records, data, method), []
    if x is None or x.closed is None:
        return pd.DataFrame(columns=["kind", "coverage", "mean", "low", "high", "n"])
    for kind, keep in (("closed", x.closed), ("open", ~x.closed)):
        if keep.any():
            band = rejection.bands_over_seeds(
                x.errors[:, keep], x.probability[:, keep], None, x.pictures[keep], np.arange(1, 21) / 20, RESAMPLES
            ).risk
            rows += _points({"kind": kind}, band)
    return pd.DataFrame(rows)


def by_score(records: Iterable[Record], method: str) -> pd.DataFrame:
    """Which uncertainty ranks best: columns data, score, mean (AURC), low, high, n."""
    import pandas as pd

    rows = []
    for data, name, x in _each(records):
        if name == method:
            for score in SCORES:
                bands = rejection.bands_over_seeds(x.errors, x.confidence(score), None, x.pictures, (1.0,), RESAMPLES)
                rows.append({"data": data, "score": score, **row(bands.aurc)})
    return pd.DataFrame(rows)


def costs(records: Iterable[Record]) -> pd.DataFrame:
    """Columns data, method, train_seconds, microseconds_per_question (medians over seeds), parameters."""
    import pandas as pd

    rows = []
    for unit, some in by_unit(records).items():
        data, _, head = unit.partition(".")
        if head not in HEADS:
            continue
        for method in HEADS[head]:
            per = np.median([r.details["seconds_per_question"][method] for r in some])
            seconds = float(np.median([r.details["train_seconds"] for r in some]))
            about = {"data": data, "method": method, "train_seconds": seconds}
            rows.append(
                about | {"microseconds_per_question": 1e6 * float(per), "parameters": some[0].details["parameters"]}
            )
    return pd.DataFrame(rows)


def reliability(records: Iterable[Record], data: str, methods: Sequence[str], bins: int = 10) -> pd.DataFrame:
    """Reliability diagram over all seeds: columns method, confidence, accuracy, count; bins of equal mass."""
    import pandas as pd

    records, rows = list(records), []
    for method in methods:
        if (x := said(records, data, method)) is None:
            continue
        found = calibration.reliability(x.probability.ravel(), x.correct.ravel(), bins, "mass")
        rows += [{"method": method, "confidence": c, "accuracy": a, "count": int(k)} for c, a, k in zip(*found)]
    return pd.DataFrame(rows, columns=["method", "confidence", "accuracy", "count"])


def learning(records: Iterable[Record], heads: Sequence[str] = ("deterministic", "last", "full", "bound")):
    """Validation accuracy by epoch: columns data, head, epoch (from 1), mean, low, high, n (seeds)."""
    import pandas as pd

    found, rows = by_unit(records), []
    for data in DATASETS:
        for head in heads:
            for epochs in zip(*(r.details["history"] for r in found.get(f"{data}.{head}", []))):
                interval = mean_over_seeds([e["validation"] for e in epochs])
                rows.append({"data": data, "head": head, "epoch": int(epochs[0]["epoch"]) + 1, **row(interval)})
    return pd.DataFrame(rows)


# --------------------------------------------------------------------------------------------- inside a Bayesian head


def sweep(records: Iterable[Record]) -> pd.DataFrame:
    """The sweep on phantoms: columns sigma, alpha, validation_nll, mean (test NLL, nats), low, high, n, accuracy, best.

    ``best`` is ``"yes"`` at the point with the least NLL on *validation*. All points are seen with as many seeds as
    the one with the fewest.
    """
    import pandas as pd

    every = _sweep(records)
    best = _best(every)
    rows = []
    for (sigma, alpha), some in sorted(every.items()):
        log_true, keep, pictures = _log_true(some)
        rows.append(
            {
                "sigma": sigma,
                "alpha": alpha,
                "validation_nll": float(np.mean([r.metrics["nll"].value for r in some])),
                **row(seeds_and_questions(-log_true[:, keep], pictures[keep])),
                "accuracy": float(np.mean([r.metrics["accuracy"].value for r in some])),
                "best": "yes" if (sigma, alpha) == best else "no",
            }
        )
    return pd.DataFrame(rows)


class _Point(NamedTuple):
    """One run of the sweep, whatever its method is called."""

    metrics: dict
    log_true: np.ndarray
    answers: np.ndarray
    pictures: np.ndarray


def _sweep(records: Iterable[Record]) -> dict[tuple[float, float], list[_Point]]:
    found: dict[tuple[float, float], list[_Point]] = {}
    for unit, some in by_unit(records).items():
        if not unit.startswith(("phantoms.full", "phantoms.bound")) or unit.startswith("phantoms.full.n"):
            continue
        head = unit.split(".")[1]
        for r in some:
            at = f"{head}.test"
            metrics = {
                "nll": r.metrics[f"nll.{head}.val"],
                "accuracy": r.metrics[f"accuracy.{at}"],
            }
            point = _Point(metrics, r.arrays[f"{at}.log_true"], r.arrays["answers.test"], r.arrays["pictures.test"])
            found.setdefault((r.spec.model.prior_sigma, r.spec.model.alpha), []).append(point)
    fewest = min((len(some) for some in found.values()), default=0)
    return {at: some[:fewest] for at, some in found.items()}


def _best(points: dict[tuple[float, float], list[_Point]]) -> tuple[float, float]:
    return min(points, key=lambda at: np.mean([p.metrics["nll"].value for p in points[at]]))


def _log_true(some: Sequence[_Point]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    return np.stack([p.log_true for p in some]), some[0].answers >= 0, some[0].pictures


def growing(records: Iterable[Record], data: str = "phantoms") -> pd.DataFrame:
    """How estimates converge: columns metric, samples, mean, low, high, n (seeds)."""
    import pandas as pd

    some, rows = by_unit(records)[f"{data}.full"], []
    for metric in ("nll", "accuracy", "epistemic", "epistemic_jackknife"):
        values = np.stack([r.arrays[f"growing.{metric}"] for r in some])  # (S, K)
        for k, samples in enumerate(GROWING):
            rows.append({"metric": metric, "samples": samples, **row(mean_over_seeds(values[:, k]))})
    return pd.DataFrame(rows)


def pruning(records: Iterable[Record]) -> pd.DataFrame:
    """Accuracy after pruning: columns data, by (signal_to_noise, magnitude), share, mean, low, high, n (seeds)."""
    import pandas as pd

    found, rows = by_unit(records), []
    for data in DATASETS:
        some = found.get(f"{data}.full", [])
        for by in ("signal_to_noise", "magnitude") if some else ():
            values = np.stack([r.arrays[f"pruned.{by}"] for r in some])  # (S, K)
            for k, share in enumerate(PRUNED):
                rows.append({"data": data, "by": by, "share": share, **row(_share(mean_over_seeds(values[:, k])))})
    return pd.DataFrame(rows)


def amounts(records: Iterable[Record]) -> pd.DataFrame:
    """By number of training phantoms: columns pictures, method, metric, mean, low, high, n.

    Metrics: accuracy, and of the Bayes head (``full``) the mean epistemic and aleatoric uncertainty in nats.
    """
    import pandas as pd

    records, rows = list(records), []
    for pictures, tail in _amounts(records).items():
        for method in ("deterministic", "full"):
            x = said(records, "phantoms", method, "test", tail)
            found = {"accuracy": x.correct}
            if method == "full":
                found |= {"epistemic": x.epistemic, "aleatoric": x.aleatoric}
            for metric, values in found.items():
                about = {"pictures": pictures, "method": method, "metric": metric}
                rows.append(about | row(seeds_and_questions(values, x.pictures)))
    return pd.DataFrame(rows)


def _amounts(records: Sequence[Record]) -> dict[int, str]:
    """Number of training phantoms → what stands behind the unit's head."""
    found = {}
    for unit, some in by_unit(records).items():
        if unit == "phantoms.full" or unit.startswith("phantoms.full.n"):
            found[some[0].details["pictures"]] = unit.removeprefix("phantoms.full")
    return dict(sorted(found.items()))


# --------------------------------------------------------------------------------------------- promise and guarantee


def simulated(records: Iterable[Record]) -> pd.DataFrame:
    """The simulation.

    Columns rule, questions, promise, coverage (mean), and the share of broken promises as mean, low, high, n (repeats).
    """
    import pandas as pd

    from vqa_core.evaluation.statistics import wilson

    rows = []
    for record in by_unit(records).get("simulation", []):
        world = record.spec.data
        for rule in RULES:
            for n in world.questions:
                for promise in world.promises:
                    risk = record.arrays[f"{rule}.{n}.{promise:g}.risk"]
                    coverage = record.arrays[f"{rule}.{n}.{promise:g}.coverage"]
                    about = {"rule": rule, "questions": n, "promise": promise, "coverage": float(coverage.mean())}
                    rows.append(about | row(wilson(int((risk > promise).sum()), len(risk))))
    return pd.DataFrame(rows)


def promises(
    records: Iterable[Record],
    method: str,
    risks: Mapping[str, Sequence[float]],
    delta: float = 0.05,
    repeats: int = 40,
) -> pd.DataFrame:
    """The rules on real models: thresholds from one half of the pictures, judged on the other half.

    The questions of calibration and test together are parted by pictures ``repeats`` times for each seed; ``risks`` are
    the promises for each data set.

    Returns
    -------
    pandas.DataFrame
        Columns data, rule, promise, mean (share of repeats whose risk on the other half is above the promise), low,
        high (over seeds), n (seeds), coverage (mean on the other half), questions (of a calibration).
    """
    import pandas as pd

    records, rows = list(records), []
    for data in DATASETS:
        parts = [x for part in ("calibration", "test") if (x := said(records, data, method, part)) is not None]
        if not parts:
            continue
        errors = np.concatenate([x.errors for x in parts], axis=1)
        confidence = np.concatenate([x.probability for x in parts], axis=1)
        first = [i * 10**6 for i in range(len(parts))]  # parts number their pictures on their own
        pictures = np.concatenate([x.pictures + start for x, start in zip(parts, first)])
        halves = list(_halves(pictures, repeats))
        for promise in risks[data]:
            for rule, threshold in RULES.items():
                broken, coverage = np.zeros((len(errors), repeats)), np.zeros((len(errors), repeats))
                for s, (e, c) in enumerate(zip(errors, confidence)):
                    for i, known in enumerate(halves):
                        answered = c[~known] >= threshold(e[known], c[known], promise, delta)
                        coverage[s, i] = answered.mean()
                        broken[s, i] = answered.any() and e[~known][answered].mean() > promise
                about = {"data": data, "rule": rule, "promise": promise}
                about |= row(_share(mean_over_seeds(broken.mean(axis=1))))
                rows.append(about | {"coverage": float(coverage.mean()), "questions": int(halves[0].sum())})
    return pd.DataFrame(rows)


def _share(interval: Interval) -> Interval:
    """An interval of a share ends at 0 and 1."""
    return Interval(interval.mean, max(interval.low, 0.0), min(interval.high, 1.0), interval.n)


def _halves(pictures: np.ndarray, repeats: int) -> Iterable[np.ndarray]:
    """Random halves of the pictures, each as bool (Q,)."""
    rng, each = np.random.default_rng(0), np.unique(pictures)
    for _ in range(repeats):
        yield np.isin(pictures, rng.permutation(each)[: len(each) // 2])


def conformal_sets(records: Iterable[Record], alphas: Sequence[float] = (0.05, 0.1, 0.2)) -> pd.DataFrame:
    """Conformal sets, calibrated on the calibration questions, or on half of the test pictures where there are none.

    Returns
    -------
    pandas.DataFrame
        Columns data, method, sets (lac, aps, raps), alpha, metric (``covered``, ``size``: answers in a set,
        ``singletons``: share of sets with one answer, ``singleton_risk``: error of these), mean, low, high (over
        seeds), n (seeds).
    """
    import pandas as pd

    rows = []
    for unit, some in by_unit(records).items():
        data, _, head = unit.partition(".")
        for method in HEADS.get(head, ()):
            if f"{method}.test.mean" not in some[0].arrays:
                continue
            for kind in conformal.METHODS:
                for alpha in alphas:
                    found = [_sets(r, method, kind, alpha) for r in some]
                    for metric in found[0]:
                        values = [f[metric] for f in found if not np.isnan(f[metric])]
                        if values:
                            about = {"data": data, "method": method, "sets": kind, "alpha": alpha, "metric": metric}
                            rows.append(about | row(mean_over_seeds(values)))
    return pd.DataFrame(rows)


def _sets(record: Record, method: str, kind: str, alpha: float) -> dict[str, float]:
    a = record.arrays
    p, y = a[f"{method}.test.mean"], a["answers.test"].astype(int)
    if f"{method}.calibration.mean" in a:
        known = a[f"{method}.calibration.mean"], a["answers.calibration"].astype(int)
    else:
        half = next(iter(_halves(a["pictures.test"], 1)))
        known, p, y = (p[half], y[half]), p[~half], y[~half]
    sets = conformal.calibrate(*known, alpha, kind)(p)
    one = conformal.singletons(sets)
    right = conformal.covered(sets, y)
    risk = float(1 - right[one].mean()) if one.any() else float("nan")
    return {
        "covered": float(right.mean()),
        "size": float(sets.sum(1).mean()),
        "singletons": float(one.mean()),
        "singleton_risk": risk,
    }


def decisions(records: Iterable[Record], methods: Sequence[str], ask: Sequence[float]) -> pd.DataFrame:
    """Cost per question if an error costs 1 and asking a doctor ``ask``; thresholds from the calibration questions.

    Where there are none, from one half of the test pictures. Columns data, method, ask, mean, low, high, n (seeds).
    The method ``never_ask`` answers everything, ``always_ask`` nothing; the first method's answers are taken.
    """
    import pandas as pd

    records, rows = list(records), []
    for data, method, x in _each(records):
        if method not in methods:
            continue
        before = said(records, data, method, "calibration")
        for price in ask:
            found = []
            for s in range(len(x.errors)):
                known, test = _thresholds_from(before, x, s)
                answered = x.probability[s][test] >= rejection.cheapest_threshold(*known, price)
                found.append(rejection.mean_cost(x.errors[s][test], answered, price))
            at = {"data": data, "ask": float(price)}
            rows.append(at | {"method": method} | row(mean_over_seeds(found)))
            if method == methods[0]:
                every = mean_over_seeds([e.mean() for e in x.errors])
                rows.append(at | {"method": "never_ask"} | row(every))
                rows.append(at | {"method": "always_ask"} | row(Interval(price, price, price, len(x.errors))))
    return pd.DataFrame(rows)


# --------------------------------------------------------------------------------------------------------------- shift


def shifts(records: Iterable[Record], method: str, max_risk: dict[str, float], delta: float = 0.05) -> pd.DataFrame:
    """Where the guarantee stops: a threshold from the calibration questions, kept while the pictures change.

    Parameters
    ----------
    max_risk
        Data set → promised risk.

    Returns
    -------
    pandas.DataFrame
        Columns data, part, metric (``accuracy``, ``coverage``, ``risk`` of what is answered, ``epistemic``,
        ``aleatoric``), mean, low, high, n. A part without an answered question has no risk.
    """
    import pandas as pd

    records, rows = list(records), []
    for data, promise in max_risk.items():
        known = said(records, data, method, "calibration")
        if known is None:
            continue
        limits = [rejection.sgr(e, c, promise, delta).threshold for e, c in zip(known.errors, known.probability)]
        first = next(r for r in records if r.spec.unit == f"{data}.{HEAD_OF[method]}")
        for part in first.details["parts"]:
            x = said(records, data, method, part)
            answered = x.probability >= np.array(limits)[:, None]  # (S, Q)
            found = {
                "accuracy": seeds_and_questions(x.correct, x.pictures),
                "coverage": seeds_and_questions(answered, x.pictures),
                "epistemic": seeds_and_questions(x.epistemic, x.pictures),
                "aleatoric": seeds_and_questions(x.aleatoric, x.pictures),
            }
            some = answered.any(axis=1)
            if some.any():
                found["risk"] = _share(mean_over_seeds([e[a].mean() for e, a in zip(x.errors[some], answered[some])]))
            rows += [{"data": data, "part": part, "metric": k, **row(v)} for k, v in found.items()]
    return pd.DataFrame(rows)


def detection(records: Iterable[Record], methods: Sequence[str], part: str = "unanswerable") -> pd.DataFrame:
    """AUROC of telling ``part`` from test questions by an uncertainty, on phantoms.

    Columns method, score, mean, low, high, n (seeds).
    """
    import pandas as pd
    from sklearn.metrics import roc_auc_score

    records, rows = list(records), []
    for method in methods:
        inside, outside = (said(records, "phantoms", method, p) for p in ("test", part))
        if outside is None:
            continue
        label = np.repeat([0, 1], [inside.correct.shape[1], outside.correct.shape[1]])
        for score in SCORES:
            both = np.concatenate([-inside.confidence(score), -outside.confidence(score)], axis=1)  # (S, Q)
            if (both == both[0, 0]).all():
                continue  # a point estimate has no epistemic part
            found = mean_over_seeds([roc_auc_score(label, b) for b in both])
            rows.append({"method": method, "score": score, **row(found)})
    return pd.DataFrame(rows)


# ------------------------------------------------------------------------------------------------------------- effects


def _epochs_to(history: Sequence[dict], share: float = 0.95) -> int:
    """The first epoch, from 1, with ``share`` of the last epoch's validation accuracy."""
    goal = share * history[-1]["validation"]
    return 1 + next(i for i, e in enumerate(history) if e["validation"] >= goal)


def _b1b(found: dict[str, list[Record]]) -> Interval | None:
    """Mean over data sets of the ratio, by seed."""
    ratios = []
    for data in DATASETS:
        both = found.get(f"{data}.full", []), found.get(f"{data}.deterministic", [])
        if all(both):
            ratios.append([_epochs_to(a.details["history"]) / _epochs_to(b.details["history"]) for a, b in zip(*both)])
    return mean_over_seeds(np.mean(ratios, axis=0)) if ratios else None


def effects(records: Iterable[Record]) -> dict[str, Interval | None]:
    """What the ledger's claims B1a to B6b measure, with the Bayes head ``full``; None where records are missing.

    =====  ======================================================================================================
    B1a    accuracy on VQA-RAD, Bayes minus deterministic
    B1b    epochs to 95 % of the last validation accuracy, Bayes divided by deterministic, mean over data sets
    B2     AURC on phantoms, deterministic minus Bayes
    B3     gain in accuracy at the smallest minus that at the largest number of training phantoms
    B4     NLL (nats) on phantoms at (0.1, 1e-4) minus that at the sweep's best point on validation
    B5     accuracy on VQA-RAD at 80 % coverage minus at full coverage, Bayes
    B6a    epistemic uncertainty at the largest divided by that at the smallest number of training phantoms
    B6b    the same of the aleatoric uncertainty
    =====  ======================================================================================================
    """
    records = list(records)
    values: dict[str, Interval | None] = dict.fromkeys(CLAIMS)
    values["B1b"] = _b1b(by_unit(records))
    bayes, point = (said(records, "vqa_rad", m) for m in ("full", "deterministic"))
    if bayes is not None and point is not None:
        values["B1a"] = _gap(bayes.correct, point.correct, bayes.pictures)
        values["B5"] = rejection.gain_over_seeds(bayes.errors, bayes.probability, COVERAGE, bayes.pictures)
    bayes, point = (said(records, "phantoms", m) for m in ("full", "deterministic"))
    if bayes is not None and point is not None:
        values["B2"] = rejection.bands_over_seeds(
            point.errors, point.probability, (bayes.errors, bayes.probability), bayes.pictures, (1.0,)
        ).aurc
    tails = list(_amounts(records).values())
    if len(tails) > 1:
        few, many = (
            [said(records, "phantoms", m, "test", tail) for m in ("full", "deterministic")]
            for tail in (tails[0], tails[-1])
        )
        if few[1] is not None and many[1] is not None:
            gains = [a.correct * 1.0 - b.correct for a, b in (few, many)]  # (S, Q) each
            values["B3"] = _gap(*gains, few[0].pictures)
        for claim, part in (("B6a", "epistemic"), ("B6b", "aleatoric")):
            ratio = getattr(many[0], part).mean(axis=1) / getattr(few[0], part).mean(axis=1)  # (S,)
            values[claim] = mean_over_seeds(ratio)
    points = _sweep(records)
    if (0.1, 1e-4) in points and len(points) > 2:  # ``full`` and ``bound`` alone are no sweep
        (here, keep, pictures), (there, _, _) = (_log_true(points[at]) for at in ((0.1, 1e-4), _best(points)))
        values["B4"] = _gap(-here[:, keep], -there[:, keep], pictures[keep])
    return values
