"""How far attention of many rows may be from float64, by the level in force."""

from __future__ import annotations

import torch

from ktc import _cpu

ROUNDED_ATTENTION = {"avx512vnni": 1e-5, "amx": 1e-6}
"""NMSE of attention of many rows by the levels that round its operands. Measured over these tests: up to 6.2e-6 with
weights and values in bf16, up to 3.3e-7 where only queries, keys and latents are rounded, to 16-bit integers."""


def attention_limit(rows: int, *caches: torch.dtype, otherwise: float = 1e-11) -> float:
    """Largest NMSE of attention, with the level in force, of up to `rows` query rows a tile over these caches.

    Up to 16 rows and caches of float32 are multiplied as floats.
    """
    if rows <= 16 or torch.float32 in caches:
        return otherwise
    return max(otherwise, ROUNDED_ATTENTION.get(_cpu.isa(), 0.0))
