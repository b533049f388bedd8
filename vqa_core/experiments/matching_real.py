"""Experiment ``matching_real``: modules of experiment ``cross_attention`` on real pictures and sentences by people.

NLVR: the sentences that are true of a picture are its captions. Pictures are seen as in experiment ``fusion_real``,
cells averaged to 12 tokens; sentences by a GRU that read the training sentences and no picture.

Flickr8k: photographs as a frozen ResNet-50 sees them, five captions each as a frozen BERT does. Weights come from
``VQA_RESNET``, a file with a state dict, and ``VQA_BERT``, a folder with a saved ``BertModel`` and its tokeniser.

``published``, ``pairwise``, ``tokens`` are the protocols of ``cross_attention``, on frozen encoders and with all seeds
of a unit in one record. ``finetuned`` is ``tokens`` with the encoders trained too: a run and a record per seed.

What is not on this machine is left out; :func:`absent` says what and why.
"""

from __future__ import annotations

import hashlib
import json
import os
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from filelock import FileLock
from torch import Tensor, nn

from vqa_core.data import Vocabulary, encode_questions, flickr8k, nlvr, tokenize
from vqa_core.data.collate import IMAGENET_MEAN, IMAGENET_STD, resize
from vqa_core.data.root import read_picture
from vqa_core.encoders.pretrained import BertText
from vqa_core.encoders.resnet import ResNet
from vqa_core.encoders.text import RecurrentText
from vqa_core.encoders.tokens import Tokens
from vqa_core.evaluation.retrieval import recall_both_ways
from vqa_core.experiments import Metric, Outcome, Spec
from vqa_core.experiments.caption_encoder import CaptionReader, MatchingTokens, Pictures, Reader, scores
from vqa_core.experiments.cross_attention import (
    Gallery,
    Model,
    Recipe,
    caption_test,
    cost,
    make_module,
    measure,
    pair_cosines,
)
from vqa_core.experiments.fusion_real import ALL, GRID, Sizes, image_side, place, real_tokens, splits_of
from vqa_core.experiments.fusion_real import PROFILES as FUSION_PROFILES
from vqa_core.experiments.records import results_root, write_atomically
from vqa_core.fusion.output import last_token
from vqa_core.training.feed import Feed, as_float
from vqa_core.training.loop import Training, fit, pick_device
from vqa_core.training.matching import Matcher, contrastive_loss, fit_together

REQUIRES = ("scene_encoders",)
DATASETS = {"nlvr": "NLVR", "flickr8k": "Flickr8k"}
PROTOCOLS = ("published", "pairwise", "tokens")
SHOWN = ("v0", "v2", "v3", "v5", "v7", "v9", "v11")
HITS_AT = 10  # a sentence is true of several pictures of a gallery: the right one can't often be the first
HEADLINES = ("r10", "median_rank", "in_batch_accuracy", "pairwise_accuracy", "leak")
DEPTH = 50  # of the ResNet, as published
CURVE, CURVE_PICTURES = 6, 60  # points of a learning curve, pictures of its gallery
FARTHEST = 20  # spreads from the mean: a unit of a ResNet that is silent in training pictures may wake up later
#: The published test: what its five captions say (columns of the published table), told in other words.
CAT_TEST = {
    "sim_dog_park": "a dog runs and plays in a park",
    "sim_cat_couch": "a cat lies asleep on a sofa",
    "sim_children_soccer": "kids play football",
    "sim_sunset_ocean": "the sun goes down over the sea",
    "sim_person_kitchen": "someone is cooking in a kitchen",
}
CAT = list(CAT_TEST).index("sim_cat_couch")


@dataclass(frozen=True)
class Nlvr:
    """How NLVR is used.

    Attributes
    ----------
    sizes
        As in experiment ``fusion_real``, which makes the image tokens.
    block
        Cells are averaged over squares of ``block`` × ``block``; 4 leaves 12 tokens, four for each box.
    word_count
        A word that occurs less often in training sentences is unknown.
    reader, reading
        The GRU for sentences, and its training on them alone.
    gallery
        Its size is an upper bound: a gallery has one picture of each sentence.
    """

    sizes: Sizes
    block: int
    word_count: int
    reader: Reader
    reading: Training
    gallery: Gallery


@dataclass(frozen=True)
class Flickr:
    """How Flickr8k is used: at most so many ``pictures``, of ``side`` pixels, captions of at most ``words`` pieces."""

    pictures: Pictures
    side: int
    words: int
    gallery: Gallery


@dataclass(frozen=True)
class FineTuning:
    """End-to-end training: features of a token, seeds, and the loop."""

    dim: int
    seeds: int
    training: Training


@dataclass(frozen=True)
class Config:
    """Sizes of a profile; ``dim`` by protocol, ``data`` by data set, ``recipes`` by both."""

    seeds: int
    dim: dict[str, int]
    data: dict[str, Nlvr | Flickr]
    recipes: dict[str, dict[str, Recipe]]
    finetuning: FineTuning | None = None


def _sizes(profile: str) -> Sizes:
    return next(r.data for r in FUSION_PROFILES[profile].recipes if r.data.name == "nlvr")


