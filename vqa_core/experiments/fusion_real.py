"""Experiment ``fusion_real``: the fusions of experiment ``fusion`` on real pictures and real questions.

Three picture encoders, none of which saw an answer, are frozen: convolutional features learnt on the scenes, patches
of pixels, and statistics of gradients and colours. Their tokens stand on the same grid, so that they can be
concatenated feature by feature. The question encoder is trained together with the fusion. Data sets that are not on
this machine are left out.
"""

from __future__ import annotations

import json
import time
from dataclasses import dataclass
from functools import lru_cache
from itertools import combinations
from types import ModuleType

import numpy as np
import torch
from filelock import FileLock
from PIL import Image
from torch import Tensor, nn

from vqa_core.data import Dataset, Sample, Vocabulary, easy_vqa, encode_questions, nlvr, vqa_rad
from vqa_core.encoders.cnn import coordinates
from vqa_core.encoders.text import BagOfWords, RecurrentText
from vqa_core.encoders.tokens import CachedTokens, Tokens
from vqa_core.evaluation.shuffled import shuffled_pictures
from vqa_core.experiments import Metric, Outcome, Spec
from vqa_core.experiments.fusion import METHODS, activation_bytes, floating_point_operations
from vqa_core.experiments.records import results_root, write_atomically
from vqa_core.experiments.scene_encoders import load_encoders
from vqa_core.fusion.output import last_token, masked_mean
from vqa_core.heads.classifier import MLPHead
from vqa_core.model import VQAModel
from vqa_core.training.feed import Feed, as_float
from vqa_core.training.loop import Training, fit, predict

REQUIRES = ("scene_encoders",)
DATASETS = {"easy_vqa": "easy-VQA", "nlvr": "NLVR", "vqa_rad": "VQA-RAD"}
SWEEP = (
    "pool_sum",
    "pool_concat",
    "pool_film",
    "pool_gated",
    "pool_mfb",
    "attend_concat",
    "attend_film",
    "san",
    "late_mean",
    "question_only",
    "picture_only",
)
ENCODERS = {
    "a": "convolutional features learnt on scenes",
    "b": "patches of pixels (PCA)",
    "c": "gradients and colours of a cell",
}
SIDE, CELL = 64, 8  # pixels of a picture's side, of a cell's side
GRID = SIDE // CELL
_MODULES: dict[str, ModuleType] = {"easy_vqa": easy_vqa, "nlvr": nlvr, "vqa_rad": vqa_rad}
_SPLIT_SEED = 2026


@dataclass(frozen=True)
class Sizes:
    """How much of a data set is used.

    Attributes
    ----------
    name
        One of :data:`DATASETS`.
    validation
        Share of the training split that is kept for validation.
    pictures, questions
        At most so many pictures in each split, so many questions about each picture; None takes all.
    box_orders
        NLVR: in how many orders of its three boxes a training picture is shown.
    word_count
        A word that occurs less often in training questions is unknown; of few data, rare words are learnt by heart.
    """

    name: str
    validation: float
    pictures: int | None = None
    questions: int | None = None
    box_orders: int = 1
    word_count: int = 1


@dataclass(frozen=True)
class Model:
    """Which fusion of which picture encoders, and the sizes."""

    fusion: str
    encoders: str
    dim: int
    question: str
    question_dim: int
    hidden: int
    dropout: float
    head_depth: int = 1


@dataclass(frozen=True)
class Recipe:
    """What is done with one data set: the same for every fusion and every encoder."""

    data: Sizes
    training: Training
    dropout: float = 0.0


@dataclass(frozen=True)
class Config:
    """Sizes of a profile; ``narrow`` is the width of SAN, whose cost grows with tokens × width²."""

    seeds: int
    dim: int
    narrow: int
    question: str
    question_dim: int
    hidden: int
    encoders: tuple[str, ...]
    recipes: tuple[Recipe, ...]


ALL = "".join(ENCODERS)
SUBSETS = tuple("".join(c) for k in (1, 2) for c in combinations(ENCODERS, k))

