"""cpu.experts: the routed experts of a mixture of experts on packed weights, as one operator.

Each expert is packed on its own in the layout of cpu.linear, one behind the other; only the experts that some token
chose are read. Quantised weights meet int8 activations, as in cpu.linear. The order of summation is that of the
experts' numbers: a token's result depends neither on the other tokens nor on the number of threads.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
import torch.fx as fx
from ktc.backends.cpu import packed, packed_matrices
from ktc.backends.cpu.library import OperandError, arguments, define, insert, refuse, shape_of, vector
from ktc.backends.registry import Kernel, Layout, Option, Weight, register

from ktc import _cpu

GATES = ("silu", "gelu", "gelu_tanh", "gpt_oss")
"""The activations by their numbers in C++."""
PART_TOKENS = 4096
"""More tokens are computed in parts, which bounds the workspace; as in cpp/kernels/experts/experts.cpp."""

_call = _cpu.experts


def row_order(rows: int) -> torch.Tensor | None:
    """In which order the layout holds an expert's rows, int64[rows]; None for their own.

    32 rows of the first half alternate with 32 of the second, so that gate rows and the up rows that they meet lie side
    by side; matrices whose rows are no multiple of 64, which no gate_up is, stay as they are.
    """
    if rows % 64:
        return None
    return torch.arange(rows).reshape(2, -1, 32).transpose(0, 1).reshape(-1)


def pack(blocks: torch.Tensor, weight: Weight, out: torch.Tensor) -> None:
    """As `packed_matrices.pack`, each expert's rows in the order of `row_order`."""
    packed_matrices.pack(blocks, weight, out, row_order(weight.shape[1]))


LAYOUT = Layout(
    "r16.experts", packed.VERSION, pack, packed_matrices.packed_bytes, lambda weight: weight.shape[0]
)
"""Raise the version with any change to `row_order`."""


def experts(
    x: torch.Tensor, indices: torch.Tensor, weights: torch.Tensor, gate_up: torch.Tensor, down: torch.Tensor,
    gate_up_bias: torch.Tensor | None, down_bias: torch.Tensor | None, activation: str,
    gate_up_format: str, down_format: str, count: int, inner: int, threads: int = 0,
) -> torch.Tensor:  # fmt: skip
    """See `kt.experts`; x float32[T, K], gate_up and down as `pack` writes them.

    Args:
        count: number of experts E.
        inner: rows of one expert's gate_up, 2I.
        threads: most threads to use; 0 for all.

    Raises:
        OperandError: dtypes, shapes or memory layouts that do not fit; an index outside 0..E-1.
    """
    if x.dtype is not torch.float32 or x.dim() != 2:
        raise refuse("experts", "x", x, "float32[T, K]")
    tokens, hidden = x.shape
    if indices.dim() != 2 or indices.shape[0] != tokens or indices.is_floating_point():
        raise refuse("experts", "indices", indices, f"integers [{tokens}, k]")
    if weights.shape != indices.shape or not weights.is_floating_point():
        raise refuse("experts", "weights", weights, f"floats {list(indices.shape)}, as indices")
    if activation not in GATES:
        raise OperandError(f"kt_cpu.experts: unknown activation {activation!r}; there are {', '.join(GATES)}")
    packed_matrices.check("experts", "gate_up", gate_up, gate_up_format, (count, inner, hidden), "experts")
    packed_matrices.check("experts", "down", down, down_format, (count, hidden, inner // 2), "experts")
    if gate_up_bias is not None:
        gate_up_bias = vector("experts", "gate_up_bias", gate_up_bias, count * inner)
    if down_bias is not None:
        down_bias = vector("experts", "down_bias", down_bias, count * hidden)
    x, indices, weights = x.contiguous(), indices.long().contiguous(), weights.float().contiguous()
    y = torch.empty_like(x)
    try:
        _call(
            GATES.index(activation), count, hidden, inner // 2,
            packed.format_id(gate_up_format), gate_up.data_ptr(), _address(gate_up_bias),
            packed.format_id(down_format), down.data_ptr(), _address(down_bias),
            x.data_ptr(), indices.data_ptr(), weights.data_ptr(), tokens, indices.shape[1], y.data_ptr(), threads,
        )  # fmt: skip
    except (IndexError, ValueError) as error:
        raise OperandError(f"kt_cpu.experts: {error}") from error
    return y


def _address(tensor: torch.Tensor | None) -> int:
    return 0 if tensor is None else tensor.data_ptr()


def fake(x: torch.Tensor, *operands: Any) -> torch.Tensor:
    """Shape of `experts`."""
    return torch.empty_like(x)


OP = define(
    "experts(Tensor x, Tensor indices, Tensor weights, Tensor gate_up, Tensor down, Tensor? gate_up_bias, "
    "Tensor? down_bias, str activation, str gate_up_format, str down_format, int count, int inner, "
    "int threads=0) -> Tensor",
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
    args = (*args, up.format, weights["down"].format, count, inner)
    return insert(graph, node, OP, (*args, options["threads"]) if options.get("threads") else args)


def workspace(node: fx.Node, weights: Mapping[str, Weight]) -> int | torch.SymInt:
    """Bytes that a call keeps beside operands and result: activations in int8 or float, and the sorted choices."""
    bound, up, down = arguments(node), weights["gate_up"], weights["down"]
    choices = shape_of(bound["indices"])
    if choices is None:
        return 0
    count, inner, hidden = up.shape
    # Linear in the number of tokens, but for the rounding of a part to lines of 64 bytes.
    formats = packed.format_id(up.format), packed.format_id(down.format)
    one, two = (
        _cpu.experts_workspace(count, hidden, inner // 2, *formats, tokens, int(choices[1]))
        for tokens in (64, 128)
    )
    each = (two - one) // 64
    part: int | torch.SymInt = torch.sym_min(choices[0], PART_TOKENS)  # type: ignore[no-untyped-call]
    return one - 64 * each + packed_matrices.ALIGNMENT + each * part


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
        options={"threads": Option(int, "most threads to use; 0, the default, for all")},
        rank=10,
        supports=supports,
        layout=LAYOUT,
        workspace=workspace,
    )
)
