"""cpu.rope against kt.rope, at every level."""

from __future__ import annotations

import pytest
import torch
from ktc.backends.cpu.library import OperandError

import ktc.dialect  # noqa: F401  registers kt.rope


def tables(tokens: int, width: int) -> tuple[torch.Tensor, torch.Tensor]:
    angles = torch.randn(1, tokens, width // 2).repeat(1, 1, 2) * 10
    return angles.cos(), angles.sin()


@pytest.mark.parametrize("interleaved", [False, True])
@pytest.mark.parametrize(("depth", "width"), [(64, 64), (128, 64), (20, 12), (2, 2), (96, 0)])
def test_equals_the_dialect(depth: int, width: int, interleaved: bool, level: str) -> None:
    torch.manual_seed(depth)
    for tokens in (1, 5, 40):
        cos, sin = tables(tokens, width)
        fused = torch.randn(1, tokens, 12, depth)
        q, k = fused[:, :, :9].transpose(1, 2), fused[:, :, 9:].transpose(1, 2)
        wanted = torch.ops.kt.rope(q.double(), k.double(), cos.double(), sin.double(), interleaved)
        for got, want in zip(torch.ops.kt_cpu.rope(q, k, cos, sin, interleaved), wanted, strict=True):
            assert got.is_contiguous()
            assert (got.double() - want).abs().max() <= 1e-6


def test_other_strides_and_no_tokens(threads: int) -> None:
    cos, sin = tables(200, 16)
    x = torch.randn(1, 16, 200, 6).transpose(1, 3)
    got = torch.ops.kt_cpu.rope(x, x[:, :2], cos, sin)
    wanted = torch.ops.kt.rope(x, x[:, :2], cos, sin)
    assert all((a - b).abs().max() <= 1e-6 for a, b in zip(got, wanted, strict=True))
    assert torch.ops.kt_cpu.rope(x[:, :, :0], x[:, :, :0], cos[:, :0], sin[:, :0])[0].shape == (1, 6, 0, 16)


def test_refuses_operands() -> None:
    cos, sin = tables(4, 16)
    q = torch.randn(1, 2, 4, 16)
    with pytest.raises(OperandError, match="`q`"):
        torch.ops.kt_cpu.rope(q.half(), q, cos, sin)
    with pytest.raises(OperandError, match="`k`"):
        torch.ops.kt_cpu.rope(q, q[..., :8], cos, sin)
    with pytest.raises(OperandError, match="`cos`"):
        torch.ops.kt_cpu.rope(q, q, cos[:, :3], sin)
    with pytest.raises(OperandError, match="`sin`"):
        torch.ops.kt_cpu.rope(q, q, cos, sin.double())
