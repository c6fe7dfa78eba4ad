"""Converts weights between number formats: blocks as they lie in a GGUF file to float32 and back.

Dequantisation agrees bit for bit with the `gguf` package. Of the quantisers, q4_0 and q8_0 agree with it
too; q4_k and q6_k search scales that minimise the (weighted) squared error: cpp/formats/quantize_q4_k.hpp.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NoReturn

import numpy as np
import numpy.typing as npt

from ktc import _cpu
from ktc.errors import ShapeMismatchError, UnsupportedFormatError, WeightError
from ktc.weights.formats import FORMATS, find, nbytes

Bytes = npt.NDArray[np.uint8]
Floats = npt.NDArray[np.float32]

QUANTIZABLE: tuple[str, ...] = tuple(name for name in FORMATS if _cpu.can_quantize(name))
"""The formats that `quantize` writes."""

_SLAB_ELEMENTS = 1 << 24
"""`convert` holds at most about this many values as float32 at a time (64 MiB)."""


class ConversionError(WeightError):
    """A value that the wanted number format cannot hold, or an array of another type than expected."""


def _of(tensor: str | None) -> str:
    return f" of {tensor}" if tensor else ""


def _check_readable(format: str) -> None:
    find(format)
    if format not in FORMATS:
        raise UnsupportedFormatError(
            f"ktc does not compute with {format}", hint=f"it reads {', '.join(FORMATS)}"
        )


def _check_writable(format: str) -> None:
    _check_readable(format)
    if format not in QUANTIZABLE:
        raise UnsupportedFormatError(
            f"ktc does not quantise to {format}", hint=f"it quantises to {', '.join(QUANTIZABLE)}"
        )


def _flat_bytes(data: Bytes, format: str, shape: Sequence[int], tensor: str | None) -> Bytes:
    if data.dtype != np.uint8:
        raise ConversionError(f"the data{_of(tensor)} is {data.dtype}, not uint8", tensor=tensor)
    if any(size < 0 for size in shape):
        raise ShapeMismatchError(f"the shape{_of(tensor)}, {list(shape)}, has a negative size", tensor=tensor)
    wanted = nbytes(format, shape)
    if data.size != wanted:
        raise ShapeMismatchError(
            f"the data{_of(tensor)} has {data.size} bytes; {format} of shape {list(shape)} takes {wanted}",
            tensor=tensor,
        )
    return np.ascontiguousarray(data).reshape(-1)


def dequantize(
    data: Bytes, format: str, shape: Sequence[int], *, out: Floats | None = None, tensor: str | None = None
) -> Floats:
    """The values of a tensor as float32.

    Args:
        data: uint8 of any shape; its bytes in C order are the tensor's blocks.
        format: a name in `ktc.weights.formats.FORMATS`.
        shape: the tensor's shape, last dimension fastest.
        out: float32, C-contiguous, of that shape; a new array by default.
        tensor: its name, for error messages.

    Returns:
        `out`, float32[shape].

    Raises:
        UnsupportedFormatError: ktc does not read `format`.
        ShapeMismatchError: `data` has not the size that format and shape need, or `out` another shape.
        ConversionError: `data` is not uint8, or `out` not contiguous float32.
    """
    _check_readable(format)
    flat = _flat_bytes(data, format, shape, tensor)
    if out is None:
        out = np.empty(tuple(shape), np.float32)
    elif out.dtype != np.float32 or not out.flags.c_contiguous or not out.flags.writeable:
        raise ConversionError("out is not a writable, contiguous float32 array", tensor=tensor)
    elif out.shape != tuple(shape):
        raise ShapeMismatchError(f"out has shape {list(out.shape)}, not {list(shape)}", tensor=tensor)
    _cpu.dequantize(flat, format, out.reshape(-1))
    return out


def quantize(x: Floats, format: str, *, importance: Floats | None = None, tensor: str | None = None) -> Bytes:
    """A tensor's blocks in another number format.

    Args:
        x: float32[..., K], K a multiple of the format's block.
        format: a name in `QUANTIZABLE`.
        importance: float32[K], finite and not negative: how much an error in each column counts, such as the
            mean square of the activations it meets. Only q4_k and q6_k heed it.
        tensor: its name, for error messages.

    Returns:
        uint8[..., bytes of a row].

    Raises:
        UnsupportedFormatError: ktc does not write `format`.
        ShapeMismatchError: K is no multiple of the block, or `importance` has another length.
        ConversionError: a value that is not finite (block formats), or too large for float16 scales; the
            message names its index. f32, f16 and bf16 keep infinities and NaN.
    """
    _check_writable(format)
    if x.dtype != np.float32:
        raise ConversionError(f"the values{_of(tensor)} are {x.dtype}, not float32", tensor=tensor)
    columns = x.shape[-1] if x.ndim else 1
    packed_shape = (*x.shape[:-1], nbytes(format, (columns,)))
    out = np.empty(math.prod(packed_shape), np.uint8)
    rows = np.ascontiguousarray(x).reshape(math.prod(x.shape[:-1]), columns)
    fault, index = _cpu.quantize(rows, format, out, _checked_importance(importance, columns))
    if fault:
        _fail(fault, index, float(rows.reshape(-1)[index]), x.shape, format, tensor)
    return out.reshape(packed_shape)


def _fail(
    fault: str, index: int, value: float, shape: Sequence[int], format: str, tensor: str | None
) -> NoReturn:
    """Raises for what `_cpu.quantize` reported at `index` of the flat tensor of `shape`."""
    where = [int(i) for i in np.unravel_index(index, tuple(shape))]
    if fault == "not_finite":
        raise ConversionError(f"the value{_of(tensor)} at index {where} is {value}", tensor=tensor)
    what = f"the value {value}" if find(format).block_elements == 1 else "the block"
    raise ConversionError(
        f"{what}{_of(tensor)} at index {where} is too large for {format}: float16 ends at 65504",
        tensor=tensor,
        hint="keep this tensor in bf16 or f32",
    )


def _checked_importance(importance: Floats | None, columns: int) -> Floats | None:
    if importance is None:
        return None
    if importance.shape != (columns,):
        raise ShapeMismatchError(f"importance has shape {list(importance.shape)}, not [{columns}]")
    weights = importance.astype(np.float64)
    if not np.isfinite(weights).all() or (weights < 0).any():
        raise ConversionError("importance has values that are negative or not finite")
    mean = float(weights.mean()) or 1.0
    # A column that never counts would leave its codes without an equation.
    return np.maximum(weights / mean, 1e-6).astype(np.float32)


def convert(
    data: Bytes, format: str, shape: Sequence[int], to_format: str, *, tensor: str | None = None
) -> Bytes:
    """A tensor's blocks in another number format, by way of float32.

    Args:
        data: uint8; as in `dequantize`.
        format: its format.
        shape: the tensor's shape, last dimension fastest.
        to_format: a name in `QUANTIZABLE`, or `format` itself.
        tensor: its name, for error messages.

    Returns:
        uint8[shape[:-1], bytes of a row]; a view of `data` when the formats are equal and it is contiguous.

    Raises:
        UnsupportedFormatError, ShapeMismatchError, ConversionError: as in `dequantize` and `quantize`.
    """
    _check_readable(format)
    flat = _flat_bytes(data, format, shape, tensor)
    columns = shape[-1] if shape else 1
    if format == to_format:
        return flat.reshape(*shape[:-1], nbytes(format, (columns,)))
    _check_writable(to_format)
    packed = (*shape[:-1], nbytes(to_format, (columns,)))
    rows = math.prod(shape[:-1])
    out = np.empty((rows, packed[-1]), np.uint8)
    row_bytes, slab = nbytes(format, (columns,)), max(1, _SLAB_ELEMENTS // max(columns, 1))
    for start in range(0, rows, slab):
        stop = min(start + slab, rows)
        values = dequantize(flat[start * row_bytes : stop * row_bytes], format, (stop - start, columns))
        fault, index = _cpu.quantize(values, to_format, out[start:stop].reshape(-1), None)
        if fault:
            _fail(fault, start * columns + index, float(values.flat[index]), shape, to_format, tensor)
    return out.reshape(packed)
