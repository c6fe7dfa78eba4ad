"""kt.add_rms_norm: residual sum and its RMS normalisation, both returned."""

from __future__ import annotations

import torch

from ktc.dialect import rms_norm
from ktc.dialect.cost import elementwise
from ktc.dialect.spec import define


def reference(
    x: torch.Tensor, residual: torch.Tensor, weight: torch.Tensor, eps: float, offset: float = 0.0
) -> tuple[torch.Tensor, torch.Tensor]:
    """x[..., K], residual[..., K], weight[K] -> (rms_norm(x + residual), x + residual)."""
    total = x + residual
    return rms_norm.reference(total, weight, eps, offset), total


def fake(
    x: torch.Tensor, residual: torch.Tensor, weight: torch.Tensor, eps: float, offset: float = 0.0
) -> tuple[torch.Tensor, torch.Tensor]:
    """Shapes of `reference`."""
    return torch.empty_like(x), torch.empty_like(x)


SPEC = define(
    "add_rms_norm(Tensor x, Tensor residual, Tensor weight, float eps, float offset=0.0)"
    " -> (Tensor norm, Tensor sum)",
    reference=reference,
    fake=fake,
    cost=elementwise("x", "residual", "weight", flops=5, results=2),
    outputs=("norm", "sum"),
    rowwise=True,
)
