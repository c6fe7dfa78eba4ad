"""`KtcCache`: the `past_key_values` of a placed model; it counts tokens and owns blocks, not tensors."""

from __future__ import annotations

from collections import Counter
from typing import Any, NoReturn

import torch
from transformers.cache_utils import Cache

from ktc.runtime.blocks import Sequence
from ktc.runtime.errors import CacheMismatchError, UnsupportedCallError
from ktc.runtime.kv import KvPool
from ktc.runtime.step import StepBuilder


class KtcCache(Cache):
    """A batch of sequences in the KV pool of one engine.

    transformers counts in columns of the padded batch; the pool holds only real tokens. So the cache
    remembers how many columns it has seen and which of them were padding. Several caches of one model live
    side by side; a cache gives its blocks back when it is garbage collected. `copy.deepcopy` and `fork` share
    the blocks (copy-on-write).

    Attributes:
        pool: the pool the blocks are of.
        sequences: one a batch row; empty before the first forward.
        columns: columns of the padded batch seen so far.
        mask: bool [rows, columns], False where a column was padding; None when there was none.
    """

    # The whole interface is ours: `Cache.__init__` would want layers with tensors.
    is_compileable = False
    is_croppable = True
    is_initialized = True
    is_sliding: list[bool] = [False]  # noqa: RUF012  (a property of the base class, read-only here too)

    def __init__(self, pool: KvPool) -> None:
        self.pool = pool
        self.sequences: list[Sequence] = []
        self.columns = 0
        self.mask: torch.Tensor | None = None
        self.steps = StepBuilder(pool.block_size)
        self.layers: list[Any] = []
        self.offloading = False
        self.layer_class_to_replicate = None

    def __repr__(self) -> str:
        tokens = sum(s.length for s in self.sequences)
        return f"KtcCache({len(self.sequences)} sequences, {tokens} tokens)"

    def __len__(self) -> int:
        return len(self.pool.caches)

    def __deepcopy__(self, memo: dict[int, Any]) -> KtcCache:
        return self.fork()

    def __reduce_ex__(self, protocol: Any) -> NoReturn:
        raise UnsupportedCallError(
            "a KtcCache cannot be pickled or copied shallowly; `cache.fork()` gives a second one"
        )

    @property
    def batch_size(self) -> int:
        """Rows of the batch, -1 before the first forward."""
        return len(self.sequences) or -1

    @property
    def max_batch_size(self) -> int:
        """Rows of the batch (the name older callers read)."""
        return self.batch_size

    @property
    def is_linear(self) -> list[bool]:
        """No layer has a recurrent state."""
        return [False] * len(self)

    @property
    def is_dummy(self) -> list[bool]:
        """Every layer has a cache."""
        return [False] * len(self)

    def fork(self) -> KtcCache:
        """A second cache with the same tokens; the blocks are shared until one of the two writes."""
        twin = KtcCache(self.pool)
        twin.sequences = [s.fork() for s in self.sequences]
        twin.columns, twin.mask = self.columns, self.mask
        return twin

    def require_rows(self, rows: int) -> None:
        """Starts `rows` sequences in an empty cache; CacheMismatchError when it holds another number."""
        if not self.columns:
            self.sequences = [self.pool.allocator.sequence() for _ in range(rows)]
        elif len(self.sequences) != rows:
            raise CacheMismatchError(
                f"`past_key_values` holds {len(self.sequences)} sequences, but the batch has {rows}; "
                "`cache.batch_repeat_interleave(n)` repeats rows, `cache.batch_select_indices(i)` picks some"
            )

    def get_seq_length(self, layer_idx: int = 0) -> int:
        """Columns of the padded batch that are cached (padding included, as transformers counts)."""
        return self.columns

    def get_max_length(self, layer_idx: int | None = None) -> int:
        """Tokens the pool holds."""
        return self.pool.capacity

    def get_max_cache_shape(self, layer_idx: int = 0) -> int:
        """Tokens the pool holds (the name older callers read)."""
        return self.pool.capacity

    def get_mask_sizes(self, query_length: Any, layer_idx: int = 0) -> tuple[int, int]:
        """(columns a mask would span, its offset); the graph itself needs no mask."""
        new = query_length if isinstance(query_length, int) else len(query_length)
        return self.columns + new, 0

    def activate_past_recording(self) -> None:
        """Nothing to record: paged blocks keep every token, so `crop` can always go back."""

    def crop(self, tokens_to_remove: int | torch.Tensor) -> None:
        """Forgets columns: a negative number of them to remove, or a positive number to keep; 0 does nothing.

        The positive number is an older convention of transformers.
        """
        tokens_to_remove = int(tokens_to_remove)  # some transformers count in tensors
        if tokens_to_remove == 0:
            return
        keep = max(0, self.columns + tokens_to_remove) if tokens_to_remove < 0 else tokens_to_remove
        if keep >= self.columns:
            return
        for row, sequence in enumerate(self.sequences):
            padding = 0 if self.mask is None else int((~self.mask[row, :keep]).sum())
            sequence.truncate(keep - padding)
        self.columns = keep
        if self.mask is not None:
            self.mask = None if bool(self.mask[:, :keep].all()) else self.mask[:, :keep]

    def reset(self) -> None:
        """Empties the cache and gives every block back."""
        for sequence in self.sequences:
            sequence.free()
        self.sequences, self.columns, self.mask = [], 0, None

    def reorder_cache(self, beam_idx: torch.Tensor) -> None:
        """Row i becomes what row beam_idx[i] was (beam search); no tokens are copied, blocks are shared."""
        self.batch_select_indices(beam_idx)

    def batch_repeat_interleave(self, repeats: int) -> None:
        """Every row `repeats` times in a row; blocks are shared."""
        self._select([row for row in range(len(self.sequences)) for _ in range(repeats)])

    def batch_select_indices(self, indices: torch.Tensor) -> None:
        """Keeps the rows `indices`, an int or bool tensor [rows]."""
        if indices.dtype == torch.bool:
            indices = indices.nonzero()[:, 0]
        self._select(indices.tolist())

    def _select(self, rows: list[int]) -> None:
        if not self.sequences or rows == list(range(len(self.sequences))):
            return
        uses = Counter(rows)
        chosen: list[Sequence] = []
        for row in rows:
            uses[row] -= 1
            source = self.sequences[row]
            # The last use takes the sequence itself: one holder less, so one copy-on-write less.
            chosen.append(source.fork() if uses[row] else source)
        kept = {id(s) for s in chosen}
        for sequence in self.sequences:
            if id(sequence) not in kept:
                sequence.free()
        self.sequences = chosen
        if self.mask is not None:
            self.mask = self.mask[torch.tensor(rows)]

    def update(self, *args: Any, **kwargs: Any) -> NoReturn:
        """Not for callers: the compiled graph writes keys and values itself."""
        raise UnsupportedCallError(
            "the compiled graph writes the KV cache itself; KtcCache.update has nothing to do"
        )
