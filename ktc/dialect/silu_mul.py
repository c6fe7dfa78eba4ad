"""kt.silu_mul: silu(gate) * up, the gated activation of SwiGLU (Shazeer 2020)."""

from __future__ import annotations

import torch

from ktc.dialect.cost import elementwise
from ktc.dialect.spec import define


def reference(gate: torch.Tensor, up: torch.Tensor) -> torch.Tensor:
    """gate[*shape], up[*shape] -> [*shape]."""
    return torch.nn.functional.silu(gate) * up


def fake(gate: torch.Tensor, up: torch.Tensor) -> torch.Tensor:
    """Shape of `reference`; contiguous, since the operands may be halves of one tensor."""
    return gate.new_empty(gate.shape)


SPEC = define(
    "silu_mul(Tensor gate, Tensor up) -> Tensor",
    reference=reference,
    fake=fake,
    cost=elementwise("gate", "up", flops=5),
    rowwise=True,
)
