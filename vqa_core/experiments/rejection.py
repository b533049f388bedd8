"""Experiment ``rejection``: heads that know when not to answer, on scenes, phantoms and VQA-RAD.

A unit is ``data.head`` with, where it is not the default, ``.key=value`` parts behind it, as ``phantoms.full.n100``. On
``scenes`` the head alone is trained, on fused vectors that are the same for all; on ``phantoms`` and ``vqa_rad``
everything behind the frozen picture encoders is (words, BAN, head), with the same schedule for every head. No epoch is
chosen: all have the same number of steps, and the last one counts. AdamW's weight decay is off throughout: it would
pull the ρ of a Bayes layer up.

One run keeps, for each method that it gives (a deterministic head gives four) and each part of the questions, what was
answered, how probable it was, and the three uncertainties; curves, thresholds and promises are computed from these by
:mod:`~vqa_core.experiments.rejection_readout`.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise

import numpy as np
import torch
from torch import Tensor, nn

from vqa_core.evaluation.calibration import fit_temperature
from vqa_core.evaluation.rejection import empirical_threshold, learn_then_test, sgr
from vqa_core.evaluation.uncertainty import entropy_split
from vqa_core.experiments import Metric, Outcome, Spec, medical
from vqa_core.experiments.rejection_tokens import PROFILES as TOKENS
from vqa_core.experiments.rejection_tokens import fused_of, material_of
from vqa_core.experiments.rejection_tokens import specs as token_specs
from vqa_core.fusion.output import FusionOutput
from vqa_core.heads.bayes import (
    BayesHead,
    BayesLinear,
    Deterministic,
    Ensemble,
    LastLayerLaplace,
    MCDropout,
    Posterior,
    Predictor,
    negative_elbo,
)
from vqa_core.heads.classifier import MLPHead
from vqa_core.model import VQAModel, VQAOutput
from vqa_core.training.feed import Feed
from vqa_core.training.loop import Training, accuracy, answer_loss, fit

REQUIRES = ("rejection_tokens",)
DATASETS = {"scenes": "scenes", "phantoms": "phantoms", "vqa_rad": "VQA-RAD"}
#: Head → the methods that its runs give.
HEADS = {
    "deterministic": ("deterministic", "temperature", "mc_dropout", "laplace"),
    "last": ("last",),
    "full": ("full",),
    "bound": ("bound",),
    "ensemble": ("ensemble",),
    "short_ensemble": ("short_ensemble",),
}
METHODS = {
    "deterministic": "softmax",
    "temperature": "softmax, temperature",
    "mc_dropout": "MC dropout",
    "laplace": "Laplace, last layer",
    "last": "Bayes, last layer",
    "full": "Bayes, whole head",
    "bound": "Bayes, whole head, α = 1",
    "short_ensemble": "ensemble, same compute",
    "ensemble": "ensemble",
}
KEPT = "scenes.full"  # its records hold the weights, for ``ask --max-risk``
SETS_OF = ("temperature", "full")  # methods whose probabilities are kept, for conformal sets
GROWING = (1, 2, 5, 10, 20, 50, 100)  # samples at which the convergence of an estimate is looked at
PRUNED = (0.0, 0.25, 0.5, 0.75, 0.9, 0.95, 0.98)  # shares of weights that are set to zero


@dataclass(frozen=True)
class Head:
    """What is put behind the fused vector, and how it is trained.

    Attributes
    ----------
    kind
        One of :data:`HEADS`.
    hidden, dropout
        Width of the hidden layer; dropout behind it in heads that are not Bayesian.
    prior_sigma, alpha
        Standard deviation of the prior, and weight of the KL divergence (1 is the bound).
    members
        Of an ensemble; a short one trains all of them in the time of one.
    samples
        Drawn from the posterior for each question.
    """

    kind: str
    hidden: int
    dropout: float
    prior_sigma: float
    alpha: float
    members: int
    samples: int


@dataclass(frozen=True)
class Data:
    """The questions of the tokens' record ``name``; those for training are about ``pictures`` pictures, or all."""

    name: str
    pictures: int | None = None


@dataclass(frozen=True)
class Simulation:
    """A world in which the risk of every answer is known: confidence c is uniform, the risk of an answer (1 − c)^power.

    ``questions`` are the sizes of calibration sets, ``promises`` the risks that are promised, each ``repeats`` times.
    """

    questions: tuple[int, ...]
    promises: tuple[float, ...]
    repeats: int
    power: float = 1.5
    delta: float = 0.05


