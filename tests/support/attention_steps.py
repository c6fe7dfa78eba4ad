"""Operands of one attention step: sequences with new tokens after cached ones, in shuffled cache blocks."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

BLOCK_SIZE = 32


def descriptor(
    new: Sequence[int], cached: Sequence[int], block_size: int = BLOCK_SIZE
) -> tuple[dict[str, torch.Tensor], int]:
    """The step descriptor, and how many blocks the caches have."""
    contexts = [n + c for n, c in zip(new, cached, strict=True)]
    columns = max(1, max(-(-c // block_size) for c in contexts))
    blocks = len(new) * columns + 3
    table = torch.randperm(blocks)[: len(new) * columns].reshape(len(new), columns).int()
    slots = [
        int(table[s, (c + j) // block_size]) * block_size + (c + j) % block_size
        for s, (n, c) in enumerate(zip(new, cached, strict=True))
        for j in range(n)
    ]
    return {
        "seq_starts": torch.tensor([0, *torch.tensor(new).cumsum(0).tolist()], dtype=torch.int32),
        "context_lens": torch.tensor(contexts, dtype=torch.int32),
        "block_tables": table,
        "slots": torch.tensor(slots, dtype=torch.int64),
    }, blocks


def step(
    new: Sequence[int], cached: Sequence[int], heads: int = 4, kv_heads: int = 2, depth: int = 32,
    dtype: torch.dtype = torch.float32,
) -> dict[str, Any]:  # fmt: skip
    """Operands of kt.attention."""
    torch.manual_seed(0)
    described, blocks = descriptor(new, cached)
    tokens = sum(new)
    return {
        "q": torch.randn(1, heads, tokens, depth),
        "k": torch.randn(1, kv_heads, tokens, depth),
        "v": torch.randn(1, kv_heads, tokens, depth),
        "key_cache": torch.randn(blocks, kv_heads, BLOCK_SIZE, depth).to(dtype),
        "value_cache": torch.randn(blocks, kv_heads, BLOCK_SIZE, depth).to(dtype),
        **described,
        "scale": depth**-0.5,
    }


def latent_step(
    new: Sequence[int],
    cached: Sequence[int],
    heads: int = 4,
    width: int = 64,
    nope: int = 32,
    rotated: int = 16,
) -> dict[str, Any]:
    """Operands of kt.mla_attention but its two weights."""
    torch.manual_seed(0)
    described, blocks = descriptor(new, cached)
    tokens = sum(new)
    return {
        "q_nope": torch.randn(1, heads, tokens, nope),
        "q_rope": torch.randn(1, heads, tokens, rotated),
        "latent": torch.randn(1, tokens, width),
        "k_rope": torch.randn(1, 1, tokens, rotated),
        "key_cache": torch.randn(blocks, 1, BLOCK_SIZE, width),
        "value_cache": torch.randn(blocks, 1, BLOCK_SIZE, rotated),
        **described,
        "scale": (nope + rotated) ** -0.5,
    }
