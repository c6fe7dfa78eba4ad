"""A graph as text: one line a node with its type, op, operands, and what the compiler decided about it."""

from __future__ import annotations

from typing import Any

import torch
import torch.fx as fx
from ktc.passes.ops import op_name

_SHORT = {
    torch.float32: "f32", torch.float16: "f16", torch.bfloat16: "bf16", torch.int64: "i64", torch.int32: "i32",
    torch.uint8: "u8", torch.bool: "bool",
}  # fmt: skip


def graph_text(gm: fx.GraphModule) -> str:
    """The whole graph; stable from run to run, so that two stages can be compared line by line."""
    names = _symbols(gm)
    return "".join(f"{_line(node, names)}\n" for node in gm.graph.nodes)


def type_text(value: Any, names: dict[str, str]) -> str:
    """`f32[1, T, 576]`, or the symbolic number itself."""
    if isinstance(value, torch.Tensor):
        dims = ", ".join(_dim(dim, names) for dim in value.shape)
        return f"{_SHORT.get(value.dtype, str(value.dtype).replace('torch.', ''))}[{dims}]"
    if isinstance(value, (tuple, list)):
        return "(" + ", ".join(type_text(item, names) for item in value) + ")"
    return "none" if value is None else f"{type(value).__name__.lower()} {_dim(value, names)}"


def _dim(dim: Any, names: dict[str, str]) -> str:
    text = str(dim)
    for symbol, name in names.items():
        text = text.replace(symbol, name)
    return text


def _symbols(gm: fx.GraphModule) -> dict[str, str]:
    """Readable names for the graph's symbolic sizes."""
    wanted = {
        ("input_ids", 1): "T", ("context_lens", 0): "B", ("block_tables", 1): "NB", ("logits_index", 0): "K",
        ("input_ids", 0): "B",
    }  # fmt: skip
    found: dict[str, str] = {}
    for node in gm.graph.nodes:
        value = node.meta.get("val")
        if node.op != "placeholder" or not isinstance(value, torch.Tensor):
            continue
        for (name, dim), letter in wanted.items():
            if node.name == name and dim < value.ndim and isinstance(value.shape[dim], torch.SymInt):
                for symbol in value.shape[dim].node.expr.free_symbols:  # type: ignore[attr-defined]
                    found.setdefault(str(symbol), letter)
    return found


def _line(node: fx.Node, names: dict[str, str]) -> str:
    if node.op == "output":
        return f"return {_argument(node.args[0])}"
    kind = type_text(node.meta.get("val"), names)
    if node.op == "placeholder":
        return f"%{node.name}: {kind} = input{_notes(node)}"
    if node.op == "get_attr":
        return f"%{node.name}: {kind} = read {node.target}{_notes(node)}"
    args = [_argument(arg) for arg in node.args] + [f"{k}={_argument(v)}" for k, v in node.kwargs.items()]
    return f"%{node.name}: {kind} = {op_name(node)}({', '.join(args)}){_notes(node)}"


def _argument(value: Any) -> str:
    if isinstance(value, fx.Node):
        return f"%{value.name}"
    if isinstance(value, (list, tuple)):
        return "[" + ", ".join(_argument(item) for item in value) + "]"
    if isinstance(value, slice):
        return ":".join(
            "" if part is None else _argument(part) for part in (value.start, value.stop, value.step)
        )
    return repr(value) if isinstance(value, str) else str(value)


def _notes(node: fx.Node) -> str:
    shown = {
        key: node.meta[key]
        for key in ("site", "device", "kernel", "segment")
        if node.meta.get(key) not in (None, "")
    }
    return "  # " + ", ".join(f"{key} {value}" for key, value in shown.items()) if shown else ""
