"""lower: every dialect op becomes the kernel that a rule names, or that `auto` picks by the registry's ranks."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch.fx as fx
from ktc.backends.registry import Kernel, Weight, for_op, kernels
from ktc.grammar.diagnostics import Diagnostic, Fix, Label
from ktc.grammar.evaluate import EvaluationError, applies
from ktc.grammar.tree import Span
from ktc.grammar.values import Call, Symbol
from ktc.passes.context import Context, Store, WeightPlan, Write, fail, no_value, raise_all
from ktc.passes.edit import clean, declare, inherit, sites_of
from ktc.passes.fit import misfit
from ktc.passes.ops import is_dialect, op_name, operands
from ktc.passes.specialize import STEP

from ktc.dialect.spec import spec_of

STRUCTURAL = frozenset({"kt.transfer", "kt.split", "kt.concat"})
"""Dialect ops without a kernel of their own: views and copies."""


@dataclass(frozen=True)
class Choice:
    """A kernel for one node, with its options and the write that named it (None: `auto`)."""

    kernel: Kernel
    options: Mapping[str, Any]
    write: Write | None


@dataclass(frozen=True)
class Lower:
    """Lowers the graph of one phase. Raises KT401 to KT404."""

    phase: str = STEP

    @property
    def name(self) -> str:
        """See `Pass`."""
        return "lower" if self.phase == STEP else f"lower.{self.phase}"

    def __call__(self, gm: fx.GraphModule, context: Context) -> fx.GraphModule:
        """See `Pass`."""
        problems: list[Diagnostic] = []
        for node in list(gm.graph.nodes):
            if not is_dialect(node) or op_name(node) in STRUCTURAL:
                continue
            choice = self._choose(node, context, problems)
            if choice is not None and not problems:
                self._lower(gm, node, choice, context)
        raise_all(_merged(problems))
        self._plain_reads(gm, context)
        clean(gm)
        return gm

    def _plain_reads(self, gm: fx.GraphModule, context: Context) -> None:
        """Parameters that kernels read as ordinary tensors (norms, biases) get a dense copy where they are used."""
        for node in list(gm.graph.nodes):
            if node.op != "get_attr" or "home" in node.meta or str(node.target) not in context.weights:
                continue
            plan = context.weights[str(node.target)]
            for user in list(node.users):
                home = place_of(user, context, None) if user.op != "output" else context.io_device
                self._read(gm, user, node, dense_store(plan, home), home)

    def _read(self, gm: fx.GraphModule, user: fx.Node, read: fx.Node, store: Store, home: str) -> None:
        declare(gm, store.name, read.meta["val"])
        with gm.graph.inserting_before(user):
            fresh = gm.graph.create_node("get_attr", store.name, name=read.name)
        fresh.meta = {**read.meta, "home": home}
        user.replace_input_with(read, fresh)
        if not read.users:
            name = read.name
            gm.graph.erase_node(read)
            fresh.name = name

    def _choose(self, node: fx.Node, context: Context, problems: list[Diagnostic]) -> Choice | None:
        op = op_name(node)
        phases = self._phases(context)
        place = place_of(node, context, None if self.phase == STEP else self.phase)
        weights = weight_plans(node, context)
        named = self._named(node, op, context)
        if isinstance(named, Diagnostic):
            problems.append(named)
            return None
        if named is not None:
            kernel, options, write = named
            reason = misfit(kernel, node, context.devices[place], weights, phases, context)
            if reason is None:
                return Choice(kernel, options, write)
            fitting = [
                k.name for k in for_op(op)
                if misfit(k, node, context.devices[place], weights, phases, context) is None
            ]  # fmt: skip
            span = write.span if write is not None else context.rules.rules[0].span
            problems.append(_does_not_fit(kernel, node, reason, fitting, span))
            return None
        reasons = []
        for kernel in for_op(op):
            reason = misfit(kernel, node, context.devices[place], weights, phases, context)
            if reason is None:
                return Choice(kernel, {}, None)
            reasons.append(f"{kernel.name}: {reason}")
        spec, site = spec_of(node.target), next(iter(sites_of(node)), "")
        asked = ("place", "cache") if spec is not None and spec.caches is not None else ("place",)
        writes = [write for name in asked if (write := context.attribute(site, name)) is not None]
        message = f"no kernel can run {op} of `{node.meta.get('site', node.name)}` on `{place}`"
        problems.append(
            Diagnostic("KT402", message, tuple(Label(write.span) for write in writes), tuple(reasons))
        )
        return None

    def _named(
        self, node: fx.Node, op: str, context: Context
    ) -> tuple[Kernel, Mapping[str, Any], Write | None] | Diagnostic | None:
        pinned = node.meta.get("kernel")
        if pinned is not None:
            return kernels()[pinned], {}, None
        for site in sites_of(node):
            write = context.attribute(site, "kernel", None if self.phase == STEP else self.phase)
            if write is None:
                continue
            name, options = kernel_call(write)
            if name == "auto":
                continue
            kernel = kernels().get(name)
            if kernel is None:
                return unknown_kernel(name, write)
            if kernel.op == op:
                wrong = wrong_option(kernel, options, write)
                return wrong if wrong is not None else (kernel, options, write)
        return None

    def _phases(self, context: Context) -> frozenset[str]:
        """Which of prefill and decode the steps of this graph can be."""
        if self.phase in ("prefill", "decode"):
            return frozenset({self.phase})
        declared = context.rules.phases.get(self.phase)
        if declared is not None:
            try:
                if not applies(declared.condition, context.env() | {"tokens": 1}):
                    return frozenset({"prefill"})
            except EvaluationError as error:
                raise fail(no_value(error)) from error
        return frozenset({"prefill", "decode"})

    def _lower(self, gm: fx.GraphModule, node: fx.Node, choice: Choice, context: Context) -> None:
        graph, kernel = gm.graph, choice.kernel
        weights: dict[str, Weight] = {}
        for name, plan in weight_plans(node, context).items():
            home = place_of(node, context, None)
            store = store_for(plan, home, kernel)
            weights[name] = Weight(plan.name, plan.format, plan.shape)
            self._read(gm, node, operands(node)[name], store, home)
        workspace = None if kernel.workspace is None else kernel.workspace(node, weights)
        with graph.inserting_before(node):
            new = kernel.lower(graph, node, weights, choice.options)
        if new is not node:
            inherit(new, [node])
            new.meta.setdefault("val", node.meta.get("val"))
            node.replace_all_uses_with(new)
            graph.erase_node(node)
        new.meta["kernel"] = kernel.name
        if workspace is not None:
            new.meta["workspace"] = workspace
        write = choice.write
        context.events.emit(
            self.name, "lowered", str(new.meta.get("site", "")), node=new.name, op=kernel.op, kernel=kernel.name,
            sites=list(sites_of(new)), rule=write.rule if write else "auto",
            file=write.span.file if write else None, line=write.span.line if write else None,
            weights={name: weight.format for name, weight in weights.items()},
            weight_names={name: weight.parameter for name, weight in weights.items()},
            device=place_of(new, context, None if self.phase == STEP else self.phase),
        )  # fmt: skip


def kernel_call(write: Write) -> tuple[str, Mapping[str, Any]]:
    """The kernel's name and options in a `kernel` write."""
    if isinstance(write.value, Call):
        return write.value.name, write.value.options
    return (write.value.name if isinstance(write.value, Symbol) else str(write.value)), {}


