"""Experiment ``medical``: one grid of medical VQA models on VQA-RAD and on phantoms.

A unit is ``data.encoders.union.interaction.variant``, for instance ``vqa_rad.maml+dae.concat.ban.tcr``. Picture
encoders are frozen: their tokens are made once and kept in files, averaged to a few cells, standardised, and reduced to
their principal components over training pictures. All else is trained: what joins several encoders, the question
encoder, the interaction, the reasoning, the head.

VQA-RAD follows the default :class:`~vqa_core.evaluation.protocols.Protocol`; the epoch is chosen on questions about
pictures that were not trained on. Units whose files are not on this machine are left out, see :func:`absent`.
**Not for clinical use; phantoms are not patients.**
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from filelock import FileLock
from torch import Tensor, nn
from torch.nn import functional as F
from torch.optim.swa_utils import update_bn

from vqa_core.data import Dataset, Vocabulary, encode_questions, phantoms, tokenize, vqa_rad
from vqa_core.data.collate import picture_array
from vqa_core.encoders.pretrained import BertText
from vqa_core.encoders.text import RecurrentText, TransformerText
from vqa_core.encoders.tokens import CachedTokens, Frozen, Tokens
from vqa_core.encoders.union import Union
from vqa_core.encoders.word_vectors import WordVectorText, embedding_matrix, read_mevf
from vqa_core.evaluation import baselines
from vqa_core.evaluation.accuracy import plain
from vqa_core.evaluation.leakage import language_prior
from vqa_core.evaluation.protocols import Protocol
from vqa_core.evaluation.shuffled import shuffled_pictures
from vqa_core.experiments import Metric, Outcome, Spec
from vqa_core.experiments import medical_encoders as encoders
from vqa_core.experiments.medical_encoders import SIZE, load_encoder
from vqa_core.experiments.records import results_root, write_atomically
from vqa_core.fusion.bilinear import BAN
from vqa_core.fusion.cross_attention import V9
from vqa_core.fusion.nonlocal_ import CMSA, word_cell_maps
from vqa_core.fusion.output import FusionOutput, as_tokens, masked_mean
from vqa_core.fusion.stacked import SAN
from vqa_core.fusion.vector import MFB, ConcatFusion
from vqa_core.heads.classifier import MLPHead
from vqa_core.heads.conditional import (
    KINDS,
    QCR,
    Branch,
    ConditionalVQAModel,
    QuestionReader,
    TypeClassifier,
    branch_answers,
)
from vqa_core.model import VQAModel, VQAOutput
from vqa_core.training.feed import Feed, as_float
from vqa_core.training.loop import Training, answer_loss, fit, pick_device, predict
from vqa_core.training.weighting import DynamicWeightAverage

REQUIRES = ("medical_encoders",)
DATASETS = {"vqa_rad": "VQA-RAD", "phantoms": "phantoms"}
ORGANS = Vocabulary(("ABD", "CHEST", "HEAD"))  # labels of both data sets
INTERACTIONS = ("san", "ban", "cmsa")
OTHER_FUSIONS = ("concat", "mfb", "cross")
#: Short name of an encoder in a unit → its name in experiment ``medical_encoders``.
ENCODERS = {
    "vqa_rad": {
        "maml": "maml_published",
        "dae": "dae_published",
        "natural": "natural",
        "natural_random": "natural_random",
        "clip": "clip",
        "pubmedclip": "pubmedclip",
        "resnet50": "resnet50",
        "vit": "vit",
        "phantom_maml": "maml",
        "phantom_dae": "dae",
    },
    "phantoms": {name: name for name in encoders.TRAINED},
}
#: Sets of encoders of experiment 1, and how several are joined.
SETS = (
    (("maml",), "alone"),
    (("dae",), "alone"),
    (("natural",), "alone"),
    (("maml", "dae"), "concat"),
    (("maml", "natural"), "concat"),
    (("dae", "natural"), "concat"),
    (("maml", "dae", "natural"), "concat"),
    (("maml", "dae", "natural"), "sum"),
    (("maml", "dae", "natural"), "attention"),
)
VARIANTS = ("base", "qcr", "tcr", "qcr+tcr", "glove", "self_attention", "bert", "organ_dwa", "question_only")
PAIR = ("maml", "dae")  # the encoders of MEVF


@dataclass(frozen=True)
class Rad:
    """How VQA-RAD is used: ``train`` and ``test`` of the protocol, pixels of a picture's side.

    ``questions`` takes at most so many of each split, for quick trials. A word that occurs less often than
    ``word_count`` in training questions is unknown; questions are cut after ``max_words``.
    """

    train: str = "1797"
    test: str = "451"
    side: int = 128
    questions: int | None = None
    word_count: int = 2
    max_words: int = 12

    @property
    def key(self) -> str:
        """Names the token files."""
        return f"vqa_rad{self.train}"


@dataclass(frozen=True)
class Drawn:
    """How many phantoms are used; test pictures are shown again with the noise of ``severity``."""

    train: int
    val: int
    test: int
    severity: float = 4.0
    questions: int | None = None
    word_count: int = 1
    max_words: int = 14

    @property
    def key(self) -> str:
        """Names the token files."""
        return f"phantoms{self.train}"


@dataclass(frozen=True)
class Sizes:
    """Sizes of all models of a profile.

    Attributes
    ----------
    cells
        Side of the grid that all encoders' tokens are averaged to.
    features
        Principal components that are kept of each encoder.
    dim
        Features of the fused vector, and of the encoders' sum or attention.
    text_dim, embedding_dim
        Features of a word's state and of a word embedding.
    hidden
        Width of the head.
    block
        Width of CMSA's blocks; None takes half of a position's features, as in the paper.
    dropout
        Probability in the head and at word embeddings.
    """

    cells: int
    features: int
    dim: int
    text_dim: int
    embedding_dim: int
    hidden: int
    block: int | None
    dropout: float


@dataclass(frozen=True)
class Model:
    """What a unit is made of; ``variant`` is one of :data:`VARIANTS`."""

    encoders: tuple[str, ...]
    union: str
    interaction: str
    variant: str
    sizes: Sizes


@dataclass(frozen=True)
class Config:
    """Sizes of a profile; ``amounts`` are numbers of training phantoms of one model, besides ``drawn.train``, and how
    it is trained with them."""

    seeds: int
    sizes: Sizes
    rad: Rad
    drawn: Drawn
    amounts: dict[int, Training]
    training: dict[str, Training]


def _phantom_training(epochs: int) -> Training:
    return Training(epochs=epochs, batch_size=128, learning_rate=1e-2, weight_decay=0.02)


_GPU_PHANTOMS = Training(epochs=20, batch_size=256, learning_rate=1e-3, weight_decay=0.05, warmup=0.1)
PROFILES = {
    "smoke": Config(
        2,
        Sizes(2, 6, 16, 16, 12, 16, 8, 0.2),
        Rad(side=128, questions=60),
        Drawn(12, 6, 10, questions=60),
        {8: Training(epochs=1, batch_size=32, learning_rate=5e-3)},
        {name: Training(epochs=1, batch_size=32, learning_rate=5e-3) for name in DATASETS},
    ),
    "cpu": Config(
        5,
        Sizes(2, 24, 32, 32, 32, 64, 16, 0.3),  # few cells, narrow blocks: CMSA takes half of the time even so
        Rad(),
        Drawn(400, 100, 300),
        {100: _phantom_training(12), 800: _phantom_training(4)},
        {
            "vqa_rad": Training(epochs=5, batch_size=128, learning_rate=1e-2, weight_decay=0.1),
            "phantoms": _phantom_training(5),
        },
    ),
    "gpu": Config(
        10,
        Sizes(6, 64, 512, 512, 300, 1024, None, 0.4),
        Rad(side=224),
        Drawn(4000, 500, 1000),
        dict.fromkeys((100, 400, 1600, 10000), _GPU_PHANTOMS),
        {
            "vqa_rad": Training(epochs=30, batch_size=64, learning_rate=5e-4, weight_decay=0.1, warmup=0.1),
            "phantoms": _GPU_PHANTOMS,
        },
    ),
}


# --------------------------------------------------------------------------------------------------------- the grid


def _find_glove() -> Path:
    folder = vqa_rad.find() / "mevf_weights"
    for name in ("glove6b_init_300d.npy", "dictionary.pkl"):
        if not (folder / name).is_file():
            raise FileNotFoundError(f"{folder / name} is missing; put the files published with MEVF there")
    return folder


def _find_bert() -> Path:
    folder = Path(os.environ.get("VQA_BERT", ""))
    if not os.environ.get("VQA_BERT") or not (folder / "config.json").is_file():
        raise FileNotFoundError("VQA_BERT does not name a folder with a saved BertModel and its tokeniser")
    return folder


def _find_rad() -> Path:
    folder = vqa_rad.find()
    if not (folder / "trainset.json").is_file():  # the other form has no official kinds, nor template questions
        raise FileNotFoundError("VQA-RAD's JSON form is missing: python -m vqa_core data fetch vqa_rad --source json")
    return folder


#: What a unit may need besides encoders → what finds it, and what it is.
FILES: dict[str, tuple[Callable[[], Path], str]] = {
    "vqa_rad": (_find_rad, "VQA-RAD in its JSON form"),
    "glove": (_find_glove, "vqa_rad/mevf_weights/glove6b_init_300d.npy and dictionary.pkl"),
    "bert": (_find_bert, "a saved BertModel with its tokeniser in the folder VQA_BERT"),
}


def absent() -> dict[str, str]:
    """Data, encoders and word vectors that are left out → what they would need. Looks for files, reads none."""
    missing = encoders.absent()
    for name, (look, what) in FILES.items():
        try:
            look()
        except FileNotFoundError:
            missing[name] = what
    return missing


def grid_of(profile: str) -> dict[str, tuple[Rad | Drawn, Model]]:
    """All models that are trained, whether their files are here or not: unit → data and model."""
    config = PROFILES[profile]
    found: dict[str, tuple[Rad | Drawn, Model]] = {}

    def add(data: Rad | Drawn, names: Sequence[str], how: str, interaction: str, variant: str = "base") -> None:
        name = "vqa_rad" if isinstance(data, Rad) else "phantoms"
        tail = f".{data.train}" if isinstance(data, Drawn) and data != config.drawn else ""
        unit = f"{name}.{'+'.join(names)}.{how}.{interaction}.{variant}{tail}"
        own = tuple(ENCODERS[name][n] for n in names)
        found[unit] = (data, Model(own, how, interaction, variant, config.sizes))

    for interaction in INTERACTIONS:
        for names, how in SETS:  # experiments 1 and 2
            add(config.rad, names, how, interaction)
        add(config.rad, ("natural_random",), "alone", interaction)
        for name in ("clip", "pubmedclip"):  # experiment 4
            add(config.rad, (name,), "alone", interaction)
            add(config.rad, (*PAIR, name), "concat", interaction)
        for name in ("resnet50", "vit"):
            add(config.rad, (name,), "alone", interaction)
        for name in PAIR:
            add(config.drawn, (name,), "alone", interaction)
        add(config.drawn, PAIR, "concat", interaction)
    for data in (config.rad, config.drawn):
        for fusion in OTHER_FUSIONS:  # experiment 5, beside SAN, BAN and CMSA
            add(data, PAIR, "concat", fusion)
        for variant in ("qcr", "tcr", "qcr+tcr"):
            for interaction in ("san", "ban") if data == config.rad else ("ban",):
                add(data, PAIR, "concat", interaction, variant)
        for variant in ("self_attention", "organ_dwa", "question_only"):
            add(data, PAIR, "concat", "ban", variant)
    add(config.rad, PAIR, "concat", "ban", "glove")
    add(config.rad, ("phantom_maml", "phantom_dae"), "concat", "ban")
    if profile == "gpu":
        add(config.rad, PAIR, "concat", "ban", "bert")
    for level in encoders.LEVELS:  # experiment 6
        for interaction in ("ban", "cmsa"):
            add(config.drawn, (f"experts_{level}",), "alone", interaction)
    for amount in config.amounts:
        add(replace(config.drawn, train=amount), PAIR, "concat", "ban")
    return found


def specs(profile: str) -> list[Spec]:
    """One spec for each unit that can run here and each seed; what has no randomness has one seed."""
    config, missing = PROFILES[profile], absent()

    def training(data: Rad | Drawn) -> Training:
        if isinstance(data, Rad):
            return config.training["vqa_rad"]
        return config.training["phantoms"] if data == config.drawn else config.amounts[data.train]

    def possible(unit: str, model: Model) -> bool:
        name = unit.split(".")[0]
        return name not in missing and model.variant not in missing and not set(model.encoders) & set(missing)

    here = {unit: both for unit, both in grid_of(profile).items() if possible(unit, both[1])}
    found = [
        Spec("medical", unit, seed, profile, data, model, training(data))
        for seed in range(config.seeds)
        for unit, (data, model) in here.items()
    ]
    fixed = {"phantoms.baselines": config.drawn}
    if "vqa_rad" not in missing:
        fixed |= {"vqa_rad.baselines": config.rad, "vqa_rad.first_words": config.rad}
    return [*found, *(Spec("medical", unit, 0, profile, data) for unit, data in fixed.items())]


# --------------------------------------------------------------------------------------------------------- questions


class Material(NamedTuple):
    """The questions of a data set.

    Attributes
    ----------
    parts
        ``train``, ``val``, ``test``; of phantoms also ``noisy``, the test with noisier pictures. No picture is in both
        train and val; of phantoms none is in two of the first three. VQA-RAD's test asks about training pictures.
    vocabulary
        Answers to choose from: those of all training questions, the validation's among them.
    words
        Words of the questions that are trained on.
    closed
        bool (Q,), the closed test questions.
    label
        Names the protocol.
    """

    parts: dict[str, Dataset]
    vocabulary: Vocabulary
    words: Vocabulary
    closed: np.ndarray
    label: str


@lru_cache(maxsize=6)
def material_of(data: Rad | Drawn) -> Material:
    """Read or draw the questions."""
    if isinstance(data, Rad):
        of = Protocol(train=data.train, test=data.test).load()
        parts = {"train": of.train, "val": of.validation, "test": of.test}
        vocabulary, label = of.vocabulary, of.protocol.label
    else:
        sizes = {"train": data.train, "val": data.val, "test": data.test}
        parts = {split: _phantoms(split, n, 1.0) for split, n in sizes.items()}
        parts["noisy"] = _phantoms("test", data.test, data.severity)
        vocabulary = Vocabulary.of_answers(s.answer for split in ("train", "val") for s in parts[split])
        label = f"phantoms, {data.train} → {data.test} pictures"
    if data.questions is not None:
        parts = {split: part.subset(range(min(len(part), data.questions))) for split, part in parts.items()}
    words = Vocabulary.of_words((s.question for s in parts["train"]), data.word_count)
    return Material(parts, vocabulary, words, np.array([s.kind == "closed" for s in parts["test"]]), label)


@lru_cache(maxsize=8)
def _phantoms(split: str, n: int, severity: float) -> phantoms.PhantomSet:
    return phantoms.load(split, n=n, size=SIZE, severity=severity)


# ------------------------------------------------------------------------------------- what frozen encoders make of it


def picture_rows(material: Material) -> dict[str, np.ndarray]:
    """Row of every question's picture among all pictures: part → int (Q,); ``noisy`` pictures have rows of their own.

    Rows are in the order of first use in train, val, test, noisy.
    """
    number: dict[tuple[bool, str], int] = {}
    return {
        split: np.array([number.setdefault((split == "noisy", s.picture_id), len(number)) for s in part])
        for split, part in material.parts.items()
    }


def all_pictures(material: Material, side: int) -> np.ndarray:
    """All pictures, uint8 (P, side, side, 3), in the order of :func:`picture_rows`. Their aspect is not kept."""
    rows = picture_rows(material)
    found = np.zeros((1 + max(int(r.max()) for r in rows.values()), side, side, 3), dtype=np.uint8)
    for split, part in material.parts.items():
        pictures, index = picture_array(part, side, fit="stretch", progress=False)
        found[rows[split]] = pictures[index]
    return found


@torch.no_grad()
def encode(encoder: nn.Module, grid: tuple[int, int], pictures: np.ndarray, train: np.ndarray, sizes: Sizes) -> Tensor:
    """What a frozen encoder makes of pictures: float (P, cells², at most ``features``).

    Batch norms take their statistics from the training pictures, whatever the encoder came with. Tokens are averaged
    to ``cells`` × ``cells``, standardised by feature, projected on their principal components (both of training
    pictures), and scaled to a spread of 1 over all features together.

    Parameters
    ----------
    encoder, grid
        From :func:`~vqa_core.experiments.medical_encoders.load_encoder`.
    pictures
        uint8 (P, side, side, 3).
    train
        bool (P,), pictures that may be learned from.
    sizes
        ``cells`` and ``features``.
    """
    device = pick_device()
    encoder = encoder.to(device)
    read = torch.from_numpy(pictures)
    shown = read[torch.from_numpy(train)]
    update_bn([as_float(x).to(device) for x in shown.split(32)], encoder)
    encoder.eval()
    tokens = []
    for batch in read.split(32):
        x = encoder(as_float(batch).to(device)).tokens  # (b, rows · columns, D)
        x = F.adaptive_avg_pool2d(x.transpose(1, 2).unflatten(2, grid), sizes.cells)  # (b, D, cells, cells)
        tokens.append(x.flatten(2).transpose(1, 2).cpu())  # (b, cells², D)
    x = torch.cat(tokens).double()  # (P, cells², D)
    mean, spread = x[train].mean((0, 1)), x[train].std((0, 1))
    x = (x - mean) / torch.where(spread > 1e-6, spread, 1.0)
    seen = x[train].flatten(0, 1)  # (n, D)
    directions = torch.linalg.eigh(seen.T @ seen / len(seen)).eigenvectors.flip(1)[:, : sizes.features]  # (D, F)
    # the sign of an eigenvector is arbitrary: its largest entry is made positive, so that every machine agrees
    directions = directions * directions.gather(0, directions.abs().argmax(0, keepdim=True)).sign()
    x = x @ directions  # (P, cells², F)
    return (x / x[train].std()).float()


@lru_cache(maxsize=24)
def tokens_of(profile: str, data: Rad | Drawn, name: str) -> Tensor:
    """Tokens of all pictures, made once and kept in a file; made anew when encoder, data, sizes or code change."""
    from safetensors import safe_open
    from safetensors.torch import save

    from vqa_core.experiments.provenance import code_hash

    material, sizes = material_of(data), PROFILES[profile].sizes
    hashes = [part.content_hash() for part in material.parts.values()]
    made_by = json.dumps([name, _weights_hash(profile, name), repr((data, sizes)), hashes, code_hash([__name__])])
    path = results_root() / profile / "medical" / f"tokens_{data.key}_{name}.safetensors"
    path.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(path.with_suffix(".lock")):
        if path.is_file():
            with safe_open(path, "pt") as stored:
                if (stored.metadata() or {}).get("made_by") == made_by:
                    return stored.get_tensor("tokens")
        loaded, rows = load_encoder(profile, name), picture_rows(material)
        pictures = _kept_pictures(data)
        train = np.isin(np.arange(len(pictures)), rows["train"])
        tokens = encode(*loaded, pictures, train, sizes).contiguous()
        write_atomically(path, save({"tokens": tokens}, metadata={"made_by": made_by}))
    return tokens


@lru_cache(maxsize=2)
def _kept_pictures(data: Rad | Drawn) -> np.ndarray:
    return all_pictures(material_of(data), data.side if isinstance(data, Rad) else SIZE)


def _weights_hash(profile: str, name: str) -> str:
    """SHA-256 of an encoder's record or file."""
    if name in encoders.TRAINED:
        spec = next(s for s in encoders.specs(profile) if s.unit == name and s.seed == 0)
        path = spec.path().with_suffix(".safetensors")
        if not path.is_file():
            raise FileNotFoundError(
                f"{path} is missing; make it: python -m vqa_core run medical_encoders --profile {profile}"
            )
        files = [path]
    elif name in encoders.FILES:
        path = encoders.FILES[name][0]()
        files = sorted(path.glob("*.safetensors")) if path.is_dir() else [path]
    else:
        return "random"  # drawn by the code, whose hash is kept beside
    return hashlib.sha256(b"".join(f.read_bytes() for f in files)).hexdigest()


