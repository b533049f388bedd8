"""The cross-attention modules v0 to v11: every version is its difference from the one before.

Each module maps image tokens and text tokens to new ones of the same lengths, (I, T) → (I', T'). All go the same way:

1. ``prepare``: what of a side enters the attention;
2. ``attention``: what each side reads of the other, weighted by softmax(Q Kᵀ/√d);
3. ``finish``: what becomes of what was read.

A version overrides the step that it changes, and nothing else; :func:`differences` lists this from the code.
Source: the cross-attention chapter of *Deep Learning DNA* (chapter 10), which trains the seventeen modules v0 to v11 on
sequences of **one** token; chapter 6 of this book shows why nothing is attended to there.

Leading axes broadcast. ``module(image, text)`` with (B, Nᵢ, D) and (B, Nₜ, D) joins picture b with caption b;
``module(image[:, None], text[None])`` joins every picture with every caption, and what depends on one side only is
computed once per side.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vqa_core.fusion.output import masked_softmax


class CrossAttended(NamedTuple):
    """What a module makes of a picture and a caption.

    Attributes
    ----------
    image, text
        I' (…, Nᵢ, D) and T' (…, Nₜ, D). Rows of padding tokens mean nothing; mask them when pooling.
    image_weights, text_weights
        How much each image token takes of each text token, (…, H, Nᵢ, Nₜ), and the other way round, (…, H, Nₜ, Nᵢ);
        None unless asked for. v10_5 and v11 have their levels side by side on the axis of heads.
    """

    image: Tensor
    text: Tensor
    image_weights: Tensor | None = None
    text_weights: Tensor | None = None


class Read(NamedTuple):
    """What one side took from the other, (…, N, D), and with which weights (…, H, N, M), if they are known."""

    tokens: Tensor
    weights: Tensor | None


def weigh(queries: Tensor, keys: Tensor, mask: Tensor | None = None) -> Tensor:
    """softmax(Q Kᵀ/√d) over real keys: (…, N, d) and (…, M, d) → (…, N, M); mask broadcasts to that, True at real keys.

    ``einsum`` sees which leading axes are broadcast, so that all pairs of a batch are one matrix product.
    """
    scores = torch.einsum("...nd,...md->...nm", queries, keys) * keys.shape[-1] ** -0.5
    return masked_softmax(scores, mask)


def take(weights: Tensor, values: Tensor) -> Tensor:
    """Weighted sums of values: (…, N, M) and (…, M, d) → (…, N, d)."""
    return torch.einsum("...nm,...md->...nd", weights, values)


def split_heads(x: Tensor, heads: int) -> Tensor:
    """(…, N, D) → (…, H, N, D / H)."""
    return x.unflatten(-1, (heads, -1)).transpose(-3, -2)


def merge_heads(x: Tensor) -> Tensor:
    """(…, H, N, d) → (…, N, H · d)."""
    return x.transpose(-3, -2).flatten(-2)


def keys_mask(mask: Tensor | None) -> Tensor | None:
    """Mask of tokens (…, M) as a mask of keys (…, 1, 1, M), for heads and queries."""
    return None if mask is None else mask[..., None, None, :]


def attend(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, dropout: float, need_weights: bool) -> Read:
    """Multi-head attention: queries (…, H, N, d), keys and values (…, H, M, d), mask (…, M) → tokens (…, N, H · d).

    Without ``need_weights``, PyTorch's fused attention, which never stores the weights (on the CPU it has no dropout).
    """
    if need_weights or (dropout > 0 and q.device.type == "cpu"):
        weights = F.dropout(weigh(q, k, keys_mask(mask)), dropout)  # (…, H, N, M)
        return Read(merge_heads(take(weights, v)), weights)
    lead = torch.broadcast_shapes(q.shape[:-2], k.shape[:-2])  # (…, H)
    q, k, v = (t.expand(*lead, *t.shape[-2:]).flatten(0, -4) for t in (q, k, v))  # (B, H, ·, d), B over all pairs
    if mask is not None:
        mask = mask.expand(*lead[:-1], mask.shape[-1]).flatten(0, -2)[:, None, None]  # (B, 1, 1, M)
    tokens = F.scaled_dot_product_attention(q, k, v, attn_mask=mask, dropout_p=dropout)  # (B, H, N, d)
    return Read(merge_heads(tokens.unflatten(0, lead[:-1])), None)


class CrossAttention(nn.Module):
    """Base of all versions, and v0: two softmaxes without a parameter, I' = softmax(I Tᵀ/√D) T and the mirror image.

    Parameters
    ----------
    dim
        D, features of a token on both sides and of the outputs.
    heads
        H, for the versions that have heads; divides D.
    dropout
        Probability, for the versions that have dropout (v9 and later).
    """

    title = "two softmaxes, no parameter"

    def __init__(self, dim: int, heads: int = 8, dropout: float = 0.1) -> None:
        super().__init__()
        if dim % heads:
            raise ValueError(f"dim={dim} is not a multiple of heads={heads}")
        self.dim, self.heads, self.rate = dim, heads, dropout

    def forward(
        self,
        image_tokens: Tensor,
        text_tokens: Tensor,
        image_mask: Tensor | None = None,
        text_mask: Tensor | None = None,
        need_weights: bool = False,
    ) -> CrossAttended:
        """Join two sides.

        Parameters
        ----------
        image_tokens, text_tokens
            (…, Nᵢ, D) and (…, Nₜ, D) with at least one leading axis; leading axes broadcast.
        image_mask, text_mask
            bool (…, Nᵢ) and (…, Nₜ), True at real tokens; None when all are real.
        need_weights
            Whether to return the attention weights.
        """
        for name, tokens in (("image", image_tokens), ("text", text_tokens)):
            if tokens.shape[-1] != self.dim:
                raise ValueError(f"{name} tokens have {tokens.shape[-1]} features, the module has dim={self.dim}")
        image, text = self.prepare(image_tokens, "image"), self.prepare(text_tokens, "text")
        from_text, from_image = self.attention(image, text, image_mask, text_mask, need_weights)
        new_image, new_text = self.meet(from_text.tokens, from_image.tokens, image_mask, text_mask)
        return CrossAttended(
            self.finish(new_image, image_tokens, image, "image"),
            self.finish(new_text, text_tokens, text, "text"),
            from_text.weights if need_weights else None,
            from_image.weights if need_weights else None,
        )

    def prepare(self, x: Tensor, side: str) -> Tensor:
        """What of the tokens x (…, N, D) of a side, ``"image"`` or ``"text"``, enters the attention."""
        return x

    def attention(self, image, text, image_mask, text_mask, need_weights) -> tuple[Read, Read]:
        """What the image tokens read of the text, and the text tokens of the picture."""
        to_text = weigh(image, text, None if text_mask is None else text_mask[..., None, :])  # (…, Nᵢ, Nₜ)
        to_image = weigh(text, image, None if image_mask is None else image_mask[..., None, :])  # (…, Nₜ, Nᵢ)
        return Read(take(to_text, text), to_text.unsqueeze(-3)), Read(take(to_image, image), to_image.unsqueeze(-3))

    def meet(self, image, text, image_mask, text_mask) -> tuple[Tensor, Tensor]:
        """What the two sides, having read, do to each other (nothing, but in v10_6)."""
        return image, text

    def finish(self, read: Tensor, x: Tensor, prepared: Tensor, side: str) -> Tensor:
        """What becomes of ``read`` (…, N, D), given the side's tokens x as they came and as they were prepared."""
        return read


