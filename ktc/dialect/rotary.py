"""kt.rotary: cosine and sine tables of rotary position embeddings (Su et al. 2021) at given positions."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from ktc.dialect.cost import nbytes
from ktc.dialect.spec import Cost, define


def reference(
    positions: torch.Tensor, inv_freq: torch.Tensor, scaling: float = 1.0
) -> tuple[torch.Tensor, torch.Tensor]:
    """positions[1, T] integers, inv_freq[D/2] radians a position -> cos, sin, each [1, T, D] float32.

    The D/2 angles are repeated in both halves of the last dimension; `scaling` multiplies both tables.
    """
    angles = positions[..., None].float() * inv_freq.float()
    angles = torch.cat((angles, angles), dim=-1)
    cos, sin = angles.cos(), angles.sin()
    return (cos, sin) if scaling == 1.0 else (cos * scaling, sin * scaling)


def fake(
    positions: torch.Tensor, inv_freq: torch.Tensor, scaling: float = 1.0
) -> tuple[torch.Tensor, torch.Tensor]:
    """Shapes of `reference`."""
    shape = (*positions.shape, 2 * inv_freq.shape[0])
    return (
        inv_freq.new_empty(shape, dtype=torch.float32),
        inv_freq.new_empty(shape, dtype=torch.float32),
    )


def cost(arguments: Mapping[str, Any], context: int) -> Cost:
    """Two tables of T rows."""
    positions, inv_freq = arguments["positions"], arguments["inv_freq"]
    elements = int(positions.numel()) * 2 * int(inv_freq.shape[0])
    return Cost(20 * elements, nbytes(positions) + nbytes(inv_freq), 2 * 4 * elements)


SPEC = define(
    "rotary(Tensor positions, Tensor inv_freq, float scaling=1.0) -> (Tensor cos, Tensor sin)",
    reference=reference,
    fake=fake,
    cost=cost,
    outputs=("cos", "sin"),
)
