"""cpu.attention: causal attention of a ragged batch over a paged key/value cache that it also writes.

Query heads that share a key head, and several tokens, go through the cache together, in tiles of 64 positions
with an online softmax; few tokens over a long context are cut into parts of 256 positions or more, for the threads.

More than 16 rows of queries (tokens times query heads of a key head, up to 96) over caches that are not float32 are
multiplied rounded, at level avx512vnni: queries and keys to 16-bit integers (NMSE 1e-8), weights and values to bf16
(together 6e-6 of the result); at level amx queries and keys only, and sequences of 9 new tokens or more on tiles, with
two bf16 for each query and key (the same error). Caches of float32 keep float products.
"""

from __future__ import annotations

import torch
import torch.fx as fx
from ktc.backends.cpu.library import OperandError, arguments, define, refuse, register_plain, shape_of, vector

from ktc import _cpu
from ktc.dialect.cache_formats import DTYPES, Q8_0, row_length

CACHE_TYPES = {torch.float32: 0, torch.float16: 1, torch.bfloat16: 2, Q8_0: 3}
"""Numbers of the formats of caches by the dtype of their tensors."""
DEPTH_STEP = 16
"""Head depths are multiples of this."""
MOST_GROUPED = 96
"""Query heads that may share a key head."""

_INTEGERS = {
    "seq_starts": torch.int32,
    "context_lens": torch.int32,
    "block_tables": torch.int32,
    "slots": torch.int64,
}


def attention(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, key_cache: torch.Tensor, value_cache: torch.Tensor,
    seq_starts: torch.Tensor, context_lens: torch.Tensor, block_tables: torch.Tensor, slots: torch.Tensor,
    scale: float, window: int = 0, softcap: float = 0.0, sinks: torch.Tensor | None = None,
) -> torch.Tensor:  # fmt: skip
    """kt.attention for float32 q, k, v and caches of float32, float16, bfloat16 or q8_0 -> [1, T, H, Dv].

    Raises:
        OperandError: dtypes or shapes that do not fit; sequences, blocks or slots outside the caches.
    """
    q, k, v = _heads("q", q), _heads("k", k), _heads("v", v)
    _, heads, tokens, depth = q.shape
    _, kv_heads, _, value_depth = v.shape
    if k.shape != (1, kv_heads, tokens, depth) or v.shape[2] != tokens:
        raise refuse("attention", "k", k, f"float32[1, {kv_heads}, {tokens}, {depth}], as q and v are")
    blocks, _, block_size, _ = _cache("key_cache", key_cache, kv_heads, depth)
    if _cache("value_cache", value_cache, kv_heads, value_depth)[::2] != (blocks, block_size):
        raise refuse(
            "attention", "value_cache", value_cache, f"of {blocks} blocks of {block_size}, as `key_cache` is"
        )
    sequences = context_lens.numel()
    if block_tables.dim() != 2 or block_tables.shape[0] != sequences or seq_starts.numel() != sequences + 1:
        raise refuse(
            "attention", "block_tables", block_tables, f"[{sequences}, n], with {sequences + 1} `seq_starts`"
        )
    if slots.numel() != tokens:
        raise refuse("attention", "slots", slots, f"int64[{tokens}]")
    seq_starts, context_lens = _integers("seq_starts", seq_starts), _integers("context_lens", context_lens)
    block_tables, slots = _integers("block_tables", block_tables), _integers("slots", slots)
    if sinks is not None:
        sinks = vector("attention", "sinks", sinks, heads)
    out = torch.empty((1, tokens, heads, value_depth))
    try:
        _cpu.attention(
            q.data_ptr(), q.stride(1), q.stride(2), k.data_ptr(), k.stride(1), k.stride(2),
            v.data_ptr(), v.stride(1), v.stride(2),
            key_cache.data_ptr(), CACHE_TYPES[key_cache.dtype],
            value_cache.data_ptr(), CACHE_TYPES[value_cache.dtype],
            heads, kv_heads, tokens, depth, value_depth, blocks, block_size,
            seq_starts.data_ptr(), context_lens.data_ptr(),
            block_tables.data_ptr(), sequences, block_tables.shape[1], slots.data_ptr(),
            scale, window, softcap, 0 if sinks is None else sinks.data_ptr(), out.data_ptr(),
        )  # fmt: skip
    except ValueError as error:
        raise OperandError(f"kt_cpu.{error}") from error
    return out


def _heads(name: str, x: torch.Tensor) -> torch.Tensor:
    if x.dtype is not torch.float32 or x.dim() != 4 or x.shape[0] != 1:
        raise refuse("attention", name, x, "float32[1, heads, tokens, depth]")
    return x if x.stride(3) == 1 else x.contiguous()


def _cache(name: str, cache: torch.Tensor, kv_heads: int, depth: int) -> torch.Size:
    return check_cache("attention", name, cache, kv_heads, depth)


def check_cache(op: str, name: str, cache: torch.Tensor, kv_heads: int, depth: int) -> torch.Size:
    """The shape of a cache for rows of `depth` elements. Raises OperandError for any other tensor."""
    shape = cache.shape
    fits = len(shape) == 4 and shape[1] == kv_heads and cache.is_contiguous()
    try:
        if cache.dtype not in CACHE_TYPES or not fits or shape[3] != row_length(depth, cache.dtype):
            wanted = f"contiguous {', '.join(DTYPES)} [blocks, {kv_heads}, block_size, {depth}]"
            raise refuse(op, name, cache, wanted)
    except ValueError as error:
        raise refuse(op, name, cache, str(error)) from error
    return shape


def _integers(name: str, x: torch.Tensor) -> torch.Tensor:
    if x.dtype is not _INTEGERS[name]:
        raise refuse("attention", name, x, str(_INTEGERS[name]).removeprefix("torch."))
    return x.contiguous()


def fake(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, key_cache: torch.Tensor, value_cache: torch.Tensor,
    seq_starts: torch.Tensor, context_lens: torch.Tensor, block_tables: torch.Tensor, slots: torch.Tensor,
    scale: float, window: int = 0, softcap: float = 0.0, sinks: torch.Tensor | None = None,
) -> torch.Tensor:  # fmt: skip
    """Shape of `attention`."""
    return q.new_empty((1, q.shape[2], q.shape[1], v.shape[3]))


def misfit(node: fx.Node) -> str | None:
    """Why the kernel cannot run a node, in words, or None."""
    bound = arguments(node)
    q, v = shape_of(bound["q"]), shape_of(bound["v"])
    if q is None or v is None:
        return "the shapes of its heads are unknown"
    if q[3] % DEPTH_STEP or v[3] % DEPTH_STEP:
        return f"its heads have depths {q[3]} and {v[3]}, which are no multiples of {DEPTH_STEP}"
    if q[1] // v[1] > MOST_GROUPED:
        return f"more than {MOST_GROUPED} query heads share a key head"
    return None


OP = define(
    "attention(Tensor q, Tensor k, Tensor v, Tensor(a!) key_cache, Tensor(b!) value_cache, Tensor seq_starts,"
    " Tensor context_lens, Tensor block_tables, Tensor slots, float scale, int window=0, float softcap=0.0,"
    " Tensor? sinks=None) -> Tensor",
    attention,
    fake,
)
register_plain(
    "attention",
    OP,
    (
        "q", "k", "v", "key_cache", "value_cache", "seq_starts", "context_lens", "block_tables", "slots",
        "scale", "window", "softcap", "sinks",
    ),
    misfit,
    cache_dtypes=frozenset(DTYPES),
)  # fmt: skip
