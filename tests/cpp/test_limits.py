"""The measured limits: every level and thread count gives a figure of sane size; bad arguments are refused."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch

from ktc import _cpu


@pytest.fixture
def restored() -> Iterator[None]:
    level, threads = _cpu.isa(), _cpu.threads()
    yield
    _cpu.set_isa(level)
    _cpu.set_threads(threads)


@pytest.mark.parametrize("level", _cpu.isa_levels())
def test_every_level_gives_figures(level: str, restored: None) -> None:
    _cpu.set_isa(level)
    region = torch.ones(4 << 20, dtype=torch.uint8)
    address = -(-region.data_ptr() // 64) * 64
    for streams in (1, 2, 4, 8, 16):
        # Between what plain code under a sanitizer and what a whole rack of memory would give.
        assert 1e6 < _cpu.read_bandwidth(address, 3 << 20, streams, 0.001) < 1e14
    for kind in ("int8", "f32"):
        assert 1e6 < _cpu.operations(kind, 0.001) < 1e16
    bf16 = _cpu.operations("bf16", 0.001)
    assert bf16 > 1e8 if level in ("avx512vnni", "amx") else bf16 == 0


def test_wrong_arguments_are_refused() -> None:
    region = torch.ones(2 << 20, dtype=torch.uint8)
    address = -(-region.data_ptr() // 64) * 64
    with pytest.raises(ValueError, match="streams"):
        _cpu.read_bandwidth(address, 1 << 20, 3, 0.001)
    with pytest.raises(ValueError, match="1 MiB"):
        _cpu.read_bandwidth(address, 1000, 1, 0.001)
    with pytest.raises(ValueError, match="multiple of 64"):
        _cpu.read_bandwidth(address + 1, 1 << 20, 1, 0.001)
    with pytest.raises(ValueError, match="int8, bf16 or f32"):
        _cpu.operations("int4", 0.001)
