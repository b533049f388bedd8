"""Several image encoders as one: side by side, added, or with attention over the tokens of all of them."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vqa_core.encoders.tokens import Tokens

WAYS = ("concat", "sum", "attention")
LUMA = (0.299, 0.587, 0.114)  # grey = these shares of red, green and blue (ITU-R BT.601)


class View(nn.Module):
    """What one encoder wants to see, made from the pictures that all encoders get.

    Parameters
    ----------
    encoder
        Any image encoder.
    size
        Side in pixels; pictures are resized, bilinear with antialiasing.
    grey
        One channel instead of three, as MAML and DAE have it.
    mean, deviation
        Of each channel on the scale from 0 to 1; they are taken off and divided by. None: stays from 0 to 1.
    """

    def __init__(
        self,
        encoder: nn.Module,
        size: int,
        grey: bool = False,
        mean: Sequence[float] | None = None,
        deviation: Sequence[float] | None = None,
    ) -> None:
        super().__init__()
        channels = 1 if grey else 3
        mean, deviation = mean or (0.0,) * channels, deviation or (1.0,) * channels
        if len(mean) != channels or len(deviation) != channels or min(deviation) <= 0:
            raise ValueError(f"mean is {mean} and deviation {deviation}; give {channels} numbers each, deviations > 0")
        self.encoder, self.size, self.grey, self.out_dim = encoder, size, grey, encoder.out_dim
        self.register_buffer("mean", torch.tensor(mean).view(-1, 1, 1), persistent=False)
        self.register_buffer("deviation", torch.tensor(deviation).view(-1, 1, 1), persistent=False)
        self.register_buffer("luma", torch.tensor(LUMA).view(-1, 1, 1), persistent=False)

    def prepare(self, pictures: Tensor) -> Tensor:
        """RGB pictures (B, 3, H, W) in [−1, 1] → what the encoder is given, (B, 1 or 3, size, size)."""
        if pictures.ndim != 4 or pictures.shape[1] != 3:
            raise ValueError(f"pictures have shape {tuple(pictures.shape)}, expected (B, 3, H, W)")
        x = (pictures + 1) / 2  # from 0 to 1
        if self.grey:
            x = (x * self.luma).sum(1, keepdim=True)  # (B, 1, H, W)
        if x.shape[-2:] != (self.size, self.size):
            x = F.interpolate(x, (self.size, self.size), mode="bilinear", antialias=True)  # (B, ·, size, size)
        return (x - self.mean) / self.deviation

    def forward(self, pictures: Tensor) -> Tokens:
        """Pictures (B, 3, H, W) in [−1, 1] → the encoder's tokens."""
        return self.encoder(self.prepare(pictures))


