"""Pretext tasks: questions that data ask about themselves, whose answers nobody had to write down.

- **Masked language modelling** (MLM): some words are covered and have to be named (:func:`mask_words`).
- **Image–text matching** (ITM): does this sentence belong to this picture? (:func:`mismatch`)
- **Ordering**: shuffled pieces have to be told their places (:func:`shuffle_pieces`).

Each function damages an input and says what the right answer is; labels of −100 do not count, as everywhere.
:class:`PretextModel` is one transformer over both modalities that does all three; its losses are weighted by
:mod:`vqa_core.training.weighting`. Masked autoencoding of pictures is in :mod:`vqa_core.encoders.masked_autoencoder`.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vqa_core.encoders.text import BagOfWords, check_words
from vqa_core.fusion.single_stream import SingleStream

IGNORED = -100  # a label that does not count
TASKS = ("mlm", "itm", "order")

# ----------------------------------------------------------------------------------------- what is done to the input


def mask_words(
    words: Tensor,
    mask: Tensor,
    mask_id: int,
    vocabulary_size: int,
    specials: int,
    share: float = 0.15,
    generator: torch.Generator | None = None,
) -> tuple[Tensor, Tensor]:
    """Cover words as BERT does (Devlin et al. 2019, arXiv 1810.04805): 15 %, of which 80 % become the mask symbol.

    Of the chosen words another 10 % become a random word, and 10 % stay as they are, so that the model can trust no
    word it sees. As in the published code the *number* of chosen words is fixed: max(1, round(share · length)) in each
    sentence.

    Parameters
    ----------
    words, mask
        Word ids, long (B, T), and bool (B, T), True at real words. Padding is never chosen.
    mask_id
        Id of the mask symbol.
    vocabulary_size, specials
        Random words have ids from ``specials`` (below are padding, unknown, mask …) to ``vocabulary_size`` − 1.
    share
        Of a sentence's words, above 0 and at most 1.
    generator
        Of the random numbers, on the CPU.

    Returns
    -------
    damaged : long (B, T)
        What the model reads.
    targets : long (B, T)
        The word that was there, at chosen places; −100 elsewhere.
    """
    check_words(words, mask)
    if not 0 < share <= 1:
        raise ValueError(f"share is {share}; cover more than 0 and at most 1 of the words")
    if not 0 <= mask_id < vocabulary_size or not 0 <= specials < vocabulary_size:
        raise ValueError(
            f"mask_id is {mask_id} and specials is {specials}; both must lie within {vocabulary_size} words"
        )
    number = (share * mask.sum(1)).round().clamp(min=1)  # (B,)
    chance = torch.rand(words.shape, generator=generator).to(words.device)
    rank = chance.masked_fill(~mask, 2.0).argsort(1).argsort(1)  # (B, T), real words first, in random order
    chosen = (rank < number.unsqueeze(1)) & mask
    fate = torch.rand(words.shape, generator=generator).to(words.device)
    other = torch.randint(specials, vocabulary_size, words.shape, generator=generator).to(words.device)
    damaged = torch.where(chosen & (fate < 0.8), mask_id, words)
    damaged = torch.where(chosen & (fate >= 0.8) & (fate < 0.9), other, damaged)
    return damaged, torch.where(chosen, words, IGNORED)


def mismatch(true: Tensor, share: float = 0.5, generator: torch.Generator | None = None) -> tuple[Tensor, Tensor]:
    """Pair some pictures with sentences that are *not* true of them.

    A sentence of another picture may happen to describe this one too ("there is a red thing"). Such an accidental
    positive would be labelled as wrong; ``true`` says where they are, and they are never drawn.

    Parameters
    ----------
    true
        bool (B, B): whether sentence j is true of picture i; the diagonal is, since sentence i came with picture i.
    share
        Of the pictures, which get another sentence; from 0 to 1.
    generator
        Of the random numbers, on the CPU.

    Returns
    -------
    sentences : long (B,)
        The sentence that picture i is shown with.
    matches : long (B,)
        1 where it is true, 0 where not. A picture of which every sentence of the batch is true keeps its own.
    """
    if true.dtype != torch.bool or true.ndim != 2 or true.shape[0] != true.shape[1]:
        raise ValueError(
            f"true is {true.dtype} {tuple(true.shape)}; give bool (B, B): is sentence j true of picture i?"
        )
    if not true.diagonal().all():
        wrong = int((~true.diagonal()).nonzero()[0])
        raise ValueError(f"sentence {wrong} is said not to be true of picture {wrong}, with which it came")
    if not 0 <= share <= 1:
        raise ValueError(f"share is {share}, it must be within 0 to 1")
    size = len(true)
    scores = torch.rand(size, size, generator=generator).to(true.device).masked_fill(true, -1.0)
    best, drawn = scores.max(1)  # (B,), uniform among the sentences that are false
    swap = (torch.rand(size, generator=generator).to(true.device) < share) & (best >= 0)
    return torch.where(swap, drawn, torch.arange(size, device=true.device)), (~swap).long()


def shuffle_pieces(mask: Tensor, generator: torch.Generator | None = None) -> tuple[Tensor, Tensor]:
    """A random order of the real pieces of each row; padding stays where it is.

    Parameters
    ----------
    mask
        bool (B, N), True at real pieces.
    generator
        Of the random numbers, on the CPU.

    Returns
    -------
    order : long (B, N)
        Place k is to show piece ``order[:, k]``: ``pieces.gather(1, order)`` shuffles ids (B, N).
    targets : long (B, N)
        The place where the shown piece belongs, which is ``order`` itself; −100 at padding.
    """
    chance = torch.rand(mask.shape, generator=generator).to(mask.device)
    place = torch.arange(mask.shape[1], device=mask.device).expand_as(mask)  # (B, N)
    drawn = chance.masked_fill(~mask, 2.0).argsort(1)  # (B, N): the real pieces in random order, then the others
    slot = place.masked_fill(~mask, mask.shape[1]).sort(1).values  # (B, N): their places in ascending order, then N
    order = torch.cat([place, place[:, :1]], 1).scatter(1, slot, drawn)[:, :-1]  # (B, N); column N is thrown away
    return order, torch.where(mask, order, IGNORED)


# ------------------------------------------------------------------------------------------------ how it is measured


def label_loss(logits: Tensor, targets: Tensor) -> Tensor:
    """Cross-entropy (nats) of logits (…, K) with targets (…), over those that are not −100."""
    return F.cross_entropy(logits.flatten(0, -2).float(), targets.flatten(), ignore_index=IGNORED)


def right_labels(logits: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
    """Which labels are right and which count: bool (…) twice."""
    return logits.argmax(-1) == targets, targets != IGNORED


def order_chance(mask: Tensor) -> float:
    """Share of right places that guessing one of a row's own n places gives: the mean of 1/n over all real pieces."""
    number = mask.sum(1)
    return float((number > 0).sum() / number.sum())


