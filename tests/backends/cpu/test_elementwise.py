"""The elementwise kernels against float64, at every level, over the whole range of arguments."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from ktc.backends.cpu.library import OperandError

ops = torch.ops.kt_cpu
F = torch.nn.functional
Function = Callable[..., torch.Tensor]

CASES: dict[str, tuple[Function, Function, int]] = {
    "add": (ops.add, torch.add, 2),
    "mul": (ops.mul, torch.mul, 2),
    "silu": (ops.silu, F.silu, 1),
    "gelu": (ops.gelu, F.gelu, 1),
    "gelu_tanh": (lambda x: ops.gelu(x, "tanh"), lambda x: F.gelu(x, approximate="tanh"), 1),
    "silu_mul": (ops.silu_mul, lambda a, b: F.silu(a) * b, 2),
    "gelu_mul": (ops.gelu_mul, lambda a, b: F.gelu(a) * b, 2),
    "gelu_tanh_mul": (
        lambda a, b: ops.gelu_mul(a, b, "tanh"),
        lambda a, b: F.gelu(a, approximate="tanh") * b,
        2,
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_against_float64(name: str, level: str) -> None:
    run, meaning, operands = CASES[name]
    for shape in ((1, 1, 1), (1, 3, 17), (2, 5, 64), (1, 33, 1536)):
        torch.manual_seed(sum(shape))
        args = [torch.randn(shape) * 4 for _ in range(operands)]
        wanted = meaning(*(a.double() for a in args))
        assert (run(*args).double() - wanted).abs().max() <= 2e-6 * max(1.0, float(wanted.abs().max()))


@pytest.mark.parametrize("name", ["silu", "gelu", "gelu_tanh"])
def test_far_arguments_and_nan(name: str, level: str) -> None:
    run, meaning, _ = CASES[name]
    x = torch.tensor([-1e30, -1000.0, -100.0, -88.0, -20.0, -1e-30, 0.0, 1e-30, 20.0, 88.0, 1000.0, 1e30])
    wanted = meaning(x.double())
    assert ((run(x).double() - wanted).abs() <= 1e-6 * wanted.abs().clamp_min(1.0)).all()
    assert torch.isnan(run(torch.tensor([float("nan")] * 20))).all()


@pytest.mark.parametrize("name", CASES)
def test_views_equal_copies(name: str, threads: int) -> None:
    run, _, operands = CASES[name]
    fused = torch.randn(1, 70, 2 * 512)
    args = [fused[..., :512], fused[..., 512:]][:operands]
    assert torch.equal(run(*args), run(*(a.contiguous() for a in args)))
    turned = torch.randn(3, 16, 40, 64).transpose(1, 2)
    assert torch.equal(run(*[turned] * operands), run(*[turned.contiguous()] * operands))
    assert run(*(a[:, :0] for a in args)).shape == (1, 0, 512)


def test_refuses_operands() -> None:
    x = torch.randn(2, 32)
    with pytest.raises(OperandError, match="`up`"):
        ops.silu_mul(x, x[:1])
    with pytest.raises(OperandError, match="`gate`"):
        ops.gelu_mul(x.double(), x)
    with pytest.raises(OperandError, match="none or tanh"):
        ops.gelu(x, "sigmoid")
    with pytest.raises(OperandError, match="`y`"):
        ops.add(x, x.half())
