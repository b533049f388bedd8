"""What the chapter on encoders reads from the records of ``vit_cifar`` and ``vit_norms``."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np
import torch

from vqa_core.evaluation.statistics import Difference, Interval, mean_over_seeds, paired_difference, seeds_and_questions
from vqa_core.experiments.readout import by_unit, row
from vqa_core.experiments.records import Record
from vqa_core.experiments.vit_cifar import KEPT, attention_distance

if TYPE_CHECKING:
    import pandas as pd

    from vqa_core.encoders.vision_transformer import VisionTransformer

#: Accuracies after each of five epochs in chapter 10 of dldna: counted in training, while the weights changed.
PUBLISHED = (0.2966, 0.4269, 0.4923, 0.5298, 0.5578)


ABSENT = "not measured in this build"


def in_words(interval: Interval | None, what: str = "pictures", difference: bool = False) -> str:
    """An accuracy, or a difference of two, with its interval, as the chapter prints it; what was not run says so.

    >>> in_words(Interval(0.412, 0.401, 0.423, 5000))
    '41.2 % (95 % CI 40.1–42.3, n = 5,000 pictures)'
    >>> in_words(Interval(-0.05, -0.062, -0.04, 5000), difference=True)
    '−5.0 points (95 % CI −6.2 to −4.0, n = 5,000 pictures)'
    """
    if interval is None:
        return ABSENT
    mean, low, high = (
        f"{100 * x:{'+' if difference else ''}.1f}" for x in (interval.mean, interval.low, interval.high)
    )
    unit, span = (" points", f"{low} to {high}") if difference else (" %", f"{low}–{high}")
    return f"{mean}{unit} (95 % CI {span}, n = {interval.n:,} {what})".replace("-", "−")


def accuracies(records: Iterable[Record]) -> pd.DataFrame:
    """Test accuracy of every unit, and of the one class that the training pictures have most often.

    Returns
    -------
    pandas.DataFrame
        Columns unit, mean, low, high, n (pictures), seeds; ``majority`` is last. Intervals are over seeds and pictures.
    """
    import pandas as pd

    found, rows = by_unit(records), []
    for unit, some in found.items():
        interval = seeds_and_questions(_correct(some))
        rows.append({"unit": unit, **row(interval), "seeds": len(some)})
    small = next((some[0] for some in found.values() if "label_test" in some[0].arrays), None)
    if small is not None:
        always = small.arrays["label_test"] == 0  # training classes are equally frequent; the first of them
        rows.append({"unit": "majority", **row(seeds_and_questions(always[None])), "seeds": 1})
    return pd.DataFrame(rows)


def shuffling(records: Iterable[Record], units: Sequence[str] = ("vit", "cnn")) -> pd.DataFrame:
    """Accuracy on test pictures as they are, and with their patches shuffled.

    Returns
    -------
    pandas.DataFrame
        Columns unit, pictures (``"whole"`` or ``"shuffled"``), mean, low, high, n.
    """
    import pandas as pd

    found = by_unit(records)
    return pd.DataFrame(
        [
            {"unit": unit, "pictures": name, **row(seeds_and_questions(np.stack([r.arrays[of] for r in found[unit]])))}
            for unit in units
            for name, of in (("whole", "correct_test"), ("shuffled", "correct_shuffled"))
        ]
    )


def gain(records: Iterable[Record], unit: str, base: str) -> Difference:
    """Test accuracy of a unit minus that of another, paired by seed and picture."""
    found = by_unit(records)
    return paired_difference(_correct(found[unit]), _correct(found[base]))


def costs(records: Iterable[Record]) -> pd.DataFrame:
    """Columns unit, parameters, flops (one picture, forward), seconds_per_step (median over seeds); without flops none.

    A unit whose operations are not counted (``published``) is left out.
    """
    import pandas as pd

    return pd.DataFrame(
        [
            {
                "unit": unit,
                "parameters": some[0].details["parameters"],
                "flops": some[0].details["flops"],
                "seconds_per_step": float(np.median([r.details["seconds_per_step"] for r in some])),
            }
            for unit, some in by_unit(records).items()
            if "flops" in some[0].details
        ]
    )


def _correct(records: Sequence[Record]) -> np.ndarray:
    """bool (S, Q); of ``published`` those after its last epoch."""
    return np.stack(
        [
            r.arrays["correct_by_epoch"][-1].astype(bool)
            if "correct_by_epoch" in r.arrays
            else r.arrays["correct_test"]
            for r in records
        ]
    )


# -- the published recipe ---------------------------------------------------------------------------------------------


def published_claim(records: Iterable[Record]) -> Interval | None:
    """Effect of claim P2: test accuracy after five epochs of the published recipe; None when it was not run."""
    some = by_unit(records).get("published")
    if some is None:
        return None
    if any(not r.details["whole"] or r.spec.training.epochs != len(PUBLISHED) for r in some):
        raise ValueError("claim P2 is about five epochs on the whole of CIFAR-10; these records are of something else")
    return seeds_and_questions(_correct(some))


def published_curve(records: Iterable[Record]) -> pd.DataFrame | None:
    """Accuracy after each epoch: columns what (``training``, ``test``), epoch (from 1), mean, low, high, n (seeds)."""
    import pandas as pd

    some = by_unit(records).get("published")
    if some is None:
        return None
    return pd.DataFrame(
        [
            {"what": what, "epoch": epoch, **row(mean_over_seeds([h[what] for h in of]))}
            for what in ("training", "test")
            for epoch, of in enumerate(zip(*(r.details["history"] for r in some)), start=1)
        ]
    )


# -- what a trained ViT learnt ----------------------------------------------------------------------------------------


def _kept(records: Iterable[Record]) -> Record:
    record = next((r for r in records if r.spec.unit == "vit" and r.spec.seed == KEPT), None)
    if record is None:
        raise ValueError(f"no record of vit with seed {KEPT}; run experiment vit_cifar")
    return record


def network_of(records: Iterable[Record]) -> VisionTransformer:
    """The ViT of seed :data:`~vqa_core.experiments.vit_cifar.KEPT` with its trained weights, in evaluation mode."""
    record = _kept(records)
    network = record.spec.model.build()
    network.load_state_dict(
        {k.removeprefix("model."): torch.from_numpy(v) for k, v in record.arrays.items() if k.startswith("model.")}
    )
    return network.eval()


def class_attention(records: Iterable[Record]) -> np.ndarray:
    """Where the class token looks, mean over test pictures, of one seed: heads of several seeds are not the same.

    Returns
    -------
    numpy.ndarray
        (layers, heads, rows, columns); each map sums to what the class token does not spend on itself.
    """
    record = _kept(records)
    maps = record.arrays["class_attention"]  # (L, H, N)
    side = round(maps.shape[-1] ** 0.5)
    return maps.reshape(*maps.shape[:2], side, side)


def position_similarity(records: Iterable[Record]) -> np.ndarray:
    """Cosine similarity of each place's position embedding with that of every other, mean over seeds.

    Returns
    -------
    numpy.ndarray
        (N, N), places in reading order; the class token is left out.
    """
    found = []
    for record in by_unit(records)["vit"]:
        p = record.arrays["positions"][1:]  # (N, D)
        p = p / np.linalg.norm(p, axis=1, keepdims=True)
        found.append(p @ p.T)  # (N, N)
    return np.mean(found, axis=0)


def similarity_by_distance(records: Iterable[Record]) -> pd.DataFrame:
    """Mean similarity of two different places by their distance in patches: columns distance, mean, low, high, n."""
    import pandas as pd

    by_seed: dict[float, list[float]] = {}
    for record in by_unit(records)["vit"]:
        similar = position_similarity([record])
        side = round(len(similar) ** 0.5)
        at = np.stack(np.divmod(np.arange(side**2), side), 1)  # (N, 2)
        apart = np.linalg.norm(at[:, None] - at[None], axis=-1).round(6)  # (N, N)
        for distance in np.unique(apart)[1:]:
            by_seed.setdefault(float(distance), []).append(float(similar[apart == distance].mean()))
    return pd.DataFrame([{"distance": d, **row(mean_over_seeds(values))} for d, values in by_seed.items()])


def looking_distances(records: Iterable[Record]) -> pd.DataFrame:
    """How far the heads of each layer look: columns layer (from 1), head, pixels, of every seed, nearest head first."""
    import pandas as pd

    return pd.DataFrame(
        [
            {"seed": record.spec.seed, "layer": layer, "head": head, "pixels": float(pixels)}
            for record in by_unit(records)["vit"]
            for layer, heads in enumerate(record.arrays["attention_distance"], start=1)
            for head, pixels in enumerate(sorted(heads), start=1)
        ]
    )


def uniform_distance(network: VisionTransformer) -> float:
    """Distance in pixels at which a head looks that weighs all patches alike."""
    n = network.grid[0] * network.grid[1]
    return float(attention_distance(torch.full((1, 1, 1, 1 + n, 1 + n), 1.0), network.grid, network.patches.patch))


# -- gradients of the first steps -------------------------------------------------------------------------------------


def gradient_table(records: Iterable[Record], steps: Mapping[str, int]) -> pd.DataFrame:
    """Gradient norm by layer at some steps.

    Parameters
    ----------
    records
        Of ``vit_norms``.
    steps
        Name → position of the step, as ``{"first": 0, "last": -1}``.

    Returns
    -------
    pandas.DataFrame
        Columns norm, warmup, step, layer (from 1, bottom first), mean, low, high, n (seeds): geometric mean and the t
        interval of the logarithms, since norms range over orders of magnitude.
    """
    import pandas as pd

    rows = []
    for unit, some in by_unit(records).items():
        norm, warmup = unit.split(".")
        for name, step in steps.items():
            logs = np.log(np.stack([r.arrays["gradient_norm"][step] for r in some]))  # (S, L)
            for layer, values in enumerate(logs.T, start=1):
                interval = {k: v if k == "n" else float(np.exp(v)) for k, v in row(mean_over_seeds(values)).items()}
                rows.append({"norm": norm, "warmup": warmup, "step": name, "layer": layer, **interval})
    return pd.DataFrame(rows)


def loss_table(records: Iterable[Record]) -> pd.DataFrame:
    """Loss before each step: columns norm, warmup, step (from 0), mean, low, high, n (seeds)."""
    import pandas as pd

    rows = []
    for unit, some in by_unit(records).items():
        norm, warmup = unit.split(".")
        losses = np.stack([r.arrays["loss"] for r in some])  # (S, steps)
        rows += [
            {"norm": norm, "warmup": warmup, "step": step, **row(mean_over_seeds(values))}
            for step, values in enumerate(losses.T)
        ]
    return pd.DataFrame(rows)
