"""cpu.linear against float64, at every level: formats, tokens, odd shapes, extreme codes."""

from __future__ import annotations

import pytest
import torch
from ktc.backends.cpu.library import OperandError
from ktc.backends.cpu.packed import PACKED
from support.packed_weights import (
    FLOATS,
    GROUP_TOKENS,
    ROUNDED_TOKENS,
    TILE_TOKENS,
    as_bf16,
    as_codes,
    as_cut,
    columns_step,
    dense,
    grouped,
    make_blocks,
    nmse,
    on_tiles,
    pack,
    rounded,
)

from ktc import _cpu

TOKENS = (1, 2, 3, 4, 5, 6, 7, 8, 9, 15, 16, 17, 31, 32, 33, 64)
linear = torch.ops.kt_cpu.linear


def product(format: str, x: torch.Tensor, meaning: torch.Tensor) -> tuple[torch.Tensor, float]:
    """The exact product of what the kernels see of x and of a weight, and the NMSE allowed against it."""
    if rounded(format, x.shape[-2]):
        return as_bf16(x) @ meaning.T, 1e-11
    if format in FLOATS:
        return x.double() @ meaning.T, 1e-11
    if on_tiles(x.shape[-2]):  # a weight at the edge between two bf16 values may be rounded either way
        return as_bf16(x) @ as_cut(meaning).T, 2e-7
    return as_codes(x, format, x.shape[-2]) @ meaning.T, 1e-11


@pytest.mark.parametrize("format", PACKED)
def test_every_number_of_tokens(format: str, level: str) -> None:
    torch.manual_seed(1)
    rows, columns = 41, 3 * columns_step(format)
    blocks = make_blocks(format, rows, columns, 3)
    weight, meaning = pack(format, blocks, rows, columns), dense(format, blocks, rows, columns).double()
    bias = torch.randn(rows)
    for tokens in TOKENS:
        x = torch.randn(1, tokens, columns)
        y = linear(x, weight, bias, format, rows, columns)
        assert y.shape == (1, tokens, rows) and y.dtype == torch.float32
        wanted, allowed = product(format, x, meaning)
        assert nmse(y, wanted + bias) <= allowed, tokens
        assert nmse(linear(x, weight, None, format, rows, columns), wanted) <= allowed, tokens


@pytest.mark.parametrize("format", ["q4_0", "q4_k", "q6_k", "q8_0", "q2_k", "iq4_xs", "mxfp4", "bf16"])
def test_many_tokens_and_long_rows(format: str, threads: int) -> None:
    torch.manual_seed(2)
    rows, columns = 70, 4096 + 512
    blocks = make_blocks(format, rows, columns, 5)
    weight, meaning = pack(format, blocks, rows, columns), dense(format, blocks, rows, columns).double()
    for tokens in (3, 257):
        x = torch.randn(tokens, columns)
        wanted, allowed = product(format, x, meaning)
        assert nmse(linear(x, weight, None, format, rows, columns), wanted) <= allowed


