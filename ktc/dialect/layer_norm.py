"""kt.layer_norm: normalisation to zero mean and unit variance over the last dimension (Ba et al. 2016)."""

from __future__ import annotations

import torch

from ktc.dialect.cost import elementwise
from ktc.dialect.spec import define


def reference(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None, eps: float) -> torch.Tensor:
    """x[..., K], weight[K], bias[K] or None -> [..., K] in x's dtype."""
    return torch.nn.functional.layer_norm(x, (weight.shape[0],), weight, bias, eps)


def fake(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None, eps: float) -> torch.Tensor:
    """Shape of `reference`."""
    return torch.empty_like(x)


SPEC = define(
    "layer_norm(Tensor x, Tensor weight, Tensor? bias, float eps) -> Tensor",
    reference=reference,
    fake=fake,
    cost=elementwise("x", "weight", "bias", flops=8),
    rowwise=True,
)
