"""autoplace: turns `place auto(fast, slow)` into devices, by what a byte of memory buys.

Decoding is bound by the bytes that a token reads, so memory of the fastest device goes first to what is read most per
byte held: dense weights are read once a token, a routed expert only in k of E tokens. Modules are taken in that
order (then in the model's), and each goes to the first device of the list that has room. The result depends on
nothing but the program and the model, and `--freeze` prints it as rules.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import torch
import torch.fx as fx
from ktc.backends.registry import Weight, for_op
from ktc.grammar.diagnostics import Diagnostic, Label
from ktc.grammar.values import Call, DeviceGroup, DeviceRef
from ktc.passes.cache import cache_of
from ktc.passes.context import Context, Write, fail
from ktc.passes.fold import leaves
from ktc.passes.formats import parameter_format, source_format
from ktc.passes.ops import op_name, operands
from ktc.passes.plan_memory import MemoryPlan, activations, step_sizes
from ktc.passes.preview import Preview, preview
from ktc.passes.sizes import size_words

from ktc.dialect.cache_formats import row_bytes
from ktc.dialect.spec import spec_of
from ktc.weights.formats import FORMATS, nbytes


@dataclass(frozen=True)
class Unit:
    """What moves as a whole: one matched module with everything inside that the same write covers."""

    site: str
    write: Write
    nbytes: int
    read_per_token: float


@dataclass(frozen=True)
class Autoplace:
    """Replaces `auto(...)` values of `context.attributes`. Raises KT301 when a module fits nowhere."""

    name: str = "autoplace"

    def __call__(self, gm: fx.GraphModule, context: Context) -> fx.GraphModule:
        """See `Pass`."""
        waiting = _waiting(context)
        if not waiting:
            return gm
        ahead = preview(gm, context)
        caches = _cache_bytes(ahead, context)
        units = _units(waiting, caches, ahead, context)
        free = _free(caches, ahead, context)
        chosen: dict[str, DeviceRef] = {}
        for unit in sorted(units, key=lambda unit: -unit.read_per_token / max(unit.nbytes, 1)):
            devices = candidates(unit.write.value)
            home = next((ref for ref in devices if unit.nbytes <= _room(free[str(ref)])), None)
            if home is None:
                room = ", ".join(f"{ref} {size_words(max(0, free[str(ref)] or 0))}" for ref in devices)
                message = f"`{unit.site}` ({size_words(unit.nbytes)}) fits on none of its devices"
                note = f"left there: {room}"
                raise fail(Diagnostic("KT301", message, (Label(unit.write.span),), (note,)))
            left = free[str(home)]
            free[str(home)] = None if left is None else left - unit.nbytes
            chosen[unit.site] = home
            context.events.emit(
                self.name, "placed", unit.site, device=str(home), bytes=unit.nbytes, rule=unit.write.rule,
                file=unit.write.span.file, line=unit.write.span.line,
            )  # fmt: skip
        for writes in context.attributes.values():
            for key, write in list(writes.items()):
                if key[0] == "place" and _is_auto(write.value):
                    writes[key] = replace(write, value=chosen[write.site])
        return gm


def candidates(value: Any) -> list[DeviceRef]:
    """The devices of `auto(gpus, host)` in order, groups spread out."""
    found: list[DeviceRef] = []
    for item in value.args:
        found.extend(item.members if isinstance(item, DeviceGroup) else (item,))
    return found


def freeze(context: Context) -> str:
    """The choices of this pass as rules to read, edit and append to the file."""
    placed = [event for event in context.events if event.stage == "autoplace" and event.kind == "placed"]
    by_device: dict[str, list[str]] = {}
    for event in placed:
        by_device.setdefault(event.data["device"], []).append(event.subject)
    parts = []
    for device, sites in by_device.items():
        name = "placed_on_" + device.replace("[", "_").replace("]", "")
        selector = "\n     or ".join(_selector(site) for site in sites)
        parts.append(f"rule {name} {{\n  match {selector}\n  place {device}\n  expect {len(sites)}\n}}\n")
    return "\n".join(parts)


def _selector(site: str) -> str:
    """`model.layers.3.mlp` as the language writes it, `model.layers[3].mlp`."""
    parts: list[str] = []
    for part in site.split("."):
        if part.isdecimal() and parts:
            parts[-1] += f"[{part}]"
        else:
            parts.append(part)
    return ".".join(parts)


def _is_auto(value: Any) -> bool:
    return isinstance(value, Call) and value.name == "auto"


def _waiting(context: Context) -> dict[str, tuple[Write, list[str]]]:
    """The write and the parameters of every module that waits for a device."""
    by_site: dict[str, tuple[Write, list[str]]] = {}
    for parameter in context.parameters:
        write = context.attribute(context.owner(parameter), "place")
        if write is not None and _is_auto(write.value):
            by_site.setdefault(write.site, (write, []))[1].append(parameter)
    return by_site


def _units(
    waiting: dict[str, tuple[Write, list[str]]], caches: dict[str, int], ahead: Preview, context: Context
) -> list[Unit]:
    units = []
    for site, (write, parameters) in waiting.items():
        sizes = [(name, _bytes(name, context)) for name in parameters]
        cache = sum(size for name, size in caches.items() if name == site or name.startswith(f"{site}."))
        read = sum(size * ahead.shares.get(name, 1.0) for name, size in sizes)
        units.append(Unit(site, write, sum(size for _, size in sizes) + cache, read + cache))
    return units


def _room(free: int | None) -> float:
    """Bytes left, without an end on a device whose memory nobody stated."""
    return float("inf") if free is None else free


def _bytes(parameter: str, context: Context) -> int:
    shape = context.shapes[parameter]
    wanted = parameter_format(parameter, context) if len(shape) > 1 else source_format(parameter, context)
    return nbytes(wanted if not shape[-1] % FORMATS[wanted].block_elements else "f32", shape)


def _cache_bytes(ahead: Preview, context: Context) -> dict[str, int]:
    """Bytes of KV cache by the attention module that writes it."""
    specs = {spec.key: spec for spec in ahead.caches}
    found: dict[str, int] = {}
    for node in ahead.module.graph.nodes:
        for source in node.all_input_nodes if node.op == "call_function" else ():
            spec = specs.get(str(source.target))
            if spec is not None:
                site = str(node.meta.get("site", ""))
                choice = cache_of(site, context)
                blocks = -(-choice.tokens // context.block_size)
                entry = row_bytes(spec.key_dim, choice.dtype) + row_bytes(spec.value_dim, choice.dtype)
                found[site] = blocks * context.block_size * spec.heads * entry
    return found


def _free(caches: dict[str, int], ahead: Preview, context: Context) -> dict[str, int | None]:
    """Bytes left on every device after what rules placed there, and what a step needs there at its peak."""
    needed = _step_bytes(ahead, context)
    free: dict[str, int | None] = {}
    for name, device in context.devices.items():
        taken = device.reserve + needed[device.hardware]
        free[name] = None if device.memory is None else device.memory - taken
    sizes = [(context.owner(name), _bytes(name, context)) for name in context.parameters]
    sizes += list(caches.items())
    for site, size in sizes:
        write = context.attribute(site, "place")
        if write is not None and isinstance(write.value, DeviceRef):
            left = free.get(str(write.value))
            if left is not None:
                free[str(write.value)] = left - size
    return free


def _step_bytes(ahead: Preview, context: Context) -> dict[str, int]:
    """Most bytes of activations and workspace that one prefill step needs, by hardware, were all of it in one place."""
    tokens = max((cache_of(site, context).tokens for site in _cache_bytes(ahead, context)), default=0)
    plan = MemoryPlan({}, tokens=tokens, chunk=context.chunk)
    live = max(activations(ahead.module, plan, context).values(), default=0)
    sizes = step_sizes(ahead.module, plan, context)
    found: dict[str, int] = {}
    for hardware in {device.hardware for device in context.devices.values()}:
        extra = [sizes.size(_workspace(node, hardware, context)) for node in ahead.module.graph.nodes]
        found[hardware] = live + max(extra)
    return found


def _workspace(node: fx.Node, hardware: str, context: Context) -> int | torch.SymInt:
    """What the best kernel for a node on some hardware asks for, as far as that is known before formats are."""
    spec = spec_of(node.target)
    kernel = next((k for k in for_op(op_name(node)) if hardware in k.hardware), None) if spec else None
    if spec is None or kernel is None or kernel.workspace is None:
        return 0
    weights = {
        name: Weight(operand.name, format_of(leaves(operand), context), tuple(map(int, operand.meta["val"].shape)))
        for name, operand in operands(node).items() if name in spec.weights
    }  # fmt: skip
    return kernel.workspace(node, weights)


def format_of(parameters: list[str], context: Context) -> str:
    """The format that some parameters will share at run time; float32 where they do not, or for none."""
    found = {parameter_format(name, context) for name in parameters}
    return found.pop() if len(found) == 1 else "f32"