class V1(CrossAttention):
    """One score matrix A for both directions: I' = A T, T' = Aᵀ I; Aᵀ is *not* normalised again."""

    title = "one matrix A, transposed for the way back"

    def attention(self, image, text, image_mask, text_mask, need_weights):
        return self.one_matrix(image, text, text, image, image_mask, text_mask)

    def one_matrix(self, queries, keys, text_values, image_values, image_mask, text_mask) -> tuple[Read, Read]:
        """I' = A V_T and T' = Aᵀ V_I with A = softmax(Q Kᵀ/√d) over the text."""
        a = weigh(queries, keys, None if text_mask is None else text_mask[..., None, :])  # (…, Nᵢ, Nₜ)
        if image_mask is not None:
            a = a * image_mask[..., None]  # a padding token of the picture gives nothing to the text
        back = a.transpose(-1, -2)  # (…, Nₜ, Nᵢ)
        return Read(take(a, text_values), a.unsqueeze(-3)), Read(take(back, image_values), back.unsqueeze(-3))


class V2(V1):
    """v1 on LN(I), LN(T), with one LayerNorm for both."""

    title = "one shared LayerNorm first"

    def __init__(self, dim: int, heads: int = 8, dropout: float = 0.1) -> None:
        super().__init__(dim, heads, dropout)
        self.norm = nn.LayerNorm(dim)

    def prepare(self, x, side):
        return self.norm(x)


class V3(V2):
    """v2 with a residual connection from the inputs as they came: I' += I, T' += T."""

    title = "residual from the raw inputs"

    def finish(self, read, x, prepared, side):
        return read + x


