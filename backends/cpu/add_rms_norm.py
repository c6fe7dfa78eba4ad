"""cpu.add_rms_norm: the sum of two tensors, and its root mean square normalisation, in one pass."""

from __future__ import annotations

import torch
from ktc.backends.cpu.library import check_floats, define, refuse, register_plain, strided_rows, vector

from ktc import _cpu


def add_rms_norm(
    x: torch.Tensor, residual: torch.Tensor, weight: torch.Tensor, eps: float, offset: float = 0.0
) -> tuple[torch.Tensor, torch.Tensor]:
    """(norm, sum): sum = x + residual (both [..., n]), norm = rms_norm(sum); float32, contiguous.

    Raises:
        OperandError: dtypes or shapes that do not fit.
    """
    check_floats("add_rms_norm", x=x, residual=residual)
    shape, n = x.shape, x.shape[-1]
    if residual.shape != shape:
        raise refuse("add_rms_norm", "residual", residual, f"float32{list(shape)}")
    weight = vector("add_rms_norm", "weight", weight, n)
    x, x_outer, x_inner, outer_count, inner_count = strided_rows(x)
    residual, r_outer, r_inner, r_outer_count, r_inner_count = strided_rows(residual)
    if (r_outer_count, r_inner_count) != (outer_count, inner_count):
        x, residual = x.contiguous(), residual.contiguous()
        x_outer = r_outer = 0
        x_inner = r_inner = n
        outer_count, inner_count = 1, x.numel() // n
    norm, total = torch.empty(shape), torch.empty(shape)
    _cpu.rms_norm(
        x.data_ptr(), x_outer, x_inner, residual.data_ptr(), r_outer, r_inner, outer_count, inner_count, n,
        weight.data_ptr(), eps, offset, norm.data_ptr(), total.data_ptr(),
    )  # fmt: skip
    return norm, total


def fake(
    x: torch.Tensor, residual: torch.Tensor, weight: torch.Tensor, eps: float, offset: float = 0.0
) -> tuple[torch.Tensor, torch.Tensor]:
    """Shapes of `add_rms_norm`."""
    return x.new_empty(x.shape), x.new_empty(x.shape)


OP = define(
    "add_rms_norm(Tensor x, Tensor residual, Tensor weight, float eps, float offset=0.0) -> (Tensor, Tensor)",
    add_rms_norm,
    fake,
)
register_plain("add_rms_norm", OP, ("x", "residual", "weight", "eps", "offset"))
