"""Dequantisation in plain torch ops, on any device: blocks as they lie in a file to float32.

Each function takes blocks uint8[n, bytes of a block] and returns float32[n, elements of a block], in the order of
operations of `ktc.weights.convert.dequantize`, with which the results agree bit for bit. The layouts are those of the
GGUF format; names as there: d scale, m minimum, q codes.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from ktc.backends.operands import OperandError, described

from ktc.weights.formats import FORMATS

Tensor = torch.Tensor

_NONLINEAR4 = (-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113)
_E2M1_DOUBLED = (0, 1, 2, 3, 4, 6, 8, 12, 0, -1, -2, -3, -4, -6, -8, -12)


def dequantize(blocks: Tensor, format: str, rows: int, columns: int) -> Tensor:
    """The values of a matrix, float32[rows, columns], on the device of its blocks.

    Args:
        blocks: uint8, contiguous, the file's bytes of the rows one after the other.
        format: a name in `FORMATS`.

    Raises:
        OperandError: a format without a function here, or blocks of another size.
    """
    unpack = _UNPACK.get(format)
    if unpack is None:
        raise OperandError(f"torch dequantises no {format}; it dequantises {', '.join(_UNPACK)}")
    found = FORMATS[format]
    count, rest = divmod(rows * columns, found.block_elements)
    if blocks.dtype is not torch.uint8 or rest or blocks.numel() != count * found.block_bytes:
        wanted = f"the uint8 blocks of {format} [{rows}, {columns}]"
        raise OperandError(f"`blocks` must be {wanted}, not {described(blocks)}")
    return unpack(blocks.reshape(count, found.block_bytes)).reshape(rows, columns)


def _as(part: Tensor, dtype: torch.dtype) -> Tensor:
    """Bytes of blocks as numbers of another type; cloned, since they may start at any address."""
    return part.clone(memory_format=torch.contiguous_format).view(dtype)


def _f16(part: Tensor) -> Tensor:
    return _as(part, torch.float16).float()


def _shifts(like: Tensor, *values: int) -> Tensor:
    return torch.tensor(values, dtype=torch.uint8, device=like.device)


def _fields(q: Tensor, groups: int, mask: int, *shifts: int) -> Tensor:
    """Bit fields of codes uint8[n, groups * w], as uint8[n, groups, fields, w]: field by field in each group."""
    return q.reshape(len(q), groups, 1, -1) >> _shifts(q, *shifts)[:, None] & mask


def _nibbles(q: Tensor) -> Tensor:
    """Low nibbles, then high ones: uint8[n, w] -> uint8[n, 2 w]."""
    return torch.cat((q & 15, q >> 4), dim=-1)


def _table(q: Tensor, values: tuple[int, ...]) -> Tensor:
    return torch.tensor(values, dtype=torch.float32, device=q.device)[q.int()]


def _f32(p: Tensor) -> Tensor:
    return _as(p, torch.float32)


def _bf16(p: Tensor) -> Tensor:
    return _as(p, torch.bfloat16).float()


def _q4_0(p: Tensor) -> Tensor:
    return _f16(p[:, :2]) * (_nibbles(p[:, 2:]).float() - 8)


def _q4_1(p: Tensor) -> Tensor:
    return _f16(p[:, :2]) * _nibbles(p[:, 4:]).float() + _f16(p[:, 2:4])


def _five_bits(p: Tensor) -> Tensor:
    """4 bytes of high bits, then 16 bytes of nibbles -> uint8[n, 32]."""
    high = (p[:, :4, None] >> _shifts(p, *range(8)) & 1).flatten(1)
    return _nibbles(p[:, 4:]) | high << 4


def _q5_0(p: Tensor) -> Tensor:
    return _f16(p[:, :2]) * (_five_bits(p[:, 2:]).float() - 16)


def _q5_1(p: Tensor) -> Tensor:
    return _f16(p[:, :2]) * _five_bits(p[:, 4:]).float() + _f16(p[:, 2:4])


def _q8_0(p: Tensor) -> Tensor:
    return p[:, 2:].view(torch.int8).float() * _f16(p[:, :2])


def _q2_k(p: Tensor) -> Tensor:
    d, m = _f16(p[:, 80:82]) * (p[:, :16] & 15).float(), _f16(p[:, 82:84]) * (p[:, :16] >> 4).float()
    q = _fields(p[:, 16:80], 2, 3, 0, 2, 4, 6).reshape(-1, 16, 16).float()
    return (d[..., None] * q - m[..., None]).flatten(1)


def _q3_k(p: Tensor) -> Tensor:
    low = _fields(p[:, 96:104], 1, 15, 0, 4).flatten(1)
    high = _fields(p[:, 104:108], 1, 3, 0, 2, 4, 6).flatten(1)
    d = _f16(p[:, 108:110]) * ((low | high << 4).float() - 32)
    q = _fields(p[:, 32:96], 2, 3, 0, 2, 4, 6).flatten(1).float()
    bits = _fields(p[:, :32], 1, 1, *range(8)).flatten(1).float()  # a cleared bit subtracts 4
    return (d[..., None] * (q - (4 - bits * 4)).reshape(-1, 16, 16)).flatten(1)


def _six_bit_pairs(packed: Tensor) -> tuple[Tensor, Tensor]:
    """The 8 scales and 8 minima of Q4_K and Q5_K, 6 bits each in 12 bytes, as float32[n, 8]."""
    first, second, last = packed[:, :4], packed[:, 4:8], packed[:, 8:]
    scales = torch.cat((first & 63, last & 15 | first >> 2 & 48), dim=-1)
    minima = torch.cat((second & 63, last >> 4 | second >> 2 & 48), dim=-1)
    return scales.float(), minima.float()


def _q4_k(p: Tensor) -> Tensor:
    scales, minima = _six_bit_pairs(p[:, 4:16])
    d, m = _f16(p[:, :2]) * scales, _f16(p[:, 2:4]) * minima
    q = _fields(p[:, 16:], 4, 15, 0, 4).reshape(-1, 8, 32).float()
    return (d[..., None] * q - m[..., None]).flatten(1)


def _q5_k(p: Tensor) -> Tensor:
    scales, minima = _six_bit_pairs(p[:, 4:16])
    d, m = _f16(p[:, :2]) * scales, _f16(p[:, 2:4]) * minima
    low = _fields(p[:, 48:], 4, 15, 0, 4).reshape(-1, 8, 32)
    high = _fields(p[:, 16:48], 1, 1, *range(8)).reshape(-1, 8, 32)
    return (d[..., None] * (low | high << 4).float() - m[..., None]).flatten(1)


def _q6_k(p: Tensor) -> Tensor:
    d = _f16(p[:, 208:]) * p[:, 192:208].view(torch.int8).float()
    low = _fields(p[:, :128], 2, 15, 0, 4).flatten(1)
    high = _fields(p[:, 128:192], 2, 3, 0, 2, 4, 6).flatten(1)
    q = ((low | high << 4).float() - 32).reshape(-1, 16, 16)
    return (d[..., None] * q).flatten(1)


def _iq4_nl(p: Tensor) -> Tensor:
    return _f16(p[:, :2]) * _table(_nibbles(p[:, 2:]), _NONLINEAR4)


def _iq4_xs(p: Tensor) -> Tensor:
    low = (p[:, 4:8, None] >> _shifts(p, 0, 4) & 15).flatten(1)
    high = (p[:, 2:4, None] >> _shifts(p, 0, 2, 4, 6) & 3).flatten(1)
    d = _f16(p[:, :2]) * ((low | high << 4).float() - 32)
    q = _nibbles(p[:, 8:].reshape(len(p), 8, 16))
    return (d[..., None] * _table(q, _NONLINEAR4)).flatten(1)


def _mxfp4(p: Tensor) -> Tensor:
    e = p[:, :1].int()
    # Half of 2^(e-127), since the table holds doubled values; the two smallest are subnormal.
    d = torch.where(e < 2, 0x00200000 << e, (e - 1).clamp_min(0) << 23).view(torch.float32)
    return d * _table(_nibbles(p[:, 1:]), _E2M1_DOUBLED)


def _fp8(p: Tensor) -> Tensor:
    return _as(p[:, 4:], torch.float8_e4m3fn).float() * _as(p[:, :4], torch.float32)


_UNPACK: Mapping[str, Callable[[Tensor], Tensor]] = {
    "f32": _f32,
    "f16": _f16,
    "bf16": _bf16,
    "q4_0": _q4_0,
    "q4_1": _q4_1,
    "q5_0": _q5_0,
    "q5_1": _q5_1,
    "q8_0": _q8_0,
    "q2_k": _q2_k,
    "q3_k": _q3_k,
    "q4_k": _q4_k,
    "q5_k": _q5_k,
    "q6_k": _q6_k,
    "iq4_nl": _iq4_nl,
    "iq4_xs": _iq4_xs,
    "mxfp4": _mxfp4,
    "fp8": _fp8,
}

FORMATS_READ = frozenset(name for name in _UNPACK if name in FORMATS)
"""The formats that `dequantize` reads."""
BLOCK_FORMATS = frozenset(name for name in FORMATS_READ if FORMATS[name].block_elements > 1)
"""Those of them that are quantised."""