PROFILES = {
    "smoke": Config(
        2,
        16,
        16,
        "bag",
        16,
        16,
        tuple(ENCODERS),
        (
            Recipe(Sizes("easy_vqa", 0.1, 60, 3), Training(epochs=1, batch_size=64, learning_rate=1e-2)),
            Recipe(Sizes("nlvr", 0.15, 30, 1, 2), Training(epochs=1, batch_size=64, learning_rate=3e-3), 0.2),
            Recipe(
                Sizes("vqa_rad", 0.15, 20, 3, word_count=3), Training(epochs=1, batch_size=64, learning_rate=1e-2), 0.3
            ),
        ),
    ),
    "cpu": Config(
        5,
        128,
        32,
        "bag",
        64,
        128,
        tuple(ENCODERS),
        (
            Recipe(Sizes("easy_vqa", 0.1, None, 2), Training(epochs=4, batch_size=128, learning_rate=1e-2)),
            Recipe(Sizes("nlvr", 0.15, None, 1, 2), Training(epochs=2, batch_size=256, learning_rate=3e-3), 0.2),
            Recipe(
                Sizes("vqa_rad", 0.15, word_count=3),
                Training(epochs=10, batch_size=128, learning_rate=1e-2, weight_decay=0.1),
                0.3,
            ),
        ),
    ),
    "gpu": Config(
        10,
        512,
        256,
        "gru",
        256,
        512,
        SUBSETS,
        (
            Recipe(Sizes("easy_vqa", 0.1, None, 5), Training(epochs=10, batch_size=512, learning_rate=2e-3)),
            Recipe(Sizes("nlvr", 0.15, None, 1, 2), Training(epochs=5, batch_size=512, learning_rate=1e-3), 0.2),
            Recipe(
                Sizes("vqa_rad", 0.15, word_count=3),
                Training(epochs=20, batch_size=128, learning_rate=1e-3, weight_decay=0.1),
                0.3,
            ),
        ),
    ),
}


def present() -> tuple[str, ...]:
    """Names of the data sets that are on this machine; looks for their folders and reads nothing."""
    found = []
    for name, module in _MODULES.items():
        try:
            module.find()
        except FileNotFoundError:
            continue
        found.append(name)
    return tuple(found)


def specs(profile: str) -> list[Spec]:
    """One spec for each method, encoders and seed, on every data set that is on this machine."""
    config, here = PROFILES[profile], present()

    def model(method: str, encoders: str, recipe: Recipe) -> Model:
        dim = config.narrow if method == "san" else config.dim
        return Model(method, encoders, dim, config.question, config.question_dim, config.hidden, recipe.dropout)

    units = {method: (method, ALL) for method in SWEEP}
    units |= {f"encoders_{letters}": ("attend_film", letters) for letters in config.encoders}
    return [
        Spec(
            "fusion_real",
            f"{recipe.data.name}.{unit}",
            seed,
            profile,
            recipe.data,
            model(method, encoders, recipe),
            recipe.training,
        )
        for seed in range(config.seeds)
        for unit, (method, encoders) in units.items()
        for recipe in config.recipes  # innermost, so that two workers prepare different data sets
        if recipe.data.name in here
    ]


# ------------------------------------------------------------------------------------------------------- the splits


def _group(sample: Sample, name: str) -> str:
    """What must not be on both sides of train and validation: a picture; in NLVR the sentence, which has several."""
    return sample.question if name == "nlvr" else sample.picture_id


def _some(dataset: Dataset, rows: np.ndarray, sizes: Sizes, split: str) -> Dataset:
    """Of the questions at ``rows``, in this order, as many as the sizes allow."""
    asked: dict[str, int] = {}  # picture → questions kept
    keep = []
    for row in rows.tolist():
        picture = dataset[row].picture_id
        if picture not in asked and sizes.pictures is not None and len(asked) == sizes.pictures:
            continue
        if sizes.questions is None or asked.get(picture, 0) < sizes.questions:
            asked[picture] = asked.get(picture, 0) + 1
            keep.append(row)
    return dataset.subset(keep, split)


