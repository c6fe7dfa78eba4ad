"""How far attention of many rows may be from float64, by the level in force."""

from __future__ import annotations

import torch

from ktc import _cpu

ROUNDED_ATTENTION = {"avx512vnni": 1e-5, "amx": 1e-5}
"""NMSE of attention of many rows by the levels that round its operands. Measured over these tests: up to 6.2e-6 with
weights and values in bf16; over caches of bf16 3e-6. Queries and keys add less than 1e-7, as 16-bit integers or as two
bf16 each."""


def attention_limit(rows: int, *caches: torch.dtype, otherwise: float = 1e-11) -> float:
    """Largest NMSE of attention, with the level in force, of up to `rows` query rows a tile over these caches.

    Up to 16 rows and caches of float32 are multiplied as floats.
    """
    if rows <= 16 or torch.float32 in caches:
        return otherwise
    return max(otherwise, ROUNDED_ATTENTION.get(_cpu.isa(), 0.0))
