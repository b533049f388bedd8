"""Experiment ``vit_cifar``: pictures in ten classes, read by patches and by convolutions.

``vit``
    The :class:`~vqa_core.encoders.vision_transformer.VisionTransformer` of the chapter, small.
``cnn``
    Four convolutions with about as many parameters (``cpu``), or ResNet-20 (``gpu``).
``pixels``
    Logistic regression on the pixels, the baseline.
``published``
    ``vit_b_16`` of torchvision at 224 pixels, as published by dldna (chapter 10): random weights, AdamW with a constant
    rate, batches of 32, no augmentation, five epochs. Only at ``gpu``, and only with the whole of CIFAR-10. The
    published percentages are *training* accuracies: right answers of an epoch, counted while its weights changed.
    Test accuracy is recorded beside them after each epoch. Here bf16 is used on CUDA, and pictures are enlarged as
    numbers instead of 8-bit pixels.

``vit``, ``cnn`` and ``pixels`` are trained on the same pictures by the same loop. In training the first two see each
picture shifted by up to four pixels (what comes in is grey) and mirrored half of the time. The last tenth of each
class of the training split is for validation, which chooses the epoch; the test split has no say in anything.
"""

from __future__ import annotations

import hashlib
import math
import time
from dataclasses import dataclass, field
from functools import lru_cache
from itertools import pairwise
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vqa_core.data import cifar10
from vqa_core.data.cifar10 import CLASSES, SIZE, LabelledPictures
from vqa_core.data.types import Batch
from vqa_core.encoders.cifar_resnet import CifarResNet
from vqa_core.encoders.patches import cut_patches, join_patches
from vqa_core.encoders.vision_transformer import VisionTransformer
from vqa_core.experiments import Metric, Outcome, Spec
from vqa_core.training.feed import Feed, as_float
from vqa_core.training.loop import NotFiniteError, Training, answer_loss, autocast, fit, pick_device, predict

REQUIRES = ()
KEPT = 0  # the seed whose ViT is stored with its weights
SHUFFLED = 8  # side of the patches that are shuffled in test pictures
LOOKED_AT = 256  # test pictures over which attention is averaged


# ------------------------------------------------------------------------------------------------------- the networks


@dataclass(frozen=True)
class ViT:
    """Sizes of the small vision transformer."""

    patch: int
    depth: int
    dim: int
    heads: int
    hidden: int
    norm: str = "pre"

    def build(self) -> VisionTransformer:
        """With random weights."""
        return VisionTransformer(
            SIZE, self.patch, self.depth, self.dim, self.heads, self.hidden, len(CLASSES), self.norm
        )


@dataclass(frozen=True)
class CNN:
    """Width of the small convolutional network; ``resnet`` is the depth of a CIFAR ResNet to take in its place."""

    width: int = 16
    resnet: int = 0

    def build(self) -> nn.Module:
        """With random weights."""
        return CifarResNet(self.resnet) if self.resnet else SmallCNN(self.width)


@dataclass(frozen=True)
class Pixels:
    """Logistic regression on the pixels."""

    def build(self) -> nn.Module:
        """With random weights."""
        return LinearPixels()


@dataclass(frozen=True)
class Torchvision:
    """Sizes of torchvision's ``VisionTransformer``; by default those of ``vit_b_16``."""

    size: int = 224
    patch: int = 16
    depth: int = 12
    heads: int = 12
    dim: int = 768
    hidden: int = 3072

    def build(self) -> nn.Module:
        """With torchvision's random weights, among them zeros in the head."""
        from torchvision.models import VisionTransformer as TorchvisionViT

        sizes = (self.size, self.patch, self.depth, self.heads, self.dim, self.hidden)
        return TorchvisionViT(*sizes, num_classes=len(CLASSES))


