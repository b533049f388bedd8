"""Experiment ``mevf``: Nguyen et al. 2019 ("MEVF", arXiv 1909.11867) on VQA-RAD, as published and without the leak.

A picture becomes *one* token: 64 features of the CNN that MAML meta-trained, and 64 of the denoising auto-encoder. A
question is 12 words of GloVe and learned vectors, read by an LSTM. BAN or SAN joins them, and a classifier chooses one
of the training answers. All of it is trained, the two published picture encoders too; units that end in ``.frozen``
leave these as they were published.

Training is the published recipe: nothing is chosen on the test, nor on a validation split, which it does not have. The
last epoch is scored, once. Each model is trained on the 3,064 released rows, which leak, and on the 1,797 without
template re-wordings, and answers all 451 test questions; 308 of them are the freeform ones that MEVF reports.

What is left as in our modules, not as in the released code: an unknown word has its own symbol (there: the last word of
the dictionary); padding has no influence (there: BAN and the LSTM read it); the learned word vectors start at random
(there: as a tf-idf mixture of GloVe); BAN drops features at the input of its bilinear forms only. SAN has the released
form: with the tanh of Yang et al. 2016 it does not learn by this recipe. Where the hardware multiplies bf16, products
are taken in it, weights and sums stay float32.
"""

from __future__ import annotations

import contextlib
import hashlib
import math
import time
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional as F
from torch.nn.utils.parametrizations import weight_norm
from torch.optim.swa_utils import update_bn

from vqa_core.data import Dataset, Vocabulary, encode_questions, vqa_rad
from vqa_core.data.types import CLOSED, Batch
from vqa_core.encoders import denoising, meta
from vqa_core.encoders.denoising import DenoisingAutoEncoder
from vqa_core.encoders.meta import MetaCNN
from vqa_core.encoders.tokens import Tokens
from vqa_core.encoders.word_vectors import WordVectorText, embedding_matrix, read_mevf
from vqa_core.experiments import Metric, Outcome, Spec
from vqa_core.fusion.bilinear import BAN
from vqa_core.fusion.stacked_linear import LinearSAN
from vqa_core.heads.classifier import MLPHead
from vqa_core.model import VQAModel
from vqa_core.training.loop import NotFiniteError, pick_device

REQUIRES = ()
FUSIONS = {"ban": "MEVF+BAN", "san": "MEVF+SAN"}
PROTOCOLS = {"3064": "train_3064", "1797": "train"}  # training rows → split of the loader
MAML, AUTO_ENCODER, GLOVE, DICTIONARY = WEIGHTS = (
    "pretrained_maml.weights",
    "pretrained_ae.pth",
    "glove6b_init_300d.npy",
    "dictionary.pkl",
)


@dataclass(frozen=True)
class Rows:
    """Which questions: ``train`` is one of :data:`PROTOCOLS`; at most ``questions`` of each split, None takes all."""

    train: str
    questions: int | None = None
    max_words: int = 12


@dataclass(frozen=True)
class Model:
    """Sizes of the published models.

    Attributes
    ----------
    fusion
        One of :data:`FUSIONS`.
    frozen
        The picture encoders are left as published; the layer from the auto-encoder's code to 64 features, which was
        not published, is trained in any case.
    dim
        Features of the LSTM's states and of the fused vector.
    rank
        K of BAN's attention, 3 · dim ("k = 3").
    hidden
        Width of the classifier.
    words
        Features of the learned half of a word vector.
    """

    fusion: str
    frozen: bool = False
    dim: int = 1024
    rank: int = 3072
    glimpses: int = 2
    stacks: int = 2
    hidden: int = 2048
    words: int = 300