# ------------------------------------------------------------------------------------------------------------- models


class JoinedTokens(nn.Module):
    """Cached tokens of several encoders, which lie side by side in one tensor, joined by a :class:`Union`.

    ``"attention"`` is over the encoders, cell by cell: the E tokens of a cell read one another, and their mean is the
    cell's token. So the grid stays, and every interaction gets as many tokens as with ``"concat"`` and ``"sum"``.

    Parameters
    ----------
    widths
        Features of each encoder.
    how
        ``"concat"``, ``"sum"`` or ``"attention"``.
    dim
        Features after ``"sum"`` and ``"attention"``.
    """

    def __init__(self, widths: Sequence[int], how: str, dim: int) -> None:
        super().__init__()
        self.widths = list(widths)
        self.union = Union([CachedTokens(width) for width in widths], how, dim)
        self.out_dim = self.union.out_dim

    def forward(self, tokens: Tensor) -> Tokens:
        """Tokens (B, N, Σ widths) → (B, N, out_dim)."""
        parts = tokens.split(self.widths, dim=-1)  # E × (B, N, width)
        if self.union.how != "attention":
            return self.union(*parts)
        at_cells = [part.flatten(0, 1).unsqueeze(1) for part in parts]  # E × (B · N, 1, width)
        read = self.union(*at_cells).tokens.mean(1)  # (B · N, E, dim) → (B · N, dim)
        return Tokens(read.unflatten(0, tokens.shape[:2]))  # (B, N, dim)


