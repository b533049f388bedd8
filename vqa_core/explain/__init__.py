"""Explanations: where a model looked, how well that agrees with the truth, and attention that is trained to matter.

:func:`explain` makes a map of any method in :data:`METHODS`; :mod:`vqa_core.explain.maps` is where they are.
"""

from __future__ import annotations

import importlib
from typing import Any

_OF_MAPS = ("METHODS", "Explanation", "TokenMaps", "explain", "explain_tokens", "methods_for")
__all__ = list(_OF_MAPS)


def __getattr__(name: str) -> Any:
    """Names of :mod:`~vqa_core.explain.maps`, on first use: code for counterfactuals need not depend on all maps."""
    if name in _OF_MAPS:
        return getattr(importlib.import_module("vqa_core.explain.maps"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