def unknown_kernel(name: str, write: Write) -> Diagnostic:
    """KT401, with the nearest names."""
    from difflib import get_close_matches

    known = sorted(kernels())
    near = get_close_matches(name, known, 1)
    fixes = (Fix(f"write `{near[0]}`", write.span, near[0]),) if near else ()
    notes = () if near else (f"kernels: {', '.join(known)}",)
    return Diagnostic("KT401", f"there is no kernel `{name}`", (Label(write.span),), notes, fixes)


def wrong_option(kernel: Kernel, options: Mapping[str, Any], write: Write) -> Diagnostic | None:
    """KT403 for an option that the kernel does not have, or of another type."""
    for name, value in options.items():
        option = kernel.options.get(name)
        have = ", ".join(f"{n}: {o.type.__name__}" for n, o in kernel.options.items()) or "none"
        if option is None:
            message, label = f"`{kernel.name}` has no option `{name}`", f"its options: {have}"
        elif not isinstance(value, option.type) or (option.type is int and isinstance(value, bool)):
            message, label = (
                f"option `{name}` of `{kernel.name}` is of type {option.type.__name__}",
                f"its options: {have}",
            )
        elif option.choices and value not in option.choices:
            message, label = f"`{value}` is no choice for `{name}`", f"choices: {', '.join(option.choices)}"
        else:
            continue
        return Diagnostic("KT403", message, (Label(write.span),), (label,))
    return None