class CrossFusion(nn.Module):
    """Version 9 of the cross-attention ablation as a fusion: both sides read each other, then W [mean ; mean].

    Parameters
    ----------
    image_dim, text_dim, out_dim
        Features of image tokens, text tokens, and of tokens inside and the fused vector.
    """

    def __init__(self, image_dim: int, text_dim: int, out_dim: int, heads: int = 4) -> None:
        super().__init__()
        self.image_dim, self.text_dim, self.out_dim = image_dim, text_dim, out_dim
        self.image_projection, self.text_projection = nn.Linear(image_dim, out_dim), nn.Linear(text_dim, out_dim)
        self.cross = V9(out_dim, heads)
        self.out_projection = nn.Linear(2 * out_dim, out_dim)

    def forward(
        self,
        image_tokens: Tensor,
        text_tokens: Tensor,
        image_mask: Tensor | None = None,
        text_mask: Tensor | None = None,
    ) -> FusionOutput:
        """Fuse; shapes as in :meth:`vqa_core.fusion.vector.VectorFusion.forward`."""
        image = self.image_projection(as_tokens("image", image_tokens, self.image_dim, image_mask))  # (B, Nᵢ, D)
        text = self.text_projection(as_tokens("text", text_tokens, self.text_dim, text_mask))  # (B, Nₜ, D)
        joined = self.cross(image, text, image_mask, text_mask)
        both = masked_mean(joined.image, image_mask), masked_mean(joined.text, text_mask)  # (B, D) each
        return FusionOutput(self.out_projection(torch.cat(both, dim=-1)), image, text)


