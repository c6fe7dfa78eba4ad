"""Which recorded calls change a tensor in place, so that dead-code removal keeps them."""

from __future__ import annotations

import operator
from typing import Any

import torch
import torch.fx as fx


def in_place(func: Any, kwargs: dict[str, Any]) -> bool:
    """Whether a torch function writes one of its arguments."""
    if isinstance(func, torch._ops.OpOverload):
        return bool(func._schema.is_mutable)
    name = getattr(func, "__name__", "")
    if func is torch.Tensor.__setitem__ or kwargs.get("out") is not None or kwargs.get("inplace") is True:
        return True
    if name.startswith("__i") and name.endswith("__"):
        return getattr(torch.Tensor, name, None) is func and name not in (
            "__invert__",
            "__index__",
            "__int__",
        )
    return name.endswith("_") and not name.endswith("__")


def keep(node: fx.Node) -> bool:
    """The predicate for `Graph.eliminate_dead_code`: fx itself takes in-place methods for pure."""
    if node.is_impure():
        return True
    if node.op == "call_method":
        method = getattr(torch.Tensor, str(node.target), None)
        return in_place(method, dict(node.kwargs))
    return node.op == "call_function" and (
        node.target is operator.setitem or in_place(node.target, dict(node.kwargs))
    )
