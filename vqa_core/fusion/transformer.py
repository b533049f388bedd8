"""Six layouts of self-attention over two modalities, and the co-attention of three.

A survey (Xu, Zhu and Clifton 2023, arXiv 2206.06488) orders multimodal transformers by what reads what. With Tf for
transformer blocks and C for concatenation along the sequence:

==============================  ===========================================================  ========================
layout                          definition                                                   cost of its attention
==============================  ===========================================================  ========================
early summation                 Tf(I ⊕ T), token by token                                    O(Nᵢ²)
early concatenation             Tf(C(I, T))                                                  O((Nᵢ + Nₜ)²)
multi to one                    Tf₃(C(Tf₁(I), Tf₂(T)))                                       O(Nᵢ² + Nₜ² + (Nᵢ + Nₜ)²)
one to multi                    Tf₁(C(I, T)) split back into I', T'; then Tf₂(I'), Tf₃(T')   O((Nᵢ + Nₜ)² + Nᵢ² + Nₜ²)
cross attention                 Tf₁(Q_I, K_T, V_T) and Tf₂(Q_T, K_I, V_I)                    O(Nᵢ Nₜ)
cross attention to              Tf₃(C(Tf₁(Q_I, K_T, V_T), Tf₂(Q_T, K_I, V_I)))               O(Nᵢ Nₜ + (Nᵢ + Nₜ)²)
concatenation
==============================  ===========================================================  ========================

The names of the two hierarchical layouts say what they do: several streams become one, or one becomes several. The
survey writes "multi-stream to one-stream" and "one-stream to multi-stream"; the notes that this book follows call the
first "1-to-2" and the second "2-to-1", the other way round. Numbers are therefore avoided here.

``depth`` is the number of blocks that a token passes in every layout, so that layouts of equal depth can be compared.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vqa_core.fusion.blocks import FeedForward, MultiHeadAttention, TransformerBlock
from vqa_core.fusion.output import FusionOutput, choose, masked_mean
from vqa_core.fusion.stages import TokenEmbedding, all_real


class ReadingBlock(nn.Module):
    """Pre-norm block with queries from one side, keys and values from another: Tf(Q_x, K_c, V_c).

    x + Attention(norm(x), norm(context)), then x + FeedForward(norm(x)).

    Parameters
    ----------
    dim, heads, mlp_ratio, dropout
        See :class:`~vqa_core.fusion.blocks.TransformerBlock`.
    """

    def __init__(self, dim: int, heads: int, mlp_ratio: float = 4.0, dropout: float = 0.0) -> None:
        super().__init__()
        self.query_norm, self.context_norm, self.mlp_norm = (nn.LayerNorm(dim) for _ in range(3))
        self.attention = MultiHeadAttention(dim, heads, dropout)
        self.mlp = FeedForward(dim, mlp_ratio, dropout)

    def forward(
        self, x: Tensor, context: Tensor, context_mask: Tensor | None = None, need_weights: bool = False
    ) -> tuple[Tensor, Tensor | None]:
        """Tokens (B, T, D) and context (B, Tk, D) → tokens (B, T, D) and weights (B, H, T, Tk) or None."""
        read, weights = self.attention(self.query_norm(x), self.context_norm(context), context_mask, need_weights)
        x = x + read  # (B, T, D)
        return x + self.mlp(self.mlp_norm(x)), weights


class Streams(NamedTuple):
    """Both modalities between two blocks.

    Attributes
    ----------
    image, text
        Tokens (B, Nᵢ, D) and (B, Nₜ, D).
    image_mask, text_mask
        bool (B, Nᵢ) and (B, Nₜ), True at real tokens; None when all are real.
    """

    image: Tensor
    text: Tensor
    image_mask: Tensor | None
    text_mask: Tensor | None

    def joined(self) -> tuple[Tensor, Tensor | None]:
        """[image ; text] as one sequence (B, Nᵢ + Nₜ, D), and its mask."""
        tokens = torch.cat([self.image, self.text], dim=1)  # (B, Nᵢ + Nₜ, D)
        if self.image_mask is None and self.text_mask is None:
            return tokens, None
        masks = all_real(self.image, self.image_mask), all_real(self.text, self.text_mask)
        return tokens, torch.cat(masks, dim=1)  # (B, Nᵢ + Nₜ)

    def split(self, tokens: Tensor) -> Streams:
        """The sequence (B, Nᵢ + Nₜ, D) of :meth:`joined` taken apart again."""
        return self._replace(image=tokens[:, : self.image.shape[1]], text=tokens[:, self.image.shape[1] :])


# --------------------------------------------------------------------------------- layers: what a layout is a row of


class JointLayer(nn.Module):
    """Both streams as one sequence through one block: every token reads all tokens, O((Nᵢ + Nₜ)²)."""

    def __init__(self, dim: int, heads: int, mlp_ratio: float, dropout: float) -> None:
        super().__init__()
        self.block = TransformerBlock(dim, heads, mlp_ratio, dropout)

    def forward(self, streams: Streams, need_weights: bool = False) -> tuple[Streams, Tensor | None]:
        """Streams → streams, and weights (B, H, N, N) of N = Nᵢ + Nₜ tokens or None."""
        tokens, weights = self.block(*streams.joined(), need_weights)  # (B, N, D)
        return streams.split(tokens), weights


class OwnLayer(nn.Module):
    """Each stream through a block of its own: a token reads its own modality, O(Nᵢ² + Nₜ²)."""

    def __init__(self, dim: int, heads: int, mlp_ratio: float, dropout: float) -> None:
        super().__init__()
        self.image, self.text = (TransformerBlock(dim, heads, mlp_ratio, dropout) for _ in range(2))

    def forward(self, streams: Streams, need_weights: bool = False) -> tuple[Streams, Tensor | None]:
        """As in :class:`JointLayer`; the weights of one modality on the other are 0."""
        image, on_image = self.image(streams.image, streams.image_mask, need_weights)  # (B, Nᵢ, D), (B, H, Nᵢ, Nᵢ)
        text, on_text = self.text(streams.text, streams.text_mask, need_weights)  # (B, Nₜ, D), (B, H, Nₜ, Nₜ)
        weights = block_diagonal(on_image, on_text) if need_weights else None
        return streams._replace(image=image, text=text), weights


class CrossLayer(nn.Module):
    """Each stream reads the other as it was before the layer: O(Nᵢ Nₜ); no token reads its own modality."""

    def __init__(self, dim: int, heads: int, mlp_ratio: float, dropout: float) -> None:
        super().__init__()
        self.image, self.text = (ReadingBlock(dim, heads, mlp_ratio, dropout) for _ in range(2))

    def forward(self, streams: Streams, need_weights: bool = False) -> tuple[Streams, Tensor | None]:
        """As in :class:`JointLayer`; the weights of a modality on itself are 0."""
        image, on_text = self.image(streams.image, streams.text, streams.text_mask, need_weights)  # …, (B, H, Nᵢ, Nₜ)
        text, on_image = self.text(streams.text, streams.image, streams.image_mask, need_weights)  # …, (B, H, Nₜ, Nᵢ)
        weights = None
        if need_weights:
            n_image, n_text = on_text.shape[-2:]
            rows = F.pad(on_text, (n_image, 0)), F.pad(on_image, (0, n_text))  # (B, H, Nᵢ, N), (B, H, Nₜ, N)
            weights = torch.cat(rows, dim=2)  # (B, H, N, N)
        return streams._replace(image=image, text=text), weights


def block_diagonal(first: Tensor, second: Tensor) -> Tensor:
    """Maps (B, H, n, n) and (B, H, m, m) of two sequences that do not meet, as one (B, H, n + m, n + m)."""
    rows = F.pad(first, (0, second.shape[-1])), F.pad(second, (first.shape[-1], 0))  # (…, n, n + m), (…, m, n + m)
    return torch.cat(rows, dim=2)  # (B, H, n + m, n + m)


# ----------------------------------------------------------------------------------------------------- the layouts


class Layout(nn.Module):
    """Embeds both modalities, sends them through a row of layers, and reads the mean of all real tokens.

    Parameters
    ----------
    image_dim, text_dim, out_dim
        Features of image tokens, text tokens, and of tokens inside and the fused vector.
    depth
        Blocks that a token passes; a layout of two stages needs at least 2 and gives the first stage half of them
        (rounded down).
    heads, mlp_ratio, dropout
        See :class:`~vqa_core.fusion.blocks.TransformerBlock`.
    image_length, text_length
        The most tokens that have a position; None (the default) for no positions, for tokens that are a set or carry
        their place among their features: see :class:`~vqa_core.fusion.stages.TokenEmbedding`.

    Notes
    -----
    ``image`` and ``text`` of the output are the embedded tokens that enter the first layer, (B, Nᵢ, out_dim) and
    (B, Nₜ, out_dim). ``attention`` is the last layer's, when it is asked for: one map (B, heads, N, N) over
    N = Nᵢ + Nₜ tokens, image first; weights that a layout does not have are 0.
    """

    stages: tuple[type[nn.Module], ...]

    def __init__(
        self,
        image_dim: int,
        text_dim: int,
        out_dim: int,
        depth: int = 2,
        heads: int = 4,
        image_length: int | None = None,
        text_length: int | None = None,
        mlp_ratio: float = 4.0,
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        if depth < len(self.stages):
            raise ValueError(f"depth is {depth}; {type(self).__name__} needs at least {len(self.stages)}")
        self.out_dim = out_dim
        self.image_embedding = TokenEmbedding("image", image_dim, out_dim, image_length)
        self.text_embedding = TokenEmbedding("text", text_dim, out_dim, text_length)
        first = depth // len(self.stages)  # all of them where there is one stage
        kinds = [self.stages[0]] * first + [self.stages[-1]] * (depth - first)
        self.layers = nn.ModuleList(kind(out_dim, heads, mlp_ratio, dropout) for kind in kinds)
        self.norm = nn.LayerNorm(out_dim)

    def embed(
        self,
        image_tokens: Tensor,
        text_tokens: Tensor,
        image_mask: Tensor | None = None,
        text_mask: Tensor | None = None,
    ) -> Streams:
        """Both modalities with out_dim features, as they enter :meth:`meet`."""
        image = self.image_embedding(image_tokens, image_mask)  # (B, Nᵢ, D)
        return Streams(image, self.text_embedding(text_tokens, text_mask), image_mask, text_mask)  # (B, Nₜ, D)

    def meet(self, streams: Streams, need_weights: bool = False) -> tuple[Streams, list[Tensor]]:
        """All layers: what becomes of both streams, and each layer's weights (none unless asked for)."""
        maps = []
        for layer in self.layers:
            streams, weights = layer(streams, need_weights)
            if need_weights:
                maps.append(weights)
        return streams, maps

    def forward(
        self,
        image_tokens: Tensor,
        text_tokens: Tensor,
        image_mask: Tensor | None = None,
        text_mask: Tensor | None = None,
        need_weights: bool = False,
    ) -> FusionOutput:
        """Fuse; shapes as in :meth:`vqa_core.fusion.vector.VectorFusion.forward`, ``attention`` only on request."""
        embedded = self.embed(image_tokens, text_tokens, image_mask, text_mask)
        streams, maps = self.meet(embedded, need_weights)
        fused = self.norm(masked_mean(*streams.joined()))  # (B, D)
        return FusionOutput(fused, embedded.image, embedded.text, maps[-1] if need_weights else None)


