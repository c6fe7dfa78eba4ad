"""What a source says of a tensor (its header) and what it hands out (its bytes)."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt


@dataclass(frozen=True, slots=True)
class TensorHeader:
    """Where a tensor lies and what it is.

    Attributes:
        name: its name in the source.
        format: number format, one of `formats.FORMATS` or `formats.KNOWN_FORMATS`.
        shape: numpy order, rows first; the last dimension runs fastest in memory.
        nbytes: bytes it takes.
        file: the file that holds it; None for a tensor in memory.
        offset: first byte, counted from the start of the file.
    """

    name: str
    format: str
    shape: tuple[int, ...]
    nbytes: int
    file: Path | None = None
    offset: int = 0


@dataclass(frozen=True, slots=True)
class RawTensor:
    """A parameter's bytes, ready for a kernel's `pack` or for `convert.dequantize`.

    Attributes:
        format: number format.
        shape: the parameter's shape in the model.
        data: uint8[nbytes], blocks row after row; possibly a read-only view of the mapped file.
    """

    format: str
    shape: tuple[int, ...]
    data: npt.NDArray[np.uint8]
