"""kt.attention: causal attention of a ragged batch over a paged key/value cache that it also writes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from ktc.dialect import cache_formats
from ktc.dialect.cost import nbytes
from ktc.dialect.spec import Cost, Effects, define


def reference(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    key_cache: torch.Tensor,
    value_cache: torch.Tensor,
    seq_starts: torch.Tensor,
    context_lens: torch.Tensor,
    block_tables: torch.Tensor,
    slots: torch.Tensor,
    scale: float,
    window: int = 0,
    softcap: float = 0.0,
    sinks: torch.Tensor | None = None,
) -> torch.Tensor:
    """Writes k and v of T new tokens into the cache, then attends causally within each sequence.

    Args:
        q: [1, H, T, D], any strides; k: [1, Hk, T, D]; v: [1, Hk, T, Dv]; H a multiple of Hk.
        key_cache, value_cache: [blocks, Hk, block_size, D] and [..., Dv] of any float dtype, or q8_0 as
            `cache_formats` has it. The step's own k and v are read back from the cache, hence rounded as it is.
        seq_starts: int32[B+1], token range of each sequence in T; ranges may be empty.
        context_lens: int32[B], cached tokens of each sequence after this step, so token j of a sequence with
            n new tokens has position `context_len - n + j`.
        block_tables: int32[B, NB], cache blocks of each sequence in order.
        slots: int64[T], `block * block_size + offset` of each new token.
        scale: factor on q·k.
        window: attend to the last `window` positions, itself included; 0 for all.
        softcap: `softcap * tanh(score / softcap)` before the mask; 0 for none.
        sinks: [H], one more logit a head that takes weight and adds no value (Xiao et al. 2023; GPT-OSS).

    Returns:
        [1, T, H, Dv] contiguous, in q's dtype; computed in float32. Tokens of no sequence get zeros.
    """
    block_size = key_cache.shape[2]
    blocks, offsets = slots // block_size, slots % block_size
    cache_formats.write(key_cache, blocks, offsets, k[0].transpose(0, 1))
    cache_formats.write(value_cache, blocks, offsets, v[0].transpose(0, 1))

    heads, tokens, kv_heads = q.shape[1], q.shape[2], k.shape[1]
    out = q.new_zeros((1, tokens, heads, v.shape[3]))
    starts, contexts = seq_starts.tolist(), context_lens.tolist()
    for sequence, context in enumerate(contexts):
        begin, end = starts[sequence], starts[sequence + 1]
        new = end - begin
        if new == 0:
            continue
        # Positions before `first` lie outside the window of every new token.
        first = max(0, context - new - window + 1) if window else 0
        first -= first % block_size
        table = block_tables[sequence, first // block_size : -(-context // block_size)].long()
        keys = cache_formats.gather(key_cache, table, context - first)
        values = cache_formats.gather(value_cache, table, context - first)

        query = q[0, :, begin:end].float().reshape(kv_heads, heads // kv_heads * new, -1)
        scores = (query @ keys.transpose(1, 2)).view(heads, new, context - first) * scale
        if softcap:
            scores = softcap * torch.tanh(scores / softcap)
        positions = torch.arange(context - new, context, device=q.device)[:, None]
        cached = torch.arange(first, context, device=q.device)[None, :]
        hidden = cached > positions
        if window:
            hidden = hidden | (cached <= positions - window)
        scores = scores.masked_fill(hidden, float("-inf"))
        if sinks is not None:
            scores = torch.cat((scores, sinks.float().view(heads, 1, 1).expand(heads, new, 1)), dim=-1)
        weights = torch.softmax(scores, dim=-1)[..., : context - first]
        mixed = weights.reshape(kv_heads, heads // kv_heads * new, -1) @ values
        out[0, begin:end] = mixed.view(heads, new, -1).transpose(0, 1).to(out.dtype)
    return out


def fake(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    key_cache: torch.Tensor,
    value_cache: torch.Tensor,
    seq_starts: torch.Tensor,
    context_lens: torch.Tensor,
    block_tables: torch.Tensor,
    slots: torch.Tensor,
    scale: float,
    window: int = 0,
    softcap: float = 0.0,
    sinks: torch.Tensor | None = None,
) -> torch.Tensor:
    """Shape of `reference`."""
    return q.new_empty((1, q.shape[2], q.shape[1], v.shape[3]))


def caches(arguments: Mapping[str, Any]) -> tuple[int, int, int]:
    """(heads, key_dim, value_dim) of the caches."""
    k, v = arguments["k"], arguments["v"]
    return int(k.shape[1]), int(k.shape[3]), int(v.shape[3])


def products(arguments: Mapping[str, Any]) -> int:
    """Multiply-adds of a token with one position: scores and sums of every query head."""
    q, v = arguments["q"], arguments["v"]
    return int(q.shape[1]) * (int(q.shape[3]) + int(v.shape[3]))


def cost(arguments: Mapping[str, Any], context: int) -> Cost:
    """Each sequence reads its cached keys and values once; each new token scores the context or window."""
    q, k, v = arguments["q"], arguments["k"], arguments["v"]
    keys, values = arguments["key_cache"], arguments["value_cache"]
    heads, tokens, depth, value_depth = int(q.shape[1]), int(q.shape[2]), int(q.shape[3]), int(v.shape[3])
    sequences = int(arguments["context_lens"].shape[0])
    new = -(-tokens // max(sequences, 1))
    seen = max(context, new)
    window = int(arguments["window"])
    attended = min(seen, window) if window else seen - (new - 1) // 2
    cached = min(seen, window + new - 1) if window else seen
    entry = int(k.shape[1]) * (depth * keys.element_size() + value_depth * values.element_size())
    return Cost(
        2 * tokens * attended * products(arguments),
        nbytes(q) + nbytes(k) + nbytes(v) + sequences * cached * entry,
        tokens * (heads * value_depth * q.element_size() + entry),
    )


SPEC = define(
    "attention(Tensor q, Tensor k, Tensor v, Tensor(a!) key_cache, Tensor(b!) value_cache, Tensor seq_starts,"
    " Tensor context_lens, Tensor block_tables, Tensor slots, float scale, int window=0, float softcap=0.0,"
    " Tensor? sinks=None) -> Tensor",
    reference=reference,
    fake=fake,
    cost=cost,
    effects=Effects(host_sync=True, data_dependent=True, pinned=True, mutates_kv=True),
    caches=caches,
    products=products,
)
