"""Norms and gates of the CPU backend beside torch eager in float32 and bfloat16, with their errors."""

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
from support.packed_weights import nmse

ROUNDS = 7


@dataclass
class Case:
    """Three ways to compute one op, each a call without arguments, and what ktc's moves and computes."""

    name: str
    calls: tuple[Callable[[], object], ...]
    nbytes: int
    operations: int
    error: float


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
    """Writes results/vector_ops-DATE.md; the argument is the seconds of each contender in each round."""
    budget = float(arguments[0]) if arguments else 0.05
    torch.manual_seed(0)
    text = header(
        "Norms and gates of the CPU backend beside torch eager",
        f"threads: ktc {_cpu.threads()}, torch {torch.get_num_threads()}",
        f"medians of {ROUNDS} rounds of {budget} s a contender, one after the other; ratios are medians of rounds",
        "the error is ktc's normalised mean square error against float64 on the float32 operands",
    )
    titles = ("op", "ktc, us", "GB/s", "Gop/s", "faster than float32", "than bfloat16", "NMSE")
    cases: list[Callable[[], Case]] = [
        partial(make, tokens) for make in (norm_case, gate_case) for tokens in (1, 64, 512)
    ]
    lines = []
    for i, case in enumerate(cases):
        lines.append(measure(case(), budget))
        print(f"{i + 1}/{len(cases)}", *lines[-1], file=sys.stderr)
    save("vector_ops", f"{text}- load average after {load()}\n\n" + table(titles, lines))
    return 0


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
