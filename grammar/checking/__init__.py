"""Static checks: everything that can be said of a program without a model, in the order of its items."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from ktc.grammar import tree
from ktc.grammar.checking.declarations import (
    check_device,
    check_given,
    check_let,
    check_model,
    check_param,
    check_phase,
)
from ktc.grammar.checking.scope import Scope
from ktc.grammar.checking.site_rules import check_rule
from ktc.grammar.checking.types import Typer
from ktc.grammar.diagnostics import Diagnostic
from ktc.grammar.functions import ASSERT
from ktc.grammar.rules import Rules


def check_program(
    path: str, items: Sequence[tree.Item], given: Mapping[str, Any]
) -> tuple[Rules, list[Diagnostic]]:
    """Checks a program whose includes are merged.

    Args:
        path: the main file; only what stands in it gets warnings.
        items: every item in order, includes replaced by what they include.
        given: values for parameters; strings as written after `-D NAME=`.

    Returns:
        the rules, without `sources` and `files`, and what is wrong with them.
    """
    scope = Scope(path)
    names: dict[str, tree.Span] = {}
    scope.later = {item.name.id: item.name.span for item in items if isinstance(item, tree.Param | tree.Let)}
    # Devices and phases may stand below the rules that use them; parameters and `let`s above.
    for item in items:
        if isinstance(item, tree.Param):
            check_param(scope, item, given)
        elif isinstance(item, tree.Device):
            check_device(scope, item)
        elif isinstance(item, tree.Let):
            check_let(scope, item)
    for item in items:
        if isinstance(item, tree.Phase):
            check_phase(scope, item)
    for item in items:
        if isinstance(item, tree.Model):
            check_model(scope, item)
        elif isinstance(item, tree.Rule):
            check_rule(scope, item, names)
        elif isinstance(item, tree.Rewrite):
            from ktc.grammar.checking.rewrites import check_rewrite  # many programs have none

            check_rewrite(scope, item, names)
        elif isinstance(item, tree.Assert):
            Typer(scope, ASSERT).check(item.condition, "bool", "an asserted condition")
    check_given(scope, given)
    _unused(scope, items)
    rules = Rules(
        path=path,
        sources={},
        model=scope.model,
        params=scope.params,
        devices=scope.devices,
        phases=scope.phases,
        lets=scope.lets,
        imports=tuple(item for item in items if isinstance(item, tree.Import)),
        rules=tuple(item for item in items if isinstance(item, tree.Rule)),
        rewrites=tuple(item for item in items if isinstance(item, tree.Rewrite)),
        asserts=tuple(item for item in items if isinstance(item, tree.Assert)),
    )
    return rules, scope.diagnostics


def _unused(scope: Scope, items: Sequence[tree.Item]) -> None:
    """Warns of names that nothing reads, in a program (a library declares them for others)."""
    if scope.model is None:
        return
    for item in items:
        kind = {tree.Param: "parameter", tree.Phase: "phase", tree.Device: "device"}.get(type(item))
        if kind is None and isinstance(item, tree.Let):
            kind = "set" if item.selector is not None else "name"
        if kind is not None and item.name.id not in scope.used:  # type: ignore[union-attr]
            name = item.name  # type: ignore[union-attr]
            scope.warning("KT190", f"{kind} `{name.id}` is never used", name.span)
