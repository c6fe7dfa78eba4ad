"""wanted_rows: behind the last attention, only the tokens whose logits are wanted are computed.

Capture picks the rows of `logits_index` in front of the head, where models do. Whatever lies between the last attention
and that choice works on each token alone, so the choice may be made first: a prompt then computes the feed-forward part
of its last layer for one token, not for all. Cached keys and values are not touched: attention still sees every token.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
import torch.fx as fx
from ktc.passes.context import Context
from ktc.passes.edit import call, clean, inherit, refresh, sites_of
from ktc.passes.lower import place_of
from ktc.passes.ops import op_name

from ktc.dialect.spec import spec_of

WANTED = "logits_index"
"""The input of a captured language model that names the tokens whose logits are wanted, int64[K]."""
Region = dict[fx.Node, None]
"""Nodes in the order of the graph."""
_VIEWS = frozenset({"view", "reshape", "flatten", "unflatten", "unsqueeze", "squeeze"})
_COPIES = frozenset({"to", "float", "half", "bfloat16", "type_as", "contiguous", "clone"})


@dataclass(frozen=True)
class WantedRows:
    """Moves the choice of rows up through ops that treat every token alone; a graph without one stays as it is."""

    name: str = "wanted_rows"

    def __call__(self, gm: fx.GraphModule, context: Context) -> fx.GraphModule:
        """See `Pass`."""
        choice = _choice(gm.graph)
        if choice is None:
            return gm
        operands: Any = choice.args
        values, dim, index = operands
        rows = _Rows(values.meta["val"].shape[dim])
        region = _region(choice, rows)
        if values not in region:
            return gm
        _narrow(gm.graph, index, region, rows, context)
        choice.replace_all_uses_with(values)
        gm.graph.erase_node(choice)
        clean(gm)
        for node in region:
            if spec_of(node.target) is not None:
                for site in sites_of(node):
                    context.events.emit(self.name, "narrowed", site, node=node.name)
        return gm


def _choice(graph: fx.Graph) -> fx.Node | None:
    """The node that picks rows of one value by the graph's input; None if there is none, or several."""
    found = [
        node for node in graph.nodes
        if node.target is torch.index_select and len(node.args) == 3 and not node.kwargs
        and isinstance(node.args[2], fx.Node) and node.args[2].op == "placeholder" and node.args[2].name == WANTED
    ]  # fmt: skip
    return found[0] if len(found) == 1 else None


class _Rows:
    """Where the rows of values are: the one dimension as long as the step has tokens.

    Args:
        tokens: the number of tokens, a symbolic size.
    """

    def __init__(self, tokens: Any) -> None:
        self.tokens = str(tokens)
        self._symbols = tokens.node.expr.free_symbols if isinstance(tokens, torch.SymInt) else set()

    def dim(self, value: Any) -> int | None:
        """The dimension of a tensor, counted from its last, -1; None if its rows are not tokens."""
        if not isinstance(value, torch.Tensor):
            return None
        having = [d for d, size in enumerate(value.shape) if self.has(size)]
        if len(having) != 1 or str(value.shape[having[0]]) != self.tokens:
            return None
        return having[0] - value.ndim

    def has(self, size: Any) -> bool:
        """Whether a size depends on the number of tokens."""
        return isinstance(size, torch.SymInt) and not self._symbols.isdisjoint(size.node.expr.free_symbols)

    def free(self, value: Any) -> bool:
        """Whether nothing of a value depends on the number of tokens."""
        if isinstance(value, torch.Tensor):
            return not any(map(self.has, value.shape))
        return not self.has(value)


def _region(choice: fx.Node, rows: _Rows) -> Region:
    """The nodes that treat every row alone and whose results nobody reads but the choice and each other; in order."""
    found: Region = {}
    for node in reversed(choice.graph.nodes):
        if _is_read_inside(node, found, choice) and _is_rowwise(node, rows):
            found[node] = None
    # Only tensors are cut, so a part of a tuple stays with the whole or not at all.
    while lost := [
        node for node in found if not (_is_read_inside(node, found, choice) and _has_whole(node, found))
    ]:
        for node in lost:
            del found[node]
    return dict(reversed(found.items()))


def _is_read_inside(node: fx.Node, region: Region, choice: fx.Node) -> bool:
    return bool(node.users) and all(user is choice or user in region for user in node.users)


def _has_whole(node: fx.Node, region: Region) -> bool:
    return all(
        source in region or not isinstance(source.meta["val"], (tuple, list))
        for source in node.all_input_nodes
    )


