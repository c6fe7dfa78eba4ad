"""What expressions of the language evaluate to, beside int, float, bool, str and list. No torch here."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TypeAlias


@dataclass(frozen=True, slots=True)
class Symbol:
    """A name with no binding, meaningful to who reads it: a format (`q4_k`), a dtype, `auto`, `none`."""

    name: str


@dataclass(frozen=True, slots=True)
class Call:
    """A name with options that no function claims: `int4(group = 128)`, `cpu.linear(threads = 8)`."""

    name: str
    args: tuple[Value, ...] = ()
    options: Mapping[str, Value] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class DeviceRef:
    """One declared device: `host`, or member `index` of a group (`gpus[2]`)."""

    name: str
    index: int | None = None

    def __str__(self) -> str:
        return self.name if self.index is None else f"{self.name}[{self.index}]"


@dataclass(frozen=True, slots=True)
class DeviceGroup:
    """A whole declared group: `gpus`."""

    name: str
    members: tuple[DeviceRef, ...]


@dataclass(frozen=True, slots=True)
class SiteSet:
    """`@experts` inside an expression: the modules of a set named by `let`."""

    name: str


# Spellings of one number type: what the language writes, and what torch calls it.
DTYPES: Mapping[str, str] = {
    "float64": "f64",
    "float32": "f32",
    "float16": "f16",
    "bfloat16": "bf16",
    "float8_e4m3fn": "f8_e4m3",
    "float8_e5m2": "f8_e5m2",
    "int64": "i64",
    "int32": "i32",
    "int16": "i16",
    "int8": "i8",
    "uint8": "u8",
}

Value: TypeAlias = (
    "int | float | bool | str | list[Value] | Symbol | Call | DeviceRef | DeviceGroup | SiteSet | None"
)
