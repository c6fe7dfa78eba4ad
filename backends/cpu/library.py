"""The torch library `kt_cpu`, and what every op of it needs: its definition, its checks, its arguments in a graph."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
import torch.fx as fx

from ktc.errors import KtcError

LIBRARY = torch.library.Library("kt_cpu", "DEF")


class OperandError(KtcError, ValueError):
    """An operand of a kernel with the wrong dtype, shape, device or memory layout."""


def define(schema: str, run: Callable[..., Any], fake: Callable[..., Any]) -> torch._ops.OpOverload:
    """Registers an op: its schema without the namespace, what it does on CPU tensors, its shape function."""
    name = schema.split("(", 1)[0]
    LIBRARY.define(schema)
    LIBRARY.impl(name, run, "CPU")
    torch.library.register_fake(f"kt_cpu::{name}", fake, lib=LIBRARY)
    overload: torch._ops.OpOverload = getattr(torch.ops.kt_cpu, name).default
    return overload


def arguments(node: fx.Node) -> Mapping[str, Any]:
    """The arguments of a dialect node by name, defaults filled in."""
    schema = node.target._schema.arguments  # type: ignore[union-attr]
    bound = {a.name: a.default_value for a in schema if a.has_default_value()}
    bound.update(zip((a.name for a in schema), node.args, strict=False))
    bound.update(node.kwargs)
    return bound


def insert(graph: fx.Graph, node: fx.Node, op: torch._ops.OpOverload, args: tuple[Any, ...]) -> fx.Node:
    """Adds a call of `op` just before `node`, with its metadata."""
    with graph.inserting_before(node):
        new = graph.call_function(op, args)
    new.meta = dict(node.meta)
    return new


def shape_of(argument: object) -> tuple[int | torch.SymInt, ...] | None:
    """The shape that a graph records for a node, or None where it records none."""
    value = argument.meta.get("val") if isinstance(argument, fx.Node) else None
    return tuple(value.shape) if isinstance(value, torch.Tensor) else None


def refuse(op: str, operand: str, tensor: torch.Tensor, wanted: str) -> OperandError:
    """The error for an operand that is not what the kernel takes."""
    what = f"{str(tensor.dtype).removeprefix('torch.')}{list(tensor.shape)} on {tensor.device}"
    if not tensor.is_contiguous():
        what += f" with strides {list(tensor.stride())}"
    return OperandError(f"kt_cpu.{op}: `{operand}` must be {wanted}, not {what}")