@dataclass(frozen=True)
class Config:
    """Sizes of a profile.

    Attributes
    ----------
    seeds, sweep_seeds
        Of the heads, and of the sweep.
    head
        The defaults; ``kind`` is replaced.
    training
        Data set → schedule.
    amounts
        Numbers of training phantoms besides the default, ``pictures``, and their schedules.
    sigmas, alphas
        The sweep over ``prior_sigma`` and ``alpha``, on phantoms.
    """

    seeds: int
    sweep_seeds: int
    head: Head
    training: dict[str, Training]
    pictures: int
    amounts: dict[int, Training]
    sigmas: tuple[float, ...]
    alphas: tuple[float, ...]
    simulation: Simulation


def _training(epochs: int, batch_size: int = 128, rate: float = 1e-2) -> Training:
    return Training(epochs=epochs, batch_size=batch_size, learning_rate=rate, weight_decay=0.0)


PROFILES = {
    "smoke": Config(
        2,
        1,
        Head("full", 16, 0.1, 0.1, 1e-4, 2, 5),
        {"scenes": _training(2, 64), "phantoms": _training(2, 32), "vqa_rad": _training(2, 32)},
        20,
        {10: _training(2, 32), 40: _training(1, 32)},
        (0.1, 1.0),
        (1e-4, 1.0),
        Simulation((100, 400), (0.1,), 40),
    ),
    "cpu": Config(
        5,
        3,
        Head("full", 64, 0.1, 0.1, 1e-4, 3, 30),
        {"scenes": _training(3, 256, 4e-3), "phantoms": _training(6), "vqa_rad": _training(9)},
        400,
        {100: _training(14), 1600: _training(3)},
        (0.01, 0.1, 1.0),
        (1e-4, 1e-2, 1.0),
        Simulation((200, 1000, 5000), (0.05, 0.1), 1000),
    ),
    "gpu": Config(
        10,
        5,
        Head("full", 1024, 0.1, 0.1, 1e-4, 5, 100),
        {
            "scenes": _training(10, 512, 2e-3),
            "phantoms": _training(25, 128, 2e-3),
            "vqa_rad": _training(30, 64, 1e-3),
        },
        4000,
        {100: _training(80, 128, 2e-3), 400: _training(60, 128, 2e-3), 10000: _training(16, 128, 2e-3)},
        (0.01, 0.03, 0.1, 0.3, 1.0),
        (0.0, 1e-6, 1e-5, 1e-4, 1e-3, 1e-2, 0.1, 1.0),
        Simulation((200, 1000, 5000, 20000), (0.01, 0.05, 0.1), 1000),
    ),
}


def specs(profile: str) -> list[Spec]:
    """Every head on every data set that is here, the sweep, the amounts, and the simulation."""
    config = PROFILES[profile]
    here = [s.unit for s in token_specs(profile)]
    units: dict[str, tuple[Data, Head, Training, int]] = {}
    for name in here:
        data = Data(name, config.pictures if name == "phantoms" else None)
        for kind in HEADS:
            head = replace(config.head, kind=kind)
            if kind == "bound":  # the true evidence bound
                head = replace(head, alpha=1.0)
            units[f"{name}.{kind}"] = (data, head, config.training[name], config.seeds)
    for pictures, training in config.amounts.items():
        for kind in ("deterministic", "full"):
            data, head = Data("phantoms", pictures), replace(config.head, kind=kind)
            units[f"phantoms.{kind}.n{pictures}"] = (data, head, training, config.seeds)
    for sigma in config.sigmas:
        for alpha in config.alphas:
            head = replace(config.head, kind="full", prior_sigma=sigma, alpha=alpha)
            data, training = Data("phantoms", config.pictures), config.training["phantoms"]
            if sigma != config.head.prior_sigma or alpha not in (config.head.alpha, 1.0):  # these are full and bound
                units[f"phantoms.full.sigma{sigma:g}.alpha{alpha:g}"] = (data, head, training, config.sweep_seeds)
    found = [
        Spec("rejection", unit, seed, profile, data, head, training)
        for seed in range(config.seeds)
        for unit, (data, head, training, seeds) in units.items()
        if seed < seeds
    ]
    return [*found, Spec("rejection", "simulation", 0, profile, config.simulation)]


