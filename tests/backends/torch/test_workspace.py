"""What a kernel says that a call holds beside operands and results: never less than what it does hold."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import pytest
import torch
import torch.fx as fx
from ktc.backends.registry import Weight, kernels
from ktc.backends.torch import blocks, pieces
from ktc.backends.torch.attention_pieces import attention
from ktc.backends.torch.experts_blocks import experts
from ktc.backends.torch.linear_blocks import linear
from ktc.backends.torch.mla_attention_blocks import mla_attention
from support.attention_steps import latent_step, step
from support.packed_weights import make_blocks
from support.peak_memory import PeakMemory

from ktc.dialect import ops

ROWS, COLUMNS = 1000, 512
HEADS, WIDTH, NOPE, VALUE = 8, 128, 64, 64


@pytest.fixture(autouse=True)
def small_bounds(monkeypatch: pytest.MonkeyPatch) -> None:
    """Slabs and pieces as small, beside these operands, as the real ones beside real operands."""
    monkeypatch.setattr(blocks, "SLAB_ELEMENTS", 128 * COLUMNS)
    monkeypatch.setattr(pieces, "SCORE_ELEMENTS", 1 << 14)


def claimed(kernel: str, operands: Mapping[str, Any], weights: Mapping[str, Weight]) -> int:
    """The workspace of a kernel at a node with these operands; weights stand there in the graph's dtype."""
    found = kernels()[kernel]
    graph, given = fx.Graph(), {}
    for name, value in operands.items():
        given[name] = value
        if isinstance(value, torch.Tensor):
            given[name] = graph.placeholder(name)
            given[name].meta["val"] = value
    for name, weight in weights.items():
        given[name] = graph.get_attr(name)
        given[name].meta["val"] = torch.empty(weight.shape, device="meta")
    node = graph.call_function(ops()[found.op].op, (), given)
    node.meta["val"] = next(v for v in operands.values() if isinstance(v, torch.Tensor))
    assert found.workspace is not None
    return int(found.workspace(node, weights))


def held(call: Callable[..., torch.Tensor], *args: Any, **kwargs: Any) -> int:
    """Most bytes that a call held at once, without its result."""
    with PeakMemory() as memory:
        result = call(*args, **kwargs)
    return memory.peak - result.nbytes


def test_linear_and_experts() -> None:
    x = torch.randn(3, COLUMNS)
    weight = Weight("w", "q3_k", (ROWS, COLUMNS))
    got = held(linear, x, make_blocks("q3_k", ROWS, COLUMNS), None, "q3_k", ROWS, COLUMNS)
    assert got <= claimed("torch.linear_blocks", {"x": x}, {"weight": weight}) < ROWS * COLUMNS * 4

    up, down = Weight("u", "q4_k", (4, 1024, COLUMNS)), Weight("d", "q8_0", (4, COLUMNS, 512))
    packed = make_blocks("q4_k", 4 * 1024, COLUMNS), make_blocks("q8_0", 4 * COLUMNS, 512)
    choice = {"x": x, "indices": torch.tensor([[1, 3]] * 3), "weights": torch.rand(3, 2)}
    got = held(experts, *choice.values(), *packed, None, None, "silu", "q4_k", "q8_0", 4, 1024)
    assert got <= claimed("torch.experts_blocks", choice, {"gate_up": up, "down": down})


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
@pytest.mark.parametrize(("new", "cached"), [([200], [0]), ([1], [400]), ([3, 50], [100, 60])])
def test_attention(new: list[int], cached: list[int], dtype: torch.dtype) -> None:
    operands = step(new, cached, dtype=dtype)
    for kernel, call in (
        ("torch.attention_pieces", attention),
        ("torch.attention", ops()["kt.attention"].reference),
    ):
        assert held(call, **operands) <= claimed(kernel, operands, {})


@pytest.mark.parametrize(("new", "cached"), [([200], [0]), ([1], [400]), ([3, 50], [100, 60])])
def test_latent_attention(new: list[int], cached: list[int]) -> None:
    operands = latent_step(new, cached, heads=HEADS, width=WIDTH, nope=NOPE)
    weights = {
        "w_key": Weight("k", "q8_0", (HEADS, WIDTH, NOPE)),
        "w_value": Weight("v", "q4_0", (HEADS, VALUE, WIDTH)),
    }
    packed = {
        "w_key": make_blocks("q8_0", HEADS * WIDTH, NOPE),
        "w_value": make_blocks("q4_0", HEADS * VALUE, WIDTH),
    }
    got = held(mla_attention, **operands, **packed, key_format="q8_0", value_format="q4_0", value_dim=VALUE)
    assert got <= claimed("torch.mla_attention_blocks", operands, weights)
    dense = {name: torch.randn(weight.shape) for name, weight in weights.items()}
    got = held(ops()["kt.mla_attention"].reference, **operands, **dense)
    assert got <= claimed("torch.mla_attention", operands, weights)


def test_references_convert_weights_of_another_dtype() -> None:
    x, weight = torch.randn(3, COLUMNS), torch.randn(ROWS, COLUMNS)
    for format, dtype in (("f32", torch.float32), ("bf16", torch.bfloat16)):
        got = held(ops()["kt.linear"].reference, x, weight.to(dtype))
        assert got <= claimed("torch.linear", {"x": x}, {"weight": Weight("w", format, (ROWS, COLUMNS))})