class V4(V2):
    """v2 with a linear map of its own for each modality after the LayerNorm; scores and values both use it."""

    title = "a linear map per modality"

    def __init__(self, dim: int, heads: int = 8, dropout: float = 0.1) -> None:
        super().__init__(dim, heads, dropout)
        self.project = nn.ModuleDict({side: nn.Linear(dim, dim) for side in ("image", "text")})

    def prepare(self, x, side):
        return self.project[side](self.norm(x))


class V5(V2):
    """v2 with a fixed mixture: I' ← ½ LN(I) + ½ I', T' ← ½ LN(T) + ½ T'."""

    title = "fixed half-and-half mixture"

    def finish(self, read, x, prepared, side):
        return 0.5 * prepared + 0.5 * read


class V6(V2):
    """v2 with learned maps: A from W_q LN(I) and W_k LN(T), values W_v LN(T) and W_v LN(I)."""

    title = "query, key and value maps"

    def __init__(self, dim: int, heads: int = 8, dropout: float = 0.1) -> None:
        super().__init__(dim, heads, dropout)
        self.query, self.key, self.value = (nn.Linear(dim, dim) for _ in range(3))

    def attention(self, image, text, image_mask, text_mask, need_weights):
        values = self.value(text), self.value(image)
        return self.one_matrix(self.query(image), self.key(text), *values, image_mask, text_mask)


class V7(V6):
    """v6 with H heads, but *both* sides read the text's values; one output map, and the same LayerNorm again.

    As published, T' = Aᵀ V_T, whose shapes fit only where Nᵢ = Nₜ. Here T' = Aᵀ (A V_T): the text reads its values back
    from where the picture put them. For one token on each side this is the same.
    """

    title = "H heads, both sides read text values"

    def __init__(self, dim: int, heads: int = 8, dropout: float = 0.1) -> None:
        super().__init__(dim, heads, dropout)
        self.out = nn.Linear(dim, dim)

    def attention(self, image, text, image_mask, text_mask, need_weights):
        q, k, v = (split_heads(t, self.heads) for t in (self.query(image), self.key(text), self.value(text)))
        a = weigh(q, k, keys_mask(text_mask))  # (…, H, Nᵢ, Nₜ)
        if image_mask is not None:
            a = a * image_mask[..., None, :, None]
        read, back = take(a, v), a.transpose(-1, -2)  # (…, H, Nᵢ, d), (…, H, Nₜ, Nᵢ)
        return Read(self.out(merge_heads(read)), a), Read(self.out(merge_heads(take(back, read))), back)

    def finish(self, read, x, prepared, side):
        return self.norm(read)


class V8(V2):
    """Two independent directions with H heads each; W_q, W_k, W_v and W_o are shared; a second LayerNorm at the end."""

    title = "two directions, shared maps"

    def __init__(self, dim: int, heads: int = 8, dropout: float = 0.1) -> None:
        super().__init__(dim, heads, dropout)
        self.make_maps(dim)
        self.out = nn.Linear(dim, dim)
        self.make_end(dim)

    def make_maps(self, dim: int) -> None:
        """Make the maps that :meth:`queries` and :meth:`keys_and_values` use."""
        self.query, self.key, self.value = (nn.Linear(dim, dim) for _ in range(3))

    def make_end(self, dim: int) -> None:
        """Make what :meth:`finish` uses."""
        self.out_norm = nn.LayerNorm(dim)

    def queries(self, x: Tensor, side: str) -> Tensor:
        """(…, N, D) → (…, H, N, d)."""
        return split_heads(self.query(x), self.heads)

    def keys_and_values(self, x: Tensor, side: str) -> tuple[Tensor, Tensor]:
        """(…, M, D) → twice (…, H, M, d)."""
        return split_heads(self.key(x), self.heads), split_heads(self.value(x), self.heads)

    def read(self, x: Tensor, side: str, other: Tensor, other_side: str, mask, need_weights: bool) -> Read:
        """What the tokens x of one side read of the other, before W_o."""
        keys, values = self.keys_and_values(other, other_side)
        return attend(self.queries(x, side), keys, values, mask, self.attention_dropout, need_weights)

    @property
    def attention_dropout(self) -> float:
        """Probability of dropping an attention weight now."""
        return 0.0

    def attention(self, image, text, image_mask, text_mask, need_weights):
        from_text = self.read(image, "image", text, "text", text_mask, need_weights)
        from_image = self.read(text, "text", image, "image", image_mask, need_weights)
        return tuple(r._replace(tokens=self.put_out(r.tokens)) for r in (from_text, from_image))

    def put_out(self, x: Tensor) -> Tensor:
        """W_o, (…, N, D) → (…, N, D)."""
        return self.out(x)

    def finish(self, read, x, prepared, side):
        return self.out_norm(read)


