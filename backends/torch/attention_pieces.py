"""torch.attention_pieces: kt.attention by its reference, a few new tokens at a time, in bounded memory."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
import torch.fx as fx
from ktc.backends.operands import arguments, insert
from ktc.backends.registry import Kernel, Weight, register
from ktc.backends.torch.library import DTYPES, HARDWARE, define
from ktc.backends.torch.pieces import context_of, entry_bytes, pieces, score_bytes

from ktc.dialect.attention import fake, reference
from ktc.dialect.cache_formats import DTYPES as CACHES

OPERANDS = (
    "q", "k", "v", "key_cache", "value_cache", "seq_starts", "context_lens", "block_tables", "slots", "scale",
    "window", "softcap", "sinks",
)  # fmt: skip


def attention(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, key_cache: torch.Tensor, value_cache: torch.Tensor,
    seq_starts: torch.Tensor, context_lens: torch.Tensor, block_tables: torch.Tensor, slots: torch.Tensor,
    scale: float, window: int = 0, softcap: float = 0.0, sinks: torch.Tensor | None = None,
) -> torch.Tensor:  # fmt: skip
    """See `kt.attention`; cache entries of tokens that belong to no sequence are not written."""
    out = q.new_zeros((1, q.shape[2], q.shape[1], v.shape[3]))
    for piece in pieces(q.shape[1], seq_starts, context_lens, block_tables, slots):
        part = piece.tokens
        out[:, part] = reference(
            q[:, :, part], k[:, :, part], v[:, :, part], key_cache, value_cache, piece.seq_starts,
            piece.context_lens, piece.block_tables, piece.slots, scale, window, softcap, sinks,
        )  # fmt: skip
    return out


OP = define(
    "attention_pieces(Tensor q, Tensor k, Tensor v, Tensor(a!) key_cache, Tensor(b!) value_cache,"
    " Tensor seq_starts, Tensor context_lens, Tensor block_tables, Tensor slots, float scale, int window=0,"
    " float softcap=0.0, Tensor? sinks=None) -> Tensor",
    attention,
    fake,
)


def lower(
    graph: fx.Graph, node: fx.Node, weights: Mapping[str, Weight], options: Mapping[str, Any]
) -> fx.Node:
    """kt.attention -> kt_torch.attention_pieces."""
    bound = arguments(node)
    return insert(graph, node, OP, tuple(bound[name] for name in OPERANDS))


def workspace(node: fx.Node, weights: Mapping[str, Weight]) -> int | torch.SymInt:
    """Scores of a piece, and the keys and values of a whole sequence in the cache's dtype and as float32."""
    heads = int(arguments(node)["q"].meta["val"].shape[1])
    return entry_bytes(node) + score_bytes(heads, context_of(node))


register(
    Kernel(
        name="torch.attention_pieces",
        op="kt.attention",
        hardware=HARDWARE,
        lower=lower,
        dtypes=DTYPES,
        rank=0,
        workspace=workspace,
        cache_dtypes=frozenset(CACHES),
    )
)
