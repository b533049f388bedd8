"""Perceiver: a few latent tokens read any number of inputs; Perceiver IO: output queries read the latents."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from vqa_core.fusion.blocks import TransformerBlock
from vqa_core.fusion.output import FusionOutput
from vqa_core.fusion.stages import TokenEmbedding
from vqa_core.fusion.transformer import Layout, ReadingBlock


class Perceiver(nn.Module):
    """Perceiver (Jaegle et al. 2021, arXiv 2103.03206) over [image ; text].

    L learned latents read the N inputs, O(N L), then read one another in ``latent_blocks`` blocks, O(L²) each; all this
    ``reads`` times. Nothing is quadratic in N. The fused vector is the norm of the latents' mean.

    The published ImageNet model has 512 latents of 1,024 features, 8 readings with 6 latent blocks after each, 1 head
    in a reading and 8 among latents. A widespread re-implementation has 512 latents of 512 features and 1 latent block
    after each of 6 readings.

    Parameters
    ----------
    image_dim, text_dim, out_dim
        Features of image tokens, text tokens, and of latents and the fused vector.
    latents
        L.
    reads, latent_blocks
        How often the inputs are read, and how many blocks follow each reading.
    heads, cross_heads
        Heads among the latents, and in a reading.
    shared
        One reading block and one row of latent blocks for all ``reads``: a recurrent network unrolled in depth.
    image_length, text_length
        See :class:`~vqa_core.fusion.transformer.Layout`.
    mlp_ratio, dropout
        See :class:`~vqa_core.fusion.blocks.TransformerBlock`.

    Notes
    -----
    ``image`` and ``text`` of the output are the embedded inputs, (B, Nᵢ, out_dim) and (B, Nₜ, out_dim); ``attention``
    is that of the last reading, (B, cross_heads, L, Nᵢ + Nₜ), when it is asked for.
    """

    def __init__(
        self,
        image_dim: int,
        text_dim: int,
        out_dim: int,
        latents: int = 16,
        reads: int = 1,
        latent_blocks: int = 2,
        heads: int = 4,
        cross_heads: int = 1,
        shared: bool = False,
        image_length: int | None = None,
        text_length: int | None = None,
        mlp_ratio: float = 4.0,
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        for name, number, least in (("latents", latents, 1), ("reads", reads, 1), ("latent_blocks", latent_blocks, 0)):
            if number < least:
                raise ValueError(f"{name} is {number}, it must be at least {least}")
        self.out_dim, self.reads = out_dim, reads
        self.image_embedding = TokenEmbedding("image", image_dim, out_dim, image_length)
        self.text_embedding = TokenEmbedding("text", text_dim, out_dim, text_length)
        self.latents = nn.Parameter(torch.randn(1, latents, out_dim) * 0.02)
        rounds = 1 if shared else reads
        self.reading = nn.ModuleList(ReadingBlock(out_dim, cross_heads, mlp_ratio, dropout) for _ in range(rounds))
        self.thinking = nn.ModuleList(
            nn.ModuleList(TransformerBlock(out_dim, heads, mlp_ratio, dropout) for _ in range(latent_blocks))
            for _ in range(rounds)
        )
        self.norm = nn.LayerNorm(out_dim)

    embed = Layout.embed

    def encode(
        self, inputs: Tensor, mask: Tensor | None = None, need_weights: bool = False
    ) -> tuple[Tensor, Tensor | None]:
        """Inputs (B, N, D) with mask (B, N) → latents (B, L, D), and weights (B, cross_heads, L, N) or None."""
        x, weights = self.latents.repeat(len(inputs), 1, 1), None  # (B, L, D)
        for k in range(self.reads):
            k = min(k, len(self.reading) - 1)  # with shared weights there is one of each
            x, weights = self.reading[k](x, inputs, mask, need_weights)  # (B, L, D)
            for block in self.thinking[k]:
                x, _ = block(x)  # (B, L, D)
        return x, weights

    def pool(self, latents: Tensor) -> Tensor:
        """Latents (B, L, D) → (B, D)."""
        return latents.mean(dim=1)

    def forward(
        self,
        image_tokens: Tensor,
        text_tokens: Tensor,
        image_mask: Tensor | None = None,
        text_mask: Tensor | None = None,
        need_weights: bool = False,
    ) -> FusionOutput:
        """Fuse; shapes as in :meth:`vqa_core.fusion.vector.VectorFusion.forward`, ``attention`` only on request."""
        streams = self.embed(image_tokens, text_tokens, image_mask, text_mask)
        latents, weights = self.encode(*streams.joined(), need_weights)  # (B, L, D)
        return FusionOutput(self.norm(self.pool(latents)), streams.image, streams.text, weights)


class PerceiverIO(Perceiver):
    """Perceiver IO (Jaegle et al. 2022, arXiv 2107.14795): outputs of any number and kind, one query for each.

    The fused vector answers one learned query. :meth:`decode` takes any others: a query for each word of a caption, for
    each pixel, for each task.

    Parameters
    ----------
    **options
        Those of :class:`Perceiver`.
    """

    def __init__(self, image_dim: int, text_dim: int, out_dim: int, **options) -> None:
        super().__init__(image_dim, text_dim, out_dim, **options)
        shape = options.get("mlp_ratio", 4.0), options.get("dropout", 0.0)
        self.answering = ReadingBlock(out_dim, options.get("cross_heads", 1), *shape)
        self.question = nn.Parameter(torch.randn(1, 1, out_dim) * 0.02)

    def decode(self, latents: Tensor, queries: Tensor) -> Tensor:
        """Queries (B, Q, D) read the latents (B, L, D) → outputs (B, Q, D), each on its own; O(Q L)."""
        return self.answering(queries, latents)[0]

    def pool(self, latents: Tensor) -> Tensor:
        """The output of the learned query, (B, D)."""
        return self.decode(latents, self.question.repeat(len(latents), 1, 1)).squeeze(1)  # (B, D)
