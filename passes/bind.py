"""bind: which rule decides which attribute of which site. Last word wins, attribute by attribute."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

import torch.fx as fx
from ktc.grammar.diagnostics import Diagnostic
from ktc.grammar.evaluate import EvaluationError, applies, evaluate, rule_env
from ktc.grammar.selectors import compile_selector
from ktc.grammar.sites import Site
from ktc.grammar.tree import Action, On, Rule
from ktc.passes.context import Context, Write, no_value, raise_all

COVERING = frozenset({"place", "quant"})
"""Attributes that hold for everything inside a matched module; the others hold for the module itself."""


@dataclass(frozen=True)
class Bind:
    """Fills `context.matches` and `context.attributes`, each with provenance."""

    name: str = "bind"

    def __call__(self, gm: fx.GraphModule, context: Context) -> fx.GraphModule:
        """See `Pass`. Raises KT1xx diagnostics for expressions that cannot be evaluated."""
        problems: list[Diagnostic] = []
        own: dict[str, list[Write]] = {name: [] for name in context.sites}
        for order, rule in enumerate(context.rules.rules):
            matched = _match(rule, context, problems)
            context.matches[rule.name.id] = tuple(site.name for site in matched)
            for site in matched:
                own[site.name].extend(_writes(rule, order, site, context, problems))
        raise_all(dict.fromkeys(problems))
        _resolve(own, context)
        for name, writes in context.attributes.items():
            for (kind, phase), write in writes.items():
                context.events.emit(
                    self.name, "applied", name, attribute=kind, phase=phase, value=show(write.value),
                    rule=write.rule, file=write.span.file, line=write.span.line, matched=write.site,
                    overrides=[f"{old.rule} ({old.span.file}:{old.span.line})" for old in _history(write)],
                )  # fmt: skip
        return gm


def show(value: object) -> str:
    """A value as a person would write it in a rule."""
    from ktc.grammar.values import Call, Symbol

    if isinstance(value, Symbol):
        return value.name
    if isinstance(value, Call):
        parts = [show(item) for item in value.args] + [f"{k} = {show(v)}" for k, v in value.options.items()]
        return f"{value.name}({', '.join(parts)})"
    return str(value)


def environment(site: Site, context: Context) -> Mapping[str, object]:
    """What expressions of a rule see at one site."""
    env = rule_env(site, context.layers, context.config, context.rules)
    return env | context.device_functions()


def _match(rule: Rule, context: Context, problems: list[Diagnostic]) -> list[Site]:
    try:
        matcher = compile_selector(rule.selector, context.rules, layers=context.layers, config=context.config)
    except EvaluationError as error:
        problems.append(evaluation_failed(error, rule, None))
        return []
    kept = []
    for site in matcher.select(context.sites.values()):
        try:
            if applies(rule.where, environment(site, context)):
                kept.append(site)
        except EvaluationError as error:
            problems.append(evaluation_failed(error, rule, site))
    return kept


def evaluation_failed(error: EvaluationError, rule: Rule, site: Site | None) -> Diagnostic:
    """The diagnostic for an expression of a rule that has no value at a site."""
    return no_value(error, *(() if site is None else (f"in rule `{rule.name.id}`, at site `{site.name}`",)))


def _writes(rule: Rule, order: int, site: Site, context: Context, problems: list[Diagnostic]) -> list[Write]:
    env = environment(site, context)
    found: list[Write] = []

    def write(action: Action, phase: str | None) -> None:
        try:
            value = evaluate(action.value, env)
        except EvaluationError as error:
            problems.append(evaluation_failed(error, rule, site))
            return
        found.append(Write(action.kind, value, rule.name.id, order, phase, action.value.span, site.name))

    for item in rule.actions:
        if isinstance(item, Action):
            write(item, None)
    for item in rule.actions:  # after the plain ones: inside one rule, `on` is the more particular word
        if isinstance(item, On):
            for action in item.actions:
                write(action, item.phase.id)
    return found


def _resolve(own: Mapping[str, list[Write]], context: Context) -> None:
    """Walks the tree from the root; a later rule wins, and inside one rule the nearest match wins."""
    for name in sorted(context.sites, key=lambda name: name.count(".") + 1 if name else 0):
        decided: dict[tuple[str, str | None], Write] = {}
        if name:
            parent = context.attributes[_parent(name, context)]
            decided = {key: write for key, write in parent.items() if key[0] in COVERING}
        for write in own[name]:
            _decide(decided, write)
        context.attributes[name] = decided


def _decide(decided: dict[tuple[str, str | None], Write], write: Write) -> None:
    keys = {key for key in decided if key[0] == write.kind and write.phase in (None, key[1])}
    for key in keys | {(write.kind, write.phase)}:
        current = decided.get(key) or decided.get((write.kind, None))
        winner = _insert(current, write)
        if key[1] is not None and winner.phase is None and winner.order == write.order:
            del decided[key]  # a later plain word speaks for every phase
        else:
            decided[key] = winner


def _insert(current: Write | None, write: Write) -> Write:
    """The chain of writes that `current` heads with one more in its place; the same rule stands in it once."""
    if current is None:
        return write
    if write.order == current.order:
        more_particular = (
            current.phase is not None and write.phase is None
        )  # an `on` block, matched further out
        return current if more_particular else replace(write, overridden=current.overridden)
    if write.order > current.order:
        return replace(write, overridden=current)
    return replace(current, overridden=_insert(current.overridden, write))


def _parent(name: str, context: Context) -> str:
    parent = name.rpartition(".")[0]
    while parent and parent not in context.attributes:
        parent = parent.rpartition(".")[0]
    return parent if parent in context.attributes else ""


def _history(write: Write) -> list[Write]:
    found = []
    current = write.overridden
    while current is not None:
        found.append(current)
        current = current.overridden
    return found
