"""Kernels and loading on machines with several NUMA nodes that are made up: the same bits, whoever does what."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from ktc.backends.cpu import experts, packed
from ktc.backends.registry import Weight
from support.fake_machines import TWO_SOCKETS, FakeMachine

from ktc import _cpu
from ktc.runtime.arena import TensorArena
from ktc.weights.convert import quantize

THREE_NODES = FakeMachine(cores=(((0,), (1,)), ((2,),), ((3,), (4,))))


@pytest.fixture(params=[(TWO_SOCKETS, 8), (TWO_SOCKETS, 3), (THREE_NODES, 5)], ids=["2x4", "2 on 3", "2+1+2"])
def nodes(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[tuple[str, int]]:
    """The folder of a machine and its threads; the pool returns to this machine afterwards."""
    machine, threads = request.param
    before = _cpu.threads()
    yield machine.write(tmp_path), threads
    _cpu._pool_topology("", before)


def placed(weight: Weight, values: torch.Tensor, layout: object) -> torch.Tensor:
    """A weight as the loader packs it."""
    blocks = torch.from_numpy(quantize(values.numpy(), weight.format).reshape(-1))
    arena = TensorArena(layout.packed_bytes(weight))
    out = arena.tensor(layout.packed_bytes(weight))
    arena.place(out, layout.matrices(weight))
    layout.pack(blocks, weight, out)
    arena.seal()
    return out


@pytest.mark.parametrize("tokens", [1, 5, 40])
def test_experts(nodes: tuple[str, int], tokens: int) -> None:
    generator = torch.Generator().manual_seed(tokens)
    count, hidden, inner, chosen = 6, 256, 160, 3
    shapes = {"gate_up": (count, 2 * inner, hidden), "down": (count, hidden, inner)}
    weights = {name: Weight(name, "q8_0", shape) for name, shape in shapes.items()}
    values = {name: torch.randn(shape, generator=generator) for name, shape in shapes.items()}
    x = torch.randn(tokens, hidden, generator=generator)
    indices = torch.stack([torch.randperm(count, generator=generator)[:chosen] for _ in range(tokens)])
    scores = torch.rand(tokens, chosen, generator=generator)
    biases = torch.randn(count, 2 * inner, generator=generator)

    def run() -> torch.Tensor:
        gate_up, down = (placed(weights[name], values[name], experts.LAYOUT) for name in shapes)
        return experts.experts(
            x, indices, scores, gate_up, down, biases, None, "silu", "q8_0", "q8_0", count, 2 * inner
        )

    expected = run()
    _cpu._pool_topology(*nodes)
    assert torch.equal(run(), expected)
    _cpu._pool_topology("", 1)
    assert torch.equal(run(), expected)


def test_packing_and_reading_a_linear(nodes: tuple[str, int]) -> None:
    values = torch.randn(200, 512, generator=torch.Generator().manual_seed(1))
    weight = Weight("w", "q4_0", (200, 512))
    expected = placed(weight, values, packed.LAYOUT)
    _cpu._pool_topology(*nodes)
    found = placed(weight, values, packed.LAYOUT)
    assert torch.equal(found, expected)
    assert torch.equal(packed.unpack(found, weight), packed.unpack(expected, weight))


def test_experts_are_cut_one_by_one() -> None:
    """Each expert is cut among the nodes; other weights are cut as a whole."""
    assert experts.LAYOUT.matrices(Weight("e", "q8_0", (6, 320, 256))) == 6
    assert packed.LAYOUT.matrices(Weight("w", "q4_0", (200, 512))) == 1
