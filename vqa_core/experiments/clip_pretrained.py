"""Experiment ``clip_pretrained``: a published CLIP judged as the small ones of experiment ``clip`` are.

Its folder stands in ``VQA_CLIP`` (``save_pretrained`` of a ``CLIPModel``, its tokeniser and its image processor, or a
snapshot of ``openai/clip-vit-base-patch32``). Where there is none, the experiment has no units, and :func:`absent` says
what is missing. Nothing is trained: the pictures are resized to what the model takes, the prompts are the same.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Sequence
from functools import cache
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from vqa_core.encoders.clip_pair import CLIPPair, find_pair
from vqa_core.evaluation.retrieval import hits_at_k, recall_at_k
from vqa_core.evaluation.zero_shot import classifier
from vqa_core.experiments import Metric, Outcome, Spec
from vqa_core.experiments import clip as small
from vqa_core.experiments.clip_material import ENSEMBLES, NAMES, gallery, single
from vqa_core.training.loop import pick_device

REQUIRES = ()
PROFILES = {profile: config.pictures for profile, config in small.PROFILES.items()}
UNIT = "zero_shot"


def clip_folder() -> Path:
    """The folder that ``VQA_CLIP`` names.

    Raises
    ------
    FileNotFoundError
        When the variable is not set, or the folder has not all that is needed; the message says what.
    """
    name = os.environ.get("VQA_CLIP", "")
    if not name:
        raise FileNotFoundError("VQA_CLIP is not set; set it to the folder of a saved CLIPModel with its tokeniser")
    return find_pair(name)


def absent() -> str | None:
    """Why there is nothing to measure; None when there is."""
    try:
        clip_folder()
    except FileNotFoundError as error:
        return str(error)
    return None


def specs(profile: str) -> list[Spec]:
    """The one unit, or none where the weights are absent."""
    return [] if absent() else [Spec("clip_pretrained", UNIT, 0, profile, PROFILES[profile])]


@torch.inference_mode()
def embed_pictures(pair: CLIPPair, pictures: Tensor, at_a_time: int = 64) -> Tensor:
    """Unit vectors (n, D) of pictures uint8 (n, H, W, 3), on the CPU."""
    return torch.cat([pair.encode_image(list(part.numpy())).cpu() for part in pictures.split(at_a_time)])


@torch.inference_mode()
def embed_sentences(pair: CLIPPair, sentences: Sequence[str], at_a_time: int = 256) -> Tensor:
    """Unit vectors (n, D) of sentences, on the CPU."""
    parts = [sentences[k : k + at_a_time] for k in range(0, len(sentences), at_a_time)]
    return torch.cat([pair.encode_text(part).cpu() for part in parts])


def run(spec: Spec) -> Outcome:
    """Zero-shot on single objects with every ensemble of prompts, and retrieval in the gallery.

    Arrays as in experiment ``clip``: ``hits``, ``group``, ``named_<kind>``, ``label_<kind>``, ``group_<kind>``.
    """
    pair = CLIPPair(clip_folder()).to(pick_device())
    encode = cache(lambda sentences: embed_sentences(pair, sentences))
    weights = {
        name: classifier(prompts, NAMES, lambda found: encode(tuple(found))) for name, prompts in ENSEMBLES.items()
    }
    test = gallery(spec.data, "test")
    cosines = (embed_pictures(pair, test.pictures) @ embed_sentences(pair, test.captions).T).double().numpy()  # (G, G)
    sides = (cosines, test.right), (cosines.T, test.right.T)
    arrays = {"hits": np.stack([hits_at_k(s, 1, right) for s, right in sides]).astype(np.float32)}  # (2, G)
    arrays["group"] = test.group.astype(np.int32)
    metrics = {
        f"r{k}": Metric(float(np.mean([recall_at_k(s, k, right) for s, right in sides])), 2 * len(test.captions))
        for k in (1, 5, 10)
    }
    for kind in ("unseen", "seen"):
        pictures = single(spec.data, kind)
        named = small.name_pictures(embed_pictures(pair, pictures.pictures), weights)  # (E, Q)
        arrays |= {f"named_{kind}": named, f"label_{kind}": pictures.label.astype(np.int16)}
        arrays[f"group_{kind}"] = pictures.group.astype(np.int32)
        right = named[list(ENSEMBLES).index("seven")] == pictures.label
        metrics[f"zero_shot_{kind}"] = Metric(float(right.mean()), len(right))
    details = {
        "parameters": sum(p.numel() for p in pair.parameters()),
        "scale": pair.scale().item(),
        "data_hash": hashlib.sha256(test.pictures.numpy().tobytes() + "\n".join(test.captions).encode()).hexdigest(),
    }
    return Outcome(metrics, arrays, details)