@dataclass(frozen=True)
class Recipe:
    """How to train.

    Attributes
    ----------
    epochs, batch_size
        Passes over the training questions, and questions per step.
    learning_rate
        Of Adamax; :meth:`rate` says how it changes.
    clip
        Largest norm of the gradient.
    reconstruction
        Weight of the auto-encoder's mean squared error. Published is 0.001, which moves the encoder by a millionth of
        what the answers do (:func:`decoder_share`, kept in every record); at 0 the decoder is not even run.
    """

    epochs: int = 20
    batch_size: int = 32
    learning_rate: float = 5e-3
    clip: float = 0.25
    reconstruction: float = 0.0

    def rate(self, epoch: int) -> float:
        """Learning rate in an epoch (0-based): × 0.5, 1, 1.5, 2, then 2, then × 0.75 at 10, 12, 14, 16 and 18."""
        decays = sum(epoch >= at for at in (10, 12, 14, 16, 18))
        return self.learning_rate * min(0.5 * (epoch + 1), 2.0) * 0.75**decays


@dataclass(frozen=True)
class Config:
    """What a profile runs; ``decoder`` adds runs of BAN with the published reconstruction loss."""

    seeds: int
    frozen_seeds: int
    questions: int | None = None
    epochs: int = 20
    dim: int = 1024
    decoder: bool = False


PROFILES = {
    "smoke": Config(1, 1, questions=48, epochs=1, dim=32),
    "cpu": Config(3, 2),
    "gpu": Config(5, 5, decoder=True),
}


def present() -> bool:
    """Whether VQA-RAD in its JSON form and the weights published with MEVF are on this machine; reads nothing."""
    try:
        folder = vqa_rad.find()
    except FileNotFoundError:
        return False
    needed = [folder / "trainset.json", *(folder / "mevf_weights" / name for name in WEIGHTS)]
    return all(path.is_file() for path in needed)


def specs(profile: str) -> list[Spec]:
    """One spec for each model, protocol, way to train and seed; none where the data or the weights are absent."""
    config = PROFILES[profile]
    sizes = {"dim": config.dim, "rank": 3 * config.dim, "hidden": 2 * config.dim}
    recipe = Recipe(epochs=config.epochs)
    units = {
        f"{fusion}.{train}{'.frozen' * frozen}": (train, Model(fusion, frozen, **sizes), recipe)
        for frozen in (False, True)
        for fusion in FUSIONS
        for train in PROTOCOLS
    }
    if config.decoder:
        units |= {
            f"ban.{train}.decoder": (train, Model("ban", **sizes), replace(recipe, reconstruction=0.001))
            for train in PROTOCOLS
        }
    return [
        Spec("mevf", unit, seed, profile, Rows(train, config.questions), model, training)
        for unit, (train, model, training) in units.items()
        for seed in range(config.frozen_seeds if model.frozen else config.seeds)
        if present()
    ]


# --------------------------------------------------------------------------------------------------------- questions


class Pictures(NamedTuple):
    """The two forms of a picture, one for each encoder; or, where they are frozen, what the encoders made of them.

    Attributes
    ----------
    small
        Grey, (B, 1, 84, 84), uint8 or float in [0, 1]; or float (B, 64), the features of the meta-trained CNN.
    large
        Grey, (B, 1, 128, 128); or float (B, 16384), the code of the auto-encoder.
    """

    small: Tensor
    large: Tensor


@dataclass(frozen=True)
class Questions:
    """A split as tensors. ``row`` (Q,) says which of the P ``pictures`` a question is about; see :class:`Batch`."""

    pictures: Pictures
    row: Tensor
    words: Tensor
    word_mask: Tensor
    answers: Tensor

    def __len__(self) -> int:
        return len(self.answers)

    def to(self, device: torch.device) -> Questions:
        """All tensors on a device, where batches are then cut: 2,000 questions need a few megabytes."""
        rest = (getattr(self, name).to(device) for name in ("row", "words", "word_mask", "answers"))
        return Questions(Pictures(*(x.to(device) for x in self.pictures)), *rest)

    def batch(self, rows: Tensor) -> Batch:
        """Questions at positions ``rows`` (B,), cut to the longest among them; ``pictures`` are :class:`Pictures`."""
        shown, mask = self.row[rows], self.word_mask[rows]  # (B,), (B, T)
        length = int(mask.sum(dim=1).max())
        pictures = Pictures(*(_unit(x[shown]) for x in self.pictures))
        return Batch(pictures, self.words[rows, :length], mask[:, :length], self.answers[rows])


