"""Bilinear attention: every word looks at every image token (Kim et al. 2018)."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from vqa_core.fusion.output import FusionOutput, as_tokens, masked_softmax


class BilinearPooling(nn.Module):
    """The low-rank factors of a bilinear form: ReLU(U x) for words, ReLU(V y) for image tokens ("BCNet").

    Parameters
    ----------
    text_dim, image_dim
        Features of the two inputs.
    rank
        K, how many products one pair of tokens has.
    dropout
        Probability of dropping an input feature.
    """

    def __init__(self, text_dim: int, image_dim: int, rank: int, dropout: float = 0.0) -> None:
        super().__init__()
        self.text = nn.Sequential(nn.Dropout(dropout), nn.Linear(text_dim, rank), nn.ReLU())
        self.image = nn.Sequential(nn.Dropout(dropout), nn.Linear(image_dim, rank), nn.ReLU())

    def forward(self, text: Tensor, image: Tensor) -> tuple[Tensor, Tensor]:
        """(B, Nₜ, text_dim), (B, Nᵢ, image_dim) → (B, Nₜ, K), (B, Nᵢ, K)."""
        return self.text(text), self.image(image)

    def pooled(self, text: Tensor, image: Tensor, attention: Tensor) -> Tensor:
        """Sum over all pairs, weighted: f_k = Σₜᵢ Aₜᵢ xₜₖ yᵢₖ, with A (B, Nₜ, Nᵢ) → (B, K)."""
        x, y = self(text, image)  # (B, Nₜ, K), (B, Nᵢ, K)
        return (x * torch.bmm(attention, y)).sum(dim=1)  # (B, K)


class BAN(nn.Module):
    """Bilinear attention network (Kim, Jun and Zhang 2018, arXiv 1805.07932).

    Glimpse g has one attention map over all pairs of word t and image token i,

        A_g = softmax over (t, i) of Σₖ p_gk xₜₖ yᵢₖ + b_g

    with x, y from :class:`BilinearPooling`. The glimpses add to the words one after another (residual joint
    embedding): f⁰ = words, fᵍ = P_g (Σₜᵢ A_g,ₜᵢ x′ₜ ⊙ y′ᵢ) + fᵍ⁻¹ at every word, where x′ comes
    from fᵍ⁻¹. The fused vector is the sum of the last f over the real words.

    Parameters
    ----------
    image_dim, text_dim, out_dim
        Features of image tokens, text tokens, and of words and pooled features inside.
    glimpses
        G ≥ 1.
    rank
        K of the attention's bilinear form; ``None`` takes out_dim.
    dropout
        Probability of dropping an input feature of a bilinear form.

    Notes
    -----
    ``image`` of the output is None (each glimpse projects the picture anew), ``text`` is f⁰ (B, Nₜ, out_dim),
    ``attention`` is (B, glimpses, Nₜ, Nᵢ) and sums to 1 over real *pairs*. b_g is left out, because softmax takes no
    notice of it. The authors' weight normalisation and object counter are left out as well.

    **Degenerate with one image token**: Nᵢ = 1 leaves a softmax over words only, so that "where to look" becomes
    "which word to read"; published code with one pooled picture vector does this.
    """

    def __init__(
        self,
        image_dim: int,
        text_dim: int,
        out_dim: int,
        glimpses: int = 2,
        rank: int | None = None,
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        if glimpses < 1:
            raise ValueError(f"glimpses is {glimpses}, it must be at least 1")
        self.image_dim, self.text_dim, self.out_dim = image_dim, text_dim, out_dim
        rank = rank or out_dim
        self.text_projection = nn.Linear(text_dim, out_dim)
        self.scores = BilinearPooling(out_dim, image_dim, rank, dropout)
        self.p = nn.Parameter(torch.randn(glimpses, rank) * rank**-0.5)
        self.pools = nn.ModuleList(BilinearPooling(out_dim, image_dim, out_dim, dropout) for _ in range(glimpses))
        self.joint = nn.ModuleList(nn.Linear(out_dim, out_dim) for _ in range(glimpses))

    def attention(self, words: Tensor, image: Tensor, image_mask: Tensor | None, text_mask: Tensor | None) -> Tensor:
        """Attention maps (B, G, Nₜ, Nᵢ) of words (B, Nₜ, out_dim) and image tokens (B, Nᵢ, image_dim)."""
        x, y = self.scores(words, image)  # (B, Nₜ, K), (B, Nᵢ, K)
        scores = (x.unsqueeze(1) * self.p[:, None, :]) @ y.transpose(1, 2).unsqueeze(1)  # (B, G, Nₜ, Nᵢ)
        pairs = None
        if image_mask is not None or text_mask is not None:
            real_words = words.new_ones(words.shape[:2], dtype=torch.bool) if text_mask is None else text_mask
            real_places = image.new_ones(image.shape[:2], dtype=torch.bool) if image_mask is None else image_mask
            pairs = real_words[:, None, :, None] & real_places[:, None, None, :]  # (B, 1, Nₜ, Nᵢ)
        return masked_softmax(scores, pairs, dim=(-2, -1))

    def forward(
        self,
        image_tokens: Tensor,
        text_tokens: Tensor,
        image_mask: Tensor | None = None,
        text_mask: Tensor | None = None,
    ) -> FusionOutput:
        """Fuse; shapes as in :meth:`vqa_core.fusion.vector.VectorFusion.forward`."""
        image = as_tokens("image", image_tokens, self.image_dim, image_mask)  # (B, Nᵢ, image_dim)
        text = as_tokens("text", text_tokens, self.text_dim, text_mask)  # (B, Nₜ, text_dim)
        words = f = self.text_projection(text)  # (B, Nₜ, out_dim)
        maps = self.attention(words, image, image_mask, text_mask)  # (B, G, Nₜ, Nᵢ)
        for pool, joint, weights in zip(self.pools, self.joint, maps.unbind(dim=1), strict=True):
            f = f + joint(pool.pooled(f, image, weights)).unsqueeze(1)  # (B, Nₜ, out_dim)
        if text_mask is not None:
            f = f.masked_fill(~text_mask.unsqueeze(-1), 0.0)
        return FusionOutput(f.sum(dim=1), None, words, maps)  # fused (B, out_dim)
