"""Does the answer hang on what a map points at? Image tokens are removed, or put in, in the order of the map.

A removed token is masked: the model sees a picture with fewer tokens, none that is blackened. All questions and all
numbers of removed tokens go through the model together.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn

from vqa_core.data.types import Batch

ROWS = 4096  # questions × removals that go through the model at a time


class Curves(NamedTuple):
    """Probability of the explained answer while tokens go or come, the most important first.

    Attributes
    ----------
    deletion
        (B, J + 1): after j / J of a picture's tokens are removed (Petsiuk et al. 2018, arXiv 1806.07421).
    insertion
        (B, J + 1): with j / J of them and no others.
    deletion_area, insertion_area
        (B,), areas under the two in [0, 1]. A good map has a small first and a large second one.
    """

    deletion: Tensor
    insertion: Tensor
    deletion_area: Tensor
    insertion_area: Tensor


class Drops(NamedTuple):
    """How much the probability of the explained answer falls, (B,) each, when a share of the tokens is removed.

    Attributes
    ----------
    attended
        Those with the highest weights of the map.
    random
        As many at random, the mean over disjoint draws.
    best
        Those whose removal one by one (occlusion) lowers the probability most.
    """

    attended: Tensor
    random: Tensor
    best: Tensor


class Remover:
    """A model that answers with some of the image tokens only; the encoders run once.

    Parameters
    ----------
    model
        A :class:`~vqa_core.model.VQAModel`; used in evaluation mode, as it is.
    sample
        B questions; ``answers`` are not read.
    targets
        long (B,), whose probability is wanted; by default the model's own answers.

    Attributes
    ----------
    real
        bool (B, N), True at image tokens that are no padding.
    whole
        (B,), probability with all tokens.
    """

    @torch.no_grad()
    def __init__(self, model: nn.Module, sample: Batch, targets: Tensor | None = None) -> None:
        self.model = model.eval()
        self.image = model.image_encoder(sample.pictures)
        self.text = model.text_encoder(sample.words, sample.word_mask)
        shape = self.image.tokens.shape[:2]  # (B, N)
        self.real = torch.ones(shape, dtype=torch.bool) if self.image.mask is None else self.image.mask
        logits = self._logits(torch.arange(len(self.real)), self.real)
        self.targets = logits.argmax(-1) if targets is None else targets
        self.whole = self._of_targets(logits, self.targets)

    @torch.no_grad()
    def probability(self, keep: Tensor) -> Tensor:
        """Probability of the answers when only the tokens of ``keep``, bool (K, B, N), are there: (K, B)."""
        if keep.ndim != 3 or keep.shape[1:] != self.real.shape:
            raise ValueError(f"keep is {tuple(keep.shape)}; give bool (K, {', '.join(map(str, self.real.shape))})")
        k, b = keep.shape[:2]
        every, which = (keep & self.real).flatten(0, 1), torch.arange(b).repeat(k)  # (K · B, N), (K · B,)
        parts = [
            self._of_targets(self._logits(rows, some), self.targets[rows])
            for rows, some in zip(which.split(ROWS), every.split(ROWS))
        ]
        return torch.cat(parts).unflatten(0, (k, b))  # (K, B)

    def _logits(self, rows: Tensor, mask: Tensor) -> Tensor:
        text_mask = None if self.text.mask is None else self.text.mask[rows]
        fused = self.model.fusion(self.image.tokens[rows], self.text.tokens[rows], mask, text_mask).fused
        return self.model.head(fused)  # (R, answers)

    @staticmethod
    def _of_targets(logits: Tensor, targets: Tensor) -> Tensor:
        return logits.softmax(-1).gather(1, targets.unsqueeze(1)).squeeze(1)  # (R,)


def ranks(weights: Tensor, real: Tensor, seed: int = 0) -> Tensor:
    """Place of each token when sorted by weight, the highest 0, long (B, N); padding comes after all real tokens.

    Equal weights are ordered at random.
    """
    if weights.shape != real.shape:
        raise ValueError(f"weights are {tuple(weights.shape)}, the image tokens {tuple(real.shape)}")
    chance = torch.rand(weights.shape, generator=torch.Generator().manual_seed(seed))
    order = chance.argsort(dim=1)  # a random order first; the sorts after it keep the order of equals
    order = order.gather(1, weights.gather(1, order).argsort(dim=1, descending=True, stable=True))
    order = order.gather(1, (~real).long().gather(1, order).argsort(dim=1, stable=True))  # (B, N)
    return order.argsort(dim=1)


def curves(remover: Remover, maps: Tensor, steps: int | None = None, seed: int = 0) -> Curves:
    """Deletion and insertion by one map for each question.

    Parameters
    ----------
    remover
        The model and its questions.
    maps
        (B, N), weights of the image tokens.
    steps
        J; by default N, which takes tokens one by one. With fewer, several go at once.
    seed
        Of the order of equal weights.

    Notes
    -----
    Areas are those of the trapezoids between whole numbers of tokens, over the share of the picture's own n tokens.
    """
    steps = steps or maps.shape[1]
    n = remover.real.sum(1)  # (B,)
    counts = (torch.arange(steps + 1).unsqueeze(1) * n / steps).round().long()  # (J + 1, B)
    among_first = ranks(maps, remover.real, seed) < counts.unsqueeze(-1)  # (J + 1, B, N)
    p = remover.probability(torch.cat([~among_first, among_first]))  # (2 (J + 1), B)
    deletion, insertion = p.unflatten(0, (2, -1)).unbind(0)  # (J + 1, B) each
    share = counts / n.clamp(min=1)  # (J + 1, B)
    areas = (torch.trapezoid(y, share, dim=0) for y in (deletion, insertion))  # (B,) each
    return Curves(deletion.T, insertion.T, *areas)


def how_many(real: Tensor, share: float) -> Tensor:
    """How many of each picture's real tokens are a share of them, rounded, at least 1: long (B,)."""
    if not 0 < share < 1:
        raise ValueError(f"share is {share}, it must lie between 0 and 1, both excluded")
    return (real.sum(1) * share).round().long().clamp(min=1)