@lru_cache(maxsize=4)
def splits_of(sizes: Sizes) -> dict[str, Dataset]:
    """Train, validation and test questions, in an order drawn once; validation is cut off the training split.

    NLVR is tested on ``dev``. VQA-RAD's official test asks about pictures that training asks about too, its validation
    here does not: there, validation is the harder of the two.
    """
    module = _MODULES[sizes.name]
    train, test = module.load("train"), module.load("dev" if sizes.name == "nlvr" else "test")
    rng = np.random.default_rng(_SPLIT_SEED)
    groups = sorted({_group(s, sizes.name) for s in train})
    held_out = {groups[i] for i in rng.permutation(len(groups))[: round(sizes.validation * len(groups))]}
    rows = rng.permutation(len(train))  # files have an order: easy-VQA's pictures begin with their open questions
    held = np.array([_group(train[i], sizes.name) in held_out for i in rows])
    return {
        "train": _some(train, rows[~held], sizes, "train"),
        "val": _some(train, rows[held], sizes, "val"),
        "test": _some(test, rng.permutation(len(test)), sizes, "test"),
    }


# --------------------------------------------------------------------------------------------- the picture encoders


def resized(dataset: Dataset, picture_id: str) -> np.ndarray:
    """A picture as squares of 64 pixels, uint8 (K, 64, 64, 3): K = 3 boxes in NLVR, else 1. Its aspect is not kept."""
    picture = dataset.picture(picture_id)  # (H, W, 3)
    views = [picture]
    if dataset.name == "nlvr":
        views = [picture[:, k * nlvr.BOX_STEP : k * nlvr.BOX_STEP + nlvr.BOX_SIZE] for k in range(3)]
    # Pillow's bilinear filter widens when a picture shrinks, so that no pixel is skipped
    return np.stack([np.asarray(Image.fromarray(v).resize((SIDE, SIDE), Image.Resampling.BILINEAR)) for v in views])


def cells(pictures: np.ndarray) -> np.ndarray:
    """Cut pictures (P, 64, 64, C) into cells in reading order, (P, 64, 8 · 8 · C)."""
    n, _, _, channels = pictures.shape
    x = pictures.reshape(n, GRID, CELL, GRID, CELL, channels)  # (P, row, y, column, x, C)
    return x.transpose(0, 1, 3, 2, 4, 5).reshape(n, GRID * GRID, -1)  # (P, 64, 8 · 8 · C)


def principal_components(patches: np.ndarray, dim: int) -> tuple[np.ndarray, np.ndarray]:
    """Mean (F,) and the ``dim`` directions of largest variance (F, dim) of patches (…, F)."""
    x = patches.reshape(-1, patches.shape[-1])  # (n, F)
    mean = x.mean(axis=0)
    _, vectors = np.linalg.eigh(np.cov(x, rowvar=False))  # ascending
    return mean, vectors[:, ::-1][:, :dim]


def gradients_and_colours(pictures: np.ndarray, bins: int = 8) -> np.ndarray:
    """Per cell: gradient strength by orientation, mean and spread of each colour; uint8 pictures → (P, 64, bins + 6).

    Orientations are unsigned (0 to π) and each pixel counts with the size of its gradient, as in histograms of
    oriented gradients (Dalal and Triggs 2005, doi:10.1109/CVPR.2005.177), without their block normalisation.
    """
    x = pictures.astype(np.float32) / 255  # (P, 64, 64, 3)
    dy, dx = np.gradient(x.mean(axis=-1), axis=(1, 2))  # (P, 64, 64) each
    strength = np.hypot(dx, dy)
    orientation = np.floor((np.arctan2(dy, dx) % np.pi) / np.pi * bins).astype(int) % bins
    oriented = np.where(orientation[..., None] == np.arange(bins), strength[..., None], 0)  # (P, 64, 64, bins)
    oriented = cells(oriented).reshape(len(x), GRID * GRID, CELL * CELL, bins).mean(axis=2)  # (P, 64, bins)
    colours = cells(x).reshape(len(x), GRID * GRID, CELL * CELL, 3)  # (P, 64, 8 · 8, 3)
    return np.concatenate([oriented, colours.mean(axis=2), colours.std(axis=2)], axis=-1)


