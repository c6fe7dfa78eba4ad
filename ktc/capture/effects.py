"""What a recorded call is: a method or operator and its name, and whether it writes one of its arguments."""

from __future__ import annotations

import inspect
import operator
import sys
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

# The name of each function that is a method of Tensor; operators before aliases (`__rdiv__`).
METHODS: Mapping[Any, str] = {
    getattr(torch.Tensor, name): name
    for name in sorted(dir(torch.Tensor), key=lambda name: (name in OPERATORS, name))
    if inspect.isroutine(getattr(torch.Tensor, name))
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


def nameable(func: Any) -> bool:
    """Whether generated code that writes a torch function's qualified name gets that function."""
    module = str(getattr(func, "__module__", "") or "")
    if not inspect.isfunction(func) or not module.startswith("torch"):
        return True  # builtins and ops have names of their own; functions elsewhere are passed as objects
    return getattr(sys.modules.get(module), func.__name__, None) is func


def keep(node: fx.Node) -> bool:
    """The predicate for `Graph.eliminate_dead_code`: fx itself takes in-place methods for pure."""
    if node.is_impure():
        return True
    if node.op == "call_method":
        return in_place(getattr(torch.Tensor, str(node.target), None), node.kwargs)
    return node.op == "call_function" and in_place(node.target, node.kwargs)
