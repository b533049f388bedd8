"""A split as tensors, ready to be cut into batches."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import torch

from vqa_core.data.text import Vocabulary, encode_questions
from vqa_core.data.types import Batch, Sample


def as_float(pictures: torch.Tensor) -> torch.Tensor:
    """Pictures uint8 (B, H, W, 3) → float (B, 3, H, W) in [−1, 1]."""
    return pictures.permute(0, 3, 1, 2).float().div_(127.5).sub_(1)


class Feed:
    """Pictures once, questions once: rows point into both, so that nothing is stored twice.

    Parameters
    ----------
    pictures
        uint8 (P, H, W, 3) pictures, or float (P, Nᵢ, D) cached image tokens.
    picture_index
        int (Q,): picture of each question.
    words, word_mask
        int (U, T) and bool (U, T), from :func:`vqa_core.data.text.encode_questions`; or float (U, T, D)
        cached text tokens with their mask.
    answers
        int (Q,); −100 marks an answer that is not in the vocabulary (it is never trained on and always wrong).
    question_index
        int (Q,): sentence of each question among the U; by default question q has sentence q.
    """

    def __init__(self, pictures, picture_index, words, word_mask, answers, question_index=None) -> None:
        self.pictures = torch.as_tensor(pictures)
        self.picture_index = torch.as_tensor(picture_index, dtype=torch.long)
        self.words = torch.as_tensor(words)
        self.word_mask = torch.as_tensor(word_mask, dtype=torch.bool)
        self.answers = torch.as_tensor(answers, dtype=torch.long)
        index = torch.arange(len(self.words)) if question_index is None else question_index
        self.question_index = torch.as_tensor(index, dtype=torch.long)
        sizes = {len(self.picture_index), len(self.question_index), len(self.answers)}
        if len(sizes) != 1 or len(self.words) != len(self.word_mask):
            raise ValueError(f"picture_index, questions and answers differ in length: {sorted(sizes)}")
        for what, index, of in (
            ("picture", self.picture_index, self.pictures),
            ("question", self.question_index, self.words),
        ):
            if len(index) and int(index.max()) >= len(of):
                raise ValueError(f"{what}_index goes to {int(index.max())}, there are {len(of)} {what}s")

    @classmethod
    def of(
        cls,
        samples: Sequence[Sample],
        pictures,
        picture_index,
        word_vocabulary: Vocabulary,
        answer_vocabulary: Vocabulary,
        max_words: int | None = None,
    ) -> Feed:
        """Encode the questions and answers of a data set whose pictures are already an array."""
        words, mask = encode_questions([s.question for s in samples], word_vocabulary, max_words)
        return cls(pictures, picture_index, words, mask, answer_vocabulary.ids(s.answer for s in samples))

    def __len__(self) -> int:
        return len(self.answers)

    def batch(self, rows) -> Batch:
        """Questions at positions ``rows`` (B,), cut to the longest question among them."""
        rows = torch.as_tensor(rows, dtype=torch.long)
        asked = self.question_index[rows]  # (B,)
        mask = self.word_mask[asked]  # (B, T)
        length = max(int(mask.sum(1).max()), 1)
        pictures = self.pictures[self.picture_index[rows]]
        if pictures.dtype == torch.uint8:
            pictures = as_float(pictures)  # (B, 3, H, W)
        return Batch(pictures, self.words[asked, :length], mask[:, :length], self.answers[rows])

    def batches(self, size: int, order: np.ndarray | None = None) -> Iterator[Batch]:
        """All questions once, in order or in the given order (Q,)."""
        order = np.arange(len(self)) if order is None else order
        for start in range(0, len(order), size):
            yield self.batch(order[start : start + size])

    def with_pictures(self, picture_index) -> Feed:
        """The same questions about other pictures (for the shuffled-picture baseline)."""
        return Feed(self.pictures, picture_index, self.words, self.word_mask, self.answers, self.question_index)