class ProjectedBert(nn.Module):
    """A frozen BERT, its states mapped to ``dim`` features."""

    def __init__(self, bert: BertText, dim: int) -> None:
        super().__init__()
        self.bert, self.project, self.out_dim = Frozen(bert), nn.Linear(bert.out_dim, dim), dim

    def forward(self, words: Tensor, word_mask: Tensor) -> Tokens:
        """Word-piece ids (B, N) and their mask → (B, N, dim) with the mask."""
        read = self.bert(words, word_mask)
        return Tokens(self.project(read.tokens), read.mask)


class WithOrgan(nn.Module):
    """A VQA model that also names the picture's organ from the fused vector; both losses weighted by DWA."""

    def __init__(self, model: VQAModel, dim: int) -> None:
        super().__init__()
        self.model, self.organ = model, nn.Linear(dim, len(ORGANS))
        self.weighting = DynamicWeightAverage(("answer", "organ"))

    def forward(self, pictures: Tensor, words: Tensor, word_mask: Tensor) -> VQAOutput:
        """As :class:`~vqa_core.model.VQAModel`."""
        return self.model(pictures, words, word_mask)

    def loss(self, output: VQAOutput, answers: Tensor, organs: Tensor) -> Tensor:
        """Weighted sum of the two cross-entropies."""
        organ = F.cross_entropy(self.organ(output.fusion.fused), organs)
        return self.weighting({"answer": answer_loss(output.logits, answers), "organ": organ})


