"""kt.silu: x * sigmoid(x) (Elfwing et al. 2017)."""

from __future__ import annotations

import torch

from ktc.dialect.cost import elementwise
from ktc.dialect.spec import define


def reference(x: torch.Tensor) -> torch.Tensor:
    """x[...] -> [...]."""
    return torch.nn.functional.silu(x)


def fake(x: torch.Tensor) -> torch.Tensor:
    """Shape of `reference`."""
    return torch.empty_like(x)


SPEC = define(
    "silu(Tensor x) -> Tensor",
    reference=reference,
    fake=fake,
    cost=elementwise("x", flops=4),
    rowwise=True,
)
