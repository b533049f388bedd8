"""From the records of ``clip`` to the tables, intervals and effects of claims of chapter 5.

A *matrix of hits* is float (S, Q): row s one seed, column q one query of the gallery; picture → caption comes first,
then caption → picture. Intervals are those of :func:`~vqa_core.evaluation.statistics.seeds_and_questions`, over seeds
and over pairs of pictures that were drawn together.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np
import torch

from vqa_core.dual import DualEncoder
from vqa_core.evaluation.statistics import Interval, mean_over_seeds, seeds_and_questions
from vqa_core.experiments import clip
from vqa_core.experiments.clip_material import ENSEMBLES, NAMES, SEVEN, Gallery, Told
from vqa_core.experiments.readout import by_unit, row
from vqa_core.experiments.records import Record

if TYPE_CHECKING:
    import pandas as pd

CHANCE = 1 / len(NAMES)  # of naming a single object
Runs = Mapping[str, Sequence[Record]]

#: Unit → how its loss is called.
LOSSES = {"clip": "symmetric InfoNCE", "nt_xent": "NT-Xent", "triplet": "triplet, hard", "siglip": "SigLIP"}


#: Claim → what the n of its effect counts.
COUNTED = dict.fromkeys(("C1a", "C2", "C3"), "pictures") | dict.fromkeys(("C1b", "C4", "C6"), "queries")


def runs_of(records: Iterable[Record]) -> dict[str, list[Record]]:
    """Unit → its records in the order of their seeds."""
    return by_unit(records)


def of_units(runs: Runs, units: Iterable[str]) -> list[Record]:
    """All records of some units."""
    return [record for unit in units for record in runs[unit]]


def cell(table: pd.DataFrame, **where: str) -> dict[str, float]:
    """Mean, low, high and n of the one row of a table that has these values.

    Raises
    ------
    ValueError
        When there is no such row, or several.
    """
    found = table[np.logical_and.reduce([table[column] == value for column, value in where.items()])]
    if len(found) != 1:
        raise ValueError(f"{len(found)} rows have {where}; there must be one")
    mean, low, high = (float(found[name].iloc[0]) for name in ("mean", "low", "high"))
    return {"mean": mean, "low": low, "high": high, "n": int(found["n"].iloc[0])}


def _share(interval: Interval) -> Interval:
    """The interval of a share, inside [0, 1]."""
    low, high = min(max(interval.low, 0.0), interval.mean), max(min(interval.high, 1.0), interval.mean)
    return replace(interval, low=low, high=high)


def _profile(runs: Runs) -> str:
    return next(iter(runs.values()))[0].spec.profile


def _there(runs: Runs, units: Iterable[str]) -> bool:
    return all(runs.get(unit) for unit in units)


# ---------------------------------------------------------------------------------------------------------- retrieval


def hits(records: Sequence[Record]) -> tuple[np.ndarray, np.ndarray]:
    """Matrix of hits (S, 2 G) of one unit, and the pair of pictures that each query is about, int (2 G,)."""
    x = np.stack([r.arrays["hits"] for r in records]).astype(np.float64)  # (S, 2, G)
    return x.reshape(len(x), -1), np.tile(records[0].arrays["group"], 2)


def recall(records: Sequence[Record]) -> Interval:
    """R@1 of a unit, both directions together."""
    return _share(seeds_and_questions(*hits(records)))


def recall_table(runs: Runs, units: Iterable[str]) -> pd.DataFrame:
    """R@1 of some units: columns unit, metric, mean, low, high, n (queries), seeds."""
    import pandas as pd

    rows = [(u, recall(runs[u]), len(runs[u])) for u in units]
    return pd.DataFrame([{"unit": u, "metric": "R@1", **row(i), "seeds": s} for u, i, s in rows])


def metric_table(runs: Runs, unit: str = "small") -> pd.DataFrame:
    """All retrieval metrics of a unit: columns metric, mean, low, high, n (seeds; of R@1 queries)."""
    import pandas as pd

    titles = {"r1": "R@1", "r5": "R@5", "r10": "R@10", "median_rank": "median rank"}
    rows = []
    for key, title in titles.items():
        over_seeds = mean_over_seeds([r.metrics[key].value for r in runs[unit]])
        found = recall(runs[unit]) if key == "r1" else over_seeds if key == "median_rank" else _share(over_seeds)
        rows.append({"metric": title, **row(found)})
    return pd.DataFrame(rows)


def validation(records: Sequence[Record]) -> float:
    """Mean R@1 on the validation gallery; what is chosen is chosen by it."""
    return float(np.mean([r.metrics["r1_val"].value for r in records]))


def best_on_validation(runs: Runs, units: Iterable[str]) -> str:
    """The unit with the highest R@1 on validation, the first of equals."""
    return max(units, key=lambda unit: validation(runs[unit]))


def difference(a: Sequence[Record], b: Sequence[Record]) -> Interval:
    """R@1 of unit a minus that of unit b, paired by seed and query.

    Raises
    ------
    ValueError
        When the two do not have the same seeds.
    """
    return _paired([a], [b])


def _paired(plus: Sequence[Sequence[Record]], minus: Sequence[Sequence[Record]]) -> Interval:
    """Sum of the hits of ``plus`` minus those of ``minus``."""
    seeds = [[r.spec.seed for r in records] for records in (*plus, *minus)]
    if any(found != seeds[0] for found in seeds):
        raise ValueError(f"units have other seeds: {seeds}; run the missing")
    total = sum(hits(records)[0] for records in plus) - sum(hits(records)[0] for records in minus)
    return seeds_and_questions(total, hits(plus[0])[1])


# ---------------------------------------------------------------------------------------------------------- zero-shot


def named(records: Sequence[Record], ensemble: str = "seven", kind: str = "unseen") -> tuple[np.ndarray, np.ndarray]:
    """Which pictures of one object are named rightly, bool (S, Q), and their pairs (Q,)."""
    k = list(ENSEMBLES).index(ensemble)
    right = np.stack([r.arrays[f"named_{kind}"][k] == r.arrays[f"label_{kind}"] for r in records])
    return right, records[0].arrays[f"group_{kind}"]


def zero_shot_table(runs: Runs, unit: str = "small") -> pd.DataFrame:
    """Accuracy of each prompt and ensemble: columns prompts, pictures, mean, low, high, n, seeds.

    ``pictures`` is "seen pairs" or "unseen pairs". The row "seven, unseen names only" leaves the seen names out of the
    choice: then colour alone is enough, and chance is one in eight.
    """
    import pandas as pd

    records = runs[unit]
    rows = []
    for kind in ("seen", "unseen"):
        for name in ENSEMBLES:
            rows.append((name, f"{kind} pairs", *named(records, name, kind)))
    if "named_among_unseen" in records[0].arrays:
        right = np.stack([r.arrays["named_among_unseen"] == r.arrays["label_unseen"] for r in records])
        rows.append(("seven, unseen names only", "unseen pairs", right, records[0].arrays["group_unseen"]))
    return pd.DataFrame(
        [
            {"prompts": name, "pictures": kind, **row(seeds_and_questions(x, groups)), "seeds": len(x)}
            for name, kind, x, groups in rows
        ]
    )


def attribute_table(runs: Runs, unit: str = "small") -> pd.DataFrame:
    """How often the colour and the shape of the named class are right: columns pictures, attribute, mean, low, high, n.

    Compositional is a model whose pair is right about as often as both parts are.
    """
    import pandas as pd

    colour, shape = (np.array([name.split()[k] for name in NAMES]) for k in (0, 1))
    rows = []
    for kind in ("seen", "unseen"):
        some = runs[unit]
        found = np.stack([r.arrays[f"named_{kind}"][list(ENSEMBLES).index("seven")] for r in some])  # (S, Q)
        truth, groups = some[0].arrays[f"label_{kind}"], some[0].arrays[f"group_{kind}"]
        parts = {"colour": colour[found] == colour[truth], "shape": shape[found] == shape[truth]}
        parts["both"] = found == truth
        rows += [
            {"pictures": f"{kind} pairs", "attribute": name, **row(seeds_and_questions(x, groups))}
            for name, x in parts.items()
        ]
    return pd.DataFrame(rows)


def confusion(runs: Runs, unit: str = "small", kind: str = "unseen") -> np.ndarray:
    """Share of pictures of class i (rows, of those that occur) that are named class j, over all seeds: (32, 32)."""
    counts = np.zeros((len(NAMES), len(NAMES)))
    for r in runs[unit]:
        np.add.at(counts, (r.arrays[f"label_{kind}"], r.arrays[f"named_{kind}"][list(ENSEMBLES).index("seven")]), 1)
    total = counts.sum(1, keepdims=True)
    return np.divide(counts, total, out=np.zeros_like(counts), where=total > 0)


# --------------------------------------------------------------------------------------------------------- the sweeps


def best_by_batch(runs: Runs) -> dict[int, str]:
    """Batch size → the unit whose learning rate is the best on validation."""
    config = clip.PROFILES[_profile(runs)]
    return {
        size: best_on_validation(runs, [clip.batch_unit(size, rate) for rate in config.rates])
        for size in config.batches
    }


def batch_table(runs: Runs) -> pd.DataFrame:
    """R@1 by batch size and learning rate: columns batch, rate, best, mean, low, high, n; ``best`` is yes or no."""
    import pandas as pd

    config, best = clip.PROFILES[_profile(runs)], best_by_batch(runs)
    rows = []
    for size in config.batches:
        for rate in config.rates:
            unit = clip.batch_unit(size, rate)
            found = {"batch": size, "rate": rate, "best": "yes" if best[size] == unit else "no"}
            rows.append(found | row(recall(runs[unit])))
    return pd.DataFrame(rows)


def amount_table(runs: Runs) -> pd.DataFrame:
    """R@1 by image encoder and number of training pairs: columns encoder, pairs, mean, low, high, n, seeds."""
    import pandas as pd

    config = clip.PROFILES[_profile(runs)]
    rows = []
    for model in config.models:
        for pairs in config.amounts:
            some = runs[clip.amount_unit(model.image, pairs)]
            rows.append({"encoder": model.image, "pairs": pairs, **row(recall(some)), "seeds": len(some)})
    return pd.DataFrame(rows)


def temperature_table(runs: Runs) -> pd.DataFrame:
    """Fixed temperatures and the learned one: columns temperature, quantity, mean, low, high, n.

    ``temperature`` is the number, or "learned"; quantities are R@1, entropy (of the in-batch softmax, as a share of the
    largest), last loss (nats) and τ at the end.
    """
    import pandas as pd

    profile = _profile(runs)
    units = {f"{t:g}": f"temperature.{t:g}" for t in clip.PROFILES[profile].temperatures}
    units["learned"] = clip.base_unit(profile)
    rows = []
    for title, unit in units.items():
        some = runs[unit]
        found = {
            "R@1": recall(some),
            "entropy": _share(seeds_and_questions(*entropies(some))),
            "last loss": mean_over_seeds([r.details["history"][-1]["loss"] for r in some]),
            "τ at the end": mean_over_seeds([r.details["temperature"] for r in some]),
        }
        rows += [{"temperature": title, "quantity": name, **row(interval)} for name, interval in found.items()]
    return pd.DataFrame(rows)


def entropies(records: Sequence[Record]) -> tuple[np.ndarray, np.ndarray]:
    """Entropy of the in-batch softmax as a share of the largest possible, (S, n), and the pictures' pairs (n,)."""
    x = np.stack([r.arrays["entropy"] for r in records]).astype(np.float64)
    return x, records[0].arrays["group"][: x.shape[1]]


