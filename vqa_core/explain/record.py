"""One forward pass, with everything that an explanation needs beside the answer.

The model computes what it always computes: hooks only look on. A layer that runs PyTorch's fused attention and never
forms its weights still runs it; the weights are computed beside it, from the same queries and keys, and their gradient
from ∂y/∂A = (∂y/∂(A V)) Vᵀ. So the logits stay the same bit for bit.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.autograd.graph import GradientEdge

from vqa_core.data.types import Batch
from vqa_core.fusion.blocks import MultiHeadAttention
from vqa_core.fusion.nonlocal_ import NonLocalBlock
from vqa_core.fusion.output import FusionOutput, masked_softmax

#: Attention modules → the names of their maps to queries, keys and values; the map behind them is called ``out``.
ATTENTIONS: dict[type[nn.Module], tuple[str, str, str]] = {
    MultiHeadAttention: ("query", "key", "value"),
    NonLocalBlock: ("theta", "phi", "g"),
}


class AttentionCall(NamedTuple):
    """One use of an attention module.

    Attributes
    ----------
    weights
        A, (B, H, Tq, Tk); 0 at masked keys.
    values
        V, (B, H, Tk, d).
    read
        A V with heads side by side, (B, Tq, H · d): what W_o reads; part of the graph.
    """

    weights: Tensor
    values: Tensor
    read: Tensor

    def gradient(self, of_read: Tensor) -> Tensor:
        """∂y/∂A (B, H, Tq, Tk) from ∂y/∂(A V) (B, Tq, H · d)."""
        of_read = of_read.unflatten(-1, (self.values.shape[1], -1)).transpose(1, 2)  # (B, H, Tq, d)
        return of_read @ self.values.transpose(-2, -1)  # (B, H, Tq, Tk)


class Pass(NamedTuple):
    """What a forward pass computed.

    Attributes
    ----------
    logits
        (B, answers); part of the graph when gradients were asked for.
    fusion
        What the fusion returned.
    image, text
        Tokens that entered the fusion, (B, Nᵢ, D) and (B, Nₜ, D); leaves of the graph when gradients were asked for.
    image_mask, text_mask
        bool (B, Nᵢ) and (B, Nₜ), True at real tokens; None when all are real.
    calls
        Every attention in the fusion, in the order of its use.
    """

    logits: Tensor
    fusion: FusionOutput
    image: Tensor
    text: Tensor
    image_mask: Tensor | None
    text_mask: Tensor | None
    calls: tuple[AttentionCall, ...]


class Evidence(NamedTuple):
    """What a method found, before it is made a map.

    Attributes
    ----------
    scores
        How much each place speaks for the answer: (B, N) for N image tokens or pixels; (B, T, N) word by word.
    logits
        (B, answers), of the pass without any change.
    targets
        long (B,), the answer that is explained.
    mask
        bool (B, N), True at real places; None when all are real.
    rows
        bool (B, T), True at real words; None when all are real, or there are no words.
    grid
        (rows, columns) of the N places, where the method knows them.
    """

    scores: Tensor
    logits: Tensor
    targets: Tensor
    mask: Tensor | None = None
    rows: Tensor | None = None
    grid: tuple[int, int] | None = None


@contextmanager
def evaluating(model: nn.Module, gradients: bool = False) -> Iterator[None]:
    """Evaluation mode, with or without gradients; afterwards every module is in the mode that it was in."""
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        with torch.inference_mode(False), torch.set_grad_enabled(gradients):
            yield
    finally:
        for module, training in modes:
            module.training = training


def forward_pass(model: nn.Module, sample: Batch, gradients: bool = False, at: str = "") -> Pass:
    """Run the model once, in evaluation mode, and keep what is needed.

    Parameters
    ----------
    model
        A :class:`~vqa_core.model.VQAModel`, or what has the same parts and is called alike.
    sample
        Questions; ``answers`` are not read.
    gradients
        True records the graph from the tokens that enter the fusion (no further back) to the logits. Parameters'
        ``grad`` is never touched.
    at
        Name of a module inside the image encoder whose output is to be the leaf in place of the fusion's image tokens,
        as ``"image_encoder.downsample"``; it is then :attr:`Pass.image`.

    Raises
    ------
    ValueError
        When there is no such module, or its output is no tensor and no tokens.
    """
    sample = normal(sample)
    taken: dict[str, Any] = {}
    calls: list[AttentionCall] = []
    with ExitStack() as stack:
        stack.enter_context(evaluating(model, gradients))

        def look(module: nn.Module, hook, before: bool = False, **options) -> None:
            register = module.register_forward_pre_hook if before else module.register_forward_hook
            stack.callback(register(hook, **options).remove)

        def entering(module, args, kwargs):
            given = inspect.signature(module.forward).bind(*args, **kwargs)
            for side in ("image", "text"):
                tokens = given.arguments[f"{side}_tokens"]
                tokens = tokens.unsqueeze(1) if tokens.ndim == 2 else tokens  # (B, N, D)
                if gradients and not at:
                    tokens = tokens.detach().requires_grad_()
                given.arguments[f"{side}_tokens"] = tokens
                taken.setdefault(side, tokens)
                taken[f"{side}_mask"] = given.arguments.get(f"{side}_mask")
            return given.args, given.kwargs

        look(model.fusion, entering, before=True, with_kwargs=True)
        look(model.fusion, lambda module, args, output: taken.update(fusion=output))
        for module in model.fusion.modules():
            if kind := next((k for k in ATTENTIONS if isinstance(module, k)), None):
                _record(module, kind, calls, look)
        if at:
            look(_submodule(model, at), lambda module, args, output: _as_leaf(at, output, taken))
        logits = model(sample.pictures, sample.words, sample.word_mask).logits  # (B, answers)
    return Pass(logits, *(taken[k] for k in ("fusion", "image", "text", "image_mask", "text_mask")), tuple(calls))


def chosen(logits: Tensor, targets: Tensor | None) -> Tensor:
    """The answers to be explained, long (B,): the model's own where none are given.

    Raises
    ------
    ValueError
        When there are not as many targets as questions, or one is no answer.
    """
    if targets is None:
        return logits.detach().argmax(dim=1)  # (B,)
    targets = torch.as_tensor(targets, dtype=torch.long, device=logits.device)
    if targets.shape != logits.shape[:1] or targets.min() < 0 or targets.max() >= logits.shape[1]:
        raise ValueError(
            f"targets are {targets.tolist()}; give one answer id from 0 to {logits.shape[1] - 1} for each of the "
            f"{len(logits)} questions"
        )
    return targets


def gradients_at(seen: Pass, targets: Tensor, of: Sequence[Tensor | GradientEdge]) -> tuple[Tensor | None, ...]:
    """∂y/∂x of each question's y, the logit of its target (B,), at places of the graph; None where y has no part in it.

    Questions do not see one another, so that the gradient of the sum is that of each.
    """
    with torch.inference_mode(False), torch.enable_grad():
        y = seen.logits.gather(1, targets.clone().unsqueeze(1)).sum()
        return torch.autograd.grad(y, of, allow_unused=True)


def normal(sample: Batch) -> Batch:
    """The sample with tensors that autograd can work with, also when they were made in inference mode."""
    with torch.inference_mode(False):
        return Batch(*(t.clone() if isinstance(t, Tensor) and t.is_inference() else t for t in sample))


def _record(module: nn.Module, kind: type[nn.Module], calls: list[AttentionCall], look) -> None:
    """Make every use of an attention module append its :class:`AttentionCall`."""
    seen: dict[str, Tensor] = {}
    for name in ATTENTIONS[kind]:
        look(getattr(module, name), lambda part, args, output, name=name: seen.update({name: output.detach()}))
    look(module.out, lambda part, args: seen.update(read=args[0]), before=True)

    def done(module, args, kwargs, output):
        mask = inspect.signature(module.forward).bind(*args, **kwargs).arguments.get("mask")  # (B, Tk)
        heads = getattr(module, "heads", 1)
        q, k, v = (seen[n].unflatten(-1, (heads, -1)).transpose(1, 2) for n in ATTENTIONS[kind])  # (B, H, T, d) each
        weights = output[1]
        if weights is None:
            scale = q.shape[-1] ** -0.5 if kind is MultiHeadAttention else 1.0
            mask = None if mask is None else mask[:, None, None]  # (B, 1, 1, Tk)
            weights = masked_softmax(q @ k.transpose(-2, -1) * scale, mask)  # (B, H, Tq, Tk)
        elif weights.ndim == 3:
            weights = weights.unsqueeze(1)  # (B, 1, T, T)
        calls.append(AttentionCall(weights.detach(), v, seen.pop("read")))

    look(module, done, with_kwargs=True)


def _submodule(model: nn.Module, name: str) -> nn.Module:
    found = dict(model.named_modules()).get(name)
    if found is None or not name.startswith("image_encoder"):
        inside = [n for n, _ in model.named_modules() if n.startswith("image_encoder")]
        raise ValueError(f"at is {name!r}; allowed are modules of the image encoder: {', '.join(inside)}")
    return found


def _as_leaf(name: str, output: Any, taken: dict[str, Any]) -> Any:
    """The module's output as a new leaf, tensor or tokens."""
    tensor = output if isinstance(output, Tensor) else getattr(output, "tokens", None)
    if not isinstance(tensor, Tensor) or tensor.ndim not in (3, 4):
        raise ValueError(f"the output of {name} is no feature map (B, D, H, W) and no tokens (B, N, D)")
    leaf = taken["image"] = tensor.detach().requires_grad_()
    return leaf if isinstance(output, Tensor) else output._replace(tokens=leaf)
