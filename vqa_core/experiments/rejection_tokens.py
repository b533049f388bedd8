"""Experiment ``rejection_tokens``: what the heads of experiment ``rejection`` read, made once by frozen encoders.

``scenes``
    Fused vectors of the fusion that ``ask`` uses (the one of experiment ``fusion`` that is best on validation).
``phantoms``, ``vqa_rad``
    Tokens of MEVF's two encoders (frozen, as in experiment ``medical``) and the words; what comes after is trained.

Each has the parts ``train``, ``val`` (chooses epochs and temperatures), ``calibration`` (chooses thresholds, where
there are questions to spare) and ``test``, which share no picture; and parts that are *shifted*: other pictures than
the model was trained for. **Not for clinical use; phantoms are not patients.**
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from vqa_core.data import Dataset, Vocabulary, encode_questions, phantoms
from vqa_core.data.collate import picture_array
from vqa_core.experiments import Metric, Outcome, Spec, fusion, medical
from vqa_core.experiments.medical_encoders import SIZE, load_encoder
from vqa_core.experiments.records import Record, load_record
from vqa_core.experiments.scene_encoders import NamedCells, load_encoders, scene_split, scene_tokens
from vqa_core.model import VQAModel
from vqa_core.training.feed import Feed, as_float
from vqa_core.training.loop import autocast, pick_device

REQUIRES = ("fusion", "medical_encoders")
ENCODERS = medical.PAIR  # of MEVF; VQA-RAD takes the published weights, phantoms those trained on phantoms


@dataclass(frozen=True)
class SceneParts:
    """How many questions of the scenes are used.

    ``train`` and ``test`` take the first so many of their splits. The rest of the test split is for calibration: the
    validation split has chosen the fusion. ``noise`` are standard deviations, in shares of the full range of a pixel,
    of the noise on the pictures of ``shifted`` test questions.
    """

    train: int
    test: int
    shifted: int
    noise: tuple[float, ...] = (0.02, 0.05, 0.1, 0.2)


@dataclass(frozen=True)
class PhantomParts:
    """Numbers of pictures. The smaller amounts of training pictures are the first ones of ``train``.

    ``severity`` are noises of the test pictures besides 1; ``unseen`` are pictures of a modality that no training
    picture has, ``unanswerable`` ones with questions about organs that they do not show.
    """

    train: int
    val: int
    calibration: int
    test: int
    shifted: int
    severity: tuple[float, ...] = (2.0, 5.0)
    max_words: int = 14


@dataclass(frozen=True)
class Config:
    """Sizes of a profile; ``sizes`` and ``rad`` are those of experiment ``medical``."""

    scenes: SceneParts
    phantoms: PhantomParts
    rad: medical.Rad
    sizes: medical.Sizes


PROFILES = {
    profile: Config(scenes, drawn, medical.PROFILES[profile].rad, medical.PROFILES[profile].sizes)
    for profile, scenes, drawn in (
        ("smoke", SceneParts(800, 200, 60), PhantomParts(40, 12, 20, 20, 10)),
        ("cpu", SceneParts(32000, 8000, 2000), PhantomParts(1600, 100, 300, 300, 150)),
        ("gpu", SceneParts(320000, 32000, 8000), PhantomParts(10000, 500, 1000, 1000, 500)),
    )
}


def specs(profile: str) -> list[Spec]:
    """One spec for each data set that is here."""
    config = PROFILES[profile]
    data = {"scenes": config.scenes, "phantoms": config.phantoms}
    if not {"vqa_rad", "maml_published", "dae_published"} & set(medical.absent()):
        data["vqa_rad"] = config.rad
    sizes = {"scenes": None, "phantoms": config.sizes, "vqa_rad": config.sizes}
    return [Spec("rejection_tokens", unit, 0, profile, of, sizes[unit]) for unit, of in data.items()]


def run(spec: Spec) -> Outcome:
    """Make the tokens of one data set."""
    return {"scenes": _scenes, "phantoms": _phantoms, "vqa_rad": _vqa_rad}[spec.unit](spec)


# -------------------------------------------------------------------------------------------------------------- scenes


def kept_fusion(profile: str, root: Path | None = None) -> tuple[Record, list[Record]]:
    """The run of ``fusion.KEPT`` that is best on validation, and all of its runs.

    Raises
    ------
    FileNotFoundError
        There is none at this profile.
    """
    every = [s for s in fusion.specs(profile) if s.unit == fusion.KEPT]
    records = [record for spec in every if (record := load_record(spec, root=root)) is not None]
    if not records:
        raise FileNotFoundError(
            f"{every[0].path(root)} is missing; make it: python -m vqa_core run fusion --profile {profile}"
        )
    return max(records, key=lambda r: r.details["history"][r.details["best_epoch"]]["validation"]), records


def trained_fusion(record: Record, image_dim: int, text_dim: int, root: Path | None = None) -> VQAModel:
    """The model whose weights a record of ``fusion.KEPT`` holds, frozen; ``root`` is where the record was read."""
    weights = {k.removeprefix("model."): torch.from_numpy(v) for k, v in record.arrays.items() if k[:6] == "model."}
    if not weights:
        raise ValueError(f"{record.spec.path(root)} holds no weights; delete it and run again")
    model = fusion.build(record.spec.model, image_dim, text_dim, len(record.details["answers"]))
    model.load_state_dict(weights)
    return model.eval().requires_grad_(False)


def weights_hash(record: Record) -> str:
    """SHA-256 of the weights that a record of ``fusion.KEPT`` holds."""
    kept = sorted(k for k in record.arrays if k.startswith("model."))
    return hashlib.sha256(b"".join(np.ascontiguousarray(record.arrays[k]).tobytes() for k in kept)).hexdigest()


@torch.no_grad()
def fused_of(model: nn.Module, feed: Feed, batch_size: int = 1024) -> Tensor:
    """Fused vectors of all questions (Q, D), float32, by the model in ``eval`` mode; both are on the CPU afterwards."""
    where = pick_device()
    model.to(where).eval()
    with autocast(where):
        fused = torch.cat([model(*b.to(where)[:3]).fusion.fused.float().cpu() for b in feed.batches(batch_size)])
    model.cpu()
    return fused


def _scenes(spec: Spec) -> Outcome:
    """Fused vectors of the scenes; ``noise_…`` are test questions about noisier pictures."""
    profile, sizes = spec.profile, spec.data
    record, _ = kept_fusion(profile)
    method = fusion.METHODS[fusion.KEPT]
    feeds = {s: fusion.feed_of(profile, s, method.image, method.text) for s in ("train", "val", "test")}
    model = trained_fusion(record, feeds["train"].pictures.shape[-1], feeds["train"].words.shape[-1])
    fused = {split: fused_of(model, feed) for split, feed in feeds.items()}
    n = {split: len(feed) for split, feed in feeds.items()}
    rows = {  # part → (split, which of its questions)
        "train": ("train", np.arange(min(n["train"], sizes.train))),
        "val": ("val", np.arange(n["val"])),
        "calibration": ("test", np.arange(min(n["test"], sizes.test), n["test"])),
        "test": ("test", np.arange(min(n["test"], sizes.test))),
    }
    arrays: dict[str, np.ndarray] = {}
    for part, (split, keep) in rows.items():
        arrays[f"fused.{part}"] = fused[split][torch.from_numpy(keep)].numpy()
        arrays |= _about(part, feeds[split].answers.numpy()[keep], feeds[split].picture_index.numpy()[keep])
    shifted = np.arange(min(n["test"], sizes.shifted))
    for noise in sizes.noise:
        part = f"noise_{noise:g}"
        noisy = fused_of(model, _noisy_feed(profile, shifted, noise))
        arrays[f"fused.{part}"] = noisy.numpy()
        arrays |= _about(part, feeds["test"].answers.numpy()[shifted], feeds["test"].picture_index.numpy()[shifted])
    test = scene_split(profile, "test")
    right = (model.head(fused["test"]).argmax(1) == feeds["test"].answers).float()
    details = {
        "answers": record.details["answers"],
        "fusion_seed": record.spec.seed,
        "fusion_hash": weights_hash(record),
        "families": list(test.families),
        "data_hash": test.content_hash(),
    } | _told([test.samples[i] for i in rows["test"][1]], test.families)
    return Outcome({"accuracy_test": Metric(float(right.mean()), len(right))}, arrays, details)


@torch.no_grad()
def _noisy_feed(profile: str, rows: np.ndarray, noise: float) -> Feed:
    """The test questions ``rows`` about pictures with Gaussian noise on every pixel and channel."""
    namer, _, _ = load_encoders(profile)
    cells, tokens = NamedCells(namer).to(pick_device()), scene_tokens(profile, "test")
    index = tokens.picture_index[torch.from_numpy(rows)]
    images = scene_split(profile, "test").images[: int(index.max()) + 1]  # (P, H, W, 3)
    rng = np.random.default_rng(0)
    noisy = (images + rng.normal(0, 255 * noise, images.shape)).round().clip(0, 255).astype(np.uint8)
    seen = [cells(as_float(p).to(pick_device())).tokens.cpu() for p in torch.from_numpy(noisy).split(256)]
    words, mask = tokens.text.sum(1, keepdim=True), tokens.text_mask.any(1, keepdim=True)  # (U, 1, D), (U, 1)
    asked = tokens.question_index[torch.from_numpy(rows)]
    return Feed(torch.cat(seen), index, words, mask, torch.zeros(len(rows)), asked)


# ---------------------------------------------------------------------------------------------- phantoms and VQA-RAD


def _phantoms(spec: Spec) -> Outcome:
    sizes: PhantomParts = spec.data
    known = phantoms.load("val", n=sizes.val + sizes.calibration, size=SIZE)
    for_val = np.array([known.picture_index(s.picture_id) < sizes.val for s in known])
    parts: dict[str, Dataset] = {
        "train": phantoms.load("train", n=sizes.train, size=SIZE),
        "val": known.subset(np.flatnonzero(for_val)),
        "calibration": known.subset(np.flatnonzero(~for_val)),
        "test": phantoms.load("test", n=sizes.test, size=SIZE),
        **{
            f"severity_{severity:g}": phantoms.load("test", n=sizes.test, size=SIZE, severity=severity)
            for severity in sizes.severity
        },
        "unseen": phantoms.load("unseen", n=sizes.shifted, size=SIZE),
        "unanswerable": phantoms.load("unanswerable", n=sizes.shifted, size=SIZE),
    }
    pictures, rows, start = [], {}, 0
    for part, dataset in parts.items():
        found, index = picture_array(dataset, SIZE, fit="stretch", progress=False)
        pictures.append(found)
        rows[part] = index + start
        start += len(found)
    every, train = np.concatenate(pictures), np.isin(np.arange(start), rows["train"])
    tokens = [medical.encode(*load_encoder(spec.profile, name), every, train, spec.model) for name in ENCODERS]
    vocabulary = Vocabulary.of_answers(s.answer for part in ("train", "val", "calibration") for s in parts[part])
    words = Vocabulary.of_words(s.question for s in parts["train"])
    return _outcome(torch.cat(tokens, dim=-1), parts, rows, vocabulary, words, sizes.max_words)


def _vqa_rad(spec: Spec) -> Outcome:
    """VQA-RAD has no questions to spare for a calibration."""
    material = medical.material_of(spec.data)
    names = [medical.ENCODERS["vqa_rad"][name] for name in ENCODERS]
    tokens = torch.cat([medical.tokens_of(spec.profile, spec.data, name) for name in names], dim=-1)
    rows = medical.picture_rows(material)
    return _outcome(tokens, material.parts, rows, material.vocabulary, material.words, spec.data.max_words)


def _outcome(
    tokens: Tensor,
    parts: dict[str, Dataset],
    rows: dict[str, np.ndarray],
    vocabulary: Vocabulary,
    words: Vocabulary,
    max_words: int,
) -> Outcome:
    arrays = {"tokens": tokens.numpy()}
    for part, dataset in parts.items():
        ids, mask = encode_questions([s.question for s in dataset], words, max_words)  # (Q, T) each
        arrays |= {f"words.{part}": ids, f"mask.{part}": mask}
        arrays |= _about(part, vocabulary.ids(s.answer for s in dataset), rows[part])
        arrays[f"closed.{part}"] = np.array([s.kind == "closed" for s in dataset])
    digest = hashlib.sha256("".join(part.content_hash() for part in parts.values()).encode())
    test = parts["test"]
    details = {
        "answers": vocabulary.symbols,
        "words": len(words),
        "families": list(test.families),
        "data_hash": digest.hexdigest(),
    } | _told(test.samples, test.families)
    reachable = arrays["answers.test"] >= 0
    return Outcome({"ceiling": Metric(float(reachable.mean()), len(reachable))}, arrays, details)


def _about(part: str, answers, pictures) -> dict[str, np.ndarray]:
    return {
        f"answers.{part}": np.asarray(answers, dtype=np.int64),
        f"pictures.{part}": np.asarray(pictures, dtype=np.int64),
    }


def _told(samples: Sequence, families: Sequence[str]) -> dict[str, list]:
    """What a reader sees of the test questions."""
    return {
        "questions": [s.question for s in samples],
        "true": [s.answer for s in samples],
        "family": [list(families).index(s.family) for s in samples],
    }


# -------------------------------------------------------------------------------------------------- as others read it


class Material(NamedTuple):
    """A data set as the heads read it.

    Attributes
    ----------
    feeds
        Part → questions. The pictures of scenes are fused vectors, (Q, 1, D), one for each question.
    pictures, closed
        Part → picture (Q,) int, and whether a question is closed (Q,) bool; of scenes there is no ``closed``.
    details
        ``answers`` (vocabulary), ``families``, ``data_hash``, and of the test ``questions``, ``true``, ``family``.
    """

    feeds: dict[str, Feed]
    pictures: dict[str, np.ndarray]
    closed: dict[str, np.ndarray]
    details: dict

    @property
    def shifted(self) -> list[str]:
        """Parts with other pictures than those trained for."""
        return [part for part in self.feeds if part not in ("train", "val", "calibration", "test")]


@lru_cache(maxsize=3)
def material_of(profile: str, name: str, root: Path | None = None) -> Material:
    """A data set from its record.

    Raises
    ------
    FileNotFoundError
        The tokens have not been made at this profile.
    """
    spec = next((s for s in specs(profile) if s.unit == name), None)
    if spec is None:
        here = ", ".join(s.unit for s in specs(profile))
        raise FileNotFoundError(f"the files of {name!r} are not on this machine; there are {here}")
    record = load_record(spec, root=root)
    if record is None:
        raise FileNotFoundError(
            f"{spec.path(root)} is missing; make it: python -m vqa_core run rejection_tokens --profile {profile}"
        )
    a = record.arrays
    parts = [key.removeprefix("answers.") for key in a if key.startswith("answers.")]
    order = ("train", "val", "calibration", "test")
    parts = [*(p for p in order if p in parts), *sorted(p for p in parts if p not in order)]
    if name == "scenes":
        feeds = {p: fused_feed(torch.from_numpy(a[f"fused.{p}"]), a[f"answers.{p}"]) for p in parts}
    else:
        tokens = torch.from_numpy(a["tokens"])
        feeds = {p: Feed(tokens, a[f"pictures.{p}"], a[f"words.{p}"], a[f"mask.{p}"], a[f"answers.{p}"]) for p in parts}
    closed = {p: a[f"closed.{p}"] for p in parts if f"closed.{p}" in a}
    details = {**record.details, "data_hash": record.provenance["data_hash"]}
    return Material(feeds, {p: a[f"pictures.{p}"] for p in parts}, closed, details)


def fused_feed(fused: Tensor, answers) -> Feed:
    """Fused vectors (Q, D) as the pictures (Q, 1, D) of Q questions without words."""
    n = len(fused)
    nowhere = torch.zeros(n, dtype=torch.long)
    return Feed(fused.unsqueeze(1), torch.arange(n), torch.zeros(1, 1, 1), torch.ones(1, 1), answers, nowhere)
