"""Matching pictures with captions: two ways to score a batch, the contrastive loss, and its training.

In-batch ("published"): pair b = (picture b, caption b) goes through the module, and row b of I' is compared with every
row of T'. But I'_b has already seen caption b. Pairwise: the score of picture i with caption j comes from the pair
(i, j) alone, for all pairs of the batch.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.checkpoint import checkpoint

from vqa_core.fusion.cross_attention import CrossAttended

CHUNK_BYTES = 2**30  # of activations at a time, roughly; much smaller pieces fragment the heap of the C library
FLOATS_PER_FEATURE = 40  # that a gated feed-forward keeps for the backward pass, per feature of a token


def pooled(tokens: Tensor, mask: Tensor | None) -> Tensor:
    """Unit vectors along the mean of the real tokens, (…, N, D) → (…, D); the mean's length does not matter."""
    if mask is not None:
        tokens = tokens * mask.unsqueeze(-1)
    return F.normalize(tokens.sum(-2), dim=-1)


def pair_cosines(joined: CrossAttended, image_mask: Tensor | None, text_mask: Tensor | None) -> Tensor:
    """Cosine of pooled I' with pooled T', each pair alone: leading axes of ``joined``."""
    return (pooled(joined.image, image_mask) * pooled(joined.text, text_mask)).sum(-1)


def in_batch_cosines(
    module: nn.Module, image: Tensor, text: Tensor, image_mask: Tensor | None = None, text_mask: Tensor | None = None
) -> Tensor:
    """Cosines of every I'_i with every T'_j, where I'_i has read caption i and T'_j picture j: (B, B).

    This is the published form, kept to show what it does; for a form without a leak see :func:`pairwise_cosines`.
    """
    joined = module(image, text, image_mask, text_mask)
    return pooled(joined.image, image_mask) @ pooled(joined.text, text_mask).T