def _unit(pictures: Tensor) -> Tensor:
    """Grey values 0 … 255 → float in [0, 1]; what is float already is passed on."""
    return pictures.float().div_(255) if pictures.dtype == torch.uint8 else pictures


def grey(picture: np.ndarray, side: int) -> np.ndarray:
    """A picture, uint8 (H, W, 3), as a grey square, uint8 (1, side, side). Its aspect is not kept, as in MEVF."""
    small = Image.fromarray(picture).convert("L").resize((side, side), Image.Resampling.BILINEAR)
    return np.asarray(small)[None]


@lru_cache(maxsize=2)
def splits_of(rows: Rows) -> dict[str, Dataset]:
    """Training and test questions."""
    parts = {"train": vqa_rad.load(PROTOCOLS[rows.train]), "test": vqa_rad.load("test")}
    if rows.questions is None:
        return parts
    picked = np.random.default_rng(0).permutation(min(map(len, parts.values())))[: rows.questions].tolist()
    return {split: part.subset(picked, split) for split, part in parts.items()}


@lru_cache(maxsize=2)
def pictures_of(rows: Rows) -> tuple[tuple[str, ...], Pictures]:
    """Ids of all pictures, and the pictures, uint8: each is read and resized once."""
    reader = {i: part for part in splits_of(rows).values() for i in part.picture_ids}
    read = [reader[i].picture(i) for i in reader]
    sizes = (meta.SIZE, 128)
    return tuple(reader), Pictures(*(torch.from_numpy(np.stack([grey(p, s) for p in read])) for s in sizes))


def vocabularies(rows: Rows) -> tuple[Vocabulary, Vocabulary]:
    """Words and answers of the training questions; others are the unknown word, and unreachable."""
    train = splits_of(rows)["train"]
    return Vocabulary.of_words(s.question for s in train), Vocabulary.of_answers(s.answer for s in train)


def questions_of(rows: Rows, split: str, pictures: Pictures) -> Questions:
    """A split as tensors, with these forms of all pictures (in the order of :func:`pictures_of`)."""
    part, (words_known, answers_known) = splits_of(rows)[split], vocabularies(rows)
    number = {picture_id: i for i, picture_id in enumerate(pictures_of(rows)[0])}
    words, mask = encode_questions([s.question for s in part], words_known, rows.max_words)  # (Q, T) each
    shown = torch.tensor([number[s.picture_id] for s in part])  # (Q,)
    answers = torch.from_numpy(answers_known.ids(s.answer for s in part))  # (Q,)
    return Questions(pictures, shown, torch.from_numpy(words), torch.from_numpy(mask), answers)


# ------------------------------------------------------------------------------------------------------------- model


class EnhancedFeatures(nn.Module):
    """MEVF's "mixture of enhanced visual features": [meta-trained CNN ; auto-encoder], one token.

    Parameters
    ----------
    meta_cnn
        Its form is ``"pooled"``.
    auto_encoder
        Its form is ``"vector"``. In training both run channels-last, the faster order of memory for convolutions.
    """

    def __init__(self, meta_cnn: MetaCNN, auto_encoder: DenoisingAutoEncoder) -> None:
        super().__init__()
        self.meta_cnn, self.auto_encoder = meta_cnn, auto_encoder
        self.to(memory_format=torch.channels_last)
        self.out_dim = meta_cnn.out_dim + auto_encoder.out_dim

    def forward(self, pictures: Pictures) -> Tokens:
        """Pictures (B, 1, 84, 84), (B, 1, 128, 128) → one token (B, 1, 128)."""
        parts = self.meta_cnn(pictures.small).tokens, self.auto_encoder(pictures.large).tokens  # (B, 1, 64) each
        return Tokens(torch.cat(parts, dim=-1))  # (B, 1, 128)


