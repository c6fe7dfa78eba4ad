"""What the passes share: the program's rules, the model's sites, devices, weight plans and decisions."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from ktc.grammar.diagnostics import Diagnostic, KtError, Label
from ktc.grammar.evaluate import EvaluationError
from ktc.grammar.sites import Site
from ktc.grammar.tree import Span
from ktc.grammar.values import DeviceGroup, DeviceRef, Value

from ktc.events import EventStream

if TYPE_CHECKING:
    from ktc.backends.registry import Kernel
    from ktc.grammar.rules import Rules

    from ktc.capture import CacheSpec, Captured
    from ktc.runtime.assembly import Assembly
    from ktc.weights.source import Binding, Recipe, WeightSource


@dataclass(frozen=True)
class Write:
    """One value that one rule gave to one attribute of a site, and what it replaced.

    Attributes:
        kind: "place", "quant", "kernel" or "cache".
        value: the evaluated value.
        rule: the rule's name and `order`, its position among the rules.
        phase: the phase of the `on` block it stood in, or None.
        span: where the action is written.
        site: the site the rule matched (an ancestor, for what covers everything inside).
        overridden: the write that this one took precedence over.
    """

    kind: str
    value: Value
    rule: str
    order: int
    phase: str | None
    span: Span
    site: str
    overridden: Write | None = None


@dataclass(frozen=True)
class DeviceSpec:
    """A declared device as it stands on this machine.

    Attributes:
        ref: the declared name (and index in a group).
        torch_device: where its tensors live.
        memory: budget in bytes, or None when the hardware reports none (an absent device, planned only).
        reserve: bytes of it that stay free.
        declared: whether the file gave the budget.
        threads: most threads that its kernels use; None for all.
        nodes: how many NUMA nodes a CPU's threads and weights use; None for all.
        absent: whether it is not on this machine, so that nothing may be placed on it.
    """

    ref: DeviceRef
    torch_device: torch.device
    memory: int | None
    reserve: int = 0
    declared: bool = False
    threads: int | None = None
    nodes: int | None = None
    absent: bool = False

    @property
    def hardware(self) -> str:
        """The device's kind: "cpu" or "cuda"."""
        return self.torch_device.type


@dataclass
class WeightPlan:
    """How one weight operand gets from its file to a device.

    Attributes:
        name: the tensor's name in the placed graph: the parameter's, or that of a merge of several.
        assembly: the model's parameters it is made of, concatenated along rows and seen through views.
        shape: logical shape.
        source_format: number format of what the recipe reads: the file's, or float32 where a view needs elements.
        format: number format at run time.
        recipe: where the bytes come from; None when the compiler runs without weights.
        share: how much of it one token reads: k of E experts, one row of an embedding, else 1.
        stores: the copies that kernels read, by (device, layout).
    """

    name: str
    assembly: Assembly
    shape: tuple[int, ...]
    source_format: str
    format: str
    recipe: Recipe | None = None
    share: float = 1.0
    stores: dict[tuple[str, str], Store] = field(default_factory=dict)

    @property
    def parameters(self) -> tuple[str, ...]:
        """The model's parameters it is made of, in order."""
        return self.assembly.parameters


@dataclass
class Store:
    """One copy of a weight on one device in one layout; `kernel` knows how to pack it."""

    name: str
    device: str
    layout: str
    nbytes: int
    kernel: Kernel | None


@dataclass
class Context:
    """The state that passes read and add to; each field names the pass that fills it."""

    rules: Rules
    captured: Captured
    sites: Mapping[str, Site]
    config: Any
    devices: Mapping[str, DeviceSpec]
    io_device: str
    dtype: torch.dtype
    shapes: Mapping[str, tuple[int, ...]] = field(default_factory=dict)
    source: WeightSource | None = None
    binding: Binding | None = None
    events: EventStream = field(default_factory=EventStream)
    warnings: list[Diagnostic] = field(default_factory=list)
    chunk: int = 512
    block_size: int = 32
    attributes: dict[str, dict[tuple[str, str | None], Write]] = field(default_factory=dict)  # bind
    matches: dict[str, tuple[str, ...]] = field(default_factory=dict)  # bind: rule -> sites
    caches: tuple[CacheSpec, ...] = ()  # as captured until `caches` reads them off the rewritten graph
    weights: dict[str, WeightPlan] = field(default_factory=dict)  # quantize
    phases: dict[str, torch.fx.GraphModule] = field(default_factory=dict)  # specialize
    memory: Any = None  # plan_memory

    def __post_init__(self) -> None:
        self.caches = self.caches or self.captured.caches

    @property
    def parameters(self) -> Iterable[str]:
        """Names of all parameters of the model."""
        return self.shapes.keys()

    @property
    def layers(self) -> int:
        """Number of decoder layers."""
        indices = [site.layer for site in self.sites.values() if site.layer is not None]
        return max(indices) + 1 if indices else 0

    def env(self) -> dict[str, Any]:
        """What every expression of the program sees: parameters, `let`s, devices, `layers`, `config`, functions."""
        return self.rules.values(layers=self.layers, config=self.config) | self.device_functions()

    def device_functions(self) -> dict[str, Any]:
        """`memory(device)`: the budget, known before anything is planned."""

        def members(value: object) -> list[DeviceSpec]:
            refs = value.members if isinstance(value, DeviceGroup) else (value,)
            return [self.devices[str(ref)] for ref in refs]

        def memory(value: object) -> int | list[int]:
            budgets = []
            for device in members(value):
                if device.memory is None:
                    raise ValueError(f"`{device.ref}` is not on this machine: write its `memory`")
                budgets.append(device.memory - device.reserve)
            return budgets if isinstance(value, DeviceGroup) else budgets[0]

        return {"memory": memory}

    @property
    def phase_names(self) -> tuple[str, ...]:
        """The phases that some rule distinguishes, in the file's order; "step" is every other step."""
        used = {phase for writes in self.attributes.values() for _, phase in writes if phase is not None}
        ordered = [name for name in self.rules.phases if name in used]
        return (*ordered, *(name for name in ("prefill", "decode") if name in used and name not in ordered))

    def attribute(self, site: str, kind: str, phase: str | None = None) -> Write | None:
        """The write that decides `kind` at `site` in `phase`, or None if no rule speaks of it."""
        writes = self.attributes.get(site, {})
        return writes.get((kind, phase)) or writes.get((kind, None))

    def place_of(self, site: str, phase: str | None = None) -> str | None:
        """Name of the device that `site` runs on, or None when it is unplaced."""
        write = self.attribute(site, "place", phase)
        return None if write is None else str(write.value)

    def owner(self, parameter: str) -> str:
        """The site that a parameter belongs to."""
        return parameter.rpartition(".")[0]


def fail(*diagnostics: Diagnostic) -> KtError:
    """An error to raise from a pass; several diagnostics can travel together."""
    return KtError(diagnostics)


def no_value(error: EvaluationError, *notes: str) -> Diagnostic:
    """The diagnostic for an expression that has no value where it is needed."""
    return Diagnostic(
        "KT109", error.message, (Label(error.span),), (*notes, *((error.hint,) if error.hint else ()))
    )


def raise_all(diagnostics: Iterable[Diagnostic]) -> None:
    """Raises a KtError carrying every diagnostic given, if there is any."""
    found = tuple(diagnostics)
    if found:
        raise KtError(found)
