"""torch.embedding_blocks: kt.embedding on a table that stays as the file's blocks; only rows looked up are opened."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
import torch.fx as fx
from ktc.backends import file_layout
from ktc.backends.operands import arguments, insert
from ktc.backends.registry import Kernel, Weight, register
from ktc.backends.torch import blocks
from ktc.backends.torch.dequantize import BLOCK_FORMATS, dequantize
from ktc.backends.torch.library import HARDWARE, define, refuse


def embedding(ids: torch.Tensor, weight: torch.Tensor, format: str, rows: int, columns: int) -> torch.Tensor:
    """Rows `ids` (integers[...]) of a weight[rows, columns] -> float32[..., columns].

    Raises:
        OperandError: dtypes or shapes that do not fit, or on a CPU an id outside the rows.
    """
    blocks.check("embedding_blocks", "weight", weight, format, (rows, columns))
    if ids.is_floating_point() or ids.is_complex():
        raise refuse("embedding_blocks", "ids", ids, "integers")
    flat = ids.reshape(-1).long()
    if ids.device.type == "cpu" and flat.numel() and not 0 <= int(flat.min()) <= int(flat.max()) < rows:
        raise refuse("embedding_blocks", "ids", ids, f"in 0..{rows - 1}")
    chosen = weight.view(rows, -1)[flat]
    return dequantize(chosen, format, len(flat), columns).reshape(*ids.shape, columns)


def fake(ids: torch.Tensor, weight: torch.Tensor, format: str, rows: int, columns: int) -> torch.Tensor:
    """Shape of `embedding`."""
    return ids.new_empty((*ids.shape, columns), dtype=torch.float32)


OP = define(
    "embedding_blocks(Tensor ids, Tensor weight, str format, int rows, int columns) -> Tensor",
    embedding,
    fake,
)


def lower(
    graph: fx.Graph, node: fx.Node, weights: Mapping[str, Weight], options: Mapping[str, Any]
) -> fx.Node:
    """kt.embedding -> kt_torch.embedding_blocks."""
    bound, weight = arguments(node), weights["weight"]
    return insert(graph, node, OP, (bound["ids"], bound["weight"], weight.format, *weight.shape))


register(
    Kernel(
        name="torch.embedding_blocks",
        op="kt.embedding",
        hardware=HARDWARE,
        lower=lower,
        formats=BLOCK_FORMATS,
        rank=0,
        supports=lambda node: blocks.misfit(arguments(node)["weight"], 2),
        layout=file_layout.LAYOUT,
    )
)
