"""Counting the memory that tensors take: every storage that an operation makes, until it is let go.

It works for real tensors and for those that have no memory behind them (`raymsa.thinker.simulate`).
"""

from __future__ import annotations

import weakref
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

BLOCK = 512  # bytes: the CUDA allocator rounds every request up to a multiple of it


class Live:
    """Bytes of all storages that are alive, in blocks of the allocator; `peak` is the most since it was last set."""

    def __init__(self) -> None:
        self.now = self.peak = 0
        self._known: dict[int, int] = {}

    def see(self, *tensors: Tensor) -> None:
        """Count the tensors' storages, each once, until they die."""
        for tensor in tensors:
            storage = tensor.untyped_storage()
            key = storage._cdata
            if key not in self._known:
                self._known[key] = size = in_blocks(storage.nbytes())
                self.now += size
                self.peak = max(self.peak, self.now)
                weakref.finalize(storage, self._gone, key).atexit = False

    def _gone(self, key: int) -> None:
        self.now -= self._known.pop(key)


class Counting(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """While it is on, all tensors that operations return are counted, those of the backward pass too."""

    def __init__(self, live: Live) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.live = live

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if (
            torch.is_inference_mode_enabled() and func.namespace == "aten"
        ):  # what several operations make arrives as one
            with self:
                out = func.decompose(*args, **kwargs)
            if out is not NotImplemented:
                return out
        out = self.run(func, args, kwargs)
        made = [out] if isinstance(out, Tensor) else tree_leaves(out)
        self.live.see(*(leaf for leaf in made if isinstance(leaf, Tensor)))
        return out

    def run(self, func: Any, args: Any, kwargs: Any) -> Any:
        """One operation."""
        return func(*args, **kwargs)


def in_blocks(count: int) -> int:
    """Bytes rounded up to the allocator's blocks."""
    return -(-count // BLOCK) * BLOCK


def size_of(tensors: Iterable[Tensor]) -> int:
    """Bytes of tensors that do not share a storage, in the allocator's blocks."""
    return sum(in_blocks(tensor.numel() * tensor.element_size()) for tensor in tensors)