class GatedFeedForward(nn.Module):
    """W₂ (drop(GELU(W_g x)) ⊙ drop(GELU(W_u x))), 4 D wide inside: (…, D) → (…, D)."""

    def __init__(self, dim: int, dropout: float) -> None:
        super().__init__()
        self.gate, self.up, self.down = nn.Linear(dim, 4 * dim), nn.Linear(dim, 4 * dim), nn.Linear(4 * dim, dim)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor) -> Tensor:
        return self.down(self.dropout(F.gelu(self.gate(x))) * self.dropout(F.gelu(self.up(x))))


class V9(V8):
    """v8 with dropout and a pre-norm gated feed-forward in place of the last LayerNorm; no residual from I or T."""

    title = "dropout, gated feed-forward"

    def make_end(self, dim):
        self.dropout = nn.Dropout(self.rate)
        self.feed_norm, self.feed_forward = nn.LayerNorm(dim), GatedFeedForward(dim, self.rate)

    @property
    def attention_dropout(self):
        return self.rate if self.training else 0.0

    def put_out(self, x):
        return self.dropout(self.out(x))

    def finish(self, read, x, prepared, side):
        return self.dropout(self.feed_forward(self.feed_norm(read))) + read


class V10_1(V9):
    """v9 with query, key and value maps of its own for each modality: six maps."""

    title = "maps per modality"

    def make_maps(self, dim):
        sides = ("image", "text")
        self.query, self.key, self.value = (
            nn.ModuleDict({side: nn.Linear(dim, dim) for side in sides}) for _ in range(3)
        )

    def queries(self, x, side):
        return split_heads(self.query[side](x), self.heads)

    def keys_and_values(self, x, side):
        return split_heads(self.key[side](x), self.heads), split_heads(self.value[side](x), self.heads)


class V10_2(V9):
    """v9 with a gate on what was read: a ← a ⊙ σ(W LN([a ; x])), x being the side's input as it came."""

    title = "a gate on what was read"

    def make_end(self, dim):
        super().make_end(dim)
        self.gate_norm = nn.LayerNorm(2 * dim)
        self.gate = nn.ModuleDict({side: nn.Linear(2 * dim, dim) for side in ("image", "text")})

    def finish(self, read, x, prepared, side):
        x = x.expand_as(read)  # (…, N, D): the same input in every pair
        gate = self.gate[side](self.gate_norm(torch.cat([read, x], dim=-1))).sigmoid()  # (…, N, D)
        return super().finish(read * gate, x, prepared, side)


class V10_3(V9):
    """v9 whose queries, keys and values read context features: LN, then a two-layer perceptron per modality."""

    title = "a context layer per modality"

    def make_maps(self, dim):
        super().make_maps(dim)
        self.context = nn.ModuleDict(
            {side: nn.Sequential(nn.Linear(dim, dim), nn.GELU(), nn.Linear(dim, dim)) for side in ("image", "text")}
        )

    def prepare(self, x, side):
        return self.context[side](self.norm(x))


class V10_4(V9):
    """v9 with keys and values from one map D → 2 D: called "multi-query", though every head still has its own."""

    title = "one map for keys and values"

    def make_maps(self, dim):
        self.query, self.key_value = nn.Linear(dim, dim), nn.Linear(dim, 2 * dim)

    def keys_and_values(self, x, side):
        return tuple(split_heads(t, self.heads) for t in self.key_value(x).chunk(2, dim=-1))


