"""From the records of ``cross_attention`` to tables, tests and the numerical checks of chapter 6's propositions."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import nn

from vqa_core.evaluation.statistics import Difference, Interval, holm, mean_over_seeds, seeds_and_questions
from vqa_core.evaluation.statistics import paired_difference as _paired_difference
from vqa_core.experiments.records import Record
from vqa_core.fusion.cross_attention import VERSIONS
from vqa_core.training.matching import contrastive_loss, in_batch_cosines, pairwise_cosines

if TYPE_CHECKING:
    import pandas as pd

#: Metric of a record → what it is called in tables. Shares lie between 0 and 1.
SHARES = {
    "r1": "R@1",
    "r5": "R@5",
    "r10": "R@10",
    "in_batch_accuracy": "in-batch accuracy",
    "pairwise_accuracy": "pairwise accuracy",
    "five.trained": "five-caption test",
    "as_v0.trained": "five-caption test, loaded as v0",
    "dropped.trained": "five-caption test, weights dropped",
    "r1_shared": "R@1, pictures shared with training",
}
OTHERS = {
    "leak": "leak",
    "median_rank": "median rank",
    "score_spread": "spread of the score",
    "similarity_of_pairs": "cosine of right pairs",
    "five.ratio": "similarity ratio",
    "five.gap": "similarity gap",
    "five.spread": "spread of five logits",
    "as_v0.spread": "spread of five logits, loaded as v0",
    "temperature": "temperature",
}
FORENSIC = ("five.trained", "as_v0.trained", "dropped.trained", "five.spread", "as_v0.spread")


def by_protocol(records: Iterable[Record]) -> dict[str, dict[str, Record]]:
    """Protocol → version → record."""
    found: dict[str, dict[str, Record]] = {}
    for record in records:
        protocol, version = record.spec.unit.split(".", 1)
        found.setdefault(protocol, {})[version] = record
    return found


def hits(record: Record) -> tuple[np.ndarray, np.ndarray]:
    """R@1 of every query, float (S, Q), and the picture that each query is about, int (Q,)."""
    x = record.arrays["hits"]  # (S, galleries, 2, pictures)
    pictures = np.broadcast_to(np.arange(x.shape[1])[:, None, None] * x.shape[3] + np.arange(x.shape[3]), x.shape[1:])
    return x.reshape(len(x), -1).astype(np.float64), pictures.reshape(-1)


def recall(record: Record) -> Interval:
    """R@1 with its interval over seeds and pictures, inside [0, 1]."""
    return _share(seeds_and_questions(*hits(record)))


def _share(interval: Interval) -> Interval:
    """The interval inside [0, 1], and around its mean: resampled sums are rounded, the mean of equal shares is not."""
    low, high = min(max(interval.low, 0.0), interval.mean), max(min(interval.high, 1.0), interval.mean)
    return replace(interval, low=low, high=high)


def ablation(records: Iterable[Record]) -> pd.DataFrame:
    """Every metric of every version and protocol: columns protocol, version, metric, mean, low, high, n.

    R@1 has its interval over seeds and pictures, the others over seeds. ``forensic`` is what the published evaluator
    sees in the models of ``published``: the five-caption test as it should be, and with each of its defects.
    """
    import pandas as pd

    rows = []
    for protocol, versions in by_protocol(records).items():
        for version, record in versions.items():
            for key, metric in (SHARES | OTHERS).items():
                if key not in record.arrays:
                    continue
                over_seeds = mean_over_seeds(record.arrays[key])
                found = recall(record) if key == "r1" else _share(over_seeds) if key in SHARES else over_seeds
                named = {"version": version, "metric": metric, "mean": found.mean, "low": found.low, "high": found.high}
                named["n"] = found.n
                if protocol != "published" or key not in FORENSIC[1:]:
                    rows.append({"protocol": protocol} | named)
                if protocol == "published" and key in FORENSIC:
                    rows.append({"protocol": "forensic"} | named)
    return pd.DataFrame(rows)[["protocol", "version", "metric", "mean", "low", "high", "n"]]


def difference(a: Record, b: Record) -> Difference:
    """R@1 of a minus R@1 of b on the same seeds and queries."""
    x, pictures = hits(a)
    return _paired_difference(x, hits(b)[0], pictures)


def differences_to(versions: dict[str, Record], base: str) -> pd.DataFrame:
    """Difference in R@1 of every other version to ``base``: version, mean, low, high, n, p, p_holm."""
    import pandas as pd

    rows = []
    for version, record in versions.items():
        if version != base:
            found, test = difference(record, versions[base])
            row = {"version": version, "mean": found.mean, "low": found.low, "high": found.high, "n": found.n}
            rows.append(row | {"p": test.p_value})
    return pd.DataFrame(rows).assign(p_holm=holm([r["p"] for r in rows]))


def detectable(versions: dict[str, Record], base: str, power: float = 0.8, level: float = 0.05) -> dict[str, float]:
    """Smallest difference in R@1 to ``base`` that a paired t test over the seeds finds with ``power``, by version.

    From the standard deviation s of the paired differences and S seeds, by the usual approximation
    (t₁₋α⁄₂ + t_power) s / √S, both quantiles with S − 1 degrees of freedom.
    """
    from scipy.stats import t

    found = {}
    for version, record in versions.items():
        if version != base:
            d = hits(record)[0].mean(1) - hits(versions[base])[0].mean(1)  # (S,)
            factor = t.ppf(1 - level / 2, len(d) - 1) + t.ppf(power, len(d) - 1)
            found[version] = float(factor * d.std(ddof=1) / math.sqrt(len(d)))
    return found


def rank_probabilities(
    versions: dict[str, Record], draws: int = 10_000, seed: int = 0
) -> tuple[np.ndarray, np.ndarray]:
    """What a study with one seed per version would have ranked, if each version's seed is drawn anew.

    Returns
    -------
    probabilities
        (V, V): chance that version v has rank k (0 is best by R@1; ties broken at random).
    orders
        int (draws, V): rank of each version in each draw.
    """
    rng = np.random.default_rng(seed)
    r1 = np.stack([hits(record)[0].mean(1) for record in versions.values()])  # (V, S)
    picked = np.take_along_axis(r1, rng.integers(0, r1.shape[1], (len(r1), draws)), axis=1).T  # (draws, V)
    noisy = picked + rng.uniform(0, 1e-9, picked.shape)
    orders = (-noisy).argsort(1).argsort(1)  # (draws, V)
    probabilities = np.stack([(orders == k).mean(0) for k in range(len(r1))], axis=1)  # (V, rank)
    return probabilities, orders


# ------------------------------------------------------------------------------------- checks of the propositions


def random_sides(
    dim: int, batch: int, image: int = 1, text: int = 1, seed: int = 0
) -> tuple[torch.Tensor, torch.Tensor]:
    """Random tokens (B, Nᵢ, D) and (B, Nₜ, D), float64."""
    generator = torch.Generator().manual_seed(seed)
    make = lambda n: torch.randn(batch, n, dim, generator=generator, dtype=torch.float64)  # noqa: E731
    return make(image), make(text)


def fresh(version: str, dim: int = 64, seed: int = 0) -> nn.Module:
    """An untrained module in ``eval`` mode, float64."""
    torch.manual_seed(seed)
    return VERSIONS[version](dim).double().eval()


def reads(version: str, tokens: int = 1) -> dict[str, bool]:
    """What the outputs depend on, found by moving an input: ``"I' of T"`` says whether I' depends on T, and so on."""
    module, (image, text) = fresh(version), random_sides(64, 4, tokens, tokens)
    other_image, other_text = random_sides(64, 4, tokens, tokens, seed=1)
    here, by_image, by_text = module(image, text), module(other_image, text), module(image, other_text)
    same = lambda a, b: bool(torch.allclose(a, b, atol=1e-9))  # noqa: E731
    return {
        "I' of I": not same(here.image, by_image.image),
        "I' of T": not same(here.image, by_text.image),
        "T' of I": not same(here.text, by_image.text),
        "T' of T": not same(here.text, by_text.text),
    }


