"""Random but valid blocks of GGUF formats: weights of zero mean and a given deviation, without quantising floats.

Codes are random bytes. Scales are random within a factor of two about the one that gives the deviation; where a format
has minima they cancel the mean of the codes. A gigabyte takes about a second a core.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor

import gguf
import numpy as np
import numpy.typing as npt

Blocks = npt.NDArray[np.uint8]
_PIECE = 32 << 20
"""Bytes made at a time by a thread."""


def _codes(values: int) -> float:
    """Deviation of uniform codes times a scale that is uniform from 1/2 to 3/2."""
    return float(np.sqrt((values**2 - 1) / 12 * (1 + 1 / 12)))


def _half(values: npt.NDArray[np.float32]) -> Blocks:
    """float32[n] as the bytes uint8[n, 2] of float16."""
    return values.astype(np.float16).view(np.uint8).reshape(-1, 2)


def _factors(rng: np.random.Generator, count: int, scale: float) -> npt.NDArray[np.float32]:
    return (rng.random(count, np.float32) + np.float32(0.5)) * np.float32(scale)


def _q8_0(blocks: Blocks, rng: np.random.Generator, deviation: float) -> None:
    blocks[:, :2] = _half(_factors(rng, len(blocks), deviation / _codes(256)))


def _q5_0(blocks: Blocks, rng: np.random.Generator, deviation: float) -> None:
    blocks[:, :2] = _half(_factors(rng, len(blocks), deviation / _codes(32)))


def _k_min(codes: int) -> Callable[[Blocks, np.random.Generator, float], None]:
    """Q4_K and Q5_K: d, dmin, eight scales and minima of 6 bits. Each minimum equals its scale."""

    def fill(blocks: Blocks, rng: np.random.Generator, deviation: float) -> None:
        scales = np.sqrt((np.arange(64) ** 2).mean())
        d = _factors(rng, len(blocks), float(deviation / _codes(codes) / scales))
        blocks[:, :2], blocks[:, 2:4] = _half(d), _half(d * np.float32((codes - 1) / 2))
        blocks[:, 8:12] = blocks[:, 4:8]
        blocks[:, 12:16] = (blocks[:, 12:16] & 15) * 17

    return fill


def _q6_k(blocks: Blocks, rng: np.random.Generator, deviation: float) -> None:
    """Sixteen signed scales of 8 bits, here from 64 to 127, and d at the end."""
    blocks[:, 192:208] = blocks[:, 192:208] & 63 | 64
    scales = np.sqrt((np.arange(64, 128) ** 2).mean())
    blocks[:, 208:] = _half(_factors(rng, len(blocks), float(deviation / _codes(64) / scales)))


_FORMATS: dict[str, Callable[[Blocks, np.random.Generator, float], None]] = {
    "q8_0": _q8_0,
    "q5_0": _q5_0,
    "q4_k": _k_min(16),
    "q5_k": _k_min(32),
    "q6_k": _q6_k,
}


def kind(format: str) -> gguf.GGMLQuantizationType:
    """gguf's number of a format."""
    return gguf.GGMLQuantizationType[format.upper()]


def size(format: str, elements: int) -> int:
    """Bytes of so many elements. Raises ValueError when they are no whole blocks."""
    block, bytes_each = gguf.GGML_QUANT_SIZES[kind(format)]
    if elements % block:
        raise ValueError(f"{elements} elements are no whole blocks of {format}")
    return elements // block * bytes_each


def pieces(format: str, elements: int, deviation: float, seed: int) -> Iterator[Blocks]:
    """The bytes of a tensor, in order, uint8[n] each.

    Args:
        format: a quantised one of this file, or "f32".
        elements: of the tensor.
        deviation: standard deviation of the weights; for f32 they are normal.
        seed: of the random numbers.
    """
    if format == "f32":
        yield (
            np.random.default_rng(seed).standard_normal(elements, np.float32) * np.float32(deviation)
        ).view(np.uint8)
        return
    fill, bytes_each = _FORMATS[format], gguf.GGML_QUANT_SIZES[kind(format)][1]
    total = size(format, elements) // bytes_each
    step = _PIECE // bytes_each

    def make(first: int) -> Blocks:
        count = min(step, total - first)
        rng = np.random.Generator(np.random.SFC64([seed, first]))
        words = rng.integers(0, 1 << 64, -(-count * bytes_each // 8), np.uint64)
        blocks = words.view(np.uint8)[: count * bytes_each].reshape(count, bytes_each)
        fill(blocks, rng, deviation)
        return blocks.reshape(-1)

    threads = len(os.sched_getaffinity(0))
    with ThreadPoolExecutor(threads) as pool:
        starts = range(0, total, step)
        for batch in range(0, len(starts), threads):
            yield from pool.map(make, starts[batch : batch + threads])
