"""Folding: concatenations and views of weights, left in the graph by capture or by rewrites, become weights to load.

`kt.concat(wq, wk)` and `kt.expert_rows(w)` of parameters never run: one read of an assembled weight takes their place,
and the recipe of that weight arranges the bytes when they are loaded.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from itertools import takewhile

import torch.fx as fx
from ktc.passes.context import Context
from ktc.passes.edit import clean, declare
from ktc.passes.ops import arguments, attributes, is_dialect, op_name, operands

from ktc.runtime.assembly import Assembly
from ktc.weights.views import is_view, view_from


def fold(gm: fx.GraphModule, context: Context) -> dict[str, Assembly]:
    """Folds what can be folded, in place. Returns the assemblies of the weights that it made, by their names."""
    made: dict[str, Assembly] = {}
    for node in list(gm.graph.nodes):
        if not is_dialect(node) or not node.users:
            continue
        assembly = _assembly(node, made, context)
        if assembly is None:
            continue
        name = _unused(_name(node, assembly), assembly, made)
        made[name] = assembly
        _replace(gm, node, name)
        context.events.emit(
            "quantize", "folded", context.owner(name), node=node.name, parts=list(assembly.parameters),
            weight=name, made=str(assembly),
        )  # fmt: skip
    if made:
        clean(gm)
    return made


def merged_name(names: Iterable[str]) -> str:
    """`a.{q+k+v}_proj.weight` style: one dotted name for several parameters of one parent module."""
    parts = [name.split(".") for name in names]
    head = _common(parts)
    tail = _common([part[len(head) :][::-1] for part in parts])[::-1]
    middle = "+".join(".".join(part[len(head) : len(part) - len(tail)]) for part in parts)
    return ".".join([*head, middle, *tail])


def leaves(node: fx.Node) -> list[str]:
    """The parameters behind a weight: its own name, or those under concatenations and views; empty for other values."""
    if node.op == "get_attr":
        return [str(node.target)]
    if not is_dialect(node) or not (op_name(node) == "kt.concat" or is_view(op_name(node))):
        return []
    found = [leaves(source) for source in node.all_input_nodes]
    return [name for part in found for name in part] if all(found) else []


def _assembly(node: fx.Node, made: Mapping[str, Assembly], context: Context) -> Assembly | None:
    """The weight that a node stands for, when everything it reads is known before the model runs."""
    name = op_name(node)
    if name == "kt.concat":
        bound = arguments(node)
        sources = bound["tensors"]
        if bound["dim"] != 0:
            return None
        view = None
    elif is_view(name):
        sources = list(operands(node).values())
        view = view_from(name, attributes(node))
    else:
        return None
    parts: list[str | Assembly] = []
    for source in sources:
        target = str(source.target)
        if source.op != "get_attr" or (target not in made and target not in context.shapes):
            return None
        parts.append(made.get(target, target))
    if view is not None and isinstance(parts[0], Assembly) and parts[0].view is None:
        return Assembly(parts[0].parts, view)
    return Assembly(tuple(parts), view)


def _name(node: fx.Node, assembly: Assembly) -> str:
    sources = [str(source.target) for source in node.all_input_nodes]
    if assembly.view is not None:
        return f"{sources[0]}:{op_name(node).removeprefix('kt.')}"
    return merged_name([str(part.target) for part in arguments(node)["tensors"]])


def _unused(name: str, assembly: Assembly, made: Mapping[str, Assembly]) -> str:
    """The name, with a number after it where another assembly has it already."""
    count, found = 1, name
    while made.get(found, assembly) != assembly:
        count += 1
        found = f"{name}~{count}"
    return found


def _replace(gm: fx.GraphModule, node: fx.Node, name: str) -> None:
    declare(gm, name, node.meta["val"])
    user = next(iter(node.users))
    with gm.graph.inserting_before(node):
        weight = gm.graph.create_node("get_attr", name, name=f"{user.name}_weight")
    weight.meta = dict(node.meta)
    node.replace_all_uses_with(weight)
    gm.graph.erase_node(node)


def _common(lists: list[list[str]]) -> list[str]:
    """The items that all lists begin with."""
    shared = takewhile(lambda column: len(set(column)) == 1, zip(*lists, strict=False))
    return [column[0] for column in shared]
