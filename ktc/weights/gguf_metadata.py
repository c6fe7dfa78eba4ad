"""The metadata of a GGUF file: a bounds-checked cursor over untrusted bytes, and typed access to the values.

Format: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md. All integers are little-endian.
"""

from __future__ import annotations

import mmap
import struct
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from enum import IntEnum
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from ktc.errors import GgufError, MetadataError

# Bounds on what a header may ask for. They are far above any real model (a vocabulary of 262,144 tokens with
# 514,906 merges is the largest seen) and keep the memory and time of a hostile file small.
MAX_HEADER_BYTES = 256 << 20
MAX_KEYS = 1 << 16
MAX_STRING_BYTES = 16 << 20
MAX_STRINGS = 1 << 21
MAX_NAME_BYTES = 1 << 12


class ValueType(IntEnum):
    """The type number of a metadata value."""

    UINT8 = 0
    INT8 = 1
    UINT16 = 2
    INT16 = 3
    UINT32 = 4
    INT32 = 5
    FLOAT32 = 6
    BOOL = 7
    STRING = 8
    ARRAY = 9
    UINT64 = 10
    INT64 = 11
    FLOAT64 = 12


_SCALARS: Mapping[ValueType, struct.Struct] = {
    ValueType.UINT8: struct.Struct("<B"),
    ValueType.INT8: struct.Struct("<b"),
    ValueType.UINT16: struct.Struct("<H"),
    ValueType.INT16: struct.Struct("<h"),
    ValueType.UINT32: struct.Struct("<I"),
    ValueType.INT32: struct.Struct("<i"),
    ValueType.FLOAT32: struct.Struct("<f"),
    ValueType.BOOL: struct.Struct("<B"),
    ValueType.UINT64: struct.Struct("<Q"),
    ValueType.INT64: struct.Struct("<q"),
    ValueType.FLOAT64: struct.Struct("<d"),
}
_U32, _U64 = struct.Struct("<I"), struct.Struct("<Q")
_FLOATS = frozenset({ValueType.FLOAT32, ValueType.FLOAT64})
_INTEGERS = frozenset(_SCALARS) - _FLOATS - {ValueType.BOOL}


class Cursor:
    """Reads forward through the header of a file; every read is checked against the file's end and the
    bounds.
    """

    def __init__(self, data: mmap.mmap | bytes, file: Path) -> None:
        self._data = data
        self._end = min(len(data), MAX_HEADER_BYTES)
        self._strings_left = MAX_STRINGS
        self.file = file
        self.position = 0

    @property
    def remaining(self) -> int:
        """Bytes left of the file, or of the largest header allowed."""
        return self._end - self.position

    def error(self, message: str, key: str | None = None) -> GgufError:
        """An error that says where in the file it arose."""
        return GgufError(f"{message} (at byte {self.position})", file=self.file, tensor=key)

    def require(self, count: int, what: str, key: str | None = None) -> None:
        """Refuses a read of `count` bytes that would pass the end."""
        if count > self.remaining:
            whose = f" of {key!r}" if key else ""
            if self._end < len(self._data) and self.position + count <= len(self._data):
                raise self.error(f"the header is larger than {MAX_HEADER_BYTES >> 20} MiB", key)
            raise self.error(f"truncated: {what}{whose} needs {count} bytes, {self.remaining} are left", key)

    def scalar(self, kind: ValueType, what: str, key: str | None = None) -> Any:
        """One number or bool."""
        layout = _SCALARS[kind]
        self.require(layout.size, what, key)
        (value,) = layout.unpack_from(self._data, self.position)
        if kind is ValueType.BOOL:
            if value > 1:
                raise self.error(f"{what} of {key!r} is a bool with the value {value}", key)
            value = bool(value)
        self.position += layout.size
        return value

    def u32(self, what: str, key: str | None = None) -> int:
        """One unsigned 32-bit integer."""
        self.require(4, what, key)
        (value,) = _U32.unpack_from(self._data, self.position)
        self.position += 4
        return int(value)

    def u64(self, what: str, key: str | None = None) -> int:
        """One unsigned 64-bit integer."""
        self.require(8, what, key)
        (value,) = _U64.unpack_from(self._data, self.position)
        self.position += 8
        return int(value)

    def text(self, what: str, key: str | None = None, limit: int = MAX_STRING_BYTES) -> str:
        """One UTF-8 string with its 64-bit length before it."""
        length = self.u64(f"the length of {what}", key)
        if length > limit:
            raise self.error(f"{what} is {length} bytes long; at most {limit} are allowed", key)
        self.require(length, what, key)
        raw = self._data[self.position : self.position + length]
        try:
            decoded = raw.decode("utf-8")
        except UnicodeDecodeError as error:
            raise self.error(f"{what} is not valid UTF-8 ({error.reason})", key) from None
        self.position += length
        return decoded

    def texts(self, count: int, key: str) -> list[str]:
        """`count` strings, one after the other."""
        if count > self._strings_left:
            raise self.error(f"{key!r} claims {count} strings; a file may hold {MAX_STRINGS} in all", key)
        self.require(count * 8, f"an array of {count} strings", key)
        self._strings_left -= count
        found = []
        data, end, position = self._data, self._end, self.position
        for _ in range(count):  # vocabularies have hundreds of thousands: no call a string while all is well
            start = position + 8
            length = _U64.unpack_from(data, position)[0] if start <= end else end
            stop = start + length
            if stop <= end and length <= MAX_STRING_BYTES:
                try:
                    found.append(data[start:stop].decode("utf-8"))
                    position = stop
                    continue
                except UnicodeDecodeError:
                    pass
            self.position = position
            found.append(self.text("a string", key))  # raises, and says why
            position = self.position
        self.position = position
        return found

    def numbers(self, kind: ValueType, count: int, key: str) -> npt.NDArray[Any]:
        """`count` numbers or bools as a copy, so that the file need not stay mapped for them."""
        layout = _SCALARS[kind]
        self.require(count * layout.size, f"an array of {count} numbers", key)
        values = np.frombuffer(self._data, np.dtype(layout.format), count, self.position).copy()
        if kind is ValueType.BOOL:
            if (values > 1).any():
                raise self.error(f"{key!r} is an array of bools with a value above 1", key)
            values = values.astype(np.bool_)
        self.position += count * layout.size
        return values

    def kind(self, what: str, key: str) -> ValueType:
        """The type number of a value."""
        number = self.u32(what, key)
        try:
            return ValueType(number)
        except ValueError:
            raise self.error(f"{what} of {key!r} is {number}, which is no GGUF value type", key) from None


