"""What a token is, where it stands and which part it belongs to, added: the input of BERT and of VL-BERT."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class SummedEmbeddings(nn.Module):
    """LayerNorm(token + position + segment), as in BERT (Devlin et al. 2019, arXiv 1810.04805).

    VL-BERT (Su et al. 2020, arXiv 1908.08530) adds a fourth term to each element, a visual feature, and gives all
    regions of a picture the same position, since they have no order: ``visual`` and ``positions`` of :meth:`forward`.

    Parameters
    ----------
    vocabulary_size
        Number of words.
    dim
        D, features of a token.
    max_tokens
        Number of positions.
    segments
        Number of parts of a sequence, such as first and second sentence, or words and regions.
    """

    def __init__(self, vocabulary_size: int, dim: int, max_tokens: int = 512, segments: int = 2) -> None:
        super().__init__()
        self.token, self.position = nn.Embedding(vocabulary_size, dim), nn.Embedding(max_tokens, dim)
        self.segment = nn.Embedding(segments, dim)
        self.norm = nn.LayerNorm(dim, eps=1e-12)  # as in BERT

    def forward(
        self, words: Tensor, segments: Tensor, positions: Tensor | None = None, visual: Tensor | None = None
    ) -> Tensor:
        """Embed a sequence.

        Parameters
        ----------
        words
            Ids, long (B, T).
        segments
            Part of each token, long (B, T).
        positions
            Position of each token, long (B, T) or (T,); by default 0, 1, 2 …
        visual
            Feature of each element, float (B, T, D), added; None for words alone.

        Returns
        -------
        Tensor
            (B, T, D).
        """
        if positions is None:
            if words.shape[1] > self.position.num_embeddings:
                raise ValueError(f"{words.shape[1]} tokens; there are {self.position.num_embeddings} positions")
            positions = torch.arange(words.shape[1], device=words.device)  # (T,)
        x = self.token(words) + self.position(positions) + self.segment(segments)  # (B, T, D)
        return self.norm(x if visual is None else x + visual)
