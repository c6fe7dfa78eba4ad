"""GGUF files: a header reader for untrusted input, and zero-copy access to the tensors behind it.

Nothing but the header is read when a file is opened. Every count, length and offset is checked against the
size of the file before it is used, so a hostile or truncated file costs bounded time and memory and ends in a
GgufError.
"""

from __future__ import annotations

import mmap
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from types import MappingProxyType

import numpy as np
import numpy.typing as npt

from ktc.errors import GgufError, UnsupportedFormatError
from ktc.weights import formats
from ktc.weights.gguf_metadata import MAX_KEYS, MAX_NAME_BYTES, Cursor, Metadata, ValueType, read_value
from ktc.weights.tensor import TensorHeader

MAGIC = b"GGUF"
VERSIONS = (2, 3)
DEFAULT_ALIGNMENT = 32
MAX_ALIGNMENT = 1 << 20
MAX_TENSORS = 1 << 20
MAX_DIMENSIONS = 4
MAX_ELEMENTS = 2**63 - 1
_MIN_TENSOR_INFO = 8 + 1 + 4 + 8 + 4 + 8  # name length, name, dimensions, one dimension, type, offset


@dataclass(frozen=True)
class GgufFile:
    """One opened file: its metadata, its tensors in file order, and the mapped bytes."""

    path: Path
    version: int
    alignment: int
    metadata: Metadata
    tensors: Mapping[str, TensorHeader]
    header_bytes: int
    mapped: mmap.mmap

    def data(self, header: TensorHeader) -> npt.NDArray[np.uint8]:
        """The bytes of a tensor of this file, uint8[nbytes], read-only and without a copy."""
        return np.frombuffer(self.mapped, np.uint8, header.nbytes, header.offset)


def open_gguf(path: str | Path) -> GgufFile:
    """Opens and checks one file.

    Raises:
        GgufError: the file cannot be opened or breaks the format.
        UnsupportedFormatError: a tensor has a type number whose size ktc does not know.
    """
    path = Path(path)
    try:
        with path.open("rb") as stream:
            head = stream.read(8)
            _check_magic(head, path)
            mapped = mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ)
    except (OSError, ValueError) as error:
        raise GgufError(f"cannot be read: {error}", file=path) from error
    cursor = Cursor(mapped, path)
    cursor.position = 4
    version = cursor.u32("the version")
    tensor_count = cursor.u64("the tensor count")
    key_count = cursor.u64("the key count")
    metadata = _read_metadata(cursor, key_count)
    alignment = _alignment(metadata)
    tensors = _read_tensors(cursor, tensor_count, alignment, len(mapped))
    return GgufFile(path, version, alignment, metadata, MappingProxyType(tensors), cursor.position, mapped)


def _check_magic(head: bytes, path: Path) -> None:
    if not head:
        raise GgufError("the file is empty", file=path)
    if head[:4] != MAGIC[: len(head)] or len(head) < 4:
        raise GgufError(f"not a GGUF file: it starts with {head[:4]!r}, not {MAGIC!r}", file=path)
    if len(head) < 8:
        raise GgufError("truncated: the version needs 4 bytes (at byte 4)", file=path)
    version = int.from_bytes(head[4:8], "little")
    if version in VERSIONS:
        return
    if int.from_bytes(head[4:8], "big") in (1, *VERSIONS):
        raise GgufError(
            "a big-endian GGUF file", file=path, hint="convert it with `gguf-convert-endian FILE little`"
        )
    raise GgufError(f"GGUF version {version}; ktc reads versions 2 and 3", file=path)


def _read_metadata(cursor: Cursor, count: int) -> Metadata:
    if count > MAX_KEYS:
        raise cursor.error(f"the header claims {count} metadata keys; at most {MAX_KEYS} are allowed")
    cursor.require(count * 13, f"metadata of {count} keys")  # length, type, and a value of one byte
    values = {}
    for index in range(count):
        key = cursor.text(f"metadata key {index}", limit=MAX_NAME_BYTES)
        if key in values:
            raise cursor.error(f"metadata key {key!r} appears twice", key)
        values[key] = read_value(cursor, key)
    return Metadata(values, cursor.file)