PROFILES = {
    "smoke": Config(
        2,
        {"published": 16, "pairwise": 16, "tokens": 16},
        {
            "nlvr": Nlvr(_sizes("smoke"), 4, 1, Reader(16, 16), Training(2, 32, 1e-2), Gallery(8, 2)),
            "flickr8k": Flickr(Pictures(24, 8, 16), 64, 16, Gallery(8, 1)),
        },
        {
            name: {
                "published": Recipe("in_batch", True, 8, 1e-3, batch_size=8),
                "pairwise": Recipe("pairwise", False, 8, 1e-3, batch_size=8),
                "tokens": Recipe("pairwise", False, 8, 1e-3, batch_size=8),
            }
            for name in DATASETS
        },
    ),
    "cpu": Config(
        5,
        {"published": 64, "pairwise": 32, "tokens": 32},
        {
            "nlvr": Nlvr(_sizes("cpu"), 4, 2, Reader(64, 32), Training(20, 64, 8e-3), Gallery(100, 2)),
            "flickr8k": Flickr(Pictures(1000, 100, 200), 224, 32, Gallery(200, 1)),
        },
        {
            "nlvr": {
                "published": Recipe("in_batch", True, 300, 1e-3),  # five epochs of 400 captions would train nothing
                "pairwise": Recipe("pairwise", False, 200, 3e-3, batch_size=16),
                "tokens": Recipe("pairwise", False, 60, 5e-3, batch_size=12),
            },
            "flickr8k": {
                "published": Recipe("in_batch", True, 830, 1e-4),  # 5 epochs of 4,000 captions
                "pairwise": Recipe("pairwise", False, 200, 3e-3, batch_size=16),
                "tokens": Recipe("pairwise", False, 100, 5e-3, batch_size=12),
            },
        },
    ),
    "gpu": Config(
        10,
        {"published": 256, "pairwise": 256, "tokens": 256},
        {
            "nlvr": Nlvr(_sizes("gpu"), 2, 2, Reader(256, 128), Training(30, 128, 4e-3), Gallery(100, 5)),
            "flickr8k": Flickr(Pictures(6000, 1000, 1000), 224, 32, Gallery(1000, 1)),
        },
        {
            "nlvr": {
                "published": Recipe("in_batch", True, 1000, 1e-4),
                "pairwise": Recipe("pairwise", False, 1000, 5e-4),
                "tokens": Recipe("pairwise", False, 1000, 5e-4),
            },
            "flickr8k": {
                "published": Recipe("in_batch", True, 5000, 1e-4),  # 5 epochs of 24,000 captions
                "pairwise": Recipe("pairwise", False, 5000, 5e-4),
                "tokens": Recipe("pairwise", False, 5000, 5e-4),
            },
        },
        FineTuning(256, 3, Training(epochs=15, batch_size=32, learning_rate=5e-5, patience=4)),
    ),
}


# ------------------------------------------------------------------------------------------------- what there is


def resnet_file() -> Path:
    """The file that ``VQA_RESNET`` names."""
    path = Path(os.environ.get("VQA_RESNET", ""))
    if not path.is_file():
        raise FileNotFoundError(f"VQA_RESNET is {str(path)!r}; set it to a file with a state dict of a ResNet")
    return path


def bert_folder() -> Path:
    """The folder that ``VQA_BERT`` names."""
    path = Path(os.environ.get("VQA_BERT", ""))
    if not (path / "config.json").is_file():
        raise FileNotFoundError(f"VQA_BERT is {str(path)!r}; set it to a folder with a saved BertModel and tokeniser")
    return path


_NLVR = (nlvr.find, "NLVR (python -m vqa_core data fetch nlvr)")
_FLICKR = (flickr8k.find, "Flickr8k (python -m vqa_core data fetch flickr8k says how to get it)")
_RESNET = (resnet_file, "weights of a ResNet-50 (environment variable VQA_RESNET: a file with a state dict)")
_BERT = (bert_folder, "BERT (environment variable VQA_BERT: the folder of a saved BertModel)")
NEEDS = {
    "nlvr": (_NLVR,),
    "nlvr.finetuned": (_NLVR, _RESNET),
    "flickr8k": (_FLICKR, _RESNET, _BERT),
    "flickr8k.finetuned": (_FLICKR, _RESNET, _BERT),
}


def absent() -> dict[str, str]:
    """What is left out → what it would need; keys as in :data:`NEEDS`. Looks for files and reads none."""
    missing = {name: [what for look, what in needs if not _is_there(look)] for name, needs in NEEDS.items()}
    return {name: "; ".join(what) for name, what in missing.items() if what}


def _is_there(look: Callable[[], Path]) -> bool:
    try:
        look()
    except FileNotFoundError:
        return False
    return True


def specs(profile: str) -> list[Spec]:
    """One spec for each version and protocol; where the encoders are trained, one for each seed. Of the data here."""
    config, missing, found = PROFILES[profile], absent(), []
    for name in (n for n in DATASETS if n not in missing):
        for version in SHOWN:
            for protocol in PROTOCOLS:
                model, recipe = Model(version, config.dim[protocol], config.seeds), config.recipes[name][protocol]
                unit = f"{name}.{protocol}.{version}"
                found.append(Spec("matching_real", unit, 0, profile, config.data[name], model, recipe))
    tuning = config.finetuning
    for name in (n for n in DATASETS if tuning is not None and f"{n}.finetuned" not in missing):
        for version in SHOWN:
            for seed in range(tuning.seeds):
                model, unit = Model(version, tuning.dim, 1), f"{name}.finetuned.{version}"
                found.append(Spec("matching_real", unit, seed, profile, config.data[name], model, tuning.training))
    return found