def loss_table(runs: Runs) -> pd.DataFrame:
    """R@1 and zero-shot accuracy on unseen pairs by loss: columns loss, metric, mean, low, high, n, seeds."""
    import pandas as pd

    units = {"clip": clip.base_unit(_profile(runs))} | {name: f"loss.{name}" for name in list(LOSSES)[1:]}
    rows = []
    for name, unit in units.items():
        found = {"R@1": recall(runs[unit]), "zero-shot, unseen pairs": seeds_and_questions(*named(runs[unit]))}
        rows += [{"loss": LOSSES[name], "metric": m, **row(i), "seeds": len(runs[unit])} for m, i in found.items()]
    return pd.DataFrame(rows)


def curves(runs: Runs, units: Mapping[str, str]) -> pd.DataFrame:
    """Loss and temperature along the training: columns curve, quantity, step, mean, low, high, n (seeds).

    Parameters
    ----------
    runs
        Records by unit.
    units
        Unit → what its curve is called.
    """
    import pandas as pd

    rows = []
    for unit, title in units.items():
        for points in zip(*(r.details["history"] for r in runs[unit])):
            for quantity in ("loss", "temperature"):
                found = mean_over_seeds([p[quantity] for p in points])
                named_ = {"curve": title, "quantity": quantity, "step": points[0]["step"]}
                rows.append(named_ | row(replace(found, low=max(found.low, 0.0))))
    return pd.DataFrame(rows)


