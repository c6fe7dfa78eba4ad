"""Builds the seven input tensors of one step of the captured graph, a flat ragged batch of sequences."""

from __future__ import annotations

from collections.abc import Sequence as Items
from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt
import torch

from ktc.runtime.blocks import Sequence

Phase = Literal["prefill", "decode"]


@dataclass(frozen=True, slots=True)
class Step:
    """The inputs of one run of the captured graph, on the CPU, in the order of its placeholders.

    T new tokens of B sequences lie one sequence after the other; K of them want logits. The tensors belong to
    the builder and are valid until its next step: an engine reads them during `run` and keeps none.

    Attributes:
        input_ids: int64 [1, T].
        positions: int64 [1, T], what rotary embeddings see.
        seq_starts: int32 [B + 1], sequence b has the tokens seq_starts[b] … seq_starts[b + 1] − 1.
        context_lens: int32 [B], cached tokens of each sequence after this step.
        block_tables: int32 [B, NB], block ids of each sequence, unused entries 0.
        slots: int64 [T], block · block_size + offset where each token's keys and values go.
        logits_index: int64 [K], K ≥ 1, increasing: the tokens whose logits are wanted.
        phase: "decode" when every sequence has exactly one new token, else "prefill".
    """

    input_ids: torch.Tensor
    positions: torch.Tensor
    seq_starts: torch.Tensor
    context_lens: torch.Tensor
    block_tables: torch.Tensor
    slots: torch.Tensor
    logits_index: torch.Tensor
    phase: Phase

    @property
    def inputs(self) -> tuple[torch.Tensor, ...]:
        """The seven tensors in the order of the graph's placeholders."""
        return (
            self.input_ids,
            self.positions,
            self.seq_starts,
            self.context_lens,
            self.block_tables,
            self.slots,
            self.logits_index,
        )


@dataclass(frozen=True, slots=True)
class Chunk:
    """New tokens of one sequence in one step; `Sequence.append` has made room for them already.

    Attributes:
        sequence: whose tokens these are.
        start: index in the sequence of the first one.
        ids: token ids int64 [n], n ≥ 1.
        positions: int64 [n].
        wanted: offsets into `ids` of the tokens whose logits are wanted, increasing.
    """

    sequence: Sequence
    start: int
    ids: npt.NDArray[np.int64]
    positions: npt.NDArray[np.int64]
    wanted: npt.NDArray[np.int64]


class StepBuilder:
    """Builds steps; one builder a cache, so that the steps of one generation reuse each other's buffers."""

    def __init__(self, block_size: int) -> None:
        self.block_size = block_size
        self._sequences: list[Sequence] = []
        self._revisions: list[int] = []
        self._width = 0
        self._step: Step | None = None

    def prefill(self, chunks: Items[Chunk]) -> Step:
        """A step of any number of tokens a sequence.

        When no token wants logits, the last one's are asked for: kernels need not know about an empty
        product.
        """
        size = self.block_size
        starts = np.zeros(len(chunks) + 1, np.int32)
        np.cumsum([len(c.ids) for c in chunks], out=starts[1:])
        width = max(-(-(c.start + len(c.ids)) // size) for c in chunks)
        tables = np.zeros((len(chunks), width), np.int32)
        slots = np.empty(starts[-1], np.int64)
        for row, chunk in enumerate(chunks):
            stop = chunk.start + len(chunk.ids)
            used = -(-stop // size)
            tables[row, :used] = chunk.sequence.blocks[:used]
            index = np.arange(chunk.start, stop)
            slots[starts[row] : starts[row + 1]] = tables[row, index // size] * np.int64(size) + index % size
        wanted = np.concatenate([start + c.wanted for start, c in zip(starts, chunks, strict=False)])
        if not len(wanted):
            wanted = starts[-1:] - 1
        return Step(
            input_ids=torch.from_numpy(np.concatenate([c.ids for c in chunks])[None]),
            positions=torch.from_numpy(np.concatenate([c.positions for c in chunks])[None]),
            seq_starts=torch.from_numpy(starts),
            context_lens=torch.tensor([c.start + len(c.ids) for c in chunks], dtype=torch.int32),
            block_tables=torch.from_numpy(tables),
            slots=torch.from_numpy(slots),
            logits_index=torch.from_numpy(wanted.astype(np.int64)),
            phase="decode" if all(len(c.ids) == 1 for c in chunks) else "prefill",
        )

    def decode(
        self,
        sequences: list[Sequence],
        ids: Items[Items[int]],
        positions: npt.NDArray[np.int64] | None = None,
    ) -> Step:
        """A step of one token a sequence, each the last of its sequence; all logits are wanted.

        It is the same `Step` as before, its tensors filled anew, while the sequences and the columns of their block
        table stay.

        Args:
            sequences: B sequences, already extended by one token.
            ids: [B][1].
            positions: int64 [B, 1]; None: the index in the sequence.
        """
        size = self.block_size
        width = max([len(s.blocks) for s in sequences])
        step = self._step
        if step is None or width > self._width or sequences != self._sequences:
            self._step = step = self._allocate(sequences, width)
        for row, sequence in enumerate(sequences):
            if sequence.revision != self._revisions[row]:
                self._tables[row, : len(sequence.blocks)] = sequence.blocks
                self._revisions[row] = sequence.revision
            last = sequence.length - 1
            self._ids[row] = ids[row][0]
            self._lens[row] = last + 1
            self._places[row] = last
            self._slots[row] = sequence.blocks[-1] * size + last % size
        if positions is not None:
            self._places[:] = positions[:, 0]
        return step

    def _allocate(self, sequences: list[Sequence], width: int) -> Step:
        count = len(sequences)
        self._sequences, self._width = list(sequences), width
        self._revisions = [-1] * count
        self._tables: npt.NDArray[np.int32] = np.zeros((count, width), np.int32)
        self._lens: npt.NDArray[np.int32] = np.zeros(count, np.int32)
        self._slots: npt.NDArray[np.int64] = np.zeros(count, np.int64)
        self._places: npt.NDArray[np.int64] = np.zeros(count, np.int64)
        self._ids: npt.NDArray[np.int64] = np.zeros(count, np.int64)
        return Step(
            input_ids=torch.from_numpy(self._ids)[None],
            positions=torch.from_numpy(self._places)[None],
            seq_starts=torch.arange(count + 1, dtype=torch.int32),
            context_lens=torch.from_numpy(self._lens),
            block_tables=torch.from_numpy(self._tables),
            slots=torch.from_numpy(self._slots),
            logits_index=torch.arange(count),
            phase="decode",
        )
