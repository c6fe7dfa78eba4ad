"""cpu.experts: the routed experts of a mixture of experts on packed weights, one expert after the other.

Each expert is packed on its own in the layout of cpu.linear, so that its share is one slice, and only the experts that
some token chose are read. The order of summation is that of the experts' numbers, whatever the number of threads.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
import torch.fx as fx
from ktc.backends.cpu import packed
from ktc.backends.cpu.library import OperandError, arguments, define, insert, refuse, shape_of
from ktc.backends.cpu.linear import linear
from ktc.backends.registry import Kernel, Weight, register

from ktc import _cpu
from ktc.dialect.experts import ACTIVATIONS

LAYOUT = "r16.experts"
ALIGNMENT = 64


def expert_bytes(format: str, rows: int, columns: int) -> int:
    """Bytes of one packed expert's matrix, up to the start of the next."""
    return -(-packed.packed_size(format, rows, columns) // ALIGNMENT) * ALIGNMENT


def packed_bytes(weight: Weight) -> int:
    """Bytes that `pack` writes for a weight [experts, rows, columns]."""
    count, rows, columns = weight.shape
    return count * expert_bytes(weight.format, rows, columns)


def pack(blocks: torch.Tensor, weight: Weight, out: torch.Tensor) -> None:
    """Packs the file blocks of all experts (uint8, contiguous) into `out` (uint8[packed_bytes], 64-byte aligned).

    Raises:
        OperandError: sizes, dtypes or alignment that do not fit.
    """
    count, rows, columns = weight.shape
    held = _cpu.file_bytes(weight.format, rows, columns)
    if blocks.dtype != torch.uint8 or blocks.numel() != count * held:
        raise refuse("experts.pack", "blocks", blocks, f"uint8[{count * held}]")
    if out.dtype != torch.uint8 or out.numel() != packed_bytes(weight):
        raise refuse("experts.pack", "out", out, f"uint8[{packed_bytes(weight)}]")
    one = Weight(weight.parameter, weight.format, (rows, columns))
    size, step = packed.packed_size(weight.format, rows, columns), expert_bytes(weight.format, rows, columns)
    flat = blocks.reshape(-1)
    for index in range(count):
        share = flat[index * held : (index + 1) * held]
        packed.pack(share, one, out[index * step : index * step + size])


def experts(
    x: torch.Tensor, indices: torch.Tensor, weights: torch.Tensor, gate_up: torch.Tensor, down: torch.Tensor,
    gate_up_bias: torch.Tensor | None, down_bias: torch.Tensor | None, activation: str,
    gate_up_format: str, down_format: str, count: int, inner: int,
) -> torch.Tensor:  # fmt: skip
    """See `kt.experts`; x float32[T, K], gate_up and down as `pack` writes them, biases float32.

    Args:
        count: number of experts E; indices outside 0..E-1 are refused.
        inner: rows of one expert's gate_up, 2I.

    Raises:
        OperandError: dtypes, shapes or indices that do not fit.
    """
    if x.dtype is not torch.float32 or x.dim() != 2:
        raise refuse("experts", "x", x, "float32[T, K]")
    if indices.shape != weights.shape or indices.shape[0] != x.shape[0]:
        raise refuse("experts", "indices", indices, f"integers [{x.shape[0]}, k], as weights")
    hidden = x.shape[1]
    up_step, down_step = (
        expert_bytes(gate_up_format, inner, hidden),
        expert_bytes(down_format, hidden, inner // 2),
    )
    for name, weight, needed in (("gate_up", gate_up, count * up_step), ("down", down, count * down_step)):
        if weight.dtype is not torch.uint8 or weight.numel() != needed:
            raise refuse("experts", name, weight, f"uint8[{needed}]")
    up_size, down_size = (
        packed.packed_size(gate_up_format, inner, hidden),
        packed.packed_size(down_format, hidden, inner // 2),
    )
    out = torch.zeros_like(x)
    gate = ACTIVATIONS[activation]
    for expert in torch.unique(indices).tolist():
        if not 0 <= expert < count:
            raise OperandError(f"kt_cpu.experts: expert {expert} is not in 0..{count - 1}")
        token, choice = torch.where(indices == expert)
        up = gate_up[expert * up_step : expert * up_step + up_size]
        lower = down[expert * down_step : expert * down_step + down_size]
        up_bias = None if gate_up_bias is None else gate_up_bias[expert]
        lower_bias = None if down_bias is None else down_bias[expert]
        y = linear(x[token], up, up_bias, gate_up_format, inner, hidden)
        y = linear(gate(y).contiguous(), lower, lower_bias, down_format, hidden, inner // 2)
        out.index_add_(0, token, y * weights[token, choice, None].to(y.dtype))
    return out


def fake(x: torch.Tensor, *operands: Any) -> torch.Tensor:
    """Shape of `experts`."""
    return torch.empty_like(x)


OP = define(
    "experts(Tensor x, Tensor indices, Tensor weights, Tensor gate_up, Tensor down, Tensor? gate_up_bias, "
    "Tensor? down_bias, str activation, str gate_up_format, str down_format, int count, int inner) -> Tensor",
    experts,
    fake,
)


def lower(
    graph: fx.Graph, node: fx.Node, weights: Mapping[str, Weight], options: Mapping[str, Any]
) -> fx.Node:
    """kt.experts -> kt_cpu.experts."""
    bound, up = arguments(node), weights["gate_up"]
    operands = ("x", "indices", "weights", "gate_up", "down", "gate_up_bias", "down_bias", "activation")
    count, inner, _ = up.shape
    args = tuple(bound[name] for name in operands)
    return insert(graph, node, OP, (*args, up.format, weights["down"].format, count, inner))


def supports(node: fx.Node) -> str | None:
    """Why a node does not fit, in words, or None."""
    bound = arguments(node)
    for name in ("gate_up", "down"):
        shape = shape_of(bound[name])
        if not isinstance(bound[name], fx.Node) or bound[name].op != "get_attr" or shape is None:
            return f"its `{name}` is computed, not a parameter"
        if shape[2] % packed.COLUMNS:
            return f"its `{name}` has {shape[2]} columns, which is no multiple of {packed.COLUMNS}"
    return None


register(
    Kernel(
        name="cpu.experts",
        op="kt.experts",
        hardware=frozenset({"cpu"}),
        lower=lower,
        formats=frozenset(packed.PACKED),
        rank=10,
        supports=supports,
        layout=LAYOUT,
        pack=pack,
        packed_bytes=packed_bytes,
    )
)
