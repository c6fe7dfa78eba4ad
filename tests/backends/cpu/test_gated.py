"""A gated feed-forward block of a native program, one step, gives the bits of its three ops."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from ktc.backends.cpu.packed import format_id
from support.packed_weights import columns_step, make_blocks, pack

from ktc import _cpu

GATES: dict[str, tuple[int, Callable[[torch.Tensor, torch.Tensor], torch.Tensor]]] = {
    "silu": (5, torch.ops.kt_cpu.silu_mul),
    "gelu": (6, lambda a, b: torch.ops.kt_cpu.gelu_mul(a, b, "none")),
    "gelu_tanh": (7, lambda a, b: torch.ops.kt_cpu.gelu_mul(a, b, "tanh")),
}
HIDDEN, INNER = 512, 256


class Block:
    """Weights of a block, and the program of its three ops; the inner values are an output too if `shown`."""

    def __init__(self, up: str, down: str, gate: str, bias: bool = False, shown: bool = False) -> None:
        self.formats, self.gate = (up, down), gate
        self.up = pack(up, make_blocks(up, 2 * INNER, HIDDEN, 1), 2 * INNER, HIDDEN)
        self.down = pack(down, make_blocks(down, HIDDEN, INNER, 2), HIDDEN, INNER)
        self.biases = (torch.randn(2 * INNER), torch.randn(HIDDEN)) if bias else (None, None)
        self.shown = shown
        constants = [self.up, self.down, *(b for b in self.biases if b is not None)]
        widths = (HIDDEN, 2 * INNER, INNER, HIDDEN)  # x, both products, the gated one, the result
        buffers = [(int(i in (0, 3) or (shown and i == 2)), [0, 4 * n], 0) for i, n in enumerate(widths)]
        buffers += [(2, [t.nbytes, 0], t.data_ptr()) for t in constants]
        whole = [(i, 0, [0, 0], [[0, 1], [n, 0]], [[n, 0], [1, 0]]) for i, n in enumerate(widths)]
        halves = [(1, 0, [start, 0], [[0, 1], [INNER, 0]], [[2 * INNER, 0], [1, 0]]) for start in (0, INNER)]
        flat = [
            (len(widths) + i, 5 if t.dtype is torch.uint8 else 0, [0, 0], [[t.numel(), 0]], [[1, 0]])
            for i, t in enumerate(constants)
        ]
        first, second = (8, 9) if bias else (-1, -1)
        ops = [
            ("linear", "up", [0, 6, first, 1], [format_id(up), 2 * INNER, HIDDEN, 0], []),
            ("elementwise", "gate", [4, 5, 2], [GATES[gate][0]], []),
            ("linear", "down", [2, 7, second, 3], [format_id(down), HIDDEN, INNER, 0], []),
        ]
        self.program = _cpu.Program(1, buffers, [*whole, *halves, *flat], ops, _cpu.Workspace())

    def run(self, x: torch.Tensor) -> tuple[torch.Tensor, int]:
        """The program's result, and how many steps it took."""
        out, inner = torch.empty(len(x), HIDDEN), torch.empty(len(x), INNER)
        tensors = [x, inner, out] if self.shown else [x, out]
        self.program.count(True)
        self.program.run([len(x)], [t.data_ptr() for t in tensors], [t.nbytes for t in tensors])
        return out, sum(calls for _, _, calls, *_ in self.program.counters())

    def wanted(self, x: torch.Tensor) -> torch.Tensor:
        """The three ops one after another."""
        linear = torch.ops.kt_cpu.linear
        both = linear(x, self.up, self.biases[0], self.formats[0], 2 * INNER, HIDDEN)
        gated = GATES[self.gate][1](both[:, :INNER], both[:, INNER:])
        result: torch.Tensor = linear(gated, self.down, self.biases[1], self.formats[1], HIDDEN, INNER)
        return result


@pytest.mark.parametrize(
    ("up", "down", "gate", "bias"),
    [("q4_1", "q4_1", "silu", False), ("q4_k", "q6_k", "gelu_tanh", True), ("q5_0", "mxfp4", "gelu", False)],
)
def test_bits_of_the_three_ops(up: str, down: str, gate: str, bias: bool, level: str, threads: int) -> None:
    torch.manual_seed(3)
    assert INNER % columns_step(down) == 0
    block = Block(up, down, gate, bias)
    for tokens in (0, 1, 31, 32, 65, 257):
        x = torch.randn(tokens, HIDDEN)
        got, steps = block.run(x)
        assert torch.equal(got, block.wanted(x)), tokens
        assert steps == (1 if tokens >= 32 else 3)


def test_a_nan_stays_with_its_token() -> None:
    block = Block("q4_k", "q4_k", "silu")
    x = torch.randn(40, HIDDEN)
    x[7, 3] = torch.nan
    got, _ = block.run(x)
    assert got[7].isnan().all() and got.isnan().any(-1).sum() == 1


@pytest.mark.parametrize("shown", [False, True])
def test_float_weights_and_values_that_others_read_stay_apart(shown: bool) -> None:
    block = Block("q4_k" if shown else "bf16", "q4_k", "silu", shown=shown)
    x = torch.randn(50, HIDDEN)
    got, steps = block.run(x)
    assert steps == 3 and torch.equal(got, block.wanted(x))
