"""What the elementwise kernels share: their numbers in C++ and one checked call."""

from __future__ import annotations

import torch
from ktc.backends.cpu.library import check_floats, refuse, token_rows

from ktc import _cpu

ADD, MUL, SILU, GELU, GELU_TANH, SILU_MUL, GELU_MUL, GELU_TANH_MUL = range(8)
"""Functions of `_cpu.elementwise`."""

GELU_FUNCTIONS = {"none": GELU, "tanh": GELU_TANH}
GELU_MUL_FUNCTIONS = {"none": GELU_MUL, "tanh": GELU_TANH_MUL}


def apply(
    op: str, function: int, names: tuple[str, ...], a: torch.Tensor, b: torch.Tensor | None = None
) -> torch.Tensor:
    """f(a) or f(a, b) -> float32 of a's shape, contiguous. Raises OperandError for other dtypes or shapes."""
    shape = a.shape
    check_floats(op, **{names[0]: a})
    n = shape[-1]
    if b is None:
        a, a_stride, rows = token_rows(a)
        y = torch.empty(shape)
        _cpu.elementwise(function, a.data_ptr(), a_stride, 0, 0, rows, n, y.data_ptr())
        return y
    check_floats(op, **{names[1]: b})
    if b.shape != shape:
        raise refuse(op, names[1], b, f"float32{list(shape)}")
    a, a_stride, rows = token_rows(a)
    b, b_stride, _ = token_rows(b)
    y = torch.empty(shape)
    _cpu.elementwise(function, a.data_ptr(), a_stride, b.data_ptr(), b_stride, rows, n, y.data_ptr())
    return y
