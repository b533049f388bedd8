"""Distillation: closed forms, limits, and a student that learns what only the teacher knows."""

import math

import pytest
import torch
from torch.nn import functional as F
from torch.testing import assert_close

from vqa_core.training.distillation import distillation_loss


def test_closed_form():
    """Teacher (3/4, 1/4) at τ = 1, student (1/2, 1/2): KL = 3/4 log 3/2 + 1/4 log 1/2."""
    teacher, student = torch.tensor([[math.log(3), 0.0]]), torch.zeros(1, 2)
    right = torch.tensor([0])
    soft = 0.75 * math.log(1.5) + 0.25 * math.log(0.5)
    assert distillation_loss(student, teacher, right, 1.0, 1.0).item() == pytest.approx(soft, abs=1e-6)
    half = 0.5 * math.log(2) + 0.5 * soft
    assert distillation_loss(student, teacher, right, 1.0, 0.5).item() == pytest.approx(half, abs=1e-6)
    # τ = 2 of logits 2·(log 3, 0) is the same teacher; the factor is τ² = 4
    assert distillation_loss(student, 2 * teacher, right, 2.0, 1.0).item() == pytest.approx(4 * soft, abs=1e-6)


def test_limits():
    student, teacher, answers = torch.randn(6, 5), torch.randn(6, 5), torch.randint(0, 5, (6,))
    assert_close(distillation_loss(student, teacher, answers, weight=0.0), F.cross_entropy(student, answers))
    assert distillation_loss(teacher, teacher, answers, weight=1.0).abs() < 1e-6
    assert distillation_loss(student, teacher, answers, weight=1.0) > 0


def test_no_gradient_flows_to_the_teacher_and_unlabelled_rows_learn_from_it():
    student, teacher = torch.randn(4, 3, requires_grad=True), torch.randn(4, 3, requires_grad=True)
    distillation_loss(student, teacher, torch.tensor([0, 1, -100, 2])).backward()
    assert teacher.grad is None
    assert (student.grad.abs().sum(1) > 0).all()


def test_the_gradient_hardly_depends_on_the_temperature():
    """For logits near zero both terms are quadratic, and τ² keeps their gradients equal."""
    teacher = 0.01 * torch.randn(8, 5)
    gradients = []
    for temperature in (1.0, 8.0):
        student = torch.zeros(8, 5, requires_grad=True)
        distillation_loss(student, teacher, torch.zeros(8, dtype=torch.long), temperature, 1.0).backward()
        gradients.append(student.grad)
    assert_close(gradients[0], gradients[1], rtol=0.05, atol=1e-6)


def test_wrong_inputs_are_named():
    logits, answers = torch.zeros(2, 3), torch.zeros(2, dtype=torch.long)
    with pytest.raises(ValueError, match=r"student has logits \(2, 3\), teacher \(2, 4\)"):
        distillation_loss(logits, torch.zeros(2, 4), answers)
    with pytest.raises(ValueError, match="temperature=0"):
        distillation_loss(logits, logits, answers, temperature=0)
    with pytest.raises(ValueError, match="weight=2"):
        distillation_loss(logits, logits, answers, weight=2)
