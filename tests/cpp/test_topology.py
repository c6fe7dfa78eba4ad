"""The machine's topology, read from copies of /proc and /sys of machines that are made up."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from support.fake_machines import TWO_SOCKETS, FakeMachine

from ktc import _cpu

Found = tuple[list[int], list[list[list[int]]], float, int, str]


def found(machine: FakeMachine, root: Path, wanted: str = "") -> Found:
    return _cpu.topology(machine.write(root), wanted)


def test_two_sockets_with_smt(tmp_path: Path) -> None:
    nodes, cores, quota, threads, why = found(TWO_SOCKETS, tmp_path)
    assert nodes == [0, 1]
    assert cores == [[[0, 8], [1, 9], [2, 10], [3, 11]], [[4, 12], [5, 13], [6, 14], [7, 15]]]
    assert (quota, threads, why) == (0, 8, "one a physical core")


def test_cores_are_ordered_by_node_where_numbers_alternate(tmp_path: Path) -> None:
    machine = FakeMachine(cores=(((0,), (2,), (4,)), ((1,), (3,), (5,))))
    assert found(machine, tmp_path)[1] == [[[0], [2], [4]], [[1], [3], [5]]]


def test_cpus_that_are_off_are_left_out(tmp_path: Path) -> None:
    machine = replace(TWO_SOCKETS, online="0-5,8-13")
    _, cores, _, threads, _ = found(machine, tmp_path)
    assert cores == [[[0, 8], [1, 9], [2, 10], [3, 11]], [[4, 12], [5, 13]]]
    assert threads == 6


def test_a_cpuset_leaves_some_cpus(tmp_path: Path) -> None:
    nodes, cores, _, threads, _ = found(replace(TWO_SOCKETS, allowed="2-4,8,10"), tmp_path)
    assert (nodes, cores, threads) == ([0, 1], [[[2, 10], [3], [8]], [[4]]], 4)


def test_a_cpuset_within_one_node_leaves_one_node(tmp_path: Path) -> None:
    nodes, cores, _, threads, _ = found(replace(TWO_SOCKETS, allowed="4-7"), tmp_path)
    assert (nodes, cores, threads) == ([1], [[[4], [5], [6], [7]]], 4)


def test_memory_of_one_node_alone_makes_one_node(tmp_path: Path) -> None:
    nodes, cores, _, threads, _ = found(replace(TWO_SOCKETS, mems_allowed="1"), tmp_path)
    assert (nodes, threads) == ([1], 8)
    assert [core[0] for core in cores[0]] == list(range(8))


def test_cores_without_memory_belong_to_the_nearest_node(tmp_path: Path) -> None:
    machine = FakeMachine(
        cores=(((0,), (1,)), ((2,), (3,)), ((4,), (5,))),
        memory=(0, 2),
        distances=((10, 30, 40), (30, 10, 12), (40, 12, 10)),
    )
    nodes, cores, _, _, _ = found(machine, tmp_path)
    assert (nodes, cores) == ([0, 2], [[[0], [1]], [[2], [3], [4], [5]]])


def test_memory_without_cores_is_no_node_of_ours(tmp_path: Path) -> None:
    """A node of memory alone (CXL, a GPU's): nobody would read it as its own."""
    nodes, cores, _, _, _ = found(FakeMachine(cores=(((0,), (1,)), ())), tmp_path)
    assert (nodes, cores) == ([0], [[[0], [1]]])


def test_older_kernels_do_not_list_nodes_with_memory(tmp_path: Path) -> None:
    assert found(replace(TWO_SOCKETS, memory=()), tmp_path)[0] == [0, 1]


def test_without_nodes_or_topology_every_cpu_is_a_core(tmp_path: Path) -> None:
    nodes, cores, _, threads, _ = found(replace(TWO_SOCKETS, nodes=False), tmp_path / "a")
    assert (nodes, threads) == ([0], 8)
    nodes, cores, _, threads, _ = found(replace(TWO_SOCKETS, nodes=False, topology=False), tmp_path / "b")
    assert (nodes, cores, threads) == ([0], [[[cpu] for cpu in range(16)]], 16)


def test_an_empty_folder_is_one_core(tmp_path: Path) -> None:
    assert _cpu.topology(str(tmp_path)) == ([0], [[[0]]], 0, 1, "one a physical core")


@pytest.mark.parametrize(
    ("files", "groups", "quota", "threads"),
    [
        ({"sys/fs/cgroup/a/b/cpu.max": "max 100000\n"}, "0::/a/b\n", 0, 8),
        ({"sys/fs/cgroup/a/b/cpu.max": "350000 100000\n"}, "0::/a/b\n", 3.5, 3),
        (
            {"sys/fs/cgroup/a/cpu.max": "200000 100000\n", "sys/fs/cgroup/a/b/cpu.max": "350000 100000\n"},
            "0::/a/b\n", 2, 2,
        ),
        ({"sys/fs/cgroup/cpu.max": "50000 100000\n"}, "0::/gone\n", 0.5, 1),
        ({"sys/fs/cgroup/cpu.max": "3200000 100000\n"}, "0::/\n", 32, 8),
        (
            {"sys/fs/cgroup/cpu,cpuacct/x/cpu.cfs_quota_us": "400000\n",
             "sys/fs/cgroup/cpu,cpuacct/x/cpu.cfs_period_us": "100000\n"},
            "5:memory:/y\n4:cpu,cpuacct:/x\n", 4, 4,
        ),
        (
            {"sys/fs/cgroup/cpu/x/cpu.cfs_quota_us": "-1\n", "sys/fs/cgroup/cpu/x/cpu.cfs_period_us": "100000\n"},
            "4:cpu,cpuacct:/x\n", 0, 8,
        ),
        ({"sys/fs/cgroup/cpu.max": "nonsense\n"}, "no colon\n0::/\n", 0, 8),
    ],
)  # fmt: skip
def test_quotas_of_control_groups(
    tmp_path: Path, files: dict[str, str], groups: str, quota: float, threads: int
) -> None:
    _, _, seen, count, why = found(replace(TWO_SOCKETS, files=files, groups=groups), tmp_path)
    assert (seen, count) == (quota, threads)
    assert ("control group" in why) == (threads < 8)


@pytest.mark.parametrize(
    ("wanted", "threads", "why"),
    [
        ("3", 3, "KTC_THREADS"),
        ("12", 12, "KTC_THREADS"),
        ("99", 16, "KTC_THREADS asks for 99, and there are 16 CPUs"),
        ("0", 8, "one a physical core; KTC_THREADS is ignored, since '0' is no number of threads"),
        ("4x", 8, "one a physical core; KTC_THREADS is ignored, since '4x' is no number of threads"),
    ],
)
def test_what_the_environment_asks_for(tmp_path: Path, wanted: str, threads: int, why: str) -> None:
    assert found(TWO_SOCKETS, tmp_path, wanted)[3:] == (threads, why)


@pytest.mark.parametrize("damage", ["0-", "-3", "3-1", "a", "0-99999999999", "0;1"])
def test_damaged_lists_are_no_lists(tmp_path: Path, damage: str) -> None:
    """The CPUs that are online stand in for an affinity mask that cannot be read, and the other way round."""
    assert found(replace(TWO_SOCKETS, allowed=damage), tmp_path / "a")[3] == 8
    assert found(replace(TWO_SOCKETS, online=damage), tmp_path / "b")[3] == 8


def test_this_machine() -> None:
    nodes, cores, quota, threads, why = _cpu.topology()
    assert len(nodes) == len(cores) and sum(map(len, cores)) == _cpu.physical_cores()
    assert quota >= 0 and threads >= 1 and why
