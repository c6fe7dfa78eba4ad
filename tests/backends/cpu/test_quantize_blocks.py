"""int8 blocks of activations, which kernels make several at a time: every number of them, zeros, extremes, NaN."""

from __future__ import annotations

import pytest
import torch
from support.packed_weights import as_codes, dense, make_blocks, nmse, pack

TOKENS, ROWS = 7, 16
linear = torch.ops.kt_cpu.linear


def activations(blocks: int) -> torch.Tensor:
    """float32[TOKENS, 32 * blocks]: plain, blocks of zeros, of unlike sizes, all as large, tiny and huge ones."""
    x = torch.randn(TOKENS, blocks, 32)
    x[1, ::2] = 0
    x[2] *= 10 ** torch.linspace(-6, 6, blocks)[:, None]
    x[3] = 3 * torch.where(x[3] < 0, -1.0, 1.0)
    x[4] *= 1e-30
    x[5] *= 1e28
    x[6] = 0
    x[6, :, 5] = -2.5
    return x.flatten(1)


@pytest.mark.parametrize("blocks", range(1, 19))
@pytest.mark.parametrize("format", ["q4_0", "q4_1", "q8_0"])
def test_every_number_of_blocks(format: str, blocks: int, level: str) -> None:
    torch.manual_seed(blocks)
    columns = 32 * blocks
    file_blocks = make_blocks(format, ROWS, columns, 3)
    weight, meaning = (
        pack(format, file_blocks, ROWS, columns),
        dense(format, file_blocks, ROWS, columns).double(),
    )
    x = activations(blocks)
    y = linear(x, weight, None, format, ROWS, columns)
    wanted = as_codes(x, format, TOKENS) @ meaning.T
    for token in range(TOKENS):
        assert nmse(y[token], wanted[token]) <= 1e-11, token


@pytest.mark.parametrize("blocks", [3, 8, 18])
@pytest.mark.parametrize("wrong", [torch.nan, torch.inf, -torch.inf])
def test_what_is_no_number_shows(wrong: float, blocks: int, level: str) -> None:
    torch.manual_seed(0)
    columns = 32 * blocks
    file_blocks = make_blocks("q4_1", ROWS, columns, 3)
    weight = pack("q4_1", file_blocks, ROWS, columns)
    x = torch.randn(TOKENS, columns)
    right = linear(x, weight, None, "q4_1", ROWS, columns)
    for place in range(0, columns, 29):
        changed = x.clone()
        changed[2, place] = wrong
        y = linear(changed, weight, None, "q4_1", ROWS, columns)
        assert y[2].isnan().all()
        assert torch.equal(y[[0, 1, 3, 4, 5, 6]], right[[0, 1, 3, 4, 5, 6]])


def test_reciprocals_that_are_infinite() -> None:
    """127 over a denormal number is no float; what the block adds is nothing in float32."""
    columns = 8 * 32
    file_blocks = make_blocks("q8_0", ROWS, columns, 3)
    weight = pack("q8_0", file_blocks, ROWS, columns)
    x = torch.randn(1, columns)
    x[0, 32:64] = 0
    without = linear(x, weight, None, "q8_0", ROWS, columns)
    x[0, 40] = 1e-42
    assert torch.equal(linear(x, weight, None, "q8_0", ROWS, columns), without)
