"""From the records of ``cross_attention`` to tables, tests and the numerical checks of chapter 6's propositions."""

from __future__ import annotations

import math
import time
from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import nn

from vqa_core.evaluation.statistics import Difference, Interval, holm, mean_over_seeds, seeds_and_questions
from vqa_core.evaluation.statistics import paired_difference as _paired_difference
from vqa_core.experiments import cross_attention
from vqa_core.experiments.caption_encoder import MatchingTokens
from vqa_core.experiments.records import Record
from vqa_core.fusion.cross_attention import VERSIONS
from vqa_core.training.matching import Matcher, contrastive_loss, in_batch_cosines, pairwise_cosines

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
    """Protocol → version → record, both in the order of the chapter."""
    found = {tuple(record.spec.unit.split(".", 1)): record for record in records}
    protocols = [p for p in cross_attention.PROTOCOLS if p in {protocol for protocol, _ in found}]
    known = {version for _, version in found}
    versions = [*(v for v in VERSIONS if v in known), *sorted(known - set(VERSIONS))]
    return {p: {v: found[p, v] for v in versions if (p, v) in found} for p in protocols}


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


def cell(ablation: pd.DataFrame, protocol: str, version: str, key: str) -> dict[str, float]:
    """Mean, low, high and n of one cell of :func:`ablation`; ``key`` as in :data:`SHARES` and :data:`OTHERS`."""
    named = {"protocol": protocol, "version": version, "metric": (SHARES | OTHERS)[key]}
    (row,) = ablation[np.logical_and.reduce([ablation[k] == v for k, v in named.items()])].to_dict("records")
    return {k: row[k] for k in ("mean", "low", "high", "n")}


def curves(runs: dict[str, dict[str, Record]], versions: Sequence[str]) -> pd.DataFrame:
    """Loss and held-out R@1 along the training: columns protocol, version, quantity, step, mean, low, high, n."""
    import pandas as pd

    rows = []
    for protocol, of_version in runs.items():
        for version in versions:
            for point in of_version[version].details["curve"]:
                for quantity in ("loss", "val_r1"):
                    found = mean_over_seeds(point[quantity])
                    named = {"protocol": protocol, "version": version, "quantity": quantity, "step": point["step"]}
                    high = min(found.high, 1.0) if quantity == "val_r1" else found.high
                    rows.append(named | {"mean": found.mean, "low": max(found.low, 0.0), "high": high, "n": found.n})
    return pd.DataFrame(rows)


def forensics(published: pd.DataFrame, ablation: pd.DataFrame) -> pd.DataFrame:
    """What was published of each version, and what each evaluator finds in our models of ``published``."""
    import pandas as pd

    columns = {"sound": "five.trained", "as v0": "as_v0.trained", "weights dropped": "dropped.trained"}
    columns |= {"spread, sound": "five.spread", "spread, as v0": "as_v0.spread"}
    rows = []
    for row in published.itertuples():
        said = "five equal" if row.similarity_gap == 0 else row.verdict_in_text
        found = {name: cell(ablation, "forensic", row.version, key)["mean"] for name, key in columns.items()}
        rows.append({"version": row.version, "published": said} | found)
    return pd.DataFrame(rows)


def on_real_data(records: Iterable[Record]) -> pd.DataFrame:
    """Metrics of experiment ``matching_real``: columns data, protocol, version, metric, mean, low, high, n.

    R@10 has its interval over seeds and sentences (pictures of one sentence are one draw), the others over seeds.
    """
    import pandas as pd

    runs: dict[str, list[Record]] = {}
    for record in records:
        runs.setdefault(record.spec.unit, []).append(record)  # where encoders are trained, a record holds one seed
    rows = []
    for unit, seeds in runs.items():
        named = dict(zip(("data", "protocol", "version"), unit.split(".")))
        for key, metric in (SHARES | OTHERS).items():
            if key not in seeds[0].arrays:
                continue
            if key == "r10":
                x = np.concatenate([r.arrays["hits"] for r in seeds]).astype(np.float64)  # (S, galleries, 2, P)
                sentence = np.broadcast_to(seeds[0].arrays["group"][:, None], x.shape[1:]).reshape(-1)
                found = _share(seeds_and_questions(x.reshape(len(x), -1), sentence))
            else:
                found = mean_over_seeds(np.concatenate([r.arrays[key] for r in seeds]))
                found = _share(found) if key in SHARES else found
            interval = {k: getattr(found, k) for k in ("mean", "low", "high", "n")}
            rows.append(named | {"metric": metric} | interval)
    return pd.DataFrame(rows)


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


