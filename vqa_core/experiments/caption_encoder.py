"""Experiment ``caption_encoder``: a GRU that learned from captions alone, and never saw a picture.

Frozen, its states are the text tokens of the matching experiments; the image tokens come from ``scene_encoders``.
"""

from __future__ import annotations

import json
import random
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
from vqa_core.data.scenes import SceneSet
from vqa_core.data.scenes.captions import captions
from vqa_core.data.text import UNKNOWN, Vocabulary, encode_questions
from vqa_core.encoders.text import RecurrentText
from vqa_core.experiments import Metric, Outcome, Spec
from vqa_core.experiments.records import load_record, results_root, write_atomically
from vqa_core.experiments.scene_encoders import NamedCells, is_present, load_encoders, present_cells
from vqa_core.fusion.output import last_token
from vqa_core.training.feed import Feed, as_float
from vqa_core.training.loop import Training, fit

REQUIRES = ("scene_encoders",)
CAPTIONS = 5  # about each picture, as in Flickr8k


@dataclass(frozen=True)
class Pictures:
    """How many pictures each split has; splits share none."""

    train: int
    val: int
    test: int


@dataclass(frozen=True)
class Reader:
    """Sizes of the GRU."""

    dim: int
    embedding_dim: int


@dataclass(frozen=True)
class Config:
    """Sizes of a profile."""

    data: Pictures
    model: Reader
    training: Training


PROFILES = {
    "smoke": Config(Pictures(80, 40, 40), Reader(32, 16), Training(epochs=2, batch_size=64, learning_rate=1e-2)),
    "cpu": Config(Pictures(2000, 200, 600), Reader(64, 32), Training(epochs=6, batch_size=128, learning_rate=8e-3)),
    "gpu": Config(
        Pictures(20000, 1000, 5000), Reader(256, 128), Training(epochs=8, batch_size=256, learning_rate=4e-3)
    ),
}


def specs(profile: str) -> list[Spec]:
    """The one encoder, trained once."""
    config = PROFILES[profile]
    return [Spec("caption_encoder", "captions", 0, profile, config.data, config.model, config.training)]


@lru_cache(maxsize=3)
def captioned(profile: str, split: str) -> tuple[SceneSet, tuple[tuple[str, ...], ...]]:
    """Pictures of a split, and five captions of each."""
    found = scenes.load(split, n=getattr(PROFILES[profile].data, split), questions_per_picture=1)
    told = tuple(
        captions(scene, CAPTIONS, random.Random(f"captions of {i}"))
        for i, scene in zip(found.picture_ids, found.scenes, strict=True)
    )
    return found, told


