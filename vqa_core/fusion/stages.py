"""When to fuse: early (tokens), late (answers), both; and at every image token before pooling.

==================  ==========================================  ==================================================
stage               class                                       what meets
==================  ==========================================  ==================================================
early               :class:`EarlyFusion`                        tokens, before any joint encoder
intermediate        :class:`CrossAttentionReader`               words that read image tokens, layer by layer
                    :class:`TokenFusion`                        the question vector and every image token
                    :class:`AttendFusion`                       the question vector and what it looked at
late                :class:`LateFusion`                         the answers of two unimodal classifiers
hybrid              :class:`HybridFusion`                       a joint branch and two unimodal branches
==================  ==========================================  ==================================================
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from vqa_core.fusion.blocks import CrossBlock, TransformerBlock
from vqa_core.fusion.output import FusionOutput, as_tokens, choose, masked_mean
from vqa_core.fusion.vector import VectorFusion

READOUTS = ("token", "mean")


class TokenEmbedding(nn.Module):
    """One modality's tokens made ready for a joint transformer: W t + modality embedding + position embedding.

    Parameters
    ----------
    name
        ``"image"`` or ``"text"``, for messages.
    in_dim, dim
        Features of a token, before and after.
    length
        How many positions there are: the cells of the picture's grid in reading order, or the words. All are learned.
        None: no position embedding, for tokens that are a set, or carry their place among their features.
    """

    def __init__(self, name: str, in_dim: int, dim: int, length: int | None) -> None:
        super().__init__()
        self.name, self.in_dim = name, in_dim
        self.projection = nn.Linear(in_dim, dim, bias=False)
        self.modality = nn.Parameter(torch.randn(dim) * 0.02)
        self.positions = None if length is None else nn.Parameter(torch.randn(length, dim) * 0.02)

    def forward(self, tokens: Tensor, mask: Tensor | None) -> Tensor:
        """(B, N, in_dim) → (B, N, dim), N ≤ length."""
        tokens = as_tokens(self.name, tokens, self.in_dim, mask)  # (B, N, in_dim)
        if self.positions is None:
            return self.projection(tokens) + self.modality  # (B, N, dim)
        if tokens.shape[1] > len(self.positions):
            raise ValueError(
                f"{tokens.shape[1]} {self.name} tokens, but positions for {len(self.positions)}; "
                f"make the fusion with a larger {self.name}_length"
            )
        return self.projection(tokens) + self.modality + self.positions[: tokens.shape[1]]  # (B, N, dim)


def all_real(tokens: Tensor, mask: Tensor | None) -> Tensor:
    """The mask itself, or all True where there is none: bool (B, N)."""
    return tokens.new_ones(tokens.shape[:2], dtype=torch.bool) if mask is None else mask


class TokenReader(nn.Module):
    """What the two transformers over tokens have in common: embeddings, an answer token, blocks, a last norm.

    Parameters
    ----------
    image_dim, text_dim, out_dim
        Features of image tokens, text tokens, and of tokens inside and the fused vector.
    depth, heads, dropout
        Number of blocks, and what they have.
    image_length, text_length
        The most tokens that have a position, or None for no positions: see :class:`TokenEmbedding`.
    readout
        ``"token"``: the fused vector is a learned answer token's last state. ``"mean"``: no answer token; the masked
        mean of the words' last states.
    """

    block: type[nn.Module]

    def __init__(
        self,
        image_dim: int,
        text_dim: int,
        out_dim: int,
        depth: int = 2,
        heads: int = 4,
        image_length: int | None = 64,
        text_length: int | None = 32,
        readout: str = "token",
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        if depth < 1:
            raise ValueError(f"depth is {depth}, it must be at least 1")
        self.out_dim = out_dim
        self.image_embedding = TokenEmbedding("image", image_dim, out_dim, image_length)
        self.text_embedding = TokenEmbedding("text", text_dim, out_dim, text_length)
        with_token = choose("readout", readout, READOUTS) == "token"
        self.answer_token = nn.Parameter(torch.randn(1, 1, out_dim) * 0.02) if with_token else None
        self.blocks = nn.ModuleList(self.block(out_dim, heads, dropout=dropout) for _ in range(depth))
        self.norm = nn.LayerNorm(out_dim)


class EarlyFusion(TokenReader):
    """Early fusion: image and text tokens in one sequence, before any joint encoder; then transformer blocks.

    The sequence is [answer token ; image tokens ; text tokens]; each token reads all others, so that one layer costs
    O((Nᵢ + Nₜ)²). Parameters are those of :class:`TokenReader`.

    Notes
    -----
    ``image`` and ``text`` of the output are the embedded tokens that enter the first block, (B, Nᵢ, out_dim) and
    (B, Nₜ, out_dim). ``attention`` is the last block's: with an answer token its own, (B, heads, 1, 1 + Nᵢ + Nₜ);
    without, that of all tokens, (B, heads, Nᵢ + Nₜ, Nᵢ + Nₜ).
    """

    block = TransformerBlock

    def forward(
        self,
        image_tokens: Tensor,
        text_tokens: Tensor,
        image_mask: Tensor | None = None,
        text_mask: Tensor | None = None,
    ) -> FusionOutput:
        """Fuse; shapes as in :meth:`vqa_core.fusion.vector.VectorFusion.forward`."""
        image = self.image_embedding(image_tokens, image_mask)  # (B, Nᵢ, D)
        text = self.text_embedding(text_tokens, text_mask)  # (B, Nₜ, D)
        tokens, masks = [image, text], [all_real(image, image_mask), all_real(text, text_mask)]
        if self.answer_token is not None:
            tokens.insert(0, self.answer_token.expand(len(image), -1, -1))  # (B, 1, D)
            masks.insert(0, masks[0].new_ones(len(image), 1))  # (B, 1)
        x, mask = torch.cat(tokens, dim=1), torch.cat(masks, dim=1)  # (B, T, D), (B, T)
        if image_mask is None and text_mask is None:
            mask = None
        for block in self.blocks[:-1]:
            x, _ = block(x, mask)  # (B, T, D)
        queries = None if self.answer_token is None else 1  # the others' last states are not read
        x, attention = self.blocks[-1](x, mask, need_weights=True, queries=queries)  # (B, Tq, D), (B, heads, Tq, T)
        read = masked_mean(x[:, -text.shape[1] :], text_mask) if self.answer_token is None else x[:, 0]  # (B, D)
        return FusionOutput(self.norm(read), image, text, attention)


class CrossAttentionReader(TokenReader):
    """Words as queries read image tokens as keys and values: one layer costs O(Nₜ Nᵢ + Nₜ²), image tokens stay as is.

    In each layer the words also read one another. Parameters are those of :class:`TokenReader`; an answer token reads
    beside the words.

    Notes
    -----
    ``image`` and ``text`` of the output are the embedded tokens, (B, Nᵢ, out_dim) and (B, Nₜ, out_dim).
    ``attention`` is the last layer's cross-attention, (B, heads, Tq, Nᵢ), with Tq = 1 + Nₜ (the answer token first)
    or Nₜ.
    """

    block = CrossBlock

    def __init__(self, image_dim: int, text_dim: int, out_dim: int, **options) -> None:
        super().__init__(image_dim, text_dim, out_dim, **options)
        self.image_norm = nn.LayerNorm(out_dim)

    def forward(
        self,
        image_tokens: Tensor,
        text_tokens: Tensor,
        image_mask: Tensor | None = None,
        text_mask: Tensor | None = None,
    ) -> FusionOutput:
        """Fuse; shapes as in :meth:`vqa_core.fusion.vector.VectorFusion.forward`."""
        image = self.image_embedding(image_tokens, image_mask)  # (B, Nᵢ, D)
        text = self.text_embedding(text_tokens, text_mask)  # (B, Nₜ, D)
        context = self.image_norm(image)  # (B, Nᵢ, D)
        x, mask = text, text_mask
        if self.answer_token is not None:
            x = torch.cat([self.answer_token.expand(len(text), -1, -1), text], dim=1)  # (B, 1 + Nₜ, D)
            if mask is not None:
                mask = torch.cat([mask.new_ones(len(text), 1), mask], dim=1)  # (B, 1 + Nₜ)
        for block in self.blocks[:-1]:
            x, _ = block(x, context, mask, image_mask)  # (B, Tq, D)
        x, attention = self.blocks[-1](x, context, mask, image_mask, need_weights=True)  # …, (B, heads, Tq, Nᵢ)
        read = masked_mean(x, mask) if self.answer_token is None else x[:, 0]  # (B, D)
        return FusionOutput(self.norm(read), image, text, attention)


class LateFusion(nn.Module):
    """Late fusion: each modality answers on its own, then the two answers are joined.

    Both unimodal classifiers are Linear, ReLU, Linear on the masked mean of their tokens. Use it with
    ``nn.Identity()`` as the head: the fused vector already is a vector of log-probabilities, which cross-entropy and
    argmax read like logits.

    Parameters
    ----------
    image_dim, text_dim
        Features of image and text tokens; also the widths of the classifiers' hidden layers.
    answers
        How many answers there are; this is ``out_dim``.
    rule
        With logits aₘ of classifier m:

        ``"mean"``: log softmax of the mean logits; a product of the two opinions, (pᵢ pₜ)^½ up to a constant.
        ``"vote"``: log of the mean of the probabilities; each classifier divides one vote among the answers. (With
        two voters a hard majority vote is a tie whenever they differ, and has no gradient.)
        ``"variance"``: inverse-variance weighting. Each classifier also predicts a log-variance sₘ for the example at
        hand; the joined logits are Σₘ wₘ aₘ with wₘ = exp(−sₘ) / Σ exp(−s).

    Notes
    -----
    ``image`` and ``text`` of the output are the unimodal logits, (B, answers). With ``"mean"`` the score is
    s(x) + t(y): no interaction of the two, however deep the classifiers are.
    """

    def __init__(self, image_dim: int, text_dim: int, answers: int, rule: str = "mean") -> None:
        super().__init__()
        self.image_dim, self.text_dim, self.out_dim = image_dim, text_dim, answers
        self.rule = choose("rule", rule, ("mean", "vote", "variance"))
        outputs = answers + (rule == "variance")  # one more for the log-variance
        self.image_classifier = nn.Sequential(nn.Linear(image_dim, image_dim), nn.ReLU(), nn.Linear(image_dim, outputs))
        self.text_classifier = nn.Sequential(nn.Linear(text_dim, text_dim), nn.ReLU(), nn.Linear(text_dim, outputs))

    def forward(
        self,
        image_tokens: Tensor,
        text_tokens: Tensor,
        image_mask: Tensor | None = None,
        text_mask: Tensor | None = None,
    ) -> FusionOutput:
        """Join the answers; shapes as in :meth:`vqa_core.fusion.vector.VectorFusion.forward`."""
        x = masked_mean(as_tokens("image", image_tokens, self.image_dim, image_mask), image_mask)  # (B, image_dim)
        y = masked_mean(as_tokens("text", text_tokens, self.text_dim, text_mask), text_mask)  # (B, text_dim)
        both = torch.stack([self.image_classifier(x), self.text_classifier(y)], dim=1)  # (B, 2, answers (+ 1))
        logits = both[..., : self.out_dim]  # (B, 2, answers)
        if self.rule == "mean":
            joined = logits.mean(dim=1).log_softmax(dim=-1)  # (B, answers)
        elif self.rule == "vote":
            joined = logits.log_softmax(dim=-1).logsumexp(dim=1) - math.log(2)  # (B, answers)
        else:
            weights = (-both[..., self.out_dim :]).softmax(dim=1)  # (B, 2, 1)
            joined = (weights * logits).sum(dim=1).log_softmax(dim=-1)  # (B, answers)
        return FusionOutput(joined, *logits.unbind(dim=1))


class HybridFusion(nn.Module):
    """Hybrid fusion: early and late. A joint branch, and beside it each modality on its own, joined at the end.

    out = W_o [joint ; ReLU(W_x x) ; ReLU(W_y y)], where ``joint`` is the vector of another fusion, usually
    :class:`EarlyFusion`, and x, y are the masked means of the tokens that never met.

    Parameters
    ----------
    image_dim, text_dim, out_dim
        Features of image tokens, text tokens and the fused vector.
    joint
        A fusion with ``out_dim``, for the same tokens.

    Notes
    -----
    ``image`` and ``text`` of the output are ReLU(W_x x) and ReLU(W_y y), (B, out_dim); ``attention`` is the joint
    branch's.
    """

    def __init__(self, image_dim: int, text_dim: int, out_dim: int, joint: nn.Module) -> None:
        super().__init__()
        self.image_dim, self.text_dim, self.out_dim = image_dim, text_dim, out_dim
        self.joint = joint
        self.image_projection = nn.Linear(image_dim, out_dim)
        self.text_projection = nn.Linear(text_dim, out_dim)
        self.out_projection = nn.Linear(joint.out_dim + 2 * out_dim, out_dim)

    def forward(
        self,
        image_tokens: Tensor,
        text_tokens: Tensor,
        image_mask: Tensor | None = None,
        text_mask: Tensor | None = None,
    ) -> FusionOutput:
        """Fuse; shapes as in :meth:`vqa_core.fusion.vector.VectorFusion.forward`."""
        x = masked_mean(as_tokens("image", image_tokens, self.image_dim, image_mask), image_mask)  # (B, image_dim)
        y = masked_mean(as_tokens("text", text_tokens, self.text_dim, text_mask), text_mask)  # (B, text_dim)
        joint = self.joint(image_tokens, text_tokens, image_mask, text_mask)
        image, text = self.image_projection(x).relu(), self.text_projection(y).relu()  # (B, out_dim) each
        fused = self.out_projection(torch.cat([joint.fused, image, text], dim=-1))  # (B, out_dim)
        return FusionOutput(fused, image, text, joint.attention)


class TokenFusion(nn.Module):
    """Fuse, then pool: a vector fusion of the question with *every* image token, ReLU, pooling over tokens, W_o.

    A vector fusion alone pools first, and then cannot tell a red square beside a blue circle from a blue square beside
    a red circle. Before pooling, the question can pick out the tokens it asks about.

    Parameters
    ----------
    fusion
        Any :class:`~vqa_core.fusion.vector.VectorFusion`; its weights are shared by all tokens.
    pool
        Over the real image tokens: ``"max"``, ``"mean"`` or ``"sum"``.

    Notes
    -----
    ``image`` and ``text`` of the output are those of ``fusion``: (B, Nᵢ, …) and (B, 1, …). The question is broadcast,
    not copied.
    """

    def __init__(self, fusion: VectorFusion, pool: str = "max") -> None:
        super().__init__()
        self.fusion, self.out_dim = fusion, fusion.out_dim
        self.pool = choose("pool", pool, ("max", "mean", "sum"))
        self.out_projection = nn.Linear(fusion.out_dim, fusion.out_dim)

    def forward(
        self,
        image_tokens: Tensor,
        text_tokens: Tensor,
        image_mask: Tensor | None = None,
        text_mask: Tensor | None = None,
    ) -> FusionOutput:
        """Fuse; shapes as in :meth:`vqa_core.fusion.vector.VectorFusion.forward`."""
        x = as_tokens("image", image_tokens, self.fusion.image_dim, image_mask)  # (B, Nᵢ, image_dim)
        y = masked_mean(as_tokens("text", text_tokens, self.fusion.text_dim, text_mask), text_mask)  # (B, text_dim)
        met = self.fusion.fuse(x, y.unsqueeze(1))  # (B, Nᵢ, out_dim)
        fused = met.fused.relu()
        if image_mask is not None:
            fused = fused.masked_fill(~image_mask.unsqueeze(-1), 0.0)  # 0 is the least a ReLU gives: it wins no maximum
        if self.pool == "max":
            pooled = fused.amax(dim=1)  # (B, out_dim)
        elif self.pool == "sum":
            pooled = fused.sum(dim=1)  # (B, out_dim)
        else:
            pooled = masked_mean(fused, image_mask)  # (B, out_dim)
        return FusionOutput(self.out_projection(pooled), met.image, met.text)


class AttendFusion(nn.Module):
    """Attend, then fuse: the question vector reads the image tokens in H heads, then a vector fusion joins both.

    Head h looks with the weights

        pₕ = softmaxᵢ (xᵢᵀ Wₕ y + bₕ over the tokens i, and one constant 0 for "nothing here")

    (the general score of Luong et al. 2015, arXiv 1508.04025) and reads Σᵢ pₕᵢ xᵢ. Because of the "nothing" entry the
    weights of a head may sum to less than 1: a head that finds nothing reads zeros, so that absence can be told.

    Parameters
    ----------
    fusion
        Any :class:`~vqa_core.fusion.vector.VectorFusion` whose image_dim is heads × features of an image token.
    heads
        H.

    Notes
    -----
    ``image`` and ``text`` of the output are those of ``fusion``; ``attention`` is (B, heads, 1, Nᵢ), without the
    "nothing" entry.
    """

    def __init__(self, fusion: VectorFusion, heads: int = 8) -> None:
        super().__init__()
        if fusion.image_dim % heads:
            raise ValueError(f"the fusion's image_dim={fusion.image_dim} is not a multiple of heads={heads}")
        self.fusion, self.heads, self.out_dim = fusion, heads, fusion.out_dim
        self.image_dim = fusion.image_dim // heads
        self.look = nn.Linear(fusion.text_dim, heads * self.image_dim)
        self.bias = nn.Parameter(torch.zeros(heads, 1))

    def forward(
        self,
        image_tokens: Tensor,
        text_tokens: Tensor,
        image_mask: Tensor | None = None,
        text_mask: Tensor | None = None,
    ) -> FusionOutput:
        """Fuse; shapes as in :meth:`vqa_core.fusion.vector.VectorFusion.forward`."""
        x = as_tokens("image", image_tokens, self.image_dim, image_mask)  # (B, Nᵢ, D)
        y = masked_mean(as_tokens("text", text_tokens, self.fusion.text_dim, text_mask), text_mask)  # (B, text_dim)
        queries = self.look(y).unflatten(-1, (self.heads, self.image_dim))  # (B, H, D)
        scores = queries @ x.transpose(1, 2) + self.bias  # (B, H, Nᵢ)
        if image_mask is not None:
            scores = scores.masked_fill(~image_mask.unsqueeze(1), -torch.inf)
        nothing = scores.new_zeros(*scores.shape[:2], 1)  # (B, H, 1)
        weights = torch.cat([scores, nothing], dim=-1).softmax(dim=-1)[..., :-1]  # (B, H, Nᵢ)
        read = (weights @ x).flatten(1)  # (B, H · D)
        met = self.fusion.fuse(read, y)  # (B, out_dim)
        return FusionOutput(met.fused, met.image, met.text, weights.unsqueeze(2))
