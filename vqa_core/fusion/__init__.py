"""Fusions: image tokens and text tokens become one answer vector.

Every module has ``out_dim`` and ``forward(image_tokens, text_tokens, image_mask=None, text_mask=None)``, which returns
a :class:`~vqa_core.fusion.output.FusionOutput`. Masks are boolean, True at real tokens; padding changes nothing.
"""
