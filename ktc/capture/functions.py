"""Torch functions that mean a dialect op: each lift records the op, or declines with NotImplemented."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F

from ktc.capture.tracer import FunctionLift

_KT = torch.ops.kt


def _named(names: tuple[str, ...], lift: Callable[..., Any]) -> FunctionLift:
    """Calls `lift` with the arguments by position and name; arguments it does not know make it decline."""

    def call(args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        if len(args) > len(names) or not set(kwargs) <= set(names):
            return NotImplemented
        return lift(**dict(zip(names, args, strict=False)), **kwargs)

    return call


def _is_float_tensor(value: Any) -> bool:
    return isinstance(value, torch.Tensor) and value.is_floating_point()


def same_shape(x: torch.Tensor, y: torch.Tensor) -> bool:
    """Whether two shapes are provably equal; asks nothing of symbolic sizes that would specialise them."""
    if x.dim() != y.dim():
        return False
    return all(_expression(a) == _expression(b) for a, b in zip(x.shape, y.shape, strict=True))


def _expression(size: int | torch.SymInt) -> Any:
    return size.node.expr if isinstance(size, torch.SymInt) else size


def _binary(op: Callable[..., Any]) -> Callable[..., Any]:
    def lift(x: Any, y: Any, alpha: Any = 1) -> Any:
        if not (_is_float_tensor(x) and _is_float_tensor(y)) or alpha != 1:
            return NotImplemented
        if x.dtype != y.dtype or not same_shape(x, y):
            return NotImplemented
        return op(x, y)

    return lift


def _linear(input: Any, weight: Any, bias: Any = None) -> Any:
    if weight.dim() != 2 or weight.dtype != input.dtype:
        return NotImplemented
    return _KT.linear.default(input, weight, bias)


def _embedding(
    input: Any,
    weight: Any,
    padding_idx: Any = None,
    max_norm: Any = None,
    norm_type: Any = 2.0,
    scale_grad_by_freq: Any = False,
    sparse: Any = False,
) -> Any:
    # The padding index, gradient scaling and sparsity concern training only.
    return NotImplemented if max_norm is not None else _KT.embedding.default(input, weight)


def _layer_norm(
    input: Any, normalized_shape: Any, weight: Any = None, bias: Any = None, eps: Any = 1e-5
) -> Any:
    if weight is None or len(normalized_shape) != 1:
        return NotImplemented
    return _KT.layer_norm.default(input, weight, bias, float(eps))


def _rms_norm(input: Any, normalized_shape: Any, weight: Any = None, eps: Any = None) -> Any:
    if weight is None or len(normalized_shape) != 1:
        return NotImplemented
    return _KT.rms_norm.default(input, weight, float(torch.finfo(input.dtype).eps if eps is None else eps))


def _silu(input: Any, inplace: Any = False) -> Any:
    return NotImplemented if inplace else _KT.silu.default(input)


def _gelu(input: Any, approximate: Any = "none") -> Any:
    return _KT.gelu.default(input, approximate)


def _dropout(input: Any, p: Any = 0.5, training: Any = True, inplace: Any = False) -> Any:
    return NotImplemented if training and p else input


def _getitem(x: Any, index: Any) -> Any:
    """`x[:, rows, :]` with one integer vector is a selection of rows, which needs no general indexing."""
    parts = index if isinstance(index, tuple) else (index,)
    tensors = [place for place, part in enumerate(parts) if isinstance(part, torch.Tensor)]
    others = [part for part in parts if not isinstance(part, torch.Tensor)]
    if len(tensors) != 1 or any(part != slice(None) for part in others if part is not None) or None in others:
        return NotImplemented
    rows = parts[tensors[0]]
    if rows.dim() != 1 or rows.dtype not in (torch.int32, torch.int64):
        return NotImplemented
    return torch.index_select(x, tensors[0], rows)


FUNCTION_LIFTS: dict[Any, FunctionLift] = {
    **{f: _named(("x", "y", "alpha"), _binary(_KT.add.default)) for f in (torch.add, torch.Tensor.add)},
    **{
        f: _named(("x", "y"), _binary(_KT.add.default)) for f in (torch.Tensor.__add__, torch.Tensor.__radd__)
    },
    **{
        f: _named(("x", "y"), _binary(_KT.mul.default))
        for f in (
            torch.mul,
            torch.multiply,
            torch.Tensor.mul,
            torch.Tensor.multiply,
            torch.Tensor.__mul__,
            torch.Tensor.__rmul__,
        )
    },
    F.linear: _named(("input", "weight", "bias"), _linear),
    F.embedding: _named(
        ("input", "weight", "padding_idx", "max_norm", "norm_type", "scale_grad_by_freq", "sparse"),
        _embedding,
    ),
    F.layer_norm: _named(("input", "normalized_shape", "weight", "bias", "eps"), _layer_norm),
    F.rms_norm: _named(("input", "normalized_shape", "weight", "eps"), _rms_norm),
    F.silu: _named(("input", "inplace"), _silu),
    F.gelu: _named(("input", "approximate"), _gelu),
    F.dropout: _named(("input", "p", "training", "inplace"), _dropout),
    torch.Tensor.__getitem__: _named(("x", "index"), _getitem),
}
