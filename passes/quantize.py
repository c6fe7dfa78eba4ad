"""quantize: decides the number format of every weight, and which tensors of the file feed which operand.

Concatenations of weights that rewrites left in the graph are folded: the merged weight becomes one plan whose
recipe reads the parts' rows one after the other.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from itertools import takewhile

import torch.fx as fx
from ktc.grammar.diagnostics import Diagnostic, Label, Severity
from ktc.passes.context import Context, WeightPlan, Write, fail
from ktc.passes.edit import clean, declare
from ktc.passes.formats import FLOATS, parameter_format, source_format
from ktc.passes.ops import op_name, operands

from ktc.dialect.spec import spec_of
from ktc.weights.formats import FORMATS
from ktc.weights.source import Recipe


@dataclass(frozen=True)
class Quantize:
    """Fills `context.weights`: one plan for each parameter, or merge of parameters, that the graph reads."""

    name: str = "quantize"

    def __call__(self, gm: fx.GraphModule, context: Context) -> fx.GraphModule:
        """See `Pass`. Raises KT604 (unknown format), KT605 (rows that do not divide into blocks)."""
        folded = [node for node in gm.graph.nodes if op_name(node) == "kt.concat" and _constant(node)]
        for node in folded:
            self._fold(gm, node, context)
        if folded:
            clean(gm)
        quantisable = _quantisable(gm.graph)
        for node in gm.graph.nodes:
            if node.op != "get_attr" or str(node.target) in context.weights or not _is_weight(node, context):
                continue
            self._plan(node, str(node.target), (str(node.target),), node in quantisable, context)
        context.warnings.extend(_quantised_twice(context))
        return gm

    def _fold(self, gm: fx.GraphModule, node: fx.Node, context: Context) -> None:
        parts = list(node.args[0])  # type: ignore[arg-type]
        names = [str(part.target) for part in parts]
        merged = merged_name(names)
        declare(gm, merged, node.meta["val"])
        with gm.graph.inserting_before(node):
            weight = gm.graph.create_node("get_attr", merged, name=f"{next(iter(node.users)).name}_weight")
        weight.meta = dict(node.meta)
        node.replace_all_uses_with(weight)
        context.events.emit(
            self.name, "folded", context.owner(merged), node=node.name, parts=names, weight=merged
        )
        self._plan(weight, merged, tuple(names), bool(_uses_as_weight(weight)), context)

    def _plan(
        self, node: fx.Node, name: str, parameters: tuple[str, ...], quantisable: bool, context: Context
    ) -> None:
        if name in context.weights:
            return
        shape = tuple(int(size) for size in node.meta["val"].shape)
        held = {source_format(parameter, context) for parameter in parameters}
        if not quantisable:
            target = "f32"
        else:
            targets = {parameter_format(parameter, context) for parameter in parameters}
            target = targets.pop() if len(targets) == 1 else "f32"
        recipe = self._recipe(name, parameters, context)
        plan = WeightPlan(name, parameters, shape, held.pop() if len(held) == 1 else "f32", target, recipe)
        block = FORMATS[target].block_elements
        if shape and shape[-1] % block:
            write = context.attribute(context.owner(parameters[0]), "quant")
            message = f"`{parameters[0]}` cannot be stored as {target}: its rows have {shape[-1]} elements"
            note = f"{target} stores blocks of {block} elements"
            labels = () if write is None else (Label(write.span),)
            raise fail(Diagnostic("KT605", message, labels, (note,)))
        context.weights[name] = plan
        sites = list(dict.fromkeys(context.owner(parameter) for parameter in parameters))
        context.events.emit(
            self.name, "format", sites[0], weight=name, sites=sites, held=plan.source_format, format=target,
            shape=list(shape),
        )  # fmt: skip

    def _recipe(self, name: str, parameters: tuple[str, ...], context: Context) -> Recipe | None:
        if context.binding is None:
            return None
        recipes = [context.binding.recipes[parameter] for parameter in parameters]
        return recipes[0] if len(recipes) == 1 else Recipe.concat(recipes, name)


def _quantised_twice(context: Context) -> list[Diagnostic]:
    """KT607, one for each rule that turns quantised weights of the file into another quantised format."""
    by_write: dict[Write | None, list[WeightPlan]] = {}
    for plan in context.weights.values():
        if plan.source_format not in FLOATS and plan.format not in (*FLOATS, plan.source_format):
            by_write.setdefault(context.attribute(context.owner(plan.parameters[0]), "quant"), []).append(
                plan
            )
    found = []
    for write, plans in by_write.items():
        shown = [f"`{p.name}` is {p.source_format} in the file and becomes {p.format}" for p in plans[:3]]
        notes = (
            *shown,
            *([f"and {len(plans) - 3} more weights"] if len(plans) > 3 else []),
            "both roundings remain",
        )
        labels = () if write is None else (Label(write.span),)
        message = "a quantised weight is quantised again"
        found.append(Diagnostic("KT607", message, labels, notes, severity=Severity.WARNING))
    return found


def merged_name(names: Iterable[str]) -> str:
    """`a.{q+k+v}_proj.weight` style: one dotted name for several parameters of one parent module."""
    parts = [name.split(".") for name in names]
    head = _common(parts)
    tail = _common([part[len(head) :][::-1] for part in parts])[::-1]
    middle = "+".join(".".join(part[len(head) : len(part) - len(tail)]) for part in parts)
    return ".".join([*head, middle, *tail])


def _common(lists: list[list[str]]) -> list[str]:
    """The items that all lists begin with."""
    shared = takewhile(lambda column: len(set(column)) == 1, zip(*lists, strict=False))
    return [column[0] for column in shared]


def _constant(node: fx.Node) -> bool:
    parts = node.args[0]
    return isinstance(parts, (list, tuple)) and all(
        isinstance(p, fx.Node) and p.op == "get_attr" for p in parts
    )


def _uses_as_weight(node: fx.Node) -> list[fx.Node]:
    found = []
    for user in node.users:
        spec = spec_of(user.target)
        if spec is not None and any(
            operand is node for n, operand in operands(user).items() if n in spec.weights
        ):
            found.append(user)
    return found


def _quantisable(graph: fx.Graph) -> set[fx.Node]:
    """Parameter reads whose every use is as a weight of an op that takes quantised weights."""
    return {
        n for n in graph.nodes if n.op == "get_attr" and n.users and len(_uses_as_weight(n)) == len(n.users)
    }


def _is_weight(node: fx.Node, context: Context) -> bool:
    return str(node.target) in context.parameters
