"""Maps from attention: as it is, rolled out over layers, and weighed with its gradients.

A transformer's attention modules are told apart by what reads what. This is written down once per fusion, as a
:class:`Plan` over one joint sequence of all its tokens; a single stream and two streams are then the same case.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.autograd.graph import GradientEdge, get_gradient_edge

from vqa_core.data.types import Batch
from vqa_core.explain.record import Evidence, Pass, chosen, forward_pass, gradients_at
from vqa_core.fusion.bilinear import BAN
from vqa_core.fusion.bottleneck import BottleneckFusion
from vqa_core.fusion.efficiency import DropToken
from vqa_core.fusion.nonlocal_ import CMSA, word_cell_maps
from vqa_core.fusion.perceiver import Perceiver, PerceiverIO
from vqa_core.fusion.single_stream import SingleStream
from vqa_core.fusion.stacked import SAN
from vqa_core.fusion.stacked_linear import LinearSAN
from vqa_core.fusion.stages import AttendFusion, CrossAttentionReader, EarlyFusion, HybridFusion
from vqa_core.fusion.transformer import CrossLayer, EarlySummation, JointLayer, Layout, OwnLayer


class Reading(NamedTuple):
    """Which tokens of the joint sequence read which in one attention; ``cross``: those of another stream."""

    queries: slice
    keys: slice
    cross: bool = False


class Plan(NamedTuple):
    """How the tokens of a transformer fusion read one another.

    Attributes
    ----------
    size
        N, length of the joint sequence.
    image, text
        Where in it the image tokens and the words are; ``text`` is empty where words are no tokens of their own.
    answer
        The tokens from which the answer is read; the mean of the real ones, if there are several.
    looking
        The tokens whose look at the picture is shown: the answer token or latents, else the words, else the image.
    rounds
        The attentions in the order of their use. Those in one round read what was there before it.
    """

    size: int
    image: slice
    text: slice
    answer: tuple[slice, ...]
    looking: slice
    rounds: list[list[Reading]]


def _early(fusion: EarlyFusion, n_image: int, n_text: int) -> Plan:
    """[answer token ; image ; text], or without the first."""
    first = int(fusion.answer_token is not None)
    image = slice(first, first + n_image)
    text = slice(image.stop, image.stop + n_text)
    whole, read = slice(0, text.stop), slice(0, 1) if first else text
    last = Reading(read if first else whole, whole)
    return Plan(text.stop, image, text, (read,), read, [[Reading(whole, whole)]] * (len(fusion.blocks) - 1) + [[last]])


def _single_stream(fusion: SingleStream, n_image: int, n_text: int) -> Plan:
    """[class token ; image ; text]."""
    image, text, own = slice(1, 1 + n_image), slice(1 + n_image, 1 + n_image + n_text), slice(0, 1)
    whole = slice(0, text.stop)
    return Plan(text.stop, image, text, (own,), own, [[Reading(whole, whole)]] * len(fusion.blocks))


def _reader(fusion: CrossAttentionReader, n_image: int, n_text: int) -> Plan:
    """[answer token ; text ; image]: the first two read one another and then the image tokens, which never change."""
    first = int(fusion.answer_token is not None)
    words, image = slice(0, first + n_text), slice(first + n_text, first + n_text + n_image)
    read = slice(0, 1) if first else words
    rounds = [[Reading(words, words)], [Reading(words, image, True)]] * len(fusion.blocks)
    return Plan(image.stop, image, slice(first, words.stop), (read,), read, rounds)


def _layout(fusion: Layout, n_image: int, n_text: int) -> Plan:
    """[image ; text]; what reads what depends on the kind of layer."""
    n_text = 0 if isinstance(fusion, EarlySummation) else n_text
    image, text, whole = slice(0, n_image), slice(n_image, n_image + n_text), slice(0, n_image + n_text)
    kinds = {
        JointLayer: [Reading(whole, whole)],
        OwnLayer: [Reading(image, image), Reading(text, text)],
        CrossLayer: [Reading(image, text, True), Reading(text, image, True)],
    }
    rounds = [kinds[type(layer)] for layer in fusion.layers]
    return Plan(whole.stop, image, text, (whole,), text if n_text else image, rounds)


def _bottleneck(fusion: BottleneckFusion, n_image: int, n_text: int) -> Plan:
    """[image ; bottlenecks ; text]: both modalities read and write the bottlenecks between them."""
    between = slice(n_image, n_image + fusion.bottlenecks.shape[1])
    image, text = slice(0, n_image), slice(between.stop, between.stop + n_text)
    left, right = slice(0, between.stop), slice(n_image, text.stop)
    own, both = [Reading(image, image), Reading(text, text)], [Reading(left, left), Reading(right, right)]
    rounds = [own] * len(fusion.layers) + [both] * len(fusion.fusing)
    return Plan(text.stop, image, text, (image, text), between, rounds)


def _perceiver(fusion: Perceiver, n_image: int, n_text: int) -> Plan:
    """[output query ; latents ; image ; text]: latents read the inputs, then one another; the query reads latents."""
    first = int(isinstance(fusion, PerceiverIO))
    latents = slice(first, first + fusion.latents.shape[1])
    image = slice(latents.stop, latents.stop + n_image)
    text = slice(image.stop, image.stop + n_text)
    rounds = []
    for k in range(fusion.reads):
        rounds.append([Reading(latents, slice(image.start, text.stop), True)])
        rounds += [[Reading(latents, latents)]] * len(fusion.thinking[min(k, len(fusion.thinking) - 1)])
    if first:
        rounds.append([Reading(slice(0, 1), latents, True)])
    return Plan(text.stop, image, text, (slice(0, 1) if first else latents,), latents, rounds)


#: Transformer fusion → its plan for (fusion, Nᵢ, Nₜ).
PLANS: dict[type[nn.Module], Callable[[nn.Module, int, int], Plan]] = {
    EarlyFusion: _early,
    SingleStream: _single_stream,
    CrossAttentionReader: _reader,
    BottleneckFusion: _bottleneck,
    Layout: _layout,
    Perceiver: _perceiver,
}


def core(model: nn.Module) -> nn.Module | None:
    """The fusion that attends: inside a hybrid fusion or one that drops tokens, the one that they are made with."""
    fusion = getattr(model, "fusion", None)
    while isinstance(fusion, HybridFusion | DropToken):
        fusion = fusion.joint if isinstance(fusion, HybridFusion) else fusion.fusion
    return fusion


def plan_of(model: nn.Module, seen: Pass) -> Plan | None:
    """The plan of a model's fusion for the tokens of a pass; None when it is no transformer."""
    fusion = core(model)
    make = next((make for kind, make in PLANS.items() if isinstance(fusion, kind)), None)
    return None if make is None else make(fusion, seen.image.shape[1], seen.text.shape[1])


