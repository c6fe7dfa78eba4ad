"""Makes `support` importable from every test: pytest puts the folder of this file on the path."""

from __future__ import annotations

from collections.abc import Iterator

import pytest


@pytest.fixture(scope="session", autouse=True)
def integer_kernels() -> Iterator[None]:
    """Below the level amx, whose tiles round to bf16 instead: tests compare with activations rounded to int8, or one
    number of tokens with another. Tests that name a level put it in force themselves.
    """
    from ktc import _cpu

    before = _cpu.isa()
    if before == "amx":
        _cpu.set_isa("avx512vnni")
    yield
    if before == "amx":
        _cpu.set_isa(before)


@pytest.fixture(scope="session", autouse=True)
def more_threads_than_cpus() -> Iterator[None]:
    """Tests ask for numbers of threads that cut work in many ways, whatever the machine has."""
    from ktc import _cpu

    _cpu._pool_beyond_cpus(True)
    yield
    _cpu._pool_beyond_cpus(False)
