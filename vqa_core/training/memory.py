"""Memory of a training step that does not depend on the machine: what its graphs keep for the backward pass."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn


class PeakKept:
    """Counts the bytes that graphs keep for the backward pass, and remembers the most at one time.

    A storage that several operations keep counts once; weights do not count.
    """

    def __init__(self, model: nn.Module) -> None:
        self.weights = {p.untyped_storage().data_ptr() for p in model.parameters()}
        self.uses: dict[int, int] = {}
        self.now = self.peak = 0

    def pack(self, tensor: Tensor) -> object:
        """Called when an operation keeps a tensor."""
        storage = tensor.untyped_storage()
        if storage.data_ptr() in self.weights:
            return tensor
        return _Kept(tensor, self, storage.data_ptr(), storage.nbytes())

    @staticmethod
    def unpack(kept: object) -> Tensor:
        """Called when its backward pass needs it."""
        return kept.tensor if isinstance(kept, _Kept) else kept

    def of(self, compute: Callable[[], object]) -> int:
        """The most bytes that were kept at one time while ``compute`` ran."""
        with torch.autograd.graph.saved_tensors_hooks(self.pack, self.unpack):
            compute()
        return self.peak


class _Kept:
    """A tensor that a graph holds; gone when the graph is."""

    def __init__(self, tensor: Tensor, counter: PeakKept, key: int, nbytes: int) -> None:
        self.tensor, self.counter, self.key, self.nbytes = tensor, counter, key, nbytes
        counter.uses[key] = counter.uses.get(key, 0) + 1
        if counter.uses[key] == 1:
            counter.now += nbytes
            counter.peak = max(counter.peak, counter.now)

    def __del__(self) -> None:
        self.counter.uses[self.key] -= 1
        if not self.counter.uses[self.key]:
            self.counter.now -= self.nbytes
