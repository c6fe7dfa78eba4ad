"""The table of number formats: how many elements a block holds and how many bytes it takes."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType

from ktc.errors import ShapeMismatchError, UnsupportedFormatError


@dataclass(frozen=True, slots=True)
class Format:
    """A number format: those of the ggml family, and fp8.

    Attributes:
        name: lower case, as a rule writes it: "q4_k".
        ggml_id: the number that stands for it in a GGUF file; None for fp8, which no GGUF file holds.
        block_elements: consecutive elements of a row that share a block (1 for plain floats).
        block_bytes: bytes of one block.
    """

    name: str
    ggml_id: int | None
    block_elements: int
    block_bytes: int

    @property
    def bits_per_element(self) -> float:
        """Average bits an element takes, scales included."""
        return 8 * self.block_bytes / self.block_elements


def _table(*rows: tuple[str, int | None, int, int]) -> Mapping[str, Format]:
    return MappingProxyType({row[0]: Format(*row) for row in rows})


FORMATS: Mapping[str, Format] = _table(
    ("f32", 0, 1, 4),
    ("f16", 1, 1, 2),
    ("bf16", 30, 1, 2),
    ("q4_0", 2, 32, 18),
    ("q4_1", 3, 32, 20),
    ("q5_0", 6, 32, 22),
    ("q5_1", 7, 32, 24),
    ("q8_0", 8, 32, 34),
    ("q2_k", 10, 256, 84),
    ("q3_k", 11, 256, 110),
    ("q4_k", 12, 256, 144),
    ("q5_k", 13, 256, 176),
    ("q6_k", 14, 256, 210),
    ("iq4_nl", 20, 32, 18),
    ("iq4_xs", 23, 256, 136),
    ("mxfp4", 39, 32, 17),
    ("fp8", None, 128, 132),
)
"""The formats ktc computes with, by name; fp8 is a float32 scale and 128 float8 e4m3fn of a row."""

KNOWN_FORMATS: Mapping[str, Format] = _table(
    ("iq2_xxs", 16, 256, 66),
    ("iq2_xs", 17, 256, 74),
    ("iq3_xxs", 18, 256, 98),
    ("iq1_s", 19, 256, 50),
    ("iq3_s", 21, 256, 110),
    ("iq2_s", 22, 256, 82),
    ("i8", 24, 1, 1),
    ("i16", 25, 1, 2),
    ("i32", 26, 1, 4),
    ("i64", 27, 1, 8),
    ("f64", 28, 1, 8),
    ("iq1_m", 29, 256, 56),
    ("tq1_0", 34, 256, 54),
    ("tq2_0", 35, 256, 66),
)
"""Formats whose size is known, so that a file holding them can be listed, but that ktc does not compute with.
"""

FLOAT_PRODUCTS = frozenset({"f32", "f16", "bf16", "fp8"})
"""Formats that are multiplied as floats; weights in the others meet activations in int8."""

_BY_ID: Mapping[int, Format] = {
    f.ggml_id: f for table in (FORMATS, KNOWN_FORMATS) for f in table.values() if f.ggml_id is not None
}


def by_ggml_id(ggml_id: int) -> Format | None:
    """The format that a GGUF file's type number stands for; None when ktc does not know its size."""
    return _BY_ID.get(ggml_id)


def find(name: str) -> Format:
    """The format called `name`.

    Raises:
        UnsupportedFormatError: there is no such format.
    """
    found = FORMATS.get(name) or KNOWN_FORMATS.get(name)
    if found is None:
        raise UnsupportedFormatError(
            f"unknown number format {name!r}", tensor=name, hint=f"ktc reads {', '.join(FORMATS)}"
        )
    return found


def row_bytes(name: str, columns: int) -> int:
    """Bytes of one row of `columns` elements.

    Raises:
        ShapeMismatchError: the row does not consist of whole blocks.
    """
    found = find(name)
    if columns % found.block_elements:
        raise ShapeMismatchError(
            f"a row of {columns} elements is not a whole number of {name} blocks of {found.block_elements}"
        )
    return columns // found.block_elements * found.block_bytes


def nbytes(name: str, shape: Sequence[int]) -> int:
    """Bytes of a tensor of `shape` (numpy order, the last dimension runs fastest); a scalar is 1 element."""
    columns = shape[-1] if shape else 1
    return math.prod(shape[:-1]) * row_bytes(name, columns)
