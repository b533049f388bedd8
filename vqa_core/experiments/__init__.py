"""Experiments: what the book runs, once, and what its notebooks read.

An experiment is a module with

``PROFILES``
    a frozen config for each of ``smoke``, ``cpu`` and ``gpu``;
``REQUIRES``
    names of experiments whose results it reads;
``specs(profile)``
    the list of :class:`~vqa_core.experiments.records.Spec`, one per unit and seed;
``run(spec)``
    which returns an :class:`Outcome`.

The module holds no loop over units and writes no file: :mod:`vqa_core.experiments.runner` does.
"""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from vqa_core.experiments.records import Metric, Record, Spec

PROFILES = ("smoke", "cpu", "gpu")

EXPERIMENTS = {
    "scene_encoders": "vqa_core.experiments.scene_encoders",
    "fusion": "vqa_core.experiments.fusion",
    "fusion_real": "vqa_core.experiments.fusion_real",
    "baselines": "vqa_core.experiments.baselines",
    "fusion_cost": "vqa_core.experiments.fusion_cost",
    "caption_encoder": "vqa_core.experiments.caption_encoder",
    "cross_attention": "vqa_core.experiments.cross_attention",
    "cross_attention_long": "vqa_core.experiments.cross_attention_long",
    "layer_norm": "vqa_core.experiments.layer_norm",
    "matching_real": "vqa_core.experiments.matching_real",
    "audit": "vqa_core.experiments.audit",
    "medical_encoders": "vqa_core.experiments.medical_encoders",
    "medical": "vqa_core.experiments.medical",
    "mevf": "vqa_core.experiments.mevf",
    "rejection_tokens": "vqa_core.experiments.rejection_tokens",
    "rejection": "vqa_core.experiments.rejection",
    "transformers": "vqa_core.experiments.transformers",
    "transformer_cost": "vqa_core.experiments.transformer_cost",
    "vit_cifar": "vqa_core.experiments.vit_cifar",
    "vit_norms": "vqa_core.experiments.vit_norms",
    "pretext": "vqa_core.experiments.pretext",
    "clip": "vqa_core.experiments.clip",
    "clip_pretrained": "vqa_core.experiments.clip_pretrained",
    "attention_maps": "vqa_core.experiments.attention_maps",
    "similarity_maps": "vqa_core.experiments.similarity_maps",
    "counterfactual": "vqa_core.experiments.counterfactual",
    "multitask": "vqa_core.experiments.multitask",
}


@dataclass(frozen=True)
class Outcome:
    """What an experiment's ``run`` returns; the runner adds time, memory and provenance and makes it a Record."""

    metrics: Mapping[str, Metric]
    arrays: Mapping[str, np.ndarray] = field(default_factory=dict)
    details: Mapping[str, Any] = field(default_factory=dict)


def module_of(experiment: str):
    """The module of an experiment, by its name in :data:`EXPERIMENTS`."""
    if experiment not in EXPERIMENTS:
        raise ValueError(f"there is no experiment {experiment!r}; there are {', '.join(EXPERIMENTS)}")
    return importlib.import_module(EXPERIMENTS[experiment])


def resolve_profile(profile: str = "auto") -> str:
    """``auto`` is ``gpu`` where CUDA is there, else ``cpu``; other names are checked and returned."""
    if profile == "auto":
        import torch

        return "gpu" if torch.cuda.is_available() else "cpu"
    if profile not in PROFILES:
        raise ValueError(f"profile is {profile!r}; allowed are auto, {', '.join(PROFILES)}")
    return profile


def load(experiment: str, profile: str = "auto") -> list[Record]:
    """Records of an experiment: those on disk, and the missing ones computed now (with a progress bar)."""
    from vqa_core.experiments.runner import run_experiment

    return run_experiment(experiment, resolve_profile(profile))


__all__ = ["EXPERIMENTS", "PROFILES", "Metric", "Outcome", "Record", "Spec", "load", "module_of", "resolve_profile"]
