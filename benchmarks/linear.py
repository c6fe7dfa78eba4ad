"""One linear layer by format, tokens and threads beside torch eager: GB/s, GOPS, share of the limit, error."""

from __future__ import annotations

import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass

import ktc.backends.cpu
import torch

from benchmarks.machine import ROOT, header, load, save, table
from ktc import _cpu

sys.path.insert(0, str(ROOT / "tests"))
from support.packed_weights import FLOATS, dense, make_blocks, nmse, pack

ROUNDS = 5
SHAPES = ((576, 1536), (4096, 4096))
FORMATS = (
    "q4_k", "q5_k", "q6_k", "q8_0", "q4_0", "q4_1", "q5_0", "iq4_xs", "iq4_nl", "mxfp4", "q2_k", "q3_k", "bf16", "fp8",
)  # fmt: skip
TOKENS = (1, 4, 8, 64, 512)
FEW = 8
"""Up to so many tokens, calls read one copy of the weight after another, so that it comes from memory."""
ROTATED_BYTES = 64 << 20
PEAKS = ("int8", "bf16", "f32")


@dataclass
class Layer:
    """A weight in one format: copies that calls take in turn, and what it means as float64."""

    format: str
    copies: list[torch.Tensor]
    meaning: torch.Tensor


@dataclass(frozen=True)
class Limits:
    """What the machine did in one round, in bytes and operations a second."""

    bandwidth: float
    peaks: dict[str, float]


