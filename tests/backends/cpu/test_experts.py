"""cpu.experts against float64 at every level: formats, tokens, routings, gates, extreme codes, wrong operands."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from ktc.backends.cpu.experts import GATES, PART_TOKENS
from ktc.backends.cpu.library import OperandError
from ktc.backends.cpu.packed import PACKED
from support.expert_layers import make_input, make_layer
from support.gguf_files import write_gguf
from support.packed_weights import FLOATS, ROUNDED_TOKENS, columns_step, grouped, nmse, on_tiles, rounded
from support.tiny_models import tiny_model

import ktc
from ktc import _cpu
from ktc.dialect.experts import ACTIVATIONS

TWICE = 2 * 5e-4
"""What int8 activations may cost at worst, in each of two matrices one after the other."""
ROUNDED = 2 * 1e-5
"""What activations in bf16 may."""
TOKENS = (*range(1, 10), 15, 16, 17, 31, 32, 33, 64)


@pytest.mark.parametrize("format", PACKED)
def test_every_format(level: str, format: str) -> None:
    layer = make_layer(format)
    for tokens in (1, 3, 9, 40):
        operands = make_input(layer, tokens)
        got = layer(*operands)
        shares = torch.bincount(operands[1].reshape(-1)).tolist()
        as_they_are = format in FLOATS and not any(rounded(format, share) for share in shares)
        assert nmse(got, layer.ladder(*operands)) <= (1e-12 if as_they_are else 1e-7), tokens
        allowed = 1e-12 if as_they_are else ROUNDED if format in FLOATS else TWICE
        assert nmse(got, layer.exact(*operands)) <= allowed, tokens


@pytest.mark.parametrize("formats", [("bf16", "bf16"), ("fp8", "fp8"), ("bf16", "q8_0"), ("q4_k", "fp8")])
def test_each_expert_rounds_by_its_own_share_of_tokens(formats: tuple[str, str], level: str) -> None:
    layer = make_layer(*formats, count=7, hidden=256, inner=256)
    layer.up_bias, layer.down_bias = torch.randn(7, 2 * 256), torch.randn(7, 256)
    shares = (0, 1, ROUNDED_TOKENS - 1, ROUNDED_TOKENS, 13, 97, 25)  # of experts; more than a run of tokens
    indices = torch.repeat_interleave(torch.arange(7), torch.tensor(shares))[:, None]
    x, _, weights = make_input(layer, len(indices), 1)
    got, wanted = layer(x, indices, weights), layer.ladder(x, indices, weights)
    for expert in range(1, 7):
        own = indices[:, 0] == expert
        assert nmse(got[own], wanted[own]) <= 1e-7, expert
    if "q4_k" not in formats and "q8_0" not in formats:
        few = indices[:, 0] < 3
        assert nmse(got[few], layer.exact(x, indices, weights)[few]) <= 1e-12


@pytest.mark.parametrize("formats", [("q4_k", "q6_k"), ("mxfp4", "mxfp4"), ("bf16", "q8_0"), ("q5_0", "f32")])
def test_every_number_of_tokens(level: str, formats: tuple[str, str]) -> None:
    layer = make_layer(*formats, count=3)
    for tokens in TOKENS:
        operands = make_input(layer, tokens)
        assert nmse(layer(*operands), layer.exact(*operands)) <= TWICE, tokens


@pytest.mark.parametrize("format", ["q4_k", "q8_0", "bf16"])
@pytest.mark.parametrize(("count", "chosen"), [(1, 1), (2, 2), (7, 3), (9, 8)])
def test_routings(format: str, count: int, chosen: int) -> None:
    layer = make_layer(format, count=count, inner=columns_step(format))
    for tokens in (1, 4, 33):
        operands = make_input(layer, tokens, chosen)
        assert nmse(layer(*operands), layer.exact(*operands)) <= TWICE, tokens


@pytest.mark.parametrize("tokens", [1, 64])
def test_many_small_experts(tokens: int) -> None:
    layer = make_layer("q8_0", count=256, hidden=64, inner=32)
    operands = make_input(layer, tokens, 8)
    assert nmse(layer(*operands), layer.exact(*operands)) <= TWICE


@pytest.mark.parametrize("format", ["q4_k", "q6_k", "mxfp4", "f32"])
def test_one_expert_with_all_tokens_and_empty_experts(level: str, format: str) -> None:
    layer = make_layer(format)
    for tokens in (2, 257):
        x, _, weights = make_input(layer, tokens, 1)
        indices = torch.full((tokens, 1), 3)
        assert nmse(layer(x, indices, weights), layer.exact(x, indices, weights)) <= TWICE


def test_an_expert_chosen_twice_by_a_token_counts_twice() -> None:
    layer = make_layer("q8_0")
    x, _, weights = make_input(layer, 6, 3)
    indices = torch.tensor([[2, 2, 0], [1, 1, 1], [4, 0, 4], [0, 1, 2], [3, 3, 3], [2, 0, 2]])
    assert nmse(layer(x, indices, weights), layer.exact(x, indices, weights)) <= TWICE


@pytest.mark.parametrize("gate", GATES)
@pytest.mark.parametrize("format", ["q8_0", "f32", "mxfp4"])
def test_gates_and_biases(level: str, gate: str, format: str) -> None:
    assert gate in ACTIVATIONS
    layer = make_layer(format)
    layer.gate = gate
    layer.up_bias, layer.down_bias = torch.randn(5, 2 * 96), torch.randn(5, 96)
    for tokens in (3, 70):
        x, indices, weights = make_input(layer, tokens)
        x *= 4  # beyond the clamp of gpt_oss
        got = layer(x, indices, weights)
        assert nmse(got, layer.ladder(x, indices, weights)) <= (2e-12 if format == "f32" else 1e-7)
        assert nmse(got, layer.exact(x, indices, weights)) <= TWICE


@pytest.mark.parametrize("format", [f for f in PACKED if f not in FLOATS])
@pytest.mark.parametrize("code", [0x00, 0xFF, 0x80, 0x7F])
def test_extreme_codes_do_not_saturate(format: str, code: int, level: str) -> None:
    layer = make_layer(format, count=2, code=code)
    if layer.up_dense.square().max() == 0 or layer.down_dense.square().max() == 0:
        pytest.skip("these codes mean zero")
    # Every activation becomes +127 or -127. A gate of 1 keeps what the up matrix gives.
    sign = torch.randint(0, 2, (6, 1)) * 2.0 - 1
    x = sign.expand(6, layer.hidden) / layer.up_dense.abs().sum(-1).max().float()
    indices, weights = torch.randint(0, 2, (6, 1)), torch.ones(6, 1)
    for tokens in (1, 6):
        operands = x[:tokens].contiguous(), indices[:tokens], weights[:tokens]
        assert nmse(layer(*operands), layer.ladder(*operands)) <= 1e-7


@pytest.mark.parametrize("formats", [("q4_k", "q6_k"), ("q4_0", "q8_0"), ("f32", "f32")])
def test_a_token_does_not_depend_on_the_others(formats: tuple[str, str], level: str) -> None:
    layer = make_layer(*formats, count=3)
    x, indices, weights = make_input(layer, 120)
    whole = layer(x, indices, weights)

    def way(tokens: int) -> tuple[bool, bool]:
        return on_tiles(tokens), grouped(formats[0], tokens)

    for first, last in ((0, 1), (3, 5), (10, 17), (40, 100)):
        part = layer(x[first:last], indices[first:last], weights[first:last])
        if formats[0] in FLOATS:  # one token is summed in another order
            torch.testing.assert_close(part, whole[first:last])
        elif way(120 * 2 // 3) != way((last - first) * 2 // 3):  # tokens an expert
            assert nmse(part, whole[first:last].double()) <= 1e-3
        else:
            assert torch.equal(part, whole[first:last])


@pytest.mark.parametrize("tokens", [1, 6, 150])
@pytest.mark.parametrize("formats", [("q4_k", "q6_k"), ("bf16", "fp8")])
def test_the_result_does_not_depend_on_threads(formats: tuple[str, str], tokens: int) -> None:
    layer = make_layer(*formats, hidden=1024, inner=512)
    operands = make_input(layer, tokens)
    before = _cpu.threads()
    try:
        _cpu.set_threads(1)
        wanted = layer(*operands)
        for count in (2, 3, 7):
            _cpu.set_threads(count)
            assert torch.equal(layer(*operands), wanted)
    finally:
        _cpu.set_threads(before)


@pytest.fixture
def tiles() -> Iterator[None]:
    """The level amx during the test."""
    if "amx" not in _cpu.isa_levels():
        pytest.skip("this machine has no AMX")
    before = _cpu.isa()
    _cpu.set_isa("amx")
    yield
    _cpu.set_isa(before)


ON_TILES = 2e-5
"""What rounding both sides of both products to bf16 may cost."""


@pytest.mark.parametrize("format", [f for f in PACKED if f not in FLOATS])
def test_tiles_every_format(tiles: None, format: str) -> None:
    layer = make_layer(format, count=3)
    for tokens in (64, 101):
        operands = make_input(layer, tokens)
        assert nmse(layer(*operands), layer.exact(*operands)) <= ON_TILES, tokens


@pytest.mark.parametrize("gate", GATES)
def test_tiles_gates_biases_and_odd_sizes(tiles: None, gate: str) -> None:
    layer = make_layer("q4_1", "iq4_nl", count=4, hidden=352, inner=416)
    layer.gate = gate
    layer.up_bias, layer.down_bias = torch.randn(4, 2 * 416), torch.randn(4, 352)
    operands = make_input(layer, 150)
    assert nmse(layer(*operands), layer.exact(*operands)) <= ON_TILES


def test_tiles_uneven_routes_and_threads(tiles: None) -> None:
    """Experts with none, one, a few and hundreds of tokens, more than meet a block of weights at once."""
    layer = make_layer("q4_k", "q6_k", count=12, hidden=512, inner=768)
    x, _, weights = make_input(layer, 600, 2)
    indices = torch.randint(5, 10, (600, 2))
    indices[:, 0] = 3
    indices[:20, 1], indices[20, 1] = 4, 0
    before = _cpu.threads()
    try:
        _cpu.set_threads(1)
        wanted = layer(x, indices, weights)
        assert nmse(wanted, layer.exact(x, indices, weights)) <= ON_TILES
        for count in (2, 3, 7, 16):
            _cpu.set_threads(count)
            assert torch.equal(layer(x, indices, weights), wanted)
    finally:
        _cpu.set_threads(before)


def test_tiles_write_everything_and_nothing_else(tiles: None) -> None:
    layer = make_layer("q8_0", count=2)
    x, indices, weights = make_input(layer, 70)
    guarded = torch.full((72, layer.hidden), float("nan"))
    number = PACKED.index("q8_0")
    _cpu.experts(
        0, 2, layer.hidden, layer.down_dense.shape[2], number, layer.up.data_ptr(), 0, number,
        layer.down.data_ptr(), 0, x.data_ptr(), indices.data_ptr(), weights.data_ptr(), 70, 2,
        guarded[1].data_ptr(),
    )  # fmt: skip
    assert guarded[0].isnan().all() and guarded[-1].isnan().all()
    assert torch.equal(guarded[1:-1], layer(x, indices, weights))
    x[4, 7], x[6, 9] = float("nan"), float("inf")
    y = layer(x, indices, weights)
    assert not y[[4, 6]].isfinite().any() and y[[0, 1, 2, 3, 5, 7, 8]].isfinite().all()


def test_more_tokens_than_a_part() -> None:
    layer = make_layer("q8_0", count=2, hidden=32, inner=32)
    x, indices, weights = make_input(layer, PART_TOKENS + 5, 1)
    whole = layer(x, indices, weights)
    assert torch.equal(whole[-9:], layer(x[-9:], indices[-9:], weights[-9:]))
    assert torch.equal(whole[:9], layer(x[:9], indices[:9], weights[:9]))


@pytest.mark.parametrize("tokens", [1, 5, 70])
@pytest.mark.parametrize("format", ["q4_k", "f16"])
def test_everything_is_written_and_nothing_else(level: str, format: str, tokens: int) -> None:
    layer = make_layer(format)
    x, indices, weights = make_input(layer, tokens)
    guarded = torch.full((tokens + 2, layer.hidden), float("nan"))
    _cpu.experts(
        0, 5, layer.hidden, layer.down_dense.shape[2], PACKED.index(format), layer.up.data_ptr(), 0,
        PACKED.index(format), layer.down.data_ptr(), 0, x.data_ptr(), indices.data_ptr(), weights.data_ptr(),
        tokens, 2, guarded[1].data_ptr(),
    )  # fmt: skip
    assert guarded[0].isnan().all() and guarded[-1].isnan().all()
    assert torch.equal(guarded[1:-1], layer(x, indices, weights))


@pytest.mark.parametrize("format", ["q4_k", "bf16"])
def test_a_nan_stays_with_its_token(level: str, format: str) -> None:
    layer = make_layer(format)
    for gate in GATES:
        layer.gate = gate
        x, indices, weights = make_input(layer, 9)
        x[4, 7], x[6, 9] = float("nan"), float("inf")
        y = layer(x, indices, weights)
        assert not y[[4, 6]].isfinite().any()
        assert y[[0, 1, 2, 3, 5, 7, 8]].isfinite().all()


def test_zeros_and_no_tokens() -> None:
    layer = make_layer("q4_0")
    _, indices, weights = make_input(layer, 3)
    assert (layer(torch.zeros(3, layer.hidden), indices, weights) == 0).all()
    assert layer(torch.zeros(0, layer.hidden), indices[:0], weights[:0]).shape == (0, layer.hidden)
    assert (layer(torch.ones(3, layer.hidden), indices[:, :0], weights[:, :0]) == 0).all()


@pytest.mark.parametrize("index", [5, -1, 2**40, -(2**63)])
def test_refuses_indices_outside_the_experts(index: int) -> None:
    layer = make_layer("q8_0")
    x, indices, weights = make_input(layer, 40)
    indices[17, 1] = index
    with pytest.raises(OperandError, match=rf"expert {index} is not in 0\.\.4"):
        layer(x, indices, weights)


def test_refuses_operands() -> None:
    layer = make_layer("q8_0", hidden=32, inner=32)
    x, indices, weights = make_input(layer, 3)
    with pytest.raises(OperandError, match="`x`"):
        layer(x.double(), indices, weights)
    with pytest.raises(OperandError, match="`indices`"):
        layer(x, indices[:2], weights[:2])
    with pytest.raises(OperandError, match="`indices`"):
        layer(x, weights, weights)
    with pytest.raises(OperandError, match="`weights`"):
        layer(x, indices, weights[:, :1])
    for name in ("up", "down"):
        whole = getattr(layer, name)
        setattr(layer, name, whole[:-64])
        with pytest.raises(OperandError, match=name):
            layer(x, indices, weights)
        setattr(layer, name, whole)
    layer.down_bias = torch.zeros(5)
    with pytest.raises(OperandError, match="down_bias"):
        layer(x, indices, weights)
    layer.down_bias, layer.gate = None, "relu"
    with pytest.raises(OperandError, match="relu"):
        layer(x, indices, weights)


@pytest.mark.parametrize("format", ["f32", "q8_0"])
def test_a_mixture_of_experts_from_gguf_to_logits(tmp_path, format: str) -> None:
    model = tiny_model("qwen3_moe")
    write_gguf(model, tmp_path / "m.gguf", format=format)
    rules = f"""
    model Qwen3MoeForCausalLM from "{tmp_path}/m.gguf"
    include "std/qwen3_moe.kt"
    device host = cpu (memory = 1GiB)
    rule everything {{ match ** place host }}
    rule experts {{ match @experts kernel cpu.experts expect layers }}
    """
    placed = ktc.compile(rules).load()
    ids = torch.arange(3, 20)[None]
    with torch.no_grad():
        expected, got = model(ids).logits, placed(ids).logits
    assert (got - expected).norm() / expected.norm() < (1e-4 if format == "f32" else 0.05)
