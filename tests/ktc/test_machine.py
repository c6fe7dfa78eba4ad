"""Measured limits are kept for the machine they were measured on; `ktc doctor` shows them."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from ktc import _cpu, machine
from ktc.cli import main
from ktc.devices import host_memory
from ktc.errors import KtcError
from ktc.machine import Limits, Measured

SMALL = 8 << 20


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    return tmp_path


def test_measured_saved_and_found_again() -> None:
    assert machine.cached() is None
    before = _cpu.threads()
    limits = machine.measure(seconds=0.002, region=SMALL)
    assert _cpu.threads() == before
    assert [run.threads for run in limits.runs] == sorted({1, before})
    assert all(run.bandwidth > 1e8 and run.int8 > 1e8 and run.f32 > 1e8 for run in limits.runs)
    assert 0 <= limits.huge_pages <= 1
    machine.save(limits)
    assert machine.cached() == limits


def test_limits_of_another_machine_are_not_taken(cache: Path) -> None:
    limits = Limits("another", "2026-01-01T00:00:00+00:00", 0.0, (Measured(1, 1e9, 1, 1e9, 0.0, 1e9),))
    path = machine.save(limits)
    assert machine.cached() is None
    machine.save(replace(limits, key=machine.key()))
    assert machine.cached() is not None
    assert set(json.loads(path.read_text())) == {"another", machine.key()}


@pytest.mark.parametrize("text", ["", "[]", "{", '{"KEY": {}}', '{"KEY": {"runs": [{"threads": 1}]}}'])
def test_a_damaged_cache_is_no_cache(text: str) -> None:
    path = machine.cache_file()
    path.parent.mkdir(parents=True)
    path.write_text(text.replace("KEY", machine.key()))
    assert machine.cached() is None


def test_the_run_for_a_number_of_threads() -> None:
    runs = tuple(Measured(threads, threads * 1e9, 1, 0.0, 0.0, 0.0) for threads in (2, 4))
    limits = Limits("k", "", 0.0, runs)
    assert [limits.at(threads).threads for threads in (1, 2, 3, 4, 9)] == [2, 2, 2, 4, 4]


def test_too_little_memory_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine, "available_memory", lambda: 1 << 20)
    with pytest.raises(KtcError, match="free memory"):
        machine.measure(seconds=0.001, region=SMALL)


MEMINFO = "MemTotal: 2000 kB\nMemAvailable: 1000 kB\n"


@pytest.mark.parametrize(
    ("files", "available"),
    [
        ({}, 1000 << 10),
        ({"proc/self/cgroup": "0::/\n", "sys/fs/cgroup/memory.max": "max\n"}, 1000 << 10),
        (  # a container's own group, mounted at the root
            {"proc/self/cgroup": "0::/\n", "sys/fs/cgroup/memory.max": "5000\n",
             "sys/fs/cgroup/memory.current": "3000\n", "sys/fs/cgroup/memory.stat": "anon 2000\ninactive_file 700\n"},
            2700,
        ),
        (  # the group above leaves less
            {"proc/self/cgroup": "0::/a/b\n",
             "sys/fs/cgroup/a/memory.max": "900\n", "sys/fs/cgroup/a/memory.current": "1000\n",
             "sys/fs/cgroup/a/memory.stat": "anon 1000\n", "sys/fs/cgroup/a/b/memory.max": "9000\n",
             "sys/fs/cgroup/a/b/memory.current": "1000\n", "sys/fs/cgroup/a/b/memory.stat": "anon 1000\n"},
            0,
        ),
        (
            {"proc/self/cgroup": "7:cpu:/x\n6:memory:/x\n", "sys/fs/cgroup/memory/x/memory.limit_in_bytes": "600000\n",
             "sys/fs/cgroup/memory/x/memory.usage_in_bytes": "200000\n",
             "sys/fs/cgroup/memory/x/memory.stat": "total_inactive_file 1\n"},
            400001,
        ),
        (  # without a limit, version 1 reports a very large one
            {"proc/self/cgroup": "6:memory:/\n", "sys/fs/cgroup/memory/memory.limit_in_bytes": f"{2**63 - 4096}\n",
             "sys/fs/cgroup/memory/memory.usage_in_bytes": "200000\n", "sys/fs/cgroup/memory/memory.stat": "x 1\n"},
            1000 << 10,
        ),
        ({"proc/self/cgroup": "nonsense\n", "sys/fs/cgroup/memory.max": "5000\n"}, 1000 << 10),
    ],
)  # fmt: skip
def test_available_memory_is_what_the_control_groups_leave(
    tmp_path: Path, files: dict[str, str], available: int
) -> None:
    for name, text in ({"proc/meminfo": MEMINFO} | files).items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    assert machine.available_memory(tmp_path) == available


def test_available_memory_without_proc_is_the_machines(tmp_path: Path) -> None:
    assert machine.available_memory(tmp_path) == host_memory()
    assert 0 < (machine.available_memory() or 0) <= (host_memory() or 0)


def test_doctor(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    assert main(["doctor", "--json"]) == 0
    data = json.loads(capsys.readouterr().out)
    assert data["threads"] == _cpu.threads() and data["isa"] in data["isa_levels"]
    assert (
        data["threads_why"] == _cpu.why_threads()
        and sum(data["numa_nodes"].values()) == data["physical_cores"]
    )
    assert data["huge_pages_obtained"] is None or 0 <= data["huge_pages_obtained"] <= 1
    assert data["limits"] is None and any("--measure" in line for line in data["advice"])

    small = machine.measure(seconds=0.002, region=SMALL)
    monkeypatch.setattr(machine, "measure", lambda **_: small)
    assert main(["doctor", "--measure"]) == 0
    shown = capsys.readouterr().out
    assert _cpu.why_threads() in shown and "huge pages" in shown
    assert "GB/s" in shown and "TOPS" in shown and not any("--measure" in line for line in shown.splitlines())
    assert main(["doctor", "--json"]) == 0
    assert len(json.loads(capsys.readouterr().out)["limits"]["runs"]) == len(small.runs)


@pytest.mark.parametrize(
    ("changes", "line"),
    [
        ({"huge_pages_obtained": 0.2}, "only 20% of a test allocation lay on 2 MiB pages"),
        ({"huge_pages": "never", "huge_pages_obtained": 0.0}, "transparent huge pages are off"),
        ({"threads": 1, "physical_cores": 4, "threads_why": "KTC_THREADS"}, "1 of 4 cores: KTC_THREADS"),
        ({"numa_nodes": {"0": 4, "2": 8}}, "numa        node 0: 4 cores; node 2: 8 cores"),
    ],
)
def test_doctor_says_what_is_amiss(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, changes: dict[str, object], line: str
) -> None:
    from ktc.cli import doctor

    facts = doctor._facts()
    monkeypatch.setattr(doctor, "_facts", lambda: {**facts, **changes})
    assert main(["doctor"]) == 0
    assert line in capsys.readouterr().out


def test_large_pages_of_an_arena() -> None:
    assert machine.huge_pages_obtained() is None or 0 <= machine.huge_pages_obtained() <= 1
    assert machine.huge_pages_obtained(1 << 62) is None
