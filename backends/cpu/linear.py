"""cpu.linear: x times a packed weight, plus a bias.

Quantised weights meet activations quantised to int8 in blocks of 32 columns (normalised mean square error
about 3e-5 on Gaussian data); float weights meet them as they are.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
import torch.fx as fx
from ktc.backends.cpu import packed
from ktc.backends.cpu.library import arguments, define, insert, refuse, shape_of, vector
from ktc.backends.registry import Kernel, Option, Weight, register

from ktc import _cpu
from ktc.weights.formats import FLOAT_PRODUCTS

_call = _cpu.linear
BLOCK_COLUMNS, BLOCK_BYTES = 32, 64
"""Of activations in int8 (cpp/kernels/linear/activations.hpp); a token's may be one block further apart."""


def linear(
    x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None, format: str, rows: int, columns: int,
    threads: int = 0,
) -> torch.Tensor:  # fmt: skip
    """x[..., columns] float32 times a packed weight[rows, columns], plus bias[rows] -> [..., rows] float32.

    Args:
        weight: uint8, as `packed.pack` writes it.
        threads: most threads to use; 0 for all.

    Raises:
        OperandError: dtypes, shapes or memory layouts that do not fit.
    """
    shape = x.shape
    if x.dtype is not torch.float32 or not shape or shape[-1] != columns:
        raise refuse("linear", "x", x, f"float32[..., {columns}]")
    packed.check_packed("linear", weight, format, rows, columns)
    if bias is not None:
        bias = vector("linear", "bias", bias, rows)
    tokens = x.numel() // columns
    stride = columns
    if not x.is_contiguous():
        if x.stride(-1) == 1 and tokens == shape[-2]:
            stride = x.stride(-2)
        else:
            x = x.contiguous()
    y = x.new_empty((*shape[:-1], rows))
    _call(
        weight.data_ptr(), packed.format_id(format), rows, columns, x.data_ptr(), stride, tokens,
        0 if bias is None else bias.data_ptr(), y.data_ptr(), rows, threads,
    )  # fmt: skip
    return y


def fake(
    x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None, format: str, rows: int, columns: int,
    threads: int = 0,
) -> torch.Tensor:  # fmt: skip
    """Shape of `linear`."""
    return x.new_empty((*x.shape[:-1], rows))


OP = define(
    "linear(Tensor x, Tensor weight, Tensor? bias, str format, int rows, int columns, int threads=0)"
    " -> Tensor",
    linear,
    fake,
)


def lower(
    graph: fx.Graph, node: fx.Node, weights: Mapping[str, Weight], options: Mapping[str, Any]
) -> fx.Node:
    """kt.linear -> kt_cpu.linear."""
    bound, weight = arguments(node), weights["weight"]
    rows, columns = weight.shape
    args = (bound["x"], bound["weight"], bound["bias"], weight.format, rows, columns)
    return insert(graph, node, OP, (*args, options["threads"]) if options.get("threads") else args)


def workspace(node: fx.Node, weights: Mapping[str, Weight]) -> int | torch.SymInt:
    """Bytes of the activations in int8; float weights meet them as they are, or rounded in parts that stay small."""
    shape, weight = shape_of(arguments(node)["x"]), weights["weight"]
    if shape is None or weight.format in FLOAT_PRODUCTS:
        return 0
    tokens: int | torch.SymInt = 1
    for length in shape[:-1]:
        tokens = tokens * length
    return tokens * (-(-weight.shape[1] // BLOCK_COLUMNS) * BLOCK_BYTES + BLOCK_BYTES)


register(
    Kernel(
        name="cpu.linear",
        op="kt.linear",
        hardware=frozenset({"cpu"}),
        lower=lower,
        formats=frozenset(packed.PACKED),
        options={"threads": Option(int, "most threads to use; 0, the default, for all")},
        rank=10,
        supports=lambda node: packed.misfit(arguments(node)["weight"]),
        layout=packed.LAYOUT,
        workspace=workspace,
    )
)
