"""Cheaper transformers: drop tokens, share layers, remove heads, prune weights.

Distillation, the fourth way, is a matter of training: :mod:`vqa_core.training.distillation`.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Iterable, Iterator

import torch
from torch import Tensor, nn
from torch.nn.utils import prune

from vqa_core.fusion.blocks import MultiHeadAttention
from vqa_core.fusion.output import FusionOutput
from vqa_core.fusion.stages import all_real

# ------------------------------------------------------------------------------------------------------- DropToken


def drop_tokens(tokens: Tensor, mask: Tensor | None, keep: float) -> tuple[Tensor, Tensor]:
    """A random part of the real tokens of each row, in their order.

    Parameters
    ----------
    tokens
        (B, N, D).
    mask
        bool (B, N), True at real tokens; None when all are real.
    keep
        Share that stays, in (0, 1]. Of n real tokens ⌈keep · n⌉ stay.

    Returns
    -------
    tokens, mask
        (B, M, D) and bool (B, M) with M = ⌈keep · N⌉: the sequence gets shorter, which is what saves time.
    """
    if not 0 < keep <= 1:
        raise ValueError(f"keep is {keep}; the share of tokens that stays must lie in (0, 1]")
    mask = all_real(tokens, mask)
    length = math.ceil(keep * tokens.shape[1])
    stays = (mask.sum(1, keepdim=True) * keep).ceil()  # (B, 1)
    lot = torch.rand_like(tokens[..., 0]).masked_fill(~mask, 2.0)  # (B, N), padding comes last
    drawn = lot.argsort(dim=1).argsort(dim=1) < stays  # (B, N), the first in a random order
    index = (~drawn).long().argsort(dim=1, stable=True)[:, :length]  # (B, M), drawn ones first, in their old order
    kept = tokens.gather(1, index.unsqueeze(-1).expand(-1, -1, tokens.shape[-1]))  # (B, M, D)
    return kept, drawn.gather(1, index)


class DropToken(nn.Module):
    """A fusion that sees a random part of the image tokens in training, and all of them otherwise.

    DropToken is from VATT (Akbari et al. 2021, arXiv 2104.11178), which drops half of the video and audio tokens.

    Parameters
    ----------
    fusion
        Any fusion.
    keep
        Share of each picture's real tokens that stays, in (0, 1].
    """

    def __init__(self, fusion: nn.Module, keep: float = 0.5) -> None:
        super().__init__()
        if not 0 < keep <= 1:
            raise ValueError(f"keep is {keep}; the share of tokens that stays must lie in (0, 1]")
        self.fusion, self.keep, self.out_dim = fusion, keep, fusion.out_dim

    def forward(
        self,
        image_tokens: Tensor,
        text_tokens: Tensor,
        image_mask: Tensor | None = None,
        text_mask: Tensor | None = None,
        **options,
    ) -> FusionOutput:
        """What the fusion makes of the tokens that stay; ``options`` are passed on to it."""
        if self.training and self.keep < 1:
            image_tokens, image_mask = drop_tokens(image_tokens, image_mask, self.keep)  # (B, M, D), (B, M)
        return self.fusion(image_tokens, text_tokens, image_mask, text_mask, **options)


# ------------------------------------------------------------------------------------------------ shared parameters


def share_layers(layers: nn.ModuleList) -> nn.ModuleList:
    """The same first layer, used as often as there were layers: depth without more parameters.

    Universal Transformer (Dehghani et al. 2019, arXiv 1807.03819), ALBERT (Lan et al. 2020, arXiv 1909.11942).

    Raises
    ------
    ValueError
        The layers differ in the names or shapes of their parameters.
    """
    shapes = [{name: tuple(p.shape) for name, p in layer.named_parameters()} for layer in layers]
    if not shapes or any(s != shapes[0] for s in shapes):
        raise ValueError(f"{len(layers)} layers can't share parameters: they need at least one, and all of one kind")
    return nn.ModuleList([layers[0]] * len(layers))


# ---------------------------------------------------------------------------------------------------------- pruning


def attentions(model: nn.Module) -> Iterator[tuple[str, MultiHeadAttention]]:
    """Name and module of every attention in a model."""
    return ((name, m) for name, m in model.named_modules() if isinstance(m, MultiHeadAttention))


def head_norms(attention: MultiHeadAttention) -> Tensor:
    """How much each head can write: norm of W_o's columns for the head times norm of its values' rows, float (H,)."""
    size = attention.out.in_features // attention.heads
    written = attention.out.weight.unflatten(1, (attention.heads, size)).norm(dim=(0, 2))  # (H,)
    values = torch.cat([attention.value.weight, attention.value.bias[:, None]], dim=1)  # (H d, D + 1)
    return (written * values.unflatten(0, (attention.heads, size)).norm(dim=(1, 2))).detach()  # (H,)


def remove_heads(attention: MultiHeadAttention, heads: Iterable[int]) -> None:
    """Take heads out for good, in place: smaller matrices, fewer operations (Michel et al. 2019, arXiv 1905.10650).

    Parameters
    ----------
    attention
        At least one head must stay.
    heads
        Numbers of the heads that go, from 0.
    """
    gone = set(heads)
    if not gone < set(range(attention.heads)):
        raise ValueError(f"heads {sorted(gone)} of {attention.heads} can't go: name existing heads, and leave one")
    size = attention.out.in_features // attention.heads
    stay = [h * size + i for h in range(attention.heads) if h not in gone for i in range(size)]  # (H' d)
    for name in ("query", "key", "value"):
        setattr(attention, name, _part(getattr(attention, name), stay, rows=True))
    attention.out = _part(attention.out, stay, rows=False)
    attention.heads -= len(gone)


def _part(layer: nn.Linear, chosen: list[int], rows: bool) -> nn.Linear:
    """A linear layer with some of the outputs (rows) or inputs of another."""
    weight = layer.weight[chosen] if rows else layer.weight[:, chosen]
    part = nn.Linear(weight.shape[1], weight.shape[0], device=weight.device, dtype=weight.dtype)
    with torch.no_grad():
        part.weight.copy_(weight)
        part.bias.copy_(layer.bias[chosen] if rows else layer.bias)
    return part


def prune_heads(model: nn.Module, share: float) -> nn.Module:
    """A copy of a model without the heads of each attention that have the smallest :func:`head_norms`.

    Parameters
    ----------
    share
        Part of the heads of each attention that goes, in [0, 1), rounded down.
    """
    if not 0 <= share < 1:
        raise ValueError(f"share is {share}; the part of the heads that goes must lie in [0, 1)")
    model = copy.deepcopy(model)
    for _, attention in list(attentions(model)):
        weakest = head_norms(attention).argsort()[: int(share * attention.heads)]
        if len(weakest):
            remove_heads(attention, weakest.tolist())
    return model


def prune_weights(model: nn.Module, share: float) -> nn.Module:
    """A copy of a model in which the smallest weights of all linear layers together are zero.

    Magnitude pruning (Han et al. 2015, arXiv 1506.02626). The matrices keep their sizes, so that a dense machine saves
    nothing; what is saved is storage.

    Parameters
    ----------
    share
        Part of the weights that becomes zero, in [0, 1).
    """
    if not 0 <= share < 1:
        raise ValueError(f"share is {share}; the part of the weights that becomes zero must lie in [0, 1)")
    model = copy.deepcopy(model)
    weights = [(m, "weight") for m in model.modules() if isinstance(m, nn.Linear)]
    prune.global_unstructured(weights, pruning_method=prune.L1Unstructured, amount=share)
    for module, name in weights:
        prune.remove(module, name)
    return model


def nonzero(model: nn.Module) -> int:
    """How many parameters are not zero; shared ones count once."""
    return sum(int(p.count_nonzero()) for p in model.parameters())