class SmallCNN(nn.Module):
    """Four convolutions with batch norm and ReLU, 32 × 32 pixels → 4 × 4 cells, their mean, a linear head.

    Parameters
    ----------
    width
        Channels of the first convolution; the second has twice, the third and fourth four times as many.
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        channels, layers = (3, width, 2 * width, 4 * width, 4 * width), []
        for i, (a, b) in enumerate(pairwise(channels)):
            kernel, stride = (4, 2) if i < 3 else (3, 1)
            layers += [nn.Conv2d(a, b, kernel, stride, padding=1, bias=False), nn.BatchNorm2d(b), nn.ReLU()]
        self.features, self.head = nn.Sequential(*layers), nn.Linear(channels[-1], len(CLASSES))

    def classify(self, pictures: Tensor) -> Tensor:
        """Pictures (B, 3, 32, 32) → logits (B, 10)."""
        return self.head(self.features(pictures).mean((2, 3)))  # (B, 10)


class LinearPixels(nn.Module):
    """One linear layer on all pixels, which starts as zero."""

    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Linear(3 * SIZE**2, len(CLASSES))
        nn.init.zeros_(self.head.weight)

    def classify(self, pictures: Tensor) -> Tensor:
        """Pictures (B, 3, 32, 32) → logits (B, 10)."""
        return self.head(pictures.flatten(1))  # (B, 3072) → (B, 10)


class Scores(NamedTuple):
    """What :class:`Classifier` returns: logits, float (B, 10)."""

    logits: Tensor


class Classifier(nn.Module):
    """A network with a ``classify``, as the training loop calls models: with words, which are not read."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, pictures: Tensor, words: Tensor, word_mask: Tensor) -> Scores:
        """Pictures (B, 3, 32, 32) → logits (B, 10)."""
        return Scores(self.network.classify(pictures))


# ------------------------------------------------------------------------------------------------------- the profiles


@dataclass(frozen=True)
class Pictures:
    """Pictures of each class: the first ``train`` of the training split, the next ``val``, the first ``test``."""

    train: int
    val: int
    test: int


@dataclass(frozen=True)
class Recipe:
    """How ``vit``, ``cnn`` and ``pixels`` are trained: largest shift in pixels, whether mirrored, and the loop."""

    training: Training
    shift: int = 4
    mirror: bool = True


@dataclass(frozen=True)
class Published:
    """The published recipe; AdamW with PyTorch's other defaults, no schedule, no augmentation."""

    epochs: int = 5
    batch_size: int = 32
    learning_rate: float = 1e-4


@dataclass(frozen=True)
class Config:
    """Sizes of a profile; ``networks`` and ``recipes`` by unit."""

    seeds: int
    pictures: Pictures
    networks: dict[str, ViT | CNN | Pixels | Torchvision]
    recipes: dict[str, Recipe | Published] = field(default_factory=dict)


SUBSET = Pictures(1800, 200, 500)  # of 2,000 and 500 in each class
PLAIN = {"shift": 0, "mirror": False}

PROFILES = {
    "smoke": Config(
        2,
        Pictures(20, 5, 10),
        {"vit": ViT(8, 2, 16, 2, 32), "cnn": CNN(4), "pixels": Pixels()},
        {
            "vit": Recipe(Training(epochs=2, batch_size=32)),
            "cnn": Recipe(Training(epochs=2, batch_size=32)),
            "pixels": Recipe(Training(epochs=2, batch_size=32), **PLAIN),
        },
    ),
    "cpu": Config(
        5,
        SUBSET,
        {"vit": ViT(8, 3, 48, 4, 96), "cnn": CNN(16), "pixels": Pixels()},
        {
            "vit": Recipe(Training(epochs=4, batch_size=128, learning_rate=2e-3, warmup=0.1)),
            "cnn": Recipe(Training(epochs=4, batch_size=128, learning_rate=5e-3, warmup=0.1)),
            "pixels": Recipe(Training(epochs=4, batch_size=128, learning_rate=2e-4, weight_decay=0.1), **PLAIN),
        },
    ),
    "gpu": Config(
        5,
        Pictures(4500, 500, 1000),
        {"vit": ViT(4, 9, 192, 6, 384), "cnn": CNN(resnet=20), "pixels": Pixels(), "published": Torchvision()},
        {
            "vit": Recipe(Training(epochs=100, batch_size=256, learning_rate=1e-3, weight_decay=0.05, warmup=0.1)),
            "cnn": Recipe(Training(epochs=60, batch_size=256, learning_rate=4e-3, weight_decay=0.05, warmup=0.1)),
            "pixels": Recipe(Training(epochs=10, batch_size=256, learning_rate=2e-4, weight_decay=0.1), **PLAIN),
            "published": Published(),
        },
    ),
}