def self_similarity_table(runs: Runs) -> pd.DataFrame:
    """What the loss that scores a vector with itself shows, and what was learned: columns captions, quantity, mean …

    Accuracy is that of the diagonal before and after training; R@1 asks the two encoders about held-out pictures.
    """
    import pandas as pd

    rows = []
    for name, title in {"self.right": "their own", "self.shuffled": "of other pictures"}.items():
        some = runs[name]
        found = {
            "accuracy before training": mean_over_seeds([float(r.arrays["accuracy_before"][0]) for r in some]),
            "first loss": mean_over_seeds([r.details["history"][0]["loss"] for r in some]),
            "last loss": mean_over_seeds([r.details["history"][-1]["loss"] for r in some]),
            "accuracy after training": mean_over_seeds([float(r.arrays["accuracy_after"][0]) for r in some]),
            "R@1 of the encoders": recall(some),
        }
        rows += [{"captions": title, "quantity": quantity, **row(i)} for quantity, i in found.items()]
    return pd.DataFrame(rows)


def cache_table(runs: Runs) -> pd.DataFrame:
    """One step, plain and cached: columns batch, way, megabytes (10⁶ bytes kept), seconds, difference."""
    import pandas as pd

    (record,) = runs["cache"]
    a = record.arrays
    return pd.DataFrame(
        [
            {
                "batch": int(size),
                "way": way,
                "megabytes": a["bytes"][w, k] / 1e6,
                "seconds": float(a["seconds"][w, k]),
                "difference": float(a["difference"][k]) if w else 0.0,
            }
            for k, size in enumerate(a["batch"])
            for w, way in enumerate(("plain", "cached"))
        ]
    )


