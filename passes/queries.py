"""What `where` of a rewrite can ask of captured values: device, format, rows, names, dtype variables."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
import torch.fx as fx
from ktc.grammar.values import DeviceRef, Symbol
from ktc.passes.context import Context
from ktc.passes.formats import parameter_format
from ktc.passes.lower import place_of
from ktc.passes.match import Match

_SHORT = {torch.float32: "f32", torch.float16: "f16", torch.bfloat16: "bf16"}


def queries(match: Match, context: Context) -> Mapping[str, Any]:
    """The environment of a rewrite's `where` and of functions in its replacement."""
    names: dict[str, Any] = context.env()
    names.update(match.values)
    for name, value in match.types.items():
        short = _SHORT.get(value) if isinstance(value, torch.dtype) else None
        names[name] = Symbol(short) if short else value

    def device(node: fx.Node) -> DeviceRef:
        return context.devices[place_of(node, context, None)].ref

    def is_cpu(node: fx.Node) -> bool:
        return context.devices[str(device(node))].hardware == "cpu"

    def format_of(node: fx.Node) -> Symbol:
        return Symbol(parameter_format(str(node.target), context))

    def same_format(*nodes: fx.Node) -> bool:
        return len({parameter_format(str(node.target), context) for node in nodes}) == 1

    def rows(node: fx.Node) -> int:
        return int(node.meta["val"].shape[0])

    def parameter(node: fx.Node) -> str:
        return str(node.target) if node.op == "get_attr" else ""

    functions = {
        "device": device, "is_cpu": is_cpu, "format": format_of, "same_format": same_format,
        "rows": rows, "parameter": parameter,
    }  # fmt: skip
    return names | functions