def absent() -> dict[str, str]:
    """What is left out → what it would need: ``"all"`` without any CIFAR-10, ``"published"`` without the whole of it.

    Looks for files and reads none.
    """
    try:
        whole = all(cifar10.count(split) >= n for split, n in (("train", 50_000), ("test", 10_000)))
    except FileNotFoundError:
        return {"all": "CIFAR-10 under VQA_DATA (vqa_core.data.cifar10 says how to get it)"}
    return {} if whole else {"published": "the whole of CIFAR-10, of which a part is here"}


def specs(profile: str) -> list[Spec]:
    """One spec for each unit and seed, of the data here; of a part of CIFAR-10, no more than :data:`SUBSET`."""
    config, missing = PROFILES[profile], absent()
    if "all" in missing:
        return []
    sizes = SUBSET if missing and config.pictures.train > SUBSET.train else config.pictures
    return [
        Spec("vit_cifar", unit, seed, profile, sizes, config.networks[unit], config.recipes[unit])
        for seed in range(config.seeds)
        for unit in config.networks
        if unit not in missing
    ]


# ----------------------------------------------------------------------------------------------------------- the data


@lru_cache(maxsize=2)
def _whole(split: str) -> LabelledPictures:
    return cifar10.load(split)


@lru_cache(maxsize=8)
def part_of(sizes: Pictures, split: str) -> LabelledPictures:
    """The pictures of ``train``, ``val`` or ``test``; train and val have none in common.

    Raises
    ------
    ValueError
        When a class has fewer pictures than ``sizes`` asks for.
    """
    spans = {"train": (0, sizes.train), "val": (sizes.train, sizes.train + sizes.val), "test": (0, sizes.test)}
    start, stop = spans[split]
    found = _whole("test" if split == "test" else "train")
    counted = np.bincount(found.labels, minlength=len(CLASSES))
    if counted.min() < stop:
        raise ValueError(
            f"{stop} pictures of each class are asked for, class {CLASSES[counted.argmin()]!r} of the "
            f"{found.split} split has {counted.min()}; lower Config.pictures or get the whole of CIFAR-10"
        )
    return found.per_class(start, stop, split)


def content_hash(sizes: Pictures) -> str:
    """SHA-256 over the pictures of all parts."""
    hashes = "".join(part_of(sizes, split).content_hash() for split in ("train", "val", "test"))
    return hashlib.sha256(hashes.encode()).hexdigest()


def feed_of(part: LabelledPictures) -> Feed:
    """Pictures as the training loop reads them: all with one question of one word, which no network reads."""
    n = len(part)
    asked = torch.zeros(n, dtype=torch.long)
    return Feed(part.pictures, torch.arange(n), torch.ones(1, 1).long(), torch.ones(1, 1).bool(), part.labels, asked)


def augment(pictures: Tensor, shift: int, mirror: bool) -> Tensor:
    """Each picture shifted by whole pixels, up to ``shift`` each way, and mirrored half of the time.

    Parameters
    ----------
    pictures
        float (B, C, H, W), in [−1, 1]; what comes in at an edge is 0, grey.

    Returns
    -------
    Tensor
        (B, C, H, W). Drawn from PyTorch's global generator, which the training loop seeds.
    """
    b, _, height, width = pictures.shape
    down, right = torch.randint(0, 2 * shift + 1, (2, b))
    rows = down[:, None] + torch.arange(height)  # (B, H)
    columns = right[:, None] + torch.arange(width)  # (B, W)
    if mirror:
        columns = torch.where(torch.rand(b, 1) < 0.5, columns.flip(1), columns)
    b, rows, columns = (i.to(pictures.device) for i in (torch.arange(b), rows, columns))
    padded = F.pad(pictures, (shift,) * 4)  # (B, C, H + 2 s, W + 2 s)
    moved = padded[b[:, None, None], :, rows[:, :, None], columns[:, None, :]]  # (B, H, W, C)
    return moved.permute(0, 3, 1, 2)  # (B, C, H, W)


