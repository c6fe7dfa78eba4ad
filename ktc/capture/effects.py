"""Which recorded calls change a tensor in place, so that dead-code removal keeps them."""

from __future__ import annotations

import operator
from collections.abc import Callable, Mapping
from typing import Any

import torch
import torch.fx as fx

_UNARY = ("neg", "invert", "abs", "pos")
_BINARY = (
    *("add", "sub", "mul", "truediv", "floordiv", "mod", "pow", "matmul"),
    *("and", "or", "xor", "lshift", "rshift", "eq", "ne", "lt", "le", "gt", "ge"),
)
_REFLECTED = ("radd", "rsub", "rmul", "rtruediv", "rfloordiv", "rpow", "rmatmul", "rand", "ror", "rxor")
_UPDATES = ("iadd", "isub", "imul", "itruediv", "ifloordiv", "iand", "ior", "ixor", "ipow", "imod")


def _operator(name: str) -> Callable[..., Any]:
    function: Callable[..., Any] = getattr(operator, f"__{name}__")
    return function


# (function of the operator module, whether its operands are exchanged) by Tensor method.
OPERATORS: Mapping[str, tuple[Callable[..., Any], bool]] = {
    **{f"__{name}__": (_operator(name), False) for name in (*_UNARY, *_BINARY, *_UPDATES)},
    **{f"__{name}__": (_operator(name[1:]), True) for name in _REFLECTED},
    "__getitem__": (operator.getitem, False),
    "__setitem__": (operator.setitem, False),
}
_UPDATE_OPERATORS = frozenset([operator.setitem, *(_operator(name) for name in _UPDATES)])


def in_place(func: Any, kwargs: Mapping[str, Any]) -> bool:
    """Whether a torch function, Tensor method or operator writes one of its arguments."""
    if isinstance(func, torch._ops.OpOverload):
        return bool(func._schema.is_mutable)
    if kwargs.get("out") is not None or kwargs.get("inplace") is True or func in _UPDATE_OPERATORS:
        return True
    name = str(getattr(func, "__name__", ""))
    if name.startswith("__"):
        return name == "__setitem__" or name.strip("_") in _UPDATES
    return name.endswith("_")


def keep(node: fx.Node) -> bool:
    """The predicate for `Graph.eliminate_dead_code`: fx itself takes in-place methods for pure."""
    if node.is_impure():
        return True
    if node.op == "call_method":
        return in_place(getattr(torch.Tensor, str(node.target), None), node.kwargs)
    return node.op == "call_function" and in_place(node.target, node.kwargs)
