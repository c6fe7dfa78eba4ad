"""plan_memory: bytes on every device: weights, KV cache, and activations by liveness; then budgets and asserts."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.fx as fx
from ktc.grammar.diagnostics import Diagnostic, Label
from ktc.grammar.evaluate import EvaluationError, applies, dotted, evaluate, names_used
from ktc.grammar.selectors import compile_selector
from ktc.grammar.sites import Site
from ktc.grammar.tree import Expr, Name
from ktc.grammar.values import DeviceGroup, DeviceRef, SiteSet
from ktc.passes.cache import cache_of
from ktc.passes.context import Context, no_value, raise_all
from ktc.passes.lower import place_of
from ktc.passes.ops import op_name
from ktc.passes.sizes import Sizes, size_words

from ktc.dialect.cache_formats import row_bytes

VIEWS = frozenset({
    "Tensor.view", "Tensor.reshape", "Tensor.transpose", "Tensor.permute", "Tensor.unsqueeze", "Tensor.squeeze",
    "Tensor.expand", "operator.getitem", "kt.split", "torch.unsqueeze", "torch.transpose", "Tensor.contiguous",
})  # fmt: skip


@dataclass
class DeviceMemory:
    """Planned bytes of one device; `peak` is the largest sum at any moment of a step."""

    weights: int = 0
    cache: int = 0
    activations: int = 0

    @property
    def peak(self) -> int:
        return self.weights + self.cache + self.activations


@dataclass
class MemoryPlan:
    """What goes where.

    Attributes:
        devices: bytes by device name.
        tokens: tokens of KV cache reserved (0 without a cache); the pool holds this many over all sequences.
        token_bytes: bytes of KV cache that one token takes, over all layers and devices.
        cache_dtypes: dtype of every cache tensor by name.
        cache_devices: device of every cache tensor by name.
        chunk: tokens of one prefill step that the activations are planned for.
    """

    devices: dict[str, DeviceMemory]
    tokens: int = 0
    token_bytes: int = 0
    cache_dtypes: dict[str, torch.dtype] = field(default_factory=dict)
    cache_devices: dict[str, str] = field(default_factory=dict)
    chunk: int = 0


@dataclass(frozen=True)
class PlanMemory:
    """Fills `context.memory`. Raises KT301 (over budget) and KT304 (an assert that does not hold)."""

    name: str = "plan_memory"

    def __call__(self, gm: fx.GraphModule, context: Context) -> fx.GraphModule:
        """See `Pass`."""
        plan = MemoryPlan({name: DeviceMemory() for name in context.devices}, chunk=context.chunk)
        context.memory = plan
        for weight in context.weights.values():
            for store in weight.stores.values():
                plan.devices[store.device].weights += store.nbytes
        self._caches(gm, plan, context)
        for phase in context.phases.values():
            for device, nbytes in activations(phase, plan, context).items():
                plan.devices[device].activations = max(plan.devices[device].activations, nbytes)
        for name, memory in plan.devices.items():
            context.events.emit(
                self.name, "memory", name, weights=memory.weights, cache=memory.cache,
                activations=memory.activations, peak=memory.peak, budget=context.devices[name].memory,
            )  # fmt: skip
        raise_all([*self._budgets(plan, context), *self._asserts(plan, context)])
        return gm

    def _caches(self, gm: fx.GraphModule, plan: MemoryPlan, context: Context) -> None:
        specs = context.caches
        if not specs:
            return
        readers = {
            str(operand.target): node
            for node in gm.graph.nodes if node.op == "call_function"
            for operand in node.all_input_nodes if operand.op == "get_attr"
        }  # fmt: skip
        sites = {name: str(node.meta.get("site", "")) for name, node in readers.items()}
        devices = {name: place_of(node, context, None) for name, node in readers.items()}
        choices = {spec.key: cache_of(sites.get(spec.key, ""), context) for spec in specs}
        plan.tokens = max(choice.tokens for choice in choices.values())
        blocks = -(-plan.tokens // context.block_size)
        for spec in specs:
            choice = choices[spec.key]
            for name, dim in ((spec.key, spec.key_dim), (spec.value, spec.value_dim)):
                plan.cache_dtypes[name] = choice.dtype
                plan.cache_devices[name] = devices.get(name, context.io_device)
                entry = spec.heads * row_bytes(dim, choice.dtype)
                plan.token_bytes += entry
                plan.devices[plan.cache_devices[name]].cache += blocks * context.block_size * entry

    def _budgets(self, plan: MemoryPlan, context: Context) -> list[Diagnostic]:
        problems = []
        for name, memory in plan.devices.items():
            device = context.devices[name]
            if device.memory is None or memory.peak <= device.memory - device.reserve:
                continue
            declared = context.rules.devices[device.ref.name]
            message = f"`{name}` needs {size_words(memory.peak)} and has {size_words(device.memory - device.reserve)}"
            notes = (
                f"weights {size_words(memory.weights)}, KV cache {size_words(memory.cache)} for {plan.tokens} tokens, "
                f"activations {size_words(memory.activations)} for a step of {plan.chunk} tokens",
                *_largest(name, context),
            )
            problems.append(Diagnostic("KT301", message, (Label(declared.span),), notes))
        return problems

    def _asserts(self, plan: MemoryPlan, context: Context) -> list[Diagnostic]:
        problems = []
        env = assert_environment(plan, context)
        for item in context.rules.asserts:
            try:
                holds = applies(item.condition, env)
            except EvaluationError as error:
                problems.append(no_value(error))
                continue
            if not holds:
                notes = _seen(item.condition, plan, env)
                hints = (_hint(item.hint.value),) if item.hint else ()
                problems.append(
                    Diagnostic("KT304", "assertion does not hold", (Label(item.span),), (*notes, *hints))
                )
        return problems


def _seen(condition: Expr, plan: MemoryPlan, env: Mapping[str, Any]) -> tuple[str, ...]:
    """What the condition of an `assert` read: the peaks of devices, or the values of its names."""
    names = names_used(condition)
    if names & {"peak", "balance"}:
        return tuple(
            f"peak({name}) is {size_words(memory.peak)}" for name, memory in plan.devices.items() if memory.peak
        )  # fmt: skip
    found = []
    for name in sorted(dotted(condition)):
        try:
            value = evaluate(Name(condition.span, name), env)
        except EvaluationError:
            continue
        if isinstance(value, (bool, int, float, str)):
            found.append(f"`{name}` is {str(value).lower() if isinstance(value, bool) else value}")
    return tuple(found)


def activations(gm: fx.GraphModule, plan: MemoryPlan, context: Context) -> dict[str, int]:
    """Peak bytes of activations on each device in one step of `plan.chunk` tokens, freed after their last use.

    A view lives in its base, and its uses keep the base alive. A kernel's workspace lives while it runs, and a weight
    that is streamed to another device takes what it takes in its layout.
    """
    sizes = step_sizes(gm, plan, context)
    stores = {store.name: store for weight in context.weights.values() for store in weight.stores.values()}

    def held(node: fx.Node) -> int:
        source = node.all_input_nodes[0] if op_name(node) == "kt.transfer" else node
        store = stores.get(str(source.target)) if source.op == "get_attr" else None
        return store.nbytes if store is not None else sizes.nbytes(node.meta.get("val"))

    order = {node: index for index, node in enumerate(gm.graph.nodes)}
    base: dict[fx.Node, fx.Node] = {}
    last: dict[fx.Node, int] = {}
    for node in gm.graph.nodes:
        base[node] = (
            base[node.all_input_nodes[0]] if op_name(node) in VIEWS and node.all_input_nodes else node
        )
        for source in node.all_input_nodes:
            last[base[source]] = order[node]
    live: dict[str, int] = {}
    peak: dict[str, int] = {}
    ends: dict[int, list[fx.Node]] = {}
    for node, index in last.items():
        ends.setdefault(index, []).append(node)
    for node, index in order.items():
        if node.op in ("get_attr", "output"):
            continue
        device = str(node.meta.get("device", context.io_device))
        if base[node] is node and node in last:
            live[device] = live.get(device, 0) + held(node)
        extra = sizes.size(node.meta.get("workspace", 0))
        peak[device] = max(peak.get(device, 0), live.get(device, 0) + extra)
        for done in ends.get(index, ()):
            if done.op not in ("get_attr", "output"):
                device = str(done.meta.get("device", context.io_device))
                live[device] = live.get(device, 0) - held(done)
    return peak


def step_sizes(gm: fx.GraphModule, plan: MemoryPlan, context: Context) -> Sizes:
    """Sizes of one prefill step of a single sequence that fills the cache."""
    chunk, blocks = plan.chunk, max(1, -(-plan.tokens // context.block_size))
    dims: dict[str, Mapping[int, int]] = {
        "input_ids": {1: chunk}, "positions": {1: chunk}, "slots": {0: chunk}, "logits_index": {0: 1},
        "seq_starts": {0: 2}, "context_lens": {0: 1}, "block_tables": {0: 1, 1: blocks},
    }  # fmt: skip
    return Sizes(gm, dims)


def assert_environment(plan: MemoryPlan, context: Context) -> dict[str, Any]:
    """What `assert` can ask: peak, memory, balance, bytes, and the file's names."""

    def members(value: Any) -> list[str]:
        if isinstance(value, DeviceGroup):
            return [str(member) for member in value.members]
        if isinstance(value, DeviceRef):
            return [str(value)]
        raise ValueError("expected a device")

    def peak(device: Any) -> Any:
        peaks = [plan.devices[name].peak for name in members(device)]
        return peaks if isinstance(device, DeviceGroup) else peaks[0]

    def balance(devices: Any) -> float:
        peaks = [plan.devices[name].peak for name in members(devices)]
        return max(peaks) / (sum(peaks) / len(peaks)) if sum(peaks) else 1.0

    env = context.env()

    def inside(sites: SiteSet) -> list[Site]:
        matcher = compile_selector(sites, context.rules, layers=context.layers, config=context.config)
        return matcher.select(context.sites.values())

    def nbytes(sites: SiteSet) -> int:
        prefixes = tuple(f"{site.name}." if site.name else "" for site in inside(sites))
        return sum(
            store.nbytes for weight in context.weights.values() if weight.parameters[0].startswith(prefixes)
            for store in weight.stores.values()
        )  # fmt: skip

    return env | {"peak": peak, "balance": balance, "bytes": nbytes}


def _largest(device: str, context: Context) -> tuple[str, ...]:
    stores = [
        (store.nbytes, weight.name) for weight in context.weights.values() for store in weight.stores.values()
        if store.device == device
    ]  # fmt: skip
    largest = sorted(stores, reverse=True)[:3]
    return (
        (f"largest: {', '.join(f'{name} ({size_words(nbytes)})' for nbytes, name in largest)}",)
        if largest
        else ()
    )


def _hint(text: str) -> str:
    return f"hint of the file: {text}"
