"""The routed experts of a mixture of experts as one operator, beside llama.cpp's and kt-kernel's, with their errors.

Peers are used where they are installed: `llama-cpp-python` (with and without repacked weights) and `kt-kernel`.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import ktc.backends.cpu  # noqa: F401  registers the ops
import torch
from ktc.backends.cpu.experts import experts, pack
from ktc.backends.cpu.packed_matrices import packed_bytes
from ktc.backends.registry import Weight

from benchmarks.ggml_experts import GgmlExperts
from benchmarks.kt_experts import KtExperts
from benchmarks.machine import ROOT, header, load, save, table
from benchmarks.models import alone
from ktc import _cpu
from ktc.dialect.experts import reference

sys.path.insert(0, str(ROOT / "tests"))
from support.packed_weights import dense, make_blocks, nmse

SHAPES = {"qwen3-30b-a3b": (128, 2048, 768, 8), "deepseek-v3": (256, 7168, 2048, 8)}
"""Experts, hidden, inner, experts a token."""
FORMATS = (
    "q4_k", "q4_k+q6_k", "q6_k", "q8_0", "q4_0", "q4_1", "q5_k", "iq4_xs", "iq4_nl", "mxfp4", "q2_k", "q3_k",
    "fp8", "bf16",
)  # fmt: skip
"""Of gate and up, and of down where it is another one."""
DISTINCT = 4
"""Different experts; the others are copies in memory of their own."""
CALLS = 64
"""Different inputs of one token: more weights than caches hold; of more tokens, fewer."""
BUDGET = 0.15
"""Seconds of each contender in each round."""


@dataclass
class Weights:
    """File blocks of all experts, and what the different ones mean."""

    formats: tuple[str, str]
    gate: torch.Tensor
    up: torch.Tensor
    down: torch.Tensor
    gate_up_dense: torch.Tensor
    down_dense: torch.Tensor

    @property
    def nbytes(self) -> int:
        return self.gate.numel() + self.up.numel() + self.down.numel()


@dataclass
class Contender:
    """One implementation: `run` is timed, `prepare` is not."""

    name: str
    worker: Any


class KtcExperts:
    """Ours, in the peers' form: weights packed into an arena on 2 MiB pages."""

    def __init__(self, weights: Weights, sizes: tuple[int, int, int]) -> None:
        self.sizes, self.formats = sizes, weights.formats
        count, hidden, inner = sizes
        shapes = ((count, 2 * inner, hidden), (count, hidden, inner))
        weight = [Weight("w", format, shape) for format, shape in zip(weights.formats, shapes, strict=True)]
        self._arena = _cpu.Arena(sum(packed_bytes(w) + 4096 for w in weight))
        self.gate_up, self.down = (torch.from_numpy(self._arena.allocate(packed_bytes(w))) for w in weight)
        both = torch.cat([weights.gate.reshape(count, -1), weights.up.reshape(count, -1)], 1)
        pack(both.reshape(-1), weight[0], self.gate_up)
        pack(weights.down, weight[1], self.down)
        self._arena.seal()

    @property
    def nbytes(self) -> int:
        """Packed bytes of all experts."""
        return self.gate_up.numel() + self.down.numel()

    def prepare(self, x: torch.Tensor, indices: torch.Tensor, weights: torch.Tensor) -> None:
        """Sets the operands of `run`."""
        self._operands = (x, indices, weights)

    def run(self) -> None:
        """Computes."""
        count, _, inner = self.sizes
        self._y = experts(
            *self._operands, self.gate_up, self.down, None, None, "silu", *self.formats, count, 2 * inner
        )

    def result(self) -> torch.Tensor:
        """float32[T, K] of the last run."""
        return self._y

    def bandwidth(self) -> float:
        """Bytes a second that the pool's threads read now from these weights."""
        address, nbytes = self.gate_up.data_ptr(), self.gate_up.numel()
        return max(_cpu.read_bandwidth(address, nbytes, streams, 0.03) for streams in (1, 4, 8))


