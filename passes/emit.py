"""emit: the placement that a runtime needs, out of everything the passes decided."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from ktc.grammar.evaluate import EvaluationError, evaluate, names_used
from ktc.grammar.tree import Name, Phase
from ktc.passes.context import Context

from ktc.capture.captured import attribute
from ktc.dialect.cache_formats import name_of
from ktc.runtime.placement import CacheEntry, PhaseEntry, Placement, WeightEntry


def emit(context: Context) -> Placement:
    """The placement of a compiled program. The graphs stay those of `context.phases`."""
    graphs = {name: gm.graph for name, gm in context.phases.items()}
    weights = tuple(
        WeightEntry(
            store.name, plan.assembly, plan.shape, plan.format, plan.source_format, store.device,
            store.kernel.name if store.kernel is not None else None, store.nbytes,
        )
        for plan in context.weights.values() for store in plan.stores.values()
    )  # fmt: skip
    memory = context.memory
    caches = tuple(
        CacheEntry(
            spec.layer, spec.key, spec.value, spec.heads, spec.key_dim, spec.value_dim, spec.window,
            name_of(memory.cache_dtypes[spec.key]), memory.cache_devices[spec.key],
        )
        for spec in context.caches
    )  # fmt: skip
    loaded = {weight.name for weight in weights} | {n for cache in caches for n in (cache.key, cache.value)}
    hosts = [device for device in context.devices.values() if device.hardware == "cpu"]
    buffers, homes = _buffers(context, loaded)
    used = {context.io_device, *homes.values(), *(w.device for w in weights), *(c.device for c in caches)}
    used |= {
        str(node.meta["device"]) for graph in graphs.values() for node in graph.nodes if "device" in node.meta
    }
    return Placement(
        kind=context.captured.kind,
        graphs=graphs,
        phases=tuple(
            _phase(context.rules.phases[name], context) for name in graphs if name in context.rules.phases
        ),
        devices={name: str(device.torch_device) for name, device in context.devices.items() if name in used},
        io_device=context.io_device,
        weights=weights,
        caches=caches,
        buffers=buffers,
        buffer_devices=homes,
        tokens=memory.tokens,
        block_size=context.block_size,
        chunk=context.chunk,
        parameters={name: shape for name, shape in context.shapes.items()},
        config=context.config,
        output_spec=context.captured.output_spec,
        inputs=context.captured.inputs,
        threads=_most(device.threads for device in hosts),
        nodes=_most(device.nodes for device in hosts),
    )


def _most(limits: Iterable[int | None]) -> int | None:
    """The largest of the limits of all CPU devices, which share one pool; None if one has none."""
    found = list(limits)
    return None if None in found else max((limit for limit in found if limit is not None), default=None)


def _phase(phase: Phase, context: Context) -> PhaseEntry:
    """The condition as text with the values it needs, so that running needs nothing else of the program."""
    span = phase.condition.span
    text = context.rules.sources[span.file][span.start : span.end]
    env = context.env()
    values = {}
    for name in sorted(names_used(phase.condition)):
        if name in env:
            try:
                values[name] = evaluate(Name(span, name), env)
            except EvaluationError:
                continue
    return PhaseEntry(phase.name.id, text, values)


def _buffers(context: Context, loaded: set[str]) -> tuple[dict[str, Any], dict[str, str]]:
    """Constants and leftover modules that the graphs read, and the device of each."""
    found: dict[str, Any] = {}
    homes: dict[str, str] = {}
    for gm in context.phases.values():
        for node in gm.graph.nodes:
            target = str(node.target)
            if node.op == "get_attr" and target not in loaded:
                found.setdefault(target, attribute(context.captured.module, target))
            elif node.op == "call_module":
                found.setdefault(target, context.captured.module.get_submodule(target))
            else:
                continue
            homes.setdefault(target, str(node.meta.get("device", context.io_device)))
    return found, homes
