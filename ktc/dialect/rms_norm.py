"""kt.rms_norm: root-mean-square normalisation (Zhang and Sennrich 2019), with an offset on the weight."""

from __future__ import annotations

import torch

from ktc.dialect.cost import elementwise
from ktc.dialect.spec import define


def reference(x: torch.Tensor, weight: torch.Tensor, eps: float, offset: float = 0.0) -> torch.Tensor:
    """`x * rsqrt(mean(x**2) + eps) * (offset + weight)`, x[..., K], weight[K] -> [..., K].

    Computed in float32, returned in x's dtype. Gemma stores its weights less one: offset 1.
    """
    wide = x.float()
    wide = wide * torch.rsqrt(wide.pow(2).mean(-1, keepdim=True) + eps)
    scale = weight.float()
    return (wide * (scale + offset if offset else scale)).to(x.dtype)


def fake(x: torch.Tensor, weight: torch.Tensor, eps: float, offset: float = 0.0) -> torch.Tensor:
    """Shape of `reference`."""
    return torch.empty_like(x)


SPEC = define(
    "rms_norm(Tensor x, Tensor weight, float eps, float offset=0.0) -> Tensor",
    reference=reference,
    fake=fake,
    cost=elementwise("x", "weight", flops=4),
    rowwise=True,
)