@dataclass(frozen=True, slots=True)
class Value:
    """A metadata value with the type it has in the file; `item` is the element type of an array."""

    kind: ValueType
    value: Any
    item: ValueType | None = None

    def describe(self) -> str:
        """The type in words, for messages."""
        if self.item is not None:
            return f"array of {self.item.name.lower()}"
        return self.kind.name.lower()


def read_value(cursor: Cursor, key: str) -> Value:
    """Reads the type and the value that follow a key.

    Raises:
        GgufError: unknown type, array of arrays, or more data than the file holds.
    """
    kind = cursor.kind("the type", key)
    if kind is ValueType.STRING:
        return Value(kind, cursor.text(f"the value of {key!r}", key))
    if kind is not ValueType.ARRAY:
        return Value(kind, cursor.scalar(kind, "the value", key))
    item = cursor.kind("the element type", key)
    count = cursor.u64("the length", key)
    if item is ValueType.ARRAY:
        raise cursor.error(
            f"{key!r} is an array of arrays, which no known model uses and ktc does not read", key
        )
    if item is ValueType.STRING:
        return Value(kind, cursor.texts(count, key), item)
    return Value(kind, cursor.numbers(item, count, key), item)


class Metadata(Mapping[str, Value]):
    """The key-value pairs of a file; the getters check the type and raise MetadataError naming the key."""

    def __init__(self, values: Mapping[str, Value], file: Path) -> None:
        self._values = dict(values)
        self.file = file

    def __getitem__(self, key: str) -> Value:
        return self._values[key]

    def __iter__(self) -> Iterator[str]:
        return iter(self._values)

    def __len__(self) -> int:
        return len(self._values)

    def error(self, key: str, message: str, hint: str = "") -> MetadataError:
        """An error about one key."""
        return MetadataError(f"metadata {key!r}: {message}", file=self.file, tensor=key, hint=hint)

    def _mismatch(self, key: str, wanted: str) -> MetadataError:
        return self.error(key, f"expected {wanted}, found {self._values[key].describe()}")

    def required(self, key: str) -> Value:
        """The value of a key that must be there."""
        if key not in self._values:
            raise self.error(key, "is missing")
        return self._values[key]

    def text(self, key: str, default: str | None = None) -> str:
        """A string."""
        if default is not None and key not in self._values:
            return default
        value = self.required(key)
        if value.kind is not ValueType.STRING:
            raise self._mismatch(key, "a string")
        return str(value.value)

    def integer(self, key: str, default: int | None = None, *, low: int = 0, high: int = 2**31 - 1) -> int:
        """An integer of any width within [low, high]."""
        if default is not None and key not in self._values:
            return default
        value = self.required(key)
        if value.kind not in _INTEGERS:
            raise self._mismatch(key, "an integer")
        number = int(value.value)
        if not low <= number <= high:
            raise self.error(key, f"is {number}, outside {low} to {high}")
        return number

    def number(self, key: str, default: float | None = None) -> float:
        """A finite number."""
        if default is not None and key not in self._values:
            return default
        value = self.required(key)
        if value.kind not in _INTEGERS | _FLOATS:
            raise self._mismatch(key, "a number")
        if not np.isfinite(value.value):
            raise self.error(key, f"is {value.value}")
        return float(value.value)

    def flag(self, key: str, default: bool | None = None) -> bool:
        """A bool."""
        if default is not None and key not in self._values:
            return default
        value = self.required(key)
        if value.kind is not ValueType.BOOL:
            raise self._mismatch(key, "a bool")
        return bool(value.value)

    def texts(self, key: str) -> list[str]:
        """An array of strings."""
        value = self.required(key)
        if value.item is not ValueType.STRING:
            raise self._mismatch(key, "an array of strings")
        return list(value.value)

    def numbers(self, key: str) -> npt.NDArray[Any]:
        """An array of numbers."""
        value = self.required(key)
        if value.item not in _INTEGERS | _FLOATS:
            raise self._mismatch(key, "an array of numbers")
        return np.asarray(value.value)

    def integers(self, key: str) -> list[int]:
        """An array of integers."""
        value = self.required(key)
        if value.item not in _INTEGERS:
            raise self._mismatch(key, "an array of integers")
        return [int(v) for v in value.value]
