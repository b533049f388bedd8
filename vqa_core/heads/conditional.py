"""Conditional reasoning: the question gates the fused vector (QCR), and its type chooses the branch (TCR).

Both come from Zhan et al. 2020 (doi 10.1145/3394171.3413761). :class:`ConditionalVQAModel` composes them; leaving out
one or the other gives the rows of their ablation:

=========  ==========================================  ================================================
gate       branches, router                            model
=========  ==========================================  ================================================
None       one branch, None                            the base, equal to :class:`vqa_core.model.VQAModel`
QCR        one branch, None                            QCR
None       closed and open branch, TypeClassifier      TCR
QCR        closed and open branch, TypeClassifier      QCR + TCR
=========  ==========================================  ================================================
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

from vqa_core.data.text import Vocabulary
from vqa_core.data.types import CLOSED, OPEN
from vqa_core.encoders.text import check_words
from vqa_core.fusion.output import FusionOutput, masked_softmax

KINDS = Vocabulary((CLOSED, OPEN))  # kind of question ↔ its number, which is that of its branch: closed 0, open 1


class QuestionVector(NamedTuple):
    """What :class:`QuestionReader` returns.

    Attributes
    ----------
    vector
        float (B, dim).
    attention
        How much each word counts, float (B, 1, 1, N); sums to 1, padding has 0.
    """

    vector: Tensor
    attention: Tensor


class QuestionReader(nn.Module):
    """A question as one vector: embedding, GRU, gated attention over words.

    With the embedding w_t and the GRU's state h_t of word t,

        y_t = tanh(W₁ [w_t ; h_t] + b₁) ⊙ σ(W₂ [w_t ; h_t] + b₂),  a = softmax_t (W₃ y_t),  vector = Σ_t a_t h_t

    Parameters
    ----------
    embedding
        Word ids (B, N) → (B, N, ``embedding.embedding_dim``): :class:`torch.nn.Embedding` or
        :class:`~vqa_core.encoders.word_vectors.WordVectorEmbedding` (published: GloVe, 300).
    dim
        Features of h_t and of the vector; published 1024.

    Notes
    -----
    The published code has no mask: its softmax gives part of the attention to padding.
    """

    def __init__(self, embedding: nn.Module, dim: int = 1024) -> None:
        super().__init__()
        self.out_dim = dim
        self.embedding = embedding
        self.recurrent = nn.GRU(embedding.embedding_dim, dim, batch_first=True)
        self.content = nn.Linear(embedding.embedding_dim + dim, dim)
        self.gate = nn.Linear(embedding.embedding_dim + dim, dim)
        self.score = nn.Linear(dim, 1, bias=False)  # softmax takes no notice of a bias

    def forward(self, words: Tensor, word_mask: Tensor) -> QuestionVector:
        """Word ids (B, N) with their mask, padding after the words → vector (B, dim) and attention (B, 1, 1, N)."""
        check_words(words, word_mask)
        embedded = self.embedding(words)  # (B, N, E)
        states, _ = self.recurrent(embedded)  # (B, N, dim)
        both = torch.cat([embedded, states], dim=-1)  # (B, N, E + dim)
        y = self.content(both).tanh() * self.gate(both).sigmoid()  # (B, N, dim)
        attention = masked_softmax(self.score(y).squeeze(-1), word_mask)  # (B, N)
        vector = torch.bmm(attention.unsqueeze(1), states).squeeze(1)  # (B, dim)
        return QuestionVector(vector, attention[:, None, None, :])


class QCR(nn.Module):
    """Question-conditioned reasoning: a vector made of the question alone, multiplied onto the fused vector.

    Parameters
    ----------
    reader
        Of its own, or shared with other parts.
    out_dim
        Features of the fused vector, ``fusion.out_dim``.
    dropout
        Probability of dropping a hidden feature.

    Notes
    -----
    The MLP is that of the published code: dim → 2 dim → dim → out_dim with ReLU between (1024, 2048, 1024, 1024). Its
    output is not bounded: it can amplify, silence or turn a feature.
    """

    def __init__(self, reader: QuestionReader, out_dim: int, dropout: float = 0.5) -> None:
        super().__init__()
        self.out_dim, self.reader = out_dim, reader
        dim = reader.out_dim
        self.mlp = nn.Sequential(
            nn.Linear(dim, 2 * dim),
            nn.ReLU(),
            nn.Linear(2 * dim, dim),
            nn.ReLU(),
            nn.Dropout(dropout),
            nn.Linear(dim, out_dim),
        )

    def forward(self, words: Tensor, word_mask: Tensor) -> QuestionVector:
        """Word ids (B, N) with their mask → factors (B, out_dim) and the attention over words."""
        question = self.reader(words, word_mask)
        return QuestionVector(self.mlp(question.vector), question.attention)  # (B, out_dim)


class TypeClassifier(nn.Module):
    """Tells from the question alone which kind it is; its number is that of the branch.

    Parameters
    ----------
    reader
        Of its own: the answers' loss does not pass through the choice of a branch, so that a reader that is not shared
        learns the same together with the branches as before them.
    kinds
        How many there are; 2 for :data:`KINDS`.
    hidden
        Widths of the hidden layers; published 256 and 64.
    dropout
        Probability of dropping a feature of the last hidden layer.
    """

    def __init__(
        self, reader: QuestionReader, kinds: int = 2, hidden: tuple[int, int] = (256, 64), dropout: float = 0.5
    ) -> None:
        super().__init__()
        self.reader = reader
        self.mlp = nn.Sequential(
            nn.Linear(reader.out_dim, hidden[0]),
            nn.ReLU(),
            nn.Linear(hidden[0], hidden[1]),
            nn.ReLU(),
            nn.Dropout(dropout),
            nn.Linear(hidden[1], kinds),
        )
        self.kinds = kinds

    def forward(self, words: Tensor, word_mask: Tensor) -> Tensor:
        """Word ids (B, N) with their mask → one logit for each kind (B, kinds)."""
        return self.mlp(self.reader(words, word_mask).vector)  # (B, kinds)


class Branch(nn.Module):
    """A fusion and a head for one kind of question, with the answers that this kind can have.

    Parameters
    ----------
    fusion
        ``(image_tokens, text_tokens, image_mask, text_mask)`` → :class:`~vqa_core.fusion.output.FusionOutput`.
    head
        Fused vector (B, ``fusion.out_dim``) → logits (B, n).
    answers
        Ids of its n answers in the vocabulary of all answers, from :func:`branch_answers`.
    """

    def __init__(self, fusion: nn.Module, head: nn.Module, answers: Sequence[int] | Tensor) -> None:
        super().__init__()
        self.fusion, self.head = fusion, head
        ids = torch.as_tensor(answers)  # (n,)
        if ids.ndim != 1 or not len(ids) or ids.is_floating_point() or ids.min() < 0 or len(ids.unique()) != len(ids):
            raise ValueError(f"a branch's answers are different ids of the answer vocabulary; got {answers}")
        self.register_buffer("answers", ids.long())

    def spread(self, logits: Tensor, vocabulary_size: int) -> Tensor:
        """Its logits (b, n) among those of all answers (b, vocabulary_size); the others get the least number.

        Softmax gives these exactly 0, and binary cross-entropy without a label on them a loss of exactly 0.
        """
        if logits.shape[-1] != len(self.answers):
            raise ValueError(f"the head has {logits.shape[-1]} logits, the branch {len(self.answers)} answers")
        least = torch.finfo(logits.dtype).min
        everywhere = logits.new_full((len(logits), vocabulary_size), least)  # (b, vocabulary_size)
        return everywhere.index_copy(1, self.answers, logits)


def branch_answers(answers: Tensor, kinds: Tensor, kind: int) -> Tensor:
    """The answers that questions of one kind have in the *training* split, for :class:`Branch`.

    Parameters
    ----------
    answers
        Answer ids, long (Q,); −100 (not in the vocabulary) is left out.
    kinds
        Kind of each question, long (Q,).
    kind
        Which.

    Returns
    -------
    Tensor
        long (n,), sorted. An answer that both kinds have is in both branches.
    """
    ids = answers[(kinds == kind) & (answers >= 0)].unique()  # (n,)
    if not len(ids):
        raise ValueError(f"no question of kind {kind} has an answer of the vocabulary")
    return ids


class ConditionalOutput(NamedTuple):
    """What :class:`ConditionalVQAModel` returns.

    Attributes
    ----------
    logits
        float (B, answers); answers outside the branch that was taken have the least number there is.
    route
        Which branch each question took, long (B,).
    kind_logits
        One for each kind (B, kinds), for the router's own cross-entropy; None without a router.
    gate
        QCR's factors (B, out_dim) and attention over words; None without a gate.
    fusion
        One for each branch: what it returned for the rows with ``route`` equal to its number, in their order; None for
        a branch that no question took.
    """

    logits: Tensor
    route: Tensor
    kind_logits: Tensor | None
    gate: QuestionVector | None
    fusion: tuple[FusionOutput | None, ...]


class ConditionalVQAModel(nn.Module):
    """A VQA model whose reasoning depends on the question: gated by QCR, routed by TCR, or both.

    In training every question goes to the branch of its *true* kind; in evaluation to that of the *predicted* kind.
    The encoders are shared. Train it with the cross-entropy of ``logits`` plus that of ``kind_logits``; the router's
    parameters see only the second, all others only the first.

    Parameters
    ----------
    image_encoder, text_encoder
        As for :class:`vqa_core.model.VQAModel`.
    branches
        One for each kind, in the order of :data:`KINDS`; or a single one.
    answers
        Size of the answer vocabulary.
    router
        Needed for more than one branch, and only then.
    gate
        Multiplied onto the fused vector of every branch; None leaves it out.
    """

    def __init__(
        self,
        image_encoder: nn.Module,
        text_encoder: nn.Module,
        branches: Sequence[Branch],
        answers: int,
        router: TypeClassifier | None = None,
        gate: QCR | None = None,
    ) -> None:
        super().__init__()
        kinds = 1 if router is None else router.kinds
        if len(branches) != kinds or (router is not None and kinds < 2):
            raise ValueError(
                f"{len(branches)} branches and a router for {kinds if router else 'nothing'}; give one branch without "
                "a router, or a router with one branch for each of its kinds"
            )
        for number, branch in enumerate(branches):
            if branch.answers.max() >= answers:
                raise ValueError(f"branch {number} has answer {branch.answers.max()}, the vocabulary {answers} answers")
            if gate is not None and gate.out_dim != branch.fusion.out_dim:
                raise ValueError(
                    f"the gate has {gate.out_dim} features, the fusion of branch {number} {branch.fusion.out_dim}"
                )
        self.image_encoder, self.text_encoder = image_encoder, text_encoder
        self.branches, self.answers = nn.ModuleList(branches), answers
        self.router, self.gate = router, gate

    def forward(
        self, pictures: Tensor, words: Tensor, word_mask: Tensor, kinds: Tensor | None = None
    ) -> ConditionalOutput:
        """Answer logits; the route is the true kind in training and the predicted one in evaluation.

        Parameters
        ----------
        pictures, words, word_mask
            As for :meth:`vqa_core.model.VQAModel.forward`.
        kinds
            True kind of each question, long (B,): needed in training, refused in evaluation, where it would tell the
            model something about the answer (:meth:`answer_by` does it on purpose). Not used without a router.
        """
        if self.router is None:
            return self.answer_by(words.new_zeros(len(words)), pictures, words, word_mask)
        if self.training and kinds is None:
            raise ValueError("in training the true kinds choose the branch; give kinds, or call model.eval() first")
        if not self.training and kinds is not None:
            raise ValueError(
                "in evaluation the predicted kinds choose the branch; to use the true ones, call answer_by"
            )
        kind_logits = self.router(words, word_mask)  # (B, kinds)
        route = kind_logits.argmax(dim=-1) if kinds is None else kinds  # (B,)
        return self.answer_by(route, pictures, words, word_mask)._replace(kind_logits=kind_logits)

    def answer_by(self, route: Tensor, pictures: Tensor, words: Tensor, word_mask: Tensor) -> ConditionalOutput:
        """Answer every question in a given branch: with the true kinds, what a router without errors would reach.

        Parameters
        ----------
        route
            Number of the branch, long (B,).
        pictures, words, word_mask
            As for :meth:`forward`.
        """
        if (
            route.is_floating_point()
            or route.shape != words.shape[:1]
            or not ((route >= 0) & (route < len(self.branches))).all()
        ):
            raise ValueError(
                f"the route is {route.dtype} {tuple(route.shape)}; give long ({len(words)},) with numbers of branches, "
                f"0 to {len(self.branches) - 1}"
            )
        image, text = self.image_encoder(pictures), self.text_encoder(words, word_mask)
        gate = None if self.gate is None else self.gate(words, word_mask)
        logits, rows, fusions = [], [], []
        for number, branch in enumerate(self.branches):
            mine = (route == number).nonzero().squeeze(1)  # (b,)
            if not len(mine):
                fusions.append(None)
                continue
            image_mask, text_mask = (None if m is None else m[mine] for m in (image.mask, text.mask))
            fusion = branch.fusion(image.tokens[mine], text.tokens[mine], image_mask, text_mask)
            fused = fusion.fused if gate is None else fusion.fused * gate.vector[mine]  # (b, out_dim)
            logits.append(branch.spread(branch.head(fused), self.answers))  # (b, answers)
            rows.append(mine)
            fusions.append(fusion)
        back = torch.cat(rows).argsort()  # (B,)
        return ConditionalOutput(torch.cat(logits)[back], route, None, gate, tuple(fusions))


class Count(NamedTuple):
    """Right answers out of n questions."""

    right: int
    n: int

    @property
    def share(self) -> float:
        """right / n; NaN without questions."""
        return self.right / self.n if self.n else float("nan")


def score_by_kind(correct: Tensor, kinds: Tensor) -> dict[str, Count]:
    """Right answers of closed, open and all questions, counted by their *true* kind.

    Published code divides by how many questions were *predicted* to be of a kind, so that a router that sends the hard
    questions elsewhere raises the score of both. :func:`vqa_core.evaluation.accuracy.by_family` adds intervals.

    Parameters
    ----------
    correct
        Whether the final answer, whichever branch gave it, is right: bool (Q,).
    kinds
        True kinds, long (Q,), numbers of :data:`KINDS`.

    Returns
    -------
    dict
        ``closed``, ``open``, ``all`` → :class:`Count`.
    """
    if correct.dtype != torch.bool or correct.shape != kinds.shape or correct.ndim != 1:
        raise ValueError(
            f"correct is {correct.dtype} {tuple(correct.shape)}, kinds has shape {tuple(kinds.shape)}; give bool (Q,) "
            "and (Q,)"
        )
    if not ((kinds >= 0) & (kinds < len(KINDS))).all():
        raise ValueError(f"kinds are numbers 0 to {len(KINDS) - 1}; got {kinds.unique().tolist()}")
    counts = {
        name: Count(int(correct[kinds == i].sum()), int((kinds == i).sum())) for i, name in enumerate(KINDS.symbols)
    }
    return {**counts, "all": Count(int(correct.sum()), len(correct))}