# --------------------------------------------------------------------------------------------------------- the claims


def effects(runs: Runs) -> dict[str, Interval | None]:
    """Effect of every claim of the chapter that scenes can decide, by its id; None where records are absent.

    C1a: mean entropy at temperature 0.5 minus that at 0.02. C1b: R@1 with the learned temperature minus the best fixed
    one (validation). C2: zero-shot accuracy on unseen pairs minus chance. C3: seven prompts minus the mean of the same
    seven alone. C4: gain in R@1 from 2,000 to 20,000 pairs, ViT minus ResNet. C6: R@1 at batch 512 minus batch 32.
    """
    found: dict[str, Interval | None] = dict.fromkeys(("C1a", "C1b", "C2", "C3", "C4", "C6"))
    if not runs:
        return found
    profile = _profile(runs)
    config, base = clip.PROFILES[profile], clip.base_unit(profile)
    lowest, highest = (f"temperature.{t:g}" for t in (clip.LOWEST, clip.HIGHEST))
    if _there(runs, (lowest, highest)):
        high, groups = entropies(runs[highest])
        found["C1a"] = seeds_and_questions(high - entropies(runs[lowest])[0], groups)
    fixed = [f"temperature.{t:g}" for t in config.temperatures]
    if _there(runs, (*fixed, base)):
        found["C1b"] = difference(runs[base], runs[best_on_validation(runs, fixed)])
    if _there(runs, ("small",)):
        right, groups = named(runs["small"])
        found["C2"] = seeds_and_questions(right - CHANCE, groups)
        alone = np.mean([named(runs["small"], prompt)[0] for prompt in SEVEN], axis=0)  # (S, Q)
        found["C3"] = seeds_and_questions(right - alone, groups)
    few, many = clip.compared_amounts(profile)
    units = [clip.amount_unit(image, n) for image in ("vit", "resnet") for n in (many, few)]
    if _there(runs, units):
        vit_many, vit_few, resnet_many, resnet_few = (runs[u] for u in units)
        found["C4"] = _paired([vit_many, resnet_few], [vit_few, resnet_many])
    sizes = clip.compared_batches(profile)
    if _there(runs, [clip.batch_unit(size, rate) for size in sizes for rate in config.rates]):
        small, large = (
            best_on_validation(runs, [clip.batch_unit(size, rate) for rate in config.rates]) for size in sizes
        )
        found["C6"] = difference(runs[large], runs[small])
    return found


# ------------------------------------------------------------------------------------------------------ what is shown