class CaptionReader(nn.Module):
    """Learns from captions alone: each state guesses the next word, the last state names all words of the caption.

    The first task is a language model's; the second keeps the last state from forgetting how the caption began.

    Parameters
    ----------
    model
        Sizes.
    words
        Size of the vocabulary.
    """

    def __init__(self, model: Reader, words: int) -> None:
        super().__init__()
        self.encoder = RecurrentText(words, model.dim, "gru", model.embedding_dim)
        self.next_word, self.all_words = nn.Linear(model.dim, words), nn.Linear(model.dim, words)

    def losses(self, words: torch.Tensor, mask: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Words (B, T) → nats per next word, and nats per caption for the set of its words."""
        states = self.encoder(words, mask).tokens  # (B, T, D)
        real = mask[:, 1:]
        guessed = F.cross_entropy(self.next_word(states[:, :-1])[real], words[:, 1:][real])
        logits = self.all_words(last_token(states, mask))  # (B, words)
        held = torch.zeros_like(logits).scatter_(1, words, 1.0)  # (B, words)
        held[:, 0] = 0.0  # padding is no word of the caption
        named = F.binary_cross_entropy_with_logits(logits, held, reduction="none").sum(1).mean()
        return guessed, named


def _feed(profile: str, split: str, words: Vocabulary) -> Feed:
    sentences = [c for told in captioned(profile, split)[1] for c in told]
    ids, mask = encode_questions(sentences, words)
    n = np.zeros(len(sentences), np.int64)
    return Feed(torch.zeros(1, 1, 1), n, ids, mask, n)


@torch.inference_mode()
def scores(model: CaptionReader, feed: Feed) -> dict[str, Metric]:
    """Both losses over a split."""
    model.eval()
    device = next(model.parameters()).device
    total, count = np.zeros(2), np.zeros(2, int)
    for batch in (b.to(device) for b in feed.batches(512)):
        n = np.array([int(batch.word_mask[:, 1:].sum()), len(batch.words)])
        total, count = total + n * [float(x) for x in model.losses(batch.words, batch.word_mask)], count + n
    names = "nats_per_next_word", "nats_per_set_of_words"
    return {name: Metric(float(t / c), int(c)) for name, t, c in zip(names, total, count)}


def run(spec: Spec) -> Outcome:
    """Train the encoder; its weights are the record's arrays."""
    words = Vocabulary.of_words(c for told in captioned(spec.profile, "train")[1] for c in told)
    feeds = {split: _feed(spec.profile, split, words) for split in ("train", "val", "test")}
    torch.manual_seed(spec.seed)
    model = CaptionReader(spec.model, len(words))
    fitted = fit(
        model,
        feeds["train"],
        feeds["val"],
        spec.training,
        spec.seed,
        loss=lambda m, batch: sum(m.losses(batch.words, batch.word_mask)),
        score=lambda m, feed: -sum(s.value for s in scores(m, feed).values()),
        label="caption encoder",
    )
    details = {
        "history": fitted.history,
        "words": words.symbols,
        "data_hash": captioned(spec.profile, "train")[0].content_hash(),
    }
    weights = {k: v.cpu().numpy() for k, v in model.state_dict().items()}
    return Outcome(scores(model, feeds["test"]), weights, details)


# ----------------------------------------------------------------------------------- frozen, and run only once


def load_caption_encoder(profile: str, root: Path | None = None) -> tuple[RecurrentText, Vocabulary]:
    """The trained encoder, frozen, and the words that it knows.

    Raises
    ------
    FileNotFoundError
        It has not been trained at this profile; the message has the line that does it.
    """
    (spec,) = specs(profile)
    record = load_record(spec, root=root)
    if record is None:
        raise FileNotFoundError(
            f"the caption encoder is not in {spec.path(root)}; "
            f"make it: python -m vqa_core run caption_encoder --profile {profile}"
        )
    words = Vocabulary(record.details["words"], unknown=UNKNOWN)
    model = CaptionReader(spec.model, len(words))
    model.load_state_dict({k: torch.from_numpy(v) for k, v in record.arrays.items()})
    return model.encoder.eval().requires_grad_(False), words


class MatchingTokens(NamedTuple):
    """Pictures and captions of a split as the frozen encoders see them.

    Attributes
    ----------
    image, image_mask
        float (P, M, 19) and bool (P, M): the cells that hold an object.
    text, text_mask
        float (P, 5, T, D) and bool (P, 5, T): states of the GRU after each word of the five captions.
    """

    image: torch.Tensor
    image_mask: torch.Tensor
    text: torch.Tensor
    text_mask: torch.Tensor

    def as_one(self) -> MatchingTokens:
        """Each side as a sequence of one token: the sum of the cells, and the state after the last word."""
        real = self.image * self.image_mask.unsqueeze(-1)  # (P, M, 19)
        text, mask = self.text.flatten(0, 1), self.text_mask.flatten(0, 1)  # (P · 5, T, D), (P · 5, T)
        last = last_token(text, mask).unflatten(0, self.text.shape[:2]).unsqueeze(2)  # (P, 5, 1, D)
        one = self.image_mask.new_ones
        return MatchingTokens(
            real.sum(1, keepdim=True), one(len(real), 1), last, one(*last.shape[:3])
        )  # (P, 1, 19), (P, 1), (P, 5, 1, D), (P, 5, 1)


@torch.no_grad()
def _make_tokens(profile: str, split: str) -> MatchingTokens:
    namer, _, _ = load_encoders(profile)
    reader, words = load_caption_encoder(profile)
    found, told = captioned(profile, split)
    cells = NamedCells(namer)
    image = torch.cat([cells(as_float(p)).tokens for p in torch.from_numpy(found.images).split(256)])  # (P, N, 19)
    image = present_cells(image)  # (P, M, 19)
    ids, mask = (torch.from_numpy(a) for a in encode_questions([c for five in told for c in five], words))
    text = torch.cat([reader(i, m).tokens for i, m in zip(ids.split(1024), mask.split(1024))])  # (P · 5, T, D)
    return MatchingTokens(
        image, is_present(image), text.unflatten(0, (-1, CAPTIONS)), mask.unflatten(0, (-1, CAPTIONS))
    )


@lru_cache(maxsize=3)
def matching_tokens(profile: str, split: str) -> MatchingTokens:
    """Tokens of a split; computed once and kept in a file, which is made anew when encoders, data or code change."""
    from safetensors import safe_open
    from safetensors.torch import save

    from vqa_core.experiments.provenance import code_hash

    root = results_root() / profile
    for needed in REQUIRES:
        if not (root / needed / "index.json").is_file():
            raise FileNotFoundError(
                f"{root / needed} has no index.json; make it: python -m vqa_core run {needed} --profile {profile}"
            )
    made_by = [json.loads((root / e / "index.json").read_text("utf-8")) for e in ("scene_encoders", "caption_encoder")]
    made_by = json.dumps([*made_by, code_hash([__name__])])
    path = root / "caption_encoder" / f"tokens_{split}.safetensors"
    with FileLock(path.with_suffix(".lock")):
        if path.is_file():
            with safe_open(path, "pt") as stored:
                if (stored.metadata() or {}).get("made_by") == made_by:
                    return MatchingTokens(*(stored.get_tensor(name) for name in MatchingTokens._fields))
        tokens = _make_tokens(profile, split)
        write_atomically(path, save(tokens._asdict(), metadata={"made_by": made_by}))
    return tokens
