"""kt.deinterleave: even elements before odd ones; a view of a weight, folded when it is loaded."""

from __future__ import annotations

import torch

from ktc.dialect.cost import moved
from ktc.dialect.spec import define


def reference(x: torch.Tensor) -> torch.Tensor:
    """x[..., n] -> [..., n], contiguous: elements 0, 2, 4, ... of the last dimension, then 1, 3, 5, ..."""
    return torch.cat((x[..., 0::2], x[..., 1::2]), dim=-1)


def fake(x: torch.Tensor) -> torch.Tensor:
    """Shape of `reference`."""
    return x.new_empty(x.shape)


SPEC = define(
    "deinterleave(Tensor x) -> Tensor",
    reference=reference,
    fake=fake,
    cost=moved(fake),
)
