"""Words to numbers: the tokeniser, :class:`Vocabulary`, and padding with masks."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Sequence

import numpy as np

PAD, UNKNOWN = "<pad>", "<unk>"
_WORD = re.compile(r"[a-z0-9]+(?:'[a-z]+)?|[?%/]")


def tokenize(sentence: str) -> list[str]:
    """Lower-case words and numbers; ``?``, ``%`` and ``/`` are words of their own, other punctuation is dropped.

    >>> tokenize("Is the T2-weighted scan normal?")
    ['is', 'the', 't2', 'weighted', 'scan', 'normal', '?']
    """
    return _WORD.findall(sentence.lower())


class Vocabulary:
    """A fixed list of symbols and their numbers.

    Parameters
    ----------
    symbols
        The symbols in order; their positions are their ids.
    unknown
        The symbol that stands for all others; ``None`` makes an unknown symbol an error of ``id``
        and −100 (the ignored label of cross-entropy) in ``ids``.

    Notes
    -----
    Published code maps unknown words to the *last* vocabulary word, which is a real word; here they
    get a symbol of their own.
    """

    def __init__(self, symbols: Sequence[str], unknown: str | None = None) -> None:
        if len(set(symbols)) != len(symbols):
            twice = [s for s, n in Counter(symbols).items() if n > 1]
            raise ValueError(f"symbols occur more than once: {twice[:5]}")
        if unknown is not None and unknown not in symbols:
            raise ValueError(f"the unknown symbol {unknown!r} is not among the symbols")
        self.symbols = tuple(symbols)
        self.unknown = unknown
        self._id = {s: i for i, s in enumerate(self.symbols)}

    @classmethod
    def of_words(cls, sentences: Iterable[str], min_count: int = 1) -> Vocabulary:
        """Words of training questions, sorted, after ``<pad>`` (0) and ``<unk>`` (1)."""
        counts = Counter(w for s in sentences for w in tokenize(s))
        return cls([PAD, UNKNOWN, *sorted(w for w, n in counts.items() if n >= min_count)], unknown=UNKNOWN)

    @classmethod
    def of_answers(cls, answers: Iterable[str], min_count: int = 1) -> Vocabulary:
        """Answers of the *training* split, sorted; an answer outside is unreachable, and its label is −100."""
        counts = Counter(answers)
        return cls(sorted(a for a, n in counts.items() if n >= min_count))

    def __len__(self) -> int:
        return len(self.symbols)

    def __contains__(self, symbol: str) -> bool:
        return symbol in self._id

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Vocabulary) and (self.symbols, self.unknown) == (other.symbols, other.unknown)

    def __hash__(self) -> int:
        return hash((self.symbols, self.unknown))

    def id(self, symbol: str) -> int:
        """Number of a symbol (of ``unknown`` for one that is not listed)."""
        if symbol in self._id:
            return self._id[symbol]
        if self.unknown is None:
            raise ValueError(f"{symbol!r} is not among the {len(self)} symbols and there is no unknown symbol")
        return self._id[self.unknown]

    def ids(self, symbols: Iterable[str]) -> np.ndarray:
        """Numbers of several symbols, int64 (n,); −100 for an unlisted one when there is no unknown symbol."""
        default = -100 if self.unknown is None else self._id[self.unknown]
        return np.array([self._id.get(s, default) for s in symbols], dtype=np.int64)


def encode_questions(
    questions: Sequence[str], vocabulary: Vocabulary, max_words: int | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """Word ids and mask of many questions.

    Parameters
    ----------
    questions
        n sentences.
    vocabulary
        Made by :meth:`Vocabulary.of_words`.
    max_words
        Longer questions are cut there; ``None`` keeps every word.

    Returns
    -------
    words : int64 (n, T)
        T is the longest question; padding is 0.
    mask : bool (n, T)
        True at words. A question without one known character still has one (unknown) word.
    """
    if max_words is not None and max_words < 1:
        raise ValueError(f"max_words is {max_words}, it must be at least 1")
    rows = [vocabulary.ids((tokenize(q) or [UNKNOWN])[:max_words]) for q in questions]
    length = max((len(r) for r in rows), default=1)
    words = np.zeros((len(rows), length), dtype=np.int64)
    mask = np.zeros((len(rows), length), dtype=bool)
    for i, row in enumerate(rows):
        words[i, : len(row)] = row
        mask[i, : len(row)] = True
    return words, mask
