"""Fusions of two vectors, from a sum to a tensor product.

x is the pooled picture, y the pooled question; every W has a bias unless the docstring says otherwise. All classes
share :meth:`VectorFusion.forward`, which pools tokens by their masked mean, and differ in :meth:`VectorFusion.fuse`,
which works on any leading axes and broadcasts them; :class:`~vqa_core.fusion.stages.TokenFusion` uses this to fuse
the question with every image token *before* pooling.

Only products make the two modalities interact. After a sum or a concatenation a linear head gives a score of the
form s(x) + t(y): which answer suits the question better cannot depend on the picture, and the exclusive-or of two
properties is out of reach. All other methods here multiply.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vqa_core.fusion.output import FusionOutput, as_tokens, choose, masked_mean


class VectorFusion(nn.Module):
    """Base of the vector fusions: pools the tokens, then calls :meth:`fuse`.

    Parameters
    ----------
    image_dim, text_dim
        Features of an image token and of a text token.
    out_dim
        Features of the fused vector.
    """

    def __init__(self, image_dim: int, text_dim: int, out_dim: int) -> None:
        super().__init__()
        self.image_dim, self.text_dim, self.out_dim = image_dim, text_dim, out_dim

    def forward(
        self,
        image_tokens: Tensor,
        text_tokens: Tensor,
        image_mask: Tensor | None = None,
        text_mask: Tensor | None = None,
    ) -> FusionOutput:
        """Pool, then fuse.

        Parameters
        ----------
        image_tokens
            (B, Nᵢ, image_dim), or pooled (B, image_dim).
        text_tokens
            (B, Nₜ, text_dim), or pooled (B, text_dim).
        image_mask, text_mask
            bool (B, Nᵢ) and (B, Nₜ), True at real tokens; None when all are real.

        Returns
        -------
        FusionOutput
            ``fused`` (B, out_dim); ``image`` and ``text`` as the method documents; no attention.
        """
        x = masked_mean(as_tokens("image", image_tokens, self.image_dim, image_mask), image_mask)  # (B, image_dim)
        y = masked_mean(as_tokens("text", text_tokens, self.text_dim, text_mask), text_mask)  # (B, text_dim)
        return self.fuse(x, y)

    def fuse(self, x: Tensor, y: Tensor) -> FusionOutput:
        """Fuse x (…, image_dim) with y (…, text_dim); their leading axes broadcast."""
        raise NotImplementedError(f"{type(self).__name__} must define fuse(x, y)")


class SumFusion(VectorFusion):
    """W_x x + W_y y: each modality adds its own evidence. One bias, because two would only be added.

    ``image`` and ``text`` of the output are the two summands, (B, out_dim).
    """

    def __init__(self, image_dim: int, text_dim: int, out_dim: int) -> None:
        super().__init__(image_dim, text_dim, out_dim)
        self.image_projection = nn.Linear(image_dim, out_dim)
        self.text_projection = nn.Linear(text_dim, out_dim, bias=False)

    def fuse(self, x: Tensor, y: Tensor) -> FusionOutput:
        image, text = self.image_projection(x), self.text_projection(y)  # (…, out_dim) each
        return FusionOutput(image + text, image, text)


class ConcatFusion(VectorFusion):
    """W [x ; y]: the same family of functions as :class:`SumFusion`, because W = [W_x W_y] splits by columns.

    It is computed by these column blocks, W_x x + W_y y, so that a question is not copied to every image token and
    the two summands are at hand as ``image`` and ``text`` (B, out_dim). What differs from the sum is the initial scale
    of the weights: one layer of fan-in image_dim + text_dim instead of two layers.
    """

    def __init__(self, image_dim: int, text_dim: int, out_dim: int) -> None:
        super().__init__(image_dim, text_dim, out_dim)
        self.projection = nn.Linear(image_dim + text_dim, out_dim)

    def fuse(self, x: Tensor, y: Tensor) -> FusionOutput:
        w_x, w_y = self.projection.weight.split([self.image_dim, self.text_dim], dim=1)  # (out_dim, image_dim), …
        image, text = F.linear(x, w_x, self.projection.bias), F.linear(y, w_y)  # (…, out_dim) each
        return FusionOutput(image + text, image, text)


class FiLM(VectorFusion):
    """Feature-wise linear modulation (Perez et al. 2017, arXiv 1709.07871).

    [γ ; β] = W_f c, out = W_o (γ ⊙ m + β), where c conditions and m is modulated. γ and β have the size of **m**;
    a published snippet splits by the size of c, which works only when both are equal.

    Parameters
    ----------
    image_dim, text_dim, out_dim
        See :class:`VectorFusion`; all three may differ.
    conditioned_on
        ``"text"``: the question makes γ and β, the picture is modulated. ``"image"``: the other way round.

    Notes
    -----
    The bias of the γ half starts at 1, so that modulation starts near the identity. In the output, the conditioning
    side is [γ ; β], twice the size of the modulated side, which is given as it came.
    """

    def __init__(self, image_dim: int, text_dim: int, out_dim: int, conditioned_on: str = "text") -> None:
        super().__init__(image_dim, text_dim, out_dim)
        self.conditioned_on = choose("conditioned_on", conditioned_on, ("text", "image"))
        condition_dim, modulated_dim = (text_dim, image_dim) if conditioned_on == "text" else (image_dim, text_dim)
        self.condition = nn.Linear(condition_dim, 2 * modulated_dim)
        nn.init.ones_(self.condition.bias[:modulated_dim])
        self.out_projection = nn.Linear(modulated_dim, out_dim)

    def fuse(self, x: Tensor, y: Tensor) -> FusionOutput:
        by_text = self.conditioned_on == "text"
        condition, modulated = (y, x) if by_text else (x, y)
        film = self.condition(condition)  # (…, 2·modulated_dim)
        gamma, beta = film.chunk(2, dim=-1)  # (…, modulated_dim) each
        fused = self.out_projection(gamma * modulated + beta)  # (…, out_dim)
        return FusionOutput(fused, *((modulated, film) if by_text else (film, modulated)))


class GatedFusion(VectorFusion):
    """Gated fusion (Kiela et al. 2018, arXiv 1802.02892): W_o (σ(a) ⊙ b), a and b linear in the two modalities.

    Parameters
    ----------
    image_dim, text_dim, out_dim
        See :class:`VectorFusion`.
    gate
        ``"text"``: a = W_y y, the question opens and closes the picture's features b = W_x x. ``"image"``: the
        other way round.

    Notes
    -----
    ``image`` and ``text`` of the output are W_x x and W_y y, (B, out_dim), before the sigmoid.
    """

    def __init__(self, image_dim: int, text_dim: int, out_dim: int, gate: str = "text") -> None:
        super().__init__(image_dim, text_dim, out_dim)
        self.gate = choose("gate", gate, ("text", "image"))
        self.image_projection = nn.Linear(image_dim, out_dim)
        self.text_projection = nn.Linear(text_dim, out_dim)
        self.out_projection = nn.Linear(out_dim, out_dim)

    def fuse(self, x: Tensor, y: Tensor) -> FusionOutput:
        image, text = self.image_projection(x), self.text_projection(y)  # (…, out_dim) each
        a, b = (text, image) if self.gate == "text" else (image, text)
        return FusionOutput(self.out_projection(a.sigmoid() * b), image, text)


class ProductFusion(VectorFusion):
    """W_o (W_x x ⊙ W_y y): bilinear pooling of rank out_dim (Kim et al. 2017, arXiv 1610.04325, without the tanh).

    ``image`` and ``text`` of the output are the two factors, (B, out_dim).
    """

    def __init__(self, image_dim: int, text_dim: int, out_dim: int) -> None:
        super().__init__(image_dim, text_dim, out_dim)
        self.image_projection = nn.Linear(image_dim, out_dim)
        self.text_projection = nn.Linear(text_dim, out_dim)
        self.out_projection = nn.Linear(out_dim, out_dim)

    def fuse(self, x: Tensor, y: Tensor) -> FusionOutput:
        image, text = self.image_projection(x), self.text_projection(y)  # (…, out_dim) each
        return FusionOutput(self.out_projection(image * text), image, text)


class MFB(VectorFusion):
    """Multi-modal factorised bilinear pooling (Yu et al. 2017, arXiv 1708.01471).

    z = sum over k of (U x ⊙ V y), then the signed square root sign(z) √|z|, then division by the Euclidean norm.

    Parameters
    ----------
    image_dim, text_dim, out_dim
        See :class:`VectorFusion`.
    factor
        k ≥ 1, how many products are summed into one output: the rank of each output's bilinear form.
    dropout
        Probability of dropping a product before the sum.

    Notes
    -----
    ``image`` and ``text`` of the output are U x and V y, (B, out_dim · k). Under the root stands |z| + 10⁻⁸, which
    bounds the gradient near 0.
    """

    def __init__(self, image_dim: int, text_dim: int, out_dim: int, factor: int = 5, dropout: float = 0.1) -> None:
        super().__init__(image_dim, text_dim, out_dim)
        if factor < 1:
            raise ValueError(f"factor is {factor}, it must be at least 1")
        self.factor = factor
        self.image_projection = nn.Linear(image_dim, out_dim * factor)
        self.text_projection = nn.Linear(text_dim, out_dim * factor)
        self.dropout = nn.Dropout(dropout)

    def fuse(self, x: Tensor, y: Tensor) -> FusionOutput:
        image, text = self.image_projection(x), self.text_projection(y)  # (…, out_dim·k) each
        z = self.dropout(image * text).unflatten(-1, (self.out_dim, self.factor)).sum(dim=-1)  # (…, out_dim)
        z = z.sign() * (z.abs() + 1e-8).sqrt()
        return FusionOutput(F.normalize(z, dim=-1), image, text)


class TensorFusion(VectorFusion):
    """Tensor fusion (Zadeh et al. 2017, arXiv 1707.07250): W ([x′ ; 1] ⊗ [y′ ; 1]) with x′ = W_x x, y′ = W_y y.

    The appended ones keep both unimodal vectors, and a constant, beside all products x′ᵢ y′ⱼ.

    Parameters
    ----------
    image_dim, text_dim, out_dim
        See :class:`VectorFusion`.
    dim
        Size of x′ and y′. W has out_dim · (dim + 1)² numbers, which is why it must be small.

    Notes
    -----
    ``image`` and ``text`` of the output are x′ and y′, (B, dim). W needs no bias: the product of the ones is one.
    """

    def __init__(self, image_dim: int, text_dim: int, out_dim: int, dim: int = 32) -> None:
        super().__init__(image_dim, text_dim, out_dim)
        self.image_projection = nn.Linear(image_dim, dim)
        self.text_projection = nn.Linear(text_dim, dim)
        self.tensor = nn.Linear((dim + 1) ** 2, out_dim, bias=False)

    def fuse(self, x: Tensor, y: Tensor) -> FusionOutput:
        image, text = self.image_projection(x), self.text_projection(y)  # (…, dim) each
        x1, y1 = F.pad(image, (0, 1), value=1.0), F.pad(text, (0, 1), value=1.0)  # (…, dim + 1) each
        outer = x1.unsqueeze(-1) * y1.unsqueeze(-2)  # (…, dim + 1, dim + 1)
        return FusionOutput(self.tensor(outer.flatten(-2)), image, text)  # fused (…, out_dim)


class LowRankTensorFusion(VectorFusion):
    """Low-rank tensor fusion (Liu et al. 2018, arXiv 1806.00064): Σᵣ (Aᵣ [x ; 1]) ⊙ (Bᵣ [y ; 1]) + b.

    Equal to :class:`TensorFusion` with W of rank r, W_oij = Σᵣ A_roi B_roj, without ever making the outer product,
    so that it can read x and y in full size.

    Parameters
    ----------
    image_dim, text_dim, out_dim
        See :class:`VectorFusion`.
    rank
        r ≥ 1; r · out_dim · (image_dim + text_dim + 2) numbers, plus b.

    Notes
    -----
    A's and B's columns for the 1 are the biases of the two projections. ``image`` and ``text`` of the output are
    Aᵣ [x ; 1] and Bᵣ [y ; 1] for all r, (B, r · out_dim).
    """

    def __init__(self, image_dim: int, text_dim: int, out_dim: int, rank: int = 4) -> None:
        super().__init__(image_dim, text_dim, out_dim)
        if rank < 1:
            raise ValueError(f"rank is {rank}, it must be at least 1")
        self.rank = rank
        self.image_factors = nn.Linear(image_dim, rank * out_dim)
        self.text_factors = nn.Linear(text_dim, rank * out_dim)
        self.bias = nn.Parameter(torch.zeros(out_dim))

    def fuse(self, x: Tensor, y: Tensor) -> FusionOutput:
        image, text = self.image_factors(x), self.text_factors(y)  # (…, r·out_dim) each
        fused = (image * text).unflatten(-1, (self.rank, self.out_dim)).sum(dim=-2) + self.bias  # (…, out_dim)
        return FusionOutput(fused, image, text)


class ConditionalBatchNorm2d(nn.Module):
    """Batch normalisation whose γ and β the question shifts (de Vries et al. 2017, arXiv 1707.00683).

    out = (γ + Δγ) x̂ + (β + Δβ), with x̂ the batch-normalised features and [Δγ ; Δβ] = MLP(question). The MLP's last
    layer starts at 0: at first it is the plain batch norm of the picture encoder that it replaces.

    Parameters
    ----------
    channels
        C of the feature maps.
    condition_dim
        Features of the question vector.
    hidden
        Width of the MLP's one hidden layer.
    """

    def __init__(self, channels: int, condition_dim: int, hidden: int = 128) -> None:
        super().__init__()
        self.normalise = nn.BatchNorm2d(channels, affine=False)
        self.weight = nn.Parameter(torch.ones(channels))
        self.bias = nn.Parameter(torch.zeros(channels))
        self.shift = nn.Sequential(nn.Linear(condition_dim, hidden), nn.ReLU(), nn.Linear(hidden, 2 * channels))
        nn.init.zeros_(self.shift[-1].weight)
        nn.init.zeros_(self.shift[-1].bias)

    def forward(self, features: Tensor, condition: Tensor) -> Tensor:
        """Feature maps (B, C, H, W) and question vectors (B, condition_dim) → (B, C, H, W)."""
        d_gamma, d_beta = self.shift(condition)[:, :, None, None].chunk(2, dim=1)  # (B, C, 1, 1) each
        gamma, beta = self.weight[:, None, None] + d_gamma, self.bias[:, None, None] + d_beta  # (B, C, 1, 1) each
        return gamma * self.normalise(features) + beta