def _alignment(metadata: Metadata) -> int:
    key = "general.alignment"
    if key not in metadata:
        return DEFAULT_ALIGNMENT
    if metadata[key].kind is not ValueType.UINT32:
        raise metadata.error(key, f"expected uint32, found {metadata[key].describe()}")
    alignment = metadata.integer(key, low=1, high=MAX_ALIGNMENT)
    if alignment & (alignment - 1):
        raise metadata.error(key, f"is {alignment}, not a power of two")
    return alignment


def _read_tensors(cursor: Cursor, count: int, alignment: int, file_bytes: int) -> dict[str, TensorHeader]:
    if count > MAX_TENSORS:
        raise cursor.error(f"the header claims {count} tensors; at most {MAX_TENSORS} are allowed")
    cursor.require(count * _MIN_TENSOR_INFO, f"a list of {count} tensors")
    relative: dict[str, TensorHeader] = {}
    for index in range(count):
        header = _read_tensor_info(cursor, index)
        if header.name in relative:
            raise cursor.error(f"tensor {header.name!r} appears twice", header.name)
        if header.offset % alignment:
            raise cursor.error(
                f"tensor {header.name!r} starts at {header.offset}, not a multiple of {alignment}",
                header.name,
            )
        relative[header.name] = header
    start = -(-cursor.position // alignment) * alignment
    return _place(relative, start, file_bytes, cursor.file)


def _read_tensor_info(cursor: Cursor, index: int) -> TensorHeader:
    name = cursor.text(f"the name of tensor {index}", limit=MAX_NAME_BYTES)
    if not name:
        raise cursor.error(f"tensor {index} has no name")
    dimensions = cursor.u32("the number of dimensions", name)
    if not 1 <= dimensions <= MAX_DIMENSIONS:
        raise cursor.error(
            f"tensor {name!r} has {dimensions} dimensions; 1 to {MAX_DIMENSIONS} are allowed", name
        )
    sizes = [cursor.u64("a dimension", name) for _ in range(dimensions)]
    elements = 1
    for size in sizes:
        if size == 0:
            raise cursor.error(f"tensor {name!r} has a dimension of 0 in {sizes}", name)
        elements *= size
        if elements > MAX_ELEMENTS:
            raise cursor.error(
                f"tensor {name!r} of {sizes} has more elements than a 64-bit integer counts", name
            )
    type_number = cursor.u32("the type", name)
    number_format = formats.by_ggml_id(type_number)
    if number_format is None:
        raise UnsupportedFormatError(
            f"tensor {name!r} has type number {type_number}, which ktc does not know",
            file=cursor.file,
            tensor=name,
            hint=f"ktc reads {', '.join(formats.FORMATS)}",
        )
    if sizes[0] % number_format.block_elements:
        raise cursor.error(
            f"tensor {name!r} has rows of {sizes[0]}, not a multiple of the {number_format.block_elements} "
            f"elements of a {number_format.name} block",
            name,
        )
    nbytes = elements // number_format.block_elements * number_format.block_bytes
    if nbytes > MAX_ELEMENTS:
        raise cursor.error(f"tensor {name!r} of {sizes} has more bytes than a 64-bit integer counts", name)
    offset = cursor.u64("the offset", name)
    return TensorHeader(name, number_format.name, tuple(reversed(sizes)), nbytes, cursor.file, offset)


def _place(
    tensors: Mapping[str, TensorHeader], start: int, file_bytes: int, file: Path
) -> dict[str, TensorHeader]:
    """Makes offsets absolute; refuses tensors beyond the end of the file or on top of each other."""
    placed = {}
    for name, header in tensors.items():
        offset = start + header.offset
        if offset + header.nbytes > file_bytes:
            raise GgufError(
                f"tensor {name!r} ends at byte {offset + header.nbytes}, but the file has {file_bytes}",
                file=file,
                tensor=name,
                hint="the download is not complete, or the file is damaged",
            )
        placed[name] = TensorHeader(name, header.format, header.shape, header.nbytes, file, offset)
    ordered = sorted(placed.values(), key=lambda header: header.offset)
    for before, after in pairwise(ordered):
        if before.offset + before.nbytes > after.offset:
            raise GgufError(
                f"tensors {before.name!r} and {after.name!r} overlap", file=file, tensor=after.name
            )
    return placed
