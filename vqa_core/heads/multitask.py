"""Heads for several tasks on one vector, and what it means that layers are shared, private, or lost.

PyTorch finds a layer through the module that holds it. :class:`torch.nn.ModuleList` and :class:`torch.nn.ModuleDict`
tell it of their entries; a plain Python list or dict does not: its layers compute, but no optimiser trains them, no
``.to(device)`` moves them, and no ``state_dict`` keeps them. Nothing complains. :func:`unregistered` finds them.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from itertools import pairwise
from typing import Any, NamedTuple

from torch import Tensor, nn
from torch.nn import functional as F

from vqa_core.heads.classifier import LinearHead


class TaskOutput(NamedTuple):
    """Logits of every task: name → (B, classes)."""

    logits: dict[str, Tensor]


class TaskHeads(nn.Module):
    """A few layers that all tasks share, then one linear head for each: (B, in_dim) → name → logits (B, classes).

    This is hard parameter sharing (Caruana 1997): up to the heads the tasks have one network. Put it where
    :class:`~vqa_core.model.VQAModel` takes its head.

    Parameters
    ----------
    in_dim
        Features of the fused vector, ``fusion.out_dim``.
    classes
        Task → number of its classes.
    hidden
        Widths of the shared layers, each a linear layer and a ReLU.

    Raises
    ------
    ValueError
        No task, a task without classes, or a name that ``nn.ModuleDict`` can't hold: it keeps its entries as
        attributes, so that a task called ``"type"`` would hide the method ``type`` of every module.
    """

    def __init__(self, in_dim: int, classes: Mapping[str, int], hidden: Sequence[int] = ()) -> None:
        super().__init__()
        if not classes or min(classes.values()) < 1:
            raise ValueError(f"classes is {dict(classes)}; give at least one task, and at least one class of each")
        if taken := [name for name in classes if hasattr(nn.ModuleDict, name) or "." in name]:
            raise ValueError(f"tasks can't be called {', '.join(taken)}: nn.ModuleDict has such an attribute, or a dot")
        widths = [in_dim, *hidden]
        self.shared = nn.ModuleList(nn.Linear(a, b) for a, b in pairwise(widths))
        self.heads = nn.ModuleDict({name: LinearHead(widths[-1], n) for name, n in classes.items()})

    def forward(self, fused: Tensor) -> dict[str, Tensor]:
        """Logits of all tasks from the fused vectors (B, in_dim)."""
        for layer in self.shared:
            fused = F.relu(layer(fused))  # (B, hidden)
        return {name: head(fused) for name, head in self.heads.items()}  # (B, classes) each


class SeparateTrunks(nn.Module):
    """The opposite of sharing: a whole model for each task, side by side, trained and called as one.

    Parameters
    ----------
    models
        Task → a model with ``.logits`` of that task alone, such as ``VQAModel(…, TaskHeads(dim, {task: classes}))``.
    """

    def __init__(self, models: Mapping[str, nn.Module]) -> None:
        super().__init__()
        self.models = nn.ModuleDict(dict(models))

    def forward(self, *inputs: Tensor) -> TaskOutput:
        """Every model on the same inputs."""
        return TaskOutput({name: model(*inputs).logits[name] for name, model in self.models.items()})


def shared_parameters(model: nn.Module) -> list[str]:
    """Names of the parameters that every task uses: all but those of the heads, and none of separate trunks."""
    private = {
        id(p)
        for module in model.modules()
        if isinstance(module, TaskHeads | SeparateTrunks)
        for p in (module.heads if isinstance(module, TaskHeads) else module).parameters()
    }
    return [name for name, p in model.named_parameters() if id(p) not in private]


def unregistered(model: nn.Module) -> list[str]:
    """Layers and parameters that a model holds in plain lists, tuples, sets or dicts, where PyTorch can't see them.

    Returns
    -------
    list of str
        Where they are, such as ``"head.heads[0]"``; empty for a sound model. What is *also* registered is no loss.
    """
    known = {id(x) for x in (*model.modules(), *model.parameters())}
    return [
        f"{path}.{name}{place}".lstrip(".")
        for path, module in model.named_modules()
        for name, value in vars(module).items()
        for place, item in _inside(value)
        if isinstance(item, nn.Module | nn.Parameter) and id(item) not in known
    ]


def _inside(value: Any, place: str = "") -> Iterator[tuple[str, Any]]:
    """Everything in nested plain containers, with its place."""
    if isinstance(value, Mapping):
        items = list(value.items())
    elif isinstance(value, list | tuple | set):
        items = list(enumerate(value))
    else:
        items = []
        yield place, value
    for key, item in items:
        yield from _inside(item, f"{place}[{key!r}]")
