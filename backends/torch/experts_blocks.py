"""torch.experts_blocks: kt.experts on weights that stay as the file's blocks.

The experts that some token chose are opened, one after the other and slab by slab, at every call: right on any device
and in little memory, and many times slower than a kernel that multiplies blocks.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
import torch.fx as fx
from ktc.backends import file_layout
from ktc.backends.operands import OperandError, arguments, insert
from ktc.backends.registry import Kernel, Weight, register
from ktc.backends.torch import blocks
from ktc.backends.torch.dequantize import BLOCK_FORMATS
from ktc.backends.torch.library import DTYPES, HARDWARE, define, refuse

from ktc.dialect.experts import ACTIVATIONS


def experts(
    x: torch.Tensor, indices: torch.Tensor, weights: torch.Tensor, gate_up: torch.Tensor, down: torch.Tensor,
    gate_up_bias: torch.Tensor | None, down_bias: torch.Tensor | None, activation: str,
    gate_up_format: str, down_format: str, count: int, inner: int,
) -> torch.Tensor:  # fmt: skip
    """See `kt.experts`; gate_up and down are the file's blocks of [count, inner, K] and [count, K, inner / 2].

    Args:
        count: number of experts E; inner: rows of one expert's gate_up, 2I.

    Raises:
        OperandError: dtypes, shapes or indices that do not fit.
    """
    if not x.is_floating_point() or x.dim() != 2:
        raise refuse("experts_blocks", "x", x, "float[T, K]")
    if indices.shape != weights.shape or indices.shape[:1] != x.shape[:1]:
        raise refuse("experts_blocks", "indices", indices, f"integers [{x.shape[0]}, k], as weights")
    hidden = x.shape[1]
    blocks.check("experts_blocks", "gate_up", gate_up, gate_up_format, (count, inner, hidden))
    blocks.check("experts_blocks", "down", down, down_format, (count, hidden, inner // 2))
    up_of, down_of = gate_up.reshape(count, -1), down.reshape(count, -1)
    gate, out = ACTIVATIONS[activation], torch.zeros_like(x)
    for expert in torch.unique(indices).tolist():
        if not 0 <= expert < count:
            raise OperandError(f"kt_torch.experts_blocks: expert {expert} is not in 0..{count - 1}")
        token, choice = torch.where(indices == expert)
        bias = None if gate_up_bias is None else gate_up_bias[expert]
        y = gate(blocks.multiply(x[token], up_of[expert], bias, gate_up_format, inner, hidden))
        bias = None if down_bias is None else down_bias[expert]
        y = blocks.multiply(y, down_of[expert], bias, down_format, hidden, inner // 2)
        out.index_add_(0, token, (y * weights[token, choice, None]).to(out.dtype))
    return out


def fake(x: torch.Tensor, *operands: Any) -> torch.Tensor:
    """Shape of `experts`."""
    return torch.empty_like(x)


OP = define(
    "experts_blocks(Tensor x, Tensor indices, Tensor weights, Tensor gate_up, Tensor down, Tensor? gate_up_bias, "
    "Tensor? down_bias, str activation, str gate_up_format, str down_format, int count, int inner) -> Tensor",
    experts,
    fake,
)


def lower(
    graph: fx.Graph, node: fx.Node, weights: Mapping[str, Weight], options: Mapping[str, Any]
) -> fx.Node:
    """kt.experts -> kt_torch.experts_blocks."""
    bound, up = arguments(node), weights["gate_up"]
    operands = ("x", "indices", "weights", "gate_up", "down", "gate_up_bias", "down_bias", "activation")
    count, inner, _ = up.shape
    args = tuple(bound[name] for name in operands)
    return insert(graph, node, OP, (*args, up.format, weights["down"].format, count, inner))


def supports(node: fx.Node) -> str | None:
    """Why a node does not fit, in words, or None."""
    bound = arguments(node)
    return blocks.misfit(bound["gate_up"], 3) or blocks.misfit(bound["down"], 3)


def workspace(node: fx.Node, weights: Mapping[str, Weight]) -> int | torch.SymInt:
    """One slab of an expert's weight; of all tokens, since one expert may get them all, what goes through it."""
    tokens, width = arguments(node)["x"].meta["val"].shape
    (_, inner, _), itemsize = weights["gate_up"].shape, 4
    slab = max(blocks.slab_bytes(*weight.shape[1:]) for weight in weights.values())
    nbytes: int | torch.SymInt = slab + tokens * itemsize * (3 * width + 4 * inner)
    return nbytes


register(
    Kernel(
        name="torch.experts_blocks",
        op="kt.experts",
        hardware=HARDWARE,
        lower=lower,
        formats=BLOCK_FORMATS,
        dtypes=DTYPES,
        rank=0,
        supports=supports,
        layout=file_layout.LAYOUT,
        workspace=workspace,
    )
)