def run(spec: Spec) -> Outcome:
    """Train one head with one seed and let it answer everything; or the simulation."""
    return _simulate(spec.data) if spec.unit == "simulation" else _answer_all(spec)


# ------------------------------------------------------------------------------------------------------------ training


class HeadOnly(nn.Module):
    """A head behind fused vectors that are already there."""

    def __init__(self, head: nn.Module) -> None:
        super().__init__()
        self.head = head

    def forward(self, fused: Tensor, words: Tensor, word_mask: Tensor) -> VQAOutput:
        """Fused vectors (B, 1, D) → logits (B, answers); words are not read."""
        fused = fused.squeeze(1)  # (B, D)
        return VQAOutput(self.head(fused), FusionOutput(fused, fused, fused))


def build(head: Head, data: Data, profile: str, words: int, answers: int, feed: Feed) -> VQAModel | HeadOnly:
    """The model of a run; behind the picture encoders it is the grid's of chapter 7 with MEVF's encoders and BAN."""
    width = feed.pictures.shape[-1]
    dim = width if data.name == "scenes" else TOKENS[profile].sizes.dim
    if head.kind in ("last", "full", "bound"):
        of = "last" if head.kind == "last" else "all"
        last = BayesHead(dim, answers, head.hidden, bayes=of, prior_sigma=head.prior_sigma)
    else:
        last = MLPHead(dim, answers, head.hidden, head.dropout)
    if data.name == "scenes":
        return HeadOnly(last)
    sizes = TOKENS[profile].sizes
    both = medical.Model(medical.PAIR, "concat", "ban", "base", sizes)
    image = medical.JoinedTokens([width // 2] * 2, "concat", sizes.dim)
    text = medical.RecurrentText(words, sizes.text_dim, "gru", sizes.embedding_dim, dropout=sizes.dropout)
    return VQAModel(image, text, medical.fusion_of(both, image.out_dim), last)


def loss_of(head: Head, questions: int) -> Callable[[nn.Module, object], Tensor]:
    """The loss of ``fit``: cross-entropy, or the negative ELBO of a Bayes head."""

    def loss(model, batch) -> Tensor:
        logits = model(*batch[:3]).logits
        if isinstance(model.head, BayesHead):
            return negative_elbo(logits, batch.answers, model.head.kl(), questions, head.alpha)
        return answer_loss(logits, batch.answers)

    return loss


def parts_of(data: Data, profile: str) -> dict[str, Feed]:
    """Parts of a data set, the training part cut to the first ``data.pictures`` pictures."""
    material = material_of(profile, data.name)
    feeds = dict(material.feeds)
    if data.pictures is not None:
        first = np.unique(material.pictures["train"])[: data.pictures]
        feeds["train"] = _rows(feeds["train"], np.flatnonzero(np.isin(material.pictures["train"], first)))
    return feeds


def _rows(feed: Feed, rows: np.ndarray) -> Feed:
    keep = torch.from_numpy(rows)
    index = feed.picture_index[keep], feed.question_index[keep]
    return Feed(feed.pictures, index[0], feed.words, feed.word_mask, feed.answers[keep], index[1])


def train(spec: Spec, feeds: dict[str, Feed]) -> tuple[list[nn.Module], list[list[dict[str, float]]], float]:
    """The trained model, or the members of an ensemble; of each its epochs as rows; seconds of training."""
    head, material = spec.model, material_of(spec.profile, spec.data.name)
    is_ensemble = "ensemble" in head.kind
    training = spec.training
    if head.kind == "short_ensemble":
        training = replace(training, epochs=max(1, round(training.epochs / head.members)))
    questions = int((feeds["train"].answers >= 0).sum())
    models, histories, start = [], [], time.perf_counter()
    for member in range(head.members if is_ensemble else 1):
        seed = 1000 * (member + 1) + spec.seed if is_ensemble else spec.seed
        torch.manual_seed(seed)
        answers = len(material.details["answers"])
        model = build(head, spec.data, spec.profile, material.details.get("words", 0), answers, feeds["train"])
        curve: list[float] = []

        def score(m: nn.Module, validation: Feed, curve=curve) -> float:
            curve.append(accuracy(m, validation))
            return float(len(curve))  # so that the last epoch is kept

        found = fit(
            model,
            feeds["train"],
            feeds["val"],
            training,
            seed,
            loss=loss_of(head, questions),
            score=score,
            label=f"{spec.unit}, seed {spec.seed}",
        )
        models.append(model.cpu().eval().requires_grad_(False))
        histories.append([row | {"validation": right} for row, right in zip(found.history, curve)])
    return models, histories, time.perf_counter() - start


# ----------------------------------------------------------------------------------------------------------- answering


class ReadsFused(nn.Module):
    """Member k of an ensemble: reads column block k of the members' fused vectors, which stand side by side."""

    def __init__(self, head: nn.Module, block: slice) -> None:
        super().__init__()
        self.head, self.block = head, block

    def forward(self, fused: Tensor) -> Tensor:
        """(B, K · D) → logits (B, answers)."""
        return self.head(fused[:, self.block])


def predictors_of(head: Head, models: Sequence[nn.Module], fused: dict[str, Tensor], val: Feed) -> dict[str, Predictor]:
    """What answers, by method; temperature and curvature are learned from validation and training questions.

    Parameters
    ----------
    head
        What was trained.
    models
        One, or the members of an ensemble.
    fused
        Part → fused vectors (Q, D), of an ensemble those of all members side by side.
    val
        The validation questions.
    """
    if "ensemble" in head.kind:
        width = fused["val"].shape[1] // len(models)
        blocks = [slice(k * width, (k + 1) * width) for k in range(len(models))]
        return {head.kind: Ensemble([ReadsFused(m.head, block) for m, block in zip(models, blocks)])}
    (model,) = models
    if isinstance(model.head, BayesHead):
        return {head.kind: model.head}
    reachable = val.answers >= 0
    with torch.no_grad():
        logits = model.head(fused["val"][reachable])  # (Q', A)
    temperature = fit_temperature(logits.numpy(), val.answers[reachable].numpy())
    layers = model.head.layers
    return {
        "deterministic": Deterministic(model.head),
        "temperature": Deterministic(model.head, temperature),
        "mc_dropout": MCDropout(model.head),
        "laplace": LastLayerLaplace(layers[:-1], layers[-1], fused["train"]),
    }


def samples_of(method: str, head: Head) -> int:
    """How many samples a method is asked for; a point estimate has one opinion, an ensemble one per member."""
    if method in ("deterministic", "temperature"):
        return 1
    return head.members if "ensemble" in method else head.samples


def answered(
    predictor: Predictor, fused: Tensor, answers: Tensor, samples: int, keep_mean: bool = False, chunk: int = 512
) -> dict[str, np.ndarray]:
    """What a predictor says of Q questions.

    Parameters
    ----------
    predictor
        Fused vectors → posterior.
    fused, answers
        (Q, D) and long (Q,); −100 for an answer that is out of reach.
    samples
        S.
    keep_mean
        Whether to return ``mean``, the probabilities of all answers (Q, A).
    chunk
        Questions at a time.

    Returns
    -------
    dict
        ``predicted`` int16 and ``correct`` bool; float32 ``probability`` (of what was answered), ``total``,
        ``aleatoric`` and ``epistemic`` (nats), ``log_true`` (ln of the right answer's probability; 0 where it is out of
        reach) and ``squares`` (Σₐ pₐ²); each (Q,).
    """
    found: dict[str, list[np.ndarray]] = {}
    for x, y in zip(fused.split(chunk), answers.split(chunk)):
        said = predictor.predict(x, samples)
        mean, log_mean, best = said.mean, said.log_mean, said.answers
        split = entropy_split(said.probabilities.numpy())
        rows = {
            "predicted": best.numpy().astype(np.int16),
            "correct": (best == y).numpy(),
            "probability": mean.gather(1, best[:, None])[:, 0].numpy(),
            **{name: part.astype(np.float32) for name, part in split._asdict().items()},
            "log_true": log_mean.gather(1, y.clamp(min=0)[:, None])[:, 0].where(y >= 0, 0.0).numpy(),
            "squares": mean.square().sum(1).numpy(),
        }
        if keep_mean:
            rows["mean"] = mean.numpy()
        for name, values in rows.items():
            found.setdefault(name, []).append(values)
    return {name: np.concatenate(values) for name, values in found.items()}


def _answer_all(spec: Spec) -> Outcome:
    head, material = spec.model, material_of(spec.profile, spec.data.name)
    feeds = parts_of(spec.data, spec.profile)
    models, histories, seconds = train(spec, feeds)
    main = spec.unit == f"{spec.data.name}.{head.kind}"
    parts = [p for p in feeds if p not in ("train", "val")] if main else ["test"]
    read = ["val", *parts, *(["train"] if head.kind == "deterministic" else [])]
    fused = {p: torch.cat([fused_of(m, feeds[p]) for m in models], dim=1) for p in read}  # (Q, K · D) each
    torch.manual_seed(spec.seed)
    arrays, metrics, costs = {}, {}, {}
    for method, predictor in predictors_of(head, models, fused, feeds["val"]).items():
        samples = samples_of(method, head)
        if isinstance(predictor, Deterministic):
            metrics[f"temperature.{method}"] = Metric(predictor.temperature, len(feeds["val"]))
        for part in ("val", *parts):
            keep = main and method in SETS_OF and part in ("calibration", "test")
            start = time.perf_counter()
            said = answered(predictor, fused[part], feeds[part].answers, samples, keep)
            if part == "test":
                costs[method] = (time.perf_counter() - start) / len(feeds[part])
            metrics |= _summary(said, feeds[part].answers, f"{method}.{part}")
            if part != "val":
                arrays |= {f"{method}.{part}.{name}": values for name, values in said.items()}
    if isinstance(models[0].head, BayesHead) and main and head.kind == "full":
        arrays |= _looked_into(models[0], fused["test"], feeds["test"])
        if spec.unit == KEPT:
            arrays |= {f"head.{k}": v.numpy() for k, v in models[0].head.state_dict().items()}
    for part in parts:
        arrays[f"answers.{part}"] = feeds[part].answers.numpy().astype(np.int16)
        arrays[f"pictures.{part}"] = material.pictures[part].astype(np.int32)
        if part in material.closed:
            arrays[f"closed.{part}"] = material.closed[part]
    details = {
        "history": histories[0],
        "methods": list(HEADS[head.kind]),
        "parts": parts,
        "train_seconds": seconds,
        "seconds_per_question": costs,
        "parameters": sum(p.numel() for m in models for p in m.parameters()),
        "questions": len(feeds["train"]),
        "pictures": spec.data.pictures or len(np.unique(material.pictures["train"])),
        "data_hash": material.details["data_hash"],
    }
    if spec.unit == KEPT:
        details["fusion_hash"] = material.details["fusion_hash"]  # the head fits no other fusion
    return Outcome(metrics, arrays, details)


def _summary(said: dict[str, np.ndarray], answers: Tensor, name: str) -> dict[str, Metric]:
    """Accuracy of all questions; NLL, Brier score and uncertainties of those whose answer can be given."""
    reachable = answers.numpy() >= 0
    found = {f"accuracy.{name}": Metric(float(said["correct"].mean()), len(reachable))}
    if reachable.any():
        n = int(reachable.sum())
        log_true = said["log_true"][reachable].astype(np.float64)
        brier = said["squares"][reachable] - 2 * np.exp(log_true) + 1
        found |= {f"nll.{name}": Metric(float(-log_true.mean()), n), f"brier.{name}": Metric(float(brier.mean()), n)}
    for part in ("aleatoric", "epistemic"):
        found[f"{part}.{name}"] = Metric(float(said[part].mean()), len(reachable))
    return found


# ------------------------------------------------------------------------------------------ inside one Bayesian head


@torch.no_grad()
def _looked_into(model: nn.Module, fused: Tensor, test: Feed) -> dict[str, np.ndarray]:
    """How estimates converge with S, what is left after pruning, and the posterior of four questions.

    ``chosen`` are the most epistemic question, the most aleatoric one, and the surest right and wrong answers.
    """
    head: BayesHead = model.head
    n = min(1000, len(fused))
    posterior = head.predict(fused[:n], GROWING[-1])
    y = test.answers[:n]
    rows: dict[str, list[float]] = {"nll": [], "accuracy": [], "epistemic": [], "epistemic_jackknife": []}
    for s in GROWING:
        some = Posterior(posterior.logits[:s])
        p = some.probabilities.numpy()
        rows["nll"].append(float(-some.log_mean.gather(1, y.clamp(min=0)[:, None])[y >= 0].mean()))
        rows["accuracy"].append(float((some.answers == y).float().mean()))
        rows["epistemic"].append(float(entropy_split(p).epistemic.mean()))
        rows["epistemic_jackknife"].append(float(entropy_split(p, jackknife=s > 1).epistemic.mean()))
    arrays = {f"growing.{name}": np.array(values) for name, values in rows.items()}
    split, sure = entropy_split(posterior.probabilities.numpy()), posterior.mean.amax(1).numpy()
    right = (posterior.answers == y).numpy()
    chosen = np.array(
        [
            split.epistemic.argmax(),
            split.aleatoric.argmax(),
            np.where(right, sure, -1).argmax(),
            np.where(right, -1, sure).argmax(),
        ]
    )
    arrays |= {"chosen": chosen, "chosen_probabilities": posterior.probabilities[:, torch.from_numpy(chosen)].numpy()}
    return arrays | _pruned(model, fused, test.answers)


def _pruned(model: nn.Module, fused: Tensor, answers: Tensor) -> dict[str, np.ndarray]:
    """Accuracy of the mean function when the weights with the least |μ|/σ, or the least |μ|, are set to zero."""
    layers = [layer for layer in model.head.layers if isinstance(layer, BayesLinear)]
    kept = [layer.weight_mu.clone() for layer in layers]
    scores = {
        "signal_to_noise": torch.cat([layer.signal_to_noise.flatten() for layer in layers]),
        "magnitude": torch.cat([mu.abs().flatten() for mu in kept]),
    }
    ends = np.cumsum([0, *(mu.numel() for mu in kept)])
    arrays = {"signal_to_noise": scores["signal_to_noise"].log10().clamp(-4, 4).numpy()}
    for name, score in scores.items():
        found = []
        for share in PRUNED:
            keep = torch.ones(len(score), dtype=torch.bool)
            keep[score.argsort()[: round(share * len(score))]] = False
            for layer, mu, (a, b) in zip(layers, kept, pairwise(ends)):
                layer.weight_mu.copy_(mu * keep[a:b].view_as(mu))
            found.append(float((model.head.eval()(fused).argmax(1) == answers).float().mean()))
        arrays[f"pruned.{name}"] = np.array(found)
    for layer, mu in zip(layers, kept):
        layer.weight_mu.copy_(mu)
    return arrays


# --------------------------------------------------------------------------------------------- promise and guarantee


#: Rule → (errors, confidence, max_risk, delta) → threshold.
RULES: dict[str, Callable[[np.ndarray, np.ndarray, float, float], float]] = {
    "empirical": lambda e, c, r, d: empirical_threshold(e, c, r),
    "sgr": lambda e, c, r, d: sgr(e, c, r, d).threshold,
    "learn_then_test": lambda e, c, r, d: learn_then_test(e, c, r, d).threshold,
}


def _simulate(world: Simulation) -> Outcome:
    """Thresholds from drawn calibration sets, and the true risk and coverage that they have in the world."""
    arrays, rng = {}, np.random.default_rng(0)
    for n in world.questions:
        for promise in world.promises:
            found = {rule: np.empty(world.repeats) for rule in RULES}
            for i in range(world.repeats):
                confidence = rng.random(n)
                errors = rng.random(n) < (1 - confidence) ** world.power
                for rule, threshold in RULES.items():
                    found[rule][i] = threshold(errors, confidence, promise, world.delta)
            for rule, threshold in found.items():
                # a threshold t answers a share 1 − t, with mean risk (1 − t)^power / (power + 1)
                coverage = np.where(np.isinf(threshold), 0.0, 1 - np.minimum(threshold, 1))
                arrays[f"{rule}.{n}.{promise:g}.coverage"] = coverage
                arrays[f"{rule}.{n}.{promise:g}.risk"] = coverage**world.power / (world.power + 1)
    metrics = {
        f"broken.{rule}.{n}.{promise:g}": Metric(
            float((arrays[f"{rule}.{n}.{promise:g}.risk"] > promise).mean()), world.repeats
        )
        for rule in RULES
        for n in world.questions
        for promise in world.promises
    }
    return Outcome(metrics, arrays, {"data_hash": "simulated"})
