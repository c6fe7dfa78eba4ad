"""Weights in every number format with chosen block contents, packed for the CPU kernels."""

from __future__ import annotations

import gguf
import numpy as np
import torch
from ktc.backends.cpu import packed
from ktc.backends.registry import Weight

from ktc import _cpu
from ktc.weights.formats import FORMATS

SCALES = {
    "q4_0": (0,), "q4_1": (0, 2), "q5_0": (0,), "q5_1": (0, 2), "q8_0": (0,), "q2_k": (80, 82),
    "q3_k": (108,), "q4_k": (0, 2), "q5_k": (0, 2), "q6_k": (208,), "iq4_nl": (0,), "iq4_xs": (0,),
}  # fmt: skip
"""Where a block holds float16 numbers: random bits there would give NaN and infinities."""


def columns_step(format: str) -> int:
    """Packed rows are multiples of this."""
    return max(32, FORMATS[format].block_elements)


def make_blocks(format: str, rows: int, columns: int, seed: int = 0, code: int | None = None) -> torch.Tensor:
    """File blocks, uint8: random, or every byte that is no float16 scale equal to `code`."""
    rng = np.random.default_rng(seed)
    if FORMATS[format].block_elements == 1:
        x = rng.standard_normal((rows, columns)).astype(np.float32)
        if format == "bf16":
            raw = (x.view(np.uint32) >> 16).astype(np.uint16).view(np.uint8)
        else:
            raw = x.astype(np.float16 if format == "f16" else np.float32).view(np.uint8)
        return torch.from_numpy(raw.reshape(-1).copy())
    count = rows * columns // FORMATS[format].block_elements
    blocks = rng.integers(0, 256, (count, FORMATS[format].block_bytes), dtype=np.uint8)
    if code is not None:
        blocks[:] = code
    if format == "fp8":
        blocks[(blocks & 0x7F) == 0x7F] -= 1  # a code that is NaN
        blocks[:, :4] = rng.uniform(1e-3, 2e-2, (count, 1)).astype(np.float32).view(np.uint8)
    if format == "mxfp4":
        blocks[:, 0] = rng.integers(118, 128, count)
    for place in SCALES.get(format, ()):
        numbers = rng.uniform(1e-3, 2e-2, (count, 1)) * rng.choice([-1.0, 1.0], (count, 1))
        blocks[:, place : place + 2] = numbers.astype(np.float16).view(np.uint8)
    return torch.from_numpy(blocks.reshape(-1))


def dense(format: str, blocks: torch.Tensor, rows: int, columns: int) -> torch.Tensor:
    """What the blocks mean, float32[rows, columns], by the gguf package; fp8 by torch's float8."""
    if format == "fp8":
        parts = blocks.reshape(-1, 132)
        codes, scales = parts[:, 4:].contiguous(), parts[:, :4].contiguous()
        values = codes.view(torch.float8_e4m3fn).float() * scales.view(torch.float32)
        return values.reshape(rows, columns)
    kind = gguf.GGMLQuantizationType[format.upper()]
    raw = blocks.numpy().reshape(rows, -1)
    if format in ("f32", "f16"):
        raw = raw.view(np.float32 if format == "f32" else np.float16)
    values = np.asarray(gguf.dequantize(raw, kind), dtype=np.float32)
    return torch.from_numpy(values.reshape(rows, columns).copy())


def aligned(nbytes: int, fill: int = 0xA5) -> torch.Tensor:
    """Bytes at a multiple of 64, filled with what no kernel may leave in its result."""
    memory = torch.full((nbytes + 64,), fill, dtype=torch.uint8)
    start = -memory.data_ptr() % 64
    return memory[start : start + nbytes]


def pack(format: str, blocks: torch.Tensor, rows: int, columns: int) -> torch.Tensor:
    """The packed weight."""
    weight = Weight("w", format, (rows, columns))
    out = aligned(packed.packed_bytes(weight))
    packed.pack(blocks, weight, out)
    return out


