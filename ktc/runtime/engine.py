"""What a placed model needs of whoever runs the compiled graph."""

from __future__ import annotations

from typing import Any, Protocol

import torch

from ktc.runtime.kv import KvPool
from ktc.runtime.step import Step


class Engine(Protocol):
    """Runs the compiled graph of one language model on its own KV pool."""

    @property
    def config(self) -> Any:
        """The model's transformers config."""

    @property
    def pool(self) -> KvPool:
        """The KV cache; `run` writes the new tokens' keys and values at `step.slots`."""

    @property
    def device(self) -> torch.device:
        """Where the caller's token ids and the logits live."""

    @property
    def dtype(self) -> torch.dtype:
        """The dtype of activations."""

    @property
    def weight_bytes(self) -> int:
        """Bytes of all weights as they lie in memory, over all devices."""

    def run(self, step: Step) -> torch.Tensor:
        """One step. Returns logits [K, V] on `device`, the caller's to keep (not a buffer used again).

        The tensors of `step` are on the CPU and valid only during the call. One call at a time: the placed
        model holds a lock. If it raises, the tokens of the step count as not cached.
        """