def has_score_maps(version: str) -> bool:
    """Whether a version has learned queries and keys."""
    return any(name.startswith("query") for name, _ in fresh(version).named_parameters())


def score_maps_gradient(version: str, tokens: int) -> float:
    """Largest gradient of a random function of the outputs in the query maps: zero where nothing is attended to."""
    module, sides = fresh(version), random_sides(64, 8, tokens, tokens)
    generator = torch.Generator().manual_seed(2)
    loss = sum((x * torch.randn(x.shape, generator=generator, dtype=x.dtype)).sum() for x in module(*sides)[:2])
    loss.backward()
    return max(float(p.grad.abs().max()) for name, p in module.named_parameters() if name.startswith("query"))


def untrained_batch(version: str, batch: int = 24, tokens: int = 1, temperature: float = 0.07) -> dict[str, float]:
    """Losses and diagonals of a batch of *random* pairs in an untrained module, by both scorings.

    ``bound`` is log(1 + (B − 1) exp(−(1 − c)/τ)), with c the largest cosine off the diagonal: what the in-batch loss
    can't exceed where the diagonal is 1.
    """
    module, sides = fresh(version), random_sides(64, batch, tokens, tokens)
    with torch.no_grad():
        inside, alone = in_batch_cosines(module, *sides), pairwise_cosines(module, *sides)
    off = inside.masked_fill(torch.eye(batch, dtype=torch.bool), -1.0).max().item()
    return {
        "diagonal": inside.diagonal().min().item(),
        "in_batch_loss": contrastive_loss(inside / temperature).item(),
        "bound": math.log1p((batch - 1) * math.exp(-(1 - off) / temperature)),
        "pairwise_loss": contrastive_loss(alone / temperature).item(),
        "chance": math.log(batch),
        "spread": alone.std().item(),
    }


