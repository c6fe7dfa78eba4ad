"""cpu.embedding: rows of a packed weight by token id; cpu.embedding_file: rows of the file's blocks."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
import torch.fx as fx
from ktc.backends import file_layout
from ktc.backends.cpu import packed
from ktc.backends.cpu.library import OperandError, arguments, define, insert, refuse, shape_of
from ktc.backends.registry import Kernel, Weight, register

from ktc import _cpu
from ktc.weights.formats import FORMATS, nbytes

_SCHEMA = "(Tensor ids, Tensor weight, str format, int rows, int columns) -> Tensor"


def embedding(ids: torch.Tensor, weight: torch.Tensor, format: str, rows: int, columns: int) -> torch.Tensor:
    """Rows `ids` (int64[...]) of a packed weight[rows, columns] -> float32[..., columns].

    Raises:
        OperandError: an id outside the rows; dtypes, shapes or memory layouts that do not fit.
    """
    packed.check_packed("embedding", weight, format, rows, columns)
    return _look_up(_cpu.embedding, "embedding", ids, weight, format, rows, columns)


def embedding_file(
    ids: torch.Tensor, weight: torch.Tensor, format: str, rows: int, columns: int
) -> torch.Tensor:
    """The same from `weight`, the uint8 blocks of a file. Raises OperandError likewise."""
    if (
        weight.dtype is not torch.uint8
        or not weight.is_contiguous()
        or weight.numel() != nbytes(format, (rows, columns))
    ):
        wanted = f"the contiguous uint8 blocks of {format} [{rows}, {columns}]"
        raise refuse("embedding_file", "weight", weight, wanted)
    return _look_up(_cpu.embedding_blocks, "embedding_file", ids, weight, format, rows, columns)


def _look_up(
    call: Callable[..., None],
    op: str,
    ids: torch.Tensor,
    weight: torch.Tensor,
    format: str,
    rows: int,
    columns: int,
) -> torch.Tensor:
    if ids.dtype is not torch.int64:
        raise refuse(op, "ids", ids, "int64")
    ids = ids.contiguous()
    out = torch.empty((*ids.shape, columns), dtype=torch.float32)
    number = packed.format_id(format)
    try:
        call(weight.data_ptr(), number, rows, columns, ids.data_ptr(), ids.numel(), out.data_ptr())
    except IndexError as error:
        raise OperandError(f"kt_cpu.{op}: {error}") from error
    return out


def fake(ids: torch.Tensor, weight: torch.Tensor, format: str, rows: int, columns: int) -> torch.Tensor:
    """Shape of both."""
    return ids.new_empty((*ids.shape, columns), dtype=torch.float32)


OP = define("embedding" + _SCHEMA, embedding, fake)
FILE_OP = define("embedding_file" + _SCHEMA, embedding_file, fake)


def _lower(
    op: torch._ops.OpOverload, graph: fx.Graph, node: fx.Node, weights: Mapping[str, Weight]
) -> fx.Node:
    bound, weight = arguments(node), weights["weight"]
    return insert(graph, node, op, (bound["ids"], bound["weight"], weight.format, *weight.shape))


def lower(
    graph: fx.Graph, node: fx.Node, weights: Mapping[str, Weight], options: Mapping[str, Any]
) -> fx.Node:
    """kt.embedding -> kt_cpu.embedding."""
    return _lower(OP, graph, node, weights)


def lower_file(
    graph: fx.Graph, node: fx.Node, weights: Mapping[str, Weight], options: Mapping[str, Any]
) -> fx.Node:
    """kt.embedding -> kt_cpu.embedding_file."""
    return _lower(FILE_OP, graph, node, weights)


def _is_matrix(node: fx.Node) -> str | None:
    shape = shape_of(arguments(node)["weight"])
    return None if shape is not None and len(shape) == 2 else "its weight is not a matrix"


register(
    Kernel(
        name="cpu.embedding",
        op="kt.embedding",
        hardware=frozenset({"cpu"}),
        lower=lower,
        formats=frozenset(packed.PACKED),
        rank=10,
        supports=lambda node: packed.misfit(arguments(node)["weight"]),
        layout=packed.LAYOUT,
    )
)
register(
    Kernel(
        name="cpu.embedding_file",
        op="kt.embedding",
        hardware=frozenset({"cpu"}),
        lower=lower_file,
        formats=frozenset(FORMATS),
        rank=5,
        supports=_is_matrix,
        layout=file_layout.LAYOUT,
    )
)
