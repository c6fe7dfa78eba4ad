"""Checked rules: what the compiler reads of a program once includes are merged and parameters are set."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from ktc.grammar import tree
from ktc.grammar.evaluate import Deferred
from ktc.grammar.functions import BUILTINS
from ktc.grammar.tree import Span
from ktc.grammar.values import DeviceGroup, DeviceRef, Value


@dataclass(frozen=True, slots=True)
class ParamValue:
    """A parameter's value, and whether `-D` (or `params=`) gave it."""

    name: str
    type: str
    value: Value
    help: str
    span: Span
    given: bool = False


@dataclass(frozen=True, slots=True)
class DeviceDecl:
    """A declared device or group of devices.

    Attributes:
        hardware: "cpu", "cuda", "xpu", "npu" or "mps".
        first: number of the (first) device, None when not written.
        last: number of the group's last device; None for a single device.
        memory: budget of each member in bytes; None for what the hardware reports.
        reserve: bytes of it that the plan must leave free.
        threads: threads that its kernels may use; None for all.
        numa: how many NUMA nodes its kernels and weights use, the first ones; None for all.
        options: every option as evaluated, those above included.
    """

    name: str
    hardware: str
    first: int | None
    last: int | None
    memory: int | None
    reserve: int
    threads: int | None
    numa: int | None
    options: Mapping[str, Value]
    span: Span

    @property
    def value(self) -> DeviceRef | DeviceGroup:
        """What the device's name stands for in an expression."""
        if self.last is None:
            return DeviceRef(self.name)
        return DeviceGroup(self.name, self.members)

    @property
    def members(self) -> tuple[DeviceRef, ...]:
        """The single devices: the device itself, or those of the group in order."""
        if self.last is None:
            return (DeviceRef(self.name),)
        return tuple(DeviceRef(self.name, i) for i in range(self.last - (self.first or 0) + 1))


@dataclass(frozen=True)
class Rules:
    """A whole program, includes merged in order.

    Attributes:
        path: the main file, "<text>" for a text.
        sources: every file's text by the path that spans name.
        files: the parsed files in the order of their first inclusion, the main file last.
        lets: names for values and for sets of modules (`sets` has only those).
        phases: declared phases; `prefill` and `decode` are built in and not listed.
    """

    path: str
    sources: Mapping[str, str]
    files: tuple[tree.File, ...] = ()
    model: tree.Model | None = None
    params: Mapping[str, ParamValue] = field(default_factory=dict)
    devices: Mapping[str, DeviceDecl] = field(default_factory=dict)
    phases: Mapping[str, tree.Phase] = field(default_factory=dict)
    lets: Mapping[str, tree.Let] = field(default_factory=dict)
    imports: tuple[tree.Import, ...] = ()
    rules: tuple[tree.Rule, ...] = ()
    rewrites: tuple[tree.Rewrite, ...] = ()
    asserts: tuple[tree.Assert, ...] = ()

    @property
    def sets(self) -> dict[str, tree.Selector]:
        """What `@name` stands for."""
        return {name: let.selector for name, let in self.lets.items() if let.selector is not None}

    def values(self, *, layers: int | None = None, config: object = None) -> dict[str, object]:
        """What every expression of the program sees: functions, parameters, devices, `let`s.

        A fresh dictionary for `evaluate`; add names as needed. `layers` and `config` are in it when given.
        """
        env: dict[str, object] = dict(BUILTINS)
        env["cores"] = self._cores
        env.update({name: param.value for name, param in self.params.items()})
        env.update({name: device.value for name, device in self.devices.items()})
        env.update({name: Deferred(let.value) for name, let in self.lets.items() if let.value is not None})
        if layers is not None:
            env["layers"] = layers
        if config is not None:
            env["config"] = config
        return env

    def _cores(self, device: object) -> int:
        """`cores(device)`: the threads that a CPU device may use on this machine."""
        if not isinstance(device, DeviceRef):
            raise ValueError("takes one device")
        declared = self.devices[device.name]
        if declared.hardware != "cpu":
            raise ValueError(f"`{device}` is no CPU")
        return declared.threads or default_threads(declared.numa)


def default_threads(nodes: int | None = None) -> int:
    """Threads of the kernels on this machine: physical cores, fewer by a quota or on the first `nodes` NUMA nodes."""
    from ktc import _cpu  # here, as a program that never asks needs no kernels

    _, cores, _, threads, _ = _cpu.topology()
    return min(threads, sum(map(len, cores[:nodes])))