def fusion_of(model: Model, image_dim: int) -> nn.Module:
    """The interaction of a model."""
    s = model.sizes
    dims = image_dim, s.text_dim, s.dim
    makers = {
        "concat": lambda: ConcatFusion(*dims),
        "mfb": lambda: MFB(*dims, factor=4),
        "san": lambda: SAN(*dims),
        "ban": lambda: BAN(*dims),
        "cmsa": lambda: CMSA(*dims, grid=(s.cells, s.cells), hidden=s.block),
        "cross": lambda: CrossFusion(*dims),
    }
    if model.interaction not in makers:
        raise ValueError(f"interaction is {model.interaction!r}, allowed are {', '.join(makers)}")
    return makers[model.interaction]()


def text_of(model: Model, words: Vocabulary) -> nn.Module:
    """The question encoder of a model."""
    s = model.sizes
    if model.variant == "bert":
        return ProjectedBert(BertText(_find_bert()), s.text_dim)
    if model.variant == "glove":
        matrix = embedding_matrix(read_mevf(_find_glove()), words).matrix
        return WordVectorText(matrix, s.text_dim, "gru", s.embedding_dim, trainable=False, dropout=s.dropout)
    if model.variant == "self_attention":
        return TransformerText(len(words), s.text_dim, depth=1, dropout=s.dropout)
    return RecurrentText(len(words), s.text_dim, "gru", s.embedding_dim, dropout=s.dropout)