class FrozenFeatures(nn.Module):
    """The same token, where both encoders are frozen and were run before (:func:`encoded`); only ``project`` learns."""

    def __init__(self, project: nn.Linear, meta_dim: int = meta.WIDTH) -> None:
        super().__init__()
        self.project, self.out_dim = project, meta_dim + project.out_features

    def forward(self, encoded: Pictures) -> Tokens:
        """Features (B, 64) and codes (B, 16384) → one token (B, 1, 128)."""
        return Tokens(torch.cat([encoded.small, self.project(encoded.large)], dim=-1).unsqueeze(1))  # (B, 1, 128)


@torch.no_grad()
def encoded(encoders: EnhancedFeatures, pictures: Pictures, train: Tensor) -> Pictures:
    """What frozen encoders make of all pictures, once: features (P, 64) and codes (P, 16384).

    The published CNN has no statistics for its batch norm; they are taken from the training pictures, bool (P,).
    """
    encoders.eval()
    update_bn([_unit(x) for x in pictures.small[train].split(64)], encoders.meta_cnn)
    small = [encoders.meta_cnn(_unit(x)).tokens.squeeze(1) for x in pictures.small.split(64)]  # (64, 64) each
    large = [encoders.auto_encoder.code(_unit(x)).flatten(1) for x in pictures.large.split(64)]  # (64, 16384) each
    return Pictures(torch.cat(small), torch.cat(large))


class _RealWords(torch.autograd.Function):
    """The steps of an LSTM over questions sorted by length, longest first: step t reads only those that have a word t.

    nn.LSTM reads padding too, and with packed questions it adds up the gradient of its weights step by step; here that
    is one product at the end. Inputs: what the words give to the gates, float32 (B, T, 4D) in the order of nn.LSTM
    (input, forget, cell, output); the recurrent weights (4D, D), whose type is that of the products; and how many
    questions have a word at each step. Output: the states, float32 (B, T, D), zero at padding.
    """

    @staticmethod
    def forward(ctx, inputs: Tensor, weight: Tensor, active: list[int]) -> Tensor:
        batch, dim = len(inputs), weight.shape[1]
        states = inputs.new_zeros(batch, len(active), dim)  # (B, T, D)
        h, c, turned, ctx.steps = (
            weight.new_zeros(batch, dim),
            inputs.new_zeros(batch, dim),
            weight.t().contiguous(),
            [],
        )
        for t, n in enumerate(active):
            gates = inputs[:n, t] + (h[:n] @ turned).float()  # (n, 4D)
            i, f, g, o = gates.chunk(4, dim=1)  # (n, D) each
            i, f, g, o, before = i.sigmoid(), f.sigmoid(), g.tanh(), o.sigmoid(), c[:n]
            c = f * before + i * g
            out = c.tanh()
            ctx.steps.append((i, f, g, o, before, out, h[:n]))
            states[:n, t] = o * out
            h = states[:n, t].to(weight.dtype)
        ctx.weight = weight
        return states

    @staticmethod
    @once_differentiable
    def backward(ctx, grad: Tensor) -> tuple[Tensor, Tensor, None]:
        batch, length, dim = grad.shape
        inputs = grad.new_zeros(batch, length, 4 * dim)  # (B, T, 4D)
        h, c = grad.new_zeros(2, batch, dim)  # of the state and of the cell after step t
        gates = []
        for t, (i, f, g, o, before, out, _) in reversed(list(enumerate(ctx.steps))):
            n = len(i)
            dh = h[:n] + grad[:n, t]
            dc = c[:n] + dh * o * (1 - out * out)
            parts = dc * g * i * (1 - i), dc * before * f * (1 - f), dc * i * (1 - g * g), dh * out * o * (1 - o)
            inputs[:n, t] = torch.cat(parts, dim=1)  # (n, 4D)
            gates.append(inputs[:n, t].to(ctx.weight.dtype))
            h[:n], c[:n] = (gates[-1] @ ctx.weight).float(), dc * f
        read = [step[-1] for step in reversed(ctx.steps)]
        return inputs, torch.cat(gates).t() @ torch.cat(read), None


