"""check: what is wrong before anything is rewritten or loaded. All problems are reported together.

Counts and dead rules (KT201, KT204, KT205), shadowed rules (KT202), unplaced parameters (KT203), devices (KT302,
KT303), kernels that do not exist (KT401), cache options (KT405), and weights, from the headers of the files only
(KT601 to KT603).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from difflib import get_close_matches

import torch.fx as fx
from ktc.backends.registry import kernels
from ktc.grammar.diagnostics import Diagnostic, Fix, Label
from ktc.grammar.explain import explain, range_problems
from ktc.grammar.tree import Rule
from ktc.grammar.values import Call, DeviceGroup, DeviceRef, Symbol
from ktc.passes.bind import show
from ktc.passes.cache import cache_problem
from ktc.passes.context import Context, Write, raise_all
from ktc.passes.counts import bounds, count_words
from ktc.passes.lower import kernel_call, unknown_kernel, wrong_option

from ktc.errors import MissingTensorError, ShapeMismatchError, UnsupportedFormatError, WeightError


@dataclass(frozen=True)
class Check:
    """Reports and changes nothing."""

    name: str = "check"

    def __call__(self, gm: fx.GraphModule, context: Context) -> fx.GraphModule:
        """See `Pass`."""
        problems = [*_counts(context), *_shadowed(gm, context), *_values(context), *_absent(context)]
        if not any(problem.code in ("KT302", "KT303") for problem in problems):
            problems += _unplaced(context)
        problems += _weights(context)
        raise_all(problems)
        return gm


def _counts(context: Context) -> Iterator[Diagnostic]:
    for rule in context.rules.rules:
        matched = context.matches[rule.name.id]
        low, high = bounds(rule.expect, context)
        if len(matched) >= low and (high is None or len(matched) <= high):
            if matched and not (rule.expect and rule.expect.any):
                yield from range_problems(
                    rule.selector,
                    context.rules,
                    context.sites.values(),
                    layers=context.layers,
                    config=context.config,
                )
            continue
        if not matched:
            yield _dead(rule, context)
            continue
        span = rule.expect.span if rule.expect is not None else rule.name.span
        message = f"rule `{rule.name.id}` matches {len(matched)} sites, not {count_words(low, high)}"
        shown = ", ".join(f"`{name}`" for name in matched[:3]) + (" …" if len(matched) > 3 else "")
        yield Diagnostic("KT204", message, (Label(span, f"{len(matched)} here"),), (f"it matches {shown}",))


def _dead(rule: Rule, context: Context) -> Diagnostic:
    found = explain(
        rule.selector, context.rules, context.sites.values(), layers=context.layers, config=context.config
    )
    if found is None:  # the selector matches; `where` refused every site
        span = rule.where.span if rule.where is not None else rule.selector.span
        return Diagnostic("KT201", "rule matches nothing", (Label(span, "no matching site fulfils this"),))
    return found


def _shadowed(gm: fx.GraphModule, context: Context) -> Iterator[Diagnostic]:
    relevant = {context.owner(name) for name in context.parameters}
    for node in gm.graph.nodes:
        if node.op not in ("placeholder", "output", "get_attr"):
            relevant.add(str(node.meta.get("site", "")))
            relevant.update(name for name, _ in node.meta.get("stack", ()))
    winners: set[str] = set()
    losers: dict[str, set[str]] = {}
    for site, writes in context.attributes.items():
        if site not in relevant:
            continue
        for write in writes.values():
            winners.add(write.rule)
            lost = write.overridden
            while lost is not None:
                losers.setdefault(lost.rule, set()).add(write.rule)
                lost = lost.overridden
    by_name = {rule.name.id: rule for rule in context.rules.rules}
    for rule in context.rules.rules:
        name = rule.name.id
        if (
            name in winners
            or not context.matches[name]
            or name not in losers
            or (rule.expect and rule.expect.any)
        ):
            continue
        later = sorted(losers[name], key=lambda other: by_name[other].span.start)
        over = [Label(by_name[other].name.span, "overrides it") for other in later]
        labels = (Label(rule.name.span, "never has the last word"), *over)
        fix = Fix("move the more particular rule further down, or delete this one")
        yield Diagnostic("KT202", f"rule `{name}` is shadowed by later rules", labels, (), (fix,))


def _values(context: Context) -> Iterator[Diagnostic]:
    seen: set[tuple[str, object]] = set()
    for writes in context.attributes.values():
        for write in writes.values():
            if (write.kind, write.span) in seen:
                continue
            problem = _value_problem(write, context)
            if problem is not None:
                seen.add((write.kind, write.span))
                yield problem


def _absent(context: Context) -> Iterator[Diagnostic]:
    """KT302, one for each device of a group that is not on this machine and that something is placed on."""
    found: dict[str, Write] = {}
    for writes in context.attributes.values():
        for write in writes.values():
            if write.kind == "place" and isinstance(write.value, DeviceRef):
                found.setdefault(str(write.value), write)
    for name, write in sorted(found.items()):
        device = context.devices.get(name)
        if device is not None and device.absent:
            message = f"`{name}` is used, and there is no {device.torch_device} on this machine"
            notes = (
                f"`{write.site}` is placed there",
                "`ktc plan --no-weights` plans for hardware that is elsewhere",
            )
            yield Diagnostic("KT302", message, (Label(write.span),), notes)


def _value_problem(write: Write, context: Context) -> Diagnostic | None:
    label = (Label(write.span),)
    if write.kind == "place":
        if isinstance(write.value, DeviceGroup):
            members = ", ".join(map(str, write.value.members))
            note = f"`{write.value.name}` is {members}"
            return Diagnostic(
                "KT303", "a module is placed on one device, and this is a group", label, (note,)
            )
        if not isinstance(write.value, DeviceRef):
            known = ", ".join(context.devices)
            near = get_close_matches(show(write.value), list(context.devices), 1)
            fixes = (Fix(f"write `{near[0]}`", write.span, near[0]),) if near else ()
            message = f"`{show(write.value)}` is no device of this file"
            return Diagnostic("KT302", message, label, (f"devices: {known}",), fixes)
    if write.kind == "kernel":
        name, options = kernel_call(write)
        if name != "auto":
            kernel = kernels().get(name)
            if kernel is None:
                return unknown_kernel(name, write)
            return wrong_option(kernel, options, write)
    if write.kind == "cache":
        return cache_problem(write)
    if write.kind == "quant" and not isinstance(write.value, (Symbol, Call)):
        return Diagnostic("KT604", f"`{show(write.value)}` is no number format", label)
    return None


def _unplaced(context: Context) -> Iterator[Diagnostic]:
    missing = [name for name in sorted(context.parameters) if context.place_of(context.owner(name)) is None]
    if not missing:
        return
    shown = tuple(f"`{name}`" for name in missing[:5]) + (
        (f"and {len(missing) - 5} more",) if len(missing) > 5 else ()
    )
    owner = context.owner(missing[0])
    message = f"{len(missing)} parameter{'s have' if len(missing) > 1 else ' has'} no device"
    fix = Fix("begin with `rule everything { match ** place DEVICE }`")
    model = context.rules.model
    span = model.span if model is not None else context.rules.rules[-1].span if context.rules.rules else None
    labels = (Label(span, f"`{owner}` is matched by no `place`"),) if span is not None else ()
    yield Diagnostic("KT203", message, labels, shown, (fix,))


_WEIGHT_CODES = {MissingTensorError: "KT601", UnsupportedFormatError: "KT602", ShapeMismatchError: "KT603"}


def _weights(context: Context) -> Iterator[Diagnostic]:
    if context.binding is None:
        return
    model = context.rules.model
    span = None if model is None else (model.weights or model.source or model.class_name).span
    labels = () if span is None else (Label(span),)
    by_code: dict[str, list[WeightError]] = {}
    for error in context.binding.errors():
        by_code.setdefault(_WEIGHT_CODES.get(type(error), "KT602"), []).append(error)
    for code, errors in by_code.items():
        first, more = errors[0], len(errors) - 1
        notes = [first.hint] if first.hint else []
        if more:
            notes.append(f"and {more} more tensor{'s' * (more > 1)}")
        yield Diagnostic(code, first.message, labels, tuple(notes))