def build(model: Model, widths: Sequence[int], words: Vocabulary, answers: int, train: Feed) -> nn.Module:
    """The model of a run.

    Parameters
    ----------
    model
        What it is made of.
    widths
        Features of the cached tokens of each encoder.
    words, answers
        Vocabulary of words, number of answers.
    train
        The training questions: a branch of TCR has the answers that its kind has there.
    """
    if model.variant not in VARIANTS:
        raise ValueError(f"variant is {model.variant!r}, allowed are {', '.join(VARIANTS)}")
    s = model.sizes
    image = CachedTokens(widths[0]) if model.union == "alone" else JoinedTokens(widths, model.union, s.dim)
    text = text_of(model, words)

    def head(n: int) -> nn.Module:
        return MLPHead(s.dim, n, s.hidden, s.dropout)

    def reader() -> QuestionReader:
        return QuestionReader(nn.Embedding(len(words), s.embedding_dim, padding_idx=0), s.text_dim)

    if not {"qcr", "tcr"} & set(model.variant.split("+")):
        plain_model = VQAModel(image, text, fusion_of(model, image.out_dim), head(answers))
        return WithOrgan(plain_model, s.dim) if model.variant == "organ_dwa" else plain_model
    gate = QCR(reader(), s.dim, s.dropout) if "qcr" in model.variant else None
    router, choices = None, [torch.arange(answers)]
    if "tcr" in model.variant:
        router = TypeClassifier(reader(), len(KINDS), (s.hidden, s.hidden), s.dropout)
        choices = [branch_answers(train.answers[:, 0], train.answers[:, 1], kind) for kind in range(len(KINDS))]
    branches = [Branch(fusion_of(model, image.out_dim), head(len(ids)), ids) for ids in choices]
    return ConditionalVQAModel(image, text, branches, answers, router, gate)


