"""The dual encoder: two sides that meet in nothing but a cosine (Radford et al. 2021, arXiv 2103.00020)."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vqa_core.encoders.tokens import Tokens
from vqa_core.fusion.output import masked_mean

MOST = math.log(100)  # of the log-scale: cosines are multiplied by at most 100
TEMPERATURE = 0.07  # at the start

Pool = Callable[[Tensor, Tensor | None], Tensor]


class DualEncoder(nn.Module):
    """CLIP: image encoder and text encoder, a linear projection each, unit length, a learned temperature.

    Unlike :class:`vqa_core.model.VQAModel` it has no fusion: an image embedding does not know any caption, so that
    embeddings of a million pictures are made once and searched with any sentence.

    Parameters
    ----------
    image_encoder
        Pictures (B, 3, H, W) → :class:`~vqa_core.encoders.tokens.Tokens`; has ``out_dim``.
    text_encoder
        Word ids (B, N) with their mask → ``Tokens``; has ``out_dim``.
    dim
        D, features of an embedding.
    temperature
        τ at the start, 0.01 to 1; the log-scale s starts at ln(1/τ).
    learned
        False keeps the temperature as it is.
    bias
        What is added to the logits; None for none. SigLIP needs one, and it is learned.
    image_pool, text_pool
        Tokens (B, N, F) and their mask → vectors (B, F): :func:`~vqa_core.fusion.output.masked_mean`, or for a
        recurrent text encoder :func:`~vqa_core.fusion.output.last_token`.

    Attributes
    ----------
    log_scale
        s, kept in [0, ln 100]; cosines are multiplied by exp(s).
    """

    def __init__(
        self,
        image_encoder: nn.Module,
        text_encoder: nn.Module,
        dim: int,
        temperature: float = TEMPERATURE,
        learned: bool = True,
        bias: float | None = None,
        image_pool: Pool = masked_mean,
        text_pool: Pool = masked_mean,
    ) -> None:
        super().__init__()
        if not 0.01 <= temperature <= 1:
            raise ValueError(f"temperature is {temperature}; it must lie within 0.01 and 1 (a scale of 100 to 1)")
        self.image_encoder, self.text_encoder, self.dim = image_encoder, text_encoder, dim
        self.image_pool, self.text_pool = image_pool, text_pool
        self.image_projection = nn.Linear(image_encoder.out_dim, dim, bias=False)
        self.text_projection = nn.Linear(text_encoder.out_dim, dim, bias=False)
        self.log_scale = nn.Parameter(torch.tensor(math.log(1 / temperature)), requires_grad=learned)
        self.bias = None if bias is None else nn.Parameter(torch.tensor(float(bias)))

    def encode_image(self, pictures: Tensor) -> Tensor:
        """Pictures as the image encoder takes them → unit vectors (B, D)."""
        return self._embed(self.image_encoder(pictures), self.image_pool, self.image_projection)

    def encode_text(self, words: Tensor, word_mask: Tensor) -> Tensor:
        """Word ids (B, N) and their mask → unit vectors (B, D)."""
        return self._embed(self.text_encoder(words, word_mask), self.text_pool, self.text_projection)

    @staticmethod
    def _embed(encoded: Tokens, pool: Pool, projection: nn.Linear) -> Tensor:
        return F.normalize(projection(pool(*encoded)), dim=-1)  # (B, N, F) → (B, F) → (B, D)

    def scale(self) -> Tensor:
        """exp(s), from 1 to 100.

        The parameter itself is clamped, as CLIP does after each step: clamping only what is returned would leave it
        outside for good, because there its gradient is zero.
        """
        with torch.no_grad():
            self.log_scale.clamp_(0.0, MOST)
        return self.log_scale.exp()

    def forward(self, pictures: Tensor, words: Tensor, word_mask: Tensor) -> Tensor:
        """Logits of B pictures with C sentences, (B, C): rows are CLIP's ``logits_per_image``."""
        logits = self.scale() * self.encode_image(pictures) @ self.encode_text(words, word_mask).T  # (B, C)
        return logits if self.bias is None else logits + self.bias