# -------------------------------------------------------------------------------------------- pictures and captions


class Told(NamedTuple):
    """A split: P pictures, C captions of each.

    Attributes
    ----------
    picture_ids, captions
        P names, and P times C sentences.
    group
        int (P,): pictures of one group have the same captions. No two of a group go into one batch, or one gallery.
    read
        Picture id → uint8 (H, W, 3).
    """

    picture_ids: tuple[str, ...]
    captions: tuple[tuple[str, ...], ...]
    group: np.ndarray
    read: Callable[[str], np.ndarray]


def told(data: Nlvr | Flickr) -> dict[str, Told]:
    """Splits ``train``, ``val`` and ``test`` of a data set; no two share a picture."""
    if isinstance(data, Flickr):
        splits = {"train": "train", "val": "dev", "test": "test"}
        parts = {k: flickr8k.load(s).first(getattr(data.pictures, k)) for k, s in splits.items()}
        return {k: Told(p.picture_ids, p.captions, np.arange(len(p.picture_ids)), p.picture) for k, p in parts.items()}
    return true_sentences(data.sizes)


def true_sentences(sizes: Sizes) -> dict[str, Told]:
    """NLVR's pictures whose sentence is true of them, tested on ``dev``; splits share no sentence.

    The official splits share some: such a sentence is left out of validation and test. A sentence is the same when its
    words are. Sentences of *other* pictures can be true of a picture too, so that no gallery can be solved entirely.
    """
    found, seen = {}, set()
    for split, part in splits_of(sizes).items():
        keys = [" ".join(tokenize(s.question)) for s in part]
        true = [(s, key) for s, key in zip(part, keys) if s.answer == "true" and key not in seen]
        seen.update(keys)
        number = {key: i for i, key in enumerate(dict.fromkeys(key for _, key in true))}
        group = np.array([number[key] for _, key in true], np.int64)
        ids, captions = tuple(s.picture_id for s, _ in true), tuple((s.question,) for s, _ in true)
        found[split] = Told(ids, captions, group, part.picture)
    return found


def cat_picture() -> tuple[np.ndarray, str] | None:
    """The picture of the published test, and its name: ``flickr8k/cat.jpg``, else the first test picture with a cat.

    None when no caption of the test pictures has the word.
    """
    given = flickr8k.find() / "cat.jpg"
    if given.is_file():
        return read_picture(given), "cat.jpg"
    test = flickr8k.load("test")
    for name, captions in zip(test.picture_ids, test.captions):
        if any("cat" in tokenize(c) for c in captions):
            return test.picture(name), name
    return None


# ---------------------------------------------------------------------------------------------- the frozen encoders


class Encoded(NamedTuple):
    """A split as frozen encoders see it; features have mean 0 and spread 1 over the training split.

    Attributes
    ----------
    image, image_one
        (P, N, D) and (P, D'): tokens, none of them padding, and the one token of the published protocol.
    text, text_mask, text_one
        (P, C, T, E), bool (P, C, T) and (P, C, E').
    group
        int (P,), as in :class:`Told`.
    """

    image: Tensor
    image_one: Tensor
    text: Tensor
    text_mask: Tensor
    text_one: Tensor
    group: Tensor

    def of(self, protocol: str, rows: Any, captions: Any = slice(0, 1)) -> MatchingTokens:
        """Pictures at ``rows`` and some of their captions as a protocol reads them, float32."""
        if protocol == "tokens":
            image, text, mask = self.image[rows], self.text[rows][:, captions], self.text_mask[rows][:, captions]
        else:
            image, text = self.image_one[rows].unsqueeze(1), self.text_one[rows][:, captions].unsqueeze(2)
            mask = torch.ones(text.shape[:3], dtype=torch.bool)
        real = torch.ones(image.shape[:2], dtype=torch.bool)
        return MatchingTokens(image.float(), real, text.float(), mask)


class Prepared(NamedTuple):
    """Splits as encoders see them, with the five captions and the picture of ``cat`` where there is one; and notes."""

    splits: dict[str, Encoded]
    about: dict[str, Any]


def averaged_cells(x: Tensor, block: int) -> Tensor:
    """Mean over squares of cells: (P, views · 64, D) in reading order → (P, views · (8 / block)², D)."""
    views, side = x.shape[1] // GRID**2, GRID // block
    x = x.unflatten(1, (views, side, block, side, block))  # (P, views, row, y, column, x, D)
    return x.mean((3, 5)).flatten(1, 3)  # (P, views · side², D)