@pytest.mark.parametrize("format", sorted(set(PACKED) - set(FLOATS)))
@pytest.mark.parametrize("code", [0x00, 0xFF, 0x80, 0x7F])
def test_extreme_codes_do_not_saturate(format: str, code: int, level: str) -> None:
    rows, columns = 16, 2 * columns_step(format)
    blocks = make_blocks(format, rows, columns, 7, code)
    weight, meaning = pack(format, blocks, rows, columns), dense(format, blocks, rows, columns).double()
    # Every activation becomes +127, or -127, or they alternate.
    ones = torch.ones(columns)
    x = torch.stack([ones, -ones, ones * torch.tensor([1.0, -1.0]).repeat(columns // 2)] * 3)
    for tokens in (1, 2, 6, 9):
        y = linear(x[:tokens], weight, None, format, rows, columns)
        wanted = x[:tokens].double() @ meaning.T
        scale = (x[:tokens].abs().double() @ meaning.abs().T).clamp_min(1e-30)
        assert ((y.double() - wanted).abs() / scale).max() <= 1e-6


@pytest.mark.parametrize("format", sorted(set(PACKED) - set(FLOATS)))
def test_error_of_int8_activations(format: str) -> None:
    torch.manual_seed(3)
    rows, columns = 256, 2048
    blocks = make_blocks(format, rows, columns, 11)
    weight, meaning = pack(format, blocks, rows, columns), dense(format, blocks, rows, columns).double()
    for tokens in (TILE_TOKENS - 1, 64):
        x = torch.randn(tokens, columns)
        error = nmse(linear(x, weight, None, format, rows, columns), x.double() @ meaning.T)
        assert error <= (1e-5 if on_tiles(tokens) else 1e-4), tokens


@pytest.mark.parametrize("format", ["bf16", "fp8"])
def test_rounded_activations(format: str) -> None:
    torch.manual_seed(8)
    rows = 16 * 17 + 5  # an odd number of bands
    columns = 2048 + columns_step(format)  # parts of unequal length
    blocks = make_blocks(format, rows, columns, 12)
    weight, meaning = pack(format, blocks, rows, columns), dense(format, blocks, rows, columns).double()
    x, bias = torch.randn(200, columns), torch.randn(rows)
    every = linear(x, weight, bias, format, rows, columns)
    for tokens in (*range(ROUNDED_TOKENS, 26), 96, 97, 109, 200):
        y = linear(x[:tokens], weight, bias, format, rows, columns)
        wanted, allowed = product(format, x[:tokens], meaning)
        assert nmse(y, wanted + bias) <= allowed, tokens
        assert nmse(y, x[:tokens].double() @ meaning.T + bias) <= 1e-5, tokens
        assert torch.equal(y, every[:tokens]), tokens
    x[3, 5], x[9, 7] = torch.nan, torch.inf
    y = linear(x, weight, bias, format, rows, columns)
    assert y[3].isnan().all() and not y[9].isfinite().any() and y[[0, 199]].isfinite().all()


@pytest.mark.parametrize("format", ["q4_0", "q4_k", "q6_k", "q2_k"])
def test_a_token_does_not_depend_on_the_others(format: str, level: str) -> None:
    torch.manual_seed(4)
    rows, columns = 48, 4096 + 256
    weight = pack(format, make_blocks(format, rows, columns), rows, columns)
    x, bias = torch.randn(70, columns), torch.randn(rows)
    alone = linear(x[2:3], weight, bias, format, rows, columns)
    on_tile = linear(x[:TILE_TOKENS], weight, bias, format, rows, columns)[2:3]
    in_groups = linear(x[:GROUP_TOKENS], weight, bias, format, rows, columns)[2:3]
    for tokens in (4, 5, 8, 19, 32, 33, 70):
        wanted = on_tile if on_tiles(tokens) else in_groups if grouped(format, tokens) else alone
        assert torch.equal(linear(x[:tokens], weight, bias, format, rows, columns)[2:3], wanted), tokens


def test_the_result_does_not_depend_on_threads() -> None:
    torch.manual_seed(5)
    weight = pack("q6_k", make_blocks("q6_k", 400, 512), 400, 512)
    x = torch.randn(130, 512)
    for tokens in (1, 130):
        wanted = linear(x[:tokens], weight, None, "q6_k", 400, 512, 1)
        before = _cpu.threads()
        try:
            for count in (2, 3, 7):
                _cpu.set_threads(count)
                assert torch.equal(linear(x[:tokens], weight, None, "q6_k", 400, 512), wanted)
                assert torch.equal(linear(x[:tokens], weight, None, "q6_k", 400, 512, 2), wanted)
        finally:
            _cpu.set_threads(before)


def test_zeros_infinities_and_nan(level: str) -> None:
    weight = pack("q8_0", make_blocks("q8_0", 16, 64), 16, 64)
    x = torch.zeros(5, 64)
    x[1, 3], x[2, 40] = float("nan"), float("inf")
    y = linear(x, weight, None, "q8_0", 16, 64)
    assert (y[[0, 3, 4]] == 0).all()
    assert not torch.isfinite(y[1:3]).any()


def test_views_and_empty_batches() -> None:
    torch.manual_seed(6)
    weight = pack("f32", make_blocks("f32", 20, 64), 20, 64)
    x = torch.randn(1, 7, 192)
    y = linear(x[..., 64:128], weight, None, "f32", 20, 64)
    assert torch.equal(y, linear(x[..., 64:128].contiguous(), weight, None, "f32", 20, 64))
    turned = torch.randn(64, 7)
    y = linear(turned.T, weight, None, "f32", 20, 64)
    assert torch.equal(y, linear(turned.T.contiguous(), weight, None, "f32", 20, 64))
    assert linear(torch.empty(1, 0, 64), weight, None, "f32", 20, 64).shape == (1, 0, 20)


def test_refuses_operands() -> None:
    weight = pack("q8_0", make_blocks("q8_0", 16, 64), 16, 64)
    x = torch.randn(2, 64)
    with pytest.raises(OperandError, match="`x`"):
        linear(x.double(), weight, None, "q8_0", 16, 64)
    with pytest.raises(OperandError, match="`x`"):
        linear(x[:, :32], weight, None, "q8_0", 16, 64)
    with pytest.raises(OperandError, match="`weight`"):
        linear(x, weight[:-64], None, "q8_0", 16, 64)
    with pytest.raises(OperandError, match="`weight`"):
        linear(x, weight, None, "q8_0", 32, 64)
    with pytest.raises(OperandError, match="`bias`"):
        linear(x, weight, torch.randn(15), "q8_0", 16, 64)
    with pytest.raises(OperandError, match="no packed layout"):
        linear(x, weight, None, "q7_0", 16, 64)
