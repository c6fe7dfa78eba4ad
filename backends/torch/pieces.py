"""Attention in pieces: a long step as several short ones, so that the scores of the reference stay bounded in memory.

A sequence's new tokens go through the dialect's reference a few at a time, which is what chunked prefill does with
steps: every piece finds the entries of the ones before it in the cache.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
import torch.fx as fx
from ktc.backends.operands import arguments

SCORE_ELEMENTS = 1 << 23
"""Scores, over all heads, that are held at a time, or those of one token if they are more."""
SCORE_COPIES = 4
"""Tensors as large as the scores that the references hold at once: products, scaled, masked, normalised."""


@dataclass(frozen=True)
class Piece:
    """Some new tokens of one sequence, and the step descriptor of a step with nothing but them."""

    tokens: slice
    seq_starts: torch.Tensor
    context_lens: torch.Tensor
    block_tables: torch.Tensor
    slots: torch.Tensor


def pieces(
    heads: int,
    seq_starts: torch.Tensor,
    context_lens: torch.Tensor,
    block_tables: torch.Tensor,
    slots: torch.Tensor,
) -> Iterator[Piece]:
    """The step in pieces, each sequence's in order; operands as in kt.attention."""
    starts, contexts = seq_starts.tolist(), context_lens.tolist()
    for sequence, context in enumerate(contexts):
        begin, end = starts[sequence], starts[sequence + 1]
        step = max(1, SCORE_ELEMENTS // max(1, heads * context))
        for first in range(begin, end, step):
            last = min(first + step, end)
            yield Piece(
                slice(first, last),
                seq_starts.new_tensor([0, last - first]),
                context_lens.new_tensor([context - (end - last)]),
                block_tables[sequence : sequence + 1],
                slots[first:last],
            )


def entry_bytes(node: fx.Node) -> int | torch.SymInt:
    """Bytes that a reference holds of one sequence's cache: its entries in the cache's dtype, and twice as float32."""
    bound = arguments(node)
    keys, values = bound["key_cache"].meta["val"], bound["value_cache"].meta["val"]
    nbytes: int | torch.SymInt = context_of(node) * keys.shape[1] * (keys.shape[3] + values.shape[3])
    return nbytes * (2 * 4 + int(keys.element_size()))


def context_of(node: fx.Node) -> int | torch.SymInt:
    """Most tokens that a sequence of the step has in the cache."""
    bound = arguments(node)
    tokens: int | torch.SymInt = (
        bound["block_tables"].meta["val"].shape[1] * bound["key_cache"].meta["val"].shape[2]
    )
    return tokens


def score_bytes(heads: int, context: int | torch.SymInt) -> int | torch.SymInt:
    """Bytes that the scores of one piece never exceed: those of some tokens, or of one whose context is long."""
    return 4 * SCORE_COPIES * (SCORE_ELEMENTS + heads * context)