def read_sentences(data: Nlvr) -> tuple[RecurrentText, Vocabulary, dict[str, float]]:
    """The GRU, trained on NLVR's training sentences and frozen; its words; its losses on validation sentences."""
    sentences = {split: sorted({s.question for s in part}) for split, part in splits_of(data.sizes).items()}
    words = Vocabulary.of_words(sentences["train"], data.word_count)

    def feed(split: str) -> Feed:
        ids, mask = encode_questions(sentences[split], words)
        n = np.zeros(len(ids), np.int64)
        return Feed(torch.zeros(1, 1, 1), n, ids, mask, n)

    torch.manual_seed(0)
    model = CaptionReader(data.reader, len(words))
    fit(
        model,
        feed("train"),
        feed("val"),
        data.reading,
        0,
        loss=lambda m, batch: sum(m.losses(batch.words, batch.word_mask)),
        score=lambda m, f: -sum(s.value for s in scores(m, f).values()),
        label="sentences of NLVR",
    )
    found = {name: s.value for name, s in scores(model, feed("val")).items()}
    return model.encoder.cpu().eval().requires_grad_(False), words, found


def _encode_nlvr(profile: str, data: Nlvr) -> Prepared:
    tokens, (reader, words, about) = real_tokens(profile, data.sizes), read_sentences(data)
    cells = torch.cat([tokens.of[letter] for letter in ALL], dim=-1)  # (P, 192, D)
    where = averaged_cells(place(3)[None], data.block)  # (1, N, 2)
    one = image_side(profile, data.sizes, ALL, "pooled").squeeze(1)  # (P, D)
    splits = {}
    for split, part in true_sentences(data.sizes).items():
        rows = [tokens.row[i] for i in part.picture_ids]
        image = averaged_cells(cells[rows].float(), data.block)  # (P', N, D)
        image = torch.cat([image, where.expand(len(image), -1, -1)], dim=-1)  # (P', N, D + 2)
        ids, mask = (torch.from_numpy(a) for a in encode_questions([c for (c,) in part.captions], words))
        states = torch.cat([reader(i, m).tokens for i, m in zip(ids.split(1024), mask.split(1024))])  # (P', T, E)
        last = last_token(states, mask).unsqueeze(1)  # (P', 1, E)
        group = torch.from_numpy(part.group)
        splits[split] = Encoded(image, one[rows], states.unsqueeze(1), mask.unsqueeze(1), last, group)
    return Prepared(splits, about)


def imagenet_normalised(pictures: Tensor) -> Tensor:
    """Pictures (B, 3, H, W) in [−1, 1] → with ImageNet's mean and deviation, as torchvision's weights expect."""
    mean, std = (pictures.new_tensor(x)[:, None, None] for x in (IMAGENET_MEAN, IMAGENET_STD))  # (3, 1, 1)
    return (0.5 * pictures + 0.5 - mean) / std


@torch.no_grad()
def _encode_flickr(profile: str, data: Flickr) -> Prepared:
    device = pick_device()
    resnet = ResNet("grid", DEPTH, resnet_file()).to(device).eval()
    states, pooled = (BertText(bert_folder(), form).to(device) for form in ("states", "pooled"))

    def see(pictures: Sequence[np.ndarray]) -> Tensor:
        x = torch.from_numpy(np.stack([resize(p, data.side, "stretch") for p in pictures]))
        return resnet(imagenet_normalised(as_float(x.to(device)))).tokens.cpu()  # (n, N, D)

    def read(captions: Sequence[str]) -> tuple[Tensor, Tensor, Tensor]:
        ids, mask = states.encode(captions, data.words)
        parts = [(i.to(device), m.to(device)) for i, m in zip(ids.split(256), mask.split(256))]
        text, one = (torch.cat([bert(*part).tokens.cpu() for part in parts]) for bert in (states, pooled))
        return text, mask, one.squeeze(1)  # (n, T, E), (n, T), (n, E)

    def encoded(pictures: Callable[[int], np.ndarray], captions: Sequence[Sequence[str]], group: np.ndarray) -> Encoded:
        n, each = len(captions), len(captions[0])
        image = torch.cat([see([pictures(i) for i in range(n)[k : k + 32]]) for k in range(0, n, 32)]).half()
        text, mask, one = (x.unflatten(0, (n, each)) for x in read([c for told in captions for c in told]))
        return Encoded(image, image.float().mean(1), text.half(), mask, one, torch.from_numpy(group))

    splits = {
        split: encoded(lambda i, p=part: p.read(p.picture_ids[i]), part.captions, part.group)
        for split, part in told(data).items()
    }
    cat = cat_picture()
    if cat is None:
        return Prepared(splits, {"cat": "no caption of a test picture has the word cat, and there is no cat.jpg"})
    splits["cat"] = encoded(lambda _: cat[0], [tuple(CAT_TEST.values())], np.zeros(1, np.int64))
    return Prepared(splits, {"cat": cat[1]})


def _standardised(splits: dict[str, Encoded]) -> dict[str, Encoded]:
    """Every feature shifted and scaled by what it is over the training split; in half precision."""
    like = splits["train"]
    seen = {"image": like.image.flatten(0, 1), "text": like.text[like.text_mask]}  # (n, D) each
    seen |= {"image_one": like.image_one, "text_one": like.text_one.flatten(0, 1)}
    seen = {name: x.float() for name, x in seen.items()}
    return {
        split: part._replace(**{name: standardised(getattr(part, name).float(), x).half() for name, x in seen.items()})
        for split, part in splits.items()
    }


