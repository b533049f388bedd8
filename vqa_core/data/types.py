"""The three things that every data set is made of: :class:`Sample`, :class:`Dataset`, :class:`Batch`."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

if TYPE_CHECKING:
    import torch

OPEN, CLOSED = "open", "closed"


@dataclass(frozen=True, slots=True)
class Sample:
    """One question about one picture.

    Attributes
    ----------
    question_id, picture_id
        Unique inside the data set; the same picture id always means the same picture.
    question
        The sentence as the data set has it.
    answer
        The target answer.
    family
        Question family (``"counting"``, ``"PRES"`` …), as the data set names it.
    kind
        ``"open"`` or ``"closed"`` (yes/no, or a choice given in the question).
    answers
        All human answers, where a data set has several; otherwise ``(answer,)``.
    meta
        What else the data set knows (organ, program, caption …); JSON-serialisable.
    """

    question_id: str
    picture_id: str
    question: str
    answer: str
    family: str
    kind: str
    answers: tuple[str, ...] = ()
    meta: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if not self.question.strip():
            raise ValueError(f"question {self.question_id!r} about picture {self.picture_id!r} is empty")
        if self.kind not in (OPEN, CLOSED):
            raise ValueError(f"question {self.question_id!r}: kind is {self.kind!r}, allowed are 'open' and 'closed'")
        if not self.answers:
            object.__setattr__(self, "answers", (self.answer,))


class Dataset(Sequence[Sample]):
    """A split of a data set: a sequence of :class:`Sample` whose pictures are read when asked for.

    Parameters
    ----------
    name, split
        What ``vqa_core.data.load`` was asked for.
    samples
        The questions.
    read_picture
        Maps a picture id to an RGB array, uint8 (H, W, 3); raises ``FileNotFoundError`` or ``ValueError``
        naming the file when the picture is missing or damaged.
    notes
        What was repaired or left out on reading, one sentence each; shown by ``data info``.
    """

    def __init__(
        self,
        name: str,
        split: str,
        samples: Sequence[Sample],
        read_picture: Callable[[str], np.ndarray],
        notes: Sequence[str] = (),
    ) -> None:
        self.name, self.split = name, split
        self.samples = tuple(samples)
        self.notes = tuple(notes)
        self._read_picture = read_picture

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, index):
        return self.samples[index]

    def __iter__(self) -> Iterator[Sample]:
        return iter(self.samples)

    def __repr__(self) -> str:
        return (
            f"{type(self).__name__}({self.name!r}, {self.split!r}: {len(self):,} questions, "
            f"{len(self.picture_ids):,} pictures)"
        )

    @property
    def picture_ids(self) -> tuple[str, ...]:
        """Ids of the pictures that are asked about, each once, in order of first use."""
        return tuple(dict.fromkeys(s.picture_id for s in self.samples))

    @property
    def families(self) -> tuple[str, ...]:
        """Question families that occur, sorted."""
        return tuple(sorted({s.family for s in self.samples}))

    def picture(self, picture_id: str) -> np.ndarray:
        """One picture as RGB, uint8 (H, W, 3)."""
        return self._read_picture(picture_id)

    def subset(self, keep: Sequence[int] | np.ndarray, split: str | None = None) -> Dataset:
        """The same data set with only the samples at positions ``keep``."""
        return Dataset(self.name, split or self.split, [self.samples[i] for i in keep], self._read_picture, self.notes)

    def content_hash(self) -> str:
        """SHA-256 over questions, answers and picture ids; goes into every record.

        Pictures enter through their ids: reading 20,000 files for a hash would cost more than the training.
        Data sets that hold their pictures in memory override this and hash the pixels too.
        """
        digest = hashlib.sha256()
        for s in self.samples:
            digest.update(json.dumps([s.question_id, s.picture_id, s.question, s.answer, s.answers]).encode())
        return digest.hexdigest()


class Batch(NamedTuple):
    """What a model reads. ``True`` in a mask marks a real token, ``False`` padding.

    Attributes
    ----------
    pictures
        Normalised pictures, float (B, 3, H, W); or cached image tokens, float (B, Nᵢ, D).
    words
        Word ids, long (B, Nₜ).
    word_mask
        bool (B, Nₜ).
    answers
        Answer ids, long (B,); −100 where the answer is not in the vocabulary.
    """

    pictures: torch.Tensor
    words: torch.Tensor
    word_mask: torch.Tensor
    answers: torch.Tensor

    def to(self, device) -> Batch:
        return Batch(*(t.to(device, non_blocking=True) for t in self))
