"""Bytes of values whose shapes are symbolic, at a given number of tokens, sequences and blocks."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
import torch.fx as fx


class Sizes:
    """Substitutes numbers for the symbols in the shapes of one graph.

    Args:
        gm: the graph; its placeholders tell which symbol is which.
        dims: for placeholder name and dimension, the number: {"input_ids": {1: 512}}.
    """

    def __init__(self, gm: fx.GraphModule, dims: Mapping[str, Mapping[int, int]]) -> None:
        self._values: dict[Any, int] = {}
        self._known: dict[Any, int] = {}
        for node in gm.graph.nodes:
            if node.op != "placeholder" or not isinstance(node.meta.get("val"), torch.Tensor):
                continue
            for dim, number in dims.get(node.name, {}).items():
                size = node.meta["val"].shape[dim]
                if isinstance(size, torch.SymInt):
                    for symbol in size.node.expr.free_symbols:
                        # A shape such as s + 1 stands for the number given: solve for the one symbol in it.
                        self._values.setdefault(symbol, number - int(size.node.expr.subs({symbol: 0})))

    def size(self, dim: int | torch.SymInt) -> int:
        """One dimension as a number; a symbol without a number counts as its example."""
        if isinstance(dim, int):
            return dim
        expr = dim.node.expr
        if expr not in self._known:
            number = expr.subs(self._values)
            self._known[expr] = int(number) if number.is_number else int(dim.node.hint)
        return self._known[expr]

    def shape(self, value: torch.Tensor) -> tuple[int, ...]:
        """A tensor's shape in numbers."""
        return tuple(self.size(dim) for dim in value.shape)

    def nbytes(self, value: object) -> int:
        """Bytes of a tensor, or of all tensors of a tuple; 0 for anything else."""
        if isinstance(value, (tuple, list)):
            return sum(self.nbytes(item) for item in value)
        if not isinstance(value, torch.Tensor):
            return 0
        count = value.dtype.itemsize
        for dim in self.shape(value):
            count *= dim
        return count


def size_words(nbytes: int) -> str:
    """`1.5 GiB`, for people."""
    value = float(nbytes)
    for unit in ("B", "KiB", "MiB", "GiB"):
        if value < 1024:
            return f"{value:.0f} {unit}" if unit == "B" else f"{value:.2f} {unit}"
        value /= 1024
    return f"{value:.2f} TiB"