def standardised(x: Tensor, like: Tensor) -> Tensor:
    """x (…, D), shifted and scaled so that ``like`` (n, D) would have mean 0 and spread 1, within ± :data:`FARTHEST`.

    A feature that is constant in ``like`` is only shifted.
    """
    spread = like.std(0)
    return ((x - like.mean(0)) / torch.where(spread > 1e-6, spread, 1.0)).clamp(-FARTHEST, FARTHEST)


@lru_cache(maxsize=2)
def _digest(path: Path) -> str:
    """SHA-256 of a file, or of the files of a folder."""
    digest = hashlib.sha256()
    for file in sorted(f for f in path.rglob("*") if f.is_file()) if path.is_dir() else [path]:
        with open(file, "rb") as f:
            digest.update(f"{file.name} {hashlib.file_digest(f, 'sha256').hexdigest()}\n".encode())
    return digest.hexdigest()


def _made_from(profile: str, data: Nlvr | Flickr) -> list[str]:
    """What the tokens depend on besides code and sizes."""
    if isinstance(data, Flickr):
        cat = cat_picture()
        return [
            *(flickr8k.load(split).content_hash() for split in flickr8k.SPLITS),
            _digest(resnet_file()),
            _digest(bert_folder()),
            "no cat" if cat is None else hashlib.sha256(cat[0].tobytes()).hexdigest(),
        ]
    index = results_root() / profile / "scene_encoders" / "index.json"
    return [index.read_text(encoding="utf-8"), *(part.content_hash() for part in splits_of(data.sizes).values())]


@lru_cache(maxsize=2)
def prepared(profile: str, data: Nlvr | Flickr) -> Prepared:
    """Tokens of a data set; made once and kept in a file, which is made anew when data, encoders or code change."""
    from safetensors import safe_open
    from safetensors.torch import save

    from vqa_core.experiments.provenance import code_hash

    name = "flickr8k" if isinstance(data, Flickr) else "nlvr"
    made_from = json.dumps(_made_from(profile, data))
    made_by = json.dumps([asdict(data), made_from, code_hash([__name__])])
    path = results_root() / profile / "matching_real" / f"tokens_{name}.safetensors"
    path.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(path.with_suffix(".lock")):
        if path.is_file():
            with safe_open(path, "pt") as stored:
                if (stored.metadata() or {}).get("made_by") == made_by:
                    names = dict.fromkeys(key.partition(".")[0] for key in stored.keys())  # noqa: SIM118
                    splits = {
                        s: Encoded(*(stored.get_tensor(f"{s}.{field}") for field in Encoded._fields)) for s in names
                    }
                    return Prepared(splits, json.loads(stored.metadata()["about"]))
        raw = (_encode_flickr if isinstance(data, Flickr) else _encode_nlvr)(profile, data)
        about = raw.about | {"data_hash": hashlib.sha256(made_from.encode()).hexdigest()}
        made = Prepared(_standardised(raw.splits), about)
        tensors = {f"{s}.{field}": x.contiguous() for s, p in made.splits.items() for field, x in p._asdict().items()}
        write_atomically(path, save(tensors, metadata={"made_by": made_by, "about": json.dumps(made.about)}))
    return made


# ------------------------------------------------------------------------------------------- batches and galleries