# ---------------------------------------------------------------------------------------- attention modules in layers


def raw_attention(
    model: nn.Module,
    sample: Batch,
    targets: Tensor | None = None,
    per_word: bool = False,
    layer: int | None = None,
    head: int | None = None,
) -> Evidence:
    """How much the answer token, or else each word, reads of every image token, in one layer.

    Parameters
    ----------
    model, sample, targets, per_word
        See :func:`~vqa_core.explain.maps.explain`; targets change nothing here.
    layer
        Which of the layers in which those tokens read the picture, from 0; the last by default.
    head
        Which head; the mean of all by default.
    """
    seen = forward_pass(model, sample)
    plan = plan_of(model, seen)
    if plan is None:  # AttendFusion: one layer, one query
        _no_words("raw_attention", model, per_word)
        _pick("layer", layer, [0])
        weights = seen.fusion.attention.detach()  # (B, H, 1, Nᵢ)
        return _evidence(_one(weights, head, "head").squeeze(1), seen, targets)
    rows = _rows(plan, per_word, model)
    looks = [r for r, readings in enumerate(plan.rounds) if any(_meets(x, rows, plan.image) for x in readings)]
    if not looks:
        raise ValueError(f"in {type(core(model)).__name__} no word reads the picture itself; take per_word=False")
    which = _pick("layer", layer, looks)
    weights = joint(plan, which, [call.weights for call in _grouped(plan, seen.calls)[which]])  # (B, H, N, N)
    weights = _one(weights, head, "head")[:, rows, plan.image]  # (B, R, Nᵢ)
    if not per_word:
        real = real_tokens(plan, seen)[:, rows]  # (B, R)
        weights = (weights * real.unsqueeze(-1)).sum(1)  # (B, Nᵢ)
    return _evidence(weights, seen, targets, per_word)


