"""Heads for several tasks: what is shared, what is private, and what a plain list loses."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.testing import assert_close

from vqa_core.heads.multitask import SeparateTrunks, TaskHeads, TaskOutput, shared_parameters, unregistered

CLASSES = {"category": 4, "answer": 3, "organ": 2}


class Trunk(nn.Module):
    """A linear trunk with heads, called as a VQA model is."""

    def __init__(self, classes=CLASSES, hidden=(6,)) -> None:
        super().__init__()
        self.first, self.head = nn.Linear(5, 6), TaskHeads(6, classes, hidden)

    def forward(self, x):
        return TaskOutput(self.head(self.first(x).relu()))


class Listed(nn.Module):
    """The planted defect: heads in a plain list."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(5, 6)
        self.heads = [nn.Linear(6, n) for n in CLASSES.values()]

    def forward(self, x):
        return TaskOutput({name: head(self.first(x)) for name, head in zip(CLASSES, self.heads)})


def test_heads_are_their_formula():
    heads, x = TaskHeads(6, CLASSES, (7, 5)), torch.randn(3, 6)
    first, second = heads.shared
    hidden = second(first(x).clamp(min=0)).clamp(min=0)
    logits = heads(x)
    assert list(logits) == list(CLASSES)
    for name, head in heads.heads.items():
        assert_close(logits[name], hidden @ head.weight.T + head.bias)
        assert logits[name].shape == (3, CLASSES[name])


def test_a_task_reaches_the_trunk_and_its_own_head_only():
    model = Trunk()
    for task in CLASSES:
        model.zero_grad()
        model(torch.randn(8, 5)).logits[task].square().sum().backward()
        touched = {name for name, p in model.named_parameters() if p.grad is not None and p.grad.abs().sum() > 0}
        own = {f"head.heads.{task}.weight", f"head.heads.{task}.bias"}
        assert touched == set(shared_parameters(model)) | own


def test_shared_are_all_but_the_heads():
    assert shared_parameters(Trunk()) == ["first.weight", "first.bias", "head.shared.0.weight", "head.shared.0.bias"]
    separate = SeparateTrunks({task: Trunk({task: n}) for task, n in CLASSES.items()})
    assert shared_parameters(separate) == []
    assert len(list(separate.parameters())) == 3 * len(list(Trunk({"answer": 3}).parameters()))


def test_separate_trunks_are_their_models():
    models, x = {task: Trunk({task: n}) for task, n in CLASSES.items()}, torch.randn(4, 5)
    logits = SeparateTrunks(models)(x).logits
    for task, model in models.items():
        assert_close(logits[task], model(x).logits[task])


def test_a_plain_list_is_not_trained_not_moved_not_saved_and_is_found():
    listed, dictionary = Listed(), Trunk(hidden=())
    assert unregistered(listed) == ["heads[0]", "heads[1]", "heads[2]"]
    assert unregistered(dictionary) == []
    assert [name for name, _ in listed.named_parameters()] == ["first.weight", "first.bias"]  # an optimiser gets these
    assert not any("heads" in name for name in listed.state_dict())  # a checkpoint keeps these
    listed.to(torch.float64)
    assert listed.first.weight.dtype == torch.float64
    assert listed.heads[0].weight.dtype == torch.float32  # .to() does not find it
    before = listed.float().heads[0].weight.clone()
    optimizer = torch.optim.SGD(listed.parameters(), lr=1.0)
    listed(torch.randn(4, 5)).logits["category"].square().sum().backward()
    optimizer.step()
    assert listed.heads[0].weight.grad.abs().sum() > 0  # it has a gradient,
    assert_close(listed.heads[0].weight, before, rtol=0, atol=0)  # and never moves


def test_hidden_layers_are_found_wherever_they_are():
    model = nn.Module()
    model.inner = nn.Linear(2, 2)
    model.inner.extra = {"a": [nn.Linear(2, 2)], "b": (nn.Parameter(torch.zeros(1)), 3)}
    assert unregistered(model) == ["inner.extra['a'][0]", "inner.extra['b'][0]"]
    model.again = [model.inner]  # registered as well: nothing is lost
    assert unregistered(model) == ["inner.extra['a'][0]", "inner.extra['b'][0]"]


@pytest.mark.parametrize("classes", [{}, {"answer": 0}])
def test_no_task_is_an_error(classes):
    with pytest.raises(ValueError, match="at least one"):
        TaskHeads(4, classes)


@pytest.mark.parametrize("name", ["type", "keys", "a.b"])
def test_names_that_a_module_dict_cannot_hold(name):
    with pytest.raises(ValueError, match=f"can't be called {name}"):
        TaskHeads(4, {name: 2})


@pytest.mark.parametrize("hidden", [(), (5,)])
def test_batch_split_changes_nothing(hidden):
    heads, x = TaskHeads(6, CLASSES, hidden), torch.randn(6, 6)
    for name, logits in heads(x).items():
        assert_close(torch.cat([heads(part)[name] for part in x.split(2)]), logits)
