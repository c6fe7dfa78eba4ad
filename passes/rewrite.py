"""rewrite: one pass per `rewrite` of the file; replaces every place where its pattern stands.

A place is left alone, with the reason in the event stream, when a value inside the pattern is used outside it,
when the match would cross a device boundary, or when `where` does not hold.
"""

from __future__ import annotations

import operator
from collections import Counter
from dataclasses import dataclass
from typing import Any

import torch.fx as fx
from ktc.grammar.diagnostics import Diagnostic, Label
from ktc.grammar.evaluate import EvaluationError, applies, evaluate
from ktc.grammar.tree import Attribute, Bool, Capture, Name, Number, OpCall, Rewrite, Text
from ktc.grammar.values import Value
from ktc.passes.context import Context, fail, no_value
from ktc.passes.counts import bounds, count_words
from ktc.passes.edit import call, clean, common_stack, element, inherit, refresh, same_type, sites_of
from ktc.passes.match import Match, Pattern
from ktc.passes.ops import op_name, overload, signature
from ktc.passes.queries import known, queries


@dataclass(frozen=True)
class ApplyRewrite:
    """Applies one rewrite wherever it stands. The name of the pass is `rewrite.NAME`."""

    rewrite: Rewrite

    @property
    def name(self) -> str:
        """See `Pass`."""
        return f"rewrite.{self.rewrite.name.id}"

    def __call__(self, gm: fx.GraphModule, context: Context) -> fx.GraphModule:
        """See `Pass`. Raises KT502 or KT503 when the number of firings is not the expected one."""
        pattern = Pattern(self.rewrite)
        fresh: set[fx.Node] = set()
        missed: Counter[str] = Counter()
        retyped: list[fx.Node] = []
        fired = 0
        for node in list(gm.graph.nodes):
            if node._erased or op_name(node) != pattern.anchor.call.op:
                continue
            reasons: list[str] = []
            for match in pattern.find(node, fresh):
                reason = self._refusal(match, context)
                if reason is None:
                    created, changed = self._replace(gm.graph, match, context)
                    fresh.update(created)
                    retyped.extend(changed)
                    fired += 1
                    reasons.clear()
                    break
                reasons.append(reason)
            for reason in reasons[:1]:
                missed[reason] += 1
                self._event(context, "missed", node, reason=reason)
        if fired:
            self._retype(gm.graph, retyped)
            clean(gm)
        self._count(fired, missed, context)
        return gm

    def _event(self, context: Context, kind: str, node: fx.Node, **data: object) -> None:
        span = self.rewrite.span
        context.events.emit(
            self.name, kind, str(node.meta.get("site", "")), node=node.name, rule=self.rewrite.name.id,
            file=span.file, line=span.line, **data,
        )  # fmt: skip

    def _refusal(self, match: Match, context: Context) -> str | None:
        nodes = match.nodes()
        outputs = {name.id for bind in self.rewrite.replace for name in bind.names}
        kept = {value for name, value in match.values.items() if name in outputs}
        results = [item for node in nodes for item in node.users if item.target is operator.getitem]
        inside = {*nodes, *results}
        for node in inside:
            for user in node.users:
                if user not in inside and user not in kept and node not in kept:
                    names = [name for name, value in match.values.items() if value is node]
                    shown = f"`{names[0]}`" if names else f"the {op_name(node)} inside the pattern"
                    return f"{shown} is used outside the pattern: bind it on both sides to keep it"
        for phase in (None, *context.phase_names):
            places = {context.place_of(site, phase) for node in nodes for site in sites_of(node)}
            if len(places) > 1:
                return f"it would cross a device boundary ({', '.join(sorted(map(str, places)))})"
        if self.rewrite.where is not None:
            try:
                known(self.rewrite.where, match)
                if not applies(self.rewrite.where, queries(match, context)):
                    return "`where` does not hold"
            except EvaluationError as error:
                raise fail(no_value(error)) from error
        return None

    def _retype(self, graph: fx.Graph, changed: list[fx.Node]) -> None:
        """Carries results of another shape or dtype on to what reads them; KT504 where that cannot take them."""
        try:
            refresh(graph, changed)
        except RuntimeError as error:
            first = changed[0]
            notes = (f"`{first.name}` is now {_type(first)}", str(error))
            message = f"rewrite `{self.rewrite.name.id}` makes a result of another type, which its reader cannot take"
            span = self.rewrite.replace[0].span
            raise fail(Diagnostic("KT504", message, (Label(span),), notes)) from error

    def _replace(
        self, graph: fx.Graph, match: Match, context: Context
    ) -> tuple[list[fx.Node], list[fx.Node]]:
        """Puts the replacement in the place of a match: the nodes made, and the results whose type is another."""
        outputs = {
            name.id: match.values[name.id]
            for bind in self.rewrite.replace
            for name in bind.names
            if isinstance(match.values.get(name.id), fx.Node)
        }
        builder = _Builder(graph, match, context)
        last_input = max((n for n in builder.inputs(self.rewrite) if n.op != "get_attr"), default=None)
        anchor = max(match.nodes()) if last_input is None else last_input
        after = anchor.next
        while after.op == "placeholder":
            after = after.next
        users = [user for node in outputs.values() for user in node.users if user not in match.nodes()]
        if users and min(users) < after:
            after = min(users)
        with graph.inserting_before(after):
            for bind in self.rewrite.replace:
                builder.bind(bind.names, bind.call, [outputs[n.id] for n in bind.names if n.id in outputs])
        changed: list[fx.Node] = []
        for name, old in outputs.items():
            self._event(
                context,
                "fired",
                old,
                replaced_by=builder.nodes[0].name,
                nodes=[n.name for n in match.nodes()],
            )
            new = builder.values[name]
            if not same_type(old.meta["val"], new.meta["val"]):
                changed.append(new)
            old.replace_all_uses_with(new)
        names = {builder.values[name]: old.name for name, old in outputs.items()}
        for node in reversed(match.nodes()):
            for user in list(node.users):
                if not user.users:
                    graph.erase_node(user)
            if not node.users:
                graph.erase_node(node)
        for (
            new,
            name,
        ) in names.items():  # the name lives on, so that a value can be followed through the dumps
            new.name = name
        return builder.created, changed

    def _count(self, fired: int, missed: Counter[str], context: Context) -> None:
        low, high = bounds(self.rewrite.expect, context)
        context.events.emit(self.name, "stat", fired=fired, missed=sum(missed.values()))
        if fired >= low and (high is None or fired <= high):
            return
        notes = [f"{count} more place{'s' * (count > 1)} matched, but {why}" for why, count in missed.items()]
        outside = any("used outside" in why for why in missed)
        span = self.rewrite.name.span if self.rewrite.expect is None else self.rewrite.expect.span
        if outside and fired < low:
            message = f"rewrite `{self.rewrite.name.id}` hides a value that is used outside its pattern"
            raise fail(Diagnostic("KT502", message, (Label(span, f"fired {fired} times"),), tuple(notes)))
        crossing = any("device boundary" in why for why in missed)
        code = "KT507" if crossing and fired < low else "KT503"
        message = f"rewrite `{self.rewrite.name.id}` fired {fired} time{'s' * (fired != 1)}, "
        raise fail(Diagnostic(code, message + f"not {count_words(low, high)}", (Label(span),), tuple(notes)))


