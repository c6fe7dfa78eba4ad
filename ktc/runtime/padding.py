"""Which columns of a padded batch are tokens: attention masks become column ranges, or a typed error."""

from __future__ import annotations

import numpy as np
import torch

from ktc.runtime.cache import KtcCache
from ktc.runtime.errors import AttentionMaskError


def token_columns(
    mask: torch.Tensor | None, cache: KtcCache, rows: int, width: int
) -> list[tuple[int, int]] | None:
    """For each row the range [first, stop) of the `width` new columns that are tokens; None when all are.

    Args:
        mask: [rows, cache.columns + width], 1 where there is a token, 0 where there is padding; None: no
            padding.
        cache: what came before; it remembers which columns were padding.

    Raises AttentionMaskError for a mask of another shape, one that contradicts the cache, or one with holes:
    the tokens of a row must be consecutive columns, over all calls.
    """
    past = cache.columns
    if mask is None:
        if cache.mask is not None:
            raise AttentionMaskError(
                "the cache holds a padded batch, but no attention_mask came with the new tokens; "
                f"pass the whole mask, [{rows}, {past + width}]"
            )
        return None
    if not isinstance(mask, torch.Tensor) or mask.ndim != 2:
        shape = list(mask.shape) if isinstance(mask, torch.Tensor) else type(mask).__name__
        raise AttentionMaskError(
            f"attention_mask is {shape}, but a placed model takes [batch, tokens] of 0 and 1: "
            "which tokens attend to which is part of the compiled graph (causal, the model's own windows)"
        )
    if tuple(mask.shape) != (rows, past + width):
        raise AttentionMaskError(
            f"attention_mask is {list(mask.shape)}, but {past} cached and {width} new columns of {rows} rows "
            f"need [{rows}, {past + width}]"
        )
    real = mask.to("cpu", torch.bool)
    if mask.is_floating_point() and not torch.equal(real.to(mask.dtype), mask.cpu()):
        raise AttentionMaskError("attention_mask must be of 0 and 1 (an additive mask is not supported)")
    before = real[:, :past]
    if not (before.all() if cache.mask is None else torch.equal(before, cache.mask)):
        raise AttentionMaskError(
            f"attention_mask changes which of the {past} cached columns are padding; the cache was filled "
            "with another mask. Start from a new cache"
        )
    new = real[:, past:].numpy()
    everything = bool(new.all())
    ranges = [(0, width) if everything else _consecutive(new[row], row, past) for row in range(rows)]
    for row, (first, stop) in enumerate(ranges):
        if first < stop and cache.sequences[row].length and (first or not real[row, past - 1]):
            raise _hole(row, past + first)
    return ranges


def joined_mask(cache: KtcCache, ranges: list[tuple[int, int]], width: int) -> torch.Tensor | None:
    """The cache's mask after `width` more columns; None when no column is padding."""
    if cache.mask is None and all(r == (0, width) for r in ranges):
        return None
    rows = len(ranges)
    new = torch.zeros((rows, width), dtype=torch.bool)
    for row, (first, stop) in enumerate(ranges):
        new[row, first:stop] = True
    before = torch.ones((rows, cache.columns), dtype=torch.bool) if cache.mask is None else cache.mask
    return torch.cat([before, new], 1)


def _consecutive(real: np.ndarray, row: int, past: int) -> tuple[int, int]:
    index = np.flatnonzero(real)
    if not len(index):
        return 0, 0
    first, stop = int(index[0]), int(index[-1]) + 1
    if stop - first != len(index):
        raise _hole(row, past + first + int(np.argmin(real[first:])) + 1)
    return first, stop


def _hole(row: int, column: int) -> AttentionMaskError:
    return AttentionMaskError(
        f"attention_mask has a hole: row {row} has padding between its tokens, before column "
        f"{column}. Only padding before the first or after the last token is supported; "
        "for generation use `padding_side='left'`"
    )
