"""cpu.rotary: cosine and sine tables of rotary position embeddings, correctly rounded."""

from __future__ import annotations

import torch
from ktc.backends.cpu.library import define, refuse, register_plain, vector

from ktc import _cpu


def rotary(
    positions: torch.Tensor, inv_freq: torch.Tensor, scaling: float = 1.0
) -> tuple[torch.Tensor, torch.Tensor]:
    """positions int64[1, T], inv_freq[D/2] -> cos, sin, each float32[1, T, D]; see kt.rotary.

    Raises:
        OperandError: dtypes or shapes that do not fit.
    """
    if positions.dtype is not torch.int64:
        raise refuse("rotary", "positions", positions, "int64")
    half = inv_freq.numel()
    positions, inv_freq = positions.contiguous(), vector("rotary", "inv_freq", inv_freq, half)
    shape = (*positions.shape, 2 * half)
    cos, sin = torch.empty(shape), torch.empty(shape)
    _cpu.rotary(
        positions.data_ptr(), positions.numel(), inv_freq.data_ptr(), half, scaling, cos.data_ptr(),
        sin.data_ptr(),
    )  # fmt: skip
    return cos, sin


def fake(
    positions: torch.Tensor, inv_freq: torch.Tensor, scaling: float = 1.0
) -> tuple[torch.Tensor, torch.Tensor]:
    """Shapes of `rotary`."""
    shape = (*positions.shape, 2 * inv_freq.shape[0])
    return (
        positions.new_empty(shape, dtype=torch.float32),
        positions.new_empty(shape, dtype=torch.float32),
    )


OP = define("rotary(Tensor positions, Tensor inv_freq, float scaling=1.0) -> (Tensor, Tensor)", rotary, fake)
register_plain("rotary", OP, ("positions", "inv_freq", "scaling"))