def _is_rowwise(node: fx.Node, rows: _Rows) -> bool:
    """Whether row i of every result follows from row i of the operands, and from what has no rows."""
    if node.op not in ("call_function", "call_method"):
        return False
    spec = spec_of(node.target)
    name = op_name(node).rsplit(".", 1)[-1]
    if name == "getitem":
        return isinstance(node.all_input_nodes[0].meta["val"], (tuple, list))
    numbers = (source.meta["val"] for source in node.all_input_nodes)  # `has` is false of tensors
    if any(rows.has(number) and str(number) != rows.tokens for number in numbers):
        return False
    if spec is not None:
        return spec.rowwise and _is_aligned(node, rows)
    if name in _VIEWS:
        return _keeps_rows(node, rows)
    return (name in _COPIES or _is_pointwise(name)) and _is_aligned(node, rows)


@cache
def _is_pointwise(name: str) -> bool:
    """Whether torch says that an op, by the name of its function or method, works element by element."""
    packet = getattr(torch.ops.aten, name, None)
    if packet is None or name.endswith("_"):
        return False
    return any(torch.Tag.pointwise in getattr(packet, overload).tags for overload in packet.overloads())


def _results(node: fx.Node) -> list[Any]:
    value = node.meta["val"]
    return list(value) if isinstance(value, (tuple, list)) else [value]


def _is_aligned(node: fx.Node, rows: _Rows) -> bool:
    """Whether rows lie in the same dimension, never the last, of every result and operand that has any."""
    dims = {rows.dim(value) for value in _results(node)}
    if len(dims) != 1:
        return False
    (dim,) = dims
    if dim is None or dim == -1:
        return False
    return all(_fits(source.meta["val"], dim, rows) for source in node.all_input_nodes)


def _fits(value: Any, dim: int, rows: _Rows) -> bool:
    if not isinstance(value, torch.Tensor):
        return isinstance(value, (torch.SymInt, int, float))
    return rows.dim(value) == dim or rows.free(value)


def _keeps_rows(node: fx.Node, rows: _Rows) -> bool:
    """Whether a view leaves rows whole and in order: as many elements lie before them, in every row, as did."""
    source = node.all_input_nodes[0].meta["val"]
    before, after = rows.dim(source), rows.dim(node.meta["val"])
    if before is None or after is None:
        return False
    return _product(source.shape[:before]) == _product(node.meta["val"].shape[:after])


def _product(sizes: Any) -> str:
    product: Any = 1
    for size in sizes:
        product = product * size
    return str(product)


def _narrow(graph: fx.Graph, index: fx.Node, region: Region, rows: _Rows, context: Context) -> None:
    """Picks rows where the region begins, and takes the number of rows for that of tokens inside."""
    picked: dict[fx.Node, fx.Node] = {}
    count: fx.Node | None = None
    for node in region:
        for source in node.all_input_nodes:
            if source in region or source in picked or rows.free(source.meta["val"]):
                continue
            if isinstance(source.meta["val"], torch.Tensor):
                leading = _leading(source, node, region, context)
                picked[source] = _picked(graph, source, index, rows)
                inherit(picked[source], [leading])
            else:
                count = _count(graph, index) if count is None else count
                picked[source] = count
        node.args = fx.map_arg(node.args, lambda n: picked.get(n, n))
        node.kwargs = fx.map_arg(node.kwargs, lambda n: picked.get(n, n))
    refresh(graph, picked.values())


def _leading(value: fx.Node, reader: fx.Node, region: Region, context: Context) -> fx.Node:
    """Whose device picks the rows: the value's, since then only they travel, or its reader's if all go there anyway."""
    there = place_of(reader, context, None)
    others = (user for user in value.users if user not in region and user.op != "output")
    return reader if any(place_of(user, context, None) == there for user in others) else value


def _count(graph: fx.Graph, index: fx.Node) -> fx.Node:
    first = next(node for node in graph.nodes if node.op != "placeholder")
    with graph.inserting_before(first):
        node = call(graph, torch.ops.aten.sym_size.int, (index, 0), name="wanted")
    inherit(node, [index])
    return node


def _picked(graph: fx.Graph, value: fx.Node, index: fx.Node, rows: _Rows) -> fx.Node:
    dim = rows.dim(value.meta["val"])
    with graph.inserting_after(value):
        return call(graph, torch.index_select, (value, dim, index), name=f"{value.name}_wanted")
