"""Explanations: where a model looked, how well that agrees with the truth, and attention that is trained to matter."""
