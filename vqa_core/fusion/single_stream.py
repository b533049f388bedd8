"""One stream: image tokens and words in one sequence, and the last state of every token can be read."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from vqa_core.fusion.blocks import TransformerBlock
from vqa_core.fusion.output import FusionOutput, as_tokens


class SingleStream(nn.Module):
    """Joint transformer over [class token ; image tokens ; text tokens] (UNITER; Chen et al. 2020, arXiv 1909.11740).

    A segment embedding says which side a token is from; words have learned positions. Image tokens have none: those of
    the scenes carry their place among their features, as regions of a detector do.

    Parameters
    ----------
    image_dim, text_dim
        Features of the tokens on both sides.
    out_dim
        D, features of a token inside; a multiple of heads.
    depth, heads
        Layers, attention heads.
    max_words
        Longest text.
    """

    def __init__(
        self, image_dim: int, text_dim: int, out_dim: int, depth: int = 2, heads: int = 4, max_words: int = 32
    ) -> None:
        super().__init__()
        self.image_dim, self.text_dim, self.out_dim = image_dim, text_dim, out_dim
        self.image, self.text = nn.Linear(image_dim, out_dim), nn.Linear(text_dim, out_dim)
        self.class_token = nn.Parameter(torch.randn(out_dim) * 0.02)
        self.segments = nn.Parameter(torch.randn(2, out_dim) * 0.02)
        self.positions = nn.Parameter(torch.randn(max_words, out_dim) * 0.02)
        self.blocks = nn.ModuleList(TransformerBlock(out_dim, heads) for _ in range(depth))
        self.norm = nn.LayerNorm(out_dim)

    def forward(
        self,
        image_tokens: Tensor,
        text_tokens: Tensor,
        image_mask: Tensor | None = None,
        text_mask: Tensor | None = None,
        ordered: bool = True,
    ) -> FusionOutput:
        """Fuse; shapes as in :meth:`vqa_core.fusion.vector.VectorFusion.forward`.

        Parameters
        ----------
        image_tokens, text_tokens, image_mask, text_mask
            (B, Nᵢ, image_dim), (B, Nₜ, text_dim), and their masks.
        ordered
            False gives the words no positions: then permuting them permutes the output, and nothing else.

        Returns
        -------
        FusionOutput
            ``fused`` (B, D) is the last state of the class token, ``image`` (B, Nᵢ, D) and ``text`` (B, Nₜ, D) those of
            the tokens, ``attention`` (B, heads, T, T) that of the last layer, in evaluation mode; in training None.
        """
        image = as_tokens("image", image_tokens, self.image_dim, image_mask)  # (B, Nᵢ, image_dim)
        text = as_tokens("text", text_tokens, self.text_dim, text_mask)  # (B, Nₜ, text_dim)
        n_image, n_text = image.shape[1], text.shape[1]
        if n_text > len(self.positions):
            raise ValueError(f"texts of {n_text} words; this fusion has max_words={len(self.positions)}")
        image, text = self.image(image) + self.segments[0], self.text(text) + self.segments[1]  # (B, N, D) each
        if ordered:
            text = text + self.positions[:n_text]
        x = torch.cat([self.class_token.expand(len(image), 1, -1), image, text], dim=1)  # (B, 1 + Nᵢ + Nₜ, D)
        parts = ((1, None), (n_image, image_mask), (n_text, text_mask))
        mask = torch.cat(
            [torch.ones(len(x), n, dtype=torch.bool, device=x.device) if m is None else m for n, m in parts], dim=1
        )  # (B, 1 + Nᵢ + Nₜ)
        attention = None
        for block in self.blocks:
            x, attention = block(x, mask, need_weights=not self.training and block is self.blocks[-1])
        own, image, text = self.norm(x).split([1, n_image, n_text], dim=1)  # (B, 1, D), (B, Nᵢ, D), (B, Nₜ, D)
        return FusionOutput(own[:, 0], image, text, attention)
