"""Stacked attention: the question looks at the picture several times (Yang et al. 2016)."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from vqa_core.fusion.output import FusionOutput, as_tokens, choose, last_token, masked_mean, masked_softmax


class SAN(nn.Module):
    """Stacked attention network (Yang et al. 2016, arXiv 1511.02274, section 3.3).

    With v = tanh(W f + b) for every image token f, and u⁰ = W q + b for the question vector q, stack s computes

        h = tanh(W_I v ⊕ (W_Q uˢ⁻¹ + b)),  p = softmax(W_P h + b),  uˢ = Σᵢ pᵢ vᵢ + uˢ⁻¹

    where ⊕ adds the question to every token. The fused vector is the last u.

    Parameters
    ----------
    image_dim, text_dim, out_dim
        Features of image tokens, text tokens, and of v, u and the fused vector.
    stacks
        How many times the question looks; the paper uses 2.
    hidden
        Features of h; ``None`` takes out_dim.
    question
        How text tokens become the question vector: ``"last"`` (an LSTM's final state, as in the paper; padding must
        come after the words) or ``"mean"``. A question vector given as (B, text_dim) is used as it is.
    dropout
        Probability of dropping a feature of h.

    Notes
    -----
    ``image`` of the output is v (B, Nᵢ, out_dim), ``text`` is u⁰ (B, out_dim), ``attention`` is p for every stack,
    (B, stacks, 1, Nᵢ). The bias of W_P is left out, because softmax takes no notice of it.

    **Degenerate with one image token**: the softmax over one number is the constant 1, whatever picture and question
    are; what is left is u = u⁰ + stacks · v, a sum, and W_I, W_Q, W_P get no gradient.
    """

    def __init__(
        self,
        image_dim: int,
        text_dim: int,
        out_dim: int,
        stacks: int = 2,
        hidden: int | None = None,
        question: str = "last",
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        if stacks < 1:
            raise ValueError(f"stacks is {stacks}, it must be at least 1")
        self.image_dim, self.text_dim, self.out_dim = image_dim, text_dim, out_dim
        self.pool = {"last": last_token, "mean": masked_mean}[choose("question", question, ("last", "mean"))]
        hidden = hidden or out_dim
        self.image_projection = nn.Linear(image_dim, out_dim)
        self.text_projection = nn.Linear(text_dim, out_dim)
        self.w_image = nn.ModuleList(nn.Linear(out_dim, hidden, bias=False) for _ in range(stacks))
        self.w_question = nn.ModuleList(nn.Linear(out_dim, hidden) for _ in range(stacks))
        self.w_score = nn.ModuleList(nn.Linear(hidden, 1, bias=False) for _ in range(stacks))
        self.dropout = nn.Dropout(dropout)

    def forward(
        self,
        image_tokens: Tensor,
        text_tokens: Tensor,
        image_mask: Tensor | None = None,
        text_mask: Tensor | None = None,
    ) -> FusionOutput:
        """Fuse; shapes as in :meth:`vqa_core.fusion.vector.VectorFusion.forward`."""
        image_tokens = as_tokens("image", image_tokens, self.image_dim, image_mask)  # (B, Nᵢ, image_dim)
        text_tokens = as_tokens("text", text_tokens, self.text_dim, text_mask)  # (B, Nₜ, text_dim)
        v = self.image_projection(image_tokens).tanh()  # (B, Nᵢ, out_dim)
        text = u = self.text_projection(self.pool(text_tokens, text_mask))  # (B, out_dim)
        maps = []
        for w_image, w_question, w_score in zip(self.w_image, self.w_question, self.w_score, strict=True):
            h = (w_image(v) + w_question(u).unsqueeze(1)).tanh()  # (B, Nᵢ, hidden)
            p = masked_softmax(w_score(self.dropout(h)).squeeze(-1), image_mask)  # (B, Nᵢ)
            u = torch.bmm(p.unsqueeze(1), v).squeeze(1) + u  # (B, out_dim)
            maps.append(p)
        return FusionOutput(u, v, text, torch.stack(maps, dim=1).unsqueeze(2))  # attention (B, stacks, 1, Nᵢ)
