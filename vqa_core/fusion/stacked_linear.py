"""The stacked attention that MEVF's released code has: linear where Yang et al. 2016 have a tanh."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from vqa_core.fusion.output import FusionOutput, as_tokens, choose, last_token, masked_mean, masked_softmax


class LinearSAN(nn.Module):
    """Stacked attention whose sum is linear in picture and question (Nguyen et al. 2019, arXiv 1909.11867, code).

    With u⁰ = W q + b for the question vector q and vˢ = W_sˢ f for every image token f, stack s computes

        p = softmax(w · tanh(W_Qˢ uˢ⁻¹ + vˢ)),  uˢ = Σᵢ pᵢ vᵢˢ + uˢ⁻¹

    with W_Q¹ = 1. In :class:`~vqa_core.fusion.stacked.SAN` all stacks share v = tanh(W f + b): its features end at 1,
    so that a picture whose features are large is nothing but signs, and the sum cannot weigh it against the question.

    Parameters
    ----------
    image_dim, text_dim, out_dim
        Features of image tokens, of text tokens, and of v, u and the fused vector.
    stacks
        How many times the question looks.
    question
        How text tokens become the question vector: ``"last"`` or ``"mean"``.
    dropout
        Probability of dropping a feature in front of w.

    Notes
    -----
    ``image`` of the output is v of the first stack (B, Nᵢ, out_dim), ``text`` is u⁰, ``attention`` is p for every
    stack, (B, stacks, 1, Nᵢ). **Degenerate with one image token**: u = u⁰ + Σₛ vˢ, a sum; W_Q and w get no gradient.
    """

    def __init__(
        self, image_dim: int, text_dim: int, out_dim: int, stacks: int = 2, question: str = "last", dropout: float = 0.0
    ) -> None:
        super().__init__()
        if stacks < 1:
            raise ValueError(f"stacks is {stacks}, it must be at least 1")
        self.image_dim, self.text_dim, self.out_dim = image_dim, text_dim, out_dim
        self.pool = {"last": last_token, "mean": masked_mean}[choose("question", question, ("last", "mean"))]
        self.text_projection = nn.Linear(text_dim, out_dim)
        self.w_image = nn.ModuleList(nn.Linear(image_dim, out_dim, bias=False) for _ in range(stacks))
        self.w_question = nn.ModuleList(nn.Identity() if s == 0 else nn.Linear(out_dim, out_dim) for s in range(stacks))
        self.w_score = nn.ModuleList(nn.Linear(out_dim, 1, bias=False) for _ in range(stacks))
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
        text = u = self.text_projection(self.pool(text_tokens, text_mask))  # (B, out_dim)
        maps, seen = [], []
        for w_image, w_question, w_score in zip(self.w_image, self.w_question, self.w_score, strict=True):
            v = w_image(image_tokens)  # (B, Nᵢ, out_dim)
            h = (v + w_question(u).unsqueeze(1)).tanh()  # (B, Nᵢ, out_dim)
            p = masked_softmax(w_score(self.dropout(h)).squeeze(-1), image_mask)  # (B, Nᵢ)
            u = torch.bmm(p.unsqueeze(1), v).squeeze(1) + u  # (B, out_dim)
            maps.append(p)
            seen.append(v)
        return FusionOutput(u, seen[0], text, torch.stack(maps, dim=1).unsqueeze(2))