class EarlyConcatenation(Layout):
    """Tf(C(I, T)): one sequence from the first layer on."""

    stages = (JointLayer,)


class MultiToOne(Layout):
    """Tf₃(C(Tf₁(I), Tf₂(T))): several streams become one."""

    stages = (OwnLayer, JointLayer)


class OneToMulti(Layout):
    """C(I, T) through Tf₁, split back, then Tf₂ and Tf₃ on their own: one stream becomes several."""

    stages = (JointLayer, OwnLayer)


class CrossAttention(Layout):
    """Tf₁(Q_I, K_T, V_T) and Tf₂(Q_T, K_I, V_I): each stream reads the other, layer by layer."""

    stages = (CrossLayer,)


class CrossAttentionToConcatenation(Layout):
    """Tf₃(C(Tf₁(Q_I, K_T, V_T), Tf₂(Q_T, K_I, V_I))): cross attention first, then one sequence."""

    stages = (CrossLayer, JointLayer)


class EarlySummation(Layout):
    """Tf(I ⊕ T): the question is added to the image tokens, token by token; then there are only image tokens.

    A sum needs as many text tokens as image tokens. The text side is therefore brought onto the image side first, with
    its real tokens only:

    - ``"pool"``: every image token gets the mean of the words. Word order is lost, image tokens stay a set.
    - ``"resample"``: the row of words is stretched onto the row of real image tokens by linear interpolation; the first
      word meets the first image token, the last the last. With fewer image tokens than words, words are skipped.

    Parameters
    ----------
    align
        ``"pool"`` or ``"resample"``.
    **options
        Those of :class:`Layout`.

    Notes
    -----
    ``attention`` is (B, heads, Nᵢ, Nᵢ): each image token carries its share of the words.
    """

    stages = (JointLayer,)

    def __init__(self, image_dim: int, text_dim: int, out_dim: int, align: str = "pool", **options) -> None:
        super().__init__(image_dim, text_dim, out_dim, **options)
        self.align = choose("align", align, ("pool", "resample"))

    def meet(self, streams: Streams, need_weights: bool = False) -> tuple[Streams, list[Tensor]]:
        """As in :class:`Layout`; the text stream that comes out is empty, (B, 0, D)."""
        image, text, image_mask, text_mask = streams
        if self.align == "pool":
            text = masked_mean(text, text_mask).unsqueeze(1)  # (B, 1, D)
        else:
            text = stretched(text, all_real(text, text_mask), all_real(image, image_mask))  # (B, Nᵢ, D)
        nothing = text[:, :0], image_mask, None if image_mask is None else image_mask[:, :0]
        return super().meet(Streams(image + text, *nothing), need_weights)


