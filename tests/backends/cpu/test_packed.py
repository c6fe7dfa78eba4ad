"""The layout r16: packing keeps every code and scale, and refuses what does not fit."""

from __future__ import annotations

import pytest
import torch
from ktc.backends.cpu import packed
from ktc.backends.cpu.library import OperandError
from ktc.backends.registry import Weight
from support.packed_weights import aligned, columns_step, dense, make_blocks, pack

from ktc.weights.formats import FORMATS


@pytest.mark.parametrize("format", packed.PACKED)
@pytest.mark.parametrize("code", [None, 0x00, 0xFF, 0x80, 0x7F])
def test_unpacked_equals_the_published_dequantisation(format: str, code: int | None) -> None:
    step = columns_step(format)
    for rows, columns in ((1, step), (16, 3 * step), (35, 9 * step), (2, 8 * step)):
        blocks = make_blocks(format, rows, columns, rows, code)
        out = packed.unpack(pack(format, blocks, rows, columns), Weight("w", format, (rows, columns)))
        wanted = dense(format, blocks, rows, columns)
        assert torch.equal(torch.nan_to_num(out, 1.5e9), torch.nan_to_num(wanted, 1.5e9))


@pytest.mark.parametrize("format", packed.PACKED)
def test_packing_writes_exactly_its_bytes(format: str) -> None:
    rows, columns = 17, 3 * columns_step(format)
    weight = Weight("w", format, (rows, columns))
    size = packed.packed_bytes(weight)
    blocks = make_blocks(format, rows, columns)
    results = []
    for fill in (0x00, 0xFF):
        memory = aligned(size + 128, fill)
        packed.pack(blocks, weight, memory[:size])
        assert (memory[size:] == fill).all()
        results.append(memory[:size].clone())
    assert torch.equal(*results), "some byte was left as it was"


@pytest.mark.parametrize("format", packed.PACKED)
def test_sizes_stay_near_the_file(format: str) -> None:
    weight = Weight("w", format, (4096, 4096))
    file = 4096 * 4096 // FORMATS[format].block_elements * FORMATS[format].block_bytes
    assert file <= packed.packed_bytes(weight) <= 1.06 * file


@pytest.mark.parametrize(
    ("format", "rows", "columns", "text"),
    [
        ("q8_0", 4, 48, "multiple of 32"),
        ("q4_k", 4, 288, "multiple of 256"),
        ("f16", 4, 31, "multiple of 32"),
        ("q4_0", 0, 32, "rows and columns"),
        ("q4_0", 2**31, 32, "rows and columns"),
        ("q1_0", 4, 32, "no packed layout"),
    ],
)
def test_refuses_shapes(format: str, rows: int, columns: int, text: str) -> None:
    with pytest.raises(OperandError, match=text):
        packed.packed_bytes(Weight("w", format, (rows, columns)))


def test_refuses_memory_that_does_not_fit() -> None:
    weight = Weight("w", "q8_0", (16, 64))
    blocks, size = make_blocks("q8_0", 16, 64), packed.packed_bytes(weight)
    with pytest.raises(OperandError, match="`blocks`"):
        packed.pack(blocks[:-1], weight, aligned(size))
    with pytest.raises(OperandError, match="`out`"):
        packed.pack(blocks, weight, aligned(size - 1))
    with pytest.raises(OperandError, match="multiple of 64"):
        packed.pack(blocks, weight, aligned(size + 64)[1 : size + 1])
    with pytest.raises(OperandError, match="`weight`"):
        packed.unpack(aligned(size)[:-64], weight)


def test_an_fp8_code_that_is_nan_makes_its_block_nan() -> None:
    blocks = make_blocks("fp8", 3, 256)
    blocks.reshape(3, 2, 132)[1, 1, 7] = 0xFF
    values = packed.unpack(pack("fp8", blocks, 3, 256), Weight("w", "fp8", (3, 256)))
    assert values[1, 128:].isnan().all()
    assert torch.equal(values.isnan().sum(), torch.tensor(128))