def shuffle_patches(pictures: np.ndarray, seed: int, patch: int = SHUFFLED) -> np.ndarray:
    """Pictures uint8 (n, H, W, 3) whose patches changed places, each picture's in another order."""
    cut = cut_patches(torch.from_numpy(pictures).permute(0, 3, 1, 2).float(), patch)  # (n, N, 3·P·P)
    order = np.random.default_rng([seed, 8]).permuted(np.tile(np.arange(cut.shape[1]), (len(cut), 1)), axis=1)  # (n, N)
    moved = cut[torch.arange(len(cut))[:, None], torch.from_numpy(order)]
    return join_patches(moved, patch, pictures.shape[1:3]).permute(0, 2, 3, 1).byte().numpy()  # (n, H, W, 3)


# ----------------------------------------------------------------------------------------------------------- the runs


def run(spec: Spec) -> Outcome:
    """Train one network with one seed and classify the test pictures."""
    return _run_published(spec) if isinstance(spec.training, Published) else _run_small(spec)


def floating_point_operations(network: nn.Module) -> int:
    """Multiplications and additions for one picture of 32 × 32, forward."""
    from torch.nn.attention import SDPBackend, sdpa_kernel
    from torch.utils.flop_counter import FlopCounterMode

    with torch.no_grad(), sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        network.eval().classify(torch.zeros(1, 3, SIZE, SIZE))
    return counter.get_total_flops()


def attention_distance(maps: Tensor, grid: tuple[int, int], patch: int) -> Tensor:
    """How far a head looks: distance in pixels between a patch and those it reads, weighed by attention.

    As in figure 7 of Dosovitskiy et al. 2021 (arXiv 2010.11929); the class token, which has no place, is left out.

    Parameters
    ----------
    maps
        (B, L, H, 1 + N, 1 + N), class token first.
    grid, patch
        (rows, columns) of the patches, and the side of one in pixels.

    Returns
    -------
    Tensor
        (L, H), mean over pictures and patches.
    """
    rows, columns = torch.meshgrid(torch.arange(grid[0]), torch.arange(grid[1]), indexing="ij")
    at = patch * torch.stack([rows.flatten(), columns.flatten()], 1).float()  # (N, 2)
    between = maps[..., 1:, 1:]  # (B, L, H, N, N)
    between = between / between.sum(-1, keepdim=True)
    return (between * torch.cdist(at, at).to(maps)).sum(-1).mean((0, 3))  # (L, H)


def _run_small(spec: Spec) -> Outcome:
    sizes, recipe = spec.data, spec.training
    train, validation, test = (part_of(sizes, split) for split in ("train", "val", "test"))
    torch.manual_seed(spec.seed)
    model = Classifier(spec.model.build())
    flops = floating_point_operations(model.network)

    def loss(model: nn.Module, batch: Batch) -> Tensor:
        pictures = augment(batch.pictures, recipe.shift, recipe.mirror)
        return answer_loss(model(pictures, batch.words, batch.word_mask).logits, batch.answers)

    start, label = time.perf_counter(), f"{spec.unit}, seed {spec.seed}"
    fitted = fit(model, feed_of(train), feed_of(validation), recipe.training, spec.seed, loss=loss, label=label)
    seconds = time.perf_counter() - start
    shuffled = LabelledPictures("test", test.form, shuffle_patches(test.pictures, spec.seed), test.labels)
    parts = {"test": test, "shuffled": shuffled}
    predicted = {name: predict(model, feed_of(part)).argmax(1).numpy() for name, part in parts.items()}
    right = {name: of == test.labels for name, of in predicted.items()}
    arrays = {
        "predicted_test": predicted["test"].astype(np.int16),
        "label_test": test.labels.astype(np.int16),
        "correct_test": right["test"],
        "correct_shuffled": right["shuffled"],
    }
    if isinstance(spec.model, ViT):
        arrays |= _looks(model.network, test, keep_weights=spec.seed == KEPT)
    metrics = {f"accuracy_{name}": Metric(float(of.mean()), len(of)) for name, of in right.items()}
    metrics["accuracy_val"] = Metric(fitted.best_score, len(validation))
    details = {
        "history": fitted.history,
        "parameters": sum(p.numel() for p in model.parameters()),
        "flops": flops,
        "seconds_per_step": seconds / (len(fitted.history) * math.ceil(len(train) / recipe.training.batch_size)),
        "pictures": {"train": len(train), "val": len(validation), "test": len(test)},
        "form": train.form,
        "data_hash": content_hash(sizes),
    }
    return Outcome(metrics, arrays, details)


