"""Attention of the CPU backend over every format of its cache, beside torch's over contiguous keys and values; and
latent attention at DeepSeek-V3's sizes (`latent.py`).

Run it with OMP_WAIT_POLICY=passive: torch's threads would otherwise wait awake on the cores of the pool.
"""

from __future__ import annotations

import statistics
import sys
import time
from collections.abc import Callable
from typing import Any

import ktc.backends.cpu
import torch

import ktc.dialect  # noqa: F401  registers its meaning
from benchmarks import latent
from benchmarks.machine import ROOT, header, save, table
from ktc import _cpu
from ktc.dialect.cache_formats import DTYPES, row_bytes, row_length, write
from ktc.runtime.arena import TensorArena

sys.path.insert(0, str(ROOT / "tests"))
from support.packed_weights import nmse

HEADS = {"SmolLM2": (9, 3, 64), "Gemma 3": (4, 1, 256), "Qwen3 MoE": (32, 4, 128)}
"""Query heads, key heads, head depth."""
DECODING, PREFILL = (1024, 8192), (512, 2048)
ROTATED_BYTES = 96 << 20
"""Caches that decoding steps go through in turn, so that none is found in the processor's."""
BLOCK = 32
TURN = 0.01
"""Seconds that a call is repeated before it is another's turn."""
Call = Callable[[], Any]


