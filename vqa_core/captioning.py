"""Captioning: a picture goes in, a sentence comes out. Encoder, decoder with attention, greedy search, beam search.

This is the third kind of representation beside joint and coordinated ones: *encoder–decoder* (Vinyals et al. 2015,
arXiv 1411.4555; with attention: Xu et al. 2015, arXiv 1502.03044; with transformer blocks: Vaswani et al. 2017,
arXiv 1706.03762).
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vqa_core.data.text import PAD, UNKNOWN, Vocabulary, encode_questions, tokenize
from vqa_core.fusion.blocks import FeedForward, MultiHeadAttention

START, END = "<start>", "<end>"
PAD_ID, UNKNOWN_ID, START_ID, END_ID = range(4)
NEVER_SAID = [PAD_ID, UNKNOWN_ID, START_ID]


def caption_vocabulary(captions: Iterable[str]) -> Vocabulary:
    """Words of training captions, sorted, after ``<pad>`` (0), ``<unk>`` (1), ``<start>`` (2) and ``<end>`` (3)."""
    words = sorted({word for caption in captions for word in tokenize(caption)})
    return Vocabulary([PAD, UNKNOWN, START, END, *words], unknown=UNKNOWN)


def encode_captions(captions: Sequence[str], vocabulary: Vocabulary) -> tuple[Tensor, Tensor]:
    """Captions → long (n, T) ids from ``<start>`` to ``<end>``, padded with 0, and their mask, bool (n, T)."""
    inner, real = (torch.from_numpy(a) for a in encode_questions(captions, vocabulary))  # (n, T − 2)
    words = F.pad(inner, (1, 1))  # (n, T)
    words[:, 0] = START_ID
    words.scatter_(1, real.sum(1, keepdim=True) + 1, END_ID)
    return words, torch.arange(words.shape[1]) < real.sum(1, keepdim=True) + 2


def decode_captions(words: Tensor, vocabulary: Vocabulary) -> list[str]:
    """Ids (n, T) → sentences; ``<start>`` is left out, and so is what follows ``<end>``."""
    sentences = []
    for row in words.tolist():
        row = row[1:] if row and row[0] == START_ID else row
        row = row[: row.index(END_ID)] if END_ID in row else [i for i in row if i != PAD_ID]
        sentences.append(" ".join(vocabulary.symbols[i] for i in row))
    return sentences


# ------------------------------------------------------------------------------------------------------- the decoder


class CausalAttention(MultiHeadAttention):
    """Self-attention in which a word reads itself and the words before it, and none after it."""

    def forward(self, x: Tensor) -> Tensor:
        """Words (B, T, D) → (B, T, D). Padding comes after the words, so that no word can see it: no mask is needed."""
        q, k, v = self.query(x), self.key(x), self.value(x)  # (B, T, D) each
        q, k, v = (t.unflatten(-1, (self.heads, -1)).transpose(1, 2) for t in (q, k, v))  # (B, H, T, d)
        dropout = self.dropout if self.training else 0.0
        read = F.scaled_dot_product_attention(q, k, v, dropout_p=dropout, is_causal=True)  # (B, H, T, d)
        return self.out(read.transpose(1, 2).flatten(2))  # (B, T, D)


class DecoderBlock(nn.Module):
    """Pre-norm block: words read the words before them, then the picture, then comes the feed-forward part.

    Parameters
    ----------
    dim, heads, mlp_ratio, dropout
        See :class:`~vqa_core.fusion.blocks.TransformerBlock`.
    """

    def __init__(self, dim: int, heads: int, mlp_ratio: float = 4.0, dropout: float = 0.0) -> None:
        super().__init__()
        self.self_norm, self.cross_norm, self.mlp_norm = (nn.LayerNorm(dim) for _ in range(3))
        self.self_attention = CausalAttention(dim, heads, dropout)
        self.cross_attention = MultiHeadAttention(dim, heads, dropout)
        self.mlp = FeedForward(dim, mlp_ratio, dropout)

    def forward(
        self, x: Tensor, image: Tensor, image_mask: Tensor | None = None, need_weights: bool = False
    ) -> tuple[Tensor, Tensor | None]:
        """Words (B, T, D) and image tokens (B, N, D) → words (B, T, D) and cross weights (B, H, T, N) or None."""
        x = x + self.self_attention(self.self_norm(x))
        read, weights = self.cross_attention(self.cross_norm(x), image, image_mask, need_weights)  # (B, T, D)
        x = x + read
        return x + self.mlp(self.mlp_norm(x)), weights


class Captioned(NamedTuple):
    """What :class:`Captioner` returns.

    Attributes
    ----------
    logits
        (B, T, V): of the word *after* each place.
    attention
        (B, H, T, N) where the last layer looked before it said that word, or None in training.
    """

    logits: Tensor
    attention: Tensor | None


class Captioner(nn.Module):
    """Image encoder, and a transformer decoder that says the caption word by word.

    Parameters
    ----------
    image_encoder
        Pictures → :class:`~vqa_core.encoders.tokens.Tokens`; with an ``out_dim``.
    vocabulary_size
        Size of a :func:`caption_vocabulary`.
    dim, depth, heads
        Features of a word inside, layers, attention heads.
    max_words
        Longest caption, with ``<start>`` and ``<end>``.
    dropout
        Probability, inside the layers.
    """

    def __init__(
        self,
        image_encoder: nn.Module,
        vocabulary_size: int,
        dim: int = 64,
        depth: int = 2,
        heads: int = 4,
        max_words: int = 32,
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        self.image_encoder = image_encoder
        self.project = nn.Linear(image_encoder.out_dim, dim)
        self.image_norm = nn.LayerNorm(dim)
        self.words = nn.Embedding(vocabulary_size, dim, padding_idx=PAD_ID)
        self.positions = nn.Parameter(torch.randn(max_words, dim) * 0.02)
        self.blocks = nn.ModuleList(DecoderBlock(dim, heads, dropout=dropout) for _ in range(depth))
        self.norm = nn.LayerNorm(dim)
        self.head = nn.Linear(dim, vocabulary_size)

    def look(self, pictures: Tensor) -> tuple[Tensor, Tensor | None]:
        """Pictures (B, …) → image tokens (B, N, D) as the decoder reads them, and their mask; once per picture."""
        tokens, mask = self.image_encoder(pictures)
        return self.image_norm(self.project(tokens)), mask  # (B, N, D)

    def say(self, image: Tensor, image_mask: Tensor | None, words: Tensor) -> Captioned:
        """Image tokens (B, N, D) and the words so far (B, T) → the word after each of them."""
        if words.shape[1] > len(self.positions):
            raise ValueError(f"captions of {words.shape[1]} words; this captioner has max_words={len(self.positions)}")
        x, attention = self.words(words) + self.positions[: words.shape[1]], None  # (B, T, D)
        for block in self.blocks:
            wanted = not self.training and block is self.blocks[-1]
            x, attention = block(x, image, image_mask, need_weights=wanted)
        return Captioned(self.head(self.norm(x)), attention)

    def forward(self, pictures: Tensor, words: Tensor) -> Captioned:
        """Teacher forcing: pictures (B, …) and true words (B, T) → logits (B, T, V) of the word after each place."""
        return self.say(*self.look(pictures), words)


def caption_loss(model: Captioner, pictures: Tensor, words: Tensor, mask: Tensor) -> Tensor:
    """Nats per word, given the picture and the true words before it (teacher forcing); ``<end>`` counts as a word.

    Parameters
    ----------
    model
        Anything called as :class:`Captioner` is.
    pictures
        (B, …).
    words, mask
        From :func:`encode_captions`: long (B, T), bool (B, T).
    """
    target = words[:, 1:].masked_fill(~mask[:, 1:], -100)  # (B, T − 1)
    logits = model(pictures, words[:, :-1]).logits  # (B, T − 1, V)
    return F.cross_entropy(logits.flatten(0, 1).float(), target.flatten(), ignore_index=-100)


# ------------------------------------------------------------------------------------------------------- the search


class Said(NamedTuple):
    """Captions that were found.

    Attributes
    ----------
    words
        long (B, T), from ``<start>`` on; padding (0) after ``<end>``.
    log_probability
        (B,) of the whole caption, with ``<end>`` where it was reached; nats.
    """

    words: Tensor
    log_probability: Tensor


@torch.no_grad()
def greedy(model: Captioner, pictures: Tensor, max_words: int = 24, prompt: Sequence[int] = ()) -> Said:
    """Always the most probable next word, until ``<end>`` or ``max_words`` words (``<start>`` not counted).

    Parameters
    ----------
    model
        In ``eval`` mode.
    pictures
        (B, …).
    max_words
        A caption that has not ended by then is cut.
    prompt
        Ids of words with which every caption begins, and whose probability does not count.
    """
    image, image_mask = model.look(pictures)  # (B, N, D)
    words = _begin(len(image), prompt, image.device)  # (B, 1 + prompt)
    total, open_ = image.new_zeros(len(image)), torch.ones(len(image), dtype=torch.bool, device=image.device)
    while open_.any() and words.shape[1] <= max_words:
        step = _next_word(model.say(image, image_mask, words).logits[:, -1])  # (B, V)
        best, word = step.max(1)
        words = torch.cat([words, torch.where(open_, word, PAD_ID).unsqueeze(1)], dim=1)  # (B, T + 1)
        total = total + torch.where(open_, best, 0.0)
        open_ = open_ & (word != END_ID)
    return Said(words, total)


@torch.no_grad()
def beam_search(
    model: Captioner,
    pictures: Tensor,
    width: int = 4,
    max_words: int = 24,
    prompt: Sequence[int] = (),
    length_power: float = 0.0,
) -> Said:
    """The most probable caption among those that a beam of ``width`` unfinished sentences leads to.

    Parameters
    ----------
    model, pictures, max_words, prompt
        See :func:`greedy`, which is the case ``width=1``.
    width
        Sentences that are followed at the same time.
    length_power
        The winner has the highest log-probability divided by its length to this power (Wu et al. 2016,
        arXiv 1609.08144, up to a constant). 0 compares plain probabilities, which favours short captions.
    """
    if width < 1:
        raise ValueError(f"width is {width}, it must be at least 1")
    image, image_mask = model.look(pictures)  # (B, N, D)
    batch = len(image)
    image = image.repeat_interleave(width, dim=0)  # (B · W, N, D)
    image_mask = None if image_mask is None else image_mask.repeat_interleave(width, dim=0)
    words = _begin(batch, prompt, image.device).repeat_interleave(width, dim=0).unflatten(0, (batch, width))
    total = image.new_full((batch, width), -torch.inf)
    total[:, 0] = 0.0  # all beams are equal yet: one of them counts
    open_ = torch.ones(batch, width, dtype=torch.bool, device=image.device)
    while open_.any() and words.shape[-1] <= max_words:
        step = _next_word(model.say(image, image_mask, words.flatten(0, 1)).logits[:, -1])  # (B · W, V)
        step = step.unflatten(0, (batch, width))  # (B, W, V)
        closed = torch.full_like(step, -torch.inf)
        closed[..., PAD_ID] = 0.0  # a finished sentence goes on with padding, at no cost
        step = torch.where(open_.unsqueeze(-1), step, closed)
        total, best = (total.unsqueeze(-1) + step).flatten(1).topk(width, dim=1)  # (B, W), into W · V
        beam, word = best // step.shape[-1], best % step.shape[-1]  # (B, W) each
        words = torch.cat([_rows(words, beam), word.unsqueeze(-1)], dim=-1)  # (B, W, T + 1)
        open_ = open_.gather(1, beam) & (word != END_ID) & (word != PAD_ID)
    length = (words != PAD_ID).sum(-1) - 1 - len(prompt)  # (B, W)
    winner = (total / length.clamp(min=1) ** length_power).argmax(1, keepdim=True)  # (B, 1)
    return Said(_rows(words, winner).squeeze(1), total.gather(1, winner).squeeze(1))


def _begin(batch: int, prompt: Sequence[int], device: torch.device) -> Tensor:
    """``<start>`` and the prompt, long (B, 1 + prompt)."""
    return torch.tensor([[START_ID, *prompt]], device=device).repeat(batch, 1)


def _next_word(logits: Tensor) -> Tensor:
    """Log-probabilities (B, V) of the next word; padding, ``<unk>`` and ``<start>`` are never said."""
    logits = logits.float().clone()
    logits[:, NEVER_SAID] = -torch.inf
    return logits.log_softmax(-1)


def _rows(words: Tensor, beam: Tensor) -> Tensor:
    """Sentences (B, W, T) of the beams (B, K) → (B, K, T)."""
    return words.gather(1, beam.unsqueeze(-1).expand(-1, -1, words.shape[-1]))
