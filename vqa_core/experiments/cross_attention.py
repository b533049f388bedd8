"""Experiment ``cross_attention``: the modules v0 to v11 under the published protocol and under two without a leak.

``published``
    One token per side, in-batch scores, a random split over captions that lets pictures into both parts. Each run is
    then judged by sound evaluators, and by the published one with its defects (``forensic``).
``pairwise``
    One token per side; each score comes from its pair alone; splits share no picture.
``tokens``
    As ``pairwise``, with cells and words in place of one token: here attention has something to attend to.

Encoders are frozen. All seeds of a unit are trained in one vectorised pass, so a record holds them all.
"""

from __future__ import annotations

import copy
import importlib
import inspect
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from torch import nn

from vqa_core.evaluation.retrieval import TOLERANCE, median_rank, ranks, recall_both_ways
from vqa_core.experiments import Metric, Outcome, Spec
from vqa_core.experiments.caption_encoder import CAPTIONS, MatchingTokens, captioned, matching_tokens
from vqa_core.fusion.cross_attention import VERSIONS
from vqa_core.training.matching import Matcher, fit_together

REQUIRES = ("scene_encoders", "caption_encoder")
PROTOCOLS = ("published", "pairwise", "tokens")
BATCH = 24  # the published batch, in training and for accuracy in a batch
HEADLINES = ("r1", "median_rank", "in_batch_accuracy", "pairwise_accuracy", "leak")  # that ``run --unit`` prints
CURVE, CURVE_PICTURES = 6, 60  # points of a learning curve, pictures of its gallery
KEPT = ("tokens.v2", "tokens.v9")  # the first seed's weights are kept, for maps of attention
#: Which weights the published evaluator drops when it loads a checkpoint.
DROPPED = ("norm", "project.", "out.", "levels.")


@dataclass(frozen=True)
class Gallery:
    """Pictures that compete in a gallery, and how many galleries (of other pictures) are averaged."""

    pictures: int
    galleries: int


@dataclass(frozen=True)
class Model:
    """Which version, features of a token, seeds; ``module`` is ``"package.module:Class"`` for a version of your own."""

    version: str
    dim: int
    seeds: int
    module: str = ""


@dataclass(frozen=True)
class Recipe:
    """Training of a protocol: AdamW with a cosine schedule. ``leaky``: split over captions, not over pictures."""

    scoring: str
    leaky: bool
    steps: int
    learning_rate: float
    weight_decay: float = 0.01
    batch_size: int = BATCH


@dataclass(frozen=True)
class Config:
    """Sizes of a profile; ``dim`` and ``recipes`` by protocol."""

    gallery: Gallery
    seeds: int
    dim: dict[str, int] = field(hash=False)
    recipes: dict[str, Recipe] = field(hash=False)


PROFILES = {
    "smoke": Config(
        Gallery(20, 2),
        2,
        {"published": 16, "pairwise": 16, "tokens": 16},
        {
            "published": Recipe("in_batch", True, 10, 1e-3),
            "pairwise": Recipe("pairwise", False, 10, 1e-3),
            "tokens": Recipe("pairwise", False, 10, 1e-3),
        },
    ),
    "cpu": Config(
        Gallery(150, 2),
        5,
        {"published": 64, "pairwise": 64, "tokens": 32},
        {
            "published": Recipe("in_batch", True, 1665, 1e-4),  # 5 epochs of 8,000 captions
            "pairwise": Recipe("pairwise", False, 250, 1e-3),
            "tokens": Recipe("pairwise", False, 160, 5e-3, batch_size=16),
        },
    ),
    "gpu": Config(
        Gallery(1000, 5),
        10,
        {"published": 256, "pairwise": 256, "tokens": 256},
        {
            "published": Recipe("in_batch", True, 16665, 1e-4),
            "pairwise": Recipe("pairwise", False, 8000, 1e-3),
            "tokens": Recipe("pairwise", False, 8000, 1e-3),
        },
    ),
}


def spec_of(profile: str, protocol: str, version: str, module: str = "") -> Spec:
    """All seeds of a version under a protocol."""
    config = PROFILES[profile]
    model = Model(version, config.dim[protocol], config.seeds, module)
    unit = f"{protocol}.{version}"
    return Spec("cross_attention", unit, 0, profile, config.gallery, model, config.recipes[protocol])


def specs(profile: str) -> list[Spec]:
    """One spec for each protocol and version; what takes longest comes first, so that no worker waits for the last."""
    return [spec_of(profile, p, version) for p in reversed(PROTOCOLS) for version in reversed(VERSIONS)]


def specs_of_class(profile: str, name: str) -> list[Spec]:
    """Specs of a class of your own, ``package.module:Class``, under all protocols.

    The class takes ``dim``, keeps it as an attribute, and is called like those in
    :mod:`vqa_core.fusion.cross_attention`.
    """
    own_class(name)
    version = name.replace(":", ".").lower()
    return [spec_of(profile, protocol, version, name) for protocol in PROTOCOLS]