class Union(nn.Module):
    """Any set of image encoders as one encoder.

    ``"concat"`` and ``"sum"`` join token i of all encoders, which only makes sense when their cells lie at the same
    places: token numbers must be equal, and equal grids are the caller's promise. An encoder with one token (a pooled
    vector) joins every cell. Grids of different size cannot be joined so; ``"attention"`` takes them as they are, since
    there a token is a token, wherever it lies.

    Parameters
    ----------
    encoders
        At least one; pictures → :class:`~vqa_core.encoders.tokens.Tokens`.
    how
        ``"concat"``: features side by side, D = Σ Dₑ, nothing learned; the published way (MEVF: 64 + 64).
        ``"sum"``: each encoder's tokens through LayerNorm and a linear map to ``dim``, added.
        ``"attention"``: mapped to ``dim`` in the same way, plus a learned vector that says whose token it is; all
        tokens in one sequence, N = Σ Nₑ, and one pre-norm block of self-attention over it.
    dim
        D of ``"sum"`` and ``"attention"``.
    heads
        Heads of ``"attention"``.

    Notes
    -----
    Padding: with ``"concat"`` and ``"sum"`` a token is real where it is real in every encoder.
    """

    def __init__(self, encoders: Sequence[nn.Module], how: str = "concat", dim: int = 128, heads: int = 4) -> None:
        super().__init__()
        if how not in WAYS:
            raise ValueError(f"how is {how!r}, allowed are {', '.join(map(repr, WAYS))}")
        if not encoders:
            raise ValueError("a union needs at least one encoder")
        self.how, self.encoders = how, nn.ModuleList(encoders)
        widths = [encoder.out_dim for encoder in encoders]
        self.out_dim = sum(widths) if how == "concat" else dim
        if how != "concat":
            self.maps = nn.ModuleList(nn.Sequential(nn.LayerNorm(d), nn.Linear(d, dim)) for d in widths)
        if how == "attention":
            self.whose = nn.Parameter(torch.randn(len(widths), dim) * 0.02)
            self.attention_norm, self.mlp_norm = nn.LayerNorm(dim), nn.LayerNorm(dim)
            self.attention = nn.MultiheadAttention(dim, heads, batch_first=True)
            self.mlp = nn.Sequential(nn.Linear(dim, 4 * dim), nn.GELU(), nn.Linear(4 * dim, dim))

    def forward(self, *pictures: Tensor) -> Tokens:
        """Tokens of all encoders together.

        Parameters
        ----------
        pictures
            One tensor for all encoders, or one for each (other sizes, cached tokens).

        Returns
        -------
        Tokens
            (B, N, out_dim) and a mask when an encoder gives one.

        Raises
        ------
        ValueError
            For another number of inputs, or token numbers that cannot be joined.
        """
        parts = self._encode(pictures)
        if self.how == "attention":
            tokens, mask, _ = self._attend(parts, need_weights=False)
            return Tokens(tokens, mask)
        tokens, mask = self._aligned(parts)
        if self.how == "concat":
            return Tokens(torch.cat(tokens, dim=-1), mask)  # (B, N, Σ Dₑ)
        return Tokens(sum(m(x) for m, x in zip(self.maps, tokens)), mask)  # (B, N, dim)

    def shares(self, *pictures: Tensor) -> Tensor:
        """How much of the attention each encoder gets: (B, E), rows sum to 1; only for ``how="attention"``.

        The mean over heads and over all real tokens that attend.
        """
        if self.how != "attention":
            raise ValueError(f"this union is made with how={self.how!r}; only 'attention' has shares")
        parts = self._encode(pictures)
        _, mask, weights = self._attend(parts, need_weights=True)  # weights (B, N, N), mean over heads
        real = torch.ones_like(weights[..., 0]) if mask is None else mask.to(weights.dtype)  # (B, N)
        read = torch.einsum("bq,bqk->bk", real / real.sum(1, keepdim=True), weights)  # (B, N)
        lengths = [part.tokens.shape[1] for part in parts]
        return torch.stack([x.sum(1) for x in read.split(lengths, dim=1)], dim=1)  # (B, E)

    def _encode(self, pictures: tuple[Tensor, ...]) -> list[Tokens]:
        if len(pictures) not in (1, len(self.encoders)):
            raise ValueError(f"{len(pictures)} inputs for {len(self.encoders)} encoders; give one for all or one each")
        inputs = pictures * len(self.encoders) if len(pictures) == 1 else pictures
        return [encoder(x) for encoder, x in zip(self.encoders, inputs)]

    @staticmethod
    def _aligned(parts: list[Tokens]) -> tuple[list[Tensor], Tensor | None]:
        """All tokens with the same N, one token repeated where there is only one, and their common mask."""
        lengths = [part.tokens.shape[1] for part in parts]
        n = max(lengths)
        if set(lengths) - {1, n}:
            raise ValueError(
                f"the encoders give {lengths} tokens, which do not lie at the same places; use how='attention', or "
                "pooled forms (one token)"
            )
        masks = [part.mask.expand(-1, n) for part in parts if part.mask is not None]
        mask = torch.stack(masks).all(0) if masks else None  # (B, N)
        return [part.tokens.expand(-1, n, -1) for part in parts], mask

    def _attend(self, parts: list[Tokens], need_weights: bool) -> tuple[Tensor, Tensor | None, Tensor | None]:
        mapped = [m(part.tokens) + whose for m, part, whose in zip(self.maps, parts, self.whose)]
        x = torch.cat(mapped, dim=1)  # (B, Σ Nₑ, dim)
        mask = None
        if any(part.mask is not None for part in parts):
            masks = [
                torch.ones(part.tokens.shape[:2], dtype=torch.bool, device=x.device) if part.mask is None else part.mask
                for part in parts
            ]
            mask = torch.cat(masks, dim=1)  # (B, Σ Nₑ)
            if not mask.any(1).all():
                raise ValueError("a picture has no real token in any encoder; check the masks")
        h = self.attention_norm(x)
        padding = None if mask is None else ~mask
        read, weights = self.attention(h, h, h, key_padding_mask=padding, need_weights=need_weights)
        x = x + read  # (B, Σ Nₑ, dim)
        return x + self.mlp(self.mlp_norm(x)), mask, weights
