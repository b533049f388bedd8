"""One expert encoder per organ, mixed by a soft organ classifier, and how an expert is pre-trained (MTPT).

Gong et al. 2021, *Cross-modal self-attention with multi-task pre-training for medical VQA* (arXiv 2105.00136).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vqa_core.encoders.tokens import Tokens

ORGANS = ("abdomen", "head", "chest")
SPATIAL = 8  # features of the spatial map


def spatial_map(rows: int, columns: int, device: torch.device | None = None) -> Tensor:
    """Where each cell of a grid lies: (rows · columns, 8), in reading order.

    The features are x and y of the upper left corner, x and y of the lower right one, x and y of the centre, all from
    −1 to 1 with x to the right and y downwards, then 1/columns and 1/rows.
    """
    if rows < 1 or columns < 1:
        raise ValueError(f"the grid is {rows} × {columns}; it has at least one row and one column")
    y, x = torch.meshgrid(torch.arange(rows, device=device), torch.arange(columns, device=device), indexing="ij")
    left, top = 2 * x / columns - 1, 2 * y / rows - 1  # (rows, columns) each
    right, bottom = 2 * (x + 1) / columns - 1, 2 * (y + 1) / rows - 1
    centre = (left + right) / 2, (top + bottom) / 2
    size = torch.full_like(left, 1 / columns), torch.full_like(left, 1 / rows)
    return torch.stack([left, top, right, bottom, *centre, *size], dim=-1).flatten(0, 1)  # (rows · columns, 8)


class OrganClassifier(nn.Module):
    """Three times [3 × 3 convolution with stride 2, batch norm, ReLU], mean over the picture, one linear layer.

    Small on purpose: which organ a picture shows is easy. (The published one has max-pooling and a larger linear layer
    in place of batch norm and the mean.)

    Parameters
    ----------
    organs
        K, how many.
    width
        Channels.
    """

    def __init__(self, organs: int = len(ORGANS), width: int = 64) -> None:
        super().__init__()
        layers = []
        for inputs in (3, width, width):
            layers += [nn.Conv2d(inputs, width, 3, 2, padding=1, bias=False), nn.BatchNorm2d(width), nn.ReLU()]
        self.features, self.classify = nn.Sequential(*layers), nn.Linear(width, organs)

    def forward(self, pictures: Tensor) -> Tensor:
        """Pictures (B, 3, H, W) → organ logits (B, K)."""
        return self.classify(self.features(pictures).mean((2, 3)))  # (B, width, H/8, W/8) → (B, width) → (B, K)


class MixedTokens(NamedTuple):
    """What :class:`Experts` returns: :class:`~vqa_core.encoders.tokens.Tokens`, and what the mixture was.

    Attributes
    ----------
    tokens
        float (B, N, D).
    mask
        None: all tokens are real.
    organ_logits
        (B, K) before the softmax, for the organ's cross-entropy.
    """

    tokens: Tensor
    mask: Tensor | None
    organ_logits: Tensor


class Experts(nn.Module):
    """v = Σ_k w_k v_k: the tokens of K experts, weighted by softmax probabilities w of an organ classifier.

    The mixture is soft: a picture whose organ is unsure gets something of each, and the classifier learns from the
    answer as well as from organ labels (cross-entropy on ``organ_logits``).

    Parameters
    ----------
    experts
        K image encoders with equal ``out_dim`` and equal numbers of tokens.
    organs
        Pictures → organ logits (B, K), for instance :class:`OrganClassifier`.
    grid
        (rows, columns) of the experts' tokens: appends the 8 features of :func:`spatial_map` to every token. None
        appends nothing.
    """

    def __init__(self, experts: Sequence[nn.Module], organs: nn.Module, grid: tuple[int, int] | None = None) -> None:
        super().__init__()
        widths = {expert.out_dim for expert in experts}
        if len(widths) != 1:
            raise ValueError(f"experts have out_dim {sorted(widths)}; a weighted sum needs one and the same")
        self.experts, self.organs, self.grid = nn.ModuleList(experts), organs, grid
        self.out_dim = widths.pop() + (0 if grid is None else SPATIAL)
        self.register_buffer("where", None if grid is None else spatial_map(*grid), persistent=False)

    def forward(self, pictures: Tensor) -> MixedTokens:
        """Pictures (B, 3, H, W) → tokens (B, N, D) or, with a grid, (B, N, D + 8)."""
        logits = self.organs(pictures)  # (B, K)
        if logits.shape != (len(pictures), len(self.experts)):
            raise ValueError(f"organ logits have shape {tuple(logits.shape)}, expected (B, {len(self.experts)})")
        parts = [expert(pictures) for expert in self.experts]
        if any(part.mask is not None for part in parts) or len({part.tokens.shape for part in parts}) != 1:
            shapes = [tuple(part.tokens.shape) for part in parts]
            raise ValueError(f"experts give tokens {shapes}; a weighted sum needs equal shapes and no masks")
        each = torch.stack([part.tokens for part in parts], dim=1)  # (B, K, N, D)
        tokens = torch.einsum("bk,bknd->bnd", logits.softmax(-1), each)  # (B, N, D)
        if self.where is not None:
            if len(self.where) != tokens.shape[1]:
                raise ValueError(f"experts give {tokens.shape[1]} tokens, the grid {self.grid} has {len(self.where)}")
            where = self.where.to(tokens.dtype).expand(len(tokens), -1, -1)  # (B, N, 8)
            tokens = torch.cat([tokens, where], dim=-1)  # (B, N, D + 8)
        return MixedTokens(tokens, None, logits)


# --- pre-training ---------------------------------------------------------------------------------------------------


class Segmenter(nn.Module):
    """Own task of an expert: a class for each pixel, from its grid of tokens.

    Parameters
    ----------
    dim
        D of the tokens.
    classes
        With the background; 14 for the abdomen in the paper.
    grid
        (rows, columns) of the tokens.
    size
        Side of the label picture in pixels.
    width
        Hidden channels.
    """

    def __init__(self, dim: int, classes: int, grid: tuple[int, int], size: int, width: int = 64) -> None:
        super().__init__()
        self.grid, self.size = grid, size
        self.hidden, self.classify = nn.Conv2d(dim, width, 3, padding=1), nn.Conv2d(width, classes, 1)

    def forward(self, tokens: Tensor) -> Tensor:
        """Tokens (B, rows · columns, D) → pixel logits (B, classes, size, size)."""
        x = tokens.transpose(1, 2).unflatten(2, self.grid)  # (B, D, rows, columns)
        x = self.classify(F.relu(self.hidden(x)))  # (B, classes, rows, columns)
        return F.interpolate(x, (self.size, self.size), mode="bilinear")  # (B, classes, size, size)


class PictureClassifier(nn.Module):
    """Own task of an expert: a class for each picture, from the mean of its tokens.

    Parameters
    ----------
    dim
        D of the tokens.
    classes
        3 for the head (kinds of tumour) and 2 for the chest (pneumonia or not) in the paper.
    """

    def __init__(self, dim: int, classes: int) -> None:
        super().__init__()
        self.classify = nn.Linear(dim, classes)

    def forward(self, tokens: Tensor) -> Tensor:
        """Tokens (B, N, D) → logits (B, classes)."""
        return self.classify(tokens.mean(1))


class PretrainingOutput(NamedTuple):
    """What :class:`ExpertPretraining` returns.

    Attributes
    ----------
    task
        Logits of the own task: (B, classes) or (B, classes, size, size).
    compatibility
        (B, 2): logits of "this question does not belong to this picture" and "it does".
    """

    task: Tensor
    compatibility: Tensor


class PretrainingLoss(NamedTuple):
    """``total`` = ``task`` + ``compatibility``, scalars in nats."""

    total: Tensor
    task: Tensor
    compatibility: Tensor


class ExpertPretraining(nn.Module):
    """An expert with its two tasks: its own, and whether a question can be asked about a picture.

    Afterwards ``expert`` is kept, and the rest is dropped.

    Parameters
    ----------
    expert
        Image encoder, without a mask.
    task_head
        Tokens (B, N, D) → logits: :class:`Segmenter`, :class:`PictureClassifier`.
    text_encoder
        ``(words, word_mask)`` → tokens.
    fusion
        ``(image_tokens, text_tokens, image_mask, text_mask)`` → an output with ``fused`` (B, ``fusion.out_dim``).
    """

    def __init__(self, expert: nn.Module, task_head: nn.Module, text_encoder: nn.Module, fusion: nn.Module) -> None:
        super().__init__()
        self.expert, self.task_head, self.text_encoder, self.fusion = expert, task_head, text_encoder, fusion
        self.compatible = nn.Linear(fusion.out_dim, 2)

    def forward(self, pictures: Tensor, words: Tensor, word_mask: Tensor) -> PretrainingOutput:
        """Pictures (B, 3, H, W) and one question for each, word ids and mask (B, Nₜ) → logits of both tasks."""
        tokens, _ = self.expert(pictures)  # (B, N, D)
        text: Tokens = self.text_encoder(words, word_mask)
        fused = self.fusion(tokens, text.tokens, None, text.mask).fused  # (B, fusion.out_dim)
        return PretrainingOutput(self.task_head(tokens), self.compatible(fused))


def pretraining_loss(output: PretrainingOutput, task: Tensor, compatible: Tensor) -> PretrainingLoss:
    """Cross-entropy of the own task plus cross-entropy of compatibility, one to one as in the paper.

    Parameters
    ----------
    output
        From :class:`ExpertPretraining`.
    task
        Right classes, long (B,) or (B, size, size); −100 is left out. At least one must be there.
    compatible
        bool or long (B,), 1 where the question belongs to the picture.
    """
    own = F.cross_entropy(output.task, task)
    fits = F.cross_entropy(output.compatibility, compatible.long())
    return PretrainingLoss(own + fits, own, fits)


def compatibility_pairs(
    picture_organs: np.ndarray, asked: np.ndarray, rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    """A question for each picture: with probability ½ one that is asked about its organ, else one that is not.

    Parameters
    ----------
    picture_organs
        int (P,), the organ of each picture, 0 to K − 1.
    asked
        bool (Q, K): question q occurs with organ k. Count *training* questions only: the published files of this task
        also hold test questions.
    rng
        Of the draws.

    Returns
    -------
    questions
        int (P,), rows of ``asked``.
    compatible
        bool (P,), ``asked[questions, picture_organs]``.

    Raises
    ------
    ValueError
        When an organ has no question that is asked about it, or none that is not.
    """
    picture_organs, asked = np.asarray(picture_organs), np.asarray(asked, dtype=bool)
    organs = np.unique(picture_organs)
    if asked.ndim != 2 or not np.isin(organs, range(asked.shape[1])).all():
        raise ValueError(f"organs are {organs.tolist()}; asked is {asked.shape}, expected a column for each organ")
    for organ in organs:
        if (n := asked[:, organ].sum()) in (0, len(asked)):
            raise ValueError(f"organ {organ} is asked about in {n} of {len(asked)} questions; both kinds are needed")
    compatible = rng.random(len(picture_organs)) < 0.5
    questions = [rng.choice(np.flatnonzero(asked[:, k] == c)) for k, c in zip(picture_organs, compatible)]
    return np.array(questions, dtype=np.int64), compatible
