"""One device's weights in one block of memory on 2 MiB pages, seen as torch tensors."""

from __future__ import annotations

import torch

from ktc import _cpu


class TensorArena:
    """Hands out tensors from one reservation, front to back; the memory lives as long as any of them.

    Large pages save address translation on machines with little cache for it (virtual ones above all). Where
    the system grants none the arena works on ordinary pages; `huge_bytes` tells.
    """

    def __init__(self, capacity: int, threads: int = 0) -> None:
        """Reserves `capacity` bytes, rounded up to 2 MiB; they take memory when they are first written.

        Args:
            capacity: bytes.
            threads: most threads that kernels will read them with; 0 for all.

        Raises:
            ValueError: `capacity` is negative.
            MemoryError: the system cannot reserve them.
        """
        if capacity < 0:
            raise ValueError(f"an arena of {capacity} bytes")
        self._arena = _cpu.Arena(capacity)
        self._threads = threads

    def tensor(self, nbytes: int, align: int = 64) -> torch.Tensor:
        """The next `nbytes` bytes as a zeroed uint8[nbytes] tensor that starts at a multiple of `align`.

        Raises:
            ValueError: `nbytes` is negative, or `align` no power of two up to 2 MiB.
            MemoryError: they do not fit; the message has the sizes.
        """
        if nbytes < 0:
            raise ValueError(f"a tensor of {nbytes} bytes")
        return torch.from_numpy(self._arena.allocate(nbytes, align))

    def place(self, memory: torch.Tensor, matrices: int = 1) -> None:
        """Before a weight of `matrices` equal parts is written to `memory`, uint8 of this arena: puts its pages on the
        NUMA nodes whose threads will read them. Nothing on machines of one node.

        Raises:
            ValueError: memory of another arena, or more parts than bytes.
        """
        if memory.numel() == 0:
            return
        before = _cpu.limit_threads(self._threads)
        try:
            self._arena.place(memory.data_ptr(), memory.nbytes, matrices)
        finally:
            _cpu.limit_threads(before)

    def seal(self) -> None:
        """Asks the system to move what is allocated to large pages; call it once everything is loaded."""
        self._arena.seal()

    @property
    def capacity(self) -> int:
        """Bytes reserved, a multiple of 2 MiB."""
        return self._arena.capacity

    @property
    def used(self) -> int:
        """Bytes handed out, with the gaps of alignment."""
        return self._arena.used

    @property
    def huge_bytes(self) -> int:
        """Bytes that lie on large pages now; 0 where the system does not tell."""
        return self._arena.huge_bytes()