class QuestionReader(WordVectorText):
    """The question encoder, computed without padding in training on a processor: the same states.

    The input half of the gates is computed once for each different word of the batch, about half of the words.
    """

    def forward(self, words: Tensor, word_mask: Tensor) -> Tokens:
        """Word ids (B, N) with their mask, padding after the words → states (B, N, dim) with the same mask."""
        if words.is_cuda or not self.training:
            return super().forward(words, word_mask)
        lstm, order = self.recurrent, word_mask.sum(dim=1).argsort(descending=True)
        known, place = words[order].unique(return_inverse=True)  # (U,), (B, N)
        bias = lstm.bias_ih_l0 + lstm.bias_hh_l0
        gates = F.linear(self.embedding(known), lstm.weight_ih_l0, bias)  # (U, 4 · dim)
        weight = lstm.weight_hh_l0.to(gates.dtype)
        states = _RealWords.apply(
            F.embedding(place, gates.float()), weight, word_mask.sum(dim=0).tolist()
        )  # (B, N, dim)
        return Tokens(states[order.argsort()], word_mask)


def weight_normalised(module: nn.Module) -> nn.Module:
    """Every linear layer as W = g · V / ‖V‖ (Salimans and Kingma 2016, arXiv 1602.07868), one g for a whole matrix."""
    for layer in [m for m in module.modules() if isinstance(m, nn.Linear)]:
        weight_norm(layer, dim=None)
    return module


def fusion_of(model: Model, image_dim: int) -> nn.Module:
    """BAN, weight-normalised as published and on the LSTM's states as they are; or SAN in the released, linear form."""
    if model.fusion == "san":
        return LinearSAN(image_dim, model.dim, model.dim, model.stacks, dropout=0.5)
    if model.fusion != "ban":
        raise ValueError(f"fusion is {model.fusion!r}, allowed are {', '.join(FUSIONS)}")
    fusion = BAN(image_dim, model.dim, model.dim, model.glimpses, model.rank, dropout=0.2)
    fusion.text_projection = nn.Identity()
    return weight_normalised(fusion)


def build(model: Model, image_encoder: nn.Module, words: np.ndarray, answers: int) -> VQAModel:
    """The model of a run.

    Parameters
    ----------
    model
        Fusion and sizes.
    image_encoder
        :class:`EnhancedFeatures` or :class:`FrozenFeatures`.
    words
        Loaded word vectors, float32 (V, 300).
    answers
        How many answers there are.
    """
    text = QuestionReader(words, model.dim, learned_dim=model.words)
    head = weight_normalised(MLPHead(model.dim, answers, model.hidden, dropout=0.5))
    return VQAModel(image_encoder, text, fusion_of(model, image_encoder.out_dim), head)


def published_encoders(folder: str | Path) -> EnhancedFeatures:
    """Both picture encoders with their published weights, from the folder ``mevf_weights``."""
    folder = Path(folder)
    return EnhancedFeatures(meta.load_published(folder / MAML), denoising.load_published(folder / AUTO_ENCODER))


# ---------------------------------------------------------------------------------------------------------- training


def half_precision(device: torch.device) -> bool:
    """Whether the hardware multiplies bf16: on CUDA, and on processors with AVX-512 BF16, there twice as fast."""
    return device.type == "cuda" or torch.cpu._is_avx512_bf16_supported()


def precision(device: torch.device):
    """Context in which models run: bf16 for products where the hardware has it, else plain float32."""
    return torch.autocast(device.type, torch.bfloat16) if half_precision(device) else contextlib.nullcontext()


def answer_loss(logits: Tensor, answers: Tensor) -> Tensor:
    """Binary cross-entropy (nats) of logits (B, A), summed over the answers, for one question on average.

    ``answers`` (B,) are all in the vocabulary: these are training questions.
    """
    target = F.one_hot(answers, logits.shape[1]).float()  # (B, A)
    return F.binary_cross_entropy_with_logits(logits.float(), target, reduction="sum") / len(answers)


def reconstruction_loss(model: VQAModel, pictures: Pictures) -> Tensor:
    """Mean squared error of the auto-encoder on clean pictures, over the number of questions, as published."""
    return denoising.reconstruction(model.image_encoder.auto_encoder, pictures.large, noise=0.0) / len(pictures.large)


