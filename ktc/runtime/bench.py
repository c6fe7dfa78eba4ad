"""Speed of a placed model, measured as llama-bench does: prompts of n tokens, and n tokens one after another."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass

import torch

from ktc.errors import KtcError
from ktc.machine import Limits
from ktc.runtime.graph_engine import GraphEngine
from ktc.runtime.kv import blocks_for
from ktc.runtime.model import PlacedModel

_FLOAT_OPS = frozenset({"attention", "mla_attention"})
"""Ops whose products are of floats."""


@dataclass(frozen=True)
class OpShare:
    """What the native ops of one kind did in one run.

    Attributes:
        kind: of op, as in the tables of `cpp/program`.
        calls: how many ran; ops that ran as one (products of one operand) count once.
        seconds: wall time.
        gigabytes, gigaops: a second.
        share: of the wall time of the run.
        limit: the larger share of the machine's measured bandwidth and arithmetic (of int8, for attention of the
            faster float); None if not measured.
    """

    kind: str
    calls: int
    seconds: float
    gigabytes: float
    gigaops: float
    share: float
    limit: float | None


@dataclass(frozen=True)
class Result:
    """One test.

    Attributes:
        name: "pp512" or "tg64".
        rates: tokens a second of every repetition, in order.
        profile: of one more repetition with counters, by time; empty unless asked for.
    """

    name: str
    rates: tuple[float, ...]
    profile: tuple[OpShare, ...] = ()

    @property
    def median(self) -> float:
        """Tokens a second."""
        return statistics.median(self.rates)

    @property
    def spread(self) -> float:
        """Standard deviation of the rates, 0 for a single one."""
        return statistics.stdev(self.rates) if len(self.rates) > 1 else 0.0


def measure(
    model: PlacedModel,
    prompt: int = 512,
    generate: int = 64,
    repetitions: int = 3,
    profile: bool = False,
    limits: Limits | None = None,
    progress: Callable[[str], None] = lambda stage: None,
) -> list[Result]:
    """Runs the tests on random token ids, after one run of each that does not count.

    Args:
        model: a placed language model.
        prompt: tokens of a prompt; only the last one's logits are made. 0 leaves the test out.
        generate: tokens that are run one by one on an empty cache, each with its logits. 0 leaves it out.
        repetitions: of each test.
        profile: adds a run with counters in the native programs.
        limits: the machine's, to compare with.
        progress: called with what runs now.

    Raises:
        KtcError: sizes below 0, or the KV cache has no room.
    """
    if min(prompt, generate) < 0 or repetitions < 1:
        raise KtcError("a test has at least one repetition, and no negative number of tokens")
    pool = model._runner.engine.pool
    room, wanted = pool.allocator.free_blocks, blocks_for(max(prompt, generate, 1), pool.block_size)
    if wanted > room:
        raise KtcError(
            f"the KV cache has room for {room * pool.block_size} tokens, and the tests take {max(prompt, generate)}",
            hint="raise `tokens` of the cache in the `.kt` file, or ask for fewer with -p and -n",
        )
    tests: list[tuple[str, int, Callable[[], float]]] = []
    if prompt:
        tests.append((f"pp{prompt}", prompt, lambda: _prompt(model, prompt)))
    if generate:
        tests.append((f"tg{generate}", generate, lambda: _generate(model, generate)))
    found = []
    for name, tokens, run in tests:
        progress(f"{name}: warming up")
        run()
        rates = []
        for index in range(repetitions):
            progress(f"{name}: {index + 1} of {repetitions}")
            rates.append(tokens / run())
        shares: tuple[OpShare, ...] = ()
        if profile:
            progress(f"{name}: counting")
            shares = _profile(model, run, limits)
        found.append(Result(name, tuple(rates), shares))
    return found


def _prompt(model: PlacedModel, tokens: int) -> float:
    """Seconds of one prompt."""
    ids = torch.randint(0, model._runner.vocabulary, (1, tokens))
    cache = model.new_cache()
    start = time.perf_counter()
    model._runner.forward(ids, None, None, cache, 1)
    return time.perf_counter() - start


def _generate(model: PlacedModel, tokens: int) -> float:
    """Seconds of so many steps of one token."""
    ids = torch.randint(0, model._runner.vocabulary, (tokens, 1, 1))
    cache = model.new_cache()
    start = time.perf_counter()
    for one in ids:
        model._runner.forward(one, None, None, cache, 1)
    return time.perf_counter() - start


def _profile(model: PlacedModel, run: Callable[[], float], limits: Limits | None) -> tuple[OpShare, ...]:
    from ktc import _cpu

    engine = model._runner.engine
    if not isinstance(engine, GraphEngine):
        return ()
    programs = [segment.program for graph in engine.programs.values() for segment in graph.segments]
    for program in programs:
        program.count(True)
    try:
        seconds = run()
        counters = [counter for program in programs for counter in program.counters()]
    finally:
        for program in programs:
            program.count(False)
    best = None if limits is None else limits.at(engine.placement.threads or _cpu.threads())
    kinds: dict[str, list[float]] = {}
    for _, kind, *values in counters:
        total = kinds.setdefault(kind, [0.0, 0.0, 0.0, 0.0])
        for index, value in enumerate(values):
            total[index] += value
    spent = sum(total[1] for total in kinds.values())
    if counters:
        kinds["(between native ops)"] = [0.0, max(0.0, seconds - spent), 0.0, 0.0]
    shares = []
    for kind, (calls, time_spent, moved, operations) in kinds.items():
        rate, pace = (moved / time_spent, operations / time_spent) if time_spent else (0.0, 0.0)
        limit = None
        if best is not None and moved:
            peak = max(best.bf16, best.f32) if kind in _FLOAT_OPS else best.int8
            limit = max(rate / best.bandwidth, pace / peak if peak else 0.0)
        share = time_spent / seconds
        shares.append(OpShare(kind, int(calls), time_spent, rate / 1e9, pace / 1e9, share, limit))
    return tuple(sorted(shares, key=lambda share: -share.seconds))
