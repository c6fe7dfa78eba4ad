"""Reading dialect nodes: their op's name, and their operands and attributes by the schema's argument names."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from typing import Any

import torch
import torch.fx as fx
from torch._ops import OpOverload


def op_name(node: fx.Node) -> str:
    """`kt.linear` for a dialect op, `kt_cpu.linear` for a kernel of ours, else torch's own name, dotted."""
    if node.op == "call_function":
        target = node.target
        if isinstance(target, OpOverload):
            namespace, _, rest = target._schema.name.partition("::")
            return f"{namespace}.{rest}"
        module = getattr(target, "__module__", None) or "torch"
        return f"{module}.{getattr(target, '__name__', target)}".replace("_operator.", "operator.")
    if node.op == "call_method":
        return f"Tensor.{node.target}"
    return f"{node.op}.{node.target}"


def is_dialect(node: object) -> bool:
    """Whether a node calls an op of the `kt` dialect."""
    return isinstance(node, fx.Node) and node.op == "call_function" and op_name(node).startswith("kt.")


@cache
def overload(name: str) -> OpOverload:
    """The torch op behind `kt.linear` or `kt_cpu.linear`. Raises LookupError if there is none."""
    namespace, _, op = name.partition(".")
    try:
        found = getattr(getattr(torch.ops, namespace), op).default
    except AttributeError as error:
        raise LookupError(f"no op {name!r}") from error
    return found  # type: ignore[no-any-return]


@cache
def signature(target: OpOverload) -> tuple[tuple[str, bool, bool, Any], ...]:
    """(name, is a tensor operand, is a list of tensors, default) of each argument of an op's schema."""
    rows = []
    for argument in target._schema.arguments:
        kind = str(argument.type)
        default = argument.default_value if argument.has_default_value() else None
        rows.append((argument.name, "Tensor" in kind, "List[" in kind, default))
    return tuple(rows)


def arguments(node: fx.Node) -> Mapping[str, Any]:
    """All arguments of a node of an op with a schema, by name, defaults filled in."""
    rows = signature(node.target)
    bound = {name: default for name, _, _, default in rows}
    bound.update(zip((row[0] for row in rows), node.args, strict=False))
    bound.update(node.kwargs)
    return bound


def operands(node: fx.Node) -> Mapping[str, fx.Node]:
    """The tensor operands that are present, by argument name."""
    bound = arguments(node)
    names = [name for name, tensor, many, _ in signature(node.target) if tensor and not many]
    return {name: bound[name] for name in names if isinstance(bound[name], fx.Node)}


def attributes(node: fx.Node) -> Mapping[str, Any]:
    """The arguments that are no tensors, by name."""
    bound = arguments(node)
    return {name: bound[name] for name, tensor, _, _ in signature(node.target) if not tensor}


def is_parameter(node: object) -> bool:
    """Whether a node reads a parameter or buffer of the model."""
    return isinstance(node, fx.Node) and node.op == "get_attr"
