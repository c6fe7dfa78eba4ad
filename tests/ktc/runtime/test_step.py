"""The tensors of a step: what each one holds, and that the reused buffers of decoding hold the same."""

from __future__ import annotations

import numpy as np
import torch

from ktc.runtime.blocks import BlockAllocator, Sequence, extend
from ktc.runtime.step import Chunk, StepBuilder


def _chunk(sequence: Sequence, count: int, wanted: list[int]) -> Chunk:
    start = sequence.length
    sequence.append(count)
    ids = np.arange(start, start + count) + 100
    return Chunk(sequence, start, ids, ids - 100, np.array(wanted, np.int64))


def test_prefill_lays_sequences_one_after_the_other() -> None:
    allocator = BlockAllocator(8, 4)
    one, two = allocator.sequence(), allocator.sequence()
    one.append(3)
    step = StepBuilder(4).prefill([_chunk(one, 3, [2]), _chunk(two, 2, [0, 1])])
    assert step.input_ids.tolist() == [[103, 104, 105, 100, 101]]
    assert step.positions.tolist() == [[3, 4, 5, 0, 1]]
    assert step.seq_starts.tolist() == [0, 3, 5]
    assert step.context_lens.tolist() == [6, 2]
    assert step.block_tables.tolist() == [[0, 1], [2, 0]]
    assert step.slots.tolist() == [3, 4, 5, 8, 9]
    assert step.logits_index.tolist() == [2, 3, 4]
    assert step.phase == "prefill"
    assert [t.dtype for t in step.inputs] == [
        torch.int64, torch.int64, torch.int32, torch.int32, torch.int32, torch.int64, torch.int64,
    ]  # fmt: skip


def test_some_logits_are_always_wanted() -> None:
    sequence = BlockAllocator(2, 4).sequence()
    assert StepBuilder(4).prefill([_chunk(sequence, 5, [])]).logits_index.tolist() == [4]


def test_a_chunk_sees_only_the_blocks_before_its_end() -> None:
    sequence = BlockAllocator(8, 4).sequence()
    sequence.append(16)
    ids = np.arange(6)
    step = StepBuilder(4).prefill([Chunk(sequence, 0, ids, ids, ids[:0])])
    assert step.context_lens.tolist() == [6]
    assert step.block_tables.tolist() == [[0, 1]]


def test_decoding_reuses_buffers_and_matches_a_fresh_builder() -> None:
    allocator = BlockAllocator(64, 4)
    sequences = [allocator.sequence() for _ in range(3)]
    for count, sequence in enumerate(sequences):
        sequence.append(3 * count + 1)
    builder = StepBuilder(4)
    storages = set()
    for turn in range(20):
        if turn == 7:  # copy-on-write changes a table without growing it
            twin = sequences[0].fork()
        if turn == 11:
            sequences[1].truncate(2)
        extend(sequences, [1, 1, 1])
        ids = [[turn + row] for row in range(3)]
        step = builder.decode(sequences, ids, None)
        fresh = StepBuilder(4).decode(sequences, ids, np.array([[s.length - 1] for s in sequences]))
        for name, ours, theirs in zip(NAMES, step.inputs, fresh.inputs, strict=True):
            if name == "block_tables":
                used = [-(-s.length // 4) for s in sequences]
                assert all(ours[b, :n].tolist() == theirs[b, :n].tolist() for b, n in enumerate(used)), name
            else:
                assert ours.tolist() == theirs.tolist(), name
        storages.add(step.slots.data_ptr())
    assert twin.length == sequences[0].length - 13
    assert len(storages) < 10


NAMES = (
    "input_ids",
    "positions",
    "seq_starts",
    "context_lens",
    "block_tables",
    "slots",
    "logits_index",
)
