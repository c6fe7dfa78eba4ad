"""Paged KV bookkeeping: which blocks of the pool hold the tokens of which sequence.

A block holds `block_size` consecutive tokens of one sequence in every layer. Blocks are counted references:
`fork` shares them, and the first writer of a shared block gets its own copy (copy-on-write). This is the
scheme of "Efficient Memory Management for Large Language Model Serving with PagedAttention" (Kwon et al.,
2023). No tensor is touched here: appending returns the block copies that `KvPool.copy_blocks` must make
before the step writes.
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Iterable
from collections.abc import Sequence as Items
from threading import Lock

from ktc.runtime.errors import KvCacheFull

BlockCopy = tuple[int, int]
"""(source block, destination block), of every layer."""

_NO_COPIES: tuple[BlockCopy, ...] = ()


class BlockAllocator:
    """Hands out the blocks of one pool and counts who holds them.

    Thread-safe. `retire` may be called from a finaliser at any moment, even while the lock is held: it only
    queues.

    Attributes:
        num_blocks: blocks of the pool.
        block_size: tokens a block.
        references: holders of each block, [num_blocks]; 0 is free. Read-only for others.
    """

    __slots__ = ("_free", "_lock", "_retired", "block_size", "num_blocks", "references")

    def __init__(self, num_blocks: int, block_size: int) -> None:
        if num_blocks < 1 or block_size < 1:
            raise ValueError(
                f"a KV pool needs at least one block of one token, not {num_blocks} × {block_size}"
            )
        self.num_blocks = num_blocks
        self.block_size = block_size
        self.references = [0] * num_blocks
        # A stack: the block freed last is the likeliest to be in the CPU's caches still.
        self._free = list(range(num_blocks - 1, -1, -1))
        self._retired: deque[list[int]] = deque()
        self._lock = Lock()

    @property
    def capacity(self) -> int:
        """Tokens the pool holds."""
        return self.num_blocks * self.block_size

    @property
    def free_blocks(self) -> int:
        """Blocks nobody holds."""
        with self._lock:
            self._collect()
            return len(self._free)

    def sequence(self) -> Sequence:
        """A new, empty sequence."""
        return Sequence(self)

    def allocate(self, count: int) -> list[int]:
        """`count` blocks with one reference each. Raises KvCacheFull, and then takes none."""
        with self._lock:
            self._require(count)
            blocks = [self._free.pop() for _ in range(count)]
            for block in blocks:
                self.references[block] = 1
        return blocks

    def require(self, count: int) -> None:
        """Raises KvCacheFull unless `count` blocks are free."""
        with self._lock:
            self._require(count)

    def retain(self, blocks: Iterable[int]) -> None:
        """One more holder of each of `blocks`."""
        references = self.references
        with self._lock:
            for block in blocks:
                references[block] += 1

    def release(self, blocks: Iterable[int]) -> None:
        """One holder less of each of `blocks`; those without any become free."""
        with self._lock:
            self._release(blocks)

    def retire(self, blocks: list[int]) -> None:
        """Like `release`, but takes no lock: the blocks come back at the next call that needs some."""
        self._retired.append(blocks)

    def shared(self, block: int) -> bool:
        """Whether someone else holds `block` too, so that it must not be written."""
        if self.references[block] == 1:
            return False
        with self._lock:
            self._collect()
            return self.references[block] > 1

    def _require(self, count: int) -> None:
        if len(self._free) < count:
            self._collect()
        free = len(self._free)
        if free < count:
            size = self.block_size
            missing = (count - free) * size
            raise KvCacheFull(
                capacity=self.capacity,
                needed=count * size,
                free=free * size,
                suggested=self.capacity + max(missing, self.capacity),
            )

    def _release(self, blocks: Iterable[int]) -> None:
        references, free = self.references, self._free
        for block in blocks:
            left = references[block] - 1
            references[block] = left
            if left == 0:
                free.append(block)

    def _collect(self) -> None:
        while self._retired:
            self._release(self._retired.popleft())


class Sequence:
    """The cached tokens of one sequence: a list of blocks, all full but the last one.

    Freed when garbage collected, or earlier with `free`. Not thread-safe: one owner at a time.

    Attributes:
        length: tokens cached.
        blocks: block ids in order, ceil(length / block_size) of them. Read-only for others.
        revision: changes whenever `blocks` does, so that a copy of the block table knows it is stale.
    """

    __slots__ = ("__weakref__", "allocator", "blocks", "length", "revision")

    def __init__(self, allocator: BlockAllocator) -> None:
        self.allocator = allocator
        self.blocks: list[int] = []
        self.length = 0
        self.revision = 0

    def __del__(self) -> None:
        if self.blocks:
            self.allocator.retire(self.blocks)

    def missing_blocks(self, count: int) -> int:
        """New blocks that `count` more tokens need, without a copy of the last one."""
        return -(-(self.length + count) // self.allocator.block_size) - len(self.blocks)

    def shared_tail(self) -> int | None:
        """The last block if it is part-filled and shared, so that appending copies it; else None."""
        if self.length % self.allocator.block_size and self.allocator.shared(self.blocks[-1]):
            return self.blocks[-1]
        return None

    def append(self, count: int) -> Items[BlockCopy]:
        """Makes room for `count` tokens after the last one.

        Returns the block copies to make before these tokens are written (at most one).
        Raises KvCacheFull and changes nothing when blocks run out.
        """
        if count <= 0:
            if count < 0:
                raise ValueError(f"cannot append {count} tokens; `truncate` takes tokens away")
            return _NO_COPIES
        allocator, blocks = self.allocator, self.blocks
        size = allocator.block_size
        missing = -(-(self.length + count) // size) - len(blocks)
        tail = blocks[-1] if self.length % size else -1
        if tail < 0 or not allocator.shared(tail):
            if missing:
                blocks += allocator.allocate(missing)
                self.revision += 1
            self.length += count
            return _NO_COPIES
        fresh = allocator.allocate(missing + 1)
        blocks[-1:] = fresh
        self.revision += 1
        self.length += count
        allocator.release((tail,))
        return ((tail, fresh[0]),)

    def fork(self) -> Sequence:
        """A second sequence with the same tokens; the blocks are shared until one of the two writes."""
        twin = Sequence(self.allocator)
        self.allocator.retain(self.blocks)
        twin.blocks = list(self.blocks)
        twin.length = self.length
        return twin

    def truncate(self, length: int) -> None:
        """Forgets every token from `length` on."""
        if not 0 <= length <= self.length:
            raise ValueError(f"cannot truncate a sequence of {self.length} tokens to {length}")
        keep = -(-length // self.allocator.block_size)
        dropped = self.blocks[keep:]
        if dropped:
            del self.blocks[keep:]
            self.revision += 1
            self.allocator.release(dropped)
        self.length = length

    def free(self) -> None:
        """Gives every block back; the sequence is empty and can be used again."""
        self.truncate(0)


def extend(sequences: Items[Sequence], counts: Items[int]) -> Items[BlockCopy]:
    """Appends `counts[i]` tokens to `sequences[i]`, all of them or none.

    Returns the block copies to make before the tokens are written. Raises KvCacheFull and changes nothing
    when the blocks do not suffice for all. The sequences are of one allocator and each occurs once.
    """
    if len(sequences) == 1:
        return sequences[0].append(counts[0])
    needed = 0
    writers: Counter[int] = Counter()
    for sequence, count in zip(sequences, counts, strict=True):
        if count:
            needed += sequence.missing_blocks(count)
            tail = sequence.shared_tail()
            if tail is not None:
                writers[tail] += 1
    for block, count in writers.items():
        # The last holder of a block need not copy it: everyone else has left it by then.
        needed += min(count, sequences[0].allocator.references[block] - 1)
    if needed:
        sequences[0].allocator.require(needed)
    copies: list[BlockCopy] = []
    for sequence, count in zip(sequences, counts, strict=True):
        copies += sequence.append(count)
    return copies
