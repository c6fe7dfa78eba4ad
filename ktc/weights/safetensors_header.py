"""The header of a safetensors file, checked: names, types, shapes and byte ranges; no tensor is read.

Format: https://huggingface.co/docs/safetensors. Eight bytes of length, a JSON object of that length, the
    data.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from itertools import pairwise
from pathlib import Path
from typing import Any, TypeGuard

from ktc.errors import SafetensorsError
from ktc.weights.tensor import TensorHeader

MAX_HEADER_BYTES = 32 << 20  # DeepSeek-V3, in one file, would need 12 MiB
_TYPES: Mapping[str, tuple[str, int]] = {
    "F32": ("f32", 4),
    "F16": ("f16", 2),
    "BF16": ("bf16", 2),
    "F64": ("f64", 8),
    "F8_E4M3": ("f8_e4m3", 1),
    "F8_E5M2": ("f8_e5m2", 1),
    "I64": ("i64", 8),
    "I32": ("i32", 4),
    "I16": ("i16", 2),
    "I8": ("i8", 1),
    "U8": ("u8", 1),
    "BOOL": ("bool", 1),
}


def read_header(path: Path) -> dict[str, TensorHeader]:
    """The tensors of one file by name.

    Raises:
        SafetensorsError: the file cannot be read or breaks the format.
    """
    try:
        size = path.stat().st_size
        with path.open("rb") as stream:
            length = int.from_bytes(stream.read(8), "little")
            if size < 8 or length > min(size - 8, MAX_HEADER_BYTES):
                raise SafetensorsError(
                    f"truncated or no safetensors file: header of {length} bytes", file=path
                )
            text = stream.read(length)
    except OSError as error:
        raise SafetensorsError(f"cannot be read: {error}", file=path) from error
    entries = parse_json(text, path)
    start = 8 + length
    headers = {
        name: _entry(name, entry, start, size, path)
        for name, entry in entries.items()
        if name != "__metadata__"
    }
    _refuse_overlap(headers, path)
    return headers


def parse_json(text: bytes, path: Path) -> dict[str, Any]:
    """A JSON object without repeated names.

    Raises:
        SafetensorsError: anything else.
    """

    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        found = dict(pairs)
        if len(found) != len(pairs):
            raise ValueError("a name appears twice")
        return found

    try:
        value = json.loads(text, object_pairs_hook=unique)
    except (ValueError, RecursionError) as error:
        raise SafetensorsError(f"the header is not valid JSON: {error}", file=path) from None
    if not isinstance(value, dict):
        raise SafetensorsError("the header is not a JSON object", file=path)
    return value


def _entry(name: str, entry: Any, start: int, size: int, path: Path) -> TensorHeader:
    def fail(message: str) -> SafetensorsError:
        return SafetensorsError(f"tensor {name!r}: {message}", file=path, tensor=name)

    if not isinstance(entry, dict):
        raise fail("its entry is not an object")
    dtype, shape, offsets = entry.get("dtype"), entry.get("shape"), entry.get("data_offsets")
    if not isinstance(dtype, str) or dtype not in _TYPES:
        raise fail(f"unknown dtype {dtype!r}")
    if not _integers(shape) or len(shape) > 8:
        raise fail(f"bad shape {shape!r}")
    if not _integers(offsets) or len(offsets) != 2 or not offsets[0] <= offsets[1] <= size - start:
        raise fail(f"data_offsets {offsets!r} lie outside the {size - start} bytes of data")
    kind, item = _TYPES[dtype]
    nbytes = math.prod(shape) * item
    if nbytes != offsets[1] - offsets[0]:
        raise fail(f"{offsets[1] - offsets[0]} bytes for {dtype} of {shape}, which takes {nbytes}")
    return TensorHeader(name, kind, tuple(shape), nbytes, path, start + offsets[0])


def _integers(values: Any) -> TypeGuard[list[int]]:
    return isinstance(values, list) and all(type(v) is int and 0 <= v < 2**63 for v in values)


def _refuse_overlap(headers: Mapping[str, TensorHeader], path: Path) -> None:
    ordered = sorted((h for h in headers.values() if h.nbytes), key=lambda header: header.offset)
    for before, after in pairwise(ordered):
        if before.offset + before.nbytes > after.offset:
            raise SafetensorsError(
                f"tensors {before.name!r} and {after.name!r} overlap", file=path, tensor=after.name
            )