@torch.no_grad()
def _looks(network: VisionTransformer, test: LabelledPictures, keep_weights: bool) -> dict[str, np.ndarray]:
    """Positions (1 + N, D), where the class token looks (L, H, N), distances (L, H), and the weights to be kept."""
    network.cpu().eval()
    some = as_float(torch.from_numpy(test.pictures[:: max(1, len(test) // LOOKED_AT)][:LOOKED_AT]))  # (b, 3, 32, 32)
    maps = network.encode(some, need_weights=True)[1]  # (b, L, H, 1 + N, 1 + N)
    arrays = {
        "positions": network.positions[0].numpy(),
        "class_attention": maps[:, :, :, 0, 1:].mean(0).numpy(),  # (L, H, N), the rest of 1 goes to itself
        "attention_distance": attention_distance(maps, network.grid, network.patches.patch).numpy(),
    }
    if keep_weights:
        arrays |= {f"model.{name}": p.numpy() for name, p in network.state_dict().items()}
    return arrays


def _run_published(spec: Spec) -> Outcome:
    """The published recipe; nothing is chosen, so that test accuracy may be recorded after each epoch."""
    recipe, where = spec.training, pick_device()
    train, test = _whole("train"), part_of(spec.data, "test")
    torch.manual_seed(spec.seed)
    model = spec.model.build().to(where)
    optimizer = torch.optim.AdamW(model.parameters(), lr=recipe.learning_rate)

    def logits(part: LabelledPictures, rows: np.ndarray) -> Tensor:
        pictures = as_float(torch.from_numpy(part.pictures[rows]).to(where))  # (B, 3, 32, 32), normalised by ½ and ½
        large = F.interpolate(pictures, (spec.model.size,) * 2, mode="bilinear")  # (B, 3, size, size)
        with autocast(where):
            return model(large).float()  # (B, 10)

    history, correct = [], []
    start = time.perf_counter()
    for epoch in range(recipe.epochs):
        order = np.random.default_rng([spec.seed, epoch]).permutation(len(train))
        model.train()
        total = torch.zeros(2, dtype=torch.float64, device=where)  # sum of losses, right answers
        for rows in np.split(order, range(recipe.batch_size, len(order), recipe.batch_size)):
            labels = torch.from_numpy(train.labels[rows]).to(where)
            scores = logits(train, rows)
            loss = F.cross_entropy(scores, labels)
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            optimizer.step()
            total += torch.stack([loss.detach() * len(rows), (scores.argmax(1) == labels).sum()]).double()
        if not total.isfinite().all():
            raise NotFiniteError(f"epoch {epoch}: the loss became NaN or infinite; lower Published.learning_rate")
        model.eval()
        with torch.inference_mode():
            batches = np.array_split(np.arange(len(test)), math.ceil(len(test) / 256))
            found = torch.cat([logits(test, rows).argmax(1).cpu() for rows in batches])  # (Q,)
        correct.append(found.numpy() == test.labels)
        mean_loss, training = (total / len(train)).tolist()
        history.append({"epoch": epoch, "loss": mean_loss, "training": training, "test": float(correct[-1].mean())})
    details = {
        "history": history,
        "parameters": sum(p.numel() for p in model.parameters()),
        "seconds_per_step": (time.perf_counter() - start) / (recipe.epochs * math.ceil(len(train) / recipe.batch_size)),
        "pictures": {"train": len(train), "test": len(test)},
        "whole": train.is_whole and test.is_whole,
        "form": train.form,
        "data_hash": content_hash(spec.data),
    }
    metrics = {"accuracy_test": Metric(history[-1]["test"], len(test))}
    return Outcome(metrics, {"correct_by_epoch": np.stack(correct)}, details)
