"""Shapes of every value of a placed graph as functions of a step's sizes.

An artifact's graph carries no shapes. Running it on meta tensors, which have no data, tells them for one choice
of sizes, and also which results are views of what; a few choices give the affine function of each number, and
one more shows whether it is one.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.fx as fx

SYMBOLS = ("tokens", "sequences", "table_columns", "logits", "table_entries")
"""The sizes that a step decides: T, B, NB and K of `ktc.runtime.step.Step`, and B times NB."""

STEP_INPUTS: dict[str, tuple[torch.dtype, tuple[int | str, ...]]] = {
    "input_ids": (torch.int64, (1, "tokens")),
    "positions": (torch.int64, (1, "tokens")),
    "seq_starts": (torch.int32, ("sequences+1",)),
    "context_lens": (torch.int32, ("sequences",)),
    "block_tables": (torch.int32, ("sequences", "table_columns")),
    "slots": (torch.int64, ("tokens",)),
    "logits_index": (torch.int64, ("logits",)),
}
"""Dtype and shape of the inputs of a language model's graph."""

_BASE = (11, 3, 5, 2)
_STEPS = (2, 1, 2, 1)
_BOTH = (11, 4, 7, 2)  # sequences and table columns together, for their product
_CHECK = (29, 7, 13, 5)

Affine = tuple[int, ...]
"""A constant, then a factor for each symbol."""


def step_sizes(tokens: int, sequences: int, table_columns: int, logits: int) -> tuple[int, ...]:
    """The values of `SYMBOLS` in a step."""
    return tokens, sequences, table_columns, logits, sequences * table_columns


def evaluate(number: Affine, sizes: Sequence[int]) -> int:
    """The value of an affine number at a step's sizes."""
    return number[0] + sum(factor * size for factor, size in zip(number[1:], sizes, strict=True))


def constant(value: int) -> Affine:
    """A number that no size changes."""
    return (value, *(0 for _ in SYMBOLS))


@dataclass(frozen=True)
class Leaf:
    """One tensor of a value: a view of a storage.

    Attributes:
        storage: number of the storage; equal for views of the same memory.
        dtype: of its elements.
        offset, shape, strides: in elements.
        example: (shape, strides) at one choice of sizes, all different from 1 where they can be.
    """

    storage: int
    dtype: torch.dtype
    offset: Affine
    shape: tuple[Affine, ...]
    strides: tuple[Affine, ...]
    example: tuple[tuple[int, ...], tuple[int, ...]] = field(compare=False)


@dataclass(frozen=True)
class Shapes:
    """What is known of a graph.

    Attributes:
        leaves: the tensors of every node's value, in order; a node that is not here has no shape that is affine.
        storage_bytes: size of every storage.
        makers: the node in whose value a storage is first seen.
        numbers: nodes whose values are whole numbers (or tuples of them).
        tuples: nodes whose values are several tensors.
    """

    leaves: dict[fx.Node, tuple[Leaf, ...]]
    storage_bytes: dict[int, Affine]
    makers: dict[int, fx.Node]
    numbers: frozenset[fx.Node] = frozenset()
    tuples: frozenset[fx.Node] = frozenset()


def infer(graph: fx.Graph, tensors: Mapping[str, Any]) -> Shapes:
    """Shapes of a language model's graph over `tensors` (weights, caches and constants by name).

    Raises:
        KeyError: the graph has an input that is not one of `STEP_INPUTS`.
    """
    points: list[tuple[int, ...]] = [_BASE]
    for index, step in enumerate(_STEPS):
        points.append(tuple(size + step * (index == at) for at, size in enumerate(_BASE)))
    points.append(_BOTH)
    whole: set[fx.Node] = set()
    several: set[fx.Node] = set()
    runs = [
        _run(graph, tensors, dict(zip(SYMBOLS, step_sizes(*point), strict=True)), whole, several)
        for point in (*points, _CHECK)
    ]
    leaves: dict[fx.Node, tuple[Leaf, ...]] = {}
    storage_bytes: dict[int, Affine] = {}
    makers: dict[int, fx.Node] = {}
    for node in graph.nodes:
        seen = [run.get(node) for run in runs]
        first = seen[0]
        if first is None or any(s is None or not _alike(first, s) for s in seen):
            continue
        found = [_leaf([s[index] for s in seen if s is not None]) for index in range(len(first))]
        if any(leaf is None for leaf in found):
            continue
        leaves[node] = tuple(leaf for leaf, _ in found if leaf is not None)  # type: ignore[misc]
        for leaf, nbytes in found:  # type: ignore[misc]
            storage_bytes.setdefault(leaf.storage, nbytes)
            makers.setdefault(leaf.storage, node)
    return Shapes(leaves, storage_bytes, makers, frozenset(whole), frozenset(several))


@dataclass(frozen=True)
class _Seen:
    """A tensor at one choice of sizes."""

    storage: int
    dtype: torch.dtype
    numbers: tuple[int, ...]  # bytes of the storage, offset, sizes, strides


