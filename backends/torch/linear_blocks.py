"""torch.linear_blocks: kt.linear on a weight that stays as the file's blocks, dequantised at every call.

For a device without kernels of its own: it holds what the blocks take, and pays for that with the whole dequantisation
in plain torch ops at every step, which takes many times as long as the product does for a few tokens.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
import torch.fx as fx
from ktc.backends import file_layout
from ktc.backends.operands import arguments, insert
from ktc.backends.registry import Kernel, Weight, register
from ktc.backends.torch import blocks
from ktc.backends.torch.dequantize import BLOCK_FORMATS
from ktc.backends.torch.library import DTYPES, HARDWARE, define, refuse


def linear(
    x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None, format: str, rows: int, columns: int
) -> torch.Tensor:
    """x[..., columns] times a weight[rows, columns], plus bias[rows] -> [..., rows] in x's dtype.

    Args:
        weight: uint8, the file's blocks.

    Raises:
        OperandError: dtypes or shapes that do not fit.
    """
    if not x.is_floating_point() or not x.dim() or x.shape[-1] != columns:
        raise refuse("linear_blocks", "x", x, f"float[..., {columns}]")
    blocks.check("linear_blocks", "weight", weight, format, (rows, columns))
    y = blocks.multiply(x.reshape(-1, columns), weight, bias, format, rows, columns)
    return y.reshape(*x.shape[:-1], rows)


def fake(
    x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None, format: str, rows: int, columns: int
) -> torch.Tensor:
    """Shape of `linear`."""
    return x.new_empty((*x.shape[:-1], rows))


OP = define(
    "linear_blocks(Tensor x, Tensor weight, Tensor? bias, str format, int rows, int columns) -> Tensor",
    linear,
    fake,
)


def lower(
    graph: fx.Graph, node: fx.Node, weights: Mapping[str, Weight], options: Mapping[str, Any]
) -> fx.Node:
    """kt.linear -> kt_torch.linear_blocks."""
    bound, weight = arguments(node), weights["weight"]
    return insert(graph, node, OP, (bound["x"], bound["weight"], bound["bias"], weight.format, *weight.shape))


def workspace(node: fx.Node, weights: Mapping[str, Weight]) -> int:
    """One slab of the weight."""
    return blocks.slab_bytes(*weights["weight"].shape)


register(
    Kernel(
        name="torch.linear_blocks",
        op="kt.linear",
        hardware=HARDWARE,
        lower=lower,
        formats=BLOCK_FORMATS,
        dtypes=DTYPES,
        rank=0,
        supports=lambda node: blocks.misfit(arguments(node)["weight"], 2),
        layout=file_layout.LAYOUT,
        workspace=workspace,
    )
)
