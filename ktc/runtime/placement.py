"""A placement: everything needed to run a compiled model but the bytes of its weights. `emit` makes it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

import torch
import torch.fx as fx

from ktc.dialect.cache_formats import DTYPES
from ktc.errors import ArtifactError, WeightError
from ktc.runtime.assembly import Assembly
from ktc.runtime.graph_json import from_json, to_json


@dataclass(frozen=True)
class WeightEntry:
    """One tensor to load; see `ktc.passes.context.WeightPlan` and `Store`.

    Attributes:
        name: its name in the graphs.
        assembly: the model's parameters it is made of, concatenated along rows and seen through views.
        shape: logical shape.
        format: number format at run time; `source_format` is that of what is read.
        device: name of a declared device.
        kernel: the kernel in whose layout it lies; None for an ordinary tensor.
        nbytes: bytes in that layout.
    """

    name: str
    assembly: Assembly
    shape: tuple[int, ...]
    format: str
    source_format: str
    device: str
    kernel: str | None
    nbytes: int

    @property
    def parameters(self) -> tuple[str, ...]:
        """The model's parameters it is made of, in order."""
        return self.assembly.parameters

    def to_json(self) -> dict[str, Any]:
        """Plain JSON."""
        return {**vars(self), "assembly": self.assembly.to_json(), "shape": list(self.shape)}

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> WeightEntry:
        """Reads what `to_json` wrote. Raises KeyError, TypeError, ValueError or WeightError for anything else."""
        assembly = Assembly.from_json(data["assembly"])
        return cls(**{**data, "assembly": assembly, "shape": tuple(data["shape"])})


@dataclass(frozen=True)
class CacheEntry:
    """One layer's KV cache: names and shape as in `CacheSpec`, dtype name, declared device."""

    layer: int
    key: str
    value: str
    heads: int
    key_dim: int
    value_dim: int
    window: int
    dtype: str
    device: str


@dataclass(frozen=True)
class PhaseEntry:
    """A phase that a rule declares: its condition as text, and the values of the names in it."""

    name: str
    condition: str
    values: Mapping[str, int | float | bool | str]


