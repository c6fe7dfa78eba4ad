"""kt.mla_attention: multi-head latent attention over a paged cache of latents, with absorbed projections.

DeepSeek-V2 (2024), section 2.1.2: since a head's key is `latent @ w_key`, its score is `(q @ w_key.T) @ latent`,
so that the cache holds one latent and one rotated key a token, whatever the number of heads.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from ktc.dialect import cache_formats
from ktc.dialect.cost import nbytes
from ktc.dialect.spec import Cost, Effects, define


def reference(
    q_nope: torch.Tensor,
    q_rope: torch.Tensor,
    latent: torch.Tensor,
    k_rope: torch.Tensor,
    w_key: torch.Tensor,
    w_value: torch.Tensor,
    key_cache: torch.Tensor,
    value_cache: torch.Tensor,
    seq_starts: torch.Tensor,
    context_lens: torch.Tensor,
    block_tables: torch.Tensor,
    slots: torch.Tensor,
    scale: float,
) -> torch.Tensor:
    """Writes latents and rotated keys of T new tokens into the cache, then attends causally within each sequence.

    Args:
        q_nope: [1, H, T, N], q_rope: [1, H, T, R], rotated; any strides.
        latent: [1, T, L], normalised; k_rope: [1, 1, T, R], rotated.
        w_key: [H, L, N], w_value: [H, V, L]: what expands a latent to each head's key and value.
        key_cache: [blocks, 1, block_size, L], holds latents; value_cache: [..., R], holds rotated keys; any
            float dtype, or q8_0 as `cache_formats` has it. The step's own entries are read back from the cache,
            hence rounded as it is.
        seq_starts, context_lens, block_tables, slots, scale: as in kt.attention.

    Returns:
        [1, T, H, V] contiguous, in q_nope's dtype; computed in float32. Tokens of no sequence get zeros.
    """
    block_size = key_cache.shape[2]
    blocks, offsets = slots // block_size, slots % block_size
    cache_formats.write(key_cache, blocks, offsets, latent[0][:, None])
    cache_formats.write(value_cache, blocks, offsets, k_rope[0, 0][:, None])

    heads, tokens = q_nope.shape[1:3]
    out = q_nope.new_zeros((1, tokens, heads, w_value.shape[1]))
    starts, contexts = seq_starts.tolist(), context_lens.tolist()
    for sequence, context in enumerate(contexts):
        begin, end = starts[sequence], starts[sequence + 1]
        new = end - begin
        if new == 0:
            continue
        table = block_tables[sequence, : -(-context // block_size)].long()
        latents = cache_formats.gather(key_cache, table, context)[0]
        rotated = cache_formats.gather(value_cache, table, context)[0]
        query = q_nope[0, :, begin:end].float() @ w_key.float().transpose(1, 2)
        scores = (query @ latents.T + q_rope[0, :, begin:end].float() @ rotated.T) * scale
        positions = torch.arange(context - new, context, device=q_nope.device)[:, None]
        hidden = torch.arange(context, device=q_nope.device)[None, :] > positions
        mixed = torch.softmax(scores.masked_fill(hidden, float("-inf")), dim=-1) @ latents
        values = mixed @ w_value.float().transpose(1, 2)
        out[0, begin:end] = values.transpose(0, 1).to(out.dtype)
    return out


def fake(
    q_nope: torch.Tensor,
    q_rope: torch.Tensor,
    latent: torch.Tensor,
    k_rope: torch.Tensor,
    w_key: torch.Tensor,
    w_value: torch.Tensor,
    key_cache: torch.Tensor,
    value_cache: torch.Tensor,
    seq_starts: torch.Tensor,
    context_lens: torch.Tensor,
    block_tables: torch.Tensor,
    slots: torch.Tensor,
    scale: float,
) -> torch.Tensor:
    """Shape of `reference`."""
    return q_nope.new_empty((1, q_nope.shape[2], q_nope.shape[1], w_value.shape[1]))


def caches(arguments: Mapping[str, Any]) -> tuple[int, int, int]:
    """(heads, key_dim, value_dim) of the caches: the latent and the rotated key."""
    return 1, int(arguments["latent"].shape[2]), int(arguments["k_rope"].shape[3])


def products(arguments: Mapping[str, Any]) -> int:
    """Multiply-adds of a token with one position, in the cheaper form: keys and values expanded, or absorbed."""
    q, w_value = arguments["q_nope"], arguments["w_value"]
    _, depth, rotated = caches(arguments)
    expanded = int(q.shape[3]) + rotated + int(w_value.shape[1])
    return int(q.shape[1]) * min(expanded, 2 * depth + rotated)


def cost(arguments: Mapping[str, Any], context: int) -> Cost:
    """Both weights once, the latents of each sequence once; absorbed products for every new token."""
    q_nope, w_key, w_value = (arguments[name] for name in ("q_nope", "w_key", "w_value"))
    _, heads, tokens, _ = (int(size) for size in q_nope.shape)
    _, depth, rotated = caches(arguments)
    sequences = int(arguments["context_lens"].shape[0])
    new = -(-tokens // max(sequences, 1))
    seen = max(context, new)
    attended = seen - (new - 1) // 2
    elements = int(w_key.numel()) + int(w_value.numel())
    entry = depth * arguments["key_cache"].element_size() + rotated * arguments["value_cache"].element_size()
    operands = sum(nbytes(arguments[name]) for name in ("q_nope", "q_rope", "latent", "k_rope"))
    return Cost(
        2 * tokens * elements + 2 * heads * tokens * attended * (2 * depth + rotated),
        operands + nbytes(w_key) + nbytes(w_value) + sequences * seen * entry,
        tokens * (heads * int(w_value.shape[1]) * q_nope.element_size() + entry),
        weight_elements=elements,
    )


SPEC = define(
    "mla_attention(Tensor q_nope, Tensor q_rope, Tensor latent, Tensor k_rope, Tensor w_key, Tensor w_value,"
    " Tensor(a!) key_cache, Tensor(b!) value_cache, Tensor seq_starts, Tensor context_lens, Tensor block_tables,"
    " Tensor slots, float scale) -> Tensor",
    reference=reference,
    fake=fake,
    cost=cost,
    weights=("w_key", "w_value"),
    effects=Effects(host_sync=True, data_dependent=True, pinned=True, mutates_kv=True),
    caches=caches,
    products=products,
)
