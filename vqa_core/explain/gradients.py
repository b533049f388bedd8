"""Maps for any model: from gradients at image tokens or pixels, and from hiding parts of the picture."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from vqa_core.data.types import Batch
from vqa_core.encoders.tokens import Frozen
from vqa_core.explain.record import Evidence, chosen, evaluating, forward_pass, gradients_at, normal

LEVELS = ("input", "tokens")


def grad_cam(
    model: nn.Module, sample: Batch, targets: Tensor | None = None, per_word: bool = False, at: str = ""
) -> Evidence:
    """Grad-CAM (Selvaraju et al. 2017, arXiv 1610.02391): Σ_k α_k A_k with α_k the mean of ∂y/∂A_k over places.

    Parameters
    ----------
    model, sample, targets, per_word
        See :func:`~vqa_core.explain.maps.explain`; there is no map for each word.
    at
        Whose output is A, as ``"image_encoder.downsample"``: features (B, D, H, W) or tokens (B, N, D); by default the
        image tokens that enter the fusion.
    """
    return _class_activation(model, sample, targets, per_word, at, _mean)


def grad_cam_plus_plus(
    model: nn.Module, sample: Batch, targets: Tensor | None = None, per_word: bool = False, at: str = ""
) -> Evidence:
    """Grad-CAM++ (Chattopadhay et al. 2018, arXiv 1710.11063): α_k = Σᵢ a_ik ReLU(g_ik), over the places i.

    With g = ∂y/∂A and the class score exp(y), as in the paper, a_ik = g_ik² / (2 g_ik² + g_ik³ Σⱼ A_jk). Parameters are
    those of :func:`grad_cam`.
    """

    def shares(features: Tensor, gradient: Tensor, real: Tensor) -> Tensor:
        total = features.masked_fill(~real, 0.0).sum(1, keepdim=True)  # (B, 1, D)
        below = 2 * gradient**2 + gradient**3 * total  # (B, N, D)
        share = torch.where(below == 0, 0.0, gradient**2 / torch.where(below == 0, 1.0, below))
        return (share * gradient.clamp(min=0)).masked_fill(~real, 0.0).sum(1)  # (B, D)

    return _class_activation(model, sample, targets, per_word, at, shares)


def integrated_gradients(
    model: nn.Module,
    sample: Batch,
    targets: Tensor | None = None,
    per_word: bool = False,
    steps: int = 32,
    baseline: float | Tensor = 0.0,
    level: str = "input",
    absolute: bool = False,
    rows: int = 512,
) -> Evidence:
    """Integrated gradients (Sundararajan, Taly and Yan 2017, arXiv 1703.01365), by captum: sums to y(x) − y(baseline).

    Parameters
    ----------
    model, sample, targets, per_word
        See :func:`~vqa_core.explain.maps.explain`; there is no map for each word.
    steps
        Points of the path from baseline to picture (Gauss-Legendre).
    baseline
        What stands for "nothing": a number, or a tensor that broadcasts to the input. 0 is mid grey for pictures in
        [−1, 1].
    level
        ``"input"``: what the image encoder reads, pixels or cached tokens. ``"tokens"``: the image tokens that enter
        the fusion, with their mask kept as it is.
    absolute
        True counts what speaks against the answer like what speaks for it.
    rows
        Points of paths that are computed at a time.
    """
    from captum.attr import IntegratedGradients

    def attribute(function, inputs, base, targets, others):
        found = IntegratedGradients(function).attribute(
            inputs, base, targets, others, n_steps=steps, internal_batch_size=max(rows, len(inputs))
        )
        return found.detach().to(inputs.dtype)  # captum's path is in float64

    return _attributed(model, sample, targets, per_word, baseline, level, attribute, absolute)


def occlusion(
    model: nn.Module,
    sample: Batch,
    targets: Tensor | None = None,
    per_word: bool = False,
    window: int | None = None,
    stride: int | None = None,
    baseline: float | Tensor = 0.0,
    level: str = "input",
    absolute: bool = False,
) -> Evidence:
    """Occlusion (Zeiler and Fergus 2014, arXiv 1311.2901), by captum: how much y falls when a part is hidden.

    Parameters
    ----------
    model, sample, targets, per_word, baseline, level, absolute
        See :func:`integrated_gradients`.
    window
        Side of the hidden square in pixels; by default that of a cell of the encoder's grid, or 8. Of tokens always one
        is hidden.
    stride
        Pixels from one square to the next; by default the window.
    """
    from captum.attr import Occlusion

    grid = getattr(model.image_encoder, "grid", None)
    side = window or (sample.pictures.shape[-1] // grid[1] if grid and sample.pictures.ndim == 4 else 8)
    step = stride or side
    if step > side:
        raise ValueError(f"stride is {step}, more than the window of {side} pixels: parts would never be hidden")

    def attribute(function, inputs, base, targets, others):
        pixels = inputs.ndim == 4
        shape = (inputs.shape[1], side, side) if pixels else (1, inputs.shape[2])
        strides = (inputs.shape[1], step, step) if pixels else (1, inputs.shape[2])
        found = Occlusion(function).attribute(inputs, shape, strides, base, targets, others)
        return found / inputs.shape[1 if pixels else 2]  # every feature of what is hidden gets the whole difference

    return _attributed(model, sample, targets, per_word, baseline, level, attribute, absolute)


def _class_activation(model, sample, targets, per_word, at, weights: Callable[[Tensor, Tensor, Tensor], Tensor]):
    """Σ_k α_k A_k with the α (B, D) that ``weights(A, ∂y/∂A, real)`` gives."""
    _no_words(per_word)
    seen = forward_pass(model, sample, gradients=True, at=at)
    targets = chosen(seen.logits, targets)
    (gradient,) = gradients_at(seen, targets, [seen.image])
    if gradient is None:
        raise ValueError(f"the answer does not depend on the output of {at or 'the image encoder'}")
    features, grid = seen.image.detach(), None
    if features.ndim == 4:
        grid = tuple(features.shape[-2:])
        features, gradient = (x.flatten(2).transpose(1, 2) for x in (features, gradient))  # (B, N, D) each
    mask = None if at and (grid or features.shape[1] != _places(seen.image_mask)) else seen.image_mask
    real = torch.ones_like(features[..., :1], dtype=torch.bool) if mask is None else mask.unsqueeze(-1)  # (B, N, 1)
    scores = (features * weights(features, gradient, real).unsqueeze(1)).sum(-1)  # (B, N)
    return Evidence(scores, seen.logits.detach(), targets, mask, grid=grid)


def _mean(features: Tensor, gradient: Tensor, real: Tensor) -> Tensor:
    return gradient.masked_fill(~real, 0.0).sum(1) / real.sum(1).clamp(min=1)  # (B, D)


def _places(mask: Tensor | None) -> int:
    return -1 if mask is None else mask.shape[1]


def _attributed(model, sample, targets, per_word, baseline, level, attribute, absolute: bool) -> Evidence:
    """What captum says of every value of the input or of the tokens, added up over the features of a place."""
    _no_words(per_word)
    if level not in LEVELS:
        raise ValueError(f"level is {level!r}, allowed are {' and '.join(map(repr, LEVELS))}")
    sample = normal(sample)
    seen = forward_pass(model, sample)
    targets = chosen(seen.logits, targets)
    encoder = model.image_encoder
    encoder = encoder.encoder if isinstance(encoder, Frozen) else encoder  # it forbids gradients to whoever calls it

    def from_tokens(tokens, text, image_mask, text_mask):
        return model.head(model.fusion(tokens, text, image_mask, text_mask).fused)

    def from_input(pictures, text, text_mask):
        image = encoder(pictures)
        return from_tokens(image.tokens, text, image.mask, text_mask)

    if level == "tokens":
        function, inputs, others = from_tokens, seen.image, (seen.text, seen.image_mask, seen.text_mask)
    else:
        function, inputs, others = from_input, sample.pictures, (seen.text, seen.text_mask)
    base = torch.as_tensor(baseline, dtype=inputs.dtype, device=inputs.device).expand_as(inputs)
    with evaluating(model, gradients=True):
        found = attribute(function, inputs.detach().clone(), base, targets, others).detach()
    pixels = found.ndim == 4
    scores = found.sum(1).flatten(1) if pixels else found.sum(-1)  # (B, N)
    mask = None if pixels else seen.image_mask
    scores = scores.abs() if absolute else scores
    return Evidence(scores, seen.logits, targets, mask, grid=tuple(found.shape[-2:]) if pixels else None)


def _no_words(per_word: bool) -> None:
    if per_word:
        raise ValueError("methods that change or differentiate the picture have no map for each word; per_word=False")