def lengths(short: dict[str, Record], long: dict[str, Record]) -> pd.DataFrame:
    """R@1 of some versions after two lengths of training: columns version, steps, mean, low, high, n."""
    import pandas as pd

    rows = []
    for version in sorted(long, key=list(short).index):
        for record in (short[version], long[version]):
            found = recall(record)
            row = {"version": version, "steps": record.spec.training.steps}
            rows.append(row | {"mean": found.mean, "low": found.low, "high": found.high, "n": found.n})
    return pd.DataFrame(rows)


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


def stability(orders: np.ndarray) -> dict[str, float]:
    """How often two studies with one seed per version agree: on the best version, and on the whole order.

    ``pairs`` is the number of pairs of studies, drawn from the rows of ``orders`` (draws, V).
    """
    half = len(orders) // 2
    one, other = orders[:half], orders[half : 2 * half]
    return {
        "same_best": float(np.mean(one.argmin(1) == other.argmin(1))),
        "same_order": float(np.mean((one == other).all(1))),
        "pairs": half,
    }


def load_matcher(record: Record, tokens: MatchingTokens) -> Matcher:
    """The first seed's model of a unit in :data:`~vqa_core.experiments.cross_attention.KEPT`."""
    weights = {k.removeprefix("model."): v for k, v in record.arrays.items() if k.startswith("model.")}
    module = cross_attention.make_module(record.spec.model)
    matcher = Matcher(tokens.image.shape[-1], tokens.text.shape[-1], module)
    matcher.load_state_dict({k: torch.from_numpy(v) for k, v in weights.items()})
    return matcher.eval()


@torch.inference_mode()
def attended(matcher: Matcher, tokens: MatchingTokens, row: int) -> np.ndarray:
    """Which cells take which words of a pair's first caption: (words, cells that are there); a word's weights sum to 1.

    The mean over heads.
    Each cell spreads its attention over the words; read per word, these weights say which cells take most of it.
    """
    one, cells, words = slice(row, row + 1), tokens.image_mask[row], tokens.text_mask[row, 0]
    sides = matcher.image_projection(tokens.image[one]), matcher.text_projection(tokens.text[one, 0])
    out = matcher.module(*sides, tokens.image_mask[one], tokens.text_mask[one, 0], need_weights=True)
    weight = out.image_weights[0].mean(0).T[words][:, cells].numpy()  # (T, M)
    return weight / weight.sum(1, keepdims=True)


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


def pooled_text_moves(version: str, image: int = 7, text: int = 5) -> float:
    """How much the direction of the mean of T' moves, at most, when all captions are replaced; pictures stay."""
    module, (x, y) = fresh(version), random_sides(64, 16, image, text)
    _, other = random_sides(64, 16, image, text, seed=3)
    with torch.no_grad():
        here, there = (nn.functional.normalize(module(x, captions).text.mean(1), dim=-1) for captions in (y, other))
    return float((here - there).abs().max())


def kendall(a: Sequence[float], b: Sequence[float]) -> float:
    """Kendall's τ between two rankings, −1 to 1."""
    from scipy.stats import kendalltau

    return float(kendalltau(a, b).statistic)


def gain_of_training_together(profile: str, protocol: str, version: str, steps: int = 10) -> float:
    """Seconds for the seeds of a unit one after another, divided by those for all in one vectorised pass.

    The better of two tries each, so that a pause of the machine is not measured.
    """
    spec = cross_attention.spec_of(profile, protocol, version)
    tokens = cross_attention.tokens_of(profile, "train", protocol)

    def seconds(seeds: int) -> float:
        some = replace(spec, model=replace(spec.model, seeds=seeds), training=replace(spec.training, steps=steps))
        tries = []
        for _ in range(2):
            began = time.perf_counter()
            cross_attention.train(some, tokens)
            tries.append(time.perf_counter() - began)
        return min(tries)

    return spec.model.seeds * seconds(1) / seconds(spec.model.seeds)


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