@dataclass
class Placement:
    """A compiled model.

    Attributes:
        kind: "language_model" or "module".
        graphs: one graph a phase; "step" serves every step that no other phase claims.
        phases: conditions of the declared phases, in the order they are tried.
        devices: torch device by declared name.
        io_device: where inputs arrive and outputs leave.
        weights, caches: see the entries.
        buffers: small constants of the model (and, in a module, submodules that stayed as they are), on the CPU;
            `buffer_devices` says which declared device reads each.
        tokens, block_size: size of the KV cache.
        chunk: most tokens of one prefill step.
        threads: most threads that CPU kernels use, where every CPU device declares some; None for all.
        nodes: NUMA nodes that CPU kernels and weights use, likewise.
        parameters: shape of every parameter of the model, to find it in a source.
        config: the configuration of the model, None for a module without one.
        output_spec: how a module's results are put together again.
        inputs: argument names.
    """

    kind: str
    graphs: dict[str, fx.Graph]
    phases: tuple[PhaseEntry, ...]
    devices: dict[str, str]
    io_device: str
    weights: tuple[WeightEntry, ...]
    caches: tuple[CacheEntry, ...]
    buffers: dict[str, Any]
    buffer_devices: dict[str, str]
    tokens: int
    block_size: int
    chunk: int
    parameters: dict[str, tuple[int, ...]]
    config: Any = None
    output_spec: Any = None
    inputs: tuple[str, ...] = ()
    threads: int | None = None
    nodes: int | None = None
    notes: dict[str, Any] = field(default_factory=dict)

    def on_cpu(self, node: fx.Node) -> bool:
        """Whether a node of a graph runs on a CPU."""
        home = self.devices[str(node.meta.get("device", self.io_device))]
        return torch.device(home).type == "cpu"

    def constants(self) -> dict[str, Any]:
        """The buffers on their devices."""
        return {
            name: value.to(self.devices[self.buffer_devices[name]]) for name, value in self.buffers.items()
        }

    def to_json(self) -> dict[str, Any]:
        """Plain JSON, without buffers and configuration, which have files of their own."""
        return {
            "kind": self.kind,
            "graphs": {name: to_json(graph) for name, graph in self.graphs.items()},
            "phases": [asdict(phase) for phase in self.phases],
            "devices": self.devices,
            "io_device": self.io_device,
            "weights": [weight.to_json() for weight in self.weights],
            "caches": [asdict(cache) for cache in self.caches],
            "buffer_devices": self.buffer_devices,
            "tokens": self.tokens,
            "block_size": self.block_size,
            "chunk": self.chunk,
            "parameters": {name: list(shape) for name, shape in self.parameters.items()},
            "inputs": list(self.inputs),
            "threads": self.threads,
            "nodes": self.nodes,
        }

    @classmethod
    def from_json(cls, data: Mapping[str, Any], buffers: dict[str, Any], config: Any) -> Placement:
        """Reads what `to_json` wrote. Raises ArtifactError for anything else."""
        try:
            found = cls(
                kind=data["kind"],
                graphs={name: from_json(records) for name, records in data["graphs"].items()},
                phases=tuple(PhaseEntry(**phase) for phase in data["phases"]),
                devices=dict(data["devices"]),
                io_device=data["io_device"],
                weights=tuple(WeightEntry.from_json(weight) for weight in data["weights"]),
                caches=tuple(CacheEntry(**cache) for cache in data["caches"]),
                buffers=buffers,
                buffer_devices=dict(data["buffer_devices"]),
                tokens=int(data["tokens"]),
                block_size=int(data["block_size"]),
                chunk=int(data["chunk"]),
                parameters={name: tuple(shape) for name, shape in data["parameters"].items()},
                config=config,
                inputs=tuple(data["inputs"]),
                threads=data.get("threads"),
                nodes=data.get("nodes"),
            )
            found._check()
        except (KeyError, TypeError, ValueError, AttributeError, RuntimeError, WeightError) as error:
            raise ArtifactError(
                f"the plan of the artifact cannot be read: {error!r}", hint="compile again"
            ) from error
        return found

    def _check(self) -> None:
        """Raises ValueError when its parts do not belong together, so that loading fails before it starts."""
        for name, home in self.devices.items():
            torch.device(home)
            if not isinstance(name, str):
                raise ValueError(f"{name!r} is no name of a device")
        used = {
            *(w.device for w in self.weights),
            *(c.device for c in self.caches),
            *self.buffer_devices.values(),
        }
        unknown = {self.io_device, *used} - self.devices.keys()
        if unknown:
            raise ValueError(f"it names devices that it does not declare: {sorted(unknown)}")
        if min(self.tokens, self.block_size, self.chunk) < 1:
            raise ValueError("a size of the KV cache or of a step is not above 0")
        if self.kind != "language_model" or "step" not in self.graphs or "logits_index" not in self.inputs:
            raise ValueError("it is not the plan of a language model")
        for cache in self.caches:
            if cache.dtype not in DTYPES or min(cache.heads, cache.key_dim, cache.value_dim) < 1:
                raise ValueError(f"the KV cache of layer {cache.layer} has no possible type or size")
        known = {w.name for w in self.weights} | {n for c in self.caches for n in (c.key, c.value)}
        known |= self.buffers.keys() & self.buffer_devices.keys()
        for name, graph in self.graphs.items():
            if sum(node.op == "output" for node in graph.nodes) != 1:
                raise ValueError(f"the graph {name!r} has no output")
            missing = {str(node.target) for node in graph.nodes if node.op == "get_attr"} - known
            if missing:
                raise ValueError(f"the graph {name!r} reads what is not there: {sorted(missing)[:3]}")
            if tuple(str(node.target) for node in graph.nodes if node.op == "placeholder") != self.inputs:
                raise ValueError(f"the graph {name!r} takes other inputs than the plan says")
