"""The weight layout r16 as the registry sees it: which formats and shapes it takes, packing, and its sizes.

`linear` and `embedding` share it, so that tied weights are held once. See cpp/kernels/packed/format.hpp.
"""

from __future__ import annotations

from functools import cache

import torch
import torch.fx as fx
from ktc.backends.cpu.library import OperandError, refuse, shape_of
from ktc.backends.registry import Layout, Weight

from ktc import _cpu
from ktc.weights.formats import FORMATS


def _has_layout(format: str) -> bool:
    try:
        _cpu.packed_bytes(format, 16, 1024)
    except ValueError:
        return False
    return True


VERSION = 1
"""Raise it with any change to the bytes that packing writes, here or in cpp/kernels/packed."""
PACKED: tuple[str, ...] = tuple(name for name in FORMATS if _has_layout(name))
"""The formats that have a packed layout."""
COLUMNS = 32
"""Rows of packed weights are cut in tiles of this many columns."""


@cache
def format_id(name: str) -> int:
    """The number by which the C++ kernels know a format. Raises OperandError for one they do not take."""
    if name not in FORMATS:
        raise OperandError(f"no packed layout for format {name!r}; there is one for {', '.join(PACKED)}")
    return list(FORMATS).index(name)


@cache
def packed_size(format: str, rows: int, columns: int) -> int:
    """Bytes of a packed weight. Raises OperandError for a shape that has no packed layout."""
    format_id(format)
    try:
        return _cpu.packed_bytes(format, rows, columns)
    except ValueError as error:
        raise OperandError(str(error)) from error


def packed_bytes(weight: Weight) -> int:
    """Bytes that `pack` writes for a weight [rows, columns]. Raises OperandError where it cannot."""
    rows, columns = weight.shape
    return packed_size(weight.format, rows, columns)


def pack(blocks: torch.Tensor, weight: Weight, out: torch.Tensor) -> None:
    """Packs a weight's file blocks (uint8, contiguous) into `out` (uint8[packed_bytes], 64-byte aligned).

    Raises:
        OperandError: sizes, dtypes or alignment that do not fit.
    """
    rows, columns = weight.shape
    needed = packed_size(weight.format, rows, columns)
    have = _cpu.file_bytes(weight.format, rows, columns)
    if blocks.dtype != torch.uint8 or not blocks.is_contiguous() or blocks.numel() != have:
        raise refuse(
            "pack", "blocks", blocks, f"contiguous uint8[{have}] ({weight.format} of {list(weight.shape)})"
        )
    if out.dtype != torch.uint8 or not out.is_contiguous() or out.numel() != needed or out.data_ptr() % 64:
        raise refuse("pack", "out", out, f"contiguous uint8[{needed}] at a multiple of 64 bytes")
    _cpu.pack(weight.format, blocks.data_ptr(), rows, columns, out.data_ptr())


LAYOUT = Layout("r16", VERSION, pack, packed_bytes)


def unpack(packed: torch.Tensor, weight: Weight) -> torch.Tensor:
    """A packed weight as float32[rows, columns]. Raises OperandError for sizes that do not fit."""
    rows, columns = weight.shape
    check_packed("unpack", packed, weight.format, rows, columns)
    out = torch.empty((rows, columns), dtype=torch.float32)
    _cpu.unpack_rows(weight.format, packed.data_ptr(), rows, columns, 0, rows, out.data_ptr())
    return out


def check_packed(op: str, weight: torch.Tensor, format: str, rows: int, columns: int) -> None:
    """Raises OperandError unless `weight` is a packed weight of that format and shape."""
    if (
        weight.dtype is not torch.uint8
        or weight.numel() != packed_size(format, rows, columns)
        or not weight.is_contiguous()
        or weight.data_ptr() % 64
    ):
        size = packed_size(format, rows, columns)
        wanted = f"the contiguous uint8[{size}] of {format} [{rows}, {columns}], at a multiple of 64 bytes"
        raise refuse(op, "weight", weight, wanted)


def misfit(weight: object) -> str | None:
    """Why a node's weight operand has no packed layout, in words, or None."""
    if not isinstance(weight, fx.Node) or weight.op != "get_attr":
        return "its weight is computed, not a parameter"
    shape = shape_of(weight)
    if shape is None or len(shape) != 2:
        return "its weight is not a matrix"
    if shape[1] % COLUMNS:
        return f"its weight has {shape[1]} columns, which is no multiple of {COLUMNS}"
    return None