def make_weights(formats: tuple[str, str], sizes: tuple[int, int, int]) -> Weights:
    """Gaussian weights where there is a quantiser, random blocks with valid scales elsewhere."""
    count, hidden, inner = sizes

    def blocks(format: str, rows: int, columns: int, seed: int) -> torch.Tensor:
        if format in ("q4_k", "q6_k", "q8_0", "q4_0", "fp8"):
            x = torch.randn(rows, columns, generator=torch.Generator().manual_seed(seed)) * columns**-0.5
            out = torch.empty(_cpu.file_bytes(format, rows, columns), dtype=torch.uint8)
            _cpu.quantize(x, format, out)
            return out
        return make_blocks(format, rows, columns, seed)

    def everywhere(part: torch.Tensor) -> torch.Tensor:
        return part.reshape(DISTINCT, -1).repeat(-(-count // DISTINCT), 1)[:count].reshape(-1)

    parts = [
        blocks(format, DISTINCT * rows, columns, seed)
        for seed, (format, rows, columns) in enumerate(
            ((formats[0], inner, hidden), (formats[0], inner, hidden), (formats[1], hidden, inner))
        )
    ]
    gate, up = (
        dense(formats[0], part, DISTINCT * inner, hidden).reshape(DISTINCT, inner, hidden)
        for part in parts[:2]
    )
    down = dense(formats[1], parts[2], DISTINCT * hidden, inner).reshape(DISTINCT, hidden, inner)
    return Weights(
        formats, *(everywhere(part) for part in parts), torch.cat([gate, up], 1).double(), down.double()
    )


def make_inputs(
    sizes: tuple[int, int, int], layers: int, chosen: int, tokens: int
) -> list[tuple[torch.Tensor, ...]]:
    """Different tokens and choices, of one layer's experts after the other, so that they are in no cache."""
    generator = torch.Generator().manual_seed(tokens)
    sets: list[tuple[torch.Tensor, ...]] = []
    experts = sizes[0] // layers
    for index in range(max(2, layers, CALLS // tokens)):
        scores = torch.rand(tokens, experts, generator=generator)
        sets.append(
            (
                torch.randn(tokens, sizes[1], generator=generator),
                scores.topk(chosen, dim=1).indices + index % layers * experts,
                torch.rand(tokens, chosen, generator=generator),
            )
        )
    return sets


def contenders(
    weights: Weights, sizes: tuple[int, int, int], chosen: int, threads: int
) -> Iterator[Contender]:
    """Ours, then the peers that are there and take these formats."""
    yield Contender("ktc", KtcExperts(weights, sizes))
    for name, make in (
        (
            "llama.cpp",
            lambda: GgmlExperts(
                weights.formats, weights.gate, weights.up, weights.down, sizes, threads, False
            ),
        ),
        (
            "repacked",
            lambda: GgmlExperts(
                weights.formats, weights.gate, weights.up, weights.down, sizes, threads, True
            ),
        ),
        (
            "kt-kernel",
            lambda: KtExperts(
                weights.formats, weights.gate, weights.up, weights.down, sizes, threads, chosen
            ),
        ),
    ):
        try:
            yield Contender(name, make())
        except OSError as error:
            print(f"{name}: {error}", file=sys.stderr)


def run_for(worker: Any, inputs: list[tuple[torch.Tensor, ...]], budget: float) -> float:
    """Median seconds of a call, of as many as fit the budget, at least two."""
    if isinstance(worker, KtExperts):
        return worker.seconds(budget)
    spent: list[float] = []
    while sum(spent) < budget or len(spent) < 2:
        worker.prepare(*inputs[len(spent) % len(inputs)])
        start = time.perf_counter()
        worker.run()
        spent.append(time.perf_counter() - start)
    return statistics.median(spent)


def peak_kind(format: str, expert_tokens: int) -> str:
    """The arithmetic that so many tokens an expert are multiplied with, in the format of gate and up."""
    if format in ("bf16", "fp8"):
        return "bf16" if _cpu.isa() == "avx512vnni" and expert_tokens >= 3 else "f32"
    return "bf16" if _cpu.isa() == "amx" and expert_tokens >= 32 else "int8"


@dataclass
class Case:
    """One row: a number of tokens, and what was measured of it."""

    tokens: int
    inputs: list[tuple[torch.Tensor, ...]]
    kind: str
    bandwidths: list[float] = field(default_factory=list)
    peaks: list[float] = field(default_factory=list)
    seconds: dict[str, list[float]] = field(default_factory=dict)
    errors: dict[str, float] = field(default_factory=dict)

    def check(self, field_of: list[Contender], weights: Weights) -> None:
        """Runs every contender once, with its error."""
        x, indices, routing = self.inputs[0]
        few = min(self.tokens, 16)
        wanted = reference(
            x[:few].double(), indices[:few] % DISTINCT, routing[:few].double(), weights.gate_up_dense,
            weights.down_dense,
        )  # fmt: skip
        for contender in list(field_of):
            worker = contender.worker
            try:
                if isinstance(worker, KtExperts):
                    worker.load(self.inputs)
                else:
                    worker.prepare(*self.inputs[0])
                    worker.run()
                error = nmse(worker.result()[:few], wanted)
            except OSError as reason:  # kt-kernel ends its process for some formats
                print(f"{contender.name}: {reason}", file=sys.stderr)
                worker.close()
                field_of.remove(contender)
                continue
            self.seconds[contender.name], self.errors[contender.name] = [], error

    def round(self, field_of: list[Contender]) -> None:
        """One turn of everybody, and the limits."""
        ours: KtcExperts = field_of[0].worker
        self.bandwidths.append(ours.bandwidth())
        self.peaks.append(_cpu.operations(self.kind, 0.02))
        for contender in field_of:
            if isinstance(contender.worker, KtExperts):
                contender.worker.load(self.inputs)
            self.seconds[contender.name].append(run_for(contender.worker, self.inputs, BUDGET))

    def cells(self, nbytes: int, sizes: tuple[int, int, int], chosen: int) -> tuple[str, ...]:
        """Of the table. `nbytes`: packed, of all experts."""
        touched = statistics.mean(len(torch.unique(i)) for _, i, _ in self.inputs)
        moved, operations = touched * nbytes / sizes[0], 6 * self.tokens * chosen * sizes[1] * sizes[2]
        own = self.seconds["ktc"]
        limits = [max(moved / b, operations / p) for b, p in zip(self.bandwidths, self.peaks, strict=True)]
        share = statistics.median(limit / one for limit, one in zip(limits, own, strict=True))
        seconds, bandwidth = statistics.median(own), statistics.median(self.bandwidths)
        cells = [
            f"{seconds * 1e3:.2f}",
            f"{moved / seconds / 1e9:.1f}",
            f"{operations / seconds / 1e9:.0f}",
            f"{share:.0%} of {bandwidth / 1e9:.0f} GB/s, {self.kind} {statistics.median(self.peaks) / 1e12:.2f}",
            f"{self.errors['ktc']:.1e}",
        ]
        for name in ("llama.cpp", "repacked", "kt-kernel"):
            if name not in self.seconds:
                cells.append("–")
                continue
            peer = self.seconds[name]
            ratio = statistics.median(p / o for p, o in zip(peer, own, strict=True))
            cells.append(f"{statistics.median(peer) * 1e3:.2f} ({ratio:.2f}×, {self.errors[name]:.0e})")
        return tuple(cells)


def versions() -> str:
    """The peers that are installed."""
    found = []
    for name in ("llama-cpp-python", "kt-kernel"):
        try:
            found.append(f"{name} {version(name)}")
        except PackageNotFoundError:
            found.append(f"no {name}")
    return ", ".join(found)


def main(arguments: list[str]) -> int:
    """Writes results/experts-DATE.md."""
    parser = argparse.ArgumentParser(prog="benchmarks experts")
    parser.add_argument("--shapes", default=",".join(SHAPES))
    parser.add_argument("--formats", default=",".join(FORMATS))
    parser.add_argument("--tokens", default="1,8,64,512")
    parser.add_argument("--threads", default="1,2")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument(
        "--memory", type=float, default=2, help="GiB of weights above which fewer experts are made"
    )
    parser.add_argument("--layers", type=int, default=1, help="layers of weights, for caches larger than one")
    parser.add_argument(
        "--lock", action="append", default=[], metavar="FILE", help="held while something is timed"
    )
    parser.add_argument("--alone", action="store_true", help="without peers")
    parser.add_argument("--name", default="experts", help="of the result's file")
    options = parser.parse_args(arguments)
    text = header(
        "The routed experts alone",
        f"peers: {versions()}; kt-kernel: LLAMAFILE class, in a process that is stopped between its turns",
        f"medians of {options.rounds} rounds, {BUDGET} s a contender in each, in turns; ratios are medians of rounds",
        "the limit: the larger of bytes over bandwidth and operations over the peak (T/s), measured in each round",
        "NMSE against float64 on the same weights and float32 activations; in brackets: times as long as ktc, NMSE",
    )
    titles = ("shape", "format", "threads", "tokens", "ktc, ms", "GB/s", "Gop/s", "of the limit", "NMSE",
              "llama.cpp, ms", "repacked, ms", "kt-kernel, ms")  # fmt: skip
    lines: list[tuple[str, ...]] = []
    before = _cpu.threads()
    for shape in options.shapes.split(","):
        for name in options.formats.split(","):
            formats = (name.split("+")[0], name.split("+")[-1])
            count, hidden, inner, chosen = SHAPES[shape]
            one = sum(
                _cpu.file_bytes(f, *s)
                for f, s in zip(formats, ((2 * inner, hidden), (hidden, inner)), strict=True)
            )
            experts_of_layer = max(16, min(count, int(options.memory * 2**30) // one))
            sizes = (options.layers * experts_of_layer, hidden, inner)
            weights = make_weights(formats, sizes)
            for threads in (int(t) for t in options.threads.split(",")):
                _cpu.set_threads(threads)
                field_of = [
                    c
                    for c in contenders(weights, sizes, chosen, threads)
                    if c.name == "ktc" or not options.alone
                ]
                cases = []
                for tokens in (int(t) for t in options.tokens.split(",")):
                    inputs = make_inputs(sizes, options.layers, chosen, tokens)
                    cases.append(
                        Case(tokens, inputs, peak_kind(formats[0], tokens * chosen // experts_of_layer))
                    )
                    cases[-1].check(field_of, weights)
                with alone(options.lock):
                    for case in cases:
                        for _ in range(options.rounds):
                            case.round(field_of)
                for case in cases:
                    cells = case.cells(field_of[0].worker.nbytes, sizes, chosen)
                    place = (f"{shape} ({experts_of_layer} experts)", name, str(threads), str(case.tokens))
                    lines.append((*place, *cells))
                    print(*lines[-1], file=sys.stderr)
                for contender in field_of[1:]:
                    contender.worker.close()
                del field_of
    _cpu.set_threads(before)
    save(options.name, f"{text}- load average after {load()}\n\n" + table(titles, lines))
    return 0


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