def loss_of(model: nn.Module, batch) -> Tensor:
    """Cross-entropy of the answer; with TCR that of the kind beside it, with an organ's head that of the organ."""
    answers, kinds, organs = batch.answers.unbind(1)
    if isinstance(model, ConditionalVQAModel) and model.router is not None:
        output = model(*batch[:3], kinds)
        return answer_loss(output.logits, answers) + F.cross_entropy(output.kind_logits, kinds)
    output = model(*batch[:3])
    return model.loss(output, answers, organs) if isinstance(model, WithOrgan) else answer_loss(output.logits, answers)


def score_of(model: nn.Module, feed: Feed) -> float:
    """Accuracy; called once after each epoch, which is what DWA has to be told of."""
    if isinstance(model, WithOrgan):
        model.weighting.end_epoch()
    return float((predict(model, feed).argmax(1) == feed.answers[:, 0]).float().mean())


# ---------------------------------------------------------------------------------------------------------------- run


def feeds_of(data: Rad | Drawn, model: Model, tokens: Tensor) -> dict[str, Feed]:
    """All parts as tensors; ``answers`` are (answer, kind, organ), int64 (Q, 3)."""
    material = material_of(data)
    rows, found = picture_rows(material), {}
    for split, part in material.parts.items():
        sentences = [s.question for s in part]
        if model.variant == "bert":
            words, mask = BertText(_find_bert()).encode(sentences)
        else:
            words, mask = encode_questions(sentences, material.words, data.max_words)  # (Q, T) each
        labels = np.stack(
            [
                material.vocabulary.ids(s.answer for s in part),
                KINDS.ids(s.kind for s in part),
                ORGANS.ids(s.meta["organ"] for s in part),
            ],
            axis=1,
        )  # (Q, 3)
        found[split] = Feed(tokens, rows[split], words, mask, labels)
    return found


def with_blank(feed: Feed) -> Feed:
    """The same questions about the average picture: every token is zero, its mean over training pictures."""
    zeros = torch.zeros_like(feed.pictures[:1])
    return Feed(zeros, torch.zeros(len(feed)), feed.words, feed.word_mask, feed.answers, feed.question_index)


def run(spec: Spec) -> Outcome:
    """Train one model with one seed and answer the test questions; or one of the units without randomness."""
    if spec.unit.endswith(".baselines"):
        return _run_baselines(spec)
    if spec.unit == "vqa_rad.first_words":
        return _run_first_words(spec)
    data, model_of, material = spec.data, spec.model, material_of(spec.data)
    each = [tokens_of(spec.profile, data, name) for name in model_of.encoders]
    feeds = feeds_of(data, model_of, torch.cat(each, dim=-1))
    if model_of.variant == "question_only":
        feeds = {split: with_blank(feed) for split, feed in feeds.items()}
    widths = [x.shape[-1] for x in each]
    torch.manual_seed(spec.seed)
    model = build(model_of, widths, material.words, len(material.vocabulary), feeds["train"])
    fitted = fit(
        model,
        feeds["train"],
        feeds["val"],
        spec.training,
        spec.seed,
        loss=loss_of,
        score=score_of,
        label=f"{spec.unit}, seed {spec.seed}",
    )
    test = feeds["test"]
    arrays = about(material)
    other = shuffled_pictures(arrays["picture_test"], spec.seed)  # (Q,)
    asked = {"test": test, "blank": with_blank(test), "shuffled": test.with_pictures(test.picture_index[other])}
    if "noisy" in feeds:
        asked["noisy"] = feeds["noisy"]
    for name, feed in asked.items():
        best = predict(model, feed).argmax(1)  # (Q,)
        arrays[f"correct_{name}"] = (best == feed.answers[:, 0]).numpy()  # −100, out of the vocabulary, is wrong
        if name == "test":
            arrays["predicted_test"] = best.numpy().astype(np.int16)
    metrics = {"accuracy_val": Metric(fitted.best_score, len(feeds["val"]))}
    metrics |= {f"accuracy_{name}": _mean(arrays[f"correct_{name}"]) for name in asked}
    for kind, rows in (("closed", arrays["closed_test"]), ("open", ~arrays["closed_test"])):
        if rows.any():
            metrics[f"accuracy_test.{kind}"] = _mean(arrays["correct_test"][rows])
    if model_of.interaction == "cmsa":
        arrays["map_row"] = first_of_families(arrays["family_test"])
        arrays["map"] = word_region_maps(model, test, arrays["map_row"])
    if isinstance(model, ConditionalVQAModel) and model.router is not None:
        arrays["correct_kind"] = _routed(model, test)
        metrics["accuracy_kind"] = _mean(arrays["correct_kind"])
    details = {
        "history": fitted.history,
        "best_epoch": fitted.best_epoch,
        "parameters": sum(p.numel() for p in model.parameters() if p.requires_grad),
        "answers": material.vocabulary.symbols,
        "questions": {split: len(part) for split, part in material.parts.items()},
        "pictures": {split: len(part.picture_ids) for split, part in material.parts.items()},
    }
    return Outcome(metrics, arrays, details | _described(material))


