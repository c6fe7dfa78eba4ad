"""What the kernels of every backend share: a node's arguments, the node that replaces it, the error for an operand."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
import torch.fx as fx

from ktc.errors import KtcError


class OperandError(KtcError, ValueError):
    """An operand of a kernel with the wrong dtype, shape, device or memory layout."""


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


def described(tensor: torch.Tensor) -> str:
    """A tensor's dtype, shape, device and strides where they matter, for an error message."""
    what = f"{str(tensor.dtype).removeprefix('torch.')}{list(tensor.shape)} on {tensor.device}"
    return what if tensor.is_contiguous() else f"{what} with strides {list(tensor.stride())}"
