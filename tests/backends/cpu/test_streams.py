"""One token alone gives the bits that it has among others, whatever the places of memory that a level reads at once."""

from __future__ import annotations

import pytest
import torch
from ktc.backends.cpu.packed import PACKED
from support.expert_layers import make_input, make_layer
from support.packed_weights import FLOATS, columns_step, make_blocks, pack

INTEGERS = sorted(set(PACKED) - set(FLOATS))


@pytest.mark.parametrize("format", INTEGERS)
def test_products(format: str, level: str) -> None:
    linear = torch.ops.kt_cpu.linear
    for rows, columns in ((1, 1), (16, 3), (41, 1), (80, 9), (300, 2)):
        columns *= columns_step(format)
        weight = pack(format, make_blocks(format, rows, columns, 3), rows, columns)
        x = torch.randn(2, columns, generator=torch.Generator().manual_seed(rows))
        for bias in (None, torch.randn(rows)):
            both = linear(x, weight, bias, format, rows, columns)
            assert torch.equal(linear(x[:1], weight, bias, format, rows, columns), both[:1])


@pytest.mark.parametrize("format", INTEGERS)
def test_experts(format: str, level: str) -> None:
    for down, hidden, chosen in ((format, 0, 1), ("q4_0", 0, 3), ("q8_0", 256, 4), (format, 768, 6)):
        layer = make_layer(format, down, count=7, hidden=hidden)
        if chosen > 3:
            layer.up_bias = torch.randn(layer.up_dense.shape[:2])
            layer.down_bias = torch.randn(layer.down_dense.shape[:2])
        x, indices, weights = make_input(layer, 2, chosen)
        alone = layer(x[:1].contiguous(), indices[:1].contiguous(), weights[:1].contiguous())
        assert torch.equal(alone, layer(x, indices, weights)[:1])


def test_an_expert_chosen_twice(level: str) -> None:
    layer = make_layer("q4_k", count=3)
    x, indices, weights = make_input(layer, 2, 3)
    indices[:] = torch.tensor([2, 0, 2])
    assert torch.equal(layer(x[:1], indices[:1], weights[:1]), layer(x, indices, weights)[:1])