def nmse(value: torch.Tensor, wanted: torch.Tensor) -> float:
    """Normalised mean square error against a float64 result; infinite when a value is not finite."""
    if not torch.isfinite(value).all():
        return float("inf")
    return float((value.double() - wanted).square().sum() / wanted.square().sum().clamp_min(1e-300))


FLOATS = ("f32", "f16", "bf16", "fp8")
"""Formats that meet float activations; the others meet int8, or bf16 on tiles."""
ROUNDED_TOKENS = 3
"""From so many tokens on, a level that multiplies bf16 rounds activations for weights of bf16 and fp8; rounded.hpp."""
TILE_TOKENS = 32
"""From so many tokens on, the kernels of level amx round activations and weights to bf16; TileKernels in tables.hpp."""

GROUPED = ("q4_1", "q5_1", "q2_k", "q3_k", "q4_k", "q5_k", "q6_k")
"""Formats whose kernels of many tokens take activations in groups of 256 columns; takes_groups in packed/format.hpp."""
GROUP_TOKENS = 8
"""From so many tokens on they do; of experts, on average."""


def on_tiles(tokens: int) -> bool:
    """Whether the level in force multiplies quantised weights with so many tokens on tiles of bf16."""
    return _cpu.isa() == "amx" and tokens >= TILE_TOKENS


def rounded(format: str, tokens: int) -> bool:
    """Whether the level in force rounds so many tokens to bf16 for weights of this format."""
    return _cpu.isa() == "avx512vnni" and format in ("bf16", "fp8") and tokens >= ROUNDED_TOKENS


def grouped(format: str, tokens: int) -> bool:
    """Whether the level in force quantises so many tokens in groups for weights of this format."""
    level = _cpu.isa() in ("avx512vnni", "amx")
    return level and format in GROUPED and tokens >= GROUP_TOKENS and not on_tiles(tokens)


def as_bf16(x: torch.Tensor) -> torch.Tensor:
    """x as tiles see it, in float64."""
    return x.float().bfloat16().double()


def as_cut(weight: torch.Tensor) -> torch.Tensor:
    """A weight as tiles see it, in float64: a little larger, then cut to bf16 (kCut in tiles.inl.hpp)."""
    bits = (weight.double() * 1.0028).float().view(torch.int32) & -65536
    return bits.view(torch.float32).double()


def as_int8(x: torch.Tensor) -> torch.Tensor:
    """What the kernels make of float32 activations: codes and scales of blocks of 32, as float64."""
    blocks = x.reshape(*x.shape[:-1], -1, 32)
    highest = blocks.abs().amax(-1, keepdim=True)
    # Not `127 / highest`, which torch computes as 127 times the reciprocal.
    inverse = torch.where(highest > 0, torch.full_like(highest, 127.0) / highest, 0)
    codes = (blocks * inverse).round()
    return (codes.double() * (highest / 127).double()).reshape(x.shape)


def as_groups(x: torch.Tensor) -> torch.Tensor:
    """Groups of 256: the scale of a block is 1, 2, 3, 4, 6, 8, 12 or 16 of the group's (ActivationGroup)."""
    whole = torch.nn.functional.pad(x, (0, -x.shape[-1] % 256))
    groups = whole.reshape(*x.shape[:-1], -1, 8, 2, 16)
    sums = (groups.abs() * (1 / 1008)).sum(-1)
    alone = torch.maximum(groups.abs().amax(-1) * (1 / 127), sums).amax(-1, keepdim=True)
    largest = alone.amax(-2, keepdim=True)
    halvings = sum((alone <= largest / 2**i).int() for i in range(1, 5))
    scales = largest * 2.0**-halvings
    lower = (alone <= scales * 0.75) & (halvings <= 2)
    scales = torch.where(lower, scales * 0.75, scales)[..., None]
    codes = torch.where(scales > 0, groups * (1 / scales), 0).round().clamp(-127, 127)
    return (codes.double() * scales.double()).reshape(whole.shape)[..., : x.shape[-1]]


def as_codes(x: torch.Tensor, format: str, tokens: int) -> torch.Tensor:
    """What the kernels of a quantised format make of some of `tokens` float32 activations, as float64."""
    return as_groups(x) if grouped(format, tokens) else as_int8(x)
