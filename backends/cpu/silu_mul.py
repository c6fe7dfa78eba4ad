"""cpu.silu_mul: silu(gate) * up."""

from __future__ import annotations

import torch
from ktc.backends.cpu.elementwise import SILU_MUL, apply
from ktc.backends.cpu.library import define, register_plain


def silu_mul(gate: torch.Tensor, up: torch.Tensor) -> torch.Tensor:
    """silu(gate) * up -> float32, contiguous. Raises OperandError for dtypes or shapes that do not fit."""
    return apply("silu_mul", SILU_MUL, ("gate", "up"), gate, up)


def fake(gate: torch.Tensor, up: torch.Tensor) -> torch.Tensor:
    """Shape of `silu_mul`."""
    return gate.new_empty(gate.shape)


OP = define("silu_mul(Tensor gate, Tensor up) -> Tensor", silu_mul, fake)
register_plain("silu_mul", OP, ("gate", "up"))