def decoder_share(model: VQAModel, batch: Batch, weight: float = 0.001) -> dict[str, float | None]:
    """How much the published reconstruction loss would matter: two ratios of gradient norms on one batch.

    Returns
    -------
    dict
        ``encoder``: on the auto-encoder's convolutions, reconstruction to answers. Adamax takes no notice of a common
        scale, so this is by how much a step would turn. ``clipped``: the gradient of the decoder, which would come on
        top, to that of the whole model, which is clipped. None: the answers have no gradient there at all.
        ``alive``: share of the auto-encoder's code that is not zero; at 0 it says nothing about any picture.
    """
    auto_encoder, parameters = model.image_encoder.auto_encoder, [p for p in model.parameters() if p.requires_grad]
    shared = [p for layer in (auto_encoder.conv1, auto_encoder.conv2, auto_encoder.conv3) for p in layer.parameters()]
    decoder = [auto_encoder.tran_conv1, auto_encoder.conv4, auto_encoder.tran_conv2, auto_encoder.conv5]
    own = [p for layer in decoder for p in layer.parameters()]

    def norm(loss: Tensor, of: list[nn.Parameter]) -> float:
        found = torch.autograd.grad(loss, of, retain_graph=True, allow_unused=True)
        return math.sqrt(sum(float(g.square().sum()) for g in found if g is not None))

    answers = answer_loss(model(*batch[:3]).logits, batch.answers)
    rebuilt = weight * reconstruction_loss(model, batch.pictures)
    below = {"encoder": norm(answers, shared), "clipped": norm(answers, parameters)}
    above = {"encoder": norm(rebuilt, shared), "clipped": norm(rebuilt, own)}
    with torch.no_grad():
        alive = float((auto_encoder.code(batch.pictures.large) != 0).float().mean())
    return {name: above[name] / below[name] if below[name] > 0 else None for name in above} | {"alive": alive}


def train(model: VQAModel, questions: Questions, recipe: Recipe, seed: int) -> list[dict[str, float]]:
    """Train in place by the published recipe, and keep the last epoch; a row of history for each epoch.

    Raises
    ------
    NotFiniteError
        When the loss of an epoch is NaN or infinite.
    """
    parameters = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.Adamax(parameters, lr=recipe.learning_rate, foreach=True)
    device, history = questions.row.device, []
    for epoch in range(recipe.epochs):
        torch.manual_seed(seed * 100_003 + epoch)
        order = torch.from_numpy(np.random.default_rng([seed, epoch]).permutation(len(questions))).to(device)
        optimizer.param_groups[0]["lr"] = recipe.rate(epoch)
        model.train()
        total, right = torch.zeros(2, device=device)
        for rows in order.split(recipe.batch_size):
            batch = questions.batch(rows)
            with precision(device):
                logits = model(*batch[:3]).logits  # (B, A)
                loss = answer_loss(logits, batch.answers)
                if recipe.reconstruction:
                    loss = loss + recipe.reconstruction * reconstruction_loss(model, batch.pictures)
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            nn.utils.clip_grad_norm_(parameters, recipe.clip, foreach=True)
            optimizer.step()
            total += loss.detach() * len(rows)
            right += (logits.detach().argmax(dim=1) == batch.answers).sum()
        mean = float(total) / len(questions)
        if not math.isfinite(mean):
            raise NotFiniteError(f"epoch {epoch}: the loss is {mean}; the learning rate is {recipe.rate(epoch):g}")
        history.append(
            {"epoch": epoch, "rate": recipe.rate(epoch), "loss": mean, "right": float(right) / len(questions)}
        )
    return history


@torch.inference_mode()
def predict(model: VQAModel, questions: Questions, batch_size: int = 64) -> Tensor:
    """The best answer of each question, long (Q,), on the CPU; the model is in evaluation mode."""
    model.eval()
    rows = torch.arange(len(questions), device=questions.row.device).split(batch_size)
    with precision(questions.row.device):
        return torch.cat([model(*questions.batch(r)[:3]).logits.argmax(dim=1).cpu() for r in rows])


