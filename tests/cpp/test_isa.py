"""Instruction-set levels: what the machine has, KTC_CPU_ISA, and errors instead of SIGILL."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from ktc import _cpu

LEVELS = ["generic", "avx2", "avx512", "avx512vnni", "amx"]
# What each level needs, as Linux names processor features.
NEEDS = {
    "avx2": {"avx2", "fma", "f16c", "bmi2"},
    "avx512": {"avx512f", "avx512bw", "avx512vl", "avx512dq"},
    "avx512vnni": {"avx512_vnni", "avx512_bf16", "avx512vbmi"},
    "amx": {"amx_tile", "amx_int8", "amx_bf16"},
}


@pytest.fixture
def restored() -> Iterator[None]:
    before = _cpu.isa()
    yield
    _cpu.set_isa(before)


def in_process(value: str | None, code: str) -> subprocess.CompletedProcess[str]:
    environment = {name: text for name, text in os.environ.items() if name != "KTC_CPU_ISA"}
    if value is not None:
        environment["KTC_CPU_ISA"] = value
    return subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=False
    )


def test_levels_are_those_linux_reports() -> None:
    cpuinfo = Path("/proc/cpuinfo")
    if not cpuinfo.exists():
        pytest.skip("needs /proc/cpuinfo")
    found = re.search(r"^flags\s*:(.*)$", cpuinfo.read_text(), re.MULTILINE)
    features = set(found[1].split()) if found else set()
    expected = ["generic"]
    for level, needed in NEEDS.items():
        if not needed <= features:
            break
        expected.append(level)
    assert _cpu.isa_levels() == expected


def test_every_level_can_be_put_in_force(restored: None) -> None:
    for level in _cpu.isa_levels():
        _cpu.set_isa(level)
        assert _cpu.isa() == level


@pytest.mark.parametrize("value", [None, ""])
def test_without_a_cap_the_highest_level_is_in_force(value: str | None) -> None:
    run = in_process(value, "from ktc import _cpu; print(_cpu.isa() == _cpu.isa_levels()[-1])")
    assert run.stdout == "True\n", run.stderr


def test_the_variable_caps() -> None:
    for level in _cpu.isa_levels():
        run = in_process(level, "from ktc import _cpu; print(_cpu.isa())")
        assert run.stdout == f"{level}\n", run.stderr


@pytest.mark.parametrize("value", ["sse9", "AVX2", "avx2 ", "-1"])
def test_an_unknown_level_is_an_error_at_first_use(value: str) -> None:
    code = """
from ktc import _cpu  # importing works, so that errors have one place
import numpy
for use in (_cpu.isa, lambda: _cpu.quantize(numpy.ones((1, 256), "f"), "q4_k", numpy.zeros(144, "u1"))):
    try:
        use()
    except RuntimeError as error:
        print(error)
"""
    run = in_process(value, code)
    levels = ", ".join(_cpu.isa_levels())
    text = f"KTC_CPU_ISA={value} names no instruction-set level; this machine has {levels}\n"
    assert (run.returncode, run.stdout) == (0, text * 2), run.stderr


def test_a_level_the_machine_lacks_is_an_error(restored: None) -> None:
    lacking = [level for level in LEVELS if level not in _cpu.isa_levels()]
    if not lacking:
        pytest.skip("this machine has every level")
    run = in_process(lacking[0], "from ktc import _cpu; _cpu.isa()")
    assert (
        f"RuntimeError: KTC_CPU_ISA={lacking[0]}: this machine lacks the instruction-set level" in run.stderr
    )
    with pytest.raises(RuntimeError, match="this machine lacks the instruction-set level"):
        _cpu.set_isa(lacking[-1])


def test_set_isa_refuses_unknown_levels(restored: None) -> None:
    before = _cpu.isa()
    with pytest.raises(RuntimeError, match="'mmx' is no instruction-set level"):
        _cpu.set_isa("mmx")
    assert _cpu.isa() == before
