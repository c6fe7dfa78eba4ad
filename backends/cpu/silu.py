"""cpu.silu: x * sigmoid(x)."""

from __future__ import annotations

import torch
from ktc.backends.cpu.elementwise import SILU, apply
from ktc.backends.cpu.library import define, register_plain


def silu(x: torch.Tensor) -> torch.Tensor:
    """x * sigmoid(x) -> float32, contiguous. Raises OperandError for another dtype."""
    return apply("silu", SILU, ("x",), x)


def fake(x: torch.Tensor) -> torch.Tensor:
    """Shape of `silu`."""
    return x.new_empty(x.shape)


OP = define("silu(Tensor x) -> Tensor", silu, fake)
register_plain("silu", OP, ("x",))