def rollout(model: nn.Module, sample: Batch, targets: Tensor | None = None, per_word: bool = False) -> Evidence:
    """Attention rollout (Abnar and Zuidema 2020, arXiv 2005.00928): R = Πₗ (Aₗ + I)/2, heads averaged.

    I stands for the residual connection. A layer in which one stream reads another has its A in the joint sequence of
    both. Parameters are those of :func:`~vqa_core.explain.maps.explain`; targets change nothing here.
    """
    seen = forward_pass(model, sample)
    if isinstance(core(model), CMSA):
        return _of_pairs(rolled([call.weights.mean(1) for call in seen.calls]), seen, targets, per_word)
    plan = plan_of(model, seen)
    calls = _grouped(plan, seen.calls)
    rolled_out = rolled([joint(plan, r, [c.weights.mean(1) for c in calls[r]]) for r in range(len(calls))])
    return _read_off(rolled_out, plan, seen, targets, per_word, model)


def relevance(model: nn.Module, sample: Batch, targets: Tensor | None = None, per_word: bool = False) -> Evidence:
    """Relevance propagation for bi-modal transformers (Chefer, Gur and Wolf 2021, arXiv 2103.15679).

    With Ā = mean over heads of the positive part of ∂y/∂A ⊙ A, for the logit y of the answer, and R = I at the start:

    - tokens that read their own stream (or the one joint sequence): R ← R + Ā R (equations 6 and 7);
    - stream s that reads stream q: R^ss ← R^ss + Ā R^qs and R^sq ← R^sq + (R̄^ss)ᵀ Ā R̄^qq (equations 10 and 11), where
      R̄ is I plus R − I with rows that sum to 1 (equations 8 and 9).

    Fusions with one look at the picture, or several that add up, have Σ Ā over heads, stacks or glimpses. Where the
    answer is read from the mean of several tokens, so is R − I. Parameters are those of
    :func:`~vqa_core.explain.maps.explain`.
    """
    seen = forward_pass(model, sample, gradients=True)
    targets = chosen(seen.logits, targets)
    plan = plan_of(model, seen)
    if plan is None and not isinstance(core(model), CMSA):
        return _of_looks(seen, targets, per_word, model)
    found = gradients_at(seen, targets, [call.read for call in seen.calls])
    weighed = []
    for call, of_read in zip(seen.calls, found, strict=True):
        of_read = torch.zeros_like(call.read) if of_read is None else of_read  # a reading that the answer never uses
        weighed.append((call.gradient(of_read) * call.weights).clamp(min=0).mean(1))  # Ā (B, Tq, Tk)
    if plan is None:  # CMSA: all pairs of word and cell are one stream
        related = _identity(weighed[0])
        for a in weighed:
            related = related + a @ related  # (B, P, P)
        return _of_pairs(related - _identity(related), seen, targets, per_word)
    related = propagate(plan, _grouped(plan, weighed))
    return _read_off(related - _identity(related), plan, seen, targets, per_word, model)


def rolled(layers: list[Tensor]) -> Tensor:
    """Πₗ of (Aₗ + I) with rows made to sum to 1, the last layer leftmost: L times (B, N, N) → (B, N, N).

    A row of zeros, of a token that reads nothing in this layer, becomes that of I.
    """
    result = _identity(layers[0])
    for weights in layers:
        mixed = weights + _identity(weights)  # (B, N, N)
        result = mixed / mixed.sum(-1, keepdim=True) @ result
    return result


def propagate(plan: Plan, rounds: list[list[Tensor]]) -> Tensor:
    """R (B, N, N) by the rules of :func:`relevance`, from Ā (B, Tq, Tk) of every reading of every round."""
    first = rounds[0][0]
    related = torch.eye(plan.size, dtype=first.dtype, device=first.device).repeat(len(first), 1, 1)  # (B, N, N)
    for readings, matrices in zip(plan.rounds, rounds, strict=True):
        change, writers = torch.zeros_like(related), related.new_zeros(plan.size, 1)
        for (s, q, cross), a in zip(readings, matrices, strict=True):
            change[:, s] += a @ related[:, q]  # (B, Tq, N)
            if cross:
                own, other = (_normalised(related[:, x, x]) for x in (s, q))
                change[:, s, q] = own.transpose(1, 2) @ a @ other  # (B, Tq, Tk)
            writers[s] += 1
        related = related + change / writers.clamp(min=1)  # what two write is averaged, as bottlenecks are
    return related