def own_class(name: str) -> Callable[..., nn.Module]:
    """The class that ``package.module:Class`` names.

    Raises
    ------
    ValueError
        When there is no such module or class; the message says where it was looked for.
    """
    path, _, attribute = name.partition(":")
    try:
        module = importlib.import_module(path)
    except ModuleNotFoundError as error:
        raise ValueError(
            f"no module {error.name!r} for {name!r}; run from the folder that holds it, or put that on PYTHONPATH"
        ) from error
    found = getattr(module, attribute, None)
    if not isinstance(found, type):
        raise ValueError(f"module {path!r} has no class {attribute!r}; write package.module:Class")
    return found


def file_of_class(name: str) -> Path:
    """The file that ``package.module:Class`` was written in: a change there makes its results stale."""
    return Path(inspect.getfile(own_class(name)))


def make_module(model: Model) -> nn.Module:
    """The cross-attention module of a spec."""
    return (own_class(model.module) if model.module else VERSIONS[model.version])(model.dim)


# --------------------------------------------------------------------------------------------------------- training


def draw_pairs(recipe: Recipe, pictures: int, seed: int) -> np.ndarray:
    """Which (picture, caption) pairs each step sees, int (steps, B, 2); no pair twice in a batch.

    A leaky split keeps 80 % of the *captions* for training, so that most pictures are on both sides; else each epoch
    shows every picture once, with a caption drawn anew.
    """
    rng = np.random.default_rng(seed)
    rows: list[np.ndarray] = []
    size = recipe.batch_size
    train = leaky_split(pictures, seed)[0] if recipe.leaky else None
    drawn_from = len(train) if recipe.leaky else pictures
    if drawn_from < size:
        raise ValueError(f"batch_size={size} is more than the {drawn_from} to draw from; take more pictures")
    while sum(map(len, rows)) < recipe.steps * size:
        if recipe.leaky:
            pairs = rng.permutation(train)
        else:
            pairs = np.stack([rng.permutation(pictures), rng.integers(0, CAPTIONS, pictures)], axis=1)
        rows.append(pairs[: len(pairs) // size * size])  # (whole batches, 2)
    return np.concatenate(rows)[: recipe.steps * size].reshape(recipe.steps, size, 2)


def leaky_split(pictures: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """80 % and 20 % of all (picture, caption) pairs at random, int (·, 2) each: the published split."""
    pairs = np.stack(np.divmod(np.arange(pictures * CAPTIONS), CAPTIONS), axis=1)
    pairs = np.random.default_rng([seed, 80]).permutation(pairs)
    cut = round(0.8 * len(pairs))
    return pairs[:cut], pairs[cut:]


def tokens_of(profile: str, split: str, protocol: str) -> MatchingTokens:
    """Tokens of a split as a protocol reads them; each feature has mean 0 and spread 1 over the training split."""
    of_train, tokens = (matching_tokens(profile, s) for s in ("train", split))
    if protocol != "tokens":
        of_train, tokens = of_train.as_one(), tokens.as_one()
    return tokens._replace(
        image=standardised(tokens.image, of_train.image[of_train.image_mask]),
        text=standardised(tokens.text, of_train.text[of_train.text_mask]),
    )


def standardised(x: torch.Tensor, like: torch.Tensor) -> torch.Tensor:
    """x (…, F), shifted and scaled so that ``like`` (n, F) would have mean 0 and spread 1 in each feature."""
    return (x - like.mean(0)) / like.std(0).clamp(min=1e-6)


def train(spec: Spec, tokens: MatchingTokens, on_step: Callable | None = None) -> list[Matcher]:
    """All seeds of a spec, trained together."""
    recipe, device = spec.training, torch.device("cuda" if torch.cuda.is_available() else "cpu")
    matchers = []
    for seed in range(spec.model.seeds):
        torch.manual_seed(seed)
        matchers.append(Matcher(tokens.image.shape[-1], tokens.text.shape[-1], make_module(spec.model)).to(device))
    pairs = np.stack([draw_pairs(recipe, len(tokens.image), s) for s in range(spec.model.seeds)], axis=1)
    pairs = torch.from_numpy(pairs).to(device)  # (steps, S, B, 2)
    tokens = MatchingTokens(*(t.to(device) for t in tokens))
    whole = tokens.image.shape[1] == tokens.text.shape[2] == 1  # nothing to mask

    def batch(step: int):
        picture, caption = pairs[step].unbind(-1)  # (S, B) each
        masks = (None, None) if whole else (tokens.image_mask[picture], tokens.text_mask[picture, caption])
        return tokens.image[picture], tokens.text[picture, caption], *masks

    after = None if on_step is None else lambda step, losses: on_step(step, losses, matchers)
    fit_together(matchers, batch, recipe.steps, recipe.scoring, recipe.learning_rate, recipe.weight_decay, after=after)
    return matchers


# ------------------------------------------------------------------------------------------------------- evaluation


@torch.inference_mode()
def pair_cosines(matcher: Matcher, tokens: MatchingTokens, rows: slice, scoring: str = "pairwise") -> np.ndarray:
    """Scores before the temperature, of the pictures in ``rows`` with the first caption of each, float (P, P).

    Cosines, because equal scores are to be told from nearly equal ones, and a small temperature magnifies rounding.
    """
    device = matcher.temperature.device
    sides = tokens.image[rows], tokens.text[rows, 0], tokens.image_mask[rows], tokens.text_mask[rows, 0]
    logits = matcher.eval()(*(t.to(device) for t in sides), scoring=scoring)
    return (logits * matcher.used_temperature()).float().cpu().numpy()


def batch_accuracy(cosines: np.ndarray) -> float:
    """Share of right answers, both ways, when every batch of 24 of a gallery is a question of its own."""
    starts = range(0, len(cosines) - BATCH + 1, BATCH) or [0]
    return float(np.mean([recall_both_ways(cosines[i : i + BATCH, i : i + BATCH], 1) for i in starts]))


def caption_test(cosines: np.ndarray, temperature: float) -> dict[str, float]:
    """The published test, for every picture of a gallery: five captions, of which the first is right.

    ``trained``: share of pictures whose own caption has the largest similarity (ties broken at random). Medians over
    pictures of the published numbers, which are logits: ``ratio`` and ``gap``, the largest by and minus the second
    largest, whichever they are; ``spread``, largest minus smallest; ``similarity``, the largest.
    """
    n = len(cosines)
    five = cosines[np.arange(n)[:, None], (np.arange(n)[:, None] + np.arange(5)) % n]  # (P, 5)
    more = five - five[:, :1]
    higher, equal = (more > TOLERANCE).sum(1), (np.abs(more) <= TOLERANCE).sum(1)
    best = -np.sort(-five, axis=1) / temperature  # (P, 5), descending
    return {
        "trained": float(np.mean(np.where(higher == 0, 1 / equal, 0))),
        "ratio": float(np.median(best[:, 0] / np.where(best[:, 1] == 0, 1e-9, best[:, 1]))),  # 0: as good as 0
        "gap": float(np.median(best[:, 0] - best[:, 1])),
        "spread": float(np.median(best[:, 0] - best[:, -1])),
        "similarity": float(np.median(best[:, 0])),
    }


def measure(
    matcher: Matcher, tokens: MatchingTokens, gallery: Gallery, first: int = 1
) -> tuple[dict[str, float], np.ndarray]:
    """All numbers of one trained matcher on held-out pictures, averaged over galleries; and its hits.

    Hits: is the right one among the ``first``? Float (galleries, 2, pictures): picture → caption, caption → picture.
    """
    found: list[dict[str, float]] = []
    hits = []
    for k in range(gallery.galleries):
        rows = slice(k * gallery.pictures, (k + 1) * gallery.pictures)
        cosines = pair_cosines(matcher, tokens, rows)  # (P, P)
        in_batch, alone = batch_accuracy(pair_cosines(matcher, tokens, rows, "in_batch")), batch_accuracy(cosines)
        one = {f"r{k}": recall_both_ways(cosines, k) for k in (1, 5, 10)}
        one |= {"median_rank": median_rank(cosines)}
        hits.append([ranks(s).recall_at(first) for s in (cosines, cosines.T)])
        one |= {"in_batch_accuracy": in_batch, "pairwise_accuracy": alone, "leak": in_batch - alone}
        one |= {"score_spread": float(cosines.std()), "similarity_of_pairs": float(np.diag(cosines).mean())}
        tested = caption_test(cosines, matcher.used_temperature().item())
        found.append(one | {f"five.{name}": value for name, value in tested.items()})
    return {name: float(np.mean([one[name] for one in found])) for name in found[0]}, np.array(hits, dtype=np.float32)


def with_defect(matcher: Matcher, model: Model, defect: str, seed: int) -> Matcher:
    """The matcher as the published evaluator would load it.

    ``"as_v0"``: the version is read from the file's name up to the last underscore; what is then not known becomes
    the module without parameters. ``"dropped"``: norms, projections and output maps are missing from what is loaded,
    so that they are as at the start, freshly drawn.
    """
    broken = copy.deepcopy(matcher)
    if defect == "as_v0":
        broken.module = VERSIONS["v0"](model.dim)
    elif defect == "dropped":
        torch.manual_seed(10_000 + seed)
        fresh = make_module(model)
        kept = {k: v for k, v in matcher.module.state_dict().items() if not any(part in k for part in DROPPED)}
        fresh.load_state_dict(kept, strict=False)
        broken.module = fresh
    else:
        raise ValueError(f"defect is {defect!r}, allowed are 'as_v0' and 'dropped'")
    return broken.to(matcher.temperature.device)


def cost(spec: Spec, matcher: Matcher, tokens: MatchingTokens) -> dict[str, float]:
    """Parameters of the module, and operations and seconds of a forward pass per pair, both on the CPU."""
    from torch.nn.attention import SDPBackend, sdpa_kernel
    from torch.utils.flop_counter import FlopCounterMode

    matcher = copy.deepcopy(matcher).cpu().eval()
    sides = tokens.image[:BATCH], tokens.text[:BATCH, 0], tokens.image_mask[:BATCH], tokens.text_mask[:BATCH, 0]
    pairs = len(sides[0]) ** 2
    with torch.inference_mode():
        with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
            matcher(*sides)
        shortest = float("inf")
        for _ in range(5):
            began = time.perf_counter()
            matcher(*sides)
            shortest = min(shortest, time.perf_counter() - began)
    return {
        "parameters": float(sum(p.numel() for p in matcher.module.parameters())),
        "flops": counter.get_total_flops() / pairs,
        "seconds": shortest / pairs,
    }


def run(spec: Spec) -> Outcome:
    """Train all seeds of a version under a protocol, and measure them on held-out pictures."""
    protocol = spec.unit.split(".")[0]
    tokens, val, test = (tokens_of(spec.profile, split, protocol) for split in ("train", "val", "test"))
    recipe, seeds = spec.training, spec.model.seeds
    every = -(-recipe.steps // CURVE)
    curve: list[dict] = []
    losses_since: list[list[float]] = []

    def watch(step: int, losses: list[float], matchers: list[Matcher]) -> None:
        losses_since.append(losses)
        if (step + 1) % every == 0 or step + 1 == recipe.steps:
            r1 = [recall_both_ways(pair_cosines(m, val, slice(0, CURVE_PICTURES)), 1) for m in matchers]
            curve.append({"step": step + 1, "loss": np.mean(losses_since, axis=0).tolist(), "val_r1": r1})
            losses_since.clear()

    start = time.perf_counter()
    matchers = train(spec, tokens, watch)
    seconds = time.perf_counter() - start
    found, hits = zip(*(measure(m, test, spec.data) for m in matchers), strict=True)
    if protocol == "published":
        rows = slice(0, spec.data.pictures)
        for seed, (matcher, row) in enumerate(zip(matchers, found)):
            for defect in ("as_v0", "dropped"):
                cosines = pair_cosines(with_defect(matcher, spec.model, defect, seed), test, rows)
                tested = caption_test(cosines, matcher.used_temperature().item())
                row |= {f"{defect}.{name}": value for name, value in tested.items()}
                row[f"{defect}.r1"] = recall_both_ways(cosines, 1)
            row["r1_shared"] = _recall_on_shared(matcher, tokens, spec, seed)
    arrays = {name: np.array([row[name] for row in found]) for name in found[0]}  # name → (S,)
    arrays["temperature"] = np.array([m.used_temperature().item() for m in matchers])
    metrics = {name: Metric(float(v.mean()), seeds) for name, v in arrays.items()}
    arrays["hits"] = np.stack(hits)  # (S, galleries, 2, pictures)
    if spec.unit in KEPT:
        arrays |= {f"model.{k}": v.cpu().numpy() for k, v in matchers[0].state_dict().items()}
    details = cost(spec, matchers[0], test) | {
        "protocol": protocol,
        "version": spec.model.version,
        "curve": curve,
        "seconds_per_step": seconds / recipe.steps / seeds,
        "gallery": spec.data.pictures,
        "queries": 2 * spec.data.pictures * spec.data.galleries,
        "data_hash": captioned(spec.profile, "test")[0].content_hash(),
    }
    return Outcome(metrics, arrays, details)


def _recall_on_shared(matcher: Matcher, tokens: MatchingTokens, spec: Spec, seed: int) -> float:
    """R@1 among held-out first captions of the leaky split, whose pictures were trained on (with other captions)."""
    held = leaky_split(len(tokens.image), seed)[1]
    held = held[held[:, 1] == 0][: spec.data.pictures]  # first captions, as in every gallery
    picture, caption = torch.from_numpy(held).unbind(1)
    some = MatchingTokens(
        tokens.image[picture],
        tokens.image_mask[picture],
        tokens.text[picture, caption].unsqueeze(1),
        tokens.text_mask[picture, caption].unsqueeze(1),
    )
    return recall_both_ways(pair_cosines(matcher, some, slice(None)), 1)
