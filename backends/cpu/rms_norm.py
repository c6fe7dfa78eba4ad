"""cpu.rms_norm: root mean square normalisation, in float32."""

from __future__ import annotations

import torch
from ktc.backends.cpu.library import check_floats, define, register_plain, strided_rows, vector

from ktc import _cpu


def rms_norm(x: torch.Tensor, weight: torch.Tensor, eps: float, offset: float = 0.0) -> torch.Tensor:
    """x[..., n] / sqrt(mean(x^2) + eps) * (offset + weight[n]) -> float32[..., n], contiguous.

    Raises:
        OperandError: dtypes or shapes that do not fit.
    """
    check_floats("rms_norm", x=x)
    shape, n = x.shape, x.shape[-1]
    weight = vector("rms_norm", "weight", weight, n)
    x, outer, inner, outer_count, inner_count = strided_rows(x)
    y = torch.empty(shape)
    _cpu.rms_norm(
        x.data_ptr(),
        outer,
        inner,
        0,
        0,
        0,
        outer_count,
        inner_count,
        n,
        weight.data_ptr(),
        eps,
        offset,
        y.data_ptr(),
        0,
    )
    return y


def fake(x: torch.Tensor, weight: torch.Tensor, eps: float, offset: float = 0.0) -> torch.Tensor:
    """Shape of `rms_norm`."""
    return x.new_empty(x.shape)


OP = define("rms_norm(Tensor x, Tensor weight, float eps, float offset=0.0) -> Tensor", rms_norm, fake)
register_plain("rms_norm", OP, ("x", "weight", "eps", "offset"))
