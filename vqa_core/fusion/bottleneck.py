"""Bottleneck fusion: two modalities that may only talk through a few tokens (MBT)."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from vqa_core.fusion.blocks import TransformerBlock
from vqa_core.fusion.output import FusionOutput, masked_mean
from vqa_core.fusion.stages import all_real
from vqa_core.fusion.transformer import Layout, OwnLayer, Streams, block_diagonal


class BottleneckLayer(nn.Module):
    """Each modality reads [its own tokens ; the bottlenecks]; what the modalities make of the bottlenecks is averaged.

    One layer costs O((Nᵢ + n)² + (Nₜ + n)²) for n bottleneck tokens.

    Parameters
    ----------
    dim, heads, mlp_ratio, dropout
        See :class:`~vqa_core.fusion.blocks.TransformerBlock`.
    """

    def __init__(self, dim: int, heads: int, mlp_ratio: float = 4.0, dropout: float = 0.0) -> None:
        super().__init__()
        self.image, self.text = (TransformerBlock(dim, heads, mlp_ratio, dropout) for _ in range(2))

    def forward(
        self, streams: Streams, bottlenecks: Tensor, need_weights: bool = False
    ) -> tuple[Streams, Tensor, Tensor | None]:
        """Streams and bottlenecks (B, n, D) → the same, and weights or None.

        The weights are (B, H, Nᵢ + n + Nₜ + n, the same): image tokens, the bottlenecks as the image side writes them,
        text tokens, the bottlenecks as the text side writes them.
        """
        image, from_image, on_image = self._one(
            self.image, streams.image, streams.image_mask, bottlenecks, need_weights
        )
        text, from_text, on_text = self._one(self.text, streams.text, streams.text_mask, bottlenecks, need_weights)
        weights = block_diagonal(on_image, on_text) if need_weights else None
        return streams._replace(image=image, text=text), (from_image + from_text) / 2, weights

    @staticmethod
    def _one(block, own: Tensor, mask: Tensor | None, bottlenecks: Tensor, need_weights: bool):
        """One modality: own tokens (B, N, D), bottlenecks (B, n, D), weights (B, H, N + n, N + n) or None."""
        x = torch.cat([own, bottlenecks], dim=1)  # (B, N + n, D)
        if mask is not None:
            mask = torch.cat([mask, all_real(bottlenecks, None)], dim=1)  # (B, N + n)
        x, weights = block(x, mask, need_weights)  # (B, N + n, D)
        return x[:, : own.shape[1]], x[:, own.shape[1] :], weights


class BottleneckFusion(Layout):
    """Multimodal bottleneck transformer (Nagrani et al. 2021, arXiv 2107.00135).

    The first ``fusion_layer`` layers are each modality's own; from then on both also read and write ``bottlenecks``
    learned tokens, and all that one modality learns of the other has passed through them. The published model has 12
    layers of 768 features, 4 bottleneck tokens and fusion from layer 8 on.

    Parameters
    ----------
    bottlenecks
        n, how many.
    fusion_layer
        How many layers come before the modalities meet: 0 to depth − 1.
    **options
        Those of :class:`~vqa_core.fusion.transformer.Layout`.

    Notes
    -----
    A token of one modality reaches the other after two layers with bottlenecks: the first writes into them, the second
    reads. ``attention`` is the last layer's, see :class:`BottleneckLayer`.
    """

    stages = (OwnLayer,)

    def __init__(
        self, image_dim: int, text_dim: int, out_dim: int, bottlenecks: int = 4, fusion_layer: int = 0, **options
    ) -> None:
        super().__init__(image_dim, text_dim, out_dim, **options)
        depth, heads = len(self.layers), options.get("heads", 4)
        if bottlenecks < 1:
            raise ValueError(f"bottlenecks is {bottlenecks}, it must be at least 1")
        if not 0 <= fusion_layer < depth:
            raise ValueError(
                f"fusion_layer is {fusion_layer}; with depth={depth} it must lie between 0 and {depth - 1}"
            )
        self.bottlenecks = nn.Parameter(torch.randn(1, bottlenecks, out_dim) * 0.02)
        shape = options.get("mlp_ratio", 4.0), options.get("dropout", 0.0)
        self.layers = self.layers[:fusion_layer]
        self.fusing = nn.ModuleList(BottleneckLayer(out_dim, heads, *shape) for _ in range(depth - fusion_layer))

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
        streams, _ = self.meet(embedded)
        bottlenecks, weights = self.bottlenecks.repeat(len(embedded.image), 1, 1), None  # (B, n, D)
        for layer in self.fusing:
            streams, bottlenecks, weights = layer(streams, bottlenecks, need_weights)
        fused = self.norm(masked_mean(*streams.joined()))  # (B, D)
        return FusionOutput(fused, embedded.image, embedded.text, weights)


def attention_pairs(image_tokens: int, text_tokens: int, bottlenecks: int) -> int:
    """Pairs of a query and a key in one layer with bottlenecks: Σₘ (Nₘ + n)².

    >>> attention_pairs(1024, 1024, 4), (1024 + 1024) ** 2
    (2113568, 4194304)
    """
    return (image_tokens + bottlenecks) ** 2 + (text_tokens + bottlenecks) ** 2