def only_real_places(logits: Tensor, mask: Tensor) -> Tensor:
    """Logits (B, N, P) of places, −∞ at places that a row does not have: its pieces can only be at its n places.

    P ≥ N; ``mask`` is bool (B, N), True at real pieces.
    """
    there = F.pad(mask, (0, logits.shape[-1] - mask.shape[1]))  # (B, P)
    return logits.masked_fill(~there.unsqueeze(1), torch.finfo(logits.dtype).min)


# ------------------------------------------------------------------------------------------------------- one model


class PretextModel(nn.Module):
    """One transformer over image tokens and words, with a head for each pretext task.

    As in UNITER (Chen et al. 2020, arXiv 1909.11740) the picture is a set of tokens of named regions, words and regions
    form one sequence, and MLM, ITM and an ordering task are trained together. The words' ordering task shows them
    without their positions and asks where each belongs.

    Parameters
    ----------
    image_dim
        Features of an image token.
    vocabulary_size
        Number of words, with padding (id 0), unknown and mask.
    dim, depth, heads
        Features of a token, layers, attention heads.
    max_words
        Longest sentence.
    """

    def __init__(
        self, image_dim: int, vocabulary_size: int, dim: int = 64, depth: int = 2, heads: int = 4, max_words: int = 32
    ) -> None:
        super().__init__()
        self.words = BagOfWords(vocabulary_size, dim)
        self.fusion = SingleStream(image_dim, dim, dim, depth, heads, max_words)
        self.word_head = nn.Linear(dim, vocabulary_size)
        self.match_head = nn.Linear(dim, 2)
        self.place_head = nn.Linear(dim, max_words)

    def _fuse(self, image: Tensor, image_mask: Tensor | None, words: Tensor, mask: Tensor, ordered: bool = True):
        tokens, _ = self.words(words, mask)  # (B, T, D)
        return self.fusion(image, tokens, image_mask, mask, ordered=ordered)

    def name_words(self, image: Tensor, image_mask: Tensor | None, words: Tensor, mask: Tensor) -> Tensor:
        """Image tokens (B, N, image_dim) with mask (B, N), words (B, T) with mask → logits (B, T, V) of each word."""
        return self.word_head(self._fuse(image, image_mask, words, mask).text)

    def match(self, image: Tensor, image_mask: Tensor | None, words: Tensor, mask: Tensor) -> Tensor:
        """Logits (B, 2) of "not true" and "true"; inputs as for :meth:`name_words`."""
        return self.match_head(self._fuse(image, image_mask, words, mask).fused)

    def places(self, image: Tensor, image_mask: Tensor | None, words: Tensor, mask: Tensor) -> Tensor:
        """Logits (B, T, max_words) of the place of each word; the order in which they are given does not matter."""
        return only_real_places(self.place_head(self._fuse(image, image_mask, words, mask, ordered=False).text), mask)
