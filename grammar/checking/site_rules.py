"""Checks `rule` items: clauses given once, values of the right kind, phases that exist."""

from __future__ import annotations

from collections.abc import Sequence

from ktc.grammar import tree
from ktc.grammar.checking.scope import PHASES, Scope
from ktc.grammar.checking.selectors import check_selector
from ktc.grammar.checking.types import Typer, words
from ktc.grammar.diagnostics import Diagnostic, Fix, Label
from ktc.grammar.formats import CACHE_DTYPES, CACHES, FORMATS
from ktc.grammar.functions import COUNT, RULE, VALUE
from ktc.grammar.values import DTYPES, Symbol

GROUPED = {"int": ("bits", "group"), "int4": ("group",), "int8": ("group",)}
"""Formats with options; the integer formats of GPU kernels."""


def check_rule(scope: Scope, item: tree.Rule, seen: dict[str, tree.Span]) -> None:
    """Reports what is wrong with one rule; `seen` holds the names of rules and rewrites so far."""
    check_rule_name(scope, "rule", item.name, seen)
    check_selector(scope, item.selector)
    if item.where is not None:
        Typer(scope, RULE).check(item.where, "bool", "a condition")
    if not item.actions:
        notes = ("a rule says `place`, `quant`, `kernel`, `cache` or `on PHASE { ... }`",)
        scope.error("KT114", f"rule `{item.name.id}` does nothing", item.name.span, notes=notes)
    _once(scope, [a for a in item.actions if isinstance(a, tree.Action)])
    phases: dict[str, tree.Span] = {}
    for action in item.actions:
        if isinstance(action, tree.On):
            _on(scope, action, phases)
        else:
            _action(scope, action)
    check_expect(scope, item.expect)


def check_rule_name(scope: Scope, what: str, name: tree.Name, seen: dict[str, tree.Span]) -> None:
    """Rules and rewrites share one space of names: messages and events cite them."""
    if name.id in seen:
        scope.duplicate(what, name, seen[name.id])
    else:
        seen[name.id] = name.span


def check_expect(scope: Scope, expect: tree.Expect | None) -> None:
    """The count is a number or a range of numbers."""
    if expect is None or expect.count is None:
        return
    typer = Typer(scope, COUNT)
    if isinstance(expect.count, tree.RangeExpr):
        typer.infer(expect.count)
    else:
        typer.check(expect.count, "int", "an expected count")


def _once(scope: Scope, actions: Sequence[tree.Action]) -> None:
    first: dict[str, tree.Action] = {}
    for action in actions:
        if action.kind in first:
            labels = (
                Label(action.span, "said again here"),
                Label(first[action.kind].span, "first said here"),
            )
            scope.diagnostics.append(Diagnostic("KT113", f"`{action.kind}` is said twice", labels))
        first.setdefault(action.kind, action)


def _on(scope: Scope, item: tree.On, phases: dict[str, tree.Span]) -> None:
    name = item.phase.id
    scope.used.add(name)
    if name not in PHASES and name not in scope.phases:
        scope.unknown("KT104", "phase", name, [*PHASES, *scope.phases], item.phase.span, "phases")
    if name in phases:
        labels = (Label(item.phase.span, "said again here"), Label(phases[name], "first said here"))
        scope.diagnostics.append(Diagnostic("KT113", f"`on {name}` is said twice", labels))
    phases.setdefault(name, item.phase.span)
    _once(scope, item.actions)
    for action in item.actions:
        if action.kind in ("quant", "cache"):
            text = "`on` takes `place` and `kernel`"
            notes = (
                "a phase changes where and with which kernel something runs; its weights stay as they are",
            )
            scope.error(
                "KT120", f"`{action.kind}` cannot change with the phase", action.span, text, notes=notes
            )
        _action(scope, action)


def _action(scope: Scope, action: tree.Action) -> None:
    {"place": _place, "quant": _quant, "kernel": _kernel, "cache": _cache}[action.kind](scope, action.value)


def _place(scope: Scope, value: tree.Expr) -> None:
    if isinstance(value, tree.Apply) and value.function.id == "auto":
        _auto(scope, value)
        return
    if isinstance(value, tree.Name) and "." not in value.id and not _is_known(scope, value):
        scope.unknown("KT302", "device", value.id, scope.device_types, value.span, "devices")
        return
    kind = Typer(scope, VALUE).infer(value)
    if kind == "group":
        members = (
            scope.devices[value.id].members
            if isinstance(value, tree.Name) and value.id in scope.devices
            else ()
        )
        fix = Fix(f"write `{members[0]}`, or `auto({members[0].name})`") if members else None
        scope.error(
            "KT303", "a module is placed on one device", value.span, "this is a group of devices", fix=fix
        )
    elif kind not in ("device", "any"):
        scope.error("KT302", "`place` takes a device", value.span, f"this is {words(kind)}")


