"""kt.concat: joins weights; a pass folds it into the recipes of the weights, so that it never runs."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from ktc.dialect.cost import nbytes
from ktc.dialect.spec import Cost, define


def reference(tensors: list[torch.Tensor], dim: int = 0) -> torch.Tensor:
    """Tensors equal in shape but for `dim` -> one tensor."""
    return torch.cat(tensors, dim=dim)


def cost(arguments: Mapping[str, Any], context: int) -> Cost:
    """Every operand once in, once out."""
    moved = nbytes(arguments["tensors"])
    return Cost(0, moved, moved)


SPEC = define(
    "concat(Tensor[] tensors, int dim=0) -> Tensor",
    reference=reference,
    fake=reference,
    cost=cost,
)
