"""Checks one op call of a rewrite against the table of ops: operands, attributes, number of results."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from ktc.grammar import tree
from ktc.grammar.checking.scope import Scope, head
from ktc.grammar.checking.types import Typer, fits, words
from ktc.grammar.diagnostics import Fix
from ktc.grammar.functions import REWRITE
from ktc.grammar.ops import OPS, Op
from ktc.grammar.tree import Span

_LITERALS = (tree.Number, tree.Text, tree.Bool)


def names_in(call: tree.OpCall) -> Iterator[tree.Capture]:
    """The tensor captures among the operands of a call and of the calls inside it, in reading order."""
    op = OPS.get(call.op)
    sizes = op is not None and op.variadic == "ints"
    for operand in call.operands[: len(op.operands)] if op is not None and sizes else call.operands:
        if isinstance(operand, tree.OpCall):
            yield from names_in(operand)
        elif isinstance(operand, tree.Capture):
            yield operand


class CallChecker:
    """Checks the calls of a pattern or of a replacement.

    Args:
        scope: where problems go.
        attributes: captured attributes and their types; a pattern adds to it.
        types: what expressions of a replacement see; None for a pattern.
    """

    def __init__(self, scope: Scope, attributes: dict[str, str], types: Mapping[str, str] | None) -> None:
        self._scope = scope
        self._attributes = attributes
        self._types = types

    def check(self, call: tree.OpCall, results: int, span: Span) -> None:
        """Reports what is wrong with a call whose results are given `results` names."""
        namespace = call.op.split(".")[0]
        op = OPS.get(call.op)
        if op is None:
            self._unknown(call, namespace)
            return
        for operand in call.operands:
            if isinstance(operand, tree.OpCall):
                self.check(operand, 1, operand.span)
        if op.outputs is None:
            sizes = len(call.operands) - len(op.operands)
            if op.variadic == "ints" and sizes > 0 and sizes != results:
                self._scope.error(
                    "KT504", f"`{call.op}` into {sizes} parts has {sizes} results", span, f"{results} here"
                )
        elif results != len(op.outputs):
            count = (
                "1 result" if len(op.outputs) == 1 else f"{len(op.outputs)} results ({', '.join(op.outputs)})"
            )
            self._scope.error("KT504", f"`{call.op}` has {count}", span, f"{results} bound here")
        self._operands(call, op)
        self._named(call, op)

    def _unknown(self, call: tree.OpCall, namespace: str) -> None:
        if namespace == "kt":
            self._scope.unknown("KT501", "op", call.op, OPS, call.span, "ops")
        elif (
            self._types is None
        ):  # a replacement may use a kernel's own op, which the compiler's registry knows
            span = head(call.span, call.op)
            notes = ("a pattern is made of the dialect's ops, which every model is captured in",)
            meant = "kt." + call.op.split(".", 1)[-1]
            fix = Fix(f"did you mean `{meant}`?", span, meant) if meant in OPS else None
            self._scope.error("KT501", f"`{call.op}` is no op of the dialect", span, notes=notes, fix=fix)

    def _operands(self, call: tree.OpCall, op: Op) -> None:
        tensors = list(call.operands)
        if op.variadic == "ints":
            self._ints(call, tensors[len(op.operands) :])
            tensors = tensors[: len(op.operands)]
        most = len(tensors) if op.variadic == "tensors" else len(op.operands)
        if not op.required <= len(tensors) <= most:
            self._count(call, op, len(tensors))
        for operand in tensors:
            if not isinstance(operand, tree.Capture | tree.OpCall):
                text = f"this is {words(self._type(operand))}"
                self._scope.error("KT506", f"an operand of `{call.op}` is a tensor", operand.span, text)
            elif isinstance(operand, tree.Capture) and operand.name in self._attributes:
                text = f"this is an attribute ({self._attributes[operand.name]})"
                notes = ("attributes are written `name = value`",)
                self._scope.error(
                    "KT506", f"an operand of `{call.op}` is a tensor", operand.span, text, notes=notes
                )

    def _count(self, call: tree.OpCall, op: Op, given: int) -> None:
        least, most = op.required, len(op.operands)
        shown = [f"{name}?" if i >= least else name for i, name in enumerate(op.operands)]
        count = f"{least}" if least == most else f"{least} to {most}"
        notes = [f"`{call.op}({', '.join(shown)})`"]
        if op.attributes and given > most:
            notes.append(
                "attributes are written by name: " + ", ".join(f"`{n} = ...`" for n in op.attributes)
            )
        message = f"`{call.op}` takes {count} operand{'s' if most > 1 else ''}, not {given}"
        self._scope.error("KT506", message, call.span, notes=notes)

    def _ints(self, call: tree.OpCall, sizes: list[Any]) -> None:
        for size in sizes:
            if isinstance(size, tree.Capture):
                size = tree.Name(size.span, size.name)
            if isinstance(size, tree.OpCall):
                self._scope.error("KT506", f"a size of `{call.op}` is an int", size.span, "this is a tensor")
            elif self._types is None and not isinstance(size, tree.Number):
                self._scope.error("KT506", f"in a pattern, a size of `{call.op}` is a literal", size.span)
            else:
                Typer(self._scope, REWRITE, self._types).check(size, "int", f"a size of `{call.op}`")

    def _named(self, call: tree.OpCall, op: Op) -> None:
        seen: set[str] = set()
        unknown = False
        for attribute in call.attributes:
            known = op.attributes.get(attribute.name)
            if known is None:
                unknown = True
                of = f" of `{call.op}`"
                names = op.attributes
                span = attribute.span
                self._scope.unknown("KT506", "attribute", attribute.name, names, span, "attributes", of)
                continue
            if attribute.name in seen:
                self._scope.error("KT506", f"`{attribute.name}` is given twice", attribute.span)
            seen.add(attribute.name)
            self._value(attribute, known.type, f"`{attribute.name}` of `{call.op}`")
        if op.variadic == "ints" and len(call.operands) > len(op.operands):
            seen.add("sizes")
        missing = [
            name for name, known in op.attributes.items() if known.default is None and name not in seen
        ]
        for name in () if unknown else missing:
            notes = (f"a name captures its value: `{name} = {name}`",) if self._types is None else ()
            message, text = f"`{call.op}` needs attribute `{name}`", f"write `{name} = ...`"
            self._scope.error("KT506", message, call.span, text, notes=notes)

    def _value(self, attribute: tree.Attribute, wanted: str, what: str) -> None:
        """In a pattern a literal, or a name that captures the value; in a replacement any expression."""
        value: Any = attribute.value
        if self._types is None:
            if isinstance(value, tree.Capture):
                known = self._attributes.setdefault(value.name, wanted)
                if known != wanted:
                    text = f"`{value.name}` is {words(known)} above"
                    self._scope.error("KT506", f"{what} is {words(wanted)}", value.span, text)
                return
            if not isinstance(value, _LITERALS):
                self._scope.error("KT506", "in a pattern, an attribute is a literal or a name", value.span)
                return
        elif isinstance(value, tree.Capture):
            value = tree.Name(value.span, value.name)
        kind = self._type(value)
        if not fits(kind, wanted):
            self._scope.error(
                "KT506", f"{what} is {words(wanted)}", attribute.value.span, f"this is {words(kind)}"
            )

    def _type(self, value: Any) -> str:
        if isinstance(value, tree.OpCall):
            return "tensor"
        return Typer(self._scope, REWRITE, self._types).infer(value)