def joint(plan: Plan, which: int, blocks: list[Tensor]) -> Tensor:
    """The readings of one round, (B, …, Tq, Tk) each, as one matrix over the joint sequence, (B, …, N, N)."""
    whole = blocks[0].new_zeros(*blocks[0].shape[:-2], plan.size, plan.size)  # (B, …, N, N)
    writers = whole.new_zeros(plan.size, 1)
    for (queries, keys, _), block in zip(plan.rounds[which], blocks, strict=True):
        whole[..., queries, keys] += block
        writers[queries] += 1
    return whole / writers.clamp(min=1)


def real_tokens(plan: Plan, seen: Pass) -> Tensor:
    """bool (B, N), True at the real tokens of the joint sequence."""
    real = torch.ones(len(seen.logits), plan.size, dtype=torch.bool, device=seen.logits.device)
    for place, mask in ((plan.image, seen.image_mask), (plan.text, seen.text_mask)):
        if mask is not None and place.stop > place.start:
            real[:, place] = mask
    return real


def _normalised(related: Tensor) -> Tensor:
    """R̄: the rows of R − I made to sum to 1 (rows of zeros stay), plus I."""
    eye = _identity(related)
    rest = related - eye
    total = rest.sum(-1, keepdim=True)  # (B, n, 1)
    return torch.where(total > 0, rest / total.clamp(min=torch.finfo(rest.dtype).tiny), 0.0) + eye


def _identity(like: Tensor) -> Tensor:
    return torch.eye(like.shape[-1], dtype=like.dtype, device=like.device)


def _grouped(plan: Plan, of_calls: Sequence) -> list[list]:
    """What belongs to the calls of attention modules, round by round."""
    if len(of_calls) != sum(map(len, plan.rounds)):
        raise ValueError(f"{len(of_calls)} attentions, but the plan of this fusion has {sum(map(len, plan.rounds))}")
    rest = iter(of_calls)
    return [[next(rest) for _ in readings] for readings in plan.rounds]


def _read_off(
    related: Tensor, plan: Plan, seen: Pass, targets: Tensor | None, per_word: bool, model: nn.Module
) -> Evidence:
    """The answer's row (or the words' rows) of R (B, N, N), at the image tokens."""
    if per_word:
        return _evidence(related[:, _rows(plan, True, model), plan.image], seen, targets, True)  # (B, T, Nᵢ)
    real = real_tokens(plan, seen)  # (B, N)
    read = torch.zeros_like(real)
    for place in plan.answer:
        read[:, place] = real[:, place]
    share = read / read.sum(1, keepdim=True).clamp(min=1)  # (B, N)
    return _evidence((share.unsqueeze(1) @ related).squeeze(1)[:, plan.image], seen, targets)  # (B, Nᵢ)


def _rows(plan: Plan, per_word: bool, model: nn.Module) -> slice:
    if per_word and not any(_meets(x, plan.text, slice(0, plan.size)) for readings in plan.rounds for x in readings):
        raise ValueError(f"in {type(core(model)).__name__} no word reads, so there is no map for each; per_word=False")
    return plan.text if per_word else plan.looking


def _meets(reading: Reading, queries: slice, keys: slice) -> bool:
    """Whether some of these queries read some of these keys."""
    pairs = (reading.queries, queries), (reading.keys, keys)
    return all(max(a.start, b.start) < min(a.stop, b.stop) for a, b in pairs)


# ------------------------------------------------------------------------------------ fusions with maps of their own


def san(
    model: nn.Module,
    sample: Batch,
    targets: Tensor | None = None,
    per_word: bool = False,
    stack: int | None = None,
) -> Evidence:
    """The maps of stacked attention: of one stack, or the mean of all. There are none word by word."""
    _no_words("san", model, per_word)
    seen = forward_pass(model, sample)
    return _evidence(_one(seen.fusion.attention.detach(), stack, "stack").squeeze(1), seen, targets)  # (B, Nᵢ)


