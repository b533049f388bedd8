"""Word vectors made before: GloVe's text files, the published array for VQA-RAD, and a text encoder that uses them."""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from vqa_core.data.text import Vocabulary
from vqa_core.encoders.conversion import unpickle
from vqa_core.encoders.text import RecurrentText


class WordVectors(NamedTuple):
    """Words and their vectors.

    Attributes
    ----------
    words
        n different words.
    vectors
        float32 (n, D).
    source
        The file they came from, for messages and records.
    """

    words: tuple[str, ...]
    vectors: np.ndarray
    source: str


def read_glove(path: str | Path, words: Collection[str] | None = None) -> WordVectors:
    """GloVe's text format (Pennington et al. 2014, doi 10.3115/v1/D14-1162): each line a word and D numbers.

    Parameters
    ----------
    path
        For example ``glove.6B.300d.txt``, UTF-8. D is that of the first line.
    words
        Keep only these, so that 400,000 vectors need not be in memory; ``None`` keeps all.

    Raises
    ------
    FileNotFoundError
        When there is no such file.
    ValueError
        At a damaged line; names file, line and what is wrong.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"{path} is missing; unpack glove.6B.zip (nlp.stanford.edu/projects/glove) there")
    wanted = None if words is None else set(words)
    found: dict[str, np.ndarray] = {}
    dim = 0
    with path.open("rb") as lines:  # bytes: some words are characters at which text mode would end the line
        for number, raw in enumerate(lines, start=1):
            where = f"{path}, line {number}"
            try:
                fields = raw.decode("utf-8").rstrip("\n").split(" ")
            except UnicodeDecodeError as error:
                raise ValueError(f"{where}: not UTF-8 text ({error}); get the file again") from error
            dim = dim or len(fields) - 1
            if dim < 2:
                raise ValueError(f"{where}: {raw[:40]!r}; expected a word and its numbers, without a header line")
            if len(fields) <= dim:
                raise ValueError(f"{where}: {len(fields) - 1} numbers, the first line has {dim}; get the file again")
            word = " ".join(fields[:-dim])  # a few words of glove.840B contain spaces
            if wanted is not None and word not in wanted:
                continue
            try:
                vector = np.array(fields[-dim:], dtype=np.float32)
            except ValueError as error:
                raise ValueError(f"{where}: {word!r} has something else than numbers ({error})") from error
            if not np.isfinite(vector).all():
                raise ValueError(f"{where}: the vector of {word!r} has NaN or infinite numbers")
            if word in found:
                raise ValueError(f"{where}: {word!r} has a vector already; get the file again")
            found[word] = vector
    if not dim:
        raise ValueError(f"{path} is empty; get the file again")
    vectors = np.stack(list(found.values())) if found else np.zeros((0, dim), dtype=np.float32)  # (n, D)
    return WordVectors(tuple(found), vectors, str(path))


def read_mevf(folder: str | Path) -> WordVectors:
    """The word vectors published with MEVF (Nguyen et al. 2019, arXiv 1909.11867): GloVe 6B for the words of VQA-RAD.

    Row i of ``glove6b_init_300d.npy`` (1177, 300) is the vector of word i of ``dictionary.pkl``. Rows of zeros are
    words that GloVe does not have (155, of which 58 are no plain words: "image)", "near/in"); they are left out here,
    so that they count as missing. Words that its questions only have in a compound ("light" in "hi-light") are not in
    the array either, although GloVe has them.

    Parameters
    ----------
    folder
        ``mevf_weights`` beside the data set. The pickle is read by :func:`~vqa_core.encoders.conversion.unpickle`,
        which runs nothing.
    """
    matrix_path, words_path = Path(folder) / "glove6b_init_300d.npy", Path(folder) / "dictionary.pkl"
    for path in (matrix_path, words_path):
        if not path.is_file():
            raise FileNotFoundError(f"{path} is missing; put the files published with MEVF into {folder}")
    try:
        matrix = np.load(matrix_path, allow_pickle=False)
    except (ValueError, EOFError) as error:
        raise ValueError(f"{matrix_path}: no array of numbers ({error}); get the file again") from error
    dictionary = unpickle(words_path)  # [word → number, words]
    numbers, words = dictionary if isinstance(dictionary, list) and len(dictionary) == 2 else (None, None)
    if not isinstance(words, list) or numbers != {str(word): i for i, word in enumerate(words)}:
        raise ValueError(f"{words_path}: not [word → number, words] that agree; get the file again")
    if matrix.ndim != 2 or len(matrix) != len(words) or matrix.dtype != np.float32 or not np.isfinite(matrix).all():
        raise ValueError(
            f"{matrix_path}: {matrix.dtype} {matrix.shape}; expected finite float32 ({len(words)}, D), one row for "
            f"each word of {words_path}"
        )
    has_vector = matrix.any(axis=1)  # (n,)
    return WordVectors(tuple(w for w, has in zip(words, has_vector) if has), matrix[has_vector], str(matrix_path))


class EmbeddingMatrix(NamedTuple):
    """Word vectors in the order of a vocabulary.

    Attributes
    ----------
    matrix
        float32 (V, D); zeros for padding, the unknown word and all missing words.
    found
        bool (V,), True at words that have a vector.
    missing
        The words without one, padding and the unknown word not among them.
    """

    matrix: np.ndarray
    found: np.ndarray
    missing: tuple[str, ...]

    def __str__(self) -> str:
        words = int(self.found.sum()) + len(self.missing)
        return f"{int(self.found.sum())} of {words} words have a vector, {len(self.missing)} are missing"


def embedding_matrix(vectors: WordVectors, vocabulary: Vocabulary) -> EmbeddingMatrix:
    """The vectors of a vocabulary's words.

    Parameters
    ----------
    vectors
        Made by :func:`read_glove` or :func:`read_mevf`.
    vocabulary
        Made by :meth:`~vqa_core.data.text.Vocabulary.of_words`: padding, the unknown word, words.

    Raises
    ------
    ValueError
        When the vocabulary has no padding and unknown symbol, or not one of its words has a vector.

    Notes
    -----
    Missing words get zeros, as in the published array: they differ only in the learned half of
    :class:`WordVectorEmbedding`. The unknown word has its own row; published code gives it that of the last word.
    """
    special = vocabulary.symbols[:2]
    if vocabulary.unknown is None or vocabulary.unknown not in special:
        raise ValueError(f"the vocabulary starts with {special}; make it with Vocabulary.of_words")
    row = {word: i for i, word in enumerate(vectors.words)}
    matrix = np.zeros((len(vocabulary), vectors.vectors.shape[1]), dtype=np.float32)  # (V, D)
    found = np.zeros(len(vocabulary), dtype=bool)  # (V,)
    for i, word in enumerate(vocabulary.symbols[2:], start=2):
        if word in row:
            matrix[i], found[i] = vectors.vectors[row[word]], True
    if not found.any():
        raise ValueError(f"none of {len(vocabulary) - 2} words is in {vectors.source}; is it the right language?")
    missing = tuple(w for w, has in zip(vocabulary.symbols[2:], found[2:]) if not has)
    return EmbeddingMatrix(matrix, found, missing)


class WordVectorEmbedding(nn.Module):
    """Loaded word vectors beside learned ones: word ids (B, N) → [loaded ; learned] (B, N, D + learned_dim).

    Parameters
    ----------
    matrix
        float32 (V, D), row 0 (padding) zeros: ``embedding_matrix(…).matrix``. It is copied.
    learned_dim
        Features of the half that starts at random, with the loaded numbers' standard deviation; 0 leaves it out.
    trainable
        False keeps the loaded half as it is.
    """

    def __init__(self, matrix: np.ndarray, learned_dim: int = 300, trainable: bool = True) -> None:
        super().__init__()
        if matrix.ndim != 2 or matrix.dtype != np.float32 or matrix[0].any() or not matrix.any():
            raise ValueError(
                f"matrix is {matrix.dtype} {matrix.shape}; give vectors, float32 (V, D), with row 0 (padding) zeros"
            )
        if learned_dim < 0:
            raise ValueError(f"learned_dim is {learned_dim}, it must be at least 0")
        weight = torch.from_numpy(matrix).clone()  # (V, D)
        self.embedding_dim = weight.shape[1] + learned_dim
        self.loaded = nn.Embedding.from_pretrained(weight, freeze=not trainable, padding_idx=0)
        self.learned = None
        if learned_dim:
            self.learned = nn.Embedding(len(weight), learned_dim, padding_idx=0)
            nn.init.normal_(self.learned.weight, std=weight[weight.any(dim=1)].std().item())
            with torch.no_grad():
                self.learned.weight[0] = 0.0  # padding

    def forward(self, words: Tensor) -> Tensor:
        """Word ids, long (B, N) → float (B, N, embedding_dim)."""
        loaded = self.loaded(words)  # (B, N, D)
        if self.learned is None:
            return loaded
        return torch.cat([loaded, self.learned(words)], dim=-1)  # (B, N, D + learned_dim)


class WordVectorText(RecurrentText):
    """A GRU or LSTM over loaded and learned word vectors; MEVF's question encoder is 300 + 300 → LSTM 1024.

    Parameters
    ----------
    matrix, learned_dim, trainable
        See :class:`WordVectorEmbedding`.
    dim, kind, layers, dropout
        See :class:`~vqa_core.encoders.text.RecurrentText`.

    Notes
    -----
    MEVF starts its second 300 features from a tf-idf mixture of the first, and reads 12 words, padding included. Here
    they start at random, all words are read, and padding has no influence.
    """

    def __init__(
        self,
        matrix: np.ndarray,
        dim: int = 1024,
        kind: str = "lstm",
        learned_dim: int = 300,
        trainable: bool = True,
        layers: int = 1,
        dropout: float = 0.0,
    ) -> None:
        embedding = WordVectorEmbedding(matrix, learned_dim, trainable)
        super().__init__(len(matrix), dim, kind, embedding.embedding_dim, layers, dropout)
        self.embedding = embedding  # in the place of the one that starts at random
