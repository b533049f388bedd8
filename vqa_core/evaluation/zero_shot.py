"""Zero-shot classification: a classifier is written down as sentences, not trained (Radford et al. 2021)."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

Template = str | Callable[[str], str]


def sentences(template: Template, names: Sequence[str]) -> list[str]:
    """A template with each name in it.

    Parameters
    ----------
    template
        A string with one ``{}``, such as ``"a photo of a {}."``, or a function of the name (which can say "an").
    names
        Names of the classes.
    """
    if callable(template):
        return [template(name) for name in names]
    if template.count("{}") != 1:
        raise ValueError(f"template {template!r} has {template.count('{}')} places for a name; write one {{}}")
    return [template.replace("{}", name) for name in names]


def classifier(
    templates: Sequence[Template], names: Sequence[str], encode_text: Callable[[list[str]], Tensor]
) -> Tensor:
    """Weights of a classifier: for each class the mean direction of its sentences.

    Every sentence's embedding gets length 1, the mean over templates is taken, and the mean gets length 1: an ensemble
    in embedding space, which costs nothing at prediction (section 3.1.4 of the paper).

    Parameters
    ----------
    templates
        At least one; see :func:`sentences`.
    names
        At least one class.
    encode_text
        n sentences → (n, D), of any length.

    Returns
    -------
    Tensor
        (C, D), rows of length 1, in the order of ``names``.

    Raises
    ------
    ValueError
        Without a template or a name, for a name that comes twice, or when ``encode_text`` returns another shape.
    """
    if not templates or not names:
        raise ValueError(f"{len(templates)} templates and {len(names)} names; at least one of each is needed")
    if len(set(names)) != len(names):
        raise ValueError(f"names occur more than once: {sorted({n for n in names if list(names).count(n) > 1})[:5]}")
    total = 0.0
    for template in templates:
        embedded = encode_text(sentences(template, names))
        if embedded.ndim != 2 or len(embedded) != len(names):
            raise ValueError(f"encode_text returned {tuple(embedded.shape)} for {len(names)} sentences; give (n, D)")
        total = total + F.normalize(embedded, dim=-1)  # (C, D)
    return F.normalize(total / len(templates), dim=-1)  # (C, D)


def scores(images: Tensor, weights: Tensor, scale: float | Tensor = 1.0) -> Tensor:
    """``scale`` times the cosine of each image embedding (B, D) with each class (C, D): logits (B, C)."""
    if images.ndim != 2 or images.shape[1] != weights.shape[1]:
        raise ValueError(f"images are {tuple(images.shape)} and weights {tuple(weights.shape)}; give (B, D) and (C, D)")
    return scale * F.normalize(images, dim=-1) @ weights.T  # (B, C)


def predict(images: Tensor, weights: Tensor) -> Tensor:
    """The best class of each image embedding, long (B,); of equal ones the first."""
    return torch.argmax(scores(images, weights), dim=1)  # (B,)