def _type(node: fx.Node) -> str:
    value = node.meta["val"]
    return f"{str(value.dtype).removeprefix('torch.')}{list(value.shape)}"


class _Builder:
    """Builds a replacement's nodes at the graph's insertion point."""

    def __init__(self, graph: fx.Graph, match: Match, context: Context) -> None:
        self.graph, self.match, self.context = graph, match, context
        self.values: dict[str, Any] = {}
        self.created: list[fx.Node] = []
        self.nodes: list[fx.Node] = []
        self.functions = queries(match, context)

    def inputs(self, rewrite: Rewrite) -> list[fx.Node]:
        """The captured nodes that the replacement reads."""
        made = {name.id for bind in rewrite.replace for name in bind.names}
        found: list[fx.Node] = []

        def visit(item: object) -> None:
            if isinstance(item, OpCall):
                for operand in item.operands:
                    visit(operand)
            elif isinstance(item, Capture) and item.name not in made:
                value = self.match.values.get(item.name)
                if isinstance(value, fx.Node):
                    found.append(value)

        for bind in rewrite.replace:
            visit(bind.call)
        return found

    def bind(self, names: tuple[Any, ...], op: OpCall, outputs: list[fx.Node]) -> None:
        """Builds one bind of the replacement and names its results."""
        sources = outputs or self.match.nodes()
        node = self.op(op, sources)
        self.nodes.append(node)
        stack = common_stack(sources)
        where = stack[-1][0].removeprefix("model.").replace(".", "_") if stack else ""
        node._rename("_".join(filter(None, (where, *(name.id for name in names)))))
        if len(names) == 1:
            self.values[names[0].id] = node
            return
        for index, name in enumerate(names):
            item = element(self.graph, node, index)
            old = self.match.values.get(name.id)
            if isinstance(old, fx.Node):
                for key in ("site", "sites", "stack"):
                    if key in old.meta:
                        item.meta[key] = old.meta[key]
                item.meta["sites"] = sites_of(old)
            self.created.append(item)
            self.values[name.id] = item

    def op(self, op: OpCall, sources: list[fx.Node]) -> fx.Node:
        """Builds one op call; a kernel's name pins that kernel on the dialect op it implements."""
        from ktc.backends.registry import kernels

        name, pinned = op.op, None
        if not name.startswith("kt."):
            pinned, name = name, kernels()[name].op
        target = overload(name)
        rows = [row for row in signature(target)]
        positional = [self.operand(item) for item in op.operands]
        given = {a.name: self.attribute(a) for a in op.attributes}
        many = next((i for i, row in enumerate(rows) if row[2] and row[0] not in given), None)
        # kt.concat(a, b, ...), kt.split(x, 1, 2): the tail of the operands is a list
        args = positional if many is None else [*positional[:many], positional[many:]]
        try:
            node = call(self.graph, target, tuple(args), given)
        except (RuntimeError, ValueError, TypeError, IndexError) as error:
            where = next((n.meta["site"] for n in sources if n.meta.get("site")), "")
            message = f"`{op.op}` of the replacement does not fit at `{where}`"
            raise fail(Diagnostic("KT506", message, (Label(op.span),), (str(error),))) from error
        inherit(node, sources)
        node.meta["stack"] = common_stack(sources)
        if pinned is not None:
            node.meta["kernel"] = pinned
        self.created.append(node)
        return node

    def operand(self, item: Any) -> Any:
        """A node or literal; parameters are read anew, so that they stand before their use."""
        if isinstance(item, OpCall):
            return self.op(item, self.match.nodes())
        if isinstance(item, (Number, Text, Bool)):
            return item.value
        if not isinstance(item, Capture):
            return self.computed(item)
        if item.name not in self.values and item.name not in self.match.values:
            return self.computed(
                Name(item.span, item.name)
            )  # a size: a dimension, or a parameter of the file
        value = self.values.get(item.name, self.match.values.get(item.name))
        if isinstance(value, fx.Node) and value.op == "get_attr":
            fresh = self.graph.create_node("get_attr", str(value.target), name=value.name)
            fresh.meta = dict(value.meta)
            self.created.append(fresh)
            return fresh
        return value

    def attribute(self, attribute: Attribute) -> Value:
        """The value of an attribute: a literal, what a name of the pattern captured, or an expression of such names."""
        value = attribute.value
        if isinstance(value, Capture):
            if value.name in self.match.values:
                return self.match.values[value.name]  # type: ignore[no-any-return]
            value = Name(value.span, value.name)
        return self.computed(value)

    def computed(self, expression: Any) -> Value:
        """The value of an expression. Raises KtError (KT109) when it has none."""
        try:
            known(expression, self.match)
            return evaluate(expression, self.functions)  # type: ignore[no-any-return]
        except EvaluationError as error:
            raise fail(no_value(error)) from error