def make_layer(format: str, rows: int, columns: int) -> Layer:
    """Random blocks, packed, in as many copies as no cache holds, on 2 MiB pages as in a model."""
    blocks = make_blocks(format, rows, columns)
    packed = pack(format, blocks, rows, columns)
    count = max(1, min(256, ROTATED_BYTES // packed.numel()))
    arena = _cpu.Arena(count * (packed.numel() + 64))
    copies = [torch.from_numpy(arena.allocate(packed.numel())).copy_(packed) for _ in range(count)]
    arena.seal()
    return Layer(format, copies, dense(format, blocks, rows, columns).double())


def seconds(call: Callable[[int], object], budget: float) -> float:
    """Seconds of one call, from as many as fit the budget, at least one; calls are told their number.

    One call more wakes the threads. Before it is a rest, in which those of the contender before stop spinning.
    """
    time.sleep(0.005)
    call(0)
    count, start = 0, time.perf_counter()
    while (spent := time.perf_counter() - start) < budget or count == 0:
        call(count)
        count += 1
    return spent / count


def measure_limits(region: torch.Tensor, budget: float) -> Limits:
    """The machine's limits now, with the threads in force."""
    read = max(
        _cpu.read_bandwidth(region.data_ptr(), region.nbytes, streams, budget) for streams in (1, 2, 4)
    )
    return Limits(read, {kind: _cpu.operations(kind, budget) for kind in PEAKS})


def peak_of(format: str, tokens: int) -> str:
    """The arithmetic that bounds a product on this level."""
    if format not in FLOATS:
        return "int8"
    return "bf16" if tokens >= 8 and _cpu.isa() == "avx512vnni" else "f32"


def measure(
    layers: list[Layer], rows: int, columns: int, tokens: int, region: torch.Tensor, budget: float
) -> list[tuple[str, ...]]:
    """One line a format: medians of rounds, in which limits, torch and every format run one after the other."""
    x = torch.randn(tokens, columns)
    y = torch.empty(tokens, rows)
    small, half, full = x.bfloat16(), layers[0].meaning.bfloat16(), layers[0].meaning.float()
    few = tokens <= FEW
    halves = [half.clone() for _ in range(max(1, ROTATED_BYTES // half.nbytes) if few else 1)]
    fulls = [full.clone() for _ in range(max(1, ROTATED_BYTES // full.nbytes) if few else 1)]

    def ours(layer: Layer) -> Callable[[int], object]:
        number = ktc.backends.cpu.packed.format_id(layer.format)
        copies = layer.copies if few else layer.copies[:1]
        return lambda i: _cpu.linear(
            copies[i % len(copies)].data_ptr(), number, rows, columns, x.data_ptr(), columns, tokens, 0,
            y.data_ptr(), rows, 0,
        )  # fmt: skip

    torch_calls: list[Callable[[int], object]] = [
        lambda i: torch.nn.functional.linear(small, halves[i % len(halves)]),
        lambda i: torch.nn.functional.linear(x, fulls[i % len(fulls)]),
    ]
    calls = [ours(layer) for layer in layers]
    level = _cpu.isa()
    errors = []
    for layer, call in zip(layers, calls, strict=True):
        call(0)
        errors.append(nmse(y, x.double() @ layer.meaning.T))
    limits: list[Limits] = []
    peers: list[list[float]] = [[], []]
    times: list[list[float]] = [[] for _ in layers]
    older: list[list[float]] = [[] for _ in layers]
    for index in range(ROUNDS + 1):
        if index == 1:  # the first round warms up
            limits, peers = [], [[], []]
            times, older = [[] for _ in layers], [[] for _ in layers]
        limits.append(measure_limits(region, budget))
        for found, peer in zip(peers, torch_calls, strict=True):
            found.append(seconds(peer, budget))
        for found, call in zip(times, calls, strict=True):
            found.append(seconds(call, budget))
        _cpu.set_isa("avx2")
        for found, call in zip(older, calls, strict=True):
            found.append(seconds(call, budget))
        _cpu.set_isa(level)
    lines = []
    for layer, own, avx2, error in zip(layers, times, older, errors, strict=True):
        weight, operations = layer.copies[0].numel(), 2 * rows * columns * tokens
        nbytes = weight + 4 * tokens * (rows + columns)
        kind = peak_of(layer.format, tokens)
        share = [
            max(weight / limit.bandwidth, operations / limit.peaks[kind]) / t
            for limit, t in zip(limits, own, strict=True)
        ]
        middle = statistics.median(own)
        ratios = [
            statistics.median(a / b for a, b in zip(other, own, strict=True)) for other in (*peers, avx2)
        ]
        figures = (f"{middle * 1e6:.1f}", f"{nbytes / middle / 1e9:.1f}", f"{operations / middle / 1e9:.0f}")
        case = (f"{rows}x{columns}", layer.format, str(_cpu.threads()), str(tokens))
        rest = (f"{statistics.median(share):.0%}", f"{error:.1e}", *(f"{ratio:.2f}×" for ratio in ratios))
        lines.append((*case, *figures, *rest))
        print(*lines[-1], file=sys.stderr)
    return lines


@torch.no_grad()
def main(arguments: list[str]) -> int:
    """Writes results/linear-DATE.md; the argument is the seconds of each contender in each round."""
    budget = float(arguments[0]) if arguments else 0.02
    before = _cpu.threads()
    counts = sorted({1, min(2, before), before})
    text = header(
        "Linear layers by format",
        f"threads: {' and '.join(map(str, counts))}, for torch too",
        f"medians of {ROUNDS} rounds of {budget} s a contender, one after the other; ratios are medians of rounds",
        f"up to {FEW} tokens, calls read one copy of the weight after another, so that it comes from memory",
        "the limit: the larger of the weight's bytes over bandwidth and operations over the peak (int8; for floats "
        "float32, or bf16 from 8 tokens on), both measured in each round",
        "NMSE against float64 on the float32 operands; ratios: times as long as ktc",
    )
    torch.manual_seed(0)
    region = torch.ones(256 << 20, dtype=torch.uint8)
    lines = []
    for rows, columns in SHAPES:
        layers = [make_layer(format, rows, columns) for format in FORMATS]
        for count in counts:
            _cpu.set_threads(count)
            torch.set_num_threads(count)
            for tokens in TOKENS:
                lines += measure(layers, rows, columns, tokens, region, budget)
    _cpu.set_threads(before)
    titles = (
        "shape", "format", "threads", "tokens", "ktc, us", "GB/s", "Gop/s", "of the limit", "NMSE", "torch bf16",
        "torch float32", "ktc avx2",
    )  # fmt: skip
    save("linear", f"{text}- load average after {load()}\n\n" + table(titles, lines))
    return 0


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