def _alike(a: list[_Seen], b: list[_Seen]) -> bool:
    return len(a) == len(b) and all(
        x.storage == y.storage and x.dtype is y.dtype and len(x.numbers) == len(y.numbers)
        for x, y in zip(a, b, strict=True)
    )


def _leaf(seen: list[_Seen]) -> tuple[Leaf, Affine] | None:
    numbers = [_fit([s.numbers[index] for s in seen]) for index in range(len(seen[0].numbers))]
    known = [number for number in numbers if number is not None]
    if len(known) != len(numbers):
        return None
    rank = (len(known) - 2) // 2
    example = seen[0].numbers
    leaf = Leaf(
        seen[0].storage, seen[0].dtype, known[1], tuple(known[2 : 2 + rank]), tuple(known[2 + rank :]),
        (example[2 : 2 + rank], example[2 + rank :]),
    )  # fmt: skip
    return leaf, known[0]


def _fit(values: list[int]) -> Affine | None:
    """The affine function with these values at the points of `infer`, or None."""
    base, *moved, both, check = values
    grown = [value - base for value in moved]
    entries, rest = divmod(both - base - grown[1] - grown[2], _STEPS[1] * _STEPS[2])
    if rest:
        return None
    grown[1] -= entries * _STEPS[1] * _BASE[2]
    grown[2] -= entries * _STEPS[2] * _BASE[1]
    factors = []
    for growth, step in zip(grown, _STEPS, strict=True):
        factor, rest = divmod(growth, step)
        if rest:
            return None
        factors.append(factor)
    factors.append(entries)
    offset = base - evaluate((0, *factors), step_sizes(*_BASE))
    fitted = (offset, *factors)
    return fitted if evaluate(fitted, step_sizes(*_CHECK)) == check else None


def _run(
    graph: fx.Graph,
    tensors: Mapping[str, Any],
    sizes: Mapping[str, int],
    whole: set[fx.Node],
    several: set[fx.Node],
) -> dict[fx.Node, list[_Seen]]:
    """Every node's tensors at one choice of sizes; nodes that do not run on meta tensors are left out.

    Nodes whose values are numbers are added to `whole`, those whose values are several tensors to `several`.
    """
    values: dict[fx.Node, Any] = {}
    seen: dict[fx.Node, list[_Seen]] = {}
    numbers: dict[int, int] = {}
    constants: dict[str, torch.Tensor] = {}
    with torch.no_grad():
        for node in graph.nodes:
            if node.op == "output" or any(source not in values for source in node.all_input_nodes):
                continue
            try:
                value = _value(node, values, tensors, constants, sizes)
            except (RuntimeError, TypeError, ValueError, IndexError, NotImplementedError):
                continue  # it depends on data: the Python program runs it
            values[node] = value
            tensors_of = _tensors(value)
            if tensors_of is not None and not isinstance(value, torch.Tensor):
                several.add(node)
            if tensors_of is not None:
                seen[node] = [_see(tensor, numbers) for tensor in tensors_of]
            elif isinstance(value, int) or (
                isinstance(value, tuple) and all(isinstance(n, int) for n in value)
            ):
                whole.add(node)
    return seen


def _value(
    node: fx.Node,
    values: Mapping[fx.Node, Any],
    tensors: Mapping[str, Any],
    constants: dict[str, torch.Tensor],
    sizes: Mapping[str, int],
) -> Any:
    if node.op == "placeholder":
        dtype, shape = STEP_INPUTS[str(node.target)]
        return torch.empty([_size(size, sizes) for size in shape], dtype=dtype, device="meta")
    if node.op == "get_attr":
        name = str(node.target)
        if name not in constants:
            real = tensors[name]
            constants[name] = torch.empty_strided(real.size(), real.stride(), dtype=real.dtype, device="meta")
        return constants[name]
    args, kwargs = fx.map_arg((node.args, node.kwargs), lambda n: values[n])
    if node.op == "call_method":
        return getattr(args[0], str(node.target))(*args[1:], **kwargs)
    if node.op == "call_function" and callable(node.target):
        # Between devices that are one CPU nothing is copied; a segment never reaches another device's.
        if str(node.target) == "kt.transfer.default":
            return values[node.all_input_nodes[0]]
        return node.target(*args, **kwargs)
    raise TypeError(f"{node.op} has no shape")


def _size(size: int | str, sizes: Mapping[str, int]) -> int:
    if isinstance(size, int):
        return size
    name, _, more = size.partition("+")
    return sizes[name] + int(more or 0)


def _tensors(value: Any) -> list[torch.Tensor] | None:
    if isinstance(value, torch.Tensor):
        return [value]
    if isinstance(value, (tuple, list)) and all(isinstance(item, torch.Tensor) for item in value):
        return list(value)
    return None


def _see(tensor: torch.Tensor, numbers: dict[int, int]) -> _Seen:
    storage = tensor.untyped_storage()
    number = numbers.setdefault(storage._cdata, len(numbers))
    return _Seen(
        number, tensor.dtype,
        (storage.nbytes(), int(tensor.storage_offset()), *tensor.size(), *tensor.stride()),
    )  # fmt: skip