def load_model(record: Record, known: Told) -> DualEncoder:
    """The trained model of the first seed of ``small``, in evaluation mode."""
    model = clip.build(record.spec.model, known)
    weights = {
        k.removeprefix("model."): torch.from_numpy(v) for k, v in record.arrays.items() if k.startswith("model.")
    }
    if not weights:
        raise ValueError(f"{record.spec.unit}, seed {record.spec.seed}, keeps no weights; the first seed of small does")
    model.load_state_dict(weights)
    return model.eval()


def examples(record: Record, captions: Sequence[str], rows: Sequence[int], k: int = 3) -> list[list[tuple[str, float]]]:
    """The k best captions of some pictures of the gallery, with their cosines; ``record`` is the first of ``small``."""
    cosines = record.arrays["image"][list(rows)] @ record.arrays["text"].T  # (R, G)
    best = np.argsort(-cosines, axis=1)[:, :k]
    return [[(captions[j], float(c[j])) for j in order] for c, order in zip(cosines, best)]


def embedding_map(record: Record, seed: int = 0) -> np.ndarray:
    """Two coordinates for each embedding of the gallery by PCA: pictures first, then captions, float (2, G, 2)."""
    from sklearn.decomposition import PCA

    both = np.concatenate([record.arrays["image"], record.arrays["text"]]).astype(np.float64)
    return PCA(2, random_state=seed).fit_transform(both).reshape(2, -1, 2)


def modality_gap(record: Record) -> float:
    """Distance between the mean picture embedding and the mean caption embedding (Liang et al. 2022), 0 to 2."""
    return float(np.linalg.norm(record.arrays["image"].mean(0) - record.arrays["text"].mean(0)))


# ------------------------------------------------------------------------------------------- what is behind a drawing


def matrix_table(before: np.ndarray, after: np.ndarray) -> pd.DataFrame:
    """Cosines before and after training, (n, n) each, as columns when, picture, caption, cosine."""
    import pandas as pd

    i, j = np.indices(before.shape).reshape(2, -1)
    parts = [
        pd.DataFrame({"when": when, "picture": i, "caption": j, "cosine": matrix.reshape(-1)})
        for when, matrix in (("before", before), ("after", after))
    ]
    return pd.concat(parts, ignore_index=True)


def example_table(found: Sequence[Sequence[tuple[str, float]]], gallery: Gallery, rows: Sequence[int]) -> pd.DataFrame:
    """What :func:`examples` found for some pictures: columns picture, rank, caption, cosine, true ("yes" or "no")."""
    import pandas as pd

    return pd.DataFrame(
        [
            {
                "picture": i,
                "rank": rank,
                "caption": caption,
                "cosine": cosine,
                "true": "yes" if gallery.right[i, gallery.captions.index(caption)] else "no",
            }
            for i, best in zip(rows, found)
            for rank, (caption, cosine) in enumerate(best, start=1)
        ]
    )


def map_table(points: np.ndarray) -> pd.DataFrame:
    """Coordinates (2, G, 2) of :func:`embedding_map` as columns side, pair, first, second."""
    import pandas as pd

    parts = [
        pd.DataFrame({"side": side, "pair": range(len(some)), "first": some[:, 0], "second": some[:, 1]})
        for side, some in zip(("picture", "caption"), points)
    ]
    return pd.concat(parts, ignore_index=True)


def confusion_table(shares: np.ndarray) -> pd.DataFrame:
    """The entries of a confusion matrix (32, 32) that are not zero, as columns is, named, share."""
    import pandas as pd

    i, j = np.nonzero(shares)
    names = np.array(NAMES)
    return pd.DataFrame({"is": names[i], "named": names[j], "share": shares[i, j]})


def size_table(batches: pd.DataFrame, amounts: pd.DataFrame, titles: Mapping[str, str]) -> pd.DataFrame:
    """:func:`batch_table` and :func:`amount_table` as one: columns curve, x, best, mean, low, high, n."""
    import pandas as pd

    by_rate = batches.assign(curve=[f"batch size, rate {r:g}" for r in batches["rate"]], x=batches["batch"])
    by_pairs = amounts.assign(curve=[f"pairs, {titles[e]}" for e in amounts["encoder"]], x=amounts["pairs"], best="–")
    return pd.concat([by_rate, by_pairs], ignore_index=True)[["curve", "x", "best", "mean", "low", "high", "n"]]
