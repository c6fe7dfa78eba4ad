"""cpu.gelu_mul: gelu(gate) * up."""

from __future__ import annotations

import torch
from ktc.backends.cpu.elementwise import GELU_MUL_FUNCTIONS, apply
from ktc.backends.cpu.gelu import misfit
from ktc.backends.cpu.library import OperandError, define, register_plain


def gelu_mul(gate: torch.Tensor, up: torch.Tensor, approximate: str = "none") -> torch.Tensor:
    """gelu(gate) * up -> float32, contiguous; `approximate` is "none" or "tanh". Raises OperandError."""
    if approximate not in GELU_MUL_FUNCTIONS:
        raise OperandError(f"kt_cpu.gelu_mul: `approximate` must be none or tanh, not {approximate!r}")
    return apply("gelu_mul", GELU_MUL_FUNCTIONS[approximate], ("gate", "up"), gate, up)


def fake(gate: torch.Tensor, up: torch.Tensor, approximate: str = "none") -> torch.Tensor:
    """Shape of `gelu_mul`."""
    return gate.new_empty(gate.shape)


OP = define('gelu_mul(Tensor gate, Tensor up, str approximate="none") -> Tensor', gelu_mul, fake)
register_plain("gelu_mul", OP, ("gate", "up", "approximate"), misfit)
