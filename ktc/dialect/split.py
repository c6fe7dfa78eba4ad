"""kt.split: views along the last dimension, as needed after linears that a rewrite merged."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from ktc.dialect.spec import Cost, define


def reference(x: torch.Tensor, sizes: list[int]) -> list[torch.Tensor]:
    """x[..., K], sizes that sum to K -> one view [..., size] each; nothing is copied."""
    return list(torch.split(x, sizes, dim=-1))


def cost(arguments: Mapping[str, Any], context: int) -> Cost:
    """Views are free."""
    return Cost()


SPEC = define(
    "split(Tensor(a -> *) x, int[] sizes) -> Tensor(a)[]",
    reference=reference,
    fake=reference,
    cost=cost,
    rowwise=True,
)
