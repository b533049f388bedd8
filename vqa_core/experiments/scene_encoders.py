"""Experiment ``scene_encoders``: a picture encoder and a question encoder that never saw an answer.

The picture encoder learns to name the object in each cell of its grid; the question encoder learns to fill the slots
of a sentence (operation, first description, …). Both are then frozen, and their tokens are computed once. What a
fusion makes of these tokens is the fusion's own merit: nothing else differs between the runs of experiment ``fusion``.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from filelock import FileLock
from torch import nn
from torch.nn import functional as F

from vqa_core.data import scenes
from vqa_core.data.scenes import ATTRIBUTES, Scene, SceneSet
from vqa_core.data.scenes.grammar import RELATIONS, Program
from vqa_core.data.text import UNKNOWN, Vocabulary, encode_questions
from vqa_core.encoders.cnn import GridCNN, coordinates
from vqa_core.encoders.text import RecurrentText
from vqa_core.encoders.tokens import Tokens
from vqa_core.experiments import Metric, Outcome, Spec
from vqa_core.experiments.records import load_record, results_root, write_atomically
from vqa_core.fusion.output import last_token
from vqa_core.training.feed import Feed, as_float
from vqa_core.training.loop import Training, fit

REQUIRES = ()
VALUES = [len(v) for v in ATTRIBUTES.values()]  # how many sizes, textures, colours, shapes
ATTRIBUTE_OF = {value: name for name, values in ATTRIBUTES.items() for value in values}
UNUSED = "<unused>"


@dataclass(frozen=True)
class SceneSizes:
    """Pictures per split; there are eight questions about each."""

    train: int
    val: int
    test: int
    test_composition: int
    size: int = 64


@dataclass(frozen=True)
class EncoderModel:
    """Sizes of the two encoders."""

    image_dim: int = 24
    width: int = 16
    text_dim: int = 96
    embedding_dim: int = 64


@dataclass(frozen=True)
class Config:
    """Sizes of a profile, and how its two encoders are trained."""

    data: SceneSizes
    model: EncoderModel
    pictures: Training
    questions: Training


PROFILES = {
    "smoke": Config(
        SceneSizes(200, 100, 100, 100),
        EncoderModel(),
        Training(epochs=15, batch_size=32, learning_rate=5e-3),
        Training(epochs=2, batch_size=128, learning_rate=6e-3),
    ),
    "cpu": Config(
        SceneSizes(8000, 1000, 2000, 1000),
        EncoderModel(),
        Training(epochs=5, batch_size=128, learning_rate=5e-3),
        Training(epochs=6, batch_size=256, learning_rate=8e-3),
    ),
    "gpu": Config(
        SceneSizes(40000, 2000, 8000, 4000),
        EncoderModel(image_dim=128, width=64, text_dim=256, embedding_dim=128),
        Training(epochs=12, batch_size=256, learning_rate=3e-3),
        Training(epochs=15, batch_size=512, learning_rate=4e-3),
    ),
}


def specs(profile: str) -> list[Spec]:
    """The two encoders, each trained once."""
    config = PROFILES[profile]
    return [
        Spec("scene_encoders", unit, 0, profile, config.data, config.model, getattr(config, unit))
        for unit in ("pictures", "questions")
    ]


@lru_cache(maxsize=4)
def scene_split(profile: str, split: str) -> SceneSet:
    """A split of the scenes in the size of the profile."""
    sizes = PROFILES[profile].data
    return scenes.load(split, n=getattr(sizes, split), size=sizes.size)


# ------------------------------------------------------------------------------------------- the picture encoder


class Named(NamedTuple):
    """What :class:`CellNamer` and :class:`FrameReader` return; their docstrings give the shapes of ``logits``."""

    logits: torch.Tensor


class CellNamer(nn.Module):
    """Says for each cell whether an object has its centre there, and its four attributes; a one-shot detector.

    ``logits`` are (B, N, 1 + 16): presence, then the values of :data:`~vqa_core.data.scenes.ATTRIBUTES` in order.
    The idea of cells that name the object centred in them is that of YOLO (Redmon et al. 2016, arXiv 1506.02640).
    """

    def __init__(self, model: EncoderModel, size: int) -> None:
        super().__init__()
        self.encoder = GridCNN(model.image_dim, size, model.width)
        self.names = nn.Linear(model.image_dim, 1 + sum(VALUES))

    def forward(self, pictures, words=None, word_mask=None) -> Named:
        return Named(self.names(self.encoder(pictures).tokens))


class NamedCells(nn.Module):
    """Image tokens that say what is where: probabilities of presence and of 16 attribute values, and the place.

    Attribute probabilities are multiplied by presence, so that an empty cell is near zero but for its place. Features
    that are names of attributes go back to bottom-up attention (Anderson et al. 2018, arXiv 1707.07998).

    Parameters
    ----------
    namer
        A trained :class:`CellNamer`.
    form
        ``"grid"``: all tokens, (B, N, 19), with the mask of the cells that are not empty. ``"pooled"``: their sum,
        (B, 1, 19); a bag of names without places.
    """

    def __init__(self, namer: CellNamer, form: str = "grid") -> None:
        super().__init__()
        if form not in ("grid", "pooled"):
            raise ValueError(f"form is {form!r}, allowed are 'grid' and 'pooled'")
        self.namer, self.form = namer, form
        self.out_dim = 1 + sum(VALUES) + 2
        self.register_buffer("place", coordinates(*namer.encoder.grid).flatten(1).T, persistent=False)  # (N, 2)

    def forward(self, pictures: torch.Tensor) -> Tokens:
        """Pictures (B, 3, H, W) → tokens (B, N, 19) or (B, 1, 19)."""
        logits = self.namer(pictures).logits  # (B, N, 1 + 16)
        presence = logits[..., :1].sigmoid()  # (B, N, 1)
        names = torch.cat([part.softmax(-1) for part in logits[..., 1:].split(VALUES, dim=-1)], dim=-1)  # (B, N, 16)
        place = self.place.expand(len(logits), -1, -1)  # (B, N, 2)
        tokens = torch.cat([presence, presence * names, place], dim=-1)  # (B, N, 19)
        return Tokens(tokens.sum(1, keepdim=True)) if self.form == "pooled" else Tokens(tokens, is_present(tokens))


def is_present(tokens: torch.Tensor) -> torch.Tensor:
    """Which cells hold an object, says the first feature of :class:`NamedCells`: (…, N, 19) → bool (…, N)."""
    return tokens[..., 0] > 0.5


def present_cells(tokens: torch.Tensor) -> torch.Tensor:
    """Grid tokens without the empty cells: (P, N, D) → (P, M, D), M the most objects in one picture.

    Present cells come first; pictures with fewer objects are filled up with empty cells, which are to be masked.
    Fusions do not notice (padding does not change their outputs), but most cells are empty, and time goes with tokens.
    """
    most = max(int(is_present(tokens).sum(1).max()), 1)
    index = tokens[..., 0].topk(most, dim=1).indices  # (P, M)
    return tokens.gather(1, index.unsqueeze(-1).expand(-1, -1, tokens.shape[-1]))  # (P, M, D)


class MaskedCells(nn.Module):
    """Cached tokens of :class:`NamedCells`, with the mask of those that hold an object.

    Parameters
    ----------
    out_dim
        Features of a token.
    """

    def __init__(self, out_dim: int) -> None:
        super().__init__()
        self.out_dim = out_dim

    def forward(self, tokens: torch.Tensor) -> Tokens:
        """Tokens (B, N, out_dim) → the same with a mask (B, N)."""
        return Tokens(tokens, is_present(tokens))


def cell_targets(every: Iterable[Scene], grid: tuple[int, int]) -> np.ndarray:
    """Attribute values of the object centred in each cell, int (P, N, 4); −100 where there is none."""
    rows, columns = grid
    every = list(every)
    target = np.full((len(every), rows, columns, len(VALUES)), -100, dtype=np.int64)
    for i, scene in enumerate(every):
        for thing in scene.objects:
            cell = min(int(thing.y * rows), rows - 1), min(int(thing.x * columns), columns - 1)
            target[i, *cell] = [values.index(getattr(thing, name)) for name, values in ATTRIBUTES.items()]
    return target.reshape(len(every), rows * columns, len(VALUES))


def naming_loss(model: CellNamer, batch) -> torch.Tensor:
    """Binary cross-entropy of presence, plus cross-entropies of the attributes where an object is."""
    logits, target = model(batch.pictures).logits, batch.answers
    there = target[..., 0] >= 0  # (B, N)
    loss = F.binary_cross_entropy_with_logits(logits[..., 0].float(), there.float())
    for k, part in enumerate(logits[..., 1:][there].float().split(VALUES, dim=-1)):  # (objects, values)
        loss = loss + 0.25 * F.cross_entropy(part, target[there][:, k])
    return loss


@torch.inference_mode()
def naming_scores(model: CellNamer, feed: Feed) -> dict[str, Metric]:
    """Share of cells with the right presence, and of objects with the right value of each attribute."""
    device = next(model.parameters()).device
    model.eval()
    logits = torch.cat([model(b.pictures.to(device)).logits.cpu() for b in feed.batches(256)])  # (P, N, 17)
    there = feed.answers[..., 0] >= 0
    scores = {"presence": Metric(float(((logits[..., 0] > 0) == there).float().mean()), there.numel())}
    for k, (name, part) in enumerate(zip(ATTRIBUTES, logits[..., 1:][there].split(VALUES, dim=-1))):
        right = part.argmax(-1) == feed.answers[there][:, k]
        scores[name] = Metric(float(right.float().mean()), len(right))
    return scores


def _train_pictures(spec: Spec) -> Outcome:
    torch.manual_seed(spec.seed)
    model = CellNamer(spec.model, spec.data.size)

    def feed(split: str) -> Feed:
        found = scene_split(spec.profile, split)
        n = len(found.images)
        targets = cell_targets(found.scenes, model.encoder.grid)
        return Feed(found.images, np.arange(n), np.zeros((n, 1), np.int64), np.ones((n, 1), bool), targets)

    train, validation = feed("train"), feed("val")
    fitted = fit(
        model,
        train,
        validation,
        spec.training,
        spec.seed,
        loss=naming_loss,
        score=lambda m, f: float(np.mean([s.value for s in naming_scores(m, f).values()])),
        label="picture encoder",
    )
    weights = {k: v.cpu().numpy() for k, v in model.state_dict().items()}
    metrics = naming_scores(model, feed("test"))
    details = {"history": fitted.history, "data_hash": scene_split(spec.profile, "train").content_hash()}
    return Outcome(metrics, weights, details)


# ------------------------------------------------------------------------------------------ the question encoder


def frame(program: Program) -> dict[str, str]:
    """What a question says, slot by slot: the operation, and up to three descriptions.

    Slots are ``operation``, ``attribute``, ``relation``, and ``first.colour`` … ``third.shape``; a slot that a
    question does not use is absent. The third description holds the two values of an exclusive-or.

    >>> frame(["exist", ["filter", "red", "circle"]])
    {'operation': 'exist', 'first.colour': 'red', 'first.shape': 'circle'}
    """
    slots: dict[str, str] = {"operation": program[0]}
    descriptions: list[list[str]] = []
    third: list[str] = []
    todo = [program]
    while todo:
        name, *parts = todo.pop()
        if name == "filter":
            descriptions.append([v for v in parts if isinstance(v, str)])
        elif name in ("query", "same"):
            slots["attribute"] = parts[0]
        elif name == "has":
            third.append(parts[0])
        elif name == "not":
            slots["operation"] += " not"
        elif name in RELATIONS:
            slots["relation"] = name
        todo.extend(part for part in reversed(parts) if isinstance(part, list))
    if third:
        descriptions = [descriptions[0], [], third]  # both halves of an exclusive-or describe the same object
    for which, values in zip(("first", "second", "third"), descriptions):
        slots |= {f"{which}.{ATTRIBUTE_OF[value]}": value for value in values}
    return slots


class FrameReader(nn.Module):
    """Fills the slots of a question's :func:`frame` from the encoder's last state, each by a linear classifier.

    ``logits`` are a tuple with (B, values of the slot) for every slot. Reading a sentence as an intent with slots is
    standard in language understanding (Liu and Lane 2016, arXiv 1609.01454).
    """

    def __init__(self, model: EncoderModel, words: int, values: Sequence[int]) -> None:
        super().__init__()
        self.encoder = RecurrentText(words, model.text_dim, "gru", model.embedding_dim)
        self.slots = nn.Linear(model.text_dim, sum(values))
        self.values = tuple(values)

    def forward(self, pictures, words, word_mask) -> Named:
        text = self.encoder(words, word_mask)
        return Named(self.slots(last_token(text.tokens, text.mask)).split(self.values, dim=-1))


class SlotTokens(nn.Module):
    """Text tokens that say what was asked: the probabilities of the values of each slot of the question's frame.

    Parameters
    ----------
    reader
        A trained :class:`FrameReader`.
    form
        ``"slots"``: one token per slot, (B, S, D), zero outside the slot's own features; the slots that the question
        uses come first, the others are padding. ``"vector"``: the sum of all, (B, 1, D); nothing is lost by it,
        since slots do not overlap.
    """

    def __init__(self, reader: FrameReader, form: str = "slots") -> None:
        super().__init__()
        if form not in ("slots", "vector"):
            raise ValueError(f"form is {form!r}, allowed are 'slots' and 'vector'")
        self.reader, self.form = reader, form
        self.out_dim = sum(reader.values) - len(reader.values)  # value 0 of a slot says that it is not used

    def forward(self, words: torch.Tensor, word_mask: torch.Tensor) -> Tokens:
        """Word ids (B, T) → tokens (B, S, D) with a mask, or (B, 1, D) without."""
        slots = [part.softmax(-1) for part in self.reader(None, words, word_mask).logits]  # S × (B, values)
        if self.form == "vector":
            return Tokens(torch.cat([p[:, 1:] for p in slots], dim=-1).unsqueeze(1))  # (B, 1, D)
        tokens = words.new_zeros(len(words), len(slots), self.out_dim, dtype=slots[0].dtype)  # (B, S, D)
        start = 0
        for k, p in enumerate(slots):
            tokens[:, k, start : start + p.shape[1] - 1] = p[:, 1:]
            start += p.shape[1] - 1
        used = torch.stack([p[:, 0] < 0.5 for p in slots], dim=1)  # (B, S)
        order = (~used).long().argsort(dim=1, stable=True)  # (B, S), used slots first
        return Tokens(tokens.gather(1, order.unsqueeze(-1).expand_as(tokens)), used.gather(1, order))


def _reading_loss(model: FrameReader, batch) -> torch.Tensor:
    logits = model(*batch[:3]).logits
    return sum(F.cross_entropy(part.float(), batch.answers[:, k]) for k, part in enumerate(logits))


@torch.inference_mode()
def _reading_scores(model: FrameReader, feed: Feed) -> dict[str, Metric]:
    device = next(model.parameters()).device
    model.eval()
    found = [torch.stack([p.argmax(-1) for p in model(*b.to(device)[:3]).logits], 1).cpu() for b in feed.batches(1024)]
    right = torch.cat(found) == feed.answers  # (U, slots)
    whole = right.all(1).float()  # (U,)
    return {
        "slot": Metric(float(right.float().mean()), right.numel()),
        "frame": Metric(float(whole.mean()), len(whole)),
    }


def word_vocabulary(profile: str) -> Vocabulary:
    """Words of the training questions."""
    return Vocabulary.of_words(s.question for s in scene_split(profile, "train"))


def _train_questions(spec: Spec) -> Outcome:
    frames = {
        split: {s.question: frame(s.meta["program"]) for s in scene_split(spec.profile, split)}
        for split in ("train", "val", "test")
    }
    words = word_vocabulary(spec.profile)
    names = sorted({slot for f in frames["train"].values() for slot in f})
    values = [
        Vocabulary([UNUSED, *sorted({f[n] for f in frames["train"].values() if n in f})], unknown=UNUSED) for n in names
    ]

    def feed(split: str) -> Feed:
        ids, mask = encode_questions(list(frames[split]), words)
        target = [[v.id(f.get(n, UNUSED)) for n, v in zip(names, values)] for f in frames[split].values()]
        return Feed(torch.zeros(1, 1, 1), np.zeros(len(ids), np.int64), ids, mask, target)

    torch.manual_seed(spec.seed)
    model = FrameReader(spec.model, len(words), [len(v) for v in values])
    fitted = fit(
        model,
        feed("train"),
        feed("val"),
        spec.training,
        spec.seed,
        loss=_reading_loss,
        score=lambda m, f: _reading_scores(m, f)["frame"].value,
        label="question encoder",
    )
    weights = {k: v.cpu().numpy() for k, v in model.state_dict().items()}
    details = {
        "history": fitted.history,
        "words": words.symbols,
        "slots": {name: v.symbols for name, v in zip(names, values)},
        "data_hash": scene_split(spec.profile, "train").content_hash(),
    }
    return Outcome(_reading_scores(model, feed("test")), weights, details)


def run(spec: Spec) -> Outcome:
    """Train the encoder that ``spec.unit`` names."""
    return _train_pictures(spec) if spec.unit == "pictures" else _train_questions(spec)


# ----------------------------------------------------------------------------------- frozen, and run only once


def load_encoders(profile: str, root: Path | None = None) -> tuple[CellNamer, FrameReader, Vocabulary]:
    """The two trained encoders, frozen, and the words that the second one knows.

    Raises
    ------
    FileNotFoundError
        They have not been trained at this profile; the message has the line that does it.
    """
    stored = {spec.unit: load_record(spec, root=root) for spec in specs(profile)}
    absent = [unit for unit, record in stored.items() if record is None]
    if absent:
        raise FileNotFoundError(
            f"the encoder(s) {', '.join(absent)} are not in {(root or results_root()) / profile / 'scene_encoders'}; "
            f"make them: python -m vqa_core run scene_encoders --profile {profile}"
        )
    config, found = PROFILES[profile], stored["questions"].details
    words = Vocabulary(found["words"], unknown=UNKNOWN)
    namer = CellNamer(config.model, config.data.size)
    reader = FrameReader(config.model, len(words), [len(v) for v in found["slots"].values()])
    for module, unit in ((namer, "pictures"), (reader, "questions")):
        module.load_state_dict({k: torch.from_numpy(v) for k, v in stored[unit].arrays.items()})
        module.eval().requires_grad_(False)
    return namer, reader, words


class SceneTokens(NamedTuple):
    """A split of the scenes as the frozen encoders see it.

    Attributes
    ----------
    image
        float (P, N, 19), one row per picture: :class:`NamedCells`.
    text, text_mask
        float (U, S, D) and bool (U, S), one row per different sentence: :class:`SlotTokens`.
    picture_index, question_index
        int (Q,), rows of ``image`` and ``text`` for each question.
    """

    image: torch.Tensor
    text: torch.Tensor
    text_mask: torch.Tensor
    picture_index: torch.Tensor
    question_index: torch.Tensor


@torch.no_grad()
def _make_tokens(profile: str, split: str) -> SceneTokens:
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    namer, reader, words = load_encoders(profile)
    cells, slots = NamedCells(namer).to(device), SlotTokens(reader).to(device)
    found = scene_split(profile, split)
    sentences = list(dict.fromkeys(s.question for s in found))
    ids, mask = (torch.from_numpy(a) for a in encode_questions(sentences, words))
    text = [slots(i.to(device), m.to(device)) for i, m in zip(ids.split(1024), mask.split(1024))]
    number = {sentence: i for i, sentence in enumerate(sentences)}
    return SceneTokens(
        torch.cat([cells(as_float(p).to(device)).tokens.cpu() for p in torch.from_numpy(found.images).split(256)]),
        torch.cat([t.tokens.cpu() for t in text]),
        torch.cat([t.mask.cpu() for t in text]),
        torch.tensor([found.picture_index(s.picture_id) for s in found]),
        torch.tensor([number[s.question] for s in found]),
    )


def scene_tokens(profile: str, split: str) -> SceneTokens:
    """Tokens of a split; computed once and kept in a file, which is made anew when the encoders have changed."""
    from safetensors import safe_open
    from safetensors.torch import save

    folder = results_root() / profile / "scene_encoders"
    path = folder / f"tokens_{split}.safetensors"
    index = folder / "index.json"
    if not index.is_file():
        raise FileNotFoundError(
            f"{index} is missing; make it: python -m vqa_core run scene_encoders --profile {profile}"
        )
    made_by = json.dumps([json.loads(index.read_text(encoding="utf-8")), scene_split_hash(profile, split)])
    with FileLock(folder / f".{split}.lock"):
        if path.is_file():
            with safe_open(path, "pt") as stored:
                if (stored.metadata() or {}).get("made_by") == made_by:
                    return SceneTokens(*(stored.get_tensor(name) for name in SceneTokens._fields))
        tokens = _make_tokens(profile, split)
        write_atomically(path, save(tokens._asdict(), metadata={"made_by": made_by}))
    return tokens


def scene_split_hash(profile: str, split: str) -> str:
    """What the tokens of a split depend on besides the encoders: its size and the code that generates it."""
    from vqa_core.experiments.provenance import code_hash

    return f"{getattr(PROFILES[profile].data, split)} pictures, code {code_hash(['vqa_core.data.scenes'])}"