def pictures_at_a_time(captions: int, tokens: int, dim: int) -> int:
    """How many pictures, with all captions and N tokens of both sides, fit into about :data:`CHUNK_BYTES`."""
    return max(1, CHUNK_BYTES // (4 * FLOATS_PER_FEATURE * captions * tokens * dim))


def pairwise_cosines(
    module: nn.Module,
    image: Tensor,
    text: Tensor,
    image_mask: Tensor | None = None,
    text_mask: Tensor | None = None,
    chunk: int | None = None,
) -> Tensor:
    """Cosines of I' with T' for every picture with every caption, each from its pair alone.

    Parameters
    ----------
    image, text
        (P, Nᵢ, D) and (C, Nₜ, D).
    image_mask, text_mask
        bool (P, Nᵢ) and (C, Nₜ), or None.
    chunk
        Pictures at a time; by default as many as fit into about :data:`CHUNK_BYTES`. When gradients are recorded, each
        chunk is computed again in the backward pass, so that memory does not grow with P.

    Returns
    -------
    Tensor
        (P, C).
    """
    weights = dict(module.named_parameters())  # as they are now: ``functional_call`` has others in the backward pass

    def rows(x: Tensor, mask: Tensor | None) -> Tensor:  # (p, Nᵢ, D) → (p, C)
        across = None if mask is None else mask[:, None], None if text_mask is None else text_mask[None]
        joined = torch.func.functional_call(module, weights, (x[:, None], text[None], *across))
        return pair_cosines(joined, *across)

    chunk = chunk or pictures_at_a_time(len(text), image.shape[1] + text.shape[1], image.shape[2])
    if chunk >= len(image):
        return rows(image, image_mask)
    masks = [None] * math.ceil(len(image) / chunk) if image_mask is None else image_mask.split(chunk)
    parts = zip(image.split(chunk), masks)
    if torch.is_grad_enabled():
        return torch.cat([checkpoint(rows, x, mask, use_reentrant=False) for x, mask in parts])
    return torch.cat([rows(x, mask) for x, mask in parts])


SCORING: dict[str, Callable[..., Tensor]] = {"in_batch": in_batch_cosines, "pairwise": pairwise_cosines}


class Matcher(nn.Module):
    """Two linear maps into a common width, a cross-attention module, and a temperature τ.

    Parameters
    ----------
    image_dim, text_dim
        Features of the frozen encoders' tokens.
    module
        Maps tokens of width ``module.dim``, as in :mod:`vqa_core.fusion.cross_attention`.
    temperature
        τ at the start; it is learned, and kept above 0.01.
    """

    def __init__(self, image_dim: int, text_dim: int, module: nn.Module, temperature: float = 0.07) -> None:
        super().__init__()
        if not isinstance(module, nn.Module) or not isinstance(getattr(module, "dim", None), int):
            raise ValueError(
                f"{type(module).__name__} can't be trained: give a torch module whose attribute dim is the width of "
                "its tokens, as vqa_core.fusion.cross_attention.CrossAttention sets it"
            )
        self.image_projection = nn.Linear(image_dim, module.dim)
        self.text_projection = nn.Linear(text_dim, module.dim)
        self.module = module
        self.temperature = nn.Parameter(torch.tensor(temperature))

    def forward(
        self,
        image: Tensor,
        text: Tensor,
        image_mask: Tensor | None = None,
        text_mask: Tensor | None = None,
        scoring: str = "pairwise",
        chunk: int | None = None,
    ) -> Tensor:
        """Logits, cosine / τ, of pictures (P, Nᵢ, image_dim) with captions (C, Nₜ, text_dim): (P, C)."""
        options = {} if chunk is None else {"chunk": chunk}
        sides = self.image_projection(image), self.text_projection(text)
        cosines = SCORING[scoring](self.module, *sides, image_mask, text_mask, **options)
        return cosines / self.used_temperature()

    def used_temperature(self) -> Tensor:
        """τ as it divides the cosines: the learned one, at least 0.01."""
        return self.temperature.clamp(min=0.01)


def contrastive_loss(logits: Tensor) -> Tensor:
    """Mean of the two cross-entropies (nats) of a square of logits against its diagonal: which caption, which picture.

    This is the symmetric InfoNCE loss of CLIP (Radford et al. 2021, arXiv 2103.00020).
    """
    right = torch.arange(len(logits), device=logits.device)
    return 0.5 * (F.cross_entropy(logits, right) + F.cross_entropy(logits.T, right))


def cosine_rate(step: int, steps: int, highest: float) -> float:
    """Learning rate at a step (0-based): from ``highest`` to 0 along half a cosine."""
    return 0.5 * highest * (1 + math.cos(math.pi * step / steps))


class NotFiniteError(RuntimeError):
    """The loss of a seed became NaN or infinite; the message names the step and the seed."""


def fit_together(
    matchers: Sequence[Matcher],
    batches: Callable[[int], tuple[Tensor, Tensor, Tensor | None, Tensor | None]],
    steps: int,
    scoring: str,
    learning_rate: float,
    weight_decay: float,
    seed: int = 0,
    after: Callable[[int, list[float]], None] | None = None,
) -> None:
    """Train S matchers, equal but for their weights and data, in one vectorised pass; in place.

    AdamW with a cosine schedule, the last state is kept: nothing is chosen, so that no validation data are needed.

    Parameters
    ----------
    matchers
        One per seed.
    batches
        ``batches(step)`` → image (S, B, Nᵢ, ·), text (S, B, Nₜ, ·), and their masks (S, B, N) or None.
    steps, learning_rate, weight_decay
        Of AdamW.
    scoring
        ``"in_batch"`` or ``"pairwise"``.
    seed
        Of dropout.
    after
        Called with the step and the losses (S) after each step.

    Raises
    ------
    NotFiniteError
        When the loss of a seed is not finite.
    """
    base = copy.deepcopy(matchers[0]).train()  # gives the code; its weights are not used
    names = [name for name, _ in base.named_parameters()]
    stacked = {
        name: torch.stack([m.get_parameter(name).detach() for m in matchers]).requires_grad_() for name in names
    }  # name → (S, …)

    def loss_of(weights, image, text, image_mask, text_mask):
        call = image, text, image_mask, text_mask, scoring
        return contrastive_loss(torch.func.functional_call(base, weights, call))

    def one(s, *batch):
        of_seed = (None if x is None else x[s] for x in batch)
        return loss_of({name: value[s] for name, value in stacked.items()}, *of_seed)

    optimizer = torch.optim.AdamW(stacked.values(), lr=learning_rate, weight_decay=weight_decay, fused=True)
    torch.manual_seed(seed)
    for step in range(steps):
        for group in optimizer.param_groups:
            group["lr"] = cosine_rate(step, steps, learning_rate)
        batch = batches(step)
        (size, n_image), n_text = batch[0].shape[1:3], batch[1].shape[2]
        if scoring == "pairwise" and size > pictures_at_a_time(size, n_image + n_text, base.module.dim):
            losses = torch.stack([one(s, *batch) for s in range(len(matchers))])  # (S,); vmap cannot compute again
        else:
            axes = (0, *(None if x is None else 0 for x in batch))
            with sdpa_kernel(SDPBackend.MATH):  # vmap has no rule for the fused kernels, and falls back to a slow loop
                losses = torch.func.vmap(loss_of, axes, randomness="different")(stacked, *batch)  # (S,)
        optimizer.zero_grad(set_to_none=True)
        losses.sum().backward()
        optimizer.step()
        found = losses.tolist()
        if not all(map(math.isfinite, found)):
            which = [s for s, loss in enumerate(found) if not math.isfinite(loss)]
            raise NotFiniteError(f"step {step}: the loss of seed(s) {which} is not finite; lower learning_rate")
        if after is not None:
            _put_back(matchers, stacked)
            after(step, found)
    _put_back(matchers, stacked)


@torch.no_grad()
def _put_back(matchers: Sequence[Matcher], stacked: dict[str, Tensor]) -> None:
    for s, matcher in enumerate(matchers):
        for name, value in stacked.items():
            matcher.get_parameter(name).copy_(value[s])
