"""cpu.rms_norm, cpu.add_rms_norm and cpu.layer_norm against float64, at every level."""

from __future__ import annotations

import pytest
import torch
from ktc.backends.cpu.library import OperandError
from support.packed_weights import nmse

ops = torch.ops.kt_cpu
LENGTHS = (1, 3, 15, 16, 17, 33, 64, 576, 577, 2048)


def rms(x: torch.Tensor, weight: torch.Tensor, eps: float, offset: float) -> torch.Tensor:
    x = x.double()
    return x * torch.rsqrt(x.square().mean(-1, keepdim=True) + eps) * (offset + weight.double())


@pytest.mark.parametrize("n", LENGTHS)
def test_rms_norm(n: int, level: str) -> None:
    torch.manual_seed(n)
    x, weight = torch.randn(1, 7, n), torch.randn(n)
    for offset in (0.0, 1.0):
        assert nmse(ops.rms_norm(x, weight, 1e-5, offset), rms(x, weight, 1e-5, offset)) <= 1e-12


@pytest.mark.parametrize("n", LENGTHS)
def test_add_rms_norm(n: int, level: str) -> None:
    torch.manual_seed(n)
    x, residual, weight = torch.randn(1, 5, n), torch.randn(1, 5, n), torch.randn(n)
    norm, total = ops.add_rms_norm(x, residual, weight, 1e-6, 1.0)
    assert torch.equal(total, x + residual)
    assert nmse(norm, rms(total, weight, 1e-6, 1.0)) <= 1e-12


@pytest.mark.parametrize("n", LENGTHS)
def test_layer_norm(n: int, level: str) -> None:
    torch.manual_seed(n)
    x, weight, bias = torch.randn(3, 5, n) + 3, torch.randn(n), torch.randn(n)
    wanted = torch.nn.functional.layer_norm(x.double(), (n,), weight.double(), bias.double(), 1e-5)
    assert nmse(ops.layer_norm(x, weight, bias, 1e-5), wanted) <= 1e-11
    assert nmse(ops.layer_norm(x, weight, None, 1e-5), wanted - bias) <= 1e-11 or n == 1


def test_views_equal_copies(threads: int) -> None:
    torch.manual_seed(0)
    weight = torch.randn(64)
    fused = torch.randn(1, 300, 5, 64)
    for x in (
        fused[:, :, 1:3],
        fused.transpose(1, 2),
        fused[:, ::2],
        fused[:, :, 0],
        fused[..., ::2].repeat(1, 1, 1, 2),
    ):
        assert torch.equal(ops.rms_norm(x, weight, 1e-5), ops.rms_norm(x.contiguous(), weight, 1e-5))
        assert torch.equal(
            ops.layer_norm(x, weight, None, 1e-5), ops.layer_norm(x.contiguous(), weight, None, 1e-5)
        )
        other = torch.randn(x.shape)
        for a, b in ((x, other), (other, x)):
            wanted = ops.add_rms_norm(a.contiguous(), b.contiguous(), weight, 1e-5)
            assert all(map(torch.equal, ops.add_rms_norm(a, b, weight, 1e-5), wanted))


def test_weights_of_other_dtypes_and_empty_batches() -> None:
    x, weight = torch.randn(2, 32), torch.randn(32).bfloat16()
    assert torch.equal(ops.rms_norm(x, weight, 1e-5), ops.rms_norm(x, weight.float(), 1e-5))
    assert ops.rms_norm(x[:0], weight, 1e-5).shape == (0, 32)
    assert [part.shape for part in ops.add_rms_norm(x[:0], x[:0], weight, 1e-5)] == [(0, 32)] * 2


def test_refuses_operands() -> None:
    x = torch.randn(2, 32)
    with pytest.raises(OperandError, match="`x`"):
        ops.rms_norm(x.half(), torch.ones(32), 1e-5)
    with pytest.raises(OperandError, match="`x`"):
        ops.rms_norm(torch.empty(2, 0), torch.ones(0), 1e-5)
    with pytest.raises(OperandError, match="`weight`"):
        ops.rms_norm(x, torch.ones(31), 1e-5)
    with pytest.raises(OperandError, match="`residual`"):
        ops.add_rms_norm(x, x[:1], torch.ones(32), 1e-5)
    with pytest.raises(OperandError, match="`bias`"):
        ops.layer_norm(x, torch.ones(32), torch.ones(31), 1e-5)
