"""kt.gelu: Gaussian error linear unit (Hendrycks and Gimpel 2016), exact or by tanh."""

from __future__ import annotations

import torch

from ktc.dialect.cost import elementwise
from ktc.dialect.spec import define


def reference(x: torch.Tensor, approximate: str = "none") -> torch.Tensor:
    """x[...] -> [...]; `approximate` is "none" or "tanh"."""
    return torch.nn.functional.gelu(x, approximate=approximate)


def fake(x: torch.Tensor, approximate: str = "none") -> torch.Tensor:
    """Shape of `reference`."""
    return torch.empty_like(x)


SPEC = define(
    'gelu(Tensor x, str approximate="none") -> Tensor',
    reference=reference,
    fake=fake,
    cost=elementwise("x", flops=8),
    rowwise=True,
)
