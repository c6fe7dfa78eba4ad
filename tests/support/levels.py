"""Instruction-set levels in force for a while."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from ktc import _cpu


@contextmanager
def float_activations() -> Iterator[None]:
    """Inside, weights in bf16 and fp8 meet float activations at any number of tokens: below the levels that round
    activations to bf16 (avx512vnni from 3 tokens on, amx from 32). Below them, k-quants meet int8 in blocks of 32 at
    any number of tokens, too, instead of groups of 256. Products with the same codes are the same at every level.
    Attention of more than 16 rows has float operands, too.
    """
    before = _cpu.isa()
    if before in ("avx512vnni", "amx"):
        _cpu.set_isa("avx512")
    try:
        yield
    finally:
        _cpu.set_isa(before)
