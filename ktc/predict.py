"""Floors of a plan's times: what its bytes and operations take at the limits that were measured on this machine.

Nothing can be faster, so the tokens a second that follow are "at most". Decoding at n cached tokens reads every
weight's share (k of E experts, one row of an embedding) and the cached keys and values of n tokens. A prefill step of T
tokens reads an expert if one of them chose it, 1 - (1 - k/E)^T of all; its products take two operations an element and
token, quantised weights as int8, others as bf16 or float32, whichever is faster here. What follows the choice of the
tokens whose logits are wanted is done for the last token alone. Attention's own products, of a token with itself and
every one before it that its window shows, are floats, as the cache is. All small ops are left out.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from ktc.machine import Limits, Measured
from ktc.weights.formats import FLOAT_PRODUCTS

if TYPE_CHECKING:
    from ktc.passes.context import Context, WeightPlan
    from ktc.runtime.placement import Placement

UNMEASURED = "no limits are measured on this machine: `ktc doctor --measure`"


@dataclass(frozen=True)
class Load:
    """What one step asks of a device: bytes to read, operations on int8 and on floats."""

    nbytes: float
    int8: float
    floats: float

    def seconds(self, limit: Measured) -> float:
        """The time it takes at least: reading and computing at once."""
        computing = _over(self.int8, limit.int8) + _over(self.floats, max(limit.bf16, limit.f32))
        return max(self.nbytes / limit.bandwidth, computing)


@dataclass(frozen=True)
class Floor:
    """The floor of one device.

    Attributes:
        decode: one token on an empty cache; `decode_full`: on a cache that is full.
        prefill: a step of `Prediction.chunk` tokens.
        seconds: of these three, in this order; None where the device's limits are not known.
    """

    decode: Load
    decode_full: Load
    prefill: Load
    seconds: tuple[float, float, float] | None


@dataclass(frozen=True)
class Prediction:
    """What a plan can reach at most.

    Attributes:
        chunk: tokens of a prefill step. context: tokens of a full cache.
        threads: of the CPU's kernels.
        devices: by declared name; those that hold nothing are left out.
        limits: what the figures come from; None when nothing is measured.
        unknown: why there are no tokens a second; None when there are.
    """

    chunk: int
    context: int
    threads: int
    devices: Mapping[str, Floor]
    limits: Measured | None
    measured: str | None
    unknown: str | None

    def rates(self) -> tuple[float, float, float] | None:
        """Tokens a second: decoding on an empty and on a full cache, prefill. Devices work one after another."""
        found = [floor.seconds for floor in self.devices.values()]
        if self.unknown is not None or not found:
            return None
        empty, full, prefill = (sum(s[index] for s in found if s is not None) for index in range(3))
        return _over(1.0, empty), _over(1.0, full), _over(float(self.chunk), prefill)

    def to_json(self) -> dict[str, Any]:
        """Plain JSON."""
        rates = self.rates()
        return {
            "threads": self.threads,
            "measured": self.measured,
            "bandwidth": None if self.limits is None else self.limits.bandwidth,
            "int8": None if self.limits is None else self.limits.int8,
            "unknown": self.unknown,
            "decode_tokens_per_second": None if rates is None else rates[0],
            "decode_full_tokens_per_second": None if rates is None else rates[1],
            "prefill_tokens_per_second": None if rates is None else rates[2],
            "prefill_tokens": self.chunk,
            "cache_tokens": self.context,
            "devices": {
                name: {
                    "decode_bytes": round(floor.decode.nbytes),
                    "decode_full_bytes": round(floor.decode_full.nbytes),
                    "prefill_bytes": round(floor.prefill.nbytes),
                    "prefill_operations": round(floor.prefill.int8 + floor.prefill.floats),
                    "seconds": None if floor.seconds is None
                    else dict(zip(("decode", "decode_full", "prefill"), floor.seconds, strict=True)),
                }
                for name, floor in self.devices.items()
            },
        }  # fmt: skip

    def lines(self) -> list[str]:
        """The same for people."""
        rates = self.rates()
        if rates is None or self.limits is None:
            return [f"predicted speed: unknown, {self.unknown or 'nothing is placed'}"]
        empty, full, prefill = rates
        limit = self.limits
        peak = f", int8 {limit.int8 / 1e12:.2f} TOPS" if limit.int8 else ""
        cache = f" ({_words(full)} with {self.context} tokens cached)" if self.context else ""
        return [
            f"predicted at most: decode {_words(empty)} tok/s{cache}, prefill {_words(prefill)} tok/s in steps of "
            f"{self.chunk}",
            f"  from {limit.bandwidth / 1e9:.1f} GB/s{peak} with {limit.threads} "
            f"thread{'s' if limit.threads > 1 else ''}, measured {self.measured}",
        ]


def predict(context: Context, placement: Placement, limits: Limits | None) -> Prediction:
    """The floors of a compiled program on this machine.

    Args:
        context: after `plan_memory`.
        placement: what `emit` made of it.
        limits: of this machine, or None.
    """
    from ktc import _cpu

    _, cores, *_ = _cpu.topology()
    threads = min(_cpu.threads(), placement.threads or _cpu.threads())
    if placement.nodes is not None:
        threads = min(threads, sum(map(len, cores[: placement.nodes])))
    limit = None if limits is None else limits.at(threads)
    last = _last_weights(placement)
    tokens = context.memory.tokens
    cached = _cached(context)
    attended = _attended(context)
    floors: dict[str, Floor] = {}
    for name, device in context.devices.items():
        weights = [
            (weight, store.nbytes, store.name in last)
            for weight in context.weights.values() for store in weight.stores.values() if store.device == name
        ]  # fmt: skip
        if not weights and not cached.get(name):
            continue
        decode = _load(weights, 1)
        full = Load(decode.nbytes + cached.get(name, 0), decode.int8, decode.floats)
        prefill = _load(weights, context.chunk)
        prefill = replace(prefill, floats=prefill.floats + attended.get(name, 0))
        seconds = None
        if limit is not None and device.hardware == "cpu":
            seconds = decode.seconds(limit), full.seconds(limit), prefill.seconds(limit)
        floors[name] = Floor(decode, full, prefill, seconds)
    unknown = UNMEASURED if limit is None else None
    others = sorted(name for name in floors if context.devices[name].hardware != "cpu")
    if unknown is None and others:
        unknown = f"the limits of {', '.join(others)} are not measured"
    when = None if limits is None else limits.when
    return Prediction(context.chunk, tokens, threads, floors, limit, when, unknown)


def _load(weights: list[tuple[WeightPlan, int, bool]], tokens: int) -> Load:
    """What a step of some tokens asks for; weights with their bytes, and whether the last token alone meets them."""
    moved = int8 = floats = 0.0
    for weight, nbytes, last in weights:
        rows = 1 if last else tokens
        moved += nbytes * (1.0 - (1.0 - weight.share) ** rows)
        looked_up = len(weight.shape) == 2 and weight.share * weight.shape[0] <= 1.0  # one row a token
        if len(weight.shape) < 2 or looked_up:
            continue
        operations = 2.0 * math.prod(weight.shape) * weight.share * rows
        if weight.format in FLOAT_PRODUCTS:
            floats += operations
        else:
            int8 += operations
    return Load(moved, int8, floats)


def _last_weights(placement: Placement) -> set[str]:
    """Names of what is read after the rows of the tokens whose logits are wanted were picked, in every graph."""
    found: list[set[str]] = []
    for graph in placement.graphs.values():
        after = {node for node in graph.nodes if node.op == "placeholder" and node.name == "logits_index"}
        names: set[str] = set()
        for node in graph.nodes:
            if after.intersection(node.all_input_nodes):
                after.add(node)
                names |= {str(s.target) for s in node.all_input_nodes if s.op == "get_attr"}
        found.append(names)
    return set.intersection(*found) if found else set()


def _cached(context: Context) -> dict[str, float]:
    """Bytes of keys and values that one token reads on each device of a full cache; of windows, what they see."""
    tokens = context.memory.tokens
    held: dict[str, float] = {}
    seen: dict[str, float] = {}
    for spec in context.caches:
        for name, dim in ((spec.key, spec.key_dim), (spec.value, spec.value_dim)):
            device = context.memory.cache_devices[name]
            held[device] = held.get(device, 0) + tokens * spec.heads * dim
            seen[device] = seen.get(device, 0) + min(tokens, spec.window or tokens) * spec.heads * dim
    reserved = -(-tokens // context.block_size) * context.block_size
    return {
        device: context.memory.devices[device].cache * tokens / reserved * seen[device] / held[device]
        for device in held if held[device]
    }  # fmt: skip


def _attended(context: Context) -> dict[str, float]:
    """Operations of attention on each device in a step of `context.chunk` tokens on an empty cache."""
    found: dict[str, float] = {}
    for spec in context.caches:
        device = context.memory.cache_devices[spec.key]
        window = min(spec.window or context.chunk, context.chunk)
        pairs = window * (window + 1) // 2 + (context.chunk - window) * window
        found[device] = found.get(device, 0) + 2.0 * spec.products * pairs
    return found


def _over(work: float, rate: float) -> float:
    """`work / rate`; no work takes no time, and what cannot be done takes for ever."""
    return 0.0 if work == 0 else work / rate if rate else math.inf


def _words(rate: float) -> str:
    return f"{rate:,.0f}" if rate >= 100 else f"{rate:.3g}"
