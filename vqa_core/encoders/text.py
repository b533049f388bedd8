"""Text encoders trained from scratch: a bag of words, recurrent networks, a small transformer."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from vqa_core.encoders.tokens import Tokens


def check_words(words: Tensor, mask: Tensor) -> None:
    """Raise ``ValueError`` unless words are whole numbers (B, N) and the mask is bool of the same shape."""
    if words.ndim != 2 or words.is_floating_point():
        raise ValueError(f"words is {words.dtype} {tuple(words.shape)}; give word ids, long (B, N)")
    if mask.dtype != torch.bool or mask.shape != words.shape:
        raise ValueError(f"word_mask is {mask.dtype} {tuple(mask.shape)}; give bool {tuple(words.shape)}")


class BagOfWords(nn.Module):
    """Word embeddings and nothing else: the mean of the tokens does not know the order of the words.

    Parameters
    ----------
    vocabulary_size
        Number of words, with padding (id 0) and the unknown word.
    dim
        D, features of an embedding.
    """

    def __init__(self, vocabulary_size: int, dim: int) -> None:
        super().__init__()
        self.out_dim = dim
        self.embedding = nn.Embedding(vocabulary_size, dim, padding_idx=0)

    def forward(self, words: Tensor, word_mask: Tensor) -> Tokens:
        """Word ids (B, N) with their mask → embeddings (B, N, dim) with the same mask."""
        check_words(words, word_mask)
        return Tokens(self.embedding(words), word_mask)  # (B, N, dim)


class RecurrentText(nn.Module):
    """Word embeddings read from left to right by a GRU or an LSTM; a token is the state after its word.

    It reads one way only, so that what follows the last word (padding) cannot change the states before it, and the
    state at the last word (:func:`~vqa_core.fusion.output.last_token`) has read the whole question. No packing needed.

    Parameters
    ----------
    vocabulary_size
        Number of words, with padding (id 0) and the unknown word.
    dim
        D, features of a state.
    kind
        ``"gru"`` (Cho et al. 2014, arXiv 1406.1078) or ``"lstm"`` (Hochreiter and Schmidhuber 1997).
    embedding_dim
        Features of a word embedding; ``None`` takes dim.
    layers
        Recurrent layers on top of each other.
    dropout
        Probability of dropping a feature of a word embedding.
    """

    def __init__(
        self,
        vocabulary_size: int,
        dim: int,
        kind: str = "gru",
        embedding_dim: int | None = None,
        layers: int = 1,
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        if kind not in ("gru", "lstm"):
            raise ValueError(f"kind is {kind!r}, allowed are 'gru' and 'lstm'")
        embedding_dim = embedding_dim or dim
        self.out_dim = dim
        self.embedding = nn.Embedding(vocabulary_size, embedding_dim, padding_idx=0)
        self.dropout = nn.Dropout(dropout)
        recurrent = nn.GRU if kind == "gru" else nn.LSTM
        self.recurrent = recurrent(embedding_dim, dim, num_layers=layers, batch_first=True)

    def forward(self, words: Tensor, word_mask: Tensor) -> Tokens:
        """Word ids (B, N) with their mask, padding after the words → states (B, N, dim) with the same mask."""
        check_words(words, word_mask)
        embedded = self.dropout(self.embedding(words))  # (B, N, embedding_dim)
        states, _ = self.recurrent(embedded)  # (B, N, dim)
        return Tokens(states, word_mask)


class TransformerText(nn.Module):
    """Word and position embeddings, then pre-norm transformer layers in which every word reads every word.

    Parameters
    ----------
    vocabulary_size
        Number of words, with padding (id 0) and the unknown word.
    dim
        D, features of a token; a multiple of heads.
    depth, heads
        Number of layers, attention heads in each.
    max_words
        Longest question that has positions.
    dropout
        Probability, inside the layers.
    """

    def __init__(
        self,
        vocabulary_size: int,
        dim: int,
        depth: int = 2,
        heads: int = 4,
        max_words: int = 64,
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        if dim % heads:
            raise ValueError(f"dim={dim} is not a multiple of heads={heads}")
        self.out_dim = dim
        self.embedding = nn.Embedding(vocabulary_size, dim, padding_idx=0)
        self.positions = nn.Parameter(torch.randn(max_words, dim) * 0.02)
        self.layers = nn.ModuleList(
            nn.TransformerEncoderLayer(dim, heads, 4 * dim, dropout, "gelu", batch_first=True, norm_first=True)
            for _ in range(depth)
        )
        self.norm = nn.LayerNorm(dim)

    def forward(self, words: Tensor, word_mask: Tensor) -> Tokens:
        """Word ids (B, N) with their mask → tokens (B, N, dim) with the same mask; each row needs a real word."""
        check_words(words, word_mask)
        if words.shape[1] > len(self.positions):
            raise ValueError(f"questions of {words.shape[1]} words; this encoder has max_words={len(self.positions)}")
        x = self.embedding(words) + self.positions[: words.shape[1]]  # (B, N, dim)
        for layer in self.layers:
            x = layer(x, src_key_padding_mask=~word_mask)  # (B, N, dim)
        return Tokens(self.norm(x), word_mask)