def stretched(tokens: Tensor, mask: Tensor, onto: Tensor) -> Tensor:
    """A row of tokens stretched onto another row's real places by linear interpolation.

    Parameters
    ----------
    tokens
        (B, Nₜ, D).
    mask
        bool (B, Nₜ), True at the n real tokens.
    onto
        bool (B, Nᵢ), True at the m real places. Place r of them, counted from 0, gets the tokens at r (n − 1)/(m − 1).

    Returns
    -------
    Tensor
        (B, Nᵢ, D); zeros in a row without a real token.
    """
    order = (~mask).long().argsort(dim=1, stable=True)  # (B, Nₜ), real tokens first
    row = tokens.gather(1, order.unsqueeze(-1).expand_as(tokens))  # (B, Nₜ, D)
    last = mask.sum(1, keepdim=True).sub(1).clamp(min=0)  # (B, 1), n − 1
    place = onto.cumsum(1).sub(1).clamp(min=0)  # (B, Nᵢ), r
    at = place * last / onto.sum(1, keepdim=True).sub(1).clamp(min=1)  # (B, Nᵢ)
    below = at.floor().long()
    above = torch.minimum(below + 1, last)

    def pick(index: Tensor) -> Tensor:
        return row.gather(1, index.unsqueeze(-1).expand(-1, -1, row.shape[-1]))  # (B, Nᵢ, D)

    mixed = torch.lerp(pick(below), pick(above), (at - below).to(row.dtype).unsqueeze(-1))  # (B, Nᵢ, D)
    return mixed.masked_fill(~mask.any(1)[:, None, None], 0.0)


