"""cpu.add: x + y, of one shape."""

from __future__ import annotations

import torch
from ktc.backends.cpu.elementwise import ADD, apply
from ktc.backends.cpu.library import define, register_plain


def add(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    """x + y -> float32, contiguous. Raises OperandError for dtypes or shapes that do not fit."""
    return apply("add", ADD, ("x", "y"), x, y)


def fake(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    """Shape of `add`."""
    return x.new_empty(x.shape)


OP = define("add(Tensor x, Tensor y) -> Tensor", add, fake)
register_plain("add", OP, ("x", "y"))
