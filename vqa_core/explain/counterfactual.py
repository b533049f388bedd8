"""Counterfactual attention learning (CAL; Rao et al. 2021, arXiv 2108.08728), for pictures and for volumes.

Attention maps are trained to *matter*: the loss asks that the answer changes when they are replaced by maps that know
nothing. With maps A of a feature grid X and any counterfactual maps Ā, the effect of the attention is

    Y_effect = Y(do(A), X) − Y(do(Ā), X)

and the loss is the cross-entropy of Y plus that of Y_effect.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

EPSILON = 1e-6  # inside the square root: its slope at 0 would be infinite
CONVOLUTIONS = {2: nn.Conv2d, 3: nn.Conv3d}


def bilinear_attention_pooling(features: Tensor, maps: Tensor, pool: str = "average") -> Tensor:
    """One vector of a feature grid for each attention map, side by side; signed square root, then length 1.

    Parameters
    ----------
    features
        (B, D, *grid) with one, two or three axes of the grid.
    maps
        (B, M, *grid); on a coarser grid they are interpolated linearly.
    pool
        ``"average"`` or ``"max"`` of map · feature over the grid.

    Returns
    -------
    Tensor
        (B, M · D), rows of length 1.
    """
    if pool not in ("average", "max"):
        raise ValueError(f"pool is {pool!r}, allowed are 'average' and 'max'")
    if features.ndim != maps.ndim or features.ndim not in (3, 4, 5) or len(features) != len(maps):
        raise ValueError(
            f"features are {tuple(features.shape)} and maps {tuple(maps.shape)}; give (B, D, *grid) and (B, M, *grid)"
        )
    if maps.shape[2:] != features.shape[2:]:
        how = {3: "linear", 4: "bilinear", 5: "trilinear"}[features.ndim]
        maps = F.interpolate(maps, features.shape[2:], mode=how, align_corners=False)  # (B, M, *grid)
    features, maps = features.flatten(2), maps.flatten(2)  # (B, D, N), (B, M, N)
    if pool == "average":
        read = maps @ features.transpose(1, 2) / features.shape[2]  # (B, M, D)
    else:
        features = features.contiguous()  # tokens come with features last; the maximum runs over cells
        read = torch.stack([(a.unsqueeze(1) * features).max(-1).values for a in maps.unbind(1)], dim=1)  # (B, M, D)
    read = read.flatten(1)  # (B, M · D)
    return F.normalize(read.sign() * (read.abs() + EPSILON).sqrt(), dim=-1)


def random_maps(maps: Tensor) -> Tensor:
    """Every value uniform on (0, 2): the same mean as :func:`uniform_maps`."""
    return torch.rand_like(maps) * 2


def uniform_maps(maps: Tensor) -> Tensor:
    """Ones: every cell counts the same."""
    return torch.ones_like(maps)


def shuffled_maps(maps: Tensor) -> Tensor:
    """The maps of another picture of the batch (its neighbour); with a single picture they would be its own.

    Raises
    ------
    ValueError
        For a batch of one.
    """
    if len(maps) < 2:
        raise ValueError("maps of another picture need a batch of at least 2 pictures")
    return maps.roll(1, dims=0)


def reversed_maps(maps: Tensor) -> Tensor:
    """Most where the map is least: max over the grid minus the map."""
    return maps.flatten(2).amax(-1).reshape(*maps.shape[:2], *[1] * (maps.ndim - 2)) - maps


def zero_maps(maps: Tensor) -> Tensor:
    """Zeros: the picture says nothing. A control, not a counterfactual of CAL.

    What is pooled with them is zero, so the effect is what the picture adds to the vector beside it. Training on it
    asks that the picture alone gives the answer, with any maps.
    """
    return torch.zeros_like(maps)


#: Kind of counterfactual → maps (B, M, *grid) → other maps of the same shape.
COUNTERFACTUALS: dict[str, Callable[[Tensor], Tensor]] = {
    "random": random_maps,
    "uniform": uniform_maps,
    "shuffled": shuffled_maps,
    "reversed": reversed_maps,
    "zero": zero_maps,
}


class CounterfactualOutput(NamedTuple):
    """What :class:`CounterfactualAttention` returns.

    Attributes
    ----------
    logits
        (B, classes), with the model's own maps.
    effect
        (B, classes), logits minus those with counterfactual maps.
    maps
        (B, M, *grid), at least 0 where the module is ``rectified``.
    """

    logits: Tensor
    effect: Tensor
    maps: Tensor


class CounterfactualAttention(nn.Module):
    """M attention maps over a feature grid, bilinear pooling, a linear classifier; and the same without knowledge.

    It goes behind any encoder that gives a grid: ``module(encoder(pictures))``.

    Parameters
    ----------
    dim
        D, features of a cell.
    classes
        Of the classifier.
    maps
        M.
    axes
        2 for pictures, 3 for volumes.
    pool
        See :func:`bilinear_attention_pooling`.
    extra
        Features of a vector that comes with each picture (covariates, genomics) and is put beside the pooled ones;
        0 for none.
    training_kind, evaluation_kind
        Keys of :data:`COUNTERFACTUALS`: what replaces the maps in training, and in evaluation, where nothing should
        be drawn at random.
    scale
        Factor on the pooled vector in front of the classifier; its length is 1, so that logits would stay small.
    rectified
        Whether maps are ReLU(batch norm(1 × 1 convolution)), or the convolution alone, whose values have both signs.

    Notes
    -----
    The published code rectifies its maps; the note that this book tests does not (``rectified=False``). The extra
    vector is not scaled, and stays the same in both halves of the effect: what the attention does is told from what the
    vector says.
    """

    def __init__(
        self,
        dim: int,
        classes: int,
        maps: int = 8,
        axes: int = 2,
        pool: str = "average",
        extra: int = 0,
        training_kind: str = "random",
        evaluation_kind: str = "uniform",
        scale: float = 100.0,
        rectified: bool = True,
    ) -> None:
        super().__init__()
        if axes not in CONVOLUTIONS:
            raise ValueError(f"axes is {axes}, allowed are 2 (pictures) and 3 (volumes)")
        for name, kind in (("training_kind", training_kind), ("evaluation_kind", evaluation_kind)):
            if kind not in COUNTERFACTUALS:
                raise ValueError(f"{name} is {kind!r}, allowed are {', '.join(COUNTERFACTUALS)}")
        self.dim, self.extra, self.axes, self.pool, self.scale = dim, extra, axes, pool, scale
        self.training_kind, self.evaluation_kind = training_kind, evaluation_kind
        norm = nn.BatchNorm2d(maps) if axes == 2 else nn.BatchNorm3d(maps)
        convolution = CONVOLUTIONS[axes](dim, maps, 1, bias=not rectified)
        self.attention = nn.Sequential(convolution, norm, nn.ReLU()) if rectified else convolution
        self.classifier = nn.Linear(maps * dim + extra, classes)

    def forward(self, features: Tensor, extra: Tensor | None = None) -> CounterfactualOutput:
        """Features (B, D, *grid), and (B, extra) where it was made for them → logits, their effect, the maps."""
        if features.ndim != 2 + self.axes or features.shape[1] != self.dim:
            raise ValueError(
                f"features have shape {tuple(features.shape)}; give (B, {self.dim}, *grid), {self.axes} axes"
            )
        if (extra is None) != (self.extra == 0) or (extra is not None and extra.shape[1:] != (self.extra,)):
            given = None if extra is None else tuple(extra.shape)
            raise ValueError(f"extra is {given}; this module was made with extra={self.extra}")
        maps = self.attention(features)  # (B, M, *grid)
        kind = self.training_kind if self.training else self.evaluation_kind
        logits = self._classify(features, maps, extra)  # (B, classes)
        # gradients reach the encoder through both halves; the counterfactual maps themselves have none
        other = self._classify(features, COUNTERFACTUALS[kind](maps.detach()), extra)  # (B, classes)
        return CounterfactualOutput(logits, logits - other, maps)

    def _classify(self, features: Tensor, maps: Tensor, extra: Tensor | None) -> Tensor:
        pooled = self.scale * bilinear_attention_pooling(features, maps, self.pool)  # (B, M · D)
        return self.classifier(pooled if extra is None else torch.cat([pooled, extra], dim=-1))


class CounterfactualModel(nn.Module):
    """Counterfactual attention behind an encoder that gives a grid of tokens, with or without a vector beside it.

    Parameters
    ----------
    encoder
        Has ``grid`` (two or three numbers) and ``out_dim``, and maps pictures to
        :class:`~vqa_core.encoders.tokens.Tokens` (B, N, out_dim), one for each cell in reading order; such as
        :class:`~vqa_core.encoders.cnn.GridCNN` and :class:`~vqa_core.encoders.volume.VolumeCNN`.
    classes, **options
        As for :class:`CounterfactualAttention`; ``dim`` and ``axes`` are the encoder's.

    Notes
    -----
    Training needs batches of at least two pictures, for the batch norm and for shuffled maps.
    """

    def __init__(self, encoder: nn.Module, classes: int, **options) -> None:
        super().__init__()
        self.encoder = encoder
        self.head = CounterfactualAttention(encoder.out_dim, classes, axes=len(encoder.grid), **options)

    def forward(
        self, pictures: Tensor, words: Tensor | None = None, word_mask: Tensor | None = None
    ) -> CounterfactualOutput:
        """Answer.

        Parameters
        ----------
        pictures
            What the encoder takes.
        words
            (B, 1, extra), the vectors, where the module was made with ``extra``; else it is not read.
        word_mask
            Not read. It is there so that the training loop can call this model as any other.
        """
        tokens = self.encoder(pictures).tokens  # (B, N, D)
        if tokens.shape[1] != math.prod(self.encoder.grid):
            raise ValueError(
                f"{tokens.shape[1]} tokens do not fill the grid {tuple(self.encoder.grid)}; leave out the class token"
            )
        features = tokens.transpose(1, 2).unflatten(2, self.encoder.grid)  # (B, D, *grid)
        if self.head.extra and words is None:
            raise ValueError(f"this model reads a vector; give words (B, 1, {self.head.extra})")
        return self.head(features, words[:, 0] if self.head.extra else None)


def counterfactual_loss(
    output: CounterfactualOutput, labels: Tensor, raw_weight: float = 1 / 3, effect_weight: float = 1.0
) -> Tensor:
    """Cross-entropy (nats) of the logits and of their effect, weighted; ``effect_weight=0`` trains without CAL."""
    raw, effect = (F.cross_entropy(x.float(), labels) for x in (output.logits, output.effect))
    return raw_weight * raw + effect_weight * effect


def attention_map(maps: Tensor) -> Tensor:
    """The mean size of M maps (B, M, *grid), as shares of each picture's attention: (B, *grid), sums to 1.

    A picture whose maps are all zero gets a uniform map.
    """
    mean = maps.abs().mean(1)  # (B, *grid)
    total = mean.flatten(1).sum(1).reshape(-1, *[1] * (mean.ndim - 1))  # (B, 1, …)
    cells = mean[0].numel()
    return torch.where(total > 0, mean / total.clamp(min=torch.finfo(mean.dtype).tiny), 1 / cells)
