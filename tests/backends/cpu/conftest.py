"""Fixtures for the CPU kernels: every instruction-set level of the machine, numbers of threads."""

from __future__ import annotations

from collections.abc import Iterator

import ktc.backends.cpu  # noqa: F401  registers the ops
import pytest
import torch

from ktc import _cpu


@pytest.fixture(autouse=True)
def single_torch_thread() -> Iterator[None]:
    """References run on one thread of torch: its barriers are slow beside the pool of the kernels."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


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