def ban(
    model: nn.Module,
    sample: Batch,
    targets: Tensor | None = None,
    per_word: bool = False,
    glimpse: int | None = None,
) -> Evidence:
    """The maps of bilinear attention over pairs of word and image token: of one glimpse, or the mean of all."""
    seen = forward_pass(model, sample)
    pairs = _one(seen.fusion.attention.detach(), glimpse, "glimpse")  # (B, Nₜ, Nᵢ)
    return _evidence(pairs if per_word else pairs.sum(1), seen, targets, per_word)


def cmsa(
    model: nn.Module,
    sample: Batch,
    targets: Tensor | None = None,
    per_word: bool = False,
    layer: int | None = None,
) -> Evidence:
    """How much each word at each cell is read by all others, in one non-local block (the last by default)."""
    seen = forward_pass(model, sample)
    which = _pick("layer", layer, range(len(seen.calls)))
    pairs = word_cell_maps(seen.calls[which].weights, seen.text.shape[1], seen.image_mask, seen.text_mask)[:, 0]
    return _evidence(pairs if per_word else pairs.sum(1), seen, targets, per_word)  # (B, Nₜ, Nᵢ) or (B, Nᵢ)


def _of_pairs(related: Tensor, seen: Pass, targets: Tensor | None, per_word: bool) -> Evidence:
    """R (B, P, P) over pairs of word and cell, read by the mean over all real pairs."""
    pairs = word_cell_maps(related.unsqueeze(1), seen.text.shape[1], seen.image_mask, seen.text_mask)[:, 0]
    return _evidence(pairs if per_word else pairs.sum(1), seen, targets, per_word)  # (B, Nₜ, Nᵢ) or (B, Nᵢ)


def _of_looks(seen: Pass, targets: Tensor, per_word: bool, model: nn.Module) -> Evidence:
    """Σ of the positive part of ∂y/∂A ⊙ A over heads, stacks or glimpses (B, H, Tq, Nᵢ), which add up."""
    attention = seen.fusion.attention
    edges = _made_of(attention)
    found = gradients_at(seen, targets, edges)
    gradient = found[0] if len(edges) == 1 else torch.stack(found, dim=1)  # (B, H, …)
    weighed = (gradient.reshape(attention.shape) * attention.detach()).clamp(min=0).sum(1)  # (B, Tq, Nᵢ)
    if not isinstance(core(model), BAN):
        _no_words("relevance", model, per_word)
    return _evidence(weighed if per_word else weighed.sum(1), seen, targets, per_word)


def _made_of(attention: Tensor) -> list[GradientEdge]:
    """Where in the graph the weights are that the fusion used; what it returns may be these, stacked or reshaped."""
    edges = [get_gradient_edge(attention)]
    while type(edges[0].node).__name__ in ("UnsqueezeBackward0", "StackBackward0"):
        edges = [GradientEdge(*parent) for edge in edges for parent in edge.node.next_functions]
    return edges


# ------------------------------------------------------------------------------------------------------------ helpers


def _evidence(scores: Tensor, seen: Pass, targets: Tensor | None, per_word: bool = False) -> Evidence:
    logits = seen.logits.detach()
    rows = seen.text_mask if per_word else None
    return Evidence(scores.detach(), logits, chosen(logits, targets), seen.image_mask, rows)


def _one(weights: Tensor, which: int | None, name: str) -> Tensor:
    """One of the maps (B, H, …), or their mean: (B, …)."""
    return weights.mean(1) if which is None else weights[:, _pick(name, which, range(weights.shape[1]))]


def _pick(name: str, which: int | None, among) -> int:
    """The item at position ``which`` (from 0, or from −1 backwards), the last by default."""
    n = len(among)
    if which is not None and not -n <= which < n:
        raise ValueError(f"{name} is {which}; there are {n}, so it must lie between {-n} and {n - 1}")
    return among[-1 if which is None else which]


def _no_words(method: str, model: nn.Module, per_word: bool) -> None:
    if per_word:
        raise ValueError(f"{method} of {type(core(model)).__name__} has no map for each word; take per_word=False")


TRANSFORMERS = tuple(PLANS)
STACKED = (SAN, LinearSAN)
LOOKS = (AttendFusion, *STACKED, BAN)  # fusions whose looks at the picture add up
