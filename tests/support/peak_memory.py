"""The most bytes that tensors made in a block held at once, on any device, seen by what torch dispatches."""

from __future__ import annotations

import weakref
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


class PeakMemory(TorchDispatchMode):
    """Counts storages that ops return, from their first sight to their end; those of the arguments do not count."""

    def __init__(self) -> None:
        super().__init__()
        self.live = 0
        self.peak = 0
        self._known: weakref.WeakSet[torch.UntypedStorage] = weakref.WeakSet()

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        for item in tree_leaves((args, kwargs)):
            if isinstance(item, torch.Tensor):
                self._known.add(item.untyped_storage())
        result = func(*args, **(kwargs or {}))
        for item in tree_leaves(result):
            if isinstance(item, torch.Tensor) and item.untyped_storage() not in self._known:
                storage = item.untyped_storage()
                self._known.add(storage)
                self.live += storage.nbytes()
                self.peak = max(self.peak, self.live)
                weakref.finalize(storage, self._end, storage.nbytes())
        return result

    def _end(self, nbytes: int) -> None:
        self.live -= nbytes
