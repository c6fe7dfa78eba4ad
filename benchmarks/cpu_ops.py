"""Single ops of the CPU backend beside torch eager in float32 and bfloat16, with their errors."""

from __future__ import annotations

import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import ktc.backends.cpu
import torch

import ktc.dialect  # noqa: F401  registers their meaning
from benchmarks.machine import ROOT, header, load, save, table
from ktc import _cpu

sys.path.insert(0, str(ROOT / "tests"))
from support.packed_weights import dense, make_blocks, nmse, pack

ROUNDS = 7
SHAPES = ((1536, 576), (4096, 4096))
FORMATS = ("q4_0", "q4_1", "q8_0", "q2_k", "q3_k", "q4_k", "q5_k", "q6_k", "iq4_xs", "mxfp4", "bf16", "f32")
TOKENS = (1, 4, 8, 64, 512)
ROTATED_BYTES = 128 << 20
"""Weights that calls of one token go through in turn, so that none is found in a cache."""


@dataclass
class Case:
    """Three ways to compute one op, each a call without arguments, and what ktc's moves and computes."""

    name: str
    calls: tuple[Callable[[], object], ...]
    nbytes: int
    operations: int
    error: float


def linear_case(format: str, rows: int, columns: int, tokens: int) -> Case:
    """A linear layer on random activations; one token reads another copy of the weight at every call."""
    blocks = make_blocks(format, rows, columns)
    meaning = dense(format, blocks, rows, columns)
    copies = max(1, min(64, ROTATED_BYTES // blocks.numel())) if tokens <= 8 else 1
    packed = [pack(format, blocks, rows, columns) for _ in range(copies)]
    half = meaning.bfloat16()
    floats = [meaning.clone() for _ in range(min(copies, ROTATED_BYTES // (4 * meaning.numel()) + 1))]
    halves = [half.clone() for _ in range(min(copies, ROTATED_BYTES // (2 * meaning.numel()) + 1))]
    x = torch.randn(1, tokens, columns)
    small = x.bfloat16()
    turn = [0, 0, 0]

    def next_of(which: int, values: list[torch.Tensor]) -> torch.Tensor:
        turn[which] = (turn[which] + 1) % len(values)
        return values[turn[which]]

    def ours() -> torch.Tensor:
        result: torch.Tensor = torch.ops.kt_cpu.linear(x, next_of(0, packed), None, format, rows, columns)
        return result

    return Case(
        f"linear {format} [{rows}, {columns}] x {tokens}",
        (
            ours,
            lambda: torch.nn.functional.linear(x, next_of(1, floats)),
            lambda: torch.nn.functional.linear(small, next_of(2, halves)),
        ),
        packed[0].numel(),
        2 * rows * columns * tokens,
        nmse(ours(), x.double() @ meaning.double().T),
    )


def attention_case(tokens: int, cached: int, heads: int = 32, kv_heads: int = 8, depth: int = 128) -> Case:
    """One sequence of new tokens behind cached ones; torch reads dense keys and values that are already gathered."""
    context, size = cached + tokens, 32
    blocks = -(-context // size)
    operands = {
        "q": torch.randn(1, heads, tokens, depth),
        "k": torch.randn(1, kv_heads, tokens, depth),
        "v": torch.randn(1, kv_heads, tokens, depth),
        "key_cache": torch.randn(blocks, kv_heads, size, depth).half(),
        "value_cache": torch.randn(blocks, kv_heads, size, depth).half(),
        "seq_starts": torch.tensor([0, tokens], dtype=torch.int32),
        "context_lens": torch.tensor([context], dtype=torch.int32),
        "block_tables": torch.randperm(blocks)[None].int(),
        "slots": torch.empty(0),
        "scale": depth**-0.5,
    }
    positions = torch.arange(cached, context)
    operands["slots"] = operands["block_tables"][0, positions // size].long() * size + positions % size
    wanted = torch.ops.kt.attention(**operands)
    q, keys, values = (
        torch.randn(1, n, m, depth) for n, m in ((heads, tokens), (kv_heads, context), (kv_heads, context))
    )
    mask = torch.arange(context)[None] <= positions[:, None]

    def eager(dtype: torch.dtype) -> Callable[[], object]:
        a, b, c = q.to(dtype), keys.to(dtype), values.to(dtype)
        return lambda: torch.nn.functional.scaled_dot_product_attention(
            a, b, c, attn_mask=mask, enable_gqa=True
        )

    return Case(
        f"attention, {tokens} new behind {cached}",
        (lambda: torch.ops.kt_cpu.attention(**operands), eager(torch.float32), eager(torch.bfloat16)),
        2 * context * kv_heads * depth * 2,
        4 * heads * depth * tokens * (cached + (tokens + 1) // 2),
        nmse(torch.ops.kt_cpu.attention(**operands), wanted.double()),
    )


def norm_case(tokens: int, n: int = 4096) -> Case:
    """x + residual and its normalisation; torch runs the two one after the other."""
    x, residual, weight = torch.randn(1, tokens, n), torch.randn(1, tokens, n), torch.randn(n)
    small = [t.bfloat16() for t in (x, residual, weight)]
    total = (x + residual).double()
    wanted = total * torch.rsqrt(total.square().mean(-1, keepdim=True) + 1e-6) * weight
    return Case(
        f"add_rms_norm [{tokens}, {n}]",
        (
            lambda: torch.ops.kt_cpu.add_rms_norm(x, residual, weight, 1e-6),
            lambda: torch.nn.functional.rms_norm(x + residual, (n,), weight, 1e-6),
            lambda: torch.nn.functional.rms_norm(small[0] + small[1], (n,), small[2], 1e-6),
        ),
        4 * 4 * tokens * n,
        5 * tokens * n,
        nmse(torch.ops.kt_cpu.add_rms_norm(x, residual, weight, 1e-6)[0], wanted),
    )


def gate_case(tokens: int, n: int = 11008) -> Case:
    """silu(gate) * up."""
    gate, up = torch.randn(1, tokens, n), torch.randn(1, tokens, n)
    small = (gate.bfloat16(), up.bfloat16())
    return Case(
        f"silu_mul [{tokens}, {n}]",
        (
            lambda: torch.ops.kt_cpu.silu_mul(gate, up),
            lambda: torch.nn.functional.silu(gate) * up,
            lambda: torch.nn.functional.silu(small[0]) * small[1],
        ),
        3 * 4 * tokens * n,
        5 * tokens * n,
        nmse(torch.ops.kt_cpu.silu_mul(gate, up), torch.nn.functional.silu(gate.double()) * up),
    )


def seconds(call: Callable[[], object], budget: float) -> float:
    """Seconds of one call, from as many as fit the budget, at least one."""
    count, start = 0, time.perf_counter()
    while (spent := time.perf_counter() - start) < budget or count == 0:
        call()
        count += 1
    return spent / count


@torch.no_grad()
def measure(case: Case, budget: float) -> tuple[str, ...]:
    """Medians of rounds in which the contenders run one after the other, after one call each to warm up."""
    for call in case.calls:
        call()
    rounds = [[seconds(call, budget) for call in case.calls] for _ in range(ROUNDS)]
    ours = statistics.median(r[0] for r in rounds)
    ratios = [statistics.median(r[i] / r[0] for r in rounds) for i in (1, 2)]
    return (
        case.name,
        f"{ours * 1e6:.1f}",
        f"{case.nbytes / ours / 1e9:.1f}",
        f"{case.operations / ours / 1e9:.0f}",
        *(f"{ratio:.2f}×" for ratio in ratios),
        f"{case.error:.1e}",
    )


def main(arguments: list[str]) -> int:
    """Writes results/cpu_ops-DATE.md; the argument is the seconds of each contender in each round."""
    budget = float(arguments[0]) if arguments else 0.05
    torch.manual_seed(0)
    text = header(
        "Ops of the CPU backend beside torch eager",
        f"threads: ktc {_cpu.threads()}, torch {torch.get_num_threads()}",
        f"medians of {ROUNDS} rounds of {budget} s a contender, one after the other; ratios are medians of rounds",
        "up to 8 tokens, each call of linear reads another copy of the weight, so that it comes from memory",
        "the error is ktc's normalised mean square error against float64 on the float32 operands",
    )
    titles = ("op", "ktc, us", "GB/s", "Gop/s", "faster than float32", "than bfloat16", "NMSE")
    cases: list[Callable[[], Case]] = [
        *(partial(attention_case, *step) for step in ((1, 512), (1, 4096), (512, 0), (64, 2048))),
        *(partial(make, tokens) for make in (norm_case, gate_case) for tokens in (1, 512)),
    ]
    for rows, columns in SHAPES:
        for format in FORMATS:
            if columns % 256 == 0 or not format.endswith(("_k", "_xs")):
                cases += [partial(linear_case, format, rows, columns, tokens) for tokens in TOKENS]
    lines = []
    for i, case in enumerate(cases):
        lines.append(measure(case(), budget))
        print(f"{i + 1}/{len(cases)}", *lines[-1], file=sys.stderr)
    save("cpu_ops", f"{text}- load average after {load()}\n\n" + table(titles, lines))
    return 0


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
