"""Matrices held as a file's blocks: slabs of rows, dequantised one after the other, so that memory stays bounded."""

from __future__ import annotations

from collections.abc import Iterator

import torch
import torch.fx as fx
from ktc.backends.operands import shape_of
from ktc.backends.torch.dequantize import dequantize
from ktc.backends.torch.library import refuse

from ktc.weights.formats import nbytes

SLAB_ELEMENTS = 1 << 22
"""Elements that are dequantised at a time, or one row if it is longer."""
ELEMENT_BYTES = 18
"""Most bytes an element takes while it is dequantised: codes, their parts as float32, the product, the result."""


def slab_rows(columns: int) -> int:
    """Rows that are dequantised at a time."""
    return max(1, SLAB_ELEMENTS // max(columns, 1))


def slab_bytes(rows: int, columns: int) -> int:
    """Most bytes that `slabs` holds at a time of a matrix."""
    return min(rows, slab_rows(columns)) * columns * ELEMENT_BYTES


def slabs(blocks: torch.Tensor, format: str, rows: int, columns: int) -> Iterator[tuple[slice, torch.Tensor]]:
    """The matrix in pieces: which rows, and their values float32[n, columns]."""
    step, size = slab_rows(columns), nbytes(format, (columns,))
    for start in range(0, rows, step):
        stop = min(start + step, rows)
        yield (
            slice(start, stop),
            dequantize(blocks[start * size : stop * size], format, stop - start, columns),
        )


def check(op: str, operand: str, blocks: torch.Tensor, format: str, shape: tuple[int, ...]) -> None:
    """Raises OperandError unless `blocks` are a weight's blocks as they lie in a file."""
    wanted = nbytes(format, shape)
    if blocks.dtype is not torch.uint8 or blocks.numel() != wanted or not blocks.is_contiguous():
        what = f"the contiguous uint8[{wanted}] of {format} {list(shape)}"
        raise refuse(op, operand, blocks, what)


def multiply(
    x: torch.Tensor, blocks: torch.Tensor, bias: torch.Tensor | None, format: str, rows: int, columns: int
) -> torch.Tensor:
    """x[T, columns] times the transposed matrix of `blocks`, plus bias[rows] -> [T, rows] in x's dtype."""
    y = x.new_empty((x.shape[0], rows))
    for part, values in slabs(blocks, format, rows, columns):
        torch.mm(x, values.to(x.dtype).T, out=y[:, part])
        del values
    return y if bias is None else y.add_(bias.to(y.dtype))


def whole(op: str, operand: str, blocks: torch.Tensor, format: str, shape: tuple[int, ...]) -> torch.Tensor:
    """A weight's values, float32[shape]. Raises OperandError as `check` does."""
    check(op, operand, blocks, format, shape)
    out = torch.empty(shape, dtype=torch.float32, device=blocks.device)
    columns = shape[-1]
    flat = out.view(-1, columns)
    for part, values in slabs(blocks, format, len(flat), columns):
        flat[part] = values
    return out


def misfit(weight: object, dims: int) -> str | None:
    """Why a node's weight operand cannot be held as blocks, in words, or None."""
    if not isinstance(weight, fx.Node) or weight.op != "get_attr":
        return "its weight is computed, not a parameter"
    shape = shape_of(weight)
    return None if shape is not None and len(shape) == dims else f"its weight has not {dims} dimensions"
