"""Weights of several matrices [count, rows, columns]: each packed on its own as r16, one behind the other.

Of experts one matrix is an expert's, of latent attention a head's.
"""

from __future__ import annotations

import torch
from ktc.backends.cpu import packed
from ktc.backends.cpu.library import refuse
from ktc.backends.registry import Layout, Weight

from ktc import _cpu

ALIGNMENT = 64
"""Every matrix starts at a multiple of this many bytes."""


def matrix_bytes(format: str, rows: int, columns: int) -> int:
    """Bytes of one packed matrix, up to the start of the next."""
    return -(-packed.packed_size(format, rows, columns) // ALIGNMENT) * ALIGNMENT


def packed_bytes(weight: Weight) -> int:
    """Bytes that `pack` writes for a weight [count, rows, columns]."""
    count, rows, columns = weight.shape
    return count * matrix_bytes(weight.format, rows, columns)


def pack(blocks: torch.Tensor, weight: Weight, out: torch.Tensor, order: torch.Tensor | None = None) -> None:
    """Packs the file blocks of all matrices (uint8, contiguous) into `out` (uint8[packed_bytes], 64-byte aligned).

    Args:
        order: int64[rows], of each matrix's rows in `out`; None for their own.

    Raises:
        OperandError: sizes, dtypes or alignment that do not fit.
    """
    count, rows, columns = weight.shape
    held = _cpu.file_bytes(weight.format, rows, columns)
    if blocks.dtype != torch.uint8 or blocks.numel() != count * held:
        raise refuse("pack", "blocks", blocks, f"uint8[{count * held}]")
    if out.dtype != torch.uint8 or out.numel() != packed_bytes(weight):
        raise refuse("pack", "out", out, f"uint8[{packed_bytes(weight)}]")
    one = Weight(weight.parameter, weight.format, (rows, columns))
    size, step = packed.packed_size(weight.format, rows, columns), matrix_bytes(weight.format, rows, columns)
    flat = blocks.reshape(-1)
    for index in range(count):
        share = flat[index * held : (index + 1) * held]
        if order is not None:
            share = share.reshape(rows, -1)[order].reshape(-1)
        packed.pack(share, one, out[index * step : index * step + size])


def check(
    op: str, operand: str, weight: torch.Tensor, format: str, shape: tuple[int, int, int], what: str
) -> None:
    """Raises OperandError unless `weight` holds the packed matrices of a shape; `what` names them, "experts"."""
    count, rows, columns = shape
    size = count * matrix_bytes(format, rows, columns)
    if (
        weight.dtype is not torch.uint8
        or weight.numel() != size
        or not weight.is_contiguous()
        or weight.data_ptr() % ALIGNMENT
    ):
        wanted = f"contiguous uint8[{size}] ({count} {what} of {format} [{rows}, {columns}])"
        raise refuse(op, operand, weight, f"{wanted}, at a multiple of {ALIGNMENT} bytes")


LAYOUT = Layout("r16.heads", packed.VERSION, pack, packed_bytes)
"""Rows in their own order, as latent attention reads them."""
