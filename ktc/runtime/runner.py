"""Runs padded batches on an engine: strips padding, splits long prompts into chunks, puts logits back."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from threading import Lock

import numpy as np
import numpy.typing as npt
import torch

from ktc.runtime.blocks import extend
from ktc.runtime.cache import KtcCache
from ktc.runtime.engine import Engine
from ktc.runtime.errors import CacheMismatchError, InvalidInputError
from ktc.runtime.padding import joined_mask, token_columns
from ktc.runtime.step import Chunk, Step

IntArray = npt.NDArray[np.int64]
Progress = Callable[[int, int], None]
"""Called with (tokens done, tokens in all) after each chunk of a prompt that takes several."""


@dataclass(frozen=True, slots=True)
class _Row:
    """The new tokens of one batch row, without padding."""

    row: int
    first: int
    start: int
    ids: IntArray
    positions: IntArray


class Runner:
    """One engine and the lock that lets several generations share it.

    Attributes:
        prefill_chunk: most tokens of one step; longer prompts take several steps.
        on_prefill: progress of prompts that take several steps.
    """

    def __init__(self, engine: Engine, prefill_chunk: int = 512) -> None:
        if prefill_chunk < 1:
            raise InvalidInputError(f"prefill_chunk must be at least 1, not {prefill_chunk}")
        self.engine = engine
        self.prefill_chunk = prefill_chunk
        self.on_prefill: Progress | None = None
        self.vocabulary = int(engine.config.get_text_config(decoder=True).vocab_size)
        self._lock = Lock()

    def forward(
        self,
        input_ids: torch.Tensor,
        attention_mask: torch.Tensor | None,
        position_ids: torch.Tensor | None,
        cache: KtcCache,
        logits_to_keep: int | torch.Tensor,
    ) -> torch.Tensor:
        """Appends a batch to `cache` and returns its logits.

        Args:
            input_ids: int64 [B, S].
            attention_mask: [B, columns of the cache + S] of 0 and 1, or None.
            position_ids: int64 [B, S] or [1, S]; None: each token's index in its row, not counting padding.
            cache: filled by this model; the tokens are appended.
            logits_to_keep: the last n columns (0: all), or an int64 [n] of column indices.

        Returns: float [B, n, V] on the engine's device, zeros where a column is padding.

        Raises InvalidInputError, AttentionMaskError, CacheMismatchError, KvCacheFull; the cache is then as it
        was before.
        """
        if cache.pool is not self.engine.pool:
            raise CacheMismatchError(
                "`past_key_values` belongs to another model; every placed model has its own KV pool"
            )
        ids = self._check_ids(input_ids)
        rows, width = len(ids), len(ids[0])
        positions = _check_positions(position_ids, rows, width)
        # One column and any whole number: that column. Decoding takes no look at what it need not.
        columns = None if width == 1 and _is_count(logits_to_keep) else _kept_columns(logits_to_keep, width)
        with self._lock:
            cache.require_rows(rows)
            ranges = token_columns(attention_mask, cache, rows, width)
            if columns is None and cache.columns and (ranges is None or (0, 0) not in ranges):
                logits = self._decode(ids, positions, cache)
            else:
                if columns is None:
                    columns = np.zeros(1, np.int64)
                logits = self._prefill(np.array(ids, np.int64), positions, cache, ranges, columns)
            if ranges is not None:
                cache.mask = joined_mask(cache, ranges, width)
            cache.columns += width
        return logits

    def _check_ids(self, input_ids: torch.Tensor) -> list[list[int]]:
        """The ids by row. Few calls of torch and numpy: behind a step they run on cold caches."""
        shape = input_ids.shape if isinstance(input_ids, torch.Tensor) else ()
        if len(shape) != 2 or 0 in shape:
            what = list(shape) if isinstance(input_ids, torch.Tensor) else type(input_ids).__name__
            raise InvalidInputError(
                f"input_ids must be a tensor [batch, tokens] with at least one token, not {what}"
            )
        if input_ids.dtype not in (torch.int64, torch.int32):
            raise InvalidInputError(f"input_ids must be int64, not {input_ids.dtype}")
        ids: list[list[int]] = input_ids.tolist()
        low, high = min(map(min, ids)), max(map(max, ids))
        if low < 0 or high >= self.vocabulary:
            raise InvalidInputError(
                f"token id {low if low < 0 else high} is not in the vocabulary [0, {self.vocabulary})"
            )
        return ids

    def _decode(self, ids: list[list[int]], positions: IntArray | None, cache: KtcCache) -> torch.Tensor:
        """One token a row, B ≥ 1 rows; reuses the buffers of the step before."""
        rows = len(ids)
        lengths = [s.length for s in cache.sequences]
        copies = extend(cache.sequences, [1] * rows)
        if copies:
            self.engine.pool.copy_blocks(copies)
        step = cache.steps.decode(cache.sequences, ids, positions)
        return self._run(step, cache, lengths).unsqueeze(1)

    def _prefill(
        self,
        ids: IntArray,
        positions: IntArray | None,
        cache: KtcCache,
        ranges: list[tuple[int, int]] | None,
        columns: IntArray,
    ) -> torch.Tensor:
        batch = _without_padding(ids, positions, cache, ranges)
        twins = _equal_rows(batch) if not cache.columns else {}
        batch = [row for row in batch if row.row not in twins]
        lengths = [s.length for s in cache.sequences]
        copies = extend([cache.sequences[r.row] for r in batch], [len(r.ids) for r in batch]) if batch else ()
        if copies:
            self.engine.pool.copy_blocks(copies)
        total, done = sum(len(r.ids) for r in batch), 0
        out: torch.Tensor | None = None
        for pieces in _chunks(batch, self.prefill_chunk):
            chunks, targets = [], []
            for row, begin, stop in pieces:
                kept = np.flatnonzero((columns >= row.first + begin) & (columns < row.first + stop))
                wanted, where = np.unique(columns[kept] - row.first - begin, return_inverse=True)
                span = slice(begin, stop)
                sequence = cache.sequences[row.row]
                chunks.append(Chunk(sequence, row.start + begin, row.ids[span], row.positions[span], wanted))
                targets.append((row.row, kept, where, len(wanted)))
            logits = self._run(cache.steps.prefill(chunks), cache, lengths)
            if out is None:
                out = logits.new_zeros((len(ids), len(columns), logits.shape[-1]))
            used = 0
            for index, kept, where, count in targets:
                if count:
                    out[index, torch.from_numpy(kept)] = logits[torch.from_numpy(used + where)]
                    used += count
            done += sum(len(c.ids) for c in chunks)
            if self.on_prefill is not None and total > self.prefill_chunk:
                self.on_prefill(done, total)
        if out is None:
            out = torch.zeros((len(ids), len(columns), self.vocabulary), device=self.engine.device)
        for row_index, leader in twins.items():
            cache.sequences[row_index] = cache.sequences[leader].fork()
            out[row_index] = out[leader]
        return out

    def _run(self, step: Step, cache: KtcCache, lengths: list[int]) -> torch.Tensor:
        try:
            return self.engine.run(step)
        except BaseException:  # also KeyboardInterrupt: tokens of a step that did not end are not cached
            for sequence, length in zip(cache.sequences, lengths, strict=True):
                sequence.truncate(length)
            raise


def _check_positions(position_ids: torch.Tensor | None, rows: int, width: int) -> IntArray | None:
    if position_ids is None:
        return None
    if position_ids.ndim != 2 or position_ids.shape[0] not in (1, rows) or position_ids.shape[1] != width:
        raise InvalidInputError(
            f"position_ids is {list(position_ids.shape)}, but the batch is [{rows}, {width}] "
            "(positions of several kinds per token, as in multimodal models, are not supported)"
        )
    positions: IntArray = position_ids.detach().cpu().long().expand(rows, width).numpy()
    return positions


def _is_count(logits_to_keep: int | torch.Tensor) -> bool:
    return isinstance(logits_to_keep, int) and logits_to_keep >= 0


def _kept_columns(logits_to_keep: int | torch.Tensor, width: int) -> IntArray:
    """Indices in [0, width) of the columns whose logits are wanted, in the caller's order."""
    if isinstance(logits_to_keep, int):
        if logits_to_keep < 0:
            raise InvalidInputError(f"logits_to_keep must not be negative, but is {logits_to_keep}")
        return np.arange(max(0, width - logits_to_keep) if logits_to_keep else 0, width)
    columns = torch.arange(width)
    try:
        if logits_to_keep.ndim == 1 and not logits_to_keep.dtype.is_floating_point:
            chosen: IntArray = columns[logits_to_keep.cpu()].numpy()
            return chosen
    except IndexError:
        pass
    raise InvalidInputError(
        f"logits_to_keep must be an int, or int64 [n] of columns below {width}, not {logits_to_keep}"
    )