class V10_4_MQA(V10_4):
    """v10_4 as its name says: one head of keys and values, which all H heads of queries share.

    Multi-query attention is due to Shazeer (2019, arXiv 1911.02150).
    """

    title = "true multi-query attention"

    def make_maps(self, dim):
        self.query, self.key_value = nn.Linear(dim, dim), nn.Linear(dim, 2 * dim // self.heads)

    def keys_and_values(self, x, side):
        return tuple(t.unsqueeze(-3) for t in self.key_value(x).chunk(2, dim=-1))  # (…, 1, M, d) each


class V10_5(V9):
    """v9 on three learned levels, LN_ℓ(P_ℓ x); what they read is added up with learned softmax weights, then W_o."""

    title = "three levels"
    LEVELS = 3

    def make_maps(self, dim):
        super().make_maps(dim)
        del self.norm  # the levels have their own
        self.levels = nn.ModuleList(nn.Sequential(nn.Linear(dim, dim), nn.LayerNorm(dim)) for _ in range(self.LEVELS))
        self.level_scores = nn.Parameter(torch.zeros(self.LEVELS))

    def prepare(self, x, side):
        return x

    def attention(self, image, text, image_mask, text_mask, need_weights):
        from_text, from_image = [], []
        for level in self.levels:
            i, t = level(image), level(text)
            from_text.append(self.read(i, "image", t, "text", text_mask, need_weights))
            from_image.append(self.read(t, "text", i, "image", image_mask, need_weights))
        return self.add_up(from_text), self.add_up(from_image)

    def add_up(self, reads: list[Read]) -> Read:
        """The levels' reads (…, N, D), weighted, and through W_o."""
        return Read(self.put_out(self.weighted([r.tokens for r in reads])), _side_by_side(reads))

    def weighted(self, tokens: list[Tensor]) -> Tensor:
        """Σ_ℓ softmax(s)_ℓ · tokens_ℓ."""
        return sum(w * t for w, t in zip(self.level_scores.softmax(0), tokens))


class V10_6(V9):
    """v9 in which each token, having read, adds 0.1 × its mean cosine with the other side's tokens to all its features.

    As published, the matrix of cosines (Nᵢ, Nₜ) is added to the tokens (N, D), which fits only for one token on each
    side (then it is one scalar) or by accident. The mean over the other side's real tokens fits always.
    """

    title = "adds a cosine"

    def make_end(self, dim):
        super().make_end(dim)
        self.contrast = nn.Linear(dim, dim)

    def meet(self, image, text, image_mask, text_mask):
        c_image, c_text = (F.normalize(self.contrast(x), dim=-1) for x in (image, text))  # (…, N, D) each
        cosines = torch.einsum("...nd,...md->...nm", c_image, c_text)  # (…, Nᵢ, Nₜ)
        image = image + 0.1 * _mean_over(cosines, text_mask)
        return image, text + 0.1 * _mean_over(cosines.transpose(-1, -2), image_mask)


class V11(V10_5):
    """v10_5 with the keys and values of v10_4; W_o is applied to each level before the weighted sum."""

    title = "levels and one key-value map"

    def make_maps(self, dim):
        super().make_maps(dim)
        del self.key, self.value
        self.key_value = nn.Linear(dim, 2 * dim)

    keys_and_values = V10_4.keys_and_values

    def add_up(self, reads):
        return Read(self.weighted([self.put_out(r.tokens) for r in reads]), _side_by_side(reads))


def _side_by_side(reads: list[Read]) -> Tensor | None:
    """The levels' weights on the axis of heads, (…, levels · H, N, M)."""
    return None if reads[0].weights is None else torch.cat([r.weights for r in reads], dim=-3)


def _mean_over(cosines: Tensor, mask: Tensor | None) -> Tensor:
    """Mean over the real ones of the last axis, kept: (…, N, M) → (…, N, 1)."""
    if mask is None:
        return cosines.mean(-1, keepdim=True)
    real = mask[..., None, :].to(cosines.dtype)  # (…, 1, M)
    return (cosines * real).sum(-1, keepdim=True) / real.sum(-1, keepdim=True).clamp(min=1)


#: Name → constructor taking ``dim`` (and ``heads``, ``dropout``).
VERSIONS: dict[str, Callable[..., CrossAttention]] = {
    "v0": CrossAttention,
    "v1": V1,
    "v2": V2,
    "v3": V3,
    "v4": V4,
    "v5": V5,
    "v6": V6,
    "v7": V7,
    "v8": V8,
    "v9": V9,
    "v10_1": V10_1,
    "v10_2": V10_2,
    "v10_3": V10_3,
    "v10_4": V10_4,
    "v10_4_mqa": V10_4_MQA,
    "v10_5": V10_5,
    "v10_6": V10_6,
    "v11": V11,
}


def differences(dim: int = 64) -> list[dict[str, object]]:
    """What each version changes, read from the classes: rows with version, from, steps, title, parameters, more.

    ``from`` is the version that it inherits from, ``steps`` which of its methods are other ones, ``more`` the number of
    parameters beyond those of ``from``, at width ``dim``.
    """
    names = {cls: name for name, cls in VERSIONS.items()}
    count = {name: sum(p.numel() for p in make(dim).parameters()) for name, make in VERSIONS.items()}
    rows = []
    for name, cls in VERSIONS.items():
        parent = names.get(cls.__bases__[0], "")
        steps = [m for m, v in vars(cls).items() if (callable(v) or isinstance(v, property)) and m != "__init__"]
        rows.append(
            {
                "version": name,
                "from": parent,
                "steps": ", ".join(steps) if parent else "",
                "title": cls.title,
                "parameters": count[name],
                "more": count[name] - count.get(parent, 0),
            }
        )
    return rows
