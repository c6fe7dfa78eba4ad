"""Runs a test at every instruction-set level of the machine."""

from __future__ import annotations

from collections.abc import Iterator

import ktc.backends.cpu  # noqa: F401  registers the ops
import pytest

from ktc import _cpu


@pytest.fixture(params=_cpu.isa_levels())
def level(request: pytest.FixtureRequest) -> Iterator[str]:
    """The level in force during the test."""
    before = _cpu.isa()
    _cpu.set_isa(request.param)
    yield request.param
    _cpu.set_isa(before)


@pytest.fixture(params=[1, 2, 3])
def threads(request: pytest.FixtureRequest) -> Iterator[int]:
    """The number of threads during the test."""
    before = _cpu.threads()
    _cpu.set_threads(request.param)
    yield request.param
    _cpu.set_threads(before)
