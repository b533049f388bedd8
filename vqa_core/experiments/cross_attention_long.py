"""Experiment ``cross_attention_long``: protocol ``tokens`` of ``cross_attention``, trained four times as long.

An order of versions after a short training may be an order of how fast they learn. Three versions show whether it is:
the one without parameters, the base of the first half of the ablation, and that of the second.
"""

from __future__ import annotations

from dataclasses import replace

from vqa_core.experiments import Spec, cross_attention

REQUIRES = ("scene_encoders", "caption_encoder")
VERSIONS = ("v0", "v2", "v9")
TIMES = 4
HEADLINES = cross_attention.HEADLINES

PROFILES = cross_attention.PROFILES

run = cross_attention.run


def specs(profile: str) -> list[Spec]:
    """The specs of ``tokens`` for :data:`VERSIONS`, with :data:`TIMES` as many steps; v9 takes longest and is first."""
    found = []
    for version in reversed(VERSIONS):
        spec = cross_attention.spec_of(profile, "tokens", version)
        longer = replace(spec.training, steps=TIMES * spec.training.steps)
        found.append(replace(spec, experiment="cross_attention_long", training=longer))
    return found
