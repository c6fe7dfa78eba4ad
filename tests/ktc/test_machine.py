"""Measured limits are kept for the machine they were measured on; `ktc doctor` shows them."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from ktc import _cpu, machine
from ktc.cli import main
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


def test_doctor(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    assert main(["doctor", "--json"]) == 0
    data = json.loads(capsys.readouterr().out)
    assert data["threads"] == _cpu.threads() and data["isa"] in data["isa_levels"]
    assert data["limits"] is None and any("--measure" in line for line in data["advice"])

    small = machine.measure(seconds=0.002, region=SMALL)
    monkeypatch.setattr(machine, "measure", lambda **_: small)
    assert main(["doctor", "--measure"]) == 0
    shown = capsys.readouterr().out
    assert "GB/s" in shown and "TOPS" in shown and not any("--measure" in line for line in shown.splitlines())
    assert main(["doctor", "--json"]) == 0
    assert len(json.loads(capsys.readouterr().out)["limits"]["runs"]) == len(small.runs)
