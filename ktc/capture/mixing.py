"""Checks that only attention lets the tokens of a flat batch see each other.

The T tokens of a captured language model belong to different sequences, and earlier ones lie in caches.
Whatever else looks along T (a convolution, a scan, attention by hand) mixes sequences and forgets the past.
"""

from __future__ import annotations

import operator
from typing import Any

import torch
import torch.fx as fx

from ktc.capture.errors import CaptureError
from ktc.dialect import attention, embedding

_MIXING = frozenset(
    {
        "conv1d",
        "conv2d",
        "conv_transpose1d",
        "cumsum",
        "cumprod",
        "logcumsumexp",
        "roll",
        "flip",
        "sort",
        "cummax",
    }
)
# They read T without making anything of it but a size, a row, or what the op's own definition says.
_SELECTING = frozenset(
    {torch.ops.aten.sym_size.int, torch.index_select, embedding.SPEC.op, attention.SPEC.op}
)


def check_mixing(graph: fx.Graph, tokens: torch.SymInt) -> None:
    """Raises CaptureError for the first node that looks along the tokens and is not kt.attention.

    Args:
        graph: a language model's, dead code removed.
        tokens: the symbolic number of tokens.
    """
    symbol = tokens.node.expr
    for node in graph.nodes:
        if node.op not in ("call_function", "call_method") or node.target in _SELECTING:
            continue
        name = getattr(node.target, "__name__", str(node.target)).strip("_")
        of_tokens = any(_token_dims(argument.meta["val"], symbol) for argument in node.all_input_nodes)
        made = _token_dims(node.meta["val"], symbol)
        problem = ""
        if name in _MIXING and of_tokens:
            problem = "looks along the tokens"
        elif len(made) > 1:
            problem = "compares tokens with each other"
        elif any(not (dim / symbol).is_Integer for dim in made):
            problem = "shifts or pads the tokens"
        elif of_tokens and not made and _is_tensor(node) and not _is_row(node):
            problem = "reduces over the tokens"
        if problem:
            raise CaptureError(
                f"{problem} outside attention, so that sequences of a batch would see each other",
                module=node.meta["site"],
                op=name,
                hint="only models whose layers remember through key/value caches can be captured",
            )


def _token_dims(value: Any, symbol: Any) -> list[Any]:
    """The sizes of a tensor, or of the first of several, in which the number of tokens occurs."""
    if isinstance(value, (tuple, list)):
        value = next((item for item in value if isinstance(item, torch.Tensor)), None)
    if not isinstance(value, torch.Tensor):
        return []
    dims: list[Any] = list(value.shape)
    sizes = [dim.node.expr for dim in dims if isinstance(dim, torch.SymInt)]
    return [size for size in sizes if size.has(symbol)]


def _is_tensor(node: fx.Node) -> bool:
    value = node.meta["val"]
    return isinstance(value, torch.Tensor) or (isinstance(value, (tuple, list)) and bool(value))


def _is_row(node: fx.Node) -> bool:
    """Items of tuples, new tensors of a tensor's dtype: no token's data enters."""
    if node.target is operator.getitem:
        return isinstance(node.args[0], fx.Node) and isinstance(node.args[0].meta["val"], (tuple, list))
    return str(node.target).startswith("new_")
