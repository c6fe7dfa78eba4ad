"""Step inputs over a paged cache for captured graphs: a minimal stand-in for the runtime's allocator."""

from __future__ import annotations

import torch
import torch.fx as fx

from ktc.capture import Captured, allocate_caches, materialise


class PagedRun:
    """Runs a captured language model step by step over sequences whose cache blocks lie in scattered places.

    Args:
        captured: the graph.
        parameters: real tensors by name.
        sequences: how many sequences the batch has.
        longest: tokens that each may reach.
        dtype: of the caches.
    """

    def __init__(
        self,
        captured: Captured,
        parameters: dict[str, torch.Tensor],
        *,
        sequences: int = 1,
        longest: int = 64,
        dtype: torch.dtype = torch.float32,
    ) -> None:
        self.block_size = captured.block_size
        each = -(-longest // self.block_size)
        order = torch.randperm(sequences * each + 3, generator=torch.Generator().manual_seed(7))
        self.tables = order[: sequences * each].view(sequences, each)
        caches = allocate_caches(captured, len(order), dtype=dtype)
        self.graph: fx.GraphModule = materialise(captured, parameters, caches)
        self.lengths = [0] * sequences

    def step(self, tokens: list[torch.Tensor]) -> list[torch.Tensor]:
        """Feeds new tokens (possibly none) to each sequence; returns each one's logits [n, V]."""
        counts = [len(new) for new in tokens]
        positions = [torch.arange(self.lengths[i], self.lengths[i] + n) for i, n in enumerate(counts)]
        slots = [
            self.tables[i, place // self.block_size] * self.block_size + place % self.block_size
            for i, place in enumerate(positions)
        ]
        self.lengths = [length + n for length, n in zip(self.lengths, counts, strict=True)]
        starts = torch.tensor([0, *counts]).cumsum(0)
        with torch.no_grad():
            logits = self.graph(
                torch.cat(tokens)[None],
                torch.cat(positions)[None],
                starts.int(),
                torch.tensor(self.lengths).int(),
                self.tables.int(),
                torch.cat(slots),
                torch.arange(int(starts[-1])),
            )
        return list(logits[0].split(counts))
