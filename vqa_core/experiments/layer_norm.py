"""Experiment ``layer_norm``: the same joint transformer with its layer norms before or after the residual sums.

Post-LN, norm(x + f(x)), is the transformer as it was published; Pre-LN, x + f(norm(x)) with one norm at the end, came
later. Xiong et al. 2020 (arXiv 2002.04745) show that at initialisation the gradient of the top layers of a Post-LN
network is large and that of a Pre-LN network falls with its depth, and conclude that only Post-LN needs warm-up.

Both variants read the frozen tokens of ``scene_encoders``, start from the same weights and see the same batches; each
is trained with and without warm-up at the rates of :data:`RATES`. "The same learning rate" is :data:`SAME_RATE`, the
middle one, fixed before the first run. Without warm-up the first step has the full rate, and the cosine follows.

Training is short, a few passes over a few thousand questions of one family, so that the whole experiment takes minutes;
its answer about "the end" of training holds for this length.

A run whose loss or gradient becomes NaN or infinite is a result: from then on its model answers nothing, so it is
counted as the answer that the training questions have most often, whatever is asked (the level of chance).
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from vqa_core.encoders.tokens import CachedTokens
from vqa_core.evaluation.statistics import Difference, mean_over_seeds, paired_difference
from vqa_core.experiments import Metric, Outcome, Spec
from vqa_core.experiments.fusion import answer_vocabulary, feed_of
from vqa_core.experiments.readout import accuracy_table, by_unit, row
from vqa_core.experiments.records import Record
from vqa_core.experiments.scene_encoders import PROFILES as ENCODERS
from vqa_core.experiments.scene_encoders import MaskedCells, SceneSizes, scene_split
from vqa_core.fusion.output import FusionOutput, as_tokens
from vqa_core.heads.classifier import LinearHead
from vqa_core.model import VQAModel
from vqa_core.training.feed import Feed
from vqa_core.training.loop import NotFiniteError, Training, answer_loss, fit, pick_device, predict

if TYPE_CHECKING:
    import pandas as pd

REQUIRES = ("scene_encoders",)
NORMS = {"pre": "Pre-LN", "post": "Post-LN"}
WARMUPS = {"warm": 0.2, "cold": 0.0}  # shares of all steps; a share of 0 leaves one step, at the full rate
RATES = (5e-4, 2e-3, 8e-3)
SAME_RATE = RATES[1]  # at which X14a compares; fixed beforehand
FAMILY = "attribute_query"  # "what colour is the square?": learnt in fewer steps than existence or counting


@dataclass(frozen=True)
class Sizes:
    """Which questions are used: those of one family about the first pictures of each split of the scenes."""

    scenes: SceneSizes
    train: int
    val: int
    test: int
    family: str = FAMILY


@dataclass(frozen=True)
class Model:
    """A joint transformer: where its norms are (``pre`` or ``post``), and its sizes."""

    norm: str
    layers: int
    dim: int
    heads: int
    hidden: int

    def __post_init__(self) -> None:
        if self.norm not in NORMS:
            raise ValueError(f"norm is {self.norm!r}, allowed are {', '.join(map(repr, NORMS))}")
        if self.layers < 1 or self.dim % self.heads:
            raise ValueError(
                f"layers={self.layers}, dim={self.dim}, heads={self.heads}: "
                "give at least one layer, and a dim that is a multiple of heads"
            )


@dataclass(frozen=True)
class Config:
    """Sizes of a profile; norm, rate and warm-up of ``model`` and ``training`` are replaced unit by unit."""

    seeds: int
    pictures: tuple[int, int, int]  # train, val, test; one question about each
    model: Model
    training: Training


PROFILES = {
    "smoke": Config(2, (40, 20, 20), Model("pre", 6, 16, 2, 32), Training(epochs=1, batch_size=16)),
    "cpu": Config(5, (2800, 800, 2000), Model("pre", 6, 32, 4, 64), Training(epochs=4, batch_size=64)),
    "gpu": Config(10, (40000, 2000, 8000), Model("pre", 12, 256, 8, 1024), Training(epochs=10, batch_size=256)),
}


def specs(profile: str) -> list[Spec]:
    """One spec for each place of the norms, warm-up, rate and seed; units are ``{norm}.{warm-up}.{rate}``."""
    config, scenes = PROFILES[profile], ENCODERS[profile].data
    return [
        Spec(
            "layer_norm",
            unit_of(norm, warmup, rate),
            seed,
            profile,
            Sizes(scenes, *config.pictures),
            replace(config.model, norm=norm),
            replace(config.training, learning_rate=rate, warmup=WARMUPS[warmup]),
        )
        for seed in range(config.seeds)
        for norm in NORMS
        for warmup in WARMUPS
        for rate in RATES
    ]


def unit_of(norm: str, warmup: str, rate: float) -> str:
    """Name of a unit.

    >>> unit_of("post", "cold", 2e-3)
    'post.cold.0.002'
    """
    return f"{norm}.{warmup}.{rate:g}"


# ---------------------------------------------------------------------------------------------------------- the model


class JointEncoder(nn.Module):
    """Transformer encoder over [answer token ; image tokens ; text tokens], Pre-LN or Post-LN; the first token is read.

    Weight matrices start as in Glorot and Bengio 2010 (Xavier, uniform), which the paper's theorem assumes. Each layer
    draws its own: ``nn.TransformerEncoder`` would copy one layer, and all would start alike.

    Parameters
    ----------
    image_dim, text_dim
        Features of the tokens on both sides.
    model
        Place of the norms, and sizes.
    """

    def __init__(self, image_dim: int, text_dim: int, model: Model) -> None:
        super().__init__()
        self.image_dim, self.text_dim, self.out_dim = image_dim, text_dim, model.dim
        pre = model.norm == "pre"
        self.image, self.text = nn.Linear(image_dim, model.dim), nn.Linear(text_dim, model.dim)
        self.answer = nn.Parameter(torch.randn(1, 1, model.dim))
        self.layers = nn.ModuleList(
            nn.TransformerEncoderLayer(
                model.dim, model.heads, model.hidden, dropout=0.0, batch_first=True, norm_first=pre
            )
            for _ in range(model.layers)
        )
        for name, p in self.named_parameters():
            if p.ndim == 2 and name.startswith("layers"):
                nn.init.xavier_uniform_(p)
        self.norm = nn.LayerNorm(model.dim) if pre else nn.Identity()  # Post-LN ends with a norm already

    def forward(
        self,
        image_tokens: Tensor,
        text_tokens: Tensor,
        image_mask: Tensor | None = None,
        text_mask: Tensor | None = None,
    ) -> FusionOutput:
        """Fuse; shapes as in :meth:`vqa_core.fusion.vector.VectorFusion.forward`."""
        image = as_tokens("image", image_tokens, self.image_dim, image_mask)  # (B, Nᵢ, image_dim)
        text = as_tokens("text", text_tokens, self.text_dim, text_mask)  # (B, Nₜ, text_dim)
        image, text = self.image(image), self.text(text)  # (B, Nᵢ, D), (B, Nₜ, D)
        answer = self.answer.expand(len(image), -1, -1)  # (B, 1, D)
        parts, masks = (answer, image, text), (None, image_mask, text_mask)
        x = torch.cat(parts, dim=1)  # (B, 1 + Nᵢ + Nₜ, D)
        padding = torch.cat(
            [x.new_zeros(p.shape[:2], dtype=torch.bool) if m is None else ~m for p, m in zip(parts, masks)], dim=1
        )  # (B, 1 + Nᵢ + Nₜ), True where torch is not to look
        for layer in self.layers:
            x = layer(x, src_key_padding_mask=padding)  # (B, 1 + Nᵢ + Nₜ, D)
        return FusionOutput(self.norm(x[:, 0]), image, text)  # (B, D)


def build(model: Model, image_dim: int, text_dim: int, answers: int) -> VQAModel:
    """The model of a run: cached tokens, the joint encoder, a linear head."""
    fusion = JointEncoder(image_dim, text_dim, model)
    return VQAModel(MaskedCells(image_dim), CachedTokens(text_dim), fusion, LinearHead(model.dim, answers))


def gradient_norms(model: VQAModel, feed: Feed, questions: int = 256) -> np.ndarray:
    """Norm of the loss's gradient with respect to each layer's second feed-forward weight, float (L,), bottom first.

    Nothing is trained: this is what figure 3 of Xiong et al. 2020 shows at initialisation. The loss is the mean over
    the first ``questions`` of the feed (over all, where there are fewer). Gradients are cleared afterwards.
    """
    batch = feed.batch(range(min(questions, len(feed)))).to(next(model.parameters()).device)
    weights = [layer.linear2.weight for layer in model.fusion.layers]
    gradients = torch.autograd.grad(answer_loss(model.train()(*batch[:3]).logits, batch.answers), weights)
    return torch.stack([g.norm() for g in gradients]).cpu().numpy()


# ---------------------------------------------------------------------------------------------------------- the runs


def part_of(profile: str, split: str, pictures: int, family: str = FAMILY) -> Feed:
    """Questions of a family about the first pictures of a split.

    Image tokens are the cells that hold an object; the one text token is the sum of the question's slots, which do not
    overlap, so that nothing is lost by it.
    """
    found, whole = scene_split(profile, split), feed_of(profile, split, "grid", "vector")
    if pictures > len(whole.pictures):
        raise ValueError(
            f"{pictures} pictures of split {split!r} are asked for, profile {profile!r} has {len(whole.pictures)}; "
            "lower Config.pictures or raise the sizes of scene_encoders"
        )
    asked = np.array([s.family == family for s in found])  # (all questions of the split,)
    rows = np.flatnonzero(asked & (whole.picture_index.numpy() < pictures))  # (Q,)
    return Feed(
        whole.pictures,
        whole.picture_index[rows],
        whole.words,
        whole.word_mask,
        whole.answers[rows],
        whole.question_index[rows],
    )


def run(spec: Spec) -> Outcome:
    """Gradients at initialisation, then train one variant with one seed, and answer the test questions.

    ``details["diverged"]`` says whether the run ended in NaN; its history then ends with the last finite epoch.
    """
    sizes, profile = spec.data, spec.profile
    train, validation, test = (
        part_of(profile, split, getattr(sizes, split), sizes.family) for split in ("train", "val", "test")
    )
    answers = answer_vocabulary(profile).symbols
    torch.manual_seed(spec.seed)
    model = build(spec.model, train.pictures.shape[-1], train.words.shape[-1], len(answers)).to(pick_device())
    norms = gradient_norms(model, train)
    history, score = train_or_diverge(model, train, validation, spec)
    diverged = score is None
    usual = train.answers[train.answers >= 0].mode().values  # the answer given most often
    if diverged:
        score = float((validation.answers == usual).float().mean())
    best = usual.expand(len(test)) if diverged else predict(model, test).argmax(1)  # (Q,)
    right = (best == test.answers).numpy()  # an answer outside the vocabulary is −100, and wrong
    arrays = {
        "predicted_test": best.numpy().astype(np.int16),
        "correct_test": right,
        "picture_test": test.picture_index.numpy().astype(np.int32),
        "gradient_norm": norms,
    }
    metrics = {
        "accuracy_val": Metric(score, len(validation)),
        "accuracy_test": Metric(float(right.mean()), len(right)),
    }
    details = {
        "history": history,
        "diverged": diverged,
        "parameters": sum(p.numel() for p in model.parameters()),
        "questions": {"train": len(train), "val": len(validation), "test": len(test)},
        "answers": answers,
        "data_hash": scene_split(profile, "test").content_hash(),
    }
    return Outcome(metrics, arrays, details)


def train_or_diverge(
    model: VQAModel, train: Feed, validation: Feed, spec: Spec
) -> tuple[list[dict[str, float]], float | None]:
    """History, and the best validation accuracy; None in its place when loss or gradient became NaN or infinite.

    The loop keeps its state of every epoch in a temporary folder, from which the history of a diverged run is read.
    """
    with tempfile.TemporaryDirectory() as folder:
        state = Path(folder) / "state.pt"
        try:
            label = f"{spec.unit}, seed {spec.seed}"
            fitted = fit(model, train, validation, spec.training, spec.seed, checkpoint=state, label=label)
        except NotFiniteError:
            if not state.is_file():  # in the first epoch
                return [], None
            return torch.load(state, map_location="cpu", weights_only=True)["fit"]["history"], None
    return fitted.history, fitted.best_score


# ----------------------------------------------------------------------------------------------------------- readout


class Comparison(NamedTuple):
    """What :func:`comparison` returns.

    Attributes
    ----------
    without_warmup
        X14a: accuracy of Pre-LN minus that of Post-LN, both without warm-up and at the same rate.
    with_warmup
        X14b: accuracy of Post-LN minus that of Pre-LN, both with warm-up and each at its best rate on validation.
    best
        Norm → unit that X14b takes.
    table
        Accuracy of every unit: columns unit, mean, low, high, n (questions), seeds, diverged (runs).
    """

    without_warmup: Difference
    with_warmup: Difference
    best: dict[str, str]
    table: pd.DataFrame


def comparison(records: Iterable[Record], rate: float = SAME_RATE, rates: Sequence[float] = RATES) -> Comparison:
    """Both claims from the records of this experiment; differences are paired by seed and question.

    Parameters
    ----------
    records
        Every unit with the same seeds.
    rate
        Learning rate of X14a.
    rates
        Learning rates among which X14b chooses, by mean validation accuracy; the first of equals.

    Raises
    ------
    ValueError
        A unit is missing, or units differ in their seeds or test questions.
    """
    found = by_unit(records)
    needed = [unit_of(norm, "warm", r) for norm in NORMS for r in rates] + [unit_of(n, "cold", rate) for n in NORMS]
    if missing := [unit for unit in needed if unit not in found]:
        raise ValueError(f"no records of {', '.join(missing)}; run the whole experiment layer_norm")
    pictures, seeds = found[needed[0]][0].arrays["picture_test"], [r.spec.seed for r in found[needed[0]]]
    for unit, some in found.items():
        if [r.spec.seed for r in some] != seeds:
            raise ValueError(
                f"{unit} has seeds {[r.spec.seed for r in some]}, {needed[0]} has {seeds}; run the missing"
            )
        if any(not np.array_equal(r.arrays["picture_test"], pictures) for r in some):
            raise ValueError(f"{unit} was tested on other questions than {needed[0]}; run layer_norm again")
    correct = {unit: np.stack([r.arrays["correct_test"] for r in some]) for unit, some in found.items()}  # (S, Q) each

    def validation(unit: str) -> float:
        return float(np.mean([r.metrics["accuracy_val"].value for r in found[unit]]))

    best = {norm: max((unit_of(norm, "warm", r) for r in rates), key=validation) for norm in NORMS}
    cold = {norm: correct[unit_of(norm, "cold", rate)] for norm in NORMS}
    table = accuracy_table(correct, pictures).drop(columns="family")
    return Comparison(
        paired_difference(cold["pre"], cold["post"], pictures),
        paired_difference(correct[best["post"]], correct[best["pre"]], pictures),
        best,
        table.assign(diverged=[sum(r.details["diverged"] for r in found[unit]) for unit in table["unit"]]),
    )


def gradient_table(records: Iterable[Record]) -> pd.DataFrame:
    """Gradient norms at initialisation: columns norm, layer (from 1, bottom first), mean, low, high, n (seeds).

    Runs of one norm and seed start alike, whatever their rate and warm-up; each start counts once.
    """
    import pandas as pd

    starts: dict[str, dict[int, np.ndarray]] = {}
    for r in records:
        starts.setdefault(r.spec.model.norm, {})[r.spec.seed] = r.arrays["gradient_norm"]  # (L,)
    return pd.DataFrame(
        [
            {"norm": norm, "layer": layer, **row(mean_over_seeds(values))}
            for norm, of in starts.items()
            for layer, values in enumerate(np.stack(list(of.values())).T, start=1)  # (L, S)
        ]
    )
