"""Steps of attention: operands in paged caches, and the comparison of a step with the dialect's meaning."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from support.attention_steps import descriptor
from support.packed_weights import nmse

import ktc.dialect  # noqa: F401  registers kt.attention
from ktc.dialect.cache_formats import row_length, write


def cache(blocks: int, heads: int, size: int, depth: int, dtype: torch.dtype) -> torch.Tensor:
    """A cache full of random rows."""
    made = torch.zeros(blocks, heads, size, row_length(depth, dtype), dtype=dtype)
    places = torch.arange(blocks * size)
    write(made, places // size, places % size, torch.randn(blocks * size, heads, depth))
    return made


def step(
    new: Sequence[int], cached: Sequence[int], heads: int = 4, kv_heads: int = 2, depth: int = 32,
    value_depth: int = 32, block_size: int = 32, dtype: torch.dtype = torch.float32, seed: int = 0,
) -> dict[str, Any]:  # fmt: skip
    """The operands of one step: sequences with `new` tokens after `cached` ones, in shuffled blocks."""
    torch.manual_seed(seed)
    described, blocks = descriptor(new, cached, block_size)
    tokens = sum(new)
    fused = torch.randn(1, tokens, heads + kv_heads, depth)
    return {
        "q": fused[:, :, :heads].transpose(1, 2),
        "k": fused[:, :, heads:].transpose(1, 2),
        "v": torch.randn(1, kv_heads, tokens, value_depth),
        "key_cache": cache(blocks, kv_heads, block_size, depth, dtype),
        "value_cache": cache(blocks, kv_heads, block_size, value_depth, dtype),
        **described,
        "scale": depth**-0.5,
    }


def check(operands: dict[str, Any], limit: float = 1e-11) -> None:
    """Output and caches equal those of the dialect's op, which gets float64 queries over the same caches."""
    wanted = dict(operands)
    wanted["key_cache"], wanted["value_cache"] = (
        operands["key_cache"].clone(),
        operands["value_cache"].clone(),
    )
    for name in ("q", "k", "v"):
        wanted[name] = operands[name].double()
    out = torch.ops.kt_cpu.attention(**operands)
    expected = torch.ops.kt.attention(**wanted)
    assert torch.equal(operands["key_cache"], wanted["key_cache"])
    assert torch.equal(operands["value_cache"], wanted["value_cache"])
    assert out.is_contiguous()
    assert nmse(out, expected) <= limit