def place_of(node: fx.Node, context: Context, phase: str | None) -> str:
    """The device a node runs on: its site's, else that of the first input that has one, else where inputs arrive."""
    for site in sites_of(node):
        place = context.place_of(site, phase)
        if place is not None:
            return place
    for source in node.all_input_nodes:
        if source.op not in ("placeholder", "get_attr"):
            return place_of(source, context, phase)
    return context.io_device


def weight_plans(node: fx.Node, context: Context) -> dict[str, WeightPlan]:
    """The plans of a node's weight operands, by operand name."""
    spec = spec_of(node.target)
    if spec is None:
        return {}
    found = {}
    for name, operand in operands(node).items():
        if name in spec.weights and operand.op == "get_attr" and str(operand.target) in context.weights:
            found[name] = context.weights[str(operand.target)]
    return found


def store_for(plan: WeightPlan, device: str, kernel: Kernel) -> Store:
    """The copy of a weight that a kernel on a device reads; made at the first call, shared afterwards."""
    if kernel.layout is None:
        return dense_store(plan, device)
    nbytes = kernel.layout.packed_bytes(Weight(plan.name, plan.format, plan.shape))
    return _store(plan, device, kernel.layout.name, nbytes, kernel)


def dense_store(plan: WeightPlan, device: str) -> Store:
    """The copy of a weight as an ordinary tensor on a device."""
    return _store(plan, device, "dense", dense_bytes(plan), None)


def _store(plan: WeightPlan, device: str, layout: str, nbytes: int, kernel: Kernel | None) -> Store:
    store = plan.stores.get((device, layout))
    if store is None:
        name = plan.name if not plan.stores else f"{plan.name}@{device}~{layout}"
        store = plan.stores[device, layout] = Store(name, device, layout, nbytes, kernel)
    return store


def dense_bytes(plan: WeightPlan) -> int:
    """Bytes of a weight as an ordinary tensor: of its float format, or float32 when it is quantised."""
    return math.prod(plan.shape) * (2 if plan.format in ("f16", "bf16") else 4)


def _does_not_fit(kernel: Kernel, node: fx.Node, reason: str, fitting: list[str], span: Span) -> Diagnostic:
    site = node.meta.get("site", node.name)
    note = f"kernels that fit here: {', '.join(fitting)}" if fitting else "no kernel fits here"
    fixes = (Fix(f"write `kernel {fitting[0]}` or `kernel auto`"),) if fitting else ()
    return Diagnostic(
        "KT402", f"`{kernel.name}` cannot run `{site}`: {reason}", (Label(span),), (note,), fixes
    )


def _merged(problems: list[Diagnostic]) -> list[Diagnostic]:
    """One diagnostic for each place in the file: the other sites with the same trouble are counted."""
    by_place: dict[tuple[str, tuple[Label, ...]], list[Diagnostic]] = {}
    for problem in problems:
        by_place.setdefault((problem.code, problem.labels), []).append(problem)
    merged = []
    for group in by_place.values():
        first, more = group[0], len(group) - 1
        notes = (*first.notes, f"and at {more} more site{'s' * (more > 1)}") if more else first.notes
        merged.append(Diagnostic(first.code, first.message, first.labels, notes, first.fixes))
    return merged


def unused_kernels(context: Context) -> list[Diagnostic]:
    """KT404 for every kernel that a rule names at a module without an op that the kernel implements."""
    ops_at: dict[str, set[str]] = {}
    for event in context.events:
        if event.kind == "lowered":
            for site in event.data["sites"]:
                ops_at.setdefault(site, set()).add(event.data["op"])
    problems = []
    for site, writes in context.attributes.items():
        for (kind, _), write in writes.items():
            if kind != "kernel":
                continue
            kernel = kernels().get(kernel_call(write)[0])
            if kernel is None or kernel.op in ops_at.get(site, set()):
                continue
            here = ", ".join(sorted(ops_at.get(site, set()))) or "no dialect op"
            message = f"`{kernel.name}` implements {kernel.op}, which `{site}` does not contain"
            fitting = sorted(k.name for op in ops_at.get(site, ()) for k in for_op(op))
            notes = (f"it contains {here}",) + (
                (f"kernels for that: {', '.join(fitting)}",) if fitting else ()
            )
            problems.append(Diagnostic("KT404", message, (Label(write.span),), notes))
    return _merged(problems)
