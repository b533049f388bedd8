"""Distillation: a small model learns from the answers of a large one as well as from the right ones."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor


def distillation_loss(
    student: Tensor, teacher: Tensor, answers: Tensor, temperature: float = 2.0, weight: float = 0.5
) -> Tensor:
    """(1 − w) · cross-entropy + w · τ² · KL(teacher ‖ student), both softened by τ (Hinton et al. 2015, 1503.02531).

    The factor τ² keeps the gradient of the second term about as large whatever τ is. What a teacher knows beyond the
    right answer is how it divides the rest: that red is likelier than square when the answer is blue.

    Parameters
    ----------
    student, teacher
        Logits (B, A); no gradient flows to the teacher.
    answers
        long (B,); −100 marks a row without a right answer, which learns from the teacher alone.
    temperature
        τ > 0.
    weight
        w in [0, 1]; 0 is plain training.

    Returns
    -------
    Tensor
        A number, in nats.
    """
    if student.shape != teacher.shape:
        raise ValueError(f"student has logits {tuple(student.shape)}, teacher {tuple(teacher.shape)}; give the same")
    if temperature <= 0 or not 0 <= weight <= 1:
        raise ValueError(f"temperature={temperature}, weight={weight}: needed are temperature > 0 and weight in [0, 1]")
    right = F.cross_entropy(student, answers, ignore_index=-100)
    p, q = ((logits / temperature).log_softmax(-1) for logits in (student, teacher.detach()))  # (B, A) each
    soft = (q.exp() * (q - p)).sum(-1).mean()  # written out: vmap has no rule for F.kl_div, and falls back to a loop
    return (1 - weight) * right + weight * temperature**2 * soft
