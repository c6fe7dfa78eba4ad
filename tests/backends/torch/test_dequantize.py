"""Dequantisation in torch: bit for bit what the C++ conversion gives, on random bits and on extreme scales."""

from __future__ import annotations

import pytest
import torch
from ktc.backends.operands import OperandError
from ktc.backends.torch.dequantize import BLOCK_FORMATS, dequantize
from support.packed_weights import make_blocks

from ktc.weights import convert
from ktc.weights.formats import FORMATS, nbytes

ROWS, COLUMNS = 3, 512


def same_bits(format: str, blocks: torch.Tensor, rows: int, columns: int) -> None:
    expected = torch.from_numpy(convert.dequantize(blocks.numpy(), format, (rows, columns)))
    got = dequantize(blocks, format, rows, columns)
    nan = expected.isnan()
    assert torch.equal(got.isnan(), nan)
    torch.testing.assert_close(got[~nan].view(torch.int32), expected[~nan].view(torch.int32), rtol=0, atol=0)


@pytest.mark.parametrize("format", FORMATS)
def test_agrees_bit_for_bit(format: str) -> None:
    same_bits(format, make_blocks(format, ROWS, COLUMNS, seed=5), ROWS, COLUMNS)


@pytest.mark.parametrize("format", sorted(BLOCK_FORMATS))
def test_every_byte_at_any_value(format: str) -> None:
    """Scales included: infinities, NaN and subnormal numbers come out as in C++."""
    rows = 64
    torch.manual_seed(0)
    blocks = torch.randint(0, 256, (nbytes(format, (rows, COLUMNS)),), dtype=torch.uint8)
    same_bits(format, blocks, rows, COLUMNS)


def test_every_exponent_of_mxfp4() -> None:
    blocks = torch.arange(256, dtype=torch.uint8).repeat_interleave(17).clone()
    blocks.view(256, 17)[:, 1:] = 0x7F
    same_bits("mxfp4", blocks, 256, 32)


def test_one_block_at_an_odd_address() -> None:
    room = torch.zeros(256, dtype=torch.uint8)
    room[1:18] = make_blocks("mxfp4", 1, 32)
    same_bits("mxfp4", room[1:18], 1, 32)
    room[1:35] = make_blocks("q8_0", 1, 32)
    same_bits("q8_0", room[1:35], 1, 32)


def test_refuses_what_is_no_matrix_of_the_format() -> None:
    blocks = make_blocks("q4_0", 2, 64)
    with pytest.raises(OperandError, match=r"the uint8 blocks of q4_0 \[2, 32\]"):
        dequantize(blocks, "q4_0", 2, 32)
    with pytest.raises(OperandError, match="iq2_xxs"):
        dequantize(blocks, "iq2_xxs", 2, 64)