def one_of_each(group: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """A row of each group at random, in random order: int (n,) → (number of groups,)."""
    rows = rng.permutation(len(group))
    _, first = np.unique(group[rows], return_index=True)
    return rng.permutation(rows[first])


def leaky_split(pictures: int, captions: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """80 % and 20 % of all (picture, caption) pairs at random, int (·, 2) each: the published split.

    In Flickr8k most pictures are on both sides. In NLVR a picture has one caption, but a sentence has several pictures.
    """
    pairs = np.stack(np.divmod(np.arange(pictures * captions), captions), axis=1)
    pairs = np.random.default_rng([seed, 80]).permutation(pairs)
    cut = round(0.8 * len(pairs))
    return pairs[:cut], pairs[cut:]


def draw_pairs(group: np.ndarray, captions: int, recipe: Recipe, seed: int) -> np.ndarray:
    """Which (picture, caption) pairs each step sees, int (steps, B, 2); an epoch has one pair of each group.

    Raises
    ------
    ValueError
        When there are fewer groups than pairs in a batch.
    """
    size, rng = recipe.batch_size, np.random.default_rng(seed)
    pairs = np.stack(np.divmod(np.arange(len(group) * captions), captions), axis=1)  # (P · C, 2)
    if recipe.leaky:
        pairs = leaky_split(len(group), captions, seed)[0]
    groups = group[pairs[:, 0]]
    if len(np.unique(groups)) < size:
        raise ValueError(f"batch_size is {size}, but only {len(np.unique(groups))} captions or pictures differ")
    rows, needed = [], recipe.steps * size
    while sum(map(len, rows)) < needed:
        epoch = one_of_each(groups, rng)
        rows.append(pairs[epoch[: len(epoch) // size * size]])  # whole batches
    return np.concatenate(rows)[:needed].reshape(recipe.steps, size, 2)


def gallery_rows(group: np.ndarray, gallery: Gallery) -> tuple[np.ndarray, Gallery]:
    """Pictures of all galleries one after another, and their true size: one picture of each group, or fewer.

    Galleries differ in which pictures stand for a group and, where there are more groups than places, in the groups.
    They are the same for every version, protocol and seed.
    """
    rng = np.random.default_rng(2026)
    size = min(gallery.pictures, len(np.unique(group)))
    rows = [one_of_each(group, rng)[:size] for _ in range(gallery.galleries)]
    return np.concatenate(rows), Gallery(size, gallery.galleries)


# -------------------------------------------------------------------------------------------------- frozen encoders


def train(spec: Spec, protocol: str, tokens: Encoded, on_step: Callable | None = None) -> list[Matcher]:
    """All seeds of a spec, trained together."""
    recipe, device, captions = spec.training, pick_device(), tokens.text.shape[1]
    sequences, group = protocol == "tokens", tokens.group.numpy()
    image = (tokens.image if sequences else tokens.image_one.unsqueeze(1)).to(device)  # (P, N, D)
    text = (tokens.text if sequences else tokens.text_one.unsqueeze(2)).to(device)  # (P, C, T, E)
    mask = tokens.text_mask.to(device)
    matchers, pairs = [], []
    for seed in range(spec.model.seeds):
        torch.manual_seed(seed)
        matchers.append(Matcher(image.shape[-1], text.shape[-1], make_module(spec.model)).to(device))
        pairs.append(draw_pairs(group, captions, recipe, seed))
    pairs = torch.from_numpy(np.stack(pairs, axis=1)).to(device)  # (steps, S, B, 2)

    def batch(step: int):
        picture, caption = pairs[step].unbind(-1)  # (S, B) each
        real = mask[picture, caption] if sequences else None
        return image[picture].float(), text[picture, caption].float(), None, real

    after = None if on_step is None else lambda step, losses: on_step(step, losses, matchers)
    fit_together(matchers, batch, recipe.steps, recipe.scoring, recipe.learning_rate, recipe.weight_decay, after=after)
    return matchers


@torch.inference_mode()
def cat_test(matcher: Matcher, cat: MatchingTokens) -> dict[str, float]:
    """The published test: similarity (logit) of one picture with each caption of :data:`CAT_TEST`, and what follows.

    ``cat.trained`` … as in :func:`~vqa_core.experiments.cross_attention.caption_test`, for this one picture.
    """
    device, temperature = matcher.temperature.device, matcher.used_temperature().item()
    sides = cat.image, cat.text[0], cat.image_mask, cat.text_mask[0]  # one picture, five captions
    logits = matcher.eval()(*(t.to(device) for t in sides))[0].float().cpu().numpy()  # (5,)
    right_first = np.roll(logits * temperature, -CAT)
    same_five = np.stack([np.roll(right_first, i) for i in range(5)])  # (5, 5), its diagonal is the right caption
    found = {f"cat.{name}": value for name, value in caption_test(same_five, temperature).items()}
    return found | {f"cat.{name}": float(value) for name, value in zip(CAT_TEST, logits)}


def recall_on_held_out(matcher: Matcher, protocol: str, train: Encoded, gallery: Gallery, seed: int) -> float:
    """R@1 among the held-out pairs of the leaky split, one of each group: what the published split would measure."""
    held = leaky_split(len(train.image), train.text.shape[1], seed)[1]
    held = held[one_of_each(train.group.numpy()[held[:, 0]], np.random.default_rng(seed))[: gallery.pictures]]
    sides = [train.of(protocol, held[held[:, 1] == c, 0], slice(c, c + 1)) for c in np.unique(held[:, 1])]
    some = MatchingTokens(*(torch.cat(parts) for parts in zip(*sides)))
    return recall_both_ways(pair_cosines(matcher, some, slice(None)), 1)


def run_frozen(spec: Spec, name: str, protocol: str) -> Outcome:
    """All seeds of a version on frozen encoders."""
    splits, about = prepared(spec.profile, spec.data)
    rows, gallery = gallery_rows(splits["test"].group.numpy(), spec.data.gallery)
    val_rows, val_gallery = gallery_rows(splits["val"].group.numpy(), Gallery(CURVE_PICTURES, 1))
    test, val = splits["test"].of(protocol, rows), splits["val"].of(protocol, val_rows)
    recipe, curve, losses_since = spec.training, [], []
    every = -(-recipe.steps // CURVE)

    def watch(step: int, losses: list[float], matchers: list[Matcher]) -> None:
        losses_since.append(losses)
        if (step + 1) % every == 0 or step + 1 == recipe.steps:
            r1 = [recall_both_ways(pair_cosines(m, val, slice(None)), 1) for m in matchers]
            curve.append({"step": step + 1, "loss": np.mean(losses_since, axis=0).tolist(), "val_r1": r1})
            losses_since.clear()

    start = time.perf_counter()
    matchers = train(spec, protocol, splits["train"], watch)
    seconds = (time.perf_counter() - start) / recipe.steps / spec.model.seeds
    found, hits = zip(*(measure(m, test, gallery, HITS_AT) for m in matchers), strict=True)
    for seed, (matcher, row) in enumerate(zip(matchers, found)):
        row["temperature"] = matcher.used_temperature().item()
        if protocol == "published":
            row["r1_shared"] = recall_on_held_out(matcher, protocol, splits["train"], gallery, seed)
        if "cat" in splits:
            row |= cat_test(matcher, splits["cat"].of(protocol, slice(None), slice(None)))
    details = {"curve": curve, "val_gallery": val_gallery.pictures, "seconds_per_step": seconds}
    details |= {"pictures": {s: len(part.image) for s, part in splits.items() if s != "cat"}}
    queries = {"hits": np.stack(hits), "group": splits["test"].group.numpy()[rows].reshape(gallery.galleries, -1)}
    return _outcome(spec, found, queries, test, matchers[0], about | details)


def _outcome(
    spec: Spec, found: Sequence[dict], queries: dict, test: MatchingTokens, matcher: Matcher, details: dict
) -> Outcome:
    """What both kinds of runs store: a row of ``found`` for each seed, hits of queries, the cost of the module."""
    name, protocol, version = spec.unit.split(".")
    arrays = {metric: np.array([row[metric] for row in found]) for metric in found[0]}  # metric → (S,)
    metrics = {k: Metric(float(v.mean()), len(v)) for k, v in arrays.items()}
    galleries, pictures = queries["group"].shape
    details = details | cost(spec, matcher, test)
    details |= {"data": name, "protocol": protocol, "version": version, "gallery": pictures}
    details |= {"queries": 2 * pictures * galleries, "image_tokens": test.image.shape[1]}
    return Outcome(metrics, arrays | queries, details)


# ------------------------------------------------------------------------------------------------------ end to end


class Raw(NamedTuple):
    """A split before any encoder.

    Attributes
    ----------
    pictures
        uint8 (P, H, W, 3).
    words, word_mask
        Word ids, long (P, C, T), and bool (P, C, T).
    group
        int (P,), as in :class:`Told`.
    """

    pictures: Tensor
    words: Tensor
    word_mask: Tensor
    group: np.ndarray


class PairFeed(Feed):
    """Pairs of pictures and captions, of which a batch takes one of each group, drawn anew each time.

    Its length is the number of groups, so that an epoch shows every group once.

    Parameters
    ----------
    raw
        The split.
    """

    def __init__(self, raw: Raw) -> None:
        pictures, captions, _ = raw.words.shape
        picture = np.repeat(np.arange(pictures), captions)  # (P · C,), of each pair
        super().__init__(
            raw.pictures, picture, raw.words.flatten(0, 1), raw.word_mask.flatten(0, 1), np.zeros(len(picture))
        )
        group = raw.group[picture]
        self.pairs = [torch.from_numpy(np.flatnonzero(group == g)) for g in np.unique(group)]

    def __len__(self) -> int:
        return len(self.pairs)

    def batch(self, rows):
        """One pair of each group among ``rows``; PyTorch's generator draws it, which the loop seeds."""
        drawn = [pairs[torch.randint(len(pairs), ())] for pairs in (self.pairs[int(g)] for g in rows)]
        return super().batch(torch.stack(drawn))


class EndToEnd(nn.Module):
    """Encoders and matcher, trained together; batch norm keeps the statistics that it came with.

    Parameters
    ----------
    image_encoder
        Normalised pictures (B, 3, H, W) → tokens; has ``out_dim``.
    text_encoder
        Word ids and mask (B, T) → tokens; has ``out_dim``.
    module
        As in :mod:`vqa_core.fusion.cross_attention`.
    """

    def __init__(self, image_encoder: nn.Module, text_encoder: nn.Module, module: nn.Module) -> None:
        super().__init__()
        self.image_encoder, self.text_encoder = image_encoder, text_encoder
        self.image_norm = nn.LayerNorm(image_encoder.out_dim)
        self.text_norm = nn.LayerNorm(text_encoder.out_dim)
        self.matcher = Matcher(image_encoder.out_dim, text_encoder.out_dim, module)

    def train(self, mode: bool = True) -> EndToEnd:
        """Training mode but for batch norm: batches are too small for statistics of their own."""
        super().train(mode)
        for part in self.modules():
            if isinstance(part, nn.modules.batchnorm._BatchNorm):
                part.eval()
        return self

    def encode(self, pictures: Tensor, words: Tensor, word_mask: Tensor) -> tuple[Tensor, Tensor]:
        """Pictures (B, 3, H, W) in [−1, 1] and words (B, T) → tokens (B, N, D) and (B, T, E), float32."""
        image: Tokens = self.image_encoder(imagenet_normalised(pictures))
        text: Tokens = self.text_encoder(words, word_mask)
        return self.image_norm(image.tokens.float()), self.text_norm(text.tokens.float())

    def forward(self, pictures: Tensor, words: Tensor, word_mask: Tensor) -> Tensor:
        """Logits of every picture with every caption, each from its pair alone: (B, B)."""
        image, text = self.encode(pictures, words, word_mask)
        with torch.autocast(pictures.device.type, enabled=False):  # bf16 is too coarse for scores that are compared
            return self.matcher(image.float(), text.float(), None, word_mask)


@torch.no_grad()
def encoded_pairs(model: EndToEnd, raw: Raw, rows: np.ndarray, captions: Any = slice(0, 1)) -> MatchingTokens:
    """Some pictures of a split and some of their captions as the encoders see them now."""
    device, found = next(model.parameters()).device, []
    model.eval()
    for part in np.array_split(rows, -(-len(rows) // 32)):
        words, mask = raw.words[part][:, captions].to(device), raw.word_mask[part][:, captions].to(device)  # (n, C, T)
        pictures = as_float(raw.pictures[part].to(device))
        image, text = model.encode(pictures, words.flatten(0, 1), mask.flatten(0, 1))
        real = torch.ones(image.shape[:2], dtype=torch.bool)
        found.append((image.cpu(), real, text.unflatten(0, mask.shape[:2]).cpu(), mask.cpu()))
    return MatchingTokens(*(torch.cat(parts) for parts in zip(*found)))


def raw_splits(data: Nlvr | Flickr) -> tuple[dict[str, Raw], nn.Module, dict[str, Any]]:
    """Splits as pictures and word ids, the text encoder to begin with, and notes."""
    if isinstance(data, Flickr):
        text: nn.Module = BertText(bert_folder(), "states")
        about: dict[str, Any] = {"data_hash": hashlib.sha256("".join(_made_from("", data)).encode()).hexdigest()}
    else:
        text, words, about = read_sentences(data)
        text.requires_grad_(True)
        about["data_hash"] = splits_of(data.sizes)["test"].content_hash()

    def encode(captions: Sequence[str]) -> tuple[Tensor, Tensor]:
        if isinstance(data, Flickr):
            return text.encode(captions, data.words)
        return tuple(torch.from_numpy(a) for a in encode_questions(captions, words))

    def raw(pictures: Sequence[np.ndarray], captions: Sequence[Sequence[str]], group: np.ndarray) -> Raw:
        if isinstance(data, Flickr):
            pictures = [resize(p, data.side, "stretch") for p in pictures]
        ids, mask = (x.unflatten(0, (len(captions), -1)) for x in encode([c for told in captions for c in told]))
        return Raw(torch.from_numpy(np.stack(list(pictures))), ids, mask, group)

    splits = {s: raw([p.read(i) for i in p.picture_ids], p.captions, p.group) for s, p in told(data).items()}
    if isinstance(data, Flickr) and (cat := cat_picture()) is not None:
        splits["cat"] = raw([cat[0]], [tuple(CAT_TEST.values())], np.zeros(1, np.int64))
        about["cat"] = cat[1]
    return splits, text, about


def finetune(
    model: EndToEnd, splits: dict[str, Raw], training: Training, seed: int, label: str = ""
) -> tuple[list[dict], int]:
    """Train encoders and module with scores from pairs alone; the weights of the best validation epoch stay.

    Returns
    -------
    history, best_epoch
        As :class:`vqa_core.training.loop.Fit` has them; validation is R@1 in one gallery.
    """
    rows, _ = gallery_rows(splits["val"].group, Gallery(CURVE_PICTURES, 1))

    def val_r1(model: EndToEnd, _: Feed) -> float:
        return recall_both_ways(pair_cosines(model.matcher, encoded_pairs(model, splits["val"], rows), slice(None)), 1)

    fitted = fit(
        model,
        PairFeed(splits["train"]),
        PairFeed(splits["val"]),
        training,
        seed,
        loss=lambda m, batch: contrastive_loss(m(*batch[:3])),
        score=val_r1,
        label=label,
    )
    return fitted.history, fitted.best_epoch


def run_finetuned(spec: Spec) -> Outcome:
    """One seed of a version, encoders trained too."""
    splits, text, about = raw_splits(spec.data)
    torch.manual_seed(spec.seed)
    model = EndToEnd(ResNet("grid", DEPTH, resnet_file()), text, make_module(spec.model))
    start = time.perf_counter()
    history, best = finetune(model, splits, spec.training, spec.seed, f"{spec.unit}, seed {spec.seed}")
    seconds = time.perf_counter() - start
    steps = len(history) * -(-len(PairFeed(splits["train"])) // spec.training.batch_size)
    rows, gallery = gallery_rows(splits["test"].group, spec.data.gallery)
    test = encoded_pairs(model, splits["test"], rows)
    found, hits = measure(model.matcher, test, gallery, HITS_AT)
    found["temperature"] = model.matcher.used_temperature().item()
    if "cat" in splits:
        found |= cat_test(model.matcher, encoded_pairs(model, splits["cat"], np.arange(1), slice(None)))
    details = {"history": history, "best_epoch": best, "seconds_per_step": seconds / steps}
    details |= {"pictures": {s: len(part.pictures) for s, part in splits.items() if s != "cat"}}
    queries = {"hits": hits[None], "group": splits["test"].group[rows].reshape(gallery.galleries, -1)}
    return _outcome(spec, [found], queries, test, model.matcher, about | details)


def run(spec: Spec) -> Outcome:
    """Train a version on a data set under a protocol, and measure it on held-out pictures."""
    name, protocol, _ = spec.unit.split(".")
    return run_finetuned(spec) if protocol == "finetuned" else run_frozen(spec, name, protocol)