def _mean(right: np.ndarray) -> Metric:
    return Metric(float(right.mean()), len(right))


@torch.inference_mode()
def _routed(model: ConditionalVQAModel, feed: Feed) -> np.ndarray:
    """Whether TCR sent each question to the branch of its true kind, bool (Q,)."""
    device = next(model.parameters()).device
    routes = [model.eval()(*b.to(device)[:3]).route.cpu() for b in feed.batches(1024)]
    return (torch.cat(routes) == feed.answers[:, 1]).numpy()


def first_of_families(family: np.ndarray) -> np.ndarray:
    """Row of the first question of each family, int (F,), for families (Q,)."""
    return np.unique(family, return_index=True)[1]


@torch.inference_mode()
def word_region_maps(model: VQAModel, feed: Feed, rows: np.ndarray) -> np.ndarray:
    """What CMSA's last block reads: a weight for each word at each cell, float32 (R, T, cells), of R questions.

    Weights of a question sum to 1; words that it does not have weigh 0.
    """
    pictures, words, mask, _ = feed.batch(rows).to(next(model.parameters()).device)
    image, text = model.eval().image_encoder(pictures), model.text_encoder(words, mask)
    fused = model.fusion(image.tokens, text.tokens, image.mask, text.mask, need_weights=True)
    return word_cell_maps(fused.attention, words.shape[1], image.mask, mask)[:, -1].cpu().numpy()  # (R, T, cells)


def about(material: Material) -> dict[str, np.ndarray]:
    """What every record says of its test questions: picture, family and whether it is closed, (Q,) each."""
    test = material.parts["test"]
    pictures = {picture_id: i for i, picture_id in enumerate(test.picture_ids)}
    return {
        "picture_test": np.array([pictures[s.picture_id] for s in test], dtype=np.int32),
        "family_test": np.array([test.families.index(s.family) for s in test], dtype=np.int16),
        "closed_test": material.closed,
    }


def _described(material: Material) -> dict:
    digest = hashlib.sha256("".join(part.content_hash() for part in material.parts.values()).encode())
    families = list(material.parts["test"].families)
    return {"protocol": material.label, "families": families, "data_hash": digest.hexdigest()}


def _run_baselines(spec: Spec) -> Outcome:
    """What needs no pixel: majority, logistic regression on words, lookup of the picture's id; and the ceiling."""
    material = material_of(spec.data)
    known, test = [*material.parts["train"], *material.parts["val"]], material.parts["test"].samples
    reachable = {plain(a) for a in material.vocabulary.symbols}
    right = {
        "majority": baselines.majority(known, test).correct,
        "question_only": language_prior(known, test).correct,
        "lookup": baselines.lookup(known, test).correct,
        "ceiling": np.array([plain(s.answer) in reachable for s in test]),
    }
    metrics = {name: _mean(correct) for name, correct in right.items()}
    arrays = about(material) | {f"correct_{name}": correct for name, correct in right.items()}
    return Outcome(metrics, arrays, _described(material))


def first_words(question: str, n: int = 3) -> str:
    """The first n words of a question."""
    return " ".join(tokenize(question)[:n])


def _run_first_words(spec: Spec) -> Outcome:
    """Open or closed, told from the first three words by logistic regression on words, pairs and triples of words."""
    from sklearn.feature_extraction.text import CountVectorizer
    from sklearn.linear_model import LogisticRegression

    material = material_of(spec.data)
    known, test = [*material.parts["train"], *material.parts["val"]], material.parts["test"].samples
    vectorizer = CountVectorizer(token_pattern=r"\S+", ngram_range=(1, 3), binary=True)
    features = vectorizer.fit_transform(first_words(s.question) for s in known)
    model = LogisticRegression(C=10.0, max_iter=1000).fit(features, [s.kind for s in known])
    predicted = model.predict(vectorizer.transform(first_words(s.question) for s in test))
    right = predicted == np.array([s.kind for s in test])  # (Q,)
    counts = {kind: sum(s.kind == kind for s in known) for kind in KINDS.symbols}
    majority = max(counts, key=counts.get)
    metrics = {"accuracy_kind": _mean(right), "majority": _mean(np.array([s.kind == majority for s in test]))}
    return Outcome(metrics, about(material) | {"correct_kind": right}, _described(material))
