"""cpu.embedding and cpu.embedding_file give the rows that dequantisation gives."""

from __future__ import annotations

import pytest
import torch
from ktc.backends.cpu.library import OperandError
from ktc.backends.cpu.packed import PACKED
from support.packed_weights import columns_step, dense, make_blocks, pack

from ktc.weights.formats import FORMATS

ops = torch.ops.kt_cpu


@pytest.mark.parametrize("format", FORMATS)
def test_rows_are_exact(format: str) -> None:
    rows, columns = 37, 2 * columns_step(format)
    blocks = make_blocks(format, rows, columns, 1)
    ids = torch.tensor([[36, 0, 17, 17, 15, 16]])
    wanted = dense(format, blocks, rows, columns)[ids[0]][None]
    if format in PACKED:
        packed = pack(format, blocks, rows, columns)
        assert torch.equal(ops.embedding(ids, packed, format, rows, columns), wanted)
    assert torch.equal(ops.embedding_file(ids, blocks, format, rows, columns), wanted)


def test_many_tokens_and_none(threads: int) -> None:
    blocks = make_blocks("q4_k", 64, 512)
    weight, meaning = pack("q4_k", blocks, 64, 512), dense("q4_k", blocks, 64, 512)
    ids = torch.randint(0, 64, (1, 300))
    assert torch.equal(ops.embedding(ids, weight, "q4_k", 64, 512), meaning[ids])
    assert torch.equal(ops.embedding(ids[:, ::3], weight, "q4_k", 64, 512), meaning[ids[:, ::3]])
    assert ops.embedding(ids[:, :0], weight, "q4_k", 64, 512).shape == (1, 0, 512)


@pytest.mark.parametrize("wrong", [-1, 20, 2**40])
def test_refuses_ids_outside(wrong: int) -> None:
    blocks = make_blocks("q8_0", 20, 32)
    ids = torch.tensor([0, wrong])
    with pytest.raises(OperandError, match=f"token id {wrong} at place 1"):
        ops.embedding(ids, pack("q8_0", blocks, 20, 32), "q8_0", 20, 32)
    with pytest.raises(OperandError, match=f"token id {wrong} at place 1"):
        ops.embedding_file(ids, blocks, "q8_0", 20, 32)


def test_refuses_operands() -> None:
    blocks = make_blocks("q8_0", 20, 32)
    weight = pack("q8_0", blocks, 20, 32)
    with pytest.raises(OperandError, match="`ids`"):
        ops.embedding(torch.zeros(2, dtype=torch.int32), weight, "q8_0", 20, 32)
    with pytest.raises(OperandError, match="`weight`"):
        ops.embedding(torch.zeros(2, dtype=torch.int64), weight, "q8_0", 48, 32)
    with pytest.raises(OperandError, match="`weight`"):
        ops.embedding_file(torch.zeros(2, dtype=torch.int64), blocks, "q8_0", 21, 32)
