"""kt.add: elementwise sum of two tensors of one shape."""

from __future__ import annotations

import torch

from ktc.dialect.cost import elementwise
from ktc.dialect.spec import define


def reference(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    """x[*shape], y[*shape] -> [*shape]."""
    return x + y


def fake(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    """Shape of `reference`."""
    return torch.empty_like(x)


SPEC = define(
    "add(Tensor x, Tensor y) -> Tensor",
    reference=reference,
    fake=fake,
    cost=elementwise("x", "y", flops=1),
    commutative=True,
    rowwise=True,
)
