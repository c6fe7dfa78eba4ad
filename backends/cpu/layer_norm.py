"""cpu.layer_norm: normalisation to mean 0 and variance 1, in float32."""

from __future__ import annotations

import torch
from ktc.backends.cpu.library import check_floats, define, register_plain, strided_rows, vector

from ktc import _cpu


def layer_norm(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None, eps: float) -> torch.Tensor:
    """(x[..., n] - mean) / sqrt(variance + eps) * weight[n] + bias[n] -> float32[..., n], contiguous.

    Raises:
        OperandError: dtypes or shapes that do not fit.
    """
    check_floats("layer_norm", x=x)
    shape, n = x.shape, x.shape[-1]
    weight = vector("layer_norm", "weight", weight, n)
    bias = None if bias is None else vector("layer_norm", "bias", bias, n)
    x, outer, inner, outer_count, inner_count = strided_rows(x)
    y = torch.empty(shape)
    _cpu.layer_norm(
        x.data_ptr(), outer, inner, outer_count, inner_count, n, weight.data_ptr(),
        0 if bias is None else bias.data_ptr(), eps, y.data_ptr(),
    )  # fmt: skip
    return y


def fake(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None, eps: float) -> torch.Tensor:
    """Shape of `layer_norm`."""
    return x.new_empty(x.shape)


OP = define("layer_norm(Tensor x, Tensor weight, Tensor? bias, float eps) -> Tensor", layer_norm, fake)
register_plain("layer_norm", OP, ("x", "weight", "bias", "eps"))
