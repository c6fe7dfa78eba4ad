"""kt.gelu_mul: gelu(gate) * up, the gated activation of GeGLU (Shazeer 2020)."""

from __future__ import annotations

import torch

from ktc.dialect.cost import elementwise
from ktc.dialect.spec import define


def reference(gate: torch.Tensor, up: torch.Tensor, approximate: str = "none") -> torch.Tensor:
    """gate[*shape], up[*shape] -> [*shape]; `approximate` is "none" or "tanh"."""
    return torch.nn.functional.gelu(gate, approximate=approximate) * up


def fake(gate: torch.Tensor, up: torch.Tensor, approximate: str = "none") -> torch.Tensor:
    """Shape of `reference`; contiguous, since the operands may be halves of one tensor."""
    return gate.new_empty(gate.shape)


SPEC = define(
    'gelu_mul(Tensor gate, Tensor up, str approximate="none") -> Tensor',
    reference=reference,
    fake=fake,
    cost=elementwise("gate", "up", flops=9),
    rowwise=True,
)
