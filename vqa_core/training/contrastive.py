"""Contrastive losses over a batch of pairs, batches that do not fit into memory, and batches over several processes.

Row i of ``image`` and row i of ``text`` belong together; all other rows of the batch are negatives. Embeddings need not
have unit length: every loss compares directions (cosines).
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn

NEGATIVES = ("all", "hard", "semi-hard")


def cosines(image: Tensor, text: Tensor) -> Tensor:
    """Cosine of every image embedding (B, D) with every text embedding (C, D): (B, C).

    Raises
    ------
    ValueError
        When the two sides are not matrices with the same number of features.
    """
    if image.ndim != 2 or text.ndim != 2 or image.shape[1] != text.shape[1]:
        raise ValueError(f"embeddings have shapes {tuple(image.shape)} and {tuple(text.shape)}; give (B, D) and (C, D)")
    return F.normalize(image, dim=-1) @ F.normalize(text, dim=-1).T  # (B, C)


def paired_cosines(image: Tensor, text: Tensor) -> Tensor:
    """:func:`cosines` of a batch of pairs, (B, B); the diagonal holds the pairs."""
    if len(image) != len(text):
        raise ValueError(f"{len(image)} image embeddings and {len(text)} text embeddings; row i of both is one pair")
    return cosines(image, text)  # (B, B)


def clip_loss(image: Tensor, text: Tensor, scale: float | Tensor = 1 / 0.07) -> Tensor:
    """Symmetric InfoNCE, the loss of CLIP (Radford et al. 2021, arXiv 2103.00020), in nats.

    The mean of two cross-entropies of ``scale · cosines``: which caption belongs to the picture (rows), which picture
    to the caption (columns).

    Parameters
    ----------
    image, text
        (B, D).
    scale
        exp(s), the inverse of the temperature τ: above 0. A tensor gets its gradient.

    Returns
    -------
    Tensor
        A number from 0; log B where all cosines are equal.
    """
    logits = scale * paired_cosines(image, text)  # (B, B)
    right = torch.arange(len(logits), device=logits.device)
    return 0.5 * (F.cross_entropy(logits, right) + F.cross_entropy(logits.T, right))


def nt_xent(first: Tensor, second: Tensor, temperature: float | Tensor = 0.5) -> Tensor:
    """NT-Xent, the loss of SimCLR (Chen et al. 2020, arXiv 2002.05709), in nats.

    As :func:`clip_loss`, but both sides are thrown together: an anchor's negatives are the 2 B − 2 other embeddings of
    *both* sides. In SimCLR the sides are two views of one picture.

    Parameters
    ----------
    first, second
        (B, D).
    temperature
        τ, above 0.
    """
    paired_cosines(first, second)  # refuses sides that do not fit
    both = torch.cat([first, second])  # (2 B, D)
    logits = cosines(both, both) / temperature  # (2 B, 2 B)
    logits = logits.masked_fill(torch.eye(len(both), dtype=torch.bool, device=both.device), -torch.inf)
    partner = torch.arange(len(both), device=both.device).roll(len(first))  # (2 B,), B … 2B − 1, 0 … B − 1
    return F.cross_entropy(logits, partner)


def triplet(image: Tensor, text: Tensor, margin: float = 0.2, negatives: str = "all") -> Tensor:
    """Hinge loss: the right partner's cosine is to be larger than a wrong one's by ``margin``.

    Parameters
    ----------
    image, text
        (B, D), B at least 2.
    margin
        From 0 to 2.
    negatives
        Which wrong partners count for an anchor. ``"all"``: the mean over all. ``"hard"``: the most similar one alone
        (VSE++, Faghri et al. 2018, arXiv 1707.05612). ``"semi-hard"``: the most similar one among those that are less
        similar than the right partner (FaceNet, Schroff et al. 2015, arXiv 1503.03832); an anchor that has none adds 0.

    Returns
    -------
    Tensor
        Mean over anchors of both sides, 0 to ``margin`` + 2.
    """
    if negatives not in NEGATIVES:
        raise ValueError(f"negatives is {negatives!r}, allowed are {', '.join(map(repr, NEGATIVES))}")
    similarity = paired_cosines(image, text)  # (B, B)
    if len(similarity) < 2:
        raise ValueError("a batch of one pair has no negatives; give at least 2")
    return 0.5 * (_hinges(similarity, margin, negatives) + _hinges(similarity.T, margin, negatives))


def _hinges(similarity: Tensor, margin: float, negatives: str) -> Tensor:
    """Mean hinge of the rows of (B, B), each an anchor with its partner on the diagonal."""
    right = similarity.diagonal().unsqueeze(1)  # (B, 1)
    wrong = ~torch.eye(len(similarity), dtype=torch.bool, device=similarity.device)
    hinge = (margin - right + similarity).clamp(min=0)  # (B, B)
    if negatives == "all":
        return hinge[wrong].mean()
    allowed = wrong if negatives == "hard" else wrong & (similarity < right)
    return hinge.masked_fill(~allowed, 0.0).amax(1).mean()  # the hinge grows with the similarity


def siglip(image: Tensor, text: Tensor, scale: float | Tensor = 10.0, bias: float | Tensor = -10.0) -> Tensor:
    """SigLIP's loss (Zhai et al. 2023, arXiv 2303.15343): each of the B² pairs is a yes/no question of its own.

    −(1/B) Σᵢⱼ log σ(zᵢⱼ (scale · cosᵢⱼ + bias)), z = 1 for i = j and −1 elsewhere. No sum over the batch stands in a
    denominator, so the loss of a pair does not depend on the others.

    Parameters
    ----------
    image, text
        (B, D).
    scale, bias
        Both are learned in the paper, from 10 and −10: at the start almost all pairs are wrong ones.
    """
    logits = scale * paired_cosines(image, text) + bias  # (B, B)
    sign = 2 * torch.eye(len(logits), device=logits.device, dtype=logits.dtype) - 1  # (B, B)
    return -F.logsigmoid(sign * logits).sum() / len(logits)


def self_similarity_loss(combined: Tensor, scale: float | Tensor = 1 / 0.07) -> Tensor:
    """The loss of a published "enhanced" embedding, kept to show that it learns nothing about pairs.

    The model fuses each picture with *its own* caption into one vector and scores ``combined @ combined.T``: the
    diagonal compares a vector with itself and is 1 before the first step, whichever caption stands beside the picture.

    Parameters
    ----------
    combined
        (B, D), row i made of picture i and caption i.
    scale
        As in :func:`clip_loss`.
    """
    return clip_loss(combined, combined, scale)


# ------------------------------------------------------------------------------------------------- larger than memory


def cached_clip_gradients(
    model: nn.Module,
    pictures: Tensor,
    words: Tensor,
    word_mask: Tensor,
    chunk: int,
    loss: Callable[[Tensor, Tensor], Tensor] | None = None,
) -> Tensor:
    """Gradients of the whole batch's loss with the memory of a chunk (GradCache, Gao et al. 2021, arXiv 2101.06983).

    A contrastive loss needs all embeddings at once, so that gradients of parts of the batch cannot be added up. But it
    needs nothing else of the encoders: (1) embed the batch in chunks and keep no graph; (2) the loss gives the gradient
    of each embedding; (3) embed each chunk again, with its graph, and pass its embeddings' gradients on.

    Parameters
    ----------
    model
        Has ``encode_image(pictures)`` and ``encode_text(words, word_mask)``, each (b, D), and ``scale()``: a
        :class:`vqa_core.dual.DualEncoder`. Gradients are added to its parameters' ``grad``, as ``backward`` does.
    pictures, words, word_mask
        The whole batch: (B, …), (B, T), bool (B, T).
    chunk
        Pairs at a time, at least 1.
    loss
        ``loss(image, text)`` of embeddings (B, D) each; :func:`clip_loss` with the model's scale by default.

    Returns
    -------
    Tensor
        The loss of the whole batch, without a graph.

    Raises
    ------
    ValueError
        When chunk is below 1, or a batch norm in training mode mixes the rows of a chunk: then gradients would depend
        on the chunks. Use group or layer norm, or put it in evaluation mode.

    Notes
    -----
    The second pass starts from the random states of the first, so that dropout drops the same features.
    """
    if chunk < 1:
        raise ValueError(f"chunk is {chunk}, it must be at least 1")
    mixing = [n for n, m in model.named_modules() if isinstance(m, nn.modules.batchnorm._BatchNorm) and m.training]
    if mixing:
        raise ValueError(f"{mixing[0]} is a batch norm in training mode; use group or layer norm, or call its eval()")
    loss = loss or (lambda image, text: clip_loss(image, text, model.scale()))
    parts = list(zip(pictures.split(chunk), words.split(chunk), word_mask.split(chunk), strict=True))
    states, embedded = [], []
    with torch.no_grad():
        for part in parts:
            states.append(_random_states())
            embedded.append(_embed(model, *part))
    after = _random_states()
    image, text = (torch.cat(side).requires_grad_() for side in zip(*embedded))  # (B, D) each
    value = loss(image, text)
    value.backward()
    for part, state, *gradients in zip(parts, states, image.grad.split(chunk), text.grad.split(chunk), strict=True):
        _set_random_states(state)
        torch.autograd.backward(_embed(model, *part), gradients)
    _set_random_states(after)
    return value.detach()


def _embed(model: nn.Module, pictures: Tensor, words: Tensor, word_mask: Tensor) -> tuple[Tensor, Tensor]:
    return model.encode_image(pictures), model.encode_text(words, word_mask)


def _random_states() -> tuple[Tensor, list[Tensor]]:
    """States of the generators of the CPU and of every CUDA device."""
    return torch.get_rng_state(), torch.cuda.get_rng_state_all() if torch.cuda.is_available() else []


def _set_random_states(states: tuple[Tensor, list[Tensor]]) -> None:
    torch.set_rng_state(states[0])
    if states[1]:
        torch.cuda.set_rng_state_all(states[1])


# --------------------------------------------------------------------------------------------------- several processes


class _Gathered(torch.autograd.Function):
    """All processes' rows; backward, a row's gradient is the sum of what it got in every process."""

    @staticmethod
    def forward(ctx, x: Tensor) -> Tensor:
        parts = [torch.empty_like(x) for _ in range(dist.get_world_size())]
        dist.all_gather(parts, x.contiguous())
        return torch.cat(parts)  # (W b, D)

    @staticmethod
    def backward(ctx, gradient: Tensor) -> Tensor:
        gradient = gradient.clone(memory_format=torch.contiguous_format)  # (W b, D)
        dist.all_reduce(gradient)
        return gradient.chunk(dist.get_world_size())[dist.get_rank()]  # (b, D)


def gathered(x: Tensor) -> Tensor:
    """Rows of all processes, (b, D) each → (W b, D), in the order of their ranks; gradients find their way back.

    ``torch.distributed.all_gather`` alone returns copies without a graph: each process would train on half of the
    gradient. Every process must give as many rows.
    """
    return _Gathered.apply(x)


def distributed_clip_loss(image: Tensor, text: Tensor, scale: float | Tensor = 1 / 0.07) -> Tensor:
    """:func:`clip_loss` of the batch of all processes: each computes the rows and columns of its own pairs.

    The *mean over processes* of what this returns is the loss of the whole batch, and the mean of the gradients, which
    ``DistributedDataParallel`` takes, is its gradient. Cosines cost W b² in each process instead of (W b)².

    Parameters
    ----------
    image, text
        (b, D), this process's pairs; b is the same in all processes, and the process group is initialised.
    scale
        As in :func:`clip_loss`, the same in all processes.
    """
    paired_cosines(image, text)  # refuses sides that do not fit
    image, text = F.normalize(image, dim=-1), F.normalize(text, dim=-1)
    right = torch.arange(len(image), device=image.device) + dist.get_rank() * len(
        image
    )  # (b,), columns of own partners
    of_images = F.cross_entropy(scale * image @ gathered(text).T, right)  # (b, W b)
    of_texts = F.cross_entropy(scale * text @ gathered(image).T, right)
    return 0.5 * (of_images + of_texts)


def average_gradients(model: nn.Module) -> None:
    """Replace every gradient by its mean over all processes, as ``DistributedDataParallel`` does."""
    for p in model.parameters():
        if p.grad is not None:
            dist.all_reduce(p.grad)
            p.grad /= dist.get_world_size()
