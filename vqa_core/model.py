"""The one composition: :class:`VQAModel` = image encoder + text encoder + fusion + head."""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor, nn

from vqa_core.fusion.output import FusionOutput


class VQAOutput(NamedTuple):
    """What :class:`VQAModel` returns.

    Attributes
    ----------
    logits
        What the head made of the fused vector: answer logits (B, answers).
    fusion
        What the fusion returned: the fused vector, the two sides, the attention.
    """

    logits: Tensor
    fusion: FusionOutput


class VQAModel(nn.Module):
    """Asks a picture a question.

    The parts are injected; each can be trained, frozen or replaced on its own.

    Parameters
    ----------
    image_encoder
        ``pictures`` → :class:`~vqa_core.encoders.tokens.Tokens`;
        :class:`~vqa_core.encoders.tokens.CachedTokens` when the tokens were made before.
    text_encoder
        ``(words, word_mask)`` → :class:`~vqa_core.encoders.tokens.Tokens`.
    fusion
        ``(image_tokens, text_tokens, image_mask, text_mask)`` → :class:`~vqa_core.fusion.output.FusionOutput`.
    head
        Fused vector (B, ``fusion.out_dim``) → answer logits (B, answers).
    """

    def __init__(self, image_encoder: nn.Module, text_encoder: nn.Module, fusion: nn.Module, head: nn.Module) -> None:
        super().__init__()
        self.image_encoder, self.text_encoder = image_encoder, text_encoder
        self.fusion, self.head = fusion, head

    def forward(self, pictures: Tensor, words: Tensor, word_mask: Tensor) -> VQAOutput:
        """Answer logits.

        Parameters
        ----------
        pictures
            float (B, 3, H, W), or cached image tokens (B, Nᵢ, D).
        words
            Word ids, long (B, Nₜ).
        word_mask
            bool (B, Nₜ), True at words.
        """
        image, text = self.image_encoder(pictures), self.text_encoder(words, word_mask)
        fusion = self.fusion(image.tokens, text.tokens, image.mask, text.mask)
        return VQAOutput(self.head(fusion.fused), fusion)
