"""cpu.rope: rotates queries and keys by their positions (Su et al. 2021)."""

from __future__ import annotations

import torch
from ktc.backends.cpu.library import define, refuse, register_plain

from ktc import _cpu


def rope(
    q: torch.Tensor, k: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor, interleaved: bool = False
) -> tuple[torch.Tensor, torch.Tensor]:
    """q[1, H, T, D] and k[1, Hk, T, D] of any strides, cos and sin [1, T, D'], D' <= D -> q and k turned.

    The first D' elements of a head turn, the others are copied: pair i is (i, i + D'/2), or (2i, 2i + 1) when
    `interleaved`. The results are contiguous.

    Raises:
        OperandError: dtypes or shapes that do not fit.
    """
    tokens, width = q.shape[-2], cos.shape[-1]
    for name, table in (("cos", cos), ("sin", sin)):
        if table.dtype is not torch.float32 or table.shape != (1, tokens, width) or width % 2:
            raise refuse("rope", name, table, f"float32[1, {tokens}, an even number]")
    cos, sin = cos.contiguous(), sin.contiguous()
    return _turn("q", q, cos, sin, tokens, width, interleaved), _turn(
        "k", k, cos, sin, tokens, width, interleaved
    )


def _turn(
    name: str,
    x: torch.Tensor,
    cos: torch.Tensor,
    sin: torch.Tensor,
    tokens: int,
    width: int,
    interleaved: bool,
) -> torch.Tensor:
    shape = x.shape
    if (
        x.dtype is not torch.float32
        or len(shape) != 4
        or shape[0] != 1
        or shape[2] != tokens
        or shape[3] < width
    ):
        raise refuse("rope", name, x, f"float32[1, heads, {tokens}, at least {width}]")
    if x.stride(3) != 1:
        x = x.contiguous()
    _, heads, _, depth = shape
    y = torch.empty(shape)
    _cpu.rope(
        x.data_ptr(), x.stride(1), x.stride(2), heads, tokens, depth,
        cos.data_ptr(), sin.data_ptr(), width, width, interleaved, y.data_ptr(), tokens * depth, depth,
    )  # fmt: skip
    return y


def fake(
    q: torch.Tensor, k: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor, interleaved: bool = False
) -> tuple[torch.Tensor, torch.Tensor]:
    """Shapes of `rope`."""
    return q.new_empty(q.shape), k.new_empty(k.shape)


OP = define(
    "rope(Tensor q, Tensor k, Tensor cos, Tensor sin, bool interleaved=False) -> (Tensor, Tensor)", rope, fake
)
register_plain("rope", OP, ("q", "k", "cos", "sin", "interleaved"))
