"""torch.mla_attention_blocks: kt.mla_attention in bounded memory, its two weights held as the file's blocks.

Both weights are opened whole at every call, and the new tokens go through the dialect's reference a few at a time.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
import torch.fx as fx
from ktc.backends import file_layout
from ktc.backends.operands import arguments, insert
from ktc.backends.registry import Kernel, Weight, register
from ktc.backends.torch import blocks
from ktc.backends.torch.dequantize import FORMATS_READ
from ktc.backends.torch.library import DTYPES, HARDWARE, define
from ktc.backends.torch.pieces import context_of, entry_bytes, pieces, score_bytes

from ktc.dialect.cache_formats import DTYPES as CACHES
from ktc.dialect.mla_attention import reference

OPERANDS = (
    "q_nope", "q_rope", "latent", "k_rope", "w_key", "w_value", "key_cache", "value_cache", "seq_starts",
    "context_lens", "block_tables", "slots", "scale",
)  # fmt: skip


def mla_attention(
    q_nope: torch.Tensor, q_rope: torch.Tensor, latent: torch.Tensor, k_rope: torch.Tensor, w_key: torch.Tensor,
    w_value: torch.Tensor, key_cache: torch.Tensor, value_cache: torch.Tensor, seq_starts: torch.Tensor,
    context_lens: torch.Tensor, block_tables: torch.Tensor, slots: torch.Tensor, scale: float,
    key_format: str, value_format: str, value_dim: int,
) -> torch.Tensor:  # fmt: skip
    """See `kt.mla_attention`; w_key and w_value are the file's blocks of [H, L, N] and [H, value_dim, L].

    Cache entries of tokens that belong to no sequence are not written.

    Raises:
        OperandError: weights of another size.
    """
    heads, tokens, nope = q_nope.shape[1:]
    width = latent.shape[2]
    keys = blocks.whole("mla_attention_blocks", "w_key", w_key, key_format, (heads, width, nope))
    values = blocks.whole("mla_attention_blocks", "w_value", w_value, value_format, (heads, value_dim, width))
    out = q_nope.new_zeros((1, tokens, heads, value_dim))
    for piece in pieces(heads, seq_starts, context_lens, block_tables, slots):
        part = piece.tokens
        out[:, part] = reference(
            q_nope[:, :, part], q_rope[:, :, part], latent[:, part], k_rope[:, :, part], keys, values, key_cache,
            value_cache, piece.seq_starts, piece.context_lens, piece.block_tables, piece.slots, scale,
        )  # fmt: skip
    return out


def fake(q_nope: torch.Tensor, *operands: Any) -> torch.Tensor:
    """Shape of `mla_attention`."""
    return q_nope.new_empty((1, q_nope.shape[2], q_nope.shape[1], operands[-1]))


OP = define(
    "mla_attention_blocks(Tensor q_nope, Tensor q_rope, Tensor latent, Tensor k_rope, Tensor w_key, Tensor w_value,"
    " Tensor(a!) key_cache, Tensor(b!) value_cache, Tensor seq_starts, Tensor context_lens, Tensor block_tables,"
    " Tensor slots, float scale, str key_format, str value_format, int value_dim) -> Tensor",
    mla_attention,
    fake,
)


def lower(
    graph: fx.Graph, node: fx.Node, weights: Mapping[str, Weight], options: Mapping[str, Any]
) -> fx.Node:
    """kt.mla_attention -> kt_torch.mla_attention_blocks."""
    bound, values = arguments(node), weights["w_value"]
    args = tuple(bound[name] for name in OPERANDS)
    return insert(graph, node, OP, (*args, weights["w_key"].format, values.format, values.shape[1]))


def workspace(node: fx.Node, weights: Mapping[str, Weight]) -> int | torch.SymInt:
    """Both weights as float32 and a slab of one, a sequence's latents likewise, the scores of a piece."""
    nbytes, slab = entry_bytes(node), 0
    for weight in weights.values():
        heads, rows, columns = weight.shape
        nbytes += 4 * heads * rows * columns
        slab = max(slab, blocks.slab_bytes(heads * rows, columns))
    query_heads = int(arguments(node)["q_nope"].meta["val"].shape[1])
    return nbytes + slab + score_bytes(query_heads, context_of(node))


def supports(node: fx.Node) -> str | None:
    """Why a node does not fit, in words, or None."""
    bound = arguments(node)
    return blocks.misfit(bound["w_key"], 3) or blocks.misfit(bound["w_value"], 3)


register(
    Kernel(
        name="torch.mla_attention_blocks",
        op="kt.mla_attention",
        hardware=HARDWARE,
        lower=lower,
        formats=FORMATS_READ,
        dtypes=DTYPES,
        rank=0,
        supports=supports,
        layout=file_layout.LAYOUT,
        workspace=workspace,
        cache_dtypes=frozenset(CACHES),
    )
)
