"""Declared devices as they stand on this machine: which hardware there is, and how much memory it reports."""

from __future__ import annotations

import os
from difflib import get_close_matches
from pathlib import Path

import torch

from ktc.grammar.diagnostics import Diagnostic, Fix, KtError, Label
from ktc.grammar.rules import DeviceDecl, Rules
from ktc.grammar.values import DeviceRef
from ktc.passes.context import DeviceSpec

SUPPORTED = ("cpu", "cuda")


def resolve(rules: Rules, *, planning: bool) -> dict[str, DeviceSpec]:
    """Every declared device by name (`host`, `gpus[0]`).

    Args:
        rules: the program.
        planning: nothing will run here, so hardware that is absent is taken as declared.

    Raises:
        KtError: KT302 for hardware that is not here, or that no backend serves. A member of a group may be absent as
            long as nothing is placed on it, which the pass `check` sees to.
    """
    found: dict[str, DeviceSpec] = {}
    problems: list[Diagnostic] = []
    for declared in rules.devices.values():
        for index, ref in enumerate(declared.members):
            spec = _resolve(declared, ref, index, planning, problems)
            if spec is not None:
                found[str(ref)] = spec
    if not rules.devices:
        problems.append(
            Diagnostic("KT302", "the file declares no device", (), (), (Fix("add `device host = cpu`"),))
        )
    if problems:
        raise KtError(problems)
    return found


def _resolve(
    declared: DeviceDecl, ref: DeviceRef, index: int, planning: bool, problems: list[Diagnostic]
) -> DeviceSpec | None:
    label = (Label(declared.span),)
    if declared.hardware not in SUPPORTED:
        near = get_close_matches(declared.hardware, SUPPORTED, 1) or ["cpu"]
        note = f"hardware with kernels: {', '.join(SUPPORTED)}"
        message = f"ktc has no kernels for {declared.hardware} devices"
        problems.append(Diagnostic("KT302", message, label, (note,), (Fix(f"write `{near[0]}`"),)))
        return None
    number, absent = (declared.first or 0) + index, False
    if declared.hardware == "cpu":
        memory = declared.memory if declared.memory is not None else host_memory()
        device = torch.device("cpu")
    else:
        device = torch.device(declared.hardware, number)
        present = torch.cuda.is_available() and number < torch.cuda.device_count()
        if not present and not planning and declared.last is None:
            note = "`ktc plan --no-weights` plans for hardware that is elsewhere"
            problems.append(Diagnostic("KT302", f"there is no cuda:{number} on this machine", label, (note,)))
            return None
        memory, absent = declared.memory, not present and not planning
        if memory is None and present:
            memory = int(torch.cuda.get_device_properties(number).total_memory)
    return DeviceSpec(
        ref,
        device,
        memory,
        declared.reserve,
        declared.memory is not None,
        declared.threads,
        declared.numa,
        absent,
    )


def host_memory() -> int | None:
    """Bytes of memory that this process may use: the machine's, or its control group's limit if lower."""
    total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    for path in (Path("/sys/fs/cgroup/memory.max"), Path("/sys/fs/cgroup/memory/memory.limit_in_bytes")):
        try:
            limit = path.read_text(encoding="ascii").strip()
        except OSError:
            continue
        if limit.isdecimal():
            total = min(total, int(limit))
    return total if total > 0 else None
