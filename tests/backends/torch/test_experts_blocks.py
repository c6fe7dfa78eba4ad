"""torch.experts_blocks against the dialect's reference on the values that the blocks mean."""

from __future__ import annotations

import pytest
import torch
from ktc.backends.operands import OperandError
from ktc.backends.torch import blocks
from ktc.backends.torch.experts_blocks import experts
from support.packed_weights import dense, make_blocks
from support.peak_memory import PeakMemory

from ktc.dialect.experts import ACTIVATIONS, reference

COUNT, CHOSEN, HIDDEN, INNER = 5, 2, 256, 512


def weights(format: str, rows: int, columns: int, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Blocks of `COUNT` matrices, and what they mean."""
    found = make_blocks(format, COUNT * rows, columns, seed)
    return found, dense(format, found, COUNT * rows, columns).reshape(COUNT, rows, columns)


@pytest.mark.parametrize(
    ("up_format", "down_format"), [("q4_k", "q6_k"), ("mxfp4", "mxfp4"), ("q4_0", "q8_0")]
)
@pytest.mark.parametrize("activation", sorted(ACTIVATIONS))
def test_experts(device: torch.device, up_format: str, down_format: str, activation: str) -> None:
    up, up_dense = weights(up_format, INNER, HIDDEN, 1)
    down, down_dense = weights(down_format, HIDDEN, INNER // 2, 2)
    torch.manual_seed(3)
    x, chosen = torch.randn(7, HIDDEN), torch.rand(7, CHOSEN)
    indices = torch.stack([torch.randperm(COUNT)[:CHOSEN] for _ in range(7)])
    biases = torch.randn(COUNT, INNER), torch.randn(COUNT, HIDDEN)
    expected = reference(x, indices, chosen, up_dense, down_dense, *biases, activation)
    got = torch.ops.kt_torch.experts_blocks(
        *(t.to(device) for t in (x, indices, chosen, up, down, *biases)),
        activation, up_format, down_format, COUNT, INNER,
    )  # fmt: skip
    assert (got.cpu() - expected).norm() / expected.norm() < 1e-5


def test_memory_holds_one_slab_of_one_expert(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(blocks, "SLAB_ELEMENTS", 64 * HIDDEN)
    up, _ = weights("q4_k", INNER, HIDDEN, 1)
    down, _ = weights("q4_k", HIDDEN, INNER // 2, 2)
    x, indices, chosen = torch.randn(1, HIDDEN), torch.tensor([[0, 4, 2]]), torch.rand(1, 3)
    with PeakMemory() as memory:
        experts(x, indices, chosen, up, down, None, None, "silu", "q4_k", "q4_k", COUNT, INNER)
    assert (
        64 * HIDDEN * 4
        < memory.peak
        <= blocks.slab_bytes(INNER, HIDDEN) + 4 * (3 * HIDDEN + 4 * INNER) + x.nbytes
    )
    assert memory.peak < INNER * HIDDEN * 4  # less than one expert's gate_up as float32


def test_refuses_other_operands() -> None:
    up, down = weights("q8_0", 64, 32, 1)[0], weights("q8_0", 32, 32, 2)[0]
    rest = (None, None, "silu", "q8_0", "q8_0", COUNT, 64)
    call, one = torch.ops.kt_torch.experts_blocks, torch.ones(1, 1)
    with pytest.raises(OperandError, match="expert 7"):
        call(torch.zeros(1, 32), torch.tensor([[7]]), one, up, down, *rest)
    with pytest.raises(OperandError, match="down"):
        call(torch.zeros(1, 32), torch.tensor([[0]]), one, up, down[:-34], *rest)
    with pytest.raises(OperandError, match=r"integers \[2, k\]"):
        call(torch.zeros(2, 32), torch.tensor([[0]]), one, up, down, *rest)
