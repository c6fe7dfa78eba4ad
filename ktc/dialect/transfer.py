"""kt.transfer: a copy at an edge between two devices."""

from __future__ import annotations

import torch

from ktc.dialect.cost import elementwise
from ktc.dialect.spec import define


def reference(x: torch.Tensor, device: str) -> torch.Tensor:
    """x on any device -> a new tensor with its values on the torch device `device` ("cpu", "cuda:1")."""
    return x.to(device=device, copy=True)


def fake(x: torch.Tensor, device: str) -> torch.Tensor:
    """Shape of `reference`, on x's own device: a plan may name a device that is not on this machine, and torch asks the
    driver for it even when a tensor is fake.
    """
    return torch.empty_like(x)


SPEC = define(
    "transfer(Tensor x, str device) -> Tensor",
    reference=reference,
    fake=fake,
    cost=elementwise("x", flops=0),
)
