"""What a rewrite can ask of captured values: device, format, rows, names, type variables."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
import torch.fx as fx
from ktc.grammar.evaluate import EvaluationError, names_used
from ktc.grammar.tree import Node
from ktc.grammar.values import DeviceRef, Symbol
from ktc.passes.context import Context
from ktc.passes.fold import leaves
from ktc.passes.formats import parameter_format, source_format
from ktc.passes.lower import place_of
from ktc.passes.match import Match

_SHORT = {torch.float32: "f32", torch.float16: "f16", torch.bfloat16: "bf16"}


def queries(match: Match, context: Context) -> Mapping[str, Any]:
    """The environment of a rewrite's `where` and of functions in its replacement."""
    names: dict[str, Any] = context.env()
    for name, value in match.types.items():
        short = _SHORT.get(value) if isinstance(value, torch.dtype) else None
        names[name] = Symbol(short) if short else value
    names.update(match.values)

    def device(node: fx.Node) -> DeviceRef:
        return context.devices[place_of(node, context, None)].ref

    def is_cpu(node: fx.Node) -> bool:
        return context.devices[str(device(node))].hardware == "cpu"

    def formats(node: fx.Node) -> set[tuple[str, str]]:
        held = [(parameter_format(name, context), source_format(name, context)) for name in leaves(node)]
        if not held:
            raise ValueError("this value is computed: only weights have a number format")
        return set(held)

    def format_of(node: fx.Node) -> Symbol:
        found = {wanted for wanted, _ in formats(node)}
        return Symbol(found.pop() if len(found) == 1 else "f32")

    def same_format(*nodes: fx.Node) -> bool:
        return len(set().union(*map(formats, nodes))) == 1

    def rows(node: fx.Node) -> int:
        return int(node.meta["val"].shape[0])

    def parameter(node: fx.Node) -> str:
        return str(node.target) if node.op == "get_attr" else ""

    functions = {
        "device": device, "is_cpu": is_cpu, "format": format_of, "same_format": same_format,
        "rows": rows, "parameter": parameter,
    }  # fmt: skip
    return names | functions


def known(expression: Node, match: Match) -> None:
    """Checks that an expression reads no dimension that differs from step to step.

    Raises:
        EvaluationError: it does. Comparing such a size would bind the graph to the example it was captured with.
    """
    for name in sorted(names_used(expression) & match.types.keys()):
        if isinstance(match.types[name], torch.SymInt) and name not in match.values:
            message = f"`{name}` is a dimension that differs from step to step, and has no number here"
            raise EvaluationError(expression.span, message, "give it a value of its own, or leave it out")
