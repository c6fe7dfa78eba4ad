"""cpu.rotary against kt.rotary in double precision."""

from __future__ import annotations

import pytest
import torch
from ktc.backends.cpu.library import OperandError

import ktc.dialect  # noqa: F401  registers kt.rotary


@pytest.mark.parametrize("tokens", [0, 1, 300])
@pytest.mark.parametrize("scaling", [1.0, 1.2])
def test_equals_the_dialect(tokens: int, scaling: float, threads: int) -> None:
    positions = torch.arange(tokens)[None] * 97
    inv_freq = 10000.0 ** -(torch.arange(32) / 32)
    angles = (positions[..., None].float() * inv_freq).double()
    for got, function in zip(
        torch.ops.kt_cpu.rotary(positions, inv_freq, scaling), (torch.cos, torch.sin), strict=True
    ):
        wanted = function(torch.cat((angles, angles), dim=-1)) * scaling
        assert got.shape == (1, tokens, 64) and got.dtype is torch.float32
        assert tokens == 0 or (got.double() - wanted).abs().max() <= 1.5e-7
    cos, _ = torch.ops.kt.rotary(positions, inv_freq, scaling)
    assert tokens == 0 or (cos - torch.ops.kt_cpu.rotary(positions, inv_freq, scaling)[0]).abs().max() < 1e-6


def test_refuses_operands() -> None:
    with pytest.raises(OperandError, match="`positions`"):
        torch.ops.kt_cpu.rotary(torch.zeros(1, 3), torch.ones(4))
    with pytest.raises(OperandError, match="`inv_freq`"):
        torch.ops.kt_cpu.rotary(torch.zeros(1, 3, dtype=torch.int64), torch.ones(4, dtype=torch.int64))