def encode(pictures: np.ndarray, train: np.ndarray, profile: str) -> dict[str, np.ndarray]:
    """What the three encoders make of pictures: letter of :data:`ENCODERS` → float (P, 64, D), standardised.

    Parameters
    ----------
    pictures
        uint8 (P, 64, 64, 3).
    train
        bool (P,), pictures that PCA and standardisation may look at.
    profile
        Whose scene encoder.
    """
    namer, _, _ = load_encoders(profile)
    with torch.no_grad():
        parts = [namer.encoder(as_float(batch)).tokens for batch in torch.from_numpy(pictures).split(256)]
    patches = cells(pictures).astype(np.float32) / 255  # (P, 64, 192)
    mean, directions = principal_components(patches[train], dim=16)
    tokens = {
        "a": torch.cat(parts).numpy(),  # (P, 64, width of the scene encoder)
        "b": (patches - mean) @ directions,  # (P, 64, 16)
        "c": np.concatenate([gradients_and_colours(pictures[i : i + 256]) for i in range(0, len(pictures), 256)]),
    }
    return {letter: standardised(x, train) for letter, x in tokens.items()}


def standardised(x: np.ndarray, train: np.ndarray) -> np.ndarray:
    """Zero mean and unit spread of each feature over the training pictures; a constant feature becomes zero."""
    mean, spread = x[train].mean(axis=(0, 1)), x[train].std(axis=(0, 1))
    return ((x - mean) / np.where(spread > 1e-6, spread, 1)).astype(np.float32)


class RealTokens:
    """Image tokens of all pictures of a data set: ``ids`` (P,), and float16 (P, N, D) for each encoder's letter."""

    def __init__(self, ids: tuple[str, ...], of: dict[str, Tensor]) -> None:
        self.ids, self.of = ids, of
        self.row = {picture_id: i for i, picture_id in enumerate(ids)}


def _make_tokens(sizes: Sizes, profile: str, ids: tuple[str, ...]) -> dict[str, Tensor]:
    splits = splits_of(sizes)
    reader = {i: splits[s] for s in ("test", "val", "train") for i in splits[s].picture_ids}
    pictures = np.stack([resized(reader[i], i) for i in ids])  # (P, K, 64, 64, 3)
    trained = set(splits["train"].picture_ids)
    views = pictures.shape[1]
    train = np.repeat([i in trained for i in ids], views)  # (P · K,)
    found = encode(pictures.reshape(-1, SIDE, SIDE, 3), train, profile)
    return {
        k: torch.from_numpy(x.reshape(len(ids), -1, x.shape[-1])).half() for k, x in found.items()
    }  # (P, K · 64, D)


@lru_cache(maxsize=4)
def real_tokens(profile: str, sizes: Sizes) -> RealTokens:
    """Tokens of a data set; computed once and kept in a file, which is made anew when data, encoders or code change."""
    from safetensors import safe_open
    from safetensors.torch import save

    from vqa_core.experiments.provenance import code_hash

    folder = results_root() / profile
    index = folder / "scene_encoders" / "index.json"
    if not index.is_file():
        raise FileNotFoundError(
            f"{index} is missing; make it: python -m vqa_core run scene_encoders --profile {profile}"
        )
    splits = splits_of(sizes)
    ids = tuple(dict.fromkeys(i for part in splits.values() for i in part.picture_ids))
    hashes = [part.content_hash() for part in splits.values()]
    made_by = json.dumps([json.loads(index.read_text(encoding="utf-8")), hashes, code_hash([__name__])])
    path = folder / "fusion_real" / f"tokens_{sizes.name}.safetensors"
    path.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(path.with_suffix(".lock")):
        if path.is_file():
            with safe_open(path, "pt") as stored:
                if (stored.metadata() or {}).get("made_by") == made_by:
                    return RealTokens(ids, {letter: stored.get_tensor(letter) for letter in ENCODERS})
        tokens = _make_tokens(sizes, profile, ids)
        write_atomically(path, save(tokens, metadata={"made_by": made_by}))
    return RealTokens(ids, tokens)


# ------------------------------------------------------------------------------------------------ feeds and the model


def place(views: int) -> Tensor:
    """Row and column of every token from −1 to 1, float (views · 64, 2); views stand side by side."""
    where = coordinates(GRID, views * GRID)  # (2, 8, views · 8)
    return where.unflatten(2, (views, GRID)).permute(2, 1, 3, 0).flatten(0, 2)  # (views · 64, 2)


