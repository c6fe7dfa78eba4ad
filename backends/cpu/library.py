"""The torch library `kt_cpu`, and what each op of it needs: its definition, checks, its way into a graph."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
import torch.fx as fx
from ktc.backends.operands import OperandError as OperandError
from ktc.backends.operands import arguments as arguments
from ktc.backends.operands import described
from ktc.backends.operands import insert as insert
from ktc.backends.operands import shape_of as shape_of
from ktc.backends.registry import Kernel, Weight, register

LIBRARY = torch.library.Library("kt_cpu", "DEF")  # type: ignore[no-untyped-call]

_DIRECT: dict[torch._ops.OpOverload, Callable[..., Any]] = {}


def define(schema: str, run: Callable[..., Any], fake: Callable[..., Any]) -> torch._ops.OpOverload:
    """Registers an op: its schema without the namespace, what it does on CPU tensors, its shape function."""
    name = schema.split("(", 1)[0]
    LIBRARY.define(schema)  # type: ignore[no-untyped-call]
    LIBRARY.impl(name, run, "CPU")  # type: ignore[no-untyped-call]
    torch.library.register_fake(f"kt_cpu::{name}", fake, lib=LIBRARY)
    overload: torch._ops.OpOverload = getattr(torch.ops.kt_cpu, name).default
    _DIRECT[overload] = run
    return overload


def direct(op: object) -> Callable[..., Any] | None:
    """The function that an op of `kt_cpu` runs, or None for any other.

    Called with CPU tensors outside of autograd, fake tensors and torch's modes, it does what the op does without the
    dispatcher, which takes longer than most of these functions.
    """
    return _DIRECT.get(op) if isinstance(op, torch._ops.OpOverload) else None


def refuse(op: str, operand: str, tensor: torch.Tensor, wanted: str) -> OperandError:
    """The error for an operand that is not what the kernel takes."""
    return OperandError(f"kt_cpu.{op}: `{operand}` must be {wanted}, not {described(tensor)}")


def check_floats(op: str, **operands: torch.Tensor) -> None:
    """Raises OperandError for an operand that is no float32 tensor with elements in its last dimension."""
    for name, tensor in operands.items():
        if tensor.dtype is not torch.float32 or tensor.dim() == 0 or tensor.shape[-1] == 0:
            raise refuse(op, name, tensor, "float32 with a last dimension that is not empty")


def vector(op: str, operand: str, tensor: torch.Tensor, length: int) -> torch.Tensor:
    """A parameter of `length` elements (a norm's weight, a bias) as contiguous float32, else OperandError."""
    if tensor.dtype is torch.float32 and tensor.is_contiguous() and tensor.numel() == length:
        return tensor
    if tensor.numel() != length or not tensor.is_floating_point():
        raise refuse(op, operand, tensor, f"float[{length}]")
    return tensor.contiguous().float()


def strided_rows(x: torch.Tensor) -> tuple[torch.Tensor, int, int, int, int]:
    """The rows of x in two strided dimensions, or those of a contiguous copy.

    Returns: (x, outer stride, inner stride, outer count, inner count); row (i, j) starts at element
    i * outer stride + j * inner stride.
    """
    n = x.shape[-1]
    if not x.is_contiguous():
        dims = [(size, step) for size, step in zip(x.shape[:-1], x.stride(), strict=False) if size != 1]
        if x.stride(-1) == 1 and len(dims) <= 2 and x.numel():
            (outer, outer_step), (inner, inner_step) = [(1, 0)] * (2 - len(dims)) + dims
            return x, outer_step, inner_step, outer, inner
        x = x.contiguous()
    return x, 0, n, 1, x.numel() // n


def token_rows(x: torch.Tensor) -> tuple[torch.Tensor, int, int]:
    """The rows of x at one stride: (x or a contiguous copy, stride, count)."""
    x, outer_step, inner_step, outer, inner = strided_rows(x)
    if outer > 1:
        if inner > 1:
            x = x.contiguous()
            return x, x.shape[-1], x.numel() // x.shape[-1]
        return x, outer_step, outer
    return x, inner_step, inner


def register_plain(
    name: str,
    op: torch._ops.OpOverload,
    operands: tuple[str, ...],
    supports: Callable[[fx.Node], str | None] = lambda node: None,
    cache_dtypes: frozenset[str] = frozenset(),
) -> None:
    """Registers the kernel `cpu.name` of `kt.name` without packed weights: `op` with these arguments."""

    def lower(
        graph: fx.Graph, node: fx.Node, weights: Mapping[str, Weight], options: Mapping[str, Any]
    ) -> fx.Node:
        bound = arguments(node)
        return insert(graph, node, op, tuple(bound[operand] for operand in operands))

    register(
        Kernel(
            name=f"cpu.{name}",
            op=f"kt.{name}",
            hardware=frozenset({"cpu"}),
            lower=lower,
            rank=10,
            supports=supports,
            cache_dtypes=cache_dtypes,
        )
    )
