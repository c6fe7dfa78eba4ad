"""kt.rope: rotates queries and keys by their positions (Su et al. 2021)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from ktc.dialect.cost import nbytes
from ktc.dialect.spec import Cost, define


def reference(
    q: torch.Tensor, k: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor, interleaved: bool = False
) -> tuple[torch.Tensor, torch.Tensor]:
    """q[1, H, T, D], k[1, Hk, T, D] of any strides, cos and sin [1, T, D'], D' <= D -> q and k turned.

    The first D' elements of each head turn, the rest pass unchanged. Pair i, turned by angle i, is elements
    (i, i + D'/2), or (2i, 2i + 1) when `interleaved`; either way its results take its own places.
    """
    cos, sin = cos.unsqueeze(1), sin.unsqueeze(1)
    return _turn(q, cos, sin, interleaved), _turn(k, cos, sin, interleaved)


def _turn(x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor, interleaved: bool) -> torch.Tensor:
    width, half = cos.shape[-1], cos.shape[-1] // 2
    cos, sin = cos[..., :half], sin[..., :half]
    head, tail = x[..., :width], x[..., width:]
    if interleaved:
        first, second = head[..., 0::2], head[..., 1::2]
    else:
        first, second = head[..., :half], head[..., half:]
    low, high = first * cos - second * sin, second * cos + first * sin
    turned = torch.stack((low, high), dim=-1).flatten(-2) if interleaved else torch.cat((low, high), dim=-1)
    return torch.cat((turned.to(x.dtype), tail), dim=-1) if tail.shape[-1] else turned.to(x.dtype)


def fake(
    q: torch.Tensor, k: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor, interleaved: bool = False
) -> tuple[torch.Tensor, torch.Tensor]:
    """Shapes of `reference`."""
    return q.new_empty(q.shape), k.new_empty(k.shape)


def cost(arguments: Mapping[str, Any], context: int) -> Cost:
    """Both operands once in, once out."""
    q, k = arguments["q"], arguments["k"]
    moved = nbytes(q) + nbytes(k)
    tables = nbytes(arguments["cos"]) + nbytes(arguments["sin"])
    return Cost(3 * (int(q.numel()) + int(k.numel())), moved + tables, moved)


SPEC = define(
    "rope(Tensor q, Tensor k, Tensor cos, Tensor sin, bool interleaved=False) -> (Tensor, Tensor)",
    reference=reference,
    fake=fake,
    cost=cost,
    outputs=("q", "k"),
)