LAYOUTS: dict[str, type[Layout]] = {
    "early_summation": EarlySummation,
    "early_concatenation": EarlyConcatenation,
    "multi_to_one": MultiToOne,
    "one_to_multi": OneToMulti,
    "cross_attention": CrossAttention,
    "cross_attention_to_concatenation": CrossAttentionToConcatenation,
}


# ---------------------------------------------------------------------------------------------- three modalities


class TriCoAttention(nn.Module):
    """Co-attention of three modalities: the concatenated queries of two read keys and values of the third.

    There are three such readings, one of each modality; so every token reads both other modalities, in two blocks, and
    becomes the mean of what the two make of it. The form is that of TriBERT (Rahman, Yang and Sigal 2021, arXiv
    2110.13412) as the notes behind this book describe it.

    Parameters
    ----------
    dim, heads, mlp_ratio, dropout
        See :class:`ReadingBlock`.
    """

    def __init__(self, dim: int, heads: int, mlp_ratio: float = 4.0, dropout: float = 0.0) -> None:
        super().__init__()
        self.dim = dim
        self.read = nn.ModuleList(ReadingBlock(dim, heads, mlp_ratio, dropout) for _ in range(3))

    def forward(
        self, tokens: tuple[Tensor, Tensor, Tensor], masks: tuple[Tensor | None, ...] = (None,) * 3,
        need_weights: bool = False,
    ) -> tuple[tuple[Tensor, ...], list[Tensor | None]]:  # fmt: skip
        """One round of co-attention.

        Parameters
        ----------
        tokens
            Three times (B, N_m, D).
        masks
            Three times bool (B, N_m), True at real tokens, or None.
        need_weights
            Whether to return the weights.

        Returns
        -------
        tokens
            Three times (B, N_m, D).
        weights
            Of reading m: (B, H, N_a + N_b, N_m), with a < b the other two; or None.
        """
        if len(tokens) != 3 or len(masks) != 3 or any(t.ndim != 3 or t.shape[-1] != self.dim for t in tokens):
            raise ValueError(
                f"give three modalities (B, N, {self.dim}) and three masks; "
                f"got {[tuple(t.shape) for t in tokens]} and {len(masks)} masks"
            )
        became: list[list[Tensor]] = [[], [], []]
        maps = []
        for m, block in enumerate(self.read):
            a, b = (k for k in range(3) if k != m)
            queries = torch.cat([tokens[a], tokens[b]], dim=1)  # (B, N_a + N_b, D)
            read, weights = block(queries, tokens[m], masks[m], need_weights)  # (B, N_a + N_b, D)
            became[a].append(read[:, : tokens[a].shape[1]])  # (B, N_a, D)
            became[b].append(read[:, tokens[a].shape[1] :])  # (B, N_b, D)
            maps.append(weights)
        return tuple(torch.stack(two).mean(0) for two in became), maps