@lru_cache(maxsize=3)
def image_side(profile: str, sizes: Sizes, encoders: str, form: str) -> Tensor:
    """Image tokens of all pictures as a fusion reads them, concatenated over encoders and with their place.

    ``form`` is ``"grid"``: (P, N, D + 2), for NLVR in every order of boxes one after another, (orders · P, N, D + 2);
    ``"pooled"``: their mean, standardised again, (P, 1, D), without the mean place, which is the same for all;
    ``"blank"``: zeros, (1, 1, D).
    """
    tokens = real_tokens(profile, sizes)
    x = torch.cat([tokens.of[letter] for letter in encoders], dim=-1).float()  # (P, N, D)
    if form == "blank":
        return torch.zeros(1, 1, x.shape[-1])
    if form == "pooled":
        train = np.isin(tokens.ids, splits_of(sizes)["train"].picture_ids)  # (P,)
        return torch.from_numpy(standardised(x.mean(1, keepdim=True).numpy(), train))  # (P, 1, D)
    views = x.shape[1] // GRID**2
    boxes = x.unflatten(1, (views, GRID**2))  # (P, views, 64, D)
    orders = nlvr.BOX_ORDER[: sizes.box_orders] if views == 3 else [[0]]
    x = torch.cat([boxes[:, list(order)].flatten(1, 2) for order in orders])  # (orders · P, N, D)
    return torch.cat([x, place(views).expand(len(x), -1, -1)], dim=-1)  # (orders · P, N, D + 2)


def feed_of(profile: str, sizes: Sizes, model: Model, split: str) -> Feed:
    """A split as the method reads it; a hidden question is one and the same word for all."""
    method, splits = METHODS[model.fusion], splits_of(sizes)
    questions = splits[split]
    sentences = list(dict.fromkeys(s.question for s in questions))
    number = {sentence: i for i, sentence in enumerate(sentences)}
    asked = np.array([number[s.question] for s in questions])  # (Q,)
    words, mask = encode_questions(sentences, word_vocabulary(sizes))  # (U, T)
    if method.text == "blank":
        words, mask, asked = np.ones((1, 1), np.int64), np.ones((1, 1), bool), np.zeros_like(asked)
    answers = answer_vocabulary(sizes).ids(s.answer for s in questions)  # (Q,)
    tokens = real_tokens(profile, sizes)
    shown = np.array([tokens.row[s.picture_id] for s in questions])  # (Q,)
    if split == "train":  # all methods take the same number of steps, whether they can tell the orders apart or not
        orders = np.arange(sizes.box_orders)[:, None] * (len(tokens.ids) if method.image == "grid" else 0)
        shown = (shown + orders).ravel()  # (orders · Q,)
        asked, answers = np.tile(asked, sizes.box_orders), np.tile(answers, sizes.box_orders)
    if method.image == "blank":
        shown = np.zeros_like(shown)
    return Feed(image_side(profile, sizes, model.encoders, method.image), shown, words, mask, answers, asked)


@lru_cache(maxsize=4)
def word_vocabulary(sizes: Sizes) -> Vocabulary:
    """Words of the training questions."""
    return Vocabulary.of_words((s.question for s in splits_of(sizes)["train"]), sizes.word_count)


@lru_cache(maxsize=4)
def answer_vocabulary(sizes: Sizes) -> Vocabulary:
    """Answers of the training questions."""
    return Vocabulary.of_answers(s.answer for s in splits_of(sizes)["train"])


class QuestionVector(nn.Module):
    """One vector per question, trained together with the fusion, with dropout.

    Parameters
    ----------
    words
        Size of the vocabulary.
    dim
        Features of the vector.
    kind
        ``"bag"``: mean of word embeddings; ``"gru"``: last state of a GRU, fifty times dearer on a processor core.
    dropout
        Probability of dropping a feature of the vector.
    """

    def __init__(self, words: int, dim: int, kind: str, dropout: float) -> None:
        super().__init__()
        if kind not in ("bag", "gru"):
            raise ValueError(f"kind is {kind!r}, allowed are 'bag' and 'gru'")
        self.encoder = BagOfWords(words, dim) if kind == "bag" else RecurrentText(words, dim, "gru")
        self.pool = masked_mean if kind == "bag" else last_token
        self.norm, self.dropout = nn.LayerNorm(dim), nn.Dropout(dropout)
        self.out_dim = dim

    def forward(self, words: Tensor, word_mask: Tensor) -> Tokens:
        """Word ids (B, T) with their mask → (B, 1, dim)."""
        read = self.encoder(words, word_mask)
        vector = self.norm(self.pool(read.tokens, read.mask))  # (B, dim), as large for long questions as for short ones
        return Tokens(self.dropout(vector).unsqueeze(1))  # (B, 1, dim)


