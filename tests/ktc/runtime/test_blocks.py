"""Blocks: no leaks, no writable block shared, and a typed error when they run out."""

from __future__ import annotations

import gc

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from ktc.runtime.blocks import BlockAllocator, Sequence, extend
from ktc.runtime.errors import KvCacheFull

BLOCKS, SIZE = 12, 4


class Blocks(RuleBasedStateMachine):
    """Random appends, forks, cuts and drops, against a model that stores each token's value in its slot."""

    def __init__(self) -> None:
        super().__init__()
        self.allocator = BlockAllocator(BLOCKS, SIZE)
        self.live: list[tuple[Sequence, list[int]]] = []
        self.memory: dict[tuple[int, int], int] = {}
        self.next_token = 0

    def _copy(self, copies: object) -> None:
        before = dict(self.memory)
        for source, target in copies:  # type: ignore[attr-defined]
            for offset in range(SIZE):
                self.memory.pop((target, offset), None)
                if (source, offset) in before:
                    self.memory[target, offset] = before[source, offset]

    def _write(self, sequence: Sequence, tokens: list[int], count: int) -> None:
        for index in range(len(tokens), len(tokens) + count):
            self.memory[sequence.blocks[index // SIZE], index % SIZE] = self.next_token
            tokens.append(self.next_token)
            self.next_token += 1

    @rule()
    def start(self) -> None:
        self.live.append((self.allocator.sequence(), []))

    @precondition(lambda self: self.live)
    @rule(data=st.data(), count=st.integers(0, 2 * SIZE + 1))
    def append(self, data: st.DataObject, count: int) -> None:
        sequence, tokens = data.draw(st.sampled_from(self.live))
        before = (sequence.length, list(sequence.blocks), self.allocator.free_blocks)
        try:
            copies = sequence.append(count)
        except KvCacheFull:
            assert (sequence.length, sequence.blocks, self.allocator.free_blocks) == before
            return
        self._copy(copies)
        self._write(sequence, tokens, count)

    @precondition(lambda self: self.live)
    @rule(counts=st.lists(st.integers(0, SIZE + 1), min_size=1, max_size=5))
    def append_many(self, counts: list[int]) -> None:
        batch = self.live[: len(counts)]
        counts = counts[: len(batch)]
        before = [(s.length, list(s.blocks)) for s, _ in batch]
        try:
            copies = extend([s for s, _ in batch], counts)
        except KvCacheFull:
            assert [(s.length, s.blocks) for s, _ in batch] == before
            return
        self._copy(copies)
        for (sequence, tokens), count in zip(batch, counts, strict=True):
            self._write(sequence, tokens, count)

    @precondition(lambda self: self.live)
    @rule(data=st.data())
    def fork(self, data: st.DataObject) -> None:
        sequence, tokens = data.draw(st.sampled_from(self.live))
        self.live.append((sequence.fork(), list(tokens)))

    @precondition(lambda self: self.live)
    @rule(data=st.data())
    def truncate(self, data: st.DataObject) -> None:
        sequence, tokens = data.draw(st.sampled_from(self.live))
        length = data.draw(st.integers(0, sequence.length))
        sequence.truncate(length)
        del tokens[length:]

    @precondition(lambda self: self.live)
    @rule(data=st.data(), explicit=st.booleans())
    def drop(self, data: st.DataObject, explicit: bool) -> None:
        index = data.draw(st.integers(0, len(self.live) - 1))
        sequence, _ = self.live.pop(index)
        if explicit:
            sequence.free()
        else:  # what __del__ does; hypothesis itself still holds the object
            blocks, sequence.blocks = sequence.blocks, []
            self.allocator.retire(blocks)

    @invariant()
    def every_sequence_reads_its_own_tokens(self) -> None:
        for sequence, tokens in self.live:
            assert sequence.length == len(tokens)
            assert len(sequence.blocks) == -(-len(tokens) // SIZE)
            read = [self.memory[sequence.blocks[i // SIZE], i % SIZE] for i in range(len(tokens))]
            assert read == tokens

    @invariant()
    def references_count_holders(self) -> None:
        free = self.allocator.free_blocks
        holders = [0] * BLOCKS
        for sequence, _ in self.live:
            assert len(set(sequence.blocks)) == len(sequence.blocks)
            for block in sequence.blocks:
                holders[block] += 1
        assert self.allocator.references == holders
        assert free == holders.count(0)


TestBlocks = Blocks.TestCase
TestBlocks.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)


def test_full_names_the_rule_to_change() -> None:
    sequence = BlockAllocator(4, 8).sequence()
    sequence.append(20)
    with pytest.raises(KvCacheFull) as full:
        sequence.append(30)
    assert (full.value.capacity, full.value.free, full.value.needed) == (32, 8, 32)
    assert "cache paged(tokens = 64)" in str(full.value)


def test_dropped_sequences_give_their_blocks_back() -> None:
    allocator = BlockAllocator(4, 8)
    sequence = allocator.sequence()
    sequence.append(32)
    twin = sequence.fork()
    del sequence
    gc.collect()
    assert allocator.free_blocks == 0
    del twin
    gc.collect()
    assert allocator.free_blocks == 4
    assert allocator.sequence().append(32) == ()


def test_the_last_holder_writes_in_place() -> None:
    allocator = BlockAllocator(3, 4)
    one = allocator.sequence()
    one.append(2)
    two, three = one.fork(), one.fork()
    copies = extend([one, two, three], [1, 1, 1])
    assert [source for source, _ in copies] == [0, 0]
    assert three.blocks == [0]
    assert allocator.free_blocks == 0


@pytest.mark.parametrize("length", [-1, 6])
def test_truncate_stays_within_the_sequence(length: int) -> None:
    sequence = BlockAllocator(4, 8).sequence()
    sequence.append(5)
    with pytest.raises(ValueError, match="cannot truncate"):
        sequence.truncate(length)


def test_an_empty_pool_is_refused() -> None:
    with pytest.raises(ValueError, match="at least one block"):
        BlockAllocator(0, 8)
