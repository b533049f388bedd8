"""Experiment ``medical_encoders``: picture encoders for medical questions, pre-trained on phantoms without answers.

``maml``
    The small CNN of MEVF, meta-trained to tell findings in organs apart from a few examples of each.
``scratch``
    The same CNN without training.
``dae``
    A denoising auto-encoder.
``experts_none``, ``experts_single``, ``experts_multi``
    Three experts mixed by an organ classifier (MTPT), not trained, trained on their own tasks, and on these and on the
    compatibility of question and picture. The organ classifier is trained in all three, and is the same.

Records keep the weights. ``maml`` and ``scratch`` also keep what they learn of new tasks after 0, 1, 2 … steps of
gradient descent. :func:`load_encoder` gives these encoders, and published ones whose files are on this machine.
**Phantoms are not patients.**
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from vqa_core.data import Vocabulary, encode_questions, phantoms, vqa_rad
from vqa_core.data.collate import IMAGENET_MEAN, IMAGENET_STD
from vqa_core.data.phantoms import PhantomSet
from vqa_core.data.phantoms import tasks as phantom_tasks
from vqa_core.data.root import data_root
from vqa_core.encoders import cifar_resnet, denoising, meta
from vqa_core.encoders.cifar_resnet import CIFAR_MEAN, CIFAR_STD, CifarResNet
from vqa_core.encoders.clip import CLIP_MEAN, CLIP_STD, CLIPImage, find_folder
from vqa_core.encoders.denoising import DenoisingAutoEncoder, corrupt, reconstruction
from vqa_core.encoders.experts import (
    ORGANS,
    ExpertPretraining,
    Experts,
    OrganClassifier,
    PictureClassifier,
    Segmenter,
    compatibility_pairs,
)
from vqa_core.encoders.meta import MetaCNN
from vqa_core.encoders.resnet import ResNet
from vqa_core.encoders.text import RecurrentText
from vqa_core.encoders.union import View
from vqa_core.encoders.vit import ViTImage, normalisation
from vqa_core.experiments import Metric, Outcome, Spec
from vqa_core.experiments.records import load_record, results_root
from vqa_core.fusion.vector import ProductFusion
from vqa_core.training.feed import Feed
from vqa_core.training.loop import Training, answer_loss, fit, pick_device
from vqa_core.training.meta_learning import (
    EpisodeClassifier,
    Episodes,
    Inner,
    adapt,
    draw_episodes,
    functional,
    meta_train,
)

REQUIRES = ()
SIZE = meta.SIZE  # pixels of a phantom's side: what the meta-trained CNN reads
LEVELS = ("none", "single", "multi")
GRID = (6, 6)  # cells of the meta-trained CNN and of the experts
LABELS = SIZE // 4  # side of the label picture of a segmentation
#: Organs that the abdomen's expert marks; class 0 is everything else.
MARKED = tuple(sorted({organ for of_kind in phantoms.HOSTS["abdomen"].values() for organ in of_kind}))
_PRETRAINING = 1  # seed of the phantoms here; those of experiment ``medical`` have seed 0


@dataclass(frozen=True)
class Classes:
    """Pictures of each class of the three splits of few-shot tasks (20, 7 and 6 classes)."""

    meta_train: int
    meta_val: int
    meta_test: int


@dataclass(frozen=True)
class Meta:
    """Meta-training and adaptation.

    Attributes
    ----------
    ways, shots, queries
        Classes of a task; support and query pictures of each class.
    steps, tasks
        Outer steps, and tasks in each; 0 steps train nothing.
    inner
        The inner loop of meta-training.
    meta_rate
        Learning rate of the outer loop.
    rates
        Rates of adaptation; the best one on meta-validation tasks is used, for each initialisation its own.
    after
        Steps of adaptation after which new tasks are scored.
    episodes, tested
        New tasks, and at most so many query pictures of each of their classes. A quarter of the number of tasks, from
        meta-validation classes, choose the rate.
    """

    ways: int
    shots: int
    queries: int
    steps: int
    tasks: int
    inner: Inner
    meta_rate: float
    rates: tuple[float, ...]
    after: tuple[int, ...]
    episodes: int
    tested: int


@dataclass(frozen=True)
class Pictures:
    """Phantoms for training and for choosing the epoch."""

    train: int
    val: int


@dataclass(frozen=True)
class Crop:
    """The auto-encoder learns from squares of ``side`` pixels, with so much noise (see :func:`corrupt`)."""

    side: int = 28
    noise: float = 0.1
    erased: float = 0.1


@dataclass(frozen=True)
class ExpertModel:
    """Level of pre-training, sizes of what is dropped afterwards, questions that are drawn for each picture."""

    level: str
    organ_width: int = 16
    words: int = 32
    questions: int = 1


@dataclass(frozen=True)
class Config:
    """Sizes of a profile; ``seeds`` of the meta-learning units (the others have one)."""

    seeds: int
    classes: Classes
    meta: Meta
    pictures: Pictures
    dae: Training
    experts: Training


PROFILES = {
    "smoke": Config(
        1,
        Classes(5, 5, 5),
        Meta(2, 2, 2, 1, 1, Inner(1, 0.05, False), 1e-3, (0.1,), (0, 1, 2, 5), 2, 5),
        Pictures(48, 24),
        Training(epochs=1, batch_size=16, learning_rate=1e-3),
        Training(epochs=1, batch_size=16, learning_rate=2e-3),
    ),
    "cpu": Config(
        1,
        Classes(20, 8, 20),
        Meta(5, 2, 3, 60, 2, Inner(2, 0.1, False), 2e-3, (0.03, 0.1, 0.3), (0, 1, 2, 3, 4, 5, 10, 15, 20, 25), 20, 5),
        Pictures(300, 60),
        Training(epochs=6, batch_size=16, learning_rate=2e-3),
        Training(epochs=4, batch_size=32, learning_rate=3e-3),
    ),
    "gpu": Config(
        10,
        Classes(200, 50, 200),
        Meta(
            5,
            5,
            15,
            3000,
            4,
            Inner(5, 0.05, True),
            1e-3,
            (0.01, 0.03, 0.1, 0.3),
            (0, 1, 2, 3, 4, 5, 10, 15, 20, 25, 50),
            400,
            15,
        ),
        Pictures(8000, 800),
        Training(epochs=30, batch_size=64, learning_rate=1e-3),
        Training(epochs=20, batch_size=64, learning_rate=1e-3),
    ),
}


def specs(profile: str) -> list[Spec]:
    """One spec for each encoder; the slowest comes first, so that two workers end together."""
    c = PROFILES[profile]
    found = [
        Spec("medical_encoders", unit, seed, profile, c.classes, None, c.meta)
        for unit in ("maml", "scratch")
        for seed in range(c.seeds)
    ]
    experts = [
        Spec("medical_encoders", f"experts_{level}", 0, profile, c.pictures, ExpertModel(level), c.experts)
        for level in reversed(LEVELS)
    ]
    return [*found, *experts, Spec("medical_encoders", "dae", 0, profile, c.pictures, Crop(), c.dae)]


def run(spec: Spec) -> Outcome:
    """Train the encoder that ``spec.unit`` names."""
    if spec.unit in ("maml", "scratch"):
        return _run_meta(spec)
    return _run_dae(spec) if spec.unit == "dae" else _run_experts(spec)


def _weights(module: nn.Module) -> dict[str, np.ndarray]:
    return {f"model.{k}": v.detach().cpu().numpy() for k, v in module.state_dict().items()}


# ----------------------------------------------------------------------------------------------------- meta-learning


class Pool(NamedTuple):
    """Pictures of all classes of a split: float (n, 1, 84, 84) in [0, 1], and the class of each, int (n,)."""

    pictures: Tensor
    classes: np.ndarray


def pool_of(split: str, each: int, seed: int = 0) -> Pool:
    """``each`` pictures of every class of a split of few-shot tasks; splits share neither class nor picture."""
    every = len(phantom_tasks.SPLITS[split])
    drawn = phantom_tasks.episode(split, 0, ways=every, shots=1, queries=each - 1, seed=seed, size=SIZE)
    pictures = torch.from_numpy(np.concatenate([drawn.support, drawn.query]))  # (n, H, W)
    classes = np.concatenate([drawn.support_labels, drawn.query_labels])  # (n,)
    return Pool(pictures.unsqueeze(1).float() / 255, classes)  # (n, 1, H, W)


def fresh(ways: int, seed: int) -> EpisodeClassifier:
    """The CNN with a new linear layer, without training."""
    torch.manual_seed(seed)
    return EpisodeClassifier(MetaCNN("pooled"), ways)


def adaptation(
    start: Callable[[int], EpisodeClassifier], episodes: Episodes, rate: float, after: tuple[int, ...]
) -> np.ndarray:
    """Which query pictures a model gets right after so many steps of gradient descent on the support set.

    Parameters
    ----------
    start
        Number of a task → the model whose weights are the start; it is not changed.
    episodes
        T tasks.
    rate
        Of gradient descent.
    after
        K numbers of steps, ascending.

    Returns
    -------
    numpy.ndarray
        bool (T, K, Q).
    """
    found = []
    for task, (x, y, query, wanted) in enumerate(zip(*episodes)):
        body, weights = functional(start(task))
        right = []
        for step in range(max(after) + 1):
            if step in after:
                with torch.no_grad():
                    logits = torch.func.functional_call(body, weights, (query,))  # (Q, ways)
                right.append((logits.argmax(1) == wanted).cpu().numpy())
            if step < max(after):
                adapted = adapt(body, weights, x, y, Inner(1, rate, second_order=False))
                weights = {name: w.detach() for name, w in adapted.items()}
        found.append(right)
    return np.array(found)


def _run_meta(spec: Spec) -> Outcome:
    how, device = spec.training, pick_device()
    test, val = (pool_of(split, getattr(spec.data, split)) for split in ("meta_test", "meta_val"))
    trained, history = fresh(how.ways, spec.seed).to(device), []
    if spec.unit == "maml":
        pool = pool_of("meta_train", spec.data.meta_train)
        x, rng = pool.pictures.to(device), np.random.default_rng([spec.seed, 0])
        sizes = how.ways, how.shots, how.queries
        history = meta_train(
            trained,
            lambda step: draw_episodes(x, pool.classes, *sizes, how.tasks, rng),
            how.steps,
            how.inner,
            how.meta_rate,
            chunk=None if device.type == "cuda" else 1,  # one task after another is faster on a processor core
            seed=spec.seed,
        )

    def start(task: int) -> EpisodeClassifier:  # without training, every task has a new start
        return trained if spec.unit == "maml" else fresh(how.ways, 1000 * (spec.seed + 1) + task).to(device)

    def new_tasks(pool: Pool, n: int, seed: int) -> Episodes:
        rng = np.random.default_rng([seed, 1])  # the same tasks for every start and every seed
        queries = min(how.tested, int(np.bincount(pool.classes).min()) - how.shots)
        return draw_episodes(pool.pictures.to(device), pool.classes, how.ways, how.shots, queries, n, rng)

    chosen_on = new_tasks(val, max(how.episodes // 4, 1), 0)
    by_rate = {rate: adaptation(start, chosen_on, rate, (5,)).mean() for rate in how.rates}
    rate = max(by_rate, key=by_rate.get)
    correct = adaptation(start, new_tasks(test, how.episodes, 1), rate, how.after)  # (T, K, Q)
    metrics = {
        f"accuracy_after_{step}": Metric(float(correct[:, k].mean()), correct[:, k].size)
        for k, step in enumerate(how.after)
    }
    details = {
        "history": [{"step": i + 1, "loss": loss} for i, loss in enumerate(history)],
        "after": how.after,
        "rate": rate,
        "validation_by_rate": {str(r): float(v) for r, v in by_rate.items()},
        "parameters": sum(p.numel() for p in trained.encoder.parameters()),
        "data_hash": hashlib.sha256(test.pictures.numpy().tobytes()).hexdigest(),
    }
    return Outcome(metrics, {"correct": correct} | _weights(trained.encoder), details)


# --------------------------------------------------------------------------------------- phantoms for the other units


@lru_cache(maxsize=4)
def pictures_of(pictures: Pictures, split: str) -> PhantomSet:
    """Phantoms for pre-training; experiment ``medical`` has others."""
    return phantoms.load(split, n=getattr(pictures, split), seed=_PRETRAINING, size=SIZE)


def rgb(found: PhantomSet) -> np.ndarray:
    """All pictures of a set, uint8 (P, H, W, 3)."""
    return np.repeat(found.images[..., None], 3, axis=-1)


def _picture_feed(found: PhantomSet, labels: np.ndarray) -> Feed:
    n = len(found.images)
    return Feed(rgb(found), np.arange(n), np.zeros((n, 1), np.int64), np.ones((n, 1), bool), labels)


# ---------------------------------------------------------------------------------------------------------- denoising


def crop(pictures: Tensor, side: int, corner: tuple[int, int] | None = None) -> Tensor:
    """The same square of all pictures (B, C, H, W) → (B, C, side, side); ``None`` draws its upper left corner."""
    height, width = pictures.shape[-2:]
    y, x = corner or (int(torch.randint(height - side + 1, ())), int(torch.randint(width - side + 1, ())))
    return pictures[..., y : y + side, x : x + side]


def _run_dae(spec: Spec) -> Outcome:
    side, damage = spec.model.side, {"noise": spec.model.noise, "erased": spec.model.erased}
    torch.manual_seed(spec.seed)
    view = View(DenoisingAutoEncoder("grid", side), side, grey=True)  # no layer depends on the side
    sets = {split: pictures_of(spec.data, split) for split in ("train", "val")}
    feeds = {split: _picture_feed(found, np.arange(len(found.images))) for split, found in sets.items()}
    middle = ((SIZE - side) // 2,) * 2

    def loss(view: View, batch) -> Tensor:
        return reconstruction(view.encoder, view.prepare(crop(batch.pictures, side)), **damage)

    @torch.no_grad()
    def errors(view: View, feed: Feed) -> tuple[float, float]:
        """Mean squared error of the rebuilt, and of the damaged pictures."""
        device = next(view.parameters()).device
        clean = torch.cat([view.eval().prepare(crop(b.pictures.to(device), side, middle)) for b in feed.batches(256)])
        damaged = corrupt(clean, **damage, generator=torch.Generator(device).manual_seed(0))
        rebuilt = torch.cat([view.encoder.reconstruct(x) for x in damaged.split(256)])
        return F.mse_loss(rebuilt, clean).item(), F.mse_loss(damaged, clean).item()

    fitted = fit(
        view,
        feeds["train"],
        feeds["val"],
        spec.training,
        spec.seed,
        loss=loss,
        score=lambda model, feed: -errors(model, feed)[0],
        label="denoising auto-encoder",
    )
    rebuilt, damaged = errors(view, feeds["val"])
    n = len(sets["val"].images)
    metrics = {"error_rebuilt": Metric(rebuilt, n), "error_damaged": Metric(damaged, n)}
    details = {"history": fitted.history, "data_hash": sets["train"].content_hash()}
    return Outcome(metrics, _weights(view.encoder), details)


# ------------------------------------------------------------------------------------------------------------ experts


def new_experts(model: ExpertModel, seed: int) -> Experts:
    """Three experts of the form of the meta-trained CNN, and their organ classifier, without training."""
    torch.manual_seed(seed)
    experts = [View(MetaCNN("grid"), SIZE, grey=True) for _ in ORGANS]
    return Experts(experts, OrganClassifier(len(ORGANS), model.organ_width))


def organ_of(found: PhantomSet) -> np.ndarray:
    """Row of :data:`~vqa_core.encoders.experts.ORGANS` for each picture, int64 (P,)."""
    return np.array([ORGANS.index(plan.region) for plan in found.plans], dtype=np.int64)


def own_task(found: PhantomSet, organ: str) -> np.ndarray:
    """Labels of an expert's own task; −100 at pictures of other organs.

    Abdomen: which of :data:`MARKED` each pixel shows, int64 (P, 21, 21). Head: which finding, 0 for none, int64 (P,).
    Chest: whether there is one, int64 (P,).

    Raises
    ------
    ValueError
        When no picture shows the organ.
    """
    if organ not in {plan.region for plan in found.plans}:
        raise ValueError(f"none of {len(found.plans)} pictures shows the {organ}; draw more")
    of_kind = {kind: i for i, kind in enumerate(phantoms.KINDS, start=1)}
    labels = np.full((len(found.plans), *((LABELS, LABELS) if organ == "abdomen" else ())), -100, dtype=np.int64)
    for i, (plan, picture_id) in enumerate(zip(found.plans, _ids(found))):
        if plan.region != organ:
            continue
        if organ == "abdomen":
            labels[i] = 0
            drawn = found.drawing(picture_id)
            for number, name in enumerate(MARKED, start=1):
                labels[i][drawn.organ(name)[::4, ::4]] = number
        elif organ == "head":
            labels[i] = of_kind[plan.present[0].kind] if plan.present else 0
        else:
            labels[i] = bool(plan.present)
    return labels


def _ids(found: PhantomSet) -> list[str]:
    """Ids of all pictures in the order of ``images``, also of those without a question."""
    return [f"phantom-{found.seed}-{i:06d}" for i in range(len(found.plans))]


def task_head(organ: str) -> nn.Module:
    """What turns tokens into logits of the own task."""
    if organ == "abdomen":
        return Segmenter(meta.WIDTH, 1 + len(MARKED), GRID, LABELS, width=32)
    return PictureClassifier(meta.WIDTH, 1 + len(phantoms.KINDS) if organ == "head" else 2)


class Pairs(NamedTuple):
    """Pictures with a question each: a feed whose ``answers`` are (picture, compatible), int64 (R, 2), and labels."""

    feed: Feed
    labels: Tensor


def pairs_of(found: PhantomSet, organ: str, words: Vocabulary, questions: list[str], asked, each: int, seed) -> Pairs:
    """Every picture ``each`` times, with a question that is asked about its organ, or one that is not."""
    rng = np.random.default_rng(seed)
    pictures = np.tile(np.arange(len(found.images)), each)  # (R,)
    shown, compatible = compatibility_pairs(organ_of(found)[pictures], asked, rng)  # (R,) each
    ids, mask = encode_questions(questions, words)
    answers = np.stack([pictures, compatible], axis=1)  # (R, 2)
    return Pairs(Feed(rgb(found), pictures, ids, mask, answers, shown), torch.from_numpy(own_task(found, organ)))


def expert_loss(output, labels: Tensor, compatible: Tensor, multi: bool) -> Tensor:
    """Cross-entropy of the own task, and with ``multi`` that of compatibility beside it, one to one.

    A batch without a picture of the own organ has no own task.
    """
    own = F.cross_entropy(output.task, labels) if (labels >= 0).any() else output.task.sum() * 0
    return own + F.cross_entropy(output.compatibility, compatible) if multi else own


def _train_organs(experts: Experts, spec: Spec, sets: dict[str, PhantomSet]) -> float:
    """Train the organ classifier; its accuracy on validation pictures."""
    feeds = {split: _picture_feed(found, organ_of(found)) for split, found in sets.items()}

    def right(model: nn.Module, feed: Feed) -> float:
        device = next(model.parameters()).device
        with torch.no_grad():
            best = [model.eval()(b.pictures.to(device)).argmax(1).cpu() for b in feed.batches(256)]
        return float((torch.cat(best) == feed.answers).float().mean())

    fitted = fit(
        experts.organs,
        feeds["train"],
        feeds["val"],
        spec.training,
        spec.seed,
        loss=lambda model, b: answer_loss(model(b.pictures), b.answers),
        score=right,
        label="organs",
    )
    return fitted.best_score


def _train_expert(spec: Spec, expert: nn.Module, organ: str, sets: dict[str, PhantomSet]) -> tuple[dict, list]:
    """Pre-train one expert in place; validation accuracies of its tasks, and the history."""
    multi = spec.model.level == "multi"
    train = sets["train"]
    questions = list(dict.fromkeys(s.question for s in train))
    number = {q: i for i, q in enumerate(questions)}
    asked = np.zeros((len(questions), len(ORGANS)), dtype=bool)
    for s in train:
        asked[number[s.question], ORGANS.index(s.meta["region"])] = True
    words = Vocabulary.of_words(questions)
    pairs = {
        split: pairs_of(found, organ, words, questions, asked, spec.model.questions, [spec.seed, i])
        for i, (split, found) in enumerate(sets.items())
    }
    torch.manual_seed(spec.seed)
    text = RecurrentText(len(words), spec.model.words, "gru")
    model = ExpertPretraining(expert, task_head(organ), text, ProductFusion(meta.WIDTH, text.out_dim, text.out_dim))

    def loss(model: nn.Module, batch) -> Tensor:
        picture, compatible = batch.answers.unbind(1)
        labels = pairs["train"].labels.to(picture.device)[picture]
        return expert_loss(model(*batch[:3]), labels, compatible, multi)

    @torch.no_grad()
    def scores(model: nn.Module, feed: Feed) -> dict[str, Metric]:
        device = next(model.parameters()).device
        model.eval()
        own, fits = [], []
        for batch in feed.batches(256):
            output, (picture, compatible) = model(*batch.to(device)[:3]), batch.answers.unbind(1)
            labels = pairs["val"].labels[picture]
            own.append((output.task.argmax(1).cpu() == labels)[labels >= 0])
            fits.append(output.compatibility.argmax(1).cpu() == compatible)
        return {
            name: Metric(float(torch.cat(x).float().mean()), sum(map(len, x)))
            for name, x in (("task", own), ("compatibility", fits))
        }

    fitted = fit(
        model,
        pairs["train"].feed,
        pairs["val"].feed,
        spec.training,
        spec.seed,
        loss=loss,
        score=lambda m, f: sum(s.value for name, s in scores(m, f).items() if multi or name == "task"),
        label=f"expert of the {organ}",
    )
    return {f"{organ}.{name}": m for name, m in scores(model, pairs["val"].feed).items()}, fitted.history


def _run_experts(spec: Spec) -> Outcome:
    if spec.model.level not in LEVELS:
        raise ValueError(f"level is {spec.model.level!r}, allowed are {', '.join(LEVELS)}")
    sets = {split: pictures_of(spec.data, split) for split in ("train", "val")}
    experts, metrics, history = new_experts(spec.model, spec.seed), {}, {}
    metrics["organs"] = Metric(_train_organs(experts, spec, sets), len(sets["val"].images))
    if spec.model.level != "none":
        for organ, expert in zip(ORGANS, experts.experts):
            found, history[organ] = _train_expert(spec, expert, organ, sets)
            metrics |= found
    details = {"level": spec.model.level, "history": history, "data_hash": sets["train"].content_hash()}
    return Outcome(metrics, _weights(experts.cpu()), details)


# --------------------------------------------------------------------------------------------------- what is loaded

TRAINED = ("maml", "scratch", "dae", *(f"experts_{level}" for level in LEVELS))


def _mevf(name: str) -> Path:
    path = vqa_rad.find() / "mevf_weights" / name
    if not path.is_file():
        raise FileNotFoundError(f"{path} is missing; put the files published with MEVF there")
    return path


def _cifar() -> Path:
    path = data_root() / "cifar_resnet_weights" / "resnet20-12fca82f.th"
    if not path.is_file():
        raise FileNotFoundError(f"{path} is missing; it is published by akamaster/pytorch_resnet_cifar10")
    return path


def _folder(variable: str, what: str) -> Path:
    if not os.environ.get(variable):
        raise FileNotFoundError(f"{variable} is not set; give the folder of a saved {what}")
    return find_folder(os.environ[variable])


def _resnet() -> Path:
    path = Path(os.environ.get("VQA_RESNET", ""))
    if not path.is_file():
        raise FileNotFoundError(f"VQA_RESNET is {str(path)!r}; give a state dict of torchvision's ResNet-50")
    return path


#: Encoder from files → what finds its file, and what the file is.
FILES: dict[str, tuple[Callable[[], Path], str]] = {
    "maml_published": (lambda: _mevf("pretrained_maml.weights"), "vqa_rad/mevf_weights/pretrained_maml.weights"),
    "dae_published": (lambda: _mevf("pretrained_ae.pth"), "vqa_rad/mevf_weights/pretrained_ae.pth"),
    "natural": (_cifar, "cifar_resnet_weights/resnet20-12fca82f.th"),
    "clip": (lambda: _folder("VQA_CLIP", "CLIP"), "a CLIP vision transformer in the folder VQA_CLIP"),
    "pubmedclip": (lambda: _folder("VQA_PUBMEDCLIP", "PubMedCLIP"), "a PubMedCLIP in the folder VQA_PUBMEDCLIP"),
    "resnet50": (_resnet, "ImageNet's ResNet-50, a state dict in the file VQA_RESNET"),
    "vit": (lambda: _folder("VQA_VIT", "ViTModel"), "a ViTModel with its image processor in the folder VQA_VIT"),
}
ENCODERS = (*TRAINED, *FILES, "natural_random")


def absent() -> dict[str, str]:
    """Encoders that are left out → the file they would need. Looks for files and reads none."""
    missing = {}
    for name, (look, what) in FILES.items():
        try:
            look()
        except FileNotFoundError:
            missing[name] = what
    return missing


class Loaded(NamedTuple):
    """An encoder, RGB pictures (B, 3, H, W) in [−1, 1] → tokens (B, rows · columns, D), and its (rows, columns)."""

    encoder: nn.Module
    grid: tuple[int, int]


def load_encoder(profile: str, name: str, root: Path | None = None) -> Loaded:
    """An encoder with its weights, not trainable, in evaluation mode.

    Several have no statistics for their batch norm, or those of other pictures: let
    ``torch.optim.swa_utils.update_bn(batches, encoder)`` show them training pictures before they are used.

    Parameters
    ----------
    profile
        Which records the trained ones come from.
    name
        One of :data:`ENCODERS`. ``natural_random`` is ``natural`` without its weights.

    Raises
    ------
    FileNotFoundError
        When the encoder is not trained, or its file is not there.
    """
    if name not in ENCODERS:
        raise ValueError(f"there is no encoder {name!r}, only {', '.join(ENCODERS)}")
    if name in TRAINED:
        loaded = _from_record(profile, name, root)
    elif name == "maml_published":
        loaded = Loaded(View(meta.load_published(FILES[name][0](), "grid"), SIZE, grey=True), GRID)
    elif name == "dae_published":
        encoder = denoising.load_published(FILES[name][0](), "grid")
        loaded = Loaded(View(encoder, encoder.size, grey=True), encoder.grid)
    elif name in ("clip", "pubmedclip"):
        encoder = CLIPImage(FILES[name][0](), "patches")
        loaded = Loaded(View(encoder, encoder.size, mean=CLIP_MEAN, deviation=CLIP_STD), encoder.grid)
    elif name == "resnet50":
        view = View(ResNet("grid", 50, _resnet()), 224, mean=IMAGENET_MEAN, deviation=IMAGENET_STD)
        loaded = Loaded(view, (7, 7))
    elif name == "vit":
        encoder, (mean, deviation) = ViTImage(FILES[name][0]()), normalisation(FILES[name][0]())
        loaded = Loaded(View(encoder, encoder.size, mean=mean, deviation=deviation), encoder.grid)
    else:
        torch.manual_seed(0)
        encoder = CifarResNet(20) if name == "natural_random" else cifar_resnet.load_published(_cifar())
        loaded = Loaded(View(encoder, encoder.size, mean=CIFAR_MEAN, deviation=CIFAR_STD), encoder.grid)
    loaded.encoder.requires_grad_(False).eval()
    return loaded


def _from_record(profile: str, name: str, root: Path | None) -> Loaded:
    spec = next(s for s in specs(profile) if s.unit == name and s.seed == 0)
    record = load_record(spec, root=root)
    if record is None:
        raise FileNotFoundError(
            f"encoder {name} is not in {(root or results_root()) / profile / 'medical_encoders'}; "
            f"make it: python -m vqa_core run medical_encoders --profile {profile}"
        )
    state = {k.removeprefix("model."): torch.from_numpy(v) for k, v in record.arrays.items() if k.startswith("model.")}
    if name == "dae":
        encoder = DenoisingAutoEncoder("grid", SIZE)  # trained on crops; no layer depends on the side
        module: nn.Module = View(encoder, SIZE, grey=True)
        grid = encoder.grid
    elif name.startswith("experts_"):
        module = encoder = new_experts(spec.model, spec.seed)
        grid = GRID
    else:
        encoder = MetaCNN("grid")
        module, grid = View(encoder, SIZE, grey=True), GRID
    encoder.load_state_dict(state)
    return Loaded(module, grid)
