"""The weight layout "file": the blocks of a number format as they lie in a file, uint8, on any device."""

from __future__ import annotations

import torch
from ktc.backends.operands import OperandError, described
from ktc.backends.registry import Layout, Weight

from ktc.weights.formats import nbytes


def packed_bytes(weight: Weight) -> int:
    """Bytes of a weight in this layout."""
    return nbytes(weight.format, weight.shape)


def pack(blocks: torch.Tensor, weight: Weight, out: torch.Tensor) -> None:
    """Copies the blocks (uint8) as they are into `out`. Raises OperandError for a size that differs."""
    wanted = packed_bytes(weight)
    for name, tensor in (("blocks", blocks), ("out", out)):
        if tensor.dtype is not torch.uint8 or tensor.numel() != wanted:
            shape = f"{weight.format} {list(weight.shape)}"
            raise OperandError(f"`{name}` must be uint8[{wanted}] ({shape}), not {described(tensor)}")
    out.copy_(blocks.reshape(-1))


LAYOUT = Layout("file", 1, pack, packed_bytes)
"""Raise the version with any change to how the blocks of a format lie."""
