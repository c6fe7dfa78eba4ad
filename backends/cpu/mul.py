"""cpu.mul: x * y, of one shape."""

from __future__ import annotations

import torch
from ktc.backends.cpu.elementwise import MUL, apply
from ktc.backends.cpu.library import define, register_plain


def mul(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    """x * y -> float32, contiguous. Raises OperandError for dtypes or shapes that do not fit."""
    return apply("mul", MUL, ("x", "y"), x, y)


def fake(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    """Shape of `mul`."""
    return x.new_empty(x.shape)


OP = define("mul(Tensor x, Tensor y) -> Tensor", mul, fake)
register_plain("mul", OP, ("x", "y"))
