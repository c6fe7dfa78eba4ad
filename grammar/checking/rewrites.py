"""Checks `rewrite` items: ops and their arguments, captures bound before use, results bound again."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

from ktc.grammar import tree
from ktc.grammar.checking.calls import CallChecker, names_in
from ktc.grammar.checking.scope import Scope
from ktc.grammar.checking.site_rules import check_expect, check_rule_name
from ktc.grammar.checking.types import Typer
from ktc.grammar.diagnostics import Diagnostic, Label
from ktc.grammar.functions import REWRITE
from ktc.grammar.tree import Span
from ktc.grammar.values import DTYPES


@dataclass
class Names:
    """What the names of one rewrite stand for.

    Attributes:
        bound: results of pattern ops, and where they are bound.
        captured: values that come from outside the pattern, and where they are first captured.
        attributes: captured attributes and their types.
        variables: dtype variables ("symbol") and dimensions ("int") of types.
        made: results of replacement ops.
        read: names that some op of the pattern, or of the replacement, takes as operand.
    """

    bound: dict[str, Span] = field(default_factory=dict)
    captured: dict[str, Span] = field(default_factory=dict)
    attributes: dict[str, str] = field(default_factory=dict)
    variables: dict[str, str] = field(default_factory=dict)
    made: dict[str, Span] = field(default_factory=dict)
    read: set[str] = field(default_factory=set)

    def types(self) -> dict[str, str]:
        """Every name an expression of the rewrite sees, and its type."""
        tensors = dict.fromkeys((*self.bound, *self.captured), "tensor")
        return {**self.variables, **self.attributes, **tensors}


def check_rewrite(scope: Scope, item: tree.Rewrite, seen: dict[str, Span]) -> None:
    """Reports what is wrong with one rewrite; `seen` holds the names of rules and rewrites so far."""
    check_rule_name(scope, "rewrite", item.name, seen)
    names = Names()
    before = len(scope.diagnostics)
    _pattern(scope, item, names)
    if item.where is not None:
        Typer(scope, REWRITE, names.types()).check(item.where, "bool", "a condition")
    _replacement(scope, item, names)
    if len(scope.diagnostics) == before:  # else these would repeat what is reported already
        _connected(scope, item)
        _outputs(scope, item, names)
    check_expect(scope, item.expect)


def _pattern(scope: Scope, item: tree.Rewrite, names: Names) -> None:
    checker = CallChecker(scope, names.attributes, None)
    for bind in item.pattern:
        for capture in names_in(bind.call):
            _capture(scope, capture, names)
        checker.check(bind.call, len(bind.names), bind.span)
        for name in bind.names:
            if name.id in names.bound:
                scope.duplicate("value", name, names.bound[name.id])
            elif name.id in names.captured:
                labels = (Label(name.span, "bound here"), Label(names.captured[name.id], "captured above"))
                message = f"`{name.id}` is captured before it is bound"
                scope.diagnostics.append(Diagnostic("KT508", message, labels))
                names.bound[name.id] = names.captured.pop(name.id)
            else:
                names.bound[name.id] = name.span
    for both in names.attributes.keys() & names.captured.keys():
        message = f"`{both}` is an attribute ({names.attributes[both]}) and a tensor"
        scope.error("KT105", message, names.captured[both], "captured as a tensor here")


def _capture(scope: Scope, capture: tree.Capture, names: Names) -> None:
    if capture.name in names.bound:
        names.read.add(capture.name)
    else:
        names.captured.setdefault(capture.name, capture.span)
    if capture.type is None:
        return
    known = DTYPES.get(capture.type.dtype, capture.type.dtype)
    if known not in DTYPES.values():
        names.variables.setdefault(capture.type.dtype, "symbol")
    dims = capture.type.dims or ()
    if sum(dim in ("*", "**") for dim in dims) > 1:
        scope.error(
            "KT122",
            "a type holds one `*` at most",
            capture.type.span,
            "it stands for any number of dimensions",
        )
    for dim in dims:
        if isinstance(dim, str) and dim not in ("*", "**"):
            names.variables.setdefault(dim, "int")


def _replacement(scope: Scope, item: tree.Rewrite, names: Names) -> None:
    checker = CallChecker(scope, names.attributes, names.types())
    for bind in item.replace:
        for capture in names_in(bind.call):
            _use(scope, capture, names)
        checker.check(bind.call, len(bind.names), bind.span)
        for name in bind.names:
            if name.id in names.made:
                scope.duplicate("value", name, names.made[name.id])
            elif name.id in names.captured or name.id in names.attributes:
                scope.error("KT504", f"`{name.id}` is captured, and cannot be bound again", name.span)
            else:
                names.made[name.id] = name.span


def _use(scope: Scope, capture: tree.Capture, names: Names) -> None:
    """An operand in the replacement: made above, or captured; never a value that the replacement removes."""
    name = capture.name
    names.read.add("replace:" + name)
    if name in names.made or name in names.captured:
        return
    if name in names.bound:
        labels = (
            Label(capture.span, "the replacement cannot use it before it binds it"),
            Label(names.bound[name], "the rewrite removes this value"),
        )
        message = f"`{name}` is an inner value of the pattern"
        scope.diagnostics.append(Diagnostic("KT502", message, labels))
        return
    known = [*names.captured, *names.made]
    fix = scope.guess(name, known, capture.span)
    notes = () if fix else ("captured: " + ", ".join(f"`{n}`" for n in known),)
    scope.error("KT505", f"`{name}` is not captured by the pattern", capture.span, notes=notes, fix=fix)


def _connected(scope: Scope, item: tree.Rewrite) -> None:
    """A pattern in two parts that share no value would match every pair of places."""
    groups: list[tuple[set[str], tree.Bind]] = []
    for bind in item.pattern:
        values = {name.id for name in bind.names} | {capture.name for capture in names_in(bind.call)}
        touching = [group for group in groups if group[0] & values]
        for group in touching:
            values |= group[0]
        first = touching[0][1] if touching else bind
        groups = [group for group in groups if group not in touching] + [(values, first)]
    if len(groups) > 1:
        labels = tuple(
            Label(bind.span, "a part of its own" if i else "no value links")
            for i, (_, bind) in enumerate(groups)
        )
        scope.diagnostics.append(
            Diagnostic("KT509", "the pattern falls into parts that share no value", labels)
        )


def _outputs(scope: Scope, item: tree.Rewrite, names: Names) -> None:
    last = item.replace[-1]
    results = [name for name in names.bound if name not in names.read]
    lost = [name for name in _single(item, results) if name not in names.made]
    for name in lost:
        labels = (
            Label(names.bound[name], "nothing in the pattern uses it: it is a result"),
            Label(last.span, "the replacement ends without binding it"),
        )
        scope.diagnostics.append(Diagnostic("KT504", f"the replacement does not bind `{name}`", labels))
    if not lost and not any(name in names.made for name in names.bound):
        scope.error("KT504", "the replacement binds no value of the pattern", last.span)
    for bind in item.replace:
        if not any(n.id in names.bound or "replace:" + n.id in names.read for n in bind.names):
            bound = ", ".join(f"`{n.id}`" for n in bind.names)
            scope.error(
                "KT504",
                f"{bound} is bound and never used",
                bind.span,
                "no value of the pattern, nor used below",
            )


def _single(item: tree.Rewrite, results: list[str]) -> Iterator[str]:
    """Results that must be bound; of an op with several, one bound again or used inside is enough."""
    for bind in item.pattern:
        left = [name.id for name in bind.names if name.id in results]
        if len(left) == len(bind.names) or len(bind.names) == 1:
            yield from left
