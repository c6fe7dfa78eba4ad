"""kt.linear: x times the transposed weight, plus a bias."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from ktc.dialect.cost import nbytes
from ktc.dialect.spec import Cost, define


def reference(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None = None) -> torch.Tensor:
    """x[..., K], weight[N, K], bias[N] -> [..., N] in x's dtype."""
    if weight.dtype != x.dtype:
        weight = weight.to(x.dtype)
    if bias is not None and bias.dtype != x.dtype:
        bias = bias.to(x.dtype)
    return torch.nn.functional.linear(x, weight, bias)


def fake(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None = None) -> torch.Tensor:
    """Shape of `reference`."""
    return x.new_empty((*x.shape[:-1], weight.shape[0]))


def cost(arguments: Mapping[str, Any], context: int) -> Cost:
    """The whole weight once, whatever the number of rows of x."""
    x, weight, bias = arguments["x"], arguments["weight"], arguments["bias"]
    out_features, in_features = weight.shape
    rows = int(x.numel()) // int(in_features)
    written = rows * int(out_features) * x.element_size()
    return Cost(
        2 * rows * int(weight.numel()),
        nbytes(x) + nbytes(weight) + nbytes(bias),
        written,
        weight_elements=int(weight.numel()),
    )


SPEC = define(
    "linear(Tensor x, Tensor weight, Tensor? bias=None) -> Tensor",
    reference=reference,
    fake=fake,
    cost=cost,
    weights=("weight",),
    rowwise=True,
)
