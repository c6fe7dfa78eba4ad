"""What a model file holds, for `ktc inspect`: architecture, settings, tensors by number format, bytes."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ktc.weights import formats
from ktc.weights.gguf_metadata import Metadata, Value, ValueType
from ktc.weights.gguf_source import GgufSource
from ktc.weights.opening import open_source
from ktc.weights.source import WeightSource
from ktc.weights.tensor import TensorHeader

_MAX_TEXT = 200
_MAX_ITEMS = 8


@dataclass(frozen=True, slots=True)
class FormatUse:
    """The tensors of one number format.

    Attributes:
        format: its name. computable: whether ktc computes with it.
        tensors: how many. elements: of all of them. nbytes: of all of them.
    """

    format: str
    computable: bool
    tensors: int
    elements: int
    nbytes: int

    @property
    def bits_per_element(self) -> float:
        """Average bits an element takes."""
        return 8 * self.nbytes / self.elements if self.elements else 0.0


@dataclass(frozen=True, slots=True)
class Inspection:
    """A summary of a source.

    Attributes:
        path: as the user named it. kind: "gguf", "safetensors" or "memory".
        architecture: `general.architecture` or the configuration's model type.
        name: the model's name, "" when the file gives none.
        files: the files in order with their sizes in bytes.
        metadata: key to value; long texts and arrays are shortened, control characters escaped.
        formats: tensors by number format, most bytes first.
        tensors: every tensor in file order.
    """

    path: str
    kind: str
    architecture: str
    name: str
    files: tuple[tuple[str, int], ...]
    metadata: Mapping[str, Any]
    formats: tuple[FormatUse, ...]
    tensors: tuple[TensorHeader, ...]

    @property
    def elements(self) -> int:
        """Elements of all tensors."""
        return sum(use.elements for use in self.formats)

    @property
    def nbytes(self) -> int:
        """Bytes of all tensors."""
        return sum(use.nbytes for use in self.formats)

    def to_json(self) -> dict[str, Any]:
        """Plain values for `json.dumps`."""
        return {
            "path": self.path,
            "kind": self.kind,
            "architecture": self.architecture,
            "name": self.name,
            "elements": self.elements,
            "bytes": self.nbytes,
            "files": [{"file": name, "bytes": size} for name, size in self.files],
            "metadata": dict(self.metadata),
            "formats": [{**asdict(use), "bits_per_element": use.bits_per_element} for use in self.formats],
            "tensors": [
                {
                    "name": header.name,
                    "format": header.format,
                    "shape": list(header.shape),
                    "bytes": header.nbytes,
                    "file": header.file.name if header.file else None,
                    "offset": header.offset,
                }
                for header in self.tensors
            ],
        }


def inspect(where: str | Path | WeightSource) -> Inspection:
    """Summarises a model from its headers.

    Raises:
        WeightError: as `open_source`.
    """
    source = where if isinstance(where, WeightSource) else open_source(where)
    headers = tuple(source.headers().values())
    paths = list(dict.fromkeys(header.file for header in headers if header.file))
    if isinstance(source, GgufSource):
        metadata = summarise(source.metadata)
        architecture = source.architecture
        name = str(metadata.get("general.name", ""))
        paths = [file.path for file in source.files]
    else:
        config = source.config()
        architecture, metadata = str(config.model_type), config.to_dict()
        name = str(metadata.pop("_name_or_path", ""))
    return Inspection(
        path=str(source.path or ""),
        kind=source.kind,
        architecture=architecture,
        name=name,
        files=tuple((path.name, path.stat().st_size) for path in paths),
        metadata=metadata,
        formats=format_uses(headers),
        tensors=headers,
    )


def format_uses(headers: tuple[TensorHeader, ...]) -> tuple[FormatUse, ...]:
    """Counts tensors by format, most bytes first."""
    groups: dict[str, list[TensorHeader]] = {}
    for header in headers:
        groups.setdefault(header.format, []).append(header)
    uses = [
        FormatUse(
            format=name,
            computable=name in formats.FORMATS,
            tensors=len(group),
            elements=sum(math.prod(header.shape) for header in group),
            nbytes=sum(header.nbytes for header in group),
        )
        for name, group in groups.items()
    ]
    return tuple(sorted(uses, key=lambda use: (-use.nbytes, use.format)))


def summarise(metadata: Metadata) -> dict[str, Any]:
    """Metadata as plain values: whole when short, else a text that says how much there is."""
    return {key: _short(value) for key, value in metadata.items()}


def printable(text: str) -> str:
    """The text with control characters as escapes: a file must not steer the terminal it is shown on."""
    return "".join(
        letter if letter.isprintable() else letter.encode("unicode_escape").decode() for letter in text
    )


def _short(value: Value) -> Any:
    if value.kind is ValueType.STRING:
        text = printable(str(value.value))
        return text if len(text) <= _MAX_TEXT else f"{text[:_MAX_TEXT]}… ({len(text)} characters)"
    if value.kind is ValueType.ARRAY:
        items = value.value.tolist() if isinstance(value.value, np.ndarray) else list(value.value)
        items = [printable(item) if isinstance(item, str) else item for item in items]
        if len(items) <= _MAX_ITEMS:
            return items
        return f"{value.describe()}, {len(items)} items: {items[0]!r}, {items[1]!r}, …"
    if value.kind is ValueType.FLOAT32:
        return float(str(np.float32(value.value)))
    return value.value