def caches(model: str, context: int, format: str, copies: int) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """Key and value caches of random rows on large pages, one after the other."""
    _, heads, depth = HEADS[model]
    dtype, blocks = DTYPES[format], -(-context // BLOCK)
    shape = (blocks, heads, BLOCK, row_length(depth, dtype))
    nbytes = blocks * heads * BLOCK * row_bytes(depth, dtype)
    arena = TensorArena(2 * copies * (nbytes + 64))
    places = torch.arange(blocks * BLOCK)
    made: list[torch.Tensor] = []
    for index in range(2 * copies):
        cache = arena.tensor(nbytes).view(dtype).view(shape)
        if index < 2:
            write(cache, places // BLOCK, places % BLOCK, torch.randn(blocks * BLOCK, heads, depth))
        else:
            cache.copy_(made[index % 2])
        made.append(cache)
    return list(zip(made[::2], made[1::2], strict=True))


def ours(model: str, new: int, context: int, format: str) -> tuple[Call, float, int]:
    """One step of one sequence: the call, its error against the float64 reference, bytes of its cache."""
    heads, kv_heads, depth = HEADS[model]
    nbytes = 2 * -(-context // BLOCK) * BLOCK * kv_heads * row_bytes(depth, DTYPES[format])
    pairs = caches(model, context, format, max(1, ROTATED_BYTES // nbytes) if new == 1 else 1)
    table_ = torch.arange(-(-context // BLOCK))[None].int()
    positions = torch.arange(context - new, context)
    operands = {
        "q": torch.randn(1, heads, new, depth), "k": torch.randn(1, kv_heads, new, depth),
        "v": torch.randn(1, kv_heads, new, depth), "key_cache": pairs[0][0], "value_cache": pairs[0][1],
        "seq_starts": torch.tensor([0, new], dtype=torch.int32),
        "context_lens": torch.tensor([context], dtype=torch.int32), "block_tables": table_,
        "slots": positions, "scale": depth**-0.5,
    }  # fmt: skip
    error = checked(operands, min(new, 64))
    turn = [0]

    def call() -> object:
        turn[0] = (turn[0] + 1) % len(pairs)
        keys, values = pairs[turn[0]]
        return torch.ops.kt_cpu.attention(**{**operands, "key_cache": keys, "value_cache": values})

    return call, error, nbytes


def checked(operands: dict[str, Any], new: int) -> float:
    """The error of a step of the last `new` tokens alone: the reference holds the scores of them all."""
    last = dict(operands)
    for name in "qkv":
        last[name] = operands[name][:, :, -new:]
    last["slots"] = operands["slots"][-new:]
    last["seq_starts"] = torch.tensor([0, new], dtype=torch.int32)
    wanted = torch.ops.kt.attention(**{**last, **{name: last[name].double() for name in "qkv"}})
    return float(nmse(torch.ops.kt_cpu.attention(**last), wanted))


def peer(model: str, new: int, context: int, dtype: torch.dtype) -> Call:
    """torch's scaled_dot_product_attention on contiguous keys and values, a step from an empty or a full cache."""
    heads, kv_heads, depth = HEADS[model]
    nbytes = 2 * context * kv_heads * depth * dtype.itemsize
    copies = max(1, ROTATED_BYTES // nbytes) if new == 1 else 1
    q = torch.randn(1, heads, new, depth).to(dtype)
    pairs = [torch.randn(2, 1, kv_heads, context, depth).to(dtype) for _ in range(copies)]
    turn = [0]

    def call() -> object:
        turn[0] = (turn[0] + 1) % copies
        keys, values = pairs[turn[0]]
        return torch.nn.functional.scaled_dot_product_attention(
            q, keys, values, is_causal=new > 1, enable_gqa=True
        )

    return call


def medians(calls: list[Call], seconds: float) -> list[float]:
    """Median seconds of each call, in turns of some milliseconds for about `seconds` in all."""
    found: list[list[float]] = [[] for _ in calls]
    end = time.perf_counter() + seconds
    while time.perf_counter() < end or len(found[0]) < 3:
        for call, times in zip(calls, found, strict=True):
            call()  # lets threads of the one before go to sleep
            stop, start = time.perf_counter() + TURN, time.perf_counter()
            while start < stop:
                call()
                times.append(time.perf_counter() - start)
                start += times[-1]
    return [statistics.median(times) for times in found]


LATENT_STEPS = ((1, 512), (1, 4096), (64, 512), (512, 512))
"""New tokens, and the context with them."""


def latent_rows(peak: float) -> list[tuple[str, ...]]:
    """Rows of latent attention; rates count the form that takes fewer operations."""
    layer, rows = latent.Layer(), []
    for new, context in LATENT_STEPS:
        expanded = latent.multiply_adds(new, context, True) < latent.multiply_adds(new, context, False)
        operands = {f: layer.operands(new, context, t) for f, t in DTYPES.items() if f != "q8_0"}
        peers = [layer.peer(new, context, t, expanded) for t in (torch.float32, torch.bfloat16)]
        errors = [layer.error(given) for given in operands.values()]
        times = medians([*(layer.ours(given) for given in operands.values()), *peers], 4.0)
        flops = 2 * latent.multiply_adds(new, context, expanded)
        for format, error, seconds in zip(operands, errors, times, strict=False):
            rows.append((
                "decode" if new == 1 else f"{new} new" if new < context else "prefill", "DeepSeek-V3, latent",
                str(context), format, f"{seconds * 1e6:.0f}",
                f"{flops / seconds / 1e9:.0f} GFLOPS, {flops / seconds / peak:.0%}", f"{error:.0e}",
                f"{times[-2] / seconds:.1f}", f"{times[-1] / seconds:.1f}",
            ))  # fmt: skip
    return rows


def main() -> None:
    """Measures on the pool's threads, and saves the table."""
    threads = _cpu.threads()
    torch.set_num_threads(threads)
    torch.manual_seed(0)
    formats = tuple(DTYPES)
    region = TensorArena(256 << 20).tensor(256 << 20)
    region.fill_(1)
    bandwidth = max(_cpu.read_bandwidth(region.data_ptr(), region.numel(), n, 0.3) for n in (1, 2, 4))
    peak = _cpu.operations("f32", 0.3)
    rows: list[tuple[str, ...]] = []
    for new, contexts in ((1, DECODING), (0, PREFILL)):
        for model, (heads, _, depth) in HEADS.items():
            for context in contexts:
                made = [ours(model, new or context, context, format) for format in formats]
                peers = [peer(model, new or context, context, t) for t in (torch.float32, torch.bfloat16)]
                times = medians([*(call for call, _, _ in made), *peers], 0.6 if new else 2.0)
                for format, (_, error, nbytes), seconds in zip(formats, made, times, strict=False):
                    flops = 4 * heads * depth * (context if new else context * (context + 1) / 2)
                    rate = (
                        f"{nbytes / seconds / 1e9:.1f} GB/s, {nbytes / seconds / bandwidth:.0%}" if new
                        else f"{flops / seconds / 1e9:.0f} GFLOPS, {flops / seconds / peak:.0%}"
                    )  # fmt: skip
                    rows.append((
                        "decode" if new else "prefill", model, str(context), format, f"{seconds * 1e6:.0f}", rate,
                        f"{error:.0e}", f"{times[-2] / seconds:.1f}", f"{times[-1] / seconds:.1f}",
                    ))  # fmt: skip
    rows += latent_rows(peak)
    facts = (
        f"threads: {threads}; one sequence; medians of calls in turns of {TURN * 1e3:.0f} ms,"
        " torch's threads waiting asleep",
        f"limits measured before: {bandwidth / 1e9:.1f} GB/s (2 MiB pages), {peak / 1e9:.0f} GFLOPS of float32",
        "errors: NMSE against the reference in float64 on the same cached rows",
        "rates of latent attention are of the arithmetic of the cheaper form, projections included; its weights are"
        " q8_0, and its errors against their exact values contain the int8 activations of absorbed products",
        "torch: scaled_dot_product_attention over contiguous keys and values, nothing written to a cache; latent"
        " attention as matrix products, absorbed or expanded, weights in the type of the column",
    )
    columns = (
        "step", "heads of", "context", "cache", "us", "rate, of the limit", "NMSE", "x torch f32", "x torch bf16",
    )  # fmt: skip
    save(f"attention-{threads}t", header("Attention", *facts) + "\n" + table(columns, rows))


if __name__ == "__main__":
    main()
