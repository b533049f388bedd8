"""One interface for all maps: :func:`explain` a model's answers by a method of :data:`METHODS`."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor, nn

from vqa_core.data.types import Batch
from vqa_core.explain import attention, gradients, similarity
from vqa_core.explain.record import Evidence
from vqa_core.fusion.bilinear import BAN
from vqa_core.fusion.nonlocal_ import CMSA
from vqa_core.fusion.stages import AttendFusion

#: Name → (model, sample, targets, per_word, **options) → :class:`~vqa_core.explain.record.Evidence`.
METHODS: dict[str, Callable[..., Evidence]] = {
    "raw_attention": attention.raw_attention,
    "rollout": attention.rollout,
    "relevance": attention.relevance,
    "san": attention.san,
    "ban": attention.ban,
    "cmsa": attention.cmsa,
    "grad_cam": gradients.grad_cam,
    "grad_cam_plus_plus": gradients.grad_cam_plus_plus,
    "integrated_gradients": gradients.integrated_gradients,
    "occlusion": gradients.occlusion,
    "clip_similarity": similarity.clip_similarity,
}
GENERAL = ("grad_cam", "grad_cam_plus_plus", "integrated_gradients", "occlusion")  # for every model with a fusion
OF_INPUTS = ("integrated_gradients", "occlusion")  # whose places are pixels where the input is a picture


class Explanation(NamedTuple):
    """Maps, and the answers that they belong to.

    Attributes
    ----------
    maps
        (B, H, W), or (B, T, H, W) word by word: at least 0, each sums to 1; 0 at places and words that are padding. A
        map without evidence for the answer is uniform over the real places; without a real place it is all 0.
    logits
        (B, answers), those of ``model(…)`` in evaluation mode, bit for bit.
    targets
        long (B,), the answers that are explained.
    mask
        bool (B, H, W), True at real places.
    scores
        Of the shape of ``maps``: with sign and scale, as the method gave them.
    """

    maps: Tensor
    logits: Tensor
    targets: Tensor
    mask: Tensor
    scores: Tensor


class TokenMaps(NamedTuple):
    """As :class:`Explanation`, for N image tokens that need not form a grid: (B, N) in place of (B, H, W)."""

    maps: Tensor
    logits: Tensor
    targets: Tensor
    mask: Tensor
    scores: Tensor


def methods_for(model: nn.Module) -> tuple[str, ...]:
    """The methods that fit a model, by what it is made of."""
    if isinstance(model, similarity.PAIRS):
        return ("clip_similarity",)
    if not all(hasattr(model, part) for part in ("image_encoder", "text_encoder", "fusion", "head")):
        return ()
    fusion = attention.core(model)
    if isinstance(fusion, attention.TRANSFORMERS):
        return ("raw_attention", "rollout", "relevance", *GENERAL)
    if isinstance(fusion, AttendFusion):
        return ("raw_attention", "relevance", *GENERAL)
    if isinstance(fusion, attention.STACKED):
        return ("san", "relevance", *GENERAL)
    if isinstance(fusion, BAN):
        return ("ban", "relevance", *GENERAL)
    if isinstance(fusion, CMSA) and len(fusion.blocks):
        return ("cmsa", "rollout", "relevance", *GENERAL)
    return GENERAL


def explain(
    model: nn.Module,
    sample: Batch,
    method: str,
    *,
    targets: Tensor | None = None,
    per_word: bool = False,
    grid: tuple[int, int] | None = None,
    **options,
) -> Explanation:
    """Where in the picture the answer comes from, by one method.

    Parameters
    ----------
    model
        A :class:`~vqa_core.model.VQAModel`, or what has the same parts; for similarity maps a
        :class:`~vqa_core.dual.DualEncoder` or :class:`~vqa_core.encoders.clip_pair.CLIPPair`. It runs in evaluation
        mode and is left as it was: mode, hooks, gradients.
    sample
        Any number of questions; ``answers`` are not read.
    method
        A key of :data:`METHODS` that is among :func:`methods_for` the model.
    targets
        long (B,): the answers to be explained; by default those that the model gives.
    per_word
        True: a map for each word, for the methods that have it.
    grid
        (rows, columns) of the image tokens; by default the ``grid`` of the image encoder or of a part of it, else a
        square.
    **options
        Of the method: see the functions in :data:`METHODS`.

    Raises
    ------
    ValueError
        When the method does not fit the model, or the tokens do not form a grid.
    """
    found = _found(model, sample, method, targets, per_word, options)
    cells = found.scores.shape[-1]
    grid = found.grid or grid or grid_of(model, cells)
    if math.prod(grid) != cells:
        raise ValueError(
            f"{cells} image tokens for a grid of {grid[0]} × {grid[1]} cells; give the right grid=(rows, columns), or "
            "take explain_tokens for tokens without a place"
        )
    maps, mask = normalised(found)
    return Explanation(
        maps.unflatten(-1, grid),
        found.logits,
        found.targets,
        mask.unflatten(-1, grid),
        found.scores.unflatten(-1, grid),
    )


def explain_tokens(
    model: nn.Module,
    sample: Batch,
    method: str,
    *,
    targets: Tensor | None = None,
    per_word: bool = False,
    **options,
) -> TokenMaps:
    """As :func:`explain`, over the image tokens that enter the fusion, whether or not they form a grid."""
    if method in OF_INPUTS and getattr(sample.pictures, "ndim", 0) == 4:
        options = {"level": "tokens", **options}
    found = _found(model, sample, method, targets, per_word, options)
    maps, mask = normalised(found)
    return TokenMaps(maps, found.logits, found.targets, mask, found.scores)


def normalised(found: Evidence) -> tuple[Tensor, Tensor]:
    """Maps (B, N) or (B, T, N) that sum to 1, and their mask (B, N); what speaks against the answer counts as nothing.

    Raises
    ------
    ValueError
        When a score of a real place is not finite.
    """
    scores, by_word = found.scores, found.scores.ndim == 3
    mask = torch.ones_like(scores[:, 0] if by_word else scores, dtype=torch.bool) if found.mask is None else found.mask
    real = mask.unsqueeze(1).expand_as(scores) if by_word else mask  # (B, [T,] N)
    if by_word and found.rows is not None:
        real = real & found.rows.unsqueeze(-1)
    positive = scores.masked_fill(~real, 0.0)
    if not positive.isfinite().all():
        raise ValueError(f"{int((~positive.isfinite()).sum())} scores are not finite; the model's own numbers overflow")
    positive = positive.clamp(min=0)
    most = positive.amax(-1, keepdim=True)  # scores are divided by it first: a sum of very small ones could be 0
    positive = torch.where(most > 0, positive / torch.where(most > 0, most, 1.0), real.to(scores.dtype))
    return positive / positive.sum(-1, keepdim=True).clamp(min=torch.finfo(scores.dtype).tiny), mask


def grid_of(model: nn.Module, tokens: int) -> tuple[int, int]:
    """(rows, columns) of so many image tokens: what the image encoder or a part of it says, else a square.

    Raises
    ------
    ValueError
        When neither fits.
    """
    side = math.isqrt(tokens)
    grids = (getattr(module, "grid", None) for module in model.image_encoder.modules())
    known = [grid for grid in grids if isinstance(grid, tuple)]
    for grid in (*known, (side, side)):
        if math.prod(grid) == tokens:
            return grid
    but = f", its grid is {known[0][0]} × {known[0][1]}" if known else ""
    raise ValueError(
        f"{tokens} image tokens are no square, nor those of the image encoder{but}; give grid=(rows, columns), or take "
        "explain_tokens for tokens without a place"
    )


def _found(model, sample, method, targets, per_word, options) -> Evidence:
    allowed = methods_for(model)
    if method not in allowed:
        of = "" if attention.core(model) is None else f" with {type(attention.core(model)).__name__}"
        known = f"allowed are {', '.join(allowed)}" if allowed else "no method fits it"
        raise ValueError(f"method is {method!r}; for a {type(model).__name__}{of} {known}")
    found = METHODS[method](model, sample, targets, per_word, **options)
    if found.scores.shape[-1] < 2:
        raise ValueError("the model reads one image token: there is nothing to point at")
    return found
