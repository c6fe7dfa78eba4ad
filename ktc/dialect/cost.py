"""Cost of a graph node at given sizes of its symbols, and the byte counts that the ops' costs share."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
import torch.fx as fx

from ktc.dialect.spec import Cost, spec_of


def nbytes(value: Any) -> int:
    """Bytes of a tensor, of a list of tensors, or 0 for anything else."""
    if isinstance(value, torch.Tensor):
        return int(value.numel()) * value.element_size()
    if isinstance(value, (list, tuple)):
        return sum(nbytes(item) for item in value)
    return 0


def elementwise(*operands: str, flops: int, results: int = 1) -> Any:
    """A cost function for ops that read `operands` once and write `results` tensors like the first."""

    def cost(arguments: Mapping[str, Any], context: int) -> Cost:
        first = arguments[operands[0]]
        read = sum(nbytes(arguments[name]) for name in operands)
        return Cost(flops * int(first.numel()), read, results * nbytes(first))

    return cost


def moved(shape: Callable[..., torch.Tensor]) -> Any:
    """A cost function for ops that only copy: `shape`, the op's fake, says what is written, and that is read."""

    def cost(arguments: Mapping[str, Any], context: int) -> Cost:
        size = nbytes(shape(**arguments))
        return Cost(0, size, size)

    return cost


def concrete(value: Any, sizes: Mapping[str, int]) -> Any:
    """A fake tensor, symbolic integer or nest of them at the given `sizes`; tensors become meta tensors.

    Raises:
        KeyError: a symbol has no size in `sizes`.
    """
    if isinstance(value, torch.Tensor):
        shape = [_integer(dim, sizes) for dim in value.shape]
        return torch.empty(shape, dtype=value.dtype, device="meta")
    if isinstance(value, torch.SymInt):
        return _integer(value, sizes)
    if isinstance(value, (list, tuple)):
        return [concrete(item, sizes) for item in value]
    return value


def _integer(value: int | torch.SymInt, sizes: Mapping[str, int]) -> int:
    if isinstance(value, int):
        return value
    expression = value.node.expr
    return int(expression.subs({symbol: sizes[str(symbol)] for symbol in expression.free_symbols}))


def node_cost(node: fx.Node, sizes: Mapping[str, int], context: int = 0) -> Cost | None:
    """What one call of `node` costs, or None when it is no dialect op.

    Args:
        node: a node whose arguments carry `meta["val"]`.
        sizes: value of each symbol (`str(symbol)`) of the graph's shapes; see `Captured.sizes`.
        context: mean number of cached tokens a sequence attends to after the step.

    Raises:
        KeyError: a symbol has no size in `sizes`.
    """
    spec = spec_of(node.target)
    if spec is None:
        return None
    arguments: dict[str, Any] = {
        argument.name: argument.default_value for argument in spec.op._schema.arguments
    }
    arguments.update(zip(spec.operands, node.args, strict=False))
    arguments.update(node.kwargs)
    values = fx.node.map_aggregate(arguments, lambda a: a.meta["val"] if isinstance(a, fx.Node) else a)
    return spec.cost({name: concrete(value, sizes) for name, value in dict(values).items()}, context)