def _is_known(scope: Scope, value: tree.Name) -> bool:
    return value.id in scope.names(VALUE)


def _auto(scope: Scope, value: tree.Apply) -> None:
    """`auto(gpu, host)`: any devices and groups."""
    for keyword in value.keywords:
        scope.error("KT109", "`auto` takes devices only", keyword.span)
    if not value.args:
        scope.error("KT109", "`auto` takes at least one device", value.span)
    for argument in value.args:
        if isinstance(argument, tree.Name) and not _is_known(scope, argument):
            scope.unknown("KT302", "device", argument.id, scope.device_types, argument.span, "devices")
            continue
        kind = Typer(scope, VALUE).infer(argument)
        if kind not in ("device", "group", "any"):
            scope.error("KT302", "`auto` takes devices", argument.span, f"this is {words(kind)}")


def _quant(scope: Scope, value: tree.Expr) -> None:
    known = [*FORMATS, "none", *GROUPED]
    if isinstance(value, tree.Apply):
        _quant_options(scope, value, known)
        return
    if isinstance(value, tree.Name) and not _is_known(scope, value):
        if value.id not in known:
            scope.unknown("KT604", "number format", value.id, known, value.span, "formats")
        return
    kind = Typer(scope, VALUE).infer(value)
    if kind not in ("symbol", "any"):
        text = f"this is {words(kind)}"
        scope.error("KT604", "`quant` takes the name of a number format", value.span, text)
    param = scope.params.get(value.id) if isinstance(value, tree.Name) else None
    if param is not None and isinstance(param.value, Symbol) and param.value.name not in known:
        notes = ("formats: " + ", ".join(f"`{name}`" for name in known),)
        text = f"`{param.name}` is `{param.value.name}`"
        scope.error("KT604", f"unknown number format `{param.value.name}`", value.span, text, notes=notes)


def _quant_options(scope: Scope, value: tree.Apply, known: Sequence[str]) -> None:
    """`int4(group = 128)`: a format with options."""
    name = value.function.id
    options = GROUPED.get(name)
    if options is None and name in known:
        scope.error("KT604", f"`{name}` takes no options", value.span, f"write `{name}`")
    elif options is None:
        scope.unknown("KT604", "number format", name, known, value.function.span, "formats")
    else:
        for keyword in value.keywords:
            if keyword.name not in options:
                scope.unknown("KT604", f"option of `{name}`", keyword.name, options, keyword.span, "options")
        for argument in (*value.args, *(k.value for k in value.keywords)):
            Typer(scope, VALUE).check(argument, "int", f"an option of `{name}`")


def _kernel(scope: Scope, value: tree.Expr) -> None:
    """Which kernels there are, and their options, only the registry knows: the compiler checks those."""
    if isinstance(value, tree.Name):
        if value.id in scope.names(VALUE):
            scope.used.add(value.id)
            kind = scope.names(VALUE)[value.id]
            scope.error(
                "KT105", "`kernel` takes the name of a kernel", value.span, f"`{value.id}` is {words(kind)}"
            )
        return
    if isinstance(value, tree.Apply):
        names: set[str] = set()
        for argument in value.args:
            scope.error("KT403", "an option of a kernel has a name", argument.span, "write `name = value`")
        for keyword in value.keywords:
            if keyword.name in names:
                scope.error("KT403", f"option `{keyword.name}` is given twice", keyword.span)
            names.add(keyword.name)
            Typer(scope, VALUE, free=True).infer(keyword.value)
        return
    kind = Typer(scope, VALUE).infer(value)
    scope.error("KT105", "`kernel` takes the name of a kernel", value.span, f"this is {words(kind)}")


def _cache(scope: Scope, value: tree.Expr) -> None:
    name = value.function if isinstance(value, tree.Apply) else value
    if not isinstance(name, tree.Name):
        scope.error("KT405", "`cache` takes a kind of cache", value.span, f"kinds: {', '.join(CACHES)}")
        return
    options = CACHES.get(name.id)
    if options is None:
        scope.unknown("KT405", "kind of cache", name.id, CACHES, name.span, "kinds")
        return
    if not isinstance(value, tree.Apply):
        return
    for argument in value.args:
        scope.error("KT405", "an option of a cache has a name", argument.span, "write `name = value`")
    for keyword in value.keywords:
        kind = options.get(keyword.name)
        if kind is None:
            scope.unknown("KT405", "option of a cache", keyword.name, options, keyword.span, "options")
        elif kind == "dtype":
            given = keyword.value.id if isinstance(keyword.value, tree.Name) else ""
            if given not in scope.names(VALUE) and DTYPES.get(given, given) not in CACHE_DTYPES:
                text = "one of " + ", ".join(f"`{d}`" for d in CACHE_DTYPES)
                scope.error("KT405", "a cache cannot hold this dtype", keyword.value.span, text)
        else:
            Typer(scope, VALUE).check(keyword.value, kind, f"`{keyword.name}` of a cache")
