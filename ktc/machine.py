"""What this machine has and what it can do at most: looked up, measured on request, and kept between runs.

The cost model and `ktc bench` divide by the measured limits. They are kept in the user's cache folder under a key of
the processor, the cores this process may use and the kernels' instruction set, so that a changed machine measures anew.
"""

from __future__ import annotations

import datetime
import hashlib
import json
import os
import platform
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from ktc import _cpu
from ktc.errors import KtcError

STREAMS = (1, 2, 4, 8, 16)
KINDS = ("int8", "bf16", "f32")
_REGION = 1 << 30
"""Bytes that are read when bandwidth is measured: beyond every cache that we know."""


@dataclass(frozen=True)
class Measured:
    """The limits at one number of threads.

    Attributes:
        threads: of the kernels' pool.
        bandwidth: bytes read a second from memory, the best of the numbers of streams tried.
        streams: places that each thread read at a time for that.
        int8, bf16, f32: operations a second (a multiply-add is two); 0 without such an instruction.
    """

    threads: int
    bandwidth: float
    streams: int
    int8: float
    bf16: float
    f32: float


@dataclass(frozen=True)
class Limits:
    """What was measured on a machine.

    Attributes:
        key: of the machine; see `key`.
        when: UTC, ISO 8601.
        huge_pages: share of the region that lay on 2 MiB pages.
        runs: one for each number of threads, ascending.
    """

    key: str
    when: str
    huge_pages: float
    runs: tuple[Measured, ...]

    def at(self, threads: int) -> Measured:
        """The run with that many threads, or the nearest below it, else the first."""
        return max(
            (r for r in self.runs if r.threads <= threads), key=lambda r: r.threads, default=self.runs[0]
        )


def processor() -> str:
    """The processor's name, as the system gives it."""
    try:
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()


def key() -> str:
    """A short name for this machine as kernels see it: processor, usable cores, default threads, instruction set."""
    facts = (processor(), str(len(os.sched_getaffinity(0))), str(_cpu.physical_cores()), _cpu.isa())
    return hashlib.sha256("\n".join(facts).encode()).hexdigest()[:16]


def measure(
    seconds: float = 0.4, region: int = _REGION, progress: Callable[[str], None] = lambda stage: None
) -> Limits:
    """Measures this machine with one thread and with all that kernels would use.

    Args:
        seconds: for each figure. region: bytes to read. progress: gets a line for each step.

    Raises:
        KtcError: less free memory than the region needs.
    """
    import torch

    free = available_memory()
    if free is not None and free < region + (64 << 20):
        raise KtcError(
            f"measuring needs {region >> 20} MiB of free memory, and {free >> 20} MiB are there",
            hint="close other programs",
        )
    arena = _cpu.Arena(region)
    data = torch.frombuffer(arena.allocate(region), dtype=torch.uint8)
    data.fill_(1)
    arena.seal()
    before = _cpu.threads()
    runs = []
    try:
        for threads in sorted({1, before}):
            _cpu.set_threads(threads)
            rates = {}
            for streams in STREAMS:
                progress(f"memory, {threads} threads, {streams} streams each")
                rates[streams] = _cpu.read_bandwidth(data.data_ptr(), region, streams, seconds)
            best = max(rates, key=lambda streams: rates[streams])
            figures = {}
            for kind in KINDS:
                progress(f"{kind}, {threads} threads")
                figures[kind] = _cpu.operations(kind, seconds)
            runs.append(Measured(threads, rates[best], best, **figures))
    finally:
        _cpu.set_threads(before)
    when = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
    return Limits(key(), when, arena.huge_bytes() / region, tuple(runs))


def cache_file() -> Path:
    """Where measured limits are kept: `ktc/limits.json` in XDG_CACHE_HOME, or in ~/.cache."""
    base = os.environ.get("XDG_CACHE_HOME")
    return (Path(base) if base else Path.home() / ".cache") / "ktc" / "limits.json"


def save(limits: Limits) -> Path:
    """Keeps limits for later runs, beside those of other machines that share the folder. Returns the file."""
    path = cache_file()
    path.parent.mkdir(parents=True, exist_ok=True)
    known = _read(path)
    known[limits.key] = asdict(limits)
    scratch = path.with_suffix(f".{os.getpid()}.tmp")
    scratch.write_text(json.dumps(known, indent=2), encoding="utf-8")
    scratch.replace(path)
    return path


def cached() -> Limits | None:
    """The limits that were measured on this machine, or None."""
    entry = _read(cache_file()).get(key())
    if entry is None:
        return None
    try:
        runs = tuple(Measured(**run) for run in entry["runs"])
        return (
            Limits(str(entry["key"]), str(entry["when"]), float(entry["huge_pages"]), runs) if runs else None
        )
    except (KeyError, TypeError, ValueError):
        return None  # written by another version


def _read(path: Path) -> dict[str, dict[str, Any]]:
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def huge_pages_obtained(nbytes: int = 16 << 20) -> float | None:
    """Share of an arena of that size that lies on 2 MiB pages once it is written and sealed, as weights are.

    None where the system does not tell, or has not the memory.
    """
    if not Path("/proc/self/smaps").exists():
        return None
    try:
        arena = _cpu.Arena(nbytes)
        arena.allocate(nbytes)[:] = 1
    except MemoryError:
        return None
    arena.seal()
    return arena.huge_bytes() / arena.capacity


def available_memory(root: Path = Path("/")) -> int | None:
    """Bytes that this process can still take without swapping; None where the system does not say.

    The least of what the machine has available (Linux: MemAvailable) and what the control groups of either version
    leave; files that a group has cached and does not use give way, so they count as free.

    Args:
        root: the folder that has `proc` and `sys`.
    """
    from ktc.devices import host_memory

    found = [_group_leaves(folder) for folder in _memory_groups(root)]
    try:
        lines = (root / "proc/meminfo").read_text(encoding="ascii").splitlines()
        found += [1024 * int(line.split()[1]) for line in lines if line.startswith("MemAvailable:")]
    except (OSError, ValueError, IndexError):
        found.append(host_memory())
    return min((nbytes for nbytes in found if nbytes is not None), default=None)


def _memory_groups(root: Path) -> list[Path]:
    """The folders of the control groups that may limit memory: this process's and those above it."""
    try:
        lines = (root / "proc/self/cgroup").read_text(encoding="utf-8").splitlines()
    except OSError:
        return []
    found = []
    for line in lines:
        _, controllers, path = [*line.split(":", 2), "", ""][:3]
        if controllers and "memory" not in controllers.split(","):
            continue
        mount = root / "sys/fs/cgroup" / ("memory" if controllers else "")
        group = mount / path.strip("/")
        found += [mount, *(folder for folder in (group, *group.parents) if mount in folder.parents)]
    return found


def _group_leaves(folder: Path) -> int | None:
    """Bytes that a control group leaves; None without a limit."""
    for limit, usage, cached in (
        ("memory.max", "memory.current", "inactive_file"),
        ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"),
    ):
        try:
            most = (folder / limit).read_text(encoding="ascii").strip()
            if not most.isdecimal():
                continue
            used = int((folder / usage).read_text(encoding="ascii"))
            stat = dict(
                line.split() for line in (folder / "memory.stat").read_text(encoding="ascii").splitlines()
            )
            return max(0, int(most) - used + int(stat.get(cached, 0)))
        except (OSError, ValueError):
            continue
    return None
