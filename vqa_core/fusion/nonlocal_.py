"""Cross-modal self-attention: every word at every cell reads every word at every cell (Gong et al. 2021)."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vqa_core.encoders.experts import SPATIAL, spatial_map
from vqa_core.fusion.output import FusionOutput, as_tokens, masked_mean, masked_softmax
from vqa_core.fusion.stages import all_real


class NonLocalBlock(nn.Module):
    """Non-local block with the embedded Gaussian (Wang et al. 2018, arXiv 1711.07971, equations 3 and 6).

        z = x + W_z y,  yᵢ = Σⱼ softmaxⱼ (θ(xᵢ)ᵀ φ(xⱼ)) g(xⱼ)

    One-head self-attention without 1/√d. W_z and its bias start at 0, so that a new block is the identity and can be
    put into a trained network. θ, φ and g therefore learn from the second step on; at the first only W_z has a
    gradient.

    Parameters
    ----------
    dim
        D, features of a token.
    hidden
        Features of θ, φ and g; ``None`` takes half of dim, as in the paper.
    """

    def __init__(self, dim: int, hidden: int | None = None) -> None:
        super().__init__()
        hidden = hidden or max(dim // 2, 1)
        self.theta, self.g = nn.Linear(dim, hidden), nn.Linear(dim, hidden)
        self.phi = nn.Linear(dim, hidden, bias=False)  # θ(xᵢ)ᵀ b would be one number for all j: softmax ignores it
        self.out = nn.Linear(hidden, dim)
        nn.init.zeros_(self.out.weight)
        nn.init.zeros_(self.out.bias)

    def forward(
        self, x: Tensor, mask: Tensor | None = None, need_weights: bool = False
    ) -> tuple[Tensor, Tensor | None]:
        """Every token reads all tokens.

        Parameters
        ----------
        x
            (B, T, D).
        mask
            bool (B, T), True at real tokens; None when all are real.
        need_weights
            True computes the weights explicitly, O(T²) memory, and returns them; False uses PyTorch's fused attention.

        Returns
        -------
        tokens
            (B, T, D).
        weights
            (B, T, T), rows sum to 1 over the real tokens; or None.
        """
        query, key, value = self.theta(x), self.phi(x), self.g(x)  # (B, T, hidden) each
        keys = None if mask is None else mask.unsqueeze(1)  # (B, 1, T)
        weights = None
        if need_weights:
            weights = masked_softmax(query @ key.transpose(1, 2), keys)  # (B, T, T)
            read = weights @ value  # (B, T, hidden)
        else:
            query, key, value = (t.unsqueeze(1) for t in (query, key, value))  # (B, 1, T, hidden) each
            keys = None if keys is None else keys.unsqueeze(1)  # (B, 1, 1, T)
            read = F.scaled_dot_product_attention(query, key, value, attn_mask=keys, scale=1.0)  # (B, 1, T, hidden)
            read = read.squeeze(1)  # (B, T, hidden)
        return x + self.out(read), weights


class CMSA(nn.Module):
    """Cross-modal self-attention (Gong et al. 2021, doi 10.1145/3460426.3463584).

    Every pair of word t and cell i is one position with the features x_ti = [vᵢ ; sᵢ ; q_t]: the cell's picture
    feature, the cell's coordinates and the word's state. Non-local blocks let each of the Nₜ · Nᵢ positions read all
    others; then cells are averaged, the words' own states are added, and words are summed:

        z = block_G(… block_1(x)),  fused = Σₜ (q_t + W meanᵢ z_ti + b)

    The published sizes are 12 words × 7 × 7 cells × (512 + 8 + 1024 = 1544), 588 positions, two blocks of 772.

    Parameters
    ----------
    image_dim, text_dim, out_dim
        Features of image tokens, text tokens and the fused vector. Where out_dim equals text_dim, q_t is added as it
        is (the published form); otherwise it is projected first.
    grid
        (rows, columns) of cells whose coordinates are appended; image tokens are then all rows · columns cells in
        reading order. ``None``: nothing is appended, for tokens that are a set, or that carry :func:`spatial_map`
        among their features already.
    blocks
        G ≥ 0; without a block, word and cell only meet in one linear map, which is a sum.
    hidden
        Features inside a block; ``None`` takes half of a position's features.

    Notes
    -----
    ``image`` of the output is [v ; s] (B, Nᵢ, image_dim + 8), ``text`` is q (B, Nₜ, text_dim). ``attention`` is None
    unless asked for with ``need_weights=True``, then (B, G, Nₜ·Nᵢ, Nₜ·Nᵢ) with position t · Nᵢ + i;
    :func:`word_cell_maps` makes pictures of it.

    Against the published code: it adds x once more after the first block (2 x at the start), and normalises W_z y by a
    batch norm that starts at γ = 0, whose statistics count padding words; both are left out, as is φ's bias, of which
    softmax takes no notice. It has no question mask.

    **Degenerate with one image token**: Nᵢ = 1 leaves a self-attention over words.
    """

    def __init__(
        self,
        image_dim: int,
        text_dim: int,
        out_dim: int,
        grid: tuple[int, int] | None = None,
        blocks: int = 2,
        hidden: int | None = None,
    ) -> None:
        super().__init__()
        if blocks < 0:
            raise ValueError(f"blocks is {blocks}, it must be at least 0")
        self.image_dim, self.text_dim, self.out_dim, self.grid = image_dim, text_dim, out_dim, grid
        self.register_buffer("spatial", None if grid is None else spatial_map(*grid), persistent=False)
        dim = image_dim + text_dim + (0 if grid is None else SPATIAL)
        self.blocks = nn.ModuleList(NonLocalBlock(dim, hidden) for _ in range(blocks))
        self.cell_projection = nn.Linear(dim, out_dim)
        self.text_projection = nn.Identity() if text_dim == out_dim else nn.Linear(text_dim, out_dim)

    def forward(
        self,
        image_tokens: Tensor,
        text_tokens: Tensor,
        image_mask: Tensor | None = None,
        text_mask: Tensor | None = None,
        need_weights: bool = False,
    ) -> FusionOutput:
        """Fuse; shapes as in :meth:`vqa_core.fusion.vector.VectorFusion.forward`, weights on request."""
        image = as_tokens("image", image_tokens, self.image_dim, image_mask)  # (B, Nᵢ, image_dim)
        text = as_tokens("text", text_tokens, self.text_dim, text_mask)  # (B, Nₜ, text_dim)
        if self.spatial is not None:
            if image.shape[1] != len(self.spatial):
                raise ValueError(
                    f"{image.shape[1]} image tokens for a grid of {self.grid[0]} × {self.grid[1]} cells; make the "
                    "fusion with the encoder's grid, or with grid=None for tokens without a place"
                )
            places = self.spatial.to(image.dtype).expand(len(image), -1, -1)  # (B, Nᵢ, 8)
            image = torch.cat([image, places], dim=-1)  # (B, Nᵢ, image_dim + 8)
        words, cells = text.shape[1], image.shape[1]
        at_cells = image.unsqueeze(1).expand(-1, words, -1, -1)  # (B, Nₜ, Nᵢ, image_dim + 8)
        at_words = text.unsqueeze(2).expand(-1, -1, cells, -1)  # (B, Nₜ, Nᵢ, text_dim)
        x = torch.cat([at_cells, at_words], dim=-1).flatten(1, 2)  # (B, Nₜ·Nᵢ, dim)
        mask = None
        if image_mask is not None or text_mask is not None:
            pairs = all_real(text, text_mask).unsqueeze(2) & all_real(image, image_mask).unsqueeze(1)  # (B, Nₜ, Nᵢ)
            mask = pairs.flatten(1)  # (B, Nₜ·Nᵢ)
        maps = []
        for block in self.blocks:
            x, weights = block(x, mask, need_weights)  # (B, Nₜ·Nᵢ, dim), (B, Nₜ·Nᵢ, Nₜ·Nᵢ) or None
            maps.append(weights)
        of_each_word = None if image_mask is None else image_mask.repeat_interleave(words, dim=0)  # (B·Nₜ, Nᵢ)
        x = masked_mean(x.reshape(-1, cells, x.shape[-1]), of_each_word)  # (B·Nₜ, dim), the mean over cells
        x = x.unflatten(0, (-1, words))  # (B, Nₜ, dim)
        read = self.text_projection(text) + self.cell_projection(x)  # (B, Nₜ, out_dim)
        if text_mask is not None:
            read = read.masked_fill(~text_mask.unsqueeze(-1), 0.0)
        attention = torch.stack(maps, dim=1) if need_weights and maps else None  # (B, G, Nₜ·Nᵢ, Nₜ·Nᵢ)
        return FusionOutput(read.sum(dim=1), image, text, attention)  # fused (B, out_dim)


def word_cell_maps(
    attention: Tensor, words: int, image_mask: Tensor | None = None, text_mask: Tensor | None = None
) -> Tensor:
    """How much each word at each cell is read, averaged over all real positions that read.

    Parameters
    ----------
    attention
        (B, G, Nₜ·Nᵢ, Nₜ·Nᵢ) from :class:`CMSA`.
    words
        Nₜ.
    image_mask, text_mask
        As they were given to the fusion.

    Returns
    -------
    Tensor
        (B, G, Nₜ, Nᵢ), sums to 1 over real pairs of word and cell.
    """
    positions = attention.shape[-1]
    if attention.ndim != 4 or attention.shape[-2] != positions or positions % words:
        raise ValueError(
            f"attention has shape {tuple(attention.shape)}; give (B, G, P, P) with P a multiple of words={words}"
        )
    pairs = attention.new_ones(len(attention), words, positions // words, dtype=torch.bool)  # (B, Nₜ, Nᵢ)
    if text_mask is not None:
        pairs = pairs & text_mask.unsqueeze(2)
    if image_mask is not None:
        pairs = pairs & image_mask.unsqueeze(1)
    readers = pairs.flatten(1)  # (B, P)
    total = torch.einsum("bgpq,bp->bgq", attention, readers.to(attention.dtype))  # (B, G, P)
    count = readers.sum(dim=1).clamp(min=1)[:, None, None]  # (B, 1, 1)
    return (total / count).unflatten(-1, (words, -1))  # (B, G, Nₜ, Nᵢ)