def drops(remover: Remover, maps: Tensor, share: float = 0.2, seed: int = 0) -> Drops:
    """What the removal of a share of the tokens does: those that a map ranks first, random ones, the best by occlusion.

    Parameters
    ----------
    remover
        The model and its questions.
    maps
        (B, N), weights of the image tokens.
    share
        Of each picture's real tokens, see :func:`how_many`.
    seed
        Of the random draws and the order of equal weights.

    Notes
    -----
    A random order of the tokens is dealt out in disjoint hands, as many as there are, so that every token is removed
    equally often; for hands of one token the mean over hands is the exact expectation.
    """
    real, k = remover.real, how_many(remover.real, share).unsqueeze(1)  # (B, N), (B, 1)
    first = ranks(maps, real, seed) < k  # (B, N)
    alone = torch.eye(real.shape[1], dtype=torch.bool).unsqueeze(1).expand(-1, len(real), -1)  # (N, B, N)
    one_by_one = remover.whole.unsqueeze(1) - remover.probability(~alone).T  # (B, N)
    best = ranks(one_by_one, real, seed) < k  # (B, N)
    hand = ranks(torch.zeros_like(maps), real, seed + 1) // k  # (B, N), which hand a token is dealt to
    whole_hands = (real.sum(1) // k.squeeze(1)).clamp(min=1)  # (B,)
    dealt = torch.stack([hand == h for h in range(int(whole_hands.max()))])  # (P, B, N)
    after = remover.whole - remover.probability(~dealt)  # (P, B)
    counts = torch.arange(len(dealt)).unsqueeze(1) < whole_hands  # (P, B)
    random = (after * counts).sum(0) / whole_hands  # (B,)
    attended, best = remover.whole - remover.probability(torch.stack([~first, ~best]))  # (B,) each
    return Drops(attended, random, best)


def faithfulness(drops: Drops) -> float:
    """(mean attended − mean random) / mean best: 0 for a map that knows nothing, near 1 for one that knows all.

    A map that is as good as occlusion gives 1 − random / best.
    """
    attended, random, best = (float(d.mean()) for d in drops)
    if best <= 0:
        raise ValueError(f"removing the best tokens changes the probability by {-best:+.3g}: there is nothing to share")
    return (attended - random) / best
