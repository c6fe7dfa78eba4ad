"""torch.linear_blocks and torch.embedding_blocks against the dialect's ops on the values that the blocks mean."""

from __future__ import annotations

import pytest
import torch
from ktc.backends.operands import OperandError
from ktc.backends.torch import blocks
from ktc.backends.torch.dequantize import FORMATS_READ
from ktc.backends.torch.linear_blocks import linear
from support.packed_weights import dense, make_blocks
from support.peak_memory import PeakMemory

import ktc.dialect  # noqa: F401  registers kt.linear
from ktc.weights.formats import FORMATS

ROWS, COLUMNS = 70, 512


@pytest.fixture
def small_slabs(monkeypatch: pytest.MonkeyPatch) -> None:
    """Slabs of 16 rows, so that a small matrix has several and a rest."""
    monkeypatch.setattr(blocks, "SLAB_ELEMENTS", 16 * COLUMNS)


@pytest.mark.usefixtures("small_slabs")
@pytest.mark.parametrize("format", sorted(FORMATS_READ & {"bf16", "q4_0", "q4_k", "q6_k", "mxfp4", "iq4_xs"}))
@pytest.mark.parametrize("shape", [(COLUMNS,), (1, 5, COLUMNS)])
def test_linear(device: torch.device, format: str, shape: tuple[int, ...]) -> None:
    weight = make_blocks(format, ROWS, COLUMNS, seed=1)
    values = dense(format, weight, ROWS, COLUMNS).to(device)
    x, bias = torch.randn(shape, device=device), torch.randn(ROWS, device=device)
    operands = (weight.to(device), bias, format, ROWS, COLUMNS)
    got = torch.ops.kt_torch.linear_blocks(x, *operands)
    torch.testing.assert_close(got, torch.ops.kt.linear(x, values, bias), rtol=2e-4, atol=2e-4)
    half = torch.ops.kt_torch.linear_blocks(x.bfloat16(), *operands)
    assert half.dtype is torch.bfloat16
    torch.testing.assert_close(half.float(), got, rtol=0.05, atol=0.05 * float(got.std()))


@pytest.mark.usefixtures("small_slabs")
def test_no_token_and_no_bias() -> None:
    weight = make_blocks("q8_0", ROWS, COLUMNS)
    rest = (weight, None, "q8_0", ROWS, COLUMNS)
    assert torch.ops.kt_torch.linear_blocks(torch.zeros(1, 0, COLUMNS), *rest).shape == (1, 0, ROWS)
    x = torch.randn(2, COLUMNS)
    expected = x @ dense("q8_0", weight, ROWS, COLUMNS).T
    torch.testing.assert_close(torch.ops.kt_torch.linear_blocks(x, *rest), expected, rtol=2e-4, atol=2e-4)


def test_linear_refuses_other_operands() -> None:
    weight = make_blocks("q4_0", 2, 32)
    call = torch.ops.kt_torch.linear_blocks
    with pytest.raises(OperandError, match=r"float\[..., 32\]"):
        call(torch.zeros(1, 31), weight, None, "q4_0", 2, 32)
    with pytest.raises(OperandError, match=r"q4_0 \[3, 32\]"):
        call(torch.zeros(1, 32), weight, None, "q4_0", 3, 32)


@pytest.mark.parametrize("format", sorted(set(FORMATS) - {"f32", "f16", "bf16"}))
def test_memory_stays_within_the_workspace(format: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(blocks, "SLAB_ELEMENTS", 128 * COLUMNS)
    rows = 1000
    weight, x = make_blocks(format, rows, COLUMNS), torch.randn(3, COLUMNS)
    with PeakMemory() as memory:
        y = linear(x, weight, None, format, rows, COLUMNS)
    assert 128 * COLUMNS * 4 < memory.peak - y.nbytes <= blocks.slab_bytes(rows, COLUMNS) < rows * COLUMNS * 4


@pytest.mark.parametrize("format", ["q4_1", "q5_k", "mxfp4"])
def test_embedding(device: torch.device, format: str) -> None:
    weight = make_blocks(format, ROWS, COLUMNS)
    ids = torch.tensor([[0, 69, 3, 3]], device=device)
    got = torch.ops.kt_torch.embedding_blocks(ids, weight.to(device), format, ROWS, COLUMNS)
    assert torch.equal(got.cpu(), dense(format, weight, ROWS, COLUMNS)[ids.cpu()])


def test_embedding_refuses_other_operands() -> None:
    weight, call = make_blocks("q4_0", 2, 32), torch.ops.kt_torch.embedding_blocks
    with pytest.raises(OperandError, match=r"0\.\.1"):
        call(torch.tensor([2]), weight, "q4_0", 2, 32)
    with pytest.raises(OperandError, match="integers"):
        call(torch.tensor([0.0]), weight, "q4_0", 2, 32)
