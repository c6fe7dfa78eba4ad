"""Copies of /proc and /sys of machines that are not there: cores, SMT siblings, NUMA nodes, control groups."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path


@dataclass(frozen=True)
class FakeMachine:
    """What is written.

    Attributes:
        cores: for every NUMA node, the logical CPUs of its cores.
        memory: nodes with memory; None for all. The file of older kernels that lists them is left out for ().
        allowed, mems_allowed: what the affinity mask and cpuset.mems leave, as lists; None for all.
        online: CPUs that are switched on; None for all.
        distances: rows of the nodes' table; None for 10 at home and 20 away.
        groups: lines of /proc/self/cgroup.
        files: further files, by path.
        nodes: whether /sys/devices/system/node exists.
        topology: whether CPUs have topology folders.
    """

    cores: Sequence[Sequence[Sequence[int]]]
    memory: Sequence[int] | None = None
    allowed: str | None = None
    mems_allowed: str | None = None
    online: str | None = None
    distances: Sequence[Sequence[int]] | None = None
    groups: str = "0::/\n"
    files: Mapping[str, str] = field(default_factory=dict)
    nodes: bool = True
    topology: bool = True

    def write(self, root: Path) -> str:
        """Writes the files below a folder and returns it, as the pool takes it."""
        count = len(self.cores)
        cpus = sorted(cpu for node in self.cores for core in node for cpu in core)
        files: dict[str, str] = {
            "proc/self/status": f"Name:\tpython\nCpus_allowed_list:\t{self.allowed or _list(cpus)}\n"
            f"Mems_allowed_list:\t{self.mems_allowed or _list(range(count))}\n",
            "proc/self/cgroup": self.groups,
            "sys/devices/system/cpu/online": f"{self.online or _list(cpus)}\n",
        }
        for package, node in enumerate(self.cores):
            for number, core in enumerate(node):
                for cpu in core if self.topology else ():
                    folder = f"sys/devices/system/cpu/cpu{cpu}/topology"
                    files[f"{folder}/core_id"] = f"{number}\n"
                    files[f"{folder}/physical_package_id"] = f"{package}\n"
        if self.nodes:
            base = "sys/devices/system/node"
            files[f"{base}/online"] = f"{_list(range(count))}\n"
            if self.memory != ():
                files[f"{base}/has_memory"] = (
                    f"{_list(range(count) if self.memory is None else self.memory)}\n"
                )
            for number, node in enumerate(self.cores):
                row = (
                    self.distances[number]
                    if self.distances
                    else [10 if n == number else 20 for n in range(count)]
                )
                files[f"{base}/node{number}/cpulist"] = f"{_list(cpu for core in node for cpu in core)}\n"
                files[f"{base}/node{number}/distance"] = f"{' '.join(map(str, row))}\n"
        for name, text in {**files, **self.files}.items():
            path = root / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text, encoding="ascii")
        return str(root)


def _list(numbers: object) -> str:
    return ",".join(map(str, numbers))  # type: ignore[call-overload]


TWO_SOCKETS = FakeMachine(cores=(
    tuple((cpu, cpu + 8) for cpu in range(4)), tuple((cpu, cpu + 8) for cpu in range(4, 8)),
))  # fmt: skip
"""Two nodes of four cores with two hardware threads each; the second threads are CPUs 8 to 15, as in Linux."""