# --------------------------------------------------------------------------------------------------------------- run


def scores(right: np.ndarray, reachable: np.ndarray, closed: np.ndarray, freeform: np.ndarray) -> dict[str, Metric]:
    """Accuracies and ceilings over all test questions ("451") and the freeform ones ("308"), and their parts."""
    everything = np.ones_like(right)
    found = {}
    for test, asked in (("451", everything), ("308", freeform)):
        for part, kind in (("", everything), (".open", ~closed), (".closed", closed)):
            rows = asked & kind
            if rows.any():  # the smoke profile asks few
                found[f"accuracy_{test}{part}"] = Metric(float(right[rows].mean()), int(rows.sum()))
                found[f"ceiling_{test}{part}"] = Metric(float(reachable[rows].mean()), int(rows.sum()))
    return found


def _sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def run(spec: Spec) -> Outcome:
    """Train one model with one seed on the rows of one protocol, and answer all test questions, once."""
    data, model_of, recipe = spec.data, spec.model, spec.training
    splits, (words_known, answers_known) = splits_of(data), vocabularies(data)
    ids, pictures = pictures_of(data)
    folder = vqa_rad.find() / "mevf_weights"
    vectors = embedding_matrix(read_mevf(folder), words_known)

    torch.manual_seed(spec.seed)
    image_encoder = published_encoders(folder)
    if model_of.frozen:
        seen = set(splits["train"].picture_ids)
        pictures = encoded(image_encoder, pictures, torch.tensor([i in seen for i in ids]))
        image_encoder = FrozenFeatures(image_encoder.auto_encoder.project)
    device = pick_device()
    model = build(model_of, image_encoder, vectors.matrix, len(answers_known)).to(device)
    feeds = {split: questions_of(data, split, pictures).to(device) for split in splits}

    first = feeds["train"].batch(torch.arange(min(recipe.batch_size, len(feeds["train"])), device=device))
    share = {} if model_of.frozen else {"start": decoder_share(model.eval(), first)}  # eval: no statistics are changed
    start, worked = time.perf_counter(), time.process_time()
    history = train(model, feeds["train"], recipe, spec.seed)
    seconds, worked = time.perf_counter() - start, time.process_time() - worked
    if not model_of.frozen:
        share["end"] = decoder_share(model.eval(), first)
    best, target = predict(model, feeds["test"]), feeds["test"].answers.cpu()

    test = splits["test"]
    arrays = {
        "predicted_test": best.numpy().astype(np.int16),
        "correct_test": (best == target).numpy(),  # an answer outside the vocabulary is −100, and wrong
        "reachable_test": (target >= 0).numpy(),
        "closed_test": np.array([s.kind == CLOSED for s in test]),
        "freeform_test": np.array([s.meta["phrase_type"] == "freeform" for s in test]),
        "picture_test": feeds["test"].row.cpu().numpy().astype(np.int32),
    }
    samples = recipe.epochs * len(feeds["train"])
    hashes = [splits["train"].content_hash(), test.content_hash(), *(_sha256(folder / name) for name in WEIGHTS)]
    details = {
        "history": history,
        "decoder_share": share,
        "precision": "bf16" if half_precision(device) else "float32",
        "samples_per_second": samples / seconds,
        "samples_per_processor_second": samples / worked,
        "parameters": sum(p.numel() for p in model.parameters()),
        "trained_parameters": sum(p.numel() for p in model.parameters() if p.requires_grad),
        "questions": {split: len(part) for split, part in splits.items()},
        "pictures": ids,
        "answers": answers_known.symbols,
        "words": str(vectors),
        "scored": f"epoch {recipe.epochs - 1}, the last",
        "data_hash": hashlib.sha256(" ".join(hashes).encode()).hexdigest(),
    }
    right, reachable = arrays["correct_test"], arrays["reachable_test"]
    return Outcome(scores(right, reachable, arrays["closed_test"], arrays["freeform_test"]), arrays, details)