def _without_padding(
    ids: IntArray, positions: IntArray | None, cache: KtcCache, ranges: list[tuple[int, int]] | None
) -> list[_Row]:
    batch = []
    for row, sequence in enumerate(cache.sequences):
        first, stop = ranges[row] if ranges is not None else (0, ids.shape[1])
        if first == stop:
            continue
        start = sequence.length
        places = (
            np.arange(start, start + stop - first) if positions is None else positions[row, first:stop].copy()
        )
        batch.append(_Row(row, first, start, ids[row, first:stop], places))
    return batch


def _equal_rows(batch: list[_Row]) -> dict[int, int]:
    """Row → an earlier row with the same tokens: beams and `num_return_sequences` repeat the prompt."""
    seen: dict[tuple[int, bytes, bytes], int] = {}
    twins = {}
    for row in batch:
        leader = seen.setdefault((row.first, row.ids.tobytes(), row.positions.tobytes()), row.row)
        if leader != row.row:
            twins[row.row] = leader
    return twins


def _chunks(batch: list[_Row], limit: int) -> Iterator[list[tuple[_Row, int, int]]]:
    """Steps of at most `limit` tokens: lists of (row, first token, stop), rows in order."""
    pieces: list[tuple[_Row, int, int]] = []
    room = limit
    for row in batch:
        begin = 0
        while begin < len(row.ids):
            stop = min(len(row.ids), begin + room)
            pieces.append((row, begin, stop))
            room -= stop - begin
            begin = stop
            if not room:
                yield pieces
                pieces, room = [], limit
    if pieces:
        yield pieces
