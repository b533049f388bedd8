"""Heads: an answer vector (B, D) becomes answer logits (B, answers), or a posterior over them."""
