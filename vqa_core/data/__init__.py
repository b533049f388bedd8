"""Pictures and questions in → :class:`Sample`, :class:`Dataset`, :class:`Batch`, :class:`Vocabulary`.

:data:`vqa_core.data.catalogue.NAMES` lists the data sets; :func:`load` gives one split of one of them.
"""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from vqa_core.data.text import Vocabulary, encode_questions, tokenize
from vqa_core.data.types import CLOSED, OPEN, Batch, Dataset, Sample

__all__ = ["CLOSED", "OPEN", "Batch", "Dataset", "Sample", "Vocabulary"]
__all__ += ["audit", "encode_questions", "load", "tokenize"]


def load(name: str, split: str, root: str | Path | None = None) -> Dataset:
    """One split of a data set; see :func:`vqa_core.data.catalogue.load`."""
    from vqa_core.data import catalogue  # here, so that code for one data set does not depend on all loaders

    return catalogue.load(name, split, root)


def audit(name: str, root: str | Path | None = None) -> Mapping[str, Any]:
    """What leaks between the splits of a data set; see :func:`vqa_core.evaluation.leakage.audit`."""
    return importlib.import_module("vqa_core.evaluation.leakage").audit(name, root)  # not code of every experiment