def build(model: Model, image_dim: int, words: int, answers: int) -> VQAModel:
    """The model of a run: cached image tokens, the question encoder, the method's fusion, its head."""
    method = METHODS[model.fusion]
    fusion = method.build(image_dim, model.question_dim, model.dim, answers)
    head = MLPHead(fusion.out_dim, answers, model.hidden, model.dropout, model.head_depth)
    text = QuestionVector(words, model.question_dim, model.question, model.dropout)
    return VQAModel(CachedTokens(image_dim), text, fusion, nn.Identity() if method.head == "none" else head)


# -------------------------------------------------------------------------------------------------------------- run


def run(spec: Spec) -> Outcome:
    """Train one method on one data set with one seed, and answer its test questions."""
    profile, sizes, model_of = spec.profile, spec.data, spec.model
    splits, vocabulary = splits_of(sizes), answer_vocabulary(sizes)
    feeds = {split: feed_of(profile, sizes, model_of, split) for split in splits}
    train, test = feeds["train"], feeds["test"]
    torch.manual_seed(spec.seed)
    model = build(model_of, train.pictures.shape[-1], len(word_vocabulary(sizes)), len(vocabulary))
    flops = floating_point_operations(model, train)
    memory = activation_bytes(model, train, spec.training.batch_size)
    start = time.perf_counter()
    fitted = fit(model, train, feeds["val"], spec.training, spec.seed, label=f"{spec.unit}, seed {spec.seed}")
    seconds = time.perf_counter() - start

    best = predict(model, test).argmax(1)  # (Q,)
    right = (best == test.answers).numpy()  # an answer outside the vocabulary is −100, and wrong
    families = splits["test"].families
    pictures = {picture_id: i for i, picture_id in enumerate(splits["test"].picture_ids)}
    arrays = {
        "predicted_test": best.numpy().astype(np.int16),
        "correct_test": right,
        "picture_test": np.array([pictures[s.picture_id] for s in splits["test"]], dtype=np.int32),
        "family_test": np.array([families.index(s.family) for s in splits["test"]], dtype=np.int16),
        "closed_test": np.array([s.kind == "closed" for s in splits["test"]]),
    }
    if model_of.fusion == "attend_film":
        other = shuffled_pictures(arrays["picture_test"], spec.seed)  # (Q,)
        shuffled = predict(model, test.with_pictures(test.picture_index[other])).argmax(1)
        arrays["correct_shuffled"] = (shuffled == test.answers).numpy()
    groups = {"open": ~arrays["closed_test"], "closed": arrays["closed_test"]}
    groups |= {f"family.{name}": arrays["family_test"] == i for i, name in enumerate(families)}
    metrics = {
        "accuracy_val": Metric(fitted.best_score, len(feeds["val"])),
        "accuracy_test": Metric(float(right.mean()), len(right)),
        "ceiling": Metric(float((test.answers >= 0).float().mean()), len(right)),
    }
    metrics |= {
        f"accuracy_test.{name}": Metric(float(right[rows].mean()), int(rows.sum()))
        for name, rows in groups.items()
        if rows.any()
    }
    details = {
        "history": fitted.history,
        "best_epoch": fitted.best_epoch,
        "parameters": sum(p.numel() for p in model.parameters()),
        "flops": flops,
        "activation_bytes": memory,
        "seconds_per_step": seconds / (len(fitted.history) * -(-len(train) // spec.training.batch_size)),
        "image_tokens": train.pictures.shape[1],
        "questions": {split: len(part) for split, part in splits.items()},
        "pictures": {split: len(part.picture_ids) for split, part in splits.items()},
        "answers": vocabulary.symbols,
        "families": families,
        "data_hash": splits["test"].content_hash(),
    }
    return Outcome(metrics, arrays, details)
