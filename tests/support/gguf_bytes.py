"""Builds GGUF files byte by byte, so that any field can be wrong."""

from __future__ import annotations

import struct
from collections.abc import Sequence
from typing import Any

UINT32, INT32, FLOAT32, BOOL, STRING, ARRAY, UINT64 = 4, 5, 6, 7, 8, 9, 10
_LAYOUTS = {UINT32: "<I", INT32: "<i", FLOAT32: "<f", BOOL: "<B", UINT64: "<Q"}


def text(value: str | bytes, length: int | None = None) -> bytes:
    """A string with its length before it; `length` lies about it."""
    raw = value.encode() if isinstance(value, str) else value
    return struct.pack("<Q", len(raw) if length is None else length) + raw


def value(kind: int, content: Any) -> bytes:
    """A scalar or string without its type."""
    return text(content) if kind == STRING else struct.pack(_LAYOUTS[kind], content)


def pair(key: str | bytes, kind: int, content: Any) -> bytes:
    """A key with a scalar or string."""
    return text(key) + struct.pack("<I", kind) + value(kind, content)


def array(key: str, kind: int, contents: Sequence[Any], count: int | None = None) -> bytes:
    """A key with an array; `count` lies about its length."""
    head = struct.pack("<IIQ", ARRAY, kind, len(contents) if count is None else count)
    return text(key) + head + b"".join(value(kind, content) for content in contents)


def tensor(
    name: str | bytes, sizes: Sequence[int], kind: int = 0, offset: int = 0, dimensions: int | None = None
) -> bytes:
    """A tensor's entry; `sizes` in file order (fastest first), `dimensions` lies about their number."""
    count = len(sizes) if dimensions is None else dimensions
    return (
        text(name)
        + struct.pack("<I", count)
        + b"".join(struct.pack("<Q", size) for size in sizes)
        + struct.pack("<IQ", kind, offset)
    )


def gguf_bytes(
    pairs: Sequence[bytes] = (),
    tensors: Sequence[bytes] = (),
    data: bytes = b"",
    *,
    magic: bytes = b"GGUF",
    version: int = 3,
    tensor_count: int | None = None,
    pair_count: int | None = None,
    alignment: int = 32,
) -> bytes:
    """A whole file; the counts default to the truth."""
    head = magic + struct.pack(
        "<IQQ",
        version,
        len(tensors) if tensor_count is None else tensor_count,
        len(pairs) if pair_count is None else pair_count,
    )
    body = head + b"".join(pairs) + b"".join(tensors)
    return body + bytes(-len(body) % alignment) + data


def tiny_file() -> bytes:
    """A valid file with every value type and two tensors: f32 [2, 4] and q8_0 [1, 32]."""
    pairs = [
        pair("general.architecture", STRING, "llama"),
        pair("a.u32", UINT32, 7),
        pair("a.f32", FLOAT32, 0.5),
        pair("a.bool", BOOL, 1),
        pair("a.u64", UINT64, 1 << 40),
        array("a.strings", STRING, ["x", "", "née"]),
        array("a.numbers", INT32, [1, -2, 3]),
    ]
    return gguf_bytes(
        pairs, [tensor("one", [4, 2]), tensor("two", [32], 8, 32)], bytes(range(32)) + bytes(34)
    )
