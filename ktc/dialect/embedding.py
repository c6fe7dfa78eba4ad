"""kt.embedding: rows of a weight, one for each id."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from ktc.dialect.cost import nbytes
from ktc.dialect.spec import Cost, Effects, define


def reference(ids: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    """ids[...] integers, weight[N, K] -> [..., K] in the weight's dtype."""
    return torch.nn.functional.embedding(ids, weight)


def fake(ids: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    """Shape of `reference`."""
    return weight.new_empty((*ids.shape, weight.shape[1]))


def cost(arguments: Mapping[str, Any], context: int) -> Cost:
    """One row of the weight for each id."""
    ids, weight = arguments["ids"], arguments["weight"]
    elements = int(ids.numel()) * int(weight.shape[1])
    rows = elements * weight.element_size()
    return Cost(0, nbytes(ids) + rows, rows, weight_elements=elements)


SPEC = define(
    "embedding(Tensor ids, Tensor weight) -> Tensor",
    reference=reference,
    fake=fake,
    cost=cost,
    weights=("weight",),
    effects=Effects(data_dependent=True),
)
