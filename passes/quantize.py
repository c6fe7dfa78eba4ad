"""quantize: decides the number format of every weight, and which tensors of the file feed which operand.

Concatenations and views of weights are folded first (`fold.py`): what they make is one weight, whose recipe arranges
the rows of its parts when they are loaded.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import torch.fx as fx
from ktc.grammar.diagnostics import Diagnostic, Label, Severity
from ktc.grammar.tree import Span
from ktc.passes.context import Context, WeightPlan, raise_all
from ktc.passes.fold import fold
from ktc.passes.formats import FLOATS, requested, source_format
from ktc.passes.ops import operands
from ktc.passes.reads import shares

from ktc.dialect.spec import spec_of
from ktc.runtime.assembly import Assembly
from ktc.weights.formats import FORMATS


@dataclass(frozen=True)
class Quantize:
    """Fills `context.weights`: one plan for each parameter, merge or view of parameters, that the graph reads."""

    name: str = "quantize"

    def __call__(self, gm: fx.GraphModule, context: Context) -> fx.GraphModule:
        """See `Pass`. Raises KT604 (unknown format), KT605 (rows that do not divide into blocks)."""
        made = fold(gm, context)
        quantisable, read = _quantisable(gm.graph), shares(gm.graph)
        indivisible: list[WeightPlan] = []
        for node in gm.graph.nodes:
            name = str(node.target)
            if node.op != "get_attr" or name in context.weights:
                continue
            if name not in made and name not in context.shapes:
                continue
            plan = self._plan(node, made.get(name, Assembly((name,))), node in quantisable, context)
            plan.share = read.get(name, 1.0)
            context.weights[name] = plan
            if plan.shape and plan.shape[-1] % FORMATS[plan.format].block_elements:
                indivisible.append(plan)
        raise_all(_cannot_be_stored(indivisible, context))
        context.warnings.extend(_quantised_twice(context))
        return gm

    def _plan(self, node: fx.Node, assembly: Assembly, quantisable: bool, context: Context) -> WeightPlan:
        name, shape = str(node.target), tuple(int(size) for size in node.meta["val"].shape)
        recipe = None if context.binding is None else assembly.recipe(context.binding.recipes, name)
        held = recipe.format if recipe is not None else _one(
            source_format(parameter, context) for parameter in assembly.parameters
        )  # fmt: skip
        target = "f32"
        if quantisable:
            writes = [
                context.attribute(context.owner(parameter), "quant") for parameter in assembly.parameters
            ]
            target = _one(requested(write, held) for write in writes)
        sites = list(dict.fromkeys(context.owner(parameter) for parameter in assembly.parameters))
        context.events.emit(
            self.name, "format", sites[0], weight=name, sites=sites, held=held, format=target,
            shape=list(shape), view=str(assembly) if assembly.views else None,
        )  # fmt: skip
        return WeightPlan(name, assembly, shape, held, target, recipe)


def _one(formats: Iterable[str]) -> str:
    """The format that all parts share, or float32."""
    found = set(formats)
    return found.pop() if len(found) == 1 else "f32"


def _cannot_be_stored(plans: list[WeightPlan], context: Context) -> list[Diagnostic]:
    """KT605, one for each rule and kind of view: the first weight, and how many more."""
    groups: dict[tuple[object, ...], list[WeightPlan]] = {}
    for plan in plans:
        views = tuple(type(view) for view in plan.assembly.views)
        groups.setdefault((_rule_span(plan, context), views, plan.format), []).append(plan)
    problems = []
    for found in groups.values():
        plan, more = found[0], len(found) - 1
        rows = "rows, as the graph reads them," if plan.assembly.views else "rows"
        message = f"`{plan.parameters[0]}` cannot be stored as {plan.format}: "
        message += f"its {rows} have {plan.shape[-1]} elements"
        notes = [f"{plan.format} stores blocks of {FORMATS[plan.format].block_elements} elements"]
        if plan.assembly.views:
            notes.append(f"the graph reads {plan.assembly}, {list(plan.shape)}")
        if more:
            notes.append(f"and {more} more weight{'s' * (more > 1)}")
        problems.append(Diagnostic("KT605", message, _labels(plan, context), tuple(notes)))
    return problems


def _quantised_twice(context: Context) -> list[Diagnostic]:
    """KT607, one for each rule that turns quantised weights of the file into another quantised format."""
    groups: dict[Span | None, list[WeightPlan]] = {}
    in_file: dict[str, str] = {}
    for plan in context.weights.values():
        in_file[plan.name] = _one(source_format(parameter, context) for parameter in plan.parameters)
        if in_file[plan.name] not in FLOATS and plan.format not in (*FLOATS, plan.source_format):
            groups.setdefault(_rule_span(plan, context), []).append(plan)
    found = []
    for plans in groups.values():
        notes = [f"`{p.name}` is {in_file[p.name]} in the file and becomes {p.format}" for p in plans[:3]]
        if len(plans) > 3:
            notes.append(f"and {len(plans) - 3} more weights")
        notes.append("both roundings remain")
        labels = _labels(plans[0], context)
        message = "a quantised weight is quantised again"
        found.append(Diagnostic("KT607", message, labels, tuple(notes), severity=Severity.WARNING))
    return found


def _rule_span(plan: WeightPlan, context: Context) -> Span | None:
    """Where the `quant` that speaks of a weight is written."""
    write = context.attribute(context.owner(plan.parameters[0]), "quant")
    return None if write is None else write.span


def _labels(plan: WeightPlan, context: Context) -> tuple[Label, ...]:
    span = _rule_span(plan, context)
    return () if span is None else (Label(span),)


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
