"""Similarity maps of two-sided models: which parts of a picture are like the sentence."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vqa_core.data.types import Batch
from vqa_core.dual import DualEncoder
from vqa_core.encoders.clip_pair import CLIPPair
from vqa_core.explain.record import Evidence, chosen, evaluating, normal

PAIRS = (DualEncoder, CLIPPair)


def clip_similarity(model: nn.Module, sample: Batch, targets: Tensor | None = None, per_word: bool = False) -> Evidence:
    """Cosine of every image token, projected as the whole picture is, with the sentence.

    A picture's embedding is that of its pooled tokens; the same projection takes each token to the space in which
    sentences are. In :class:`~vqa_core.dual.DualEncoder` with mean pooling these projections add up to the picture's
    embedding; CLIP's pooled token is another than its patches: its own forward pass never compares a patch with a
    sentence.
    Cosines of all places lie close together; the map shows how much each exceeds the least.

    Parameters
    ----------
    model
        A :class:`~vqa_core.dual.DualEncoder`, or a :class:`~vqa_core.encoders.clip_pair.CLIPPair`.
    sample
        For the latter, ``pictures`` are arrays uint8 (H, W, 3) and ``words`` are sentences.
    targets
        Which sentence of the batch each picture is compared with, long (B,); its own by default.
    per_word
        True compares with each word in place of the sentence (not for ``CLIPPair``).
    """
    if isinstance(model, CLIPPair):
        if per_word:
            raise ValueError("a CLIPPair has no map for each word; take per_word=False")
        return _of_pair(model, sample, targets)
    sample = normal(sample)
    kept = {}
    handles = [
        side.register_forward_hook(lambda module, args, output, name=name: kept.update({name: output}))
        for name, side in (("image", model.image_encoder), ("text", model.text_encoder))
    ]
    try:
        with evaluating(model):
            logits = model(sample.pictures, sample.words, sample.word_mask)  # (B, C)
            (image, image_mask), (text, text_mask) = kept["image"], kept["text"]
            targets = _own(logits, targets)
            places = F.normalize(model.image_projection(image), dim=-1)  # (B, N, D)
            words = model.text_projection(text if per_word else model.text_pool(text, text_mask).unsqueeze(1))
            words = F.normalize(words, dim=-1)[targets]  # (B, T or 1, D)
            cosines = words @ places.transpose(1, 2)  # (B, T or 1, N)
    finally:
        for handle in handles:
            handle.remove()
    rows = text_mask[targets] if per_word and text_mask is not None else None
    scores = _above_least(cosines, image_mask)
    return Evidence(scores if per_word else scores.squeeze(1), logits, targets, image_mask, rows)


def _of_pair(model: CLIPPair, sample: Batch, targets: Tensor | None) -> Evidence:
    kept = {}
    handle = model.model.vision_model.register_forward_hook(
        lambda module, args, kwargs, output: kept.update(states=output.last_hidden_state), with_kwargs=True
    )
    try:
        with evaluating(model):
            logits = model(sample.pictures, sample.words)  # (B, C)
            targets = _own(logits, targets)
            states = model.model.vision_model.post_layernorm(kept["states"][:, 1:])  # (B, N, D)
            places = F.normalize(model.model.visual_projection(states), dim=-1)  # (B, N, projected)
            sentences = model.encode_text(sample.words)[targets].unsqueeze(1)  # (B, 1, projected)
            cosines = sentences @ places.transpose(1, 2)  # (B, 1, N)
    finally:
        handle.remove()
    config = model.model.config.vision_config
    side = config.image_size // config.patch_size
    return Evidence(_above_least(cosines, None).squeeze(1), logits, targets, grid=(side, side))


def _own(logits: Tensor, targets: Tensor | None) -> Tensor:
    if targets is None and logits.shape[0] != logits.shape[1]:
        raise ValueError(f"{logits.shape[0]} pictures and {logits.shape[1]} sentences; say with targets which is whose")
    return chosen(logits, torch.arange(len(logits)) if targets is None else targets)


def _above_least(cosines: Tensor, mask: Tensor | None) -> Tensor:
    """(B, T, N) minus the least over the real places."""
    real = cosines if mask is None else cosines.masked_fill(~mask.unsqueeze(1), torch.inf)
    return (cosines - real.amin(-1, keepdim=True)).clamp(min=0)