def image_values_matter(version: str, image: int, text: int) -> float:
    """How much the pair's score moves, at most over a batch, when all image tokens are replaced; the text stays."""
    module, (x, y) = fresh(version), random_sides(64, 16, image, text)
    other, _ = random_sides(64, 16, image, text, seed=3)
    with torch.no_grad():
        moved = pairwise_cosines(module, x, y) - pairwise_cosines(module, other, y)
    return float(moved.abs().max())


def kendall(a: Sequence[float], b: Sequence[float]) -> float:
    """Kendall's τ between two rankings, −1 to 1."""
    from scipy.stats import kendalltau

    return float(kendalltau(a, b).statistic)


def attention_parameters(version: str, dim: int = 64) -> int:
    """Parameters of the query, key, value and output maps alone."""
    maps = ("query", "key", "value", "out.")
    return sum(p.numel() for name, p in fresh(version, dim).named_parameters() if name.startswith(maps))


def spread_difference(versions: dict[str, Record], version: str, resamples: int = 10_000, seed: int = 0) -> Interval:
    """Standard deviation of R@1 over seeds, of one version minus the median of the others; bootstrap over seeds."""
    rng = np.random.default_rng(seed)
    r1 = {v: hits(record)[0].mean(1) for v, record in versions.items()}  # v → (S,)
    n = len(r1[version])
    drawn = rng.integers(0, n, (resamples, n))

    def effect(picked: np.ndarray) -> np.ndarray:  # (R, S) → (R,)
        spread = {v: x[picked].std(axis=1, ddof=1) for v, x in r1.items()}
        return spread[version] - np.median([s for v, s in spread.items() if v != version], axis=0)

    low, high = np.quantile(effect(drawn), [0.025, 0.975])
    mean = float(effect(np.arange(n)[None])[0])
    return Interval(mean, min(float(low), mean), max(float(high), mean), n, seeds=n, method="bootstrap over seeds")
