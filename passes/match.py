"""The matcher: finds where a rewrite's pattern stands in a graph. The verifier of patterns uses the same code.

A pattern is a small dataflow graph. Its anchor, the bind that depends on most others, is tried on every node of
the anchor's op; operands are then matched backwards, and binds that the anchor does not reach (the siblings of a
merge) among the users of what is already captured.
"""

from __future__ import annotations

import operator
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import torch
import torch.fx as fx
from ktc.grammar.tree import Bind, Bool, Capture, Number, OpCall, Rewrite, TensorType, Text
from ktc.passes.ops import arguments, is_dialect, op_name, signature

from ktc.dialect.spec import spec_of

DTYPES = {
    "f32": torch.float32, "float32": torch.float32, "f16": torch.float16, "float16": torch.float16,
    "bf16": torch.bfloat16, "bfloat16": torch.bfloat16,
}  # fmt: skip


@dataclass(frozen=True)
class Match:
    """One place where a pattern stands.

    Attributes:
        values: what each name stands for: a node, or the value of an attribute.
        calls: the matched op nodes, by the index of the pattern call they fulfil.
        types: dtype and dimension variables.
    """

    values: Mapping[str, Any] = field(default_factory=dict)
    calls: Mapping[int, fx.Node] = field(default_factory=dict)
    types: Mapping[str, Any] = field(default_factory=dict)

    def nodes(self) -> list[fx.Node]:
        """The matched op nodes in graph order."""
        return sorted(set(self.calls.values()))


class Pattern:
    """A rewrite's pattern, prepared for matching."""

    def __init__(self, rewrite: Rewrite) -> None:
        self.binds = rewrite.pattern
        self.bound: dict[str, tuple[Bind, int]] = {
            name.id: (bind, index) for bind in self.binds for index, name in enumerate(bind.names)
        }
        self.anchor = max(self.binds, key=lambda bind: len(self._reach(bind.call)))

    def _reach(self, call: OpCall) -> set[str]:
        found: set[str] = set()
        for item in call.operands:
            if isinstance(item, OpCall):
                found |= self._reach(item)
            elif isinstance(item, Capture) and item.name in self.bound:
                found |= {item.name} | self._reach(self.bound[item.name][0].call)
        return found

    def find(self, node: fx.Node, fresh: set[fx.Node]) -> Iterator[Match]:
        """Every way the pattern stands with its anchor at `node`; nodes in `fresh` are left alone."""
        for match in self._bind(self.anchor, node, Match()):
            yield from self._siblings([b for b in self.binds if b is not self.anchor], match, fresh)

    def _siblings(self, left: list[Bind], match: Match, fresh: set[fx.Node]) -> Iterator[Match]:
        left = [bind for bind in left if id(bind.call) not in match.calls]
        if not left:
            yield match
            return
        bind = left[0]
        captured = [value for value in match.values.values() if isinstance(value, fx.Node)]
        candidates = sorted({user for value in captured for user in value.users})
        used = set(match.calls.values())
        for node in candidates:
            if node in used or node in fresh or op_name(node) != bind.call.op:
                continue
            for extended in self._bind(bind, node, match):
                yield from self._siblings(left[1:], extended, fresh)

    def _bind(self, bind: Bind, node: fx.Node, match: Match) -> Iterator[Match]:
        for found in self._call(bind.call, node, match):
            values = dict(found.values)
            if len(bind.names) == 1:
                values[bind.names[0].id] = node
            else:
                for index, name in enumerate(bind.names):
                    items = [u for u in node.users if u.target is operator.getitem and u.args[1] == index]
                    values[name.id] = items[0] if items else None
            yield replace(found, values=values)

    def _call(self, call: OpCall, node: object, match: Match) -> Iterator[Match]:
        if not isinstance(node, fx.Node) or not is_dialect(node) or op_name(node) != call.op:
            return
        if id(call) in match.calls:
            if match.calls[id(call)] is node:
                yield match
            return
        bound = arguments(node)
        rows = signature(node.target)
        match = self._attributes(call, bound, rows, match)  # type: ignore[assignment]
        if match is None:
            return
        match = replace(match, calls={**match.calls, id(call): node})
        slots = [name for name, tensor, _, _ in rows if tensor]
        given = [bound[name] for name in slots]
        wanted = call.operands
        if op_name(node) == "kt.split" and len(wanted) > 1:  # literal sizes, after the one tensor
            sizes = [size.value for size in wanted[1:] if isinstance(size, Number)]
            if list(bound["sizes"]) != sizes:
                return
            wanted = wanted[:1]
        if any(value is not None for value in given[len(wanted) :]):
            return  # an operand the pattern does not mention, a bias say, would be lost
        orders = [given[: len(wanted)]]
        spec = spec_of(node.target)
        if spec is not None and spec.commutative:
            orders.append(orders[0][::-1])
        for order in orders:
            if len(order) == len(wanted):
                yield from self._operands(list(zip(wanted, order, strict=True)), match)

    def _attributes(
        self,
        call: OpCall,
        bound: Mapping[str, Any],
        rows: tuple[tuple[str, bool, bool, Any], ...],
        match: Match,
    ) -> Match | None:
        named = {attribute.name: attribute.value for attribute in call.attributes}
        values = dict(match.values)
        for name, tensor, _, default in rows:
            if tensor:
                continue
            wanted = named.get(name)
            if wanted is None and name == "sizes" and len(call.operands) > 1:
                continue  # of kt.split, written as operands
            if wanted is None:
                if bound[name] != default:
                    return None  # not mentioned means: has its default value
            elif isinstance(wanted, Capture):
                if values.setdefault(wanted.name, bound[name]) != bound[name]:
                    return None
            elif not isinstance(wanted, (Number, Text, Bool)) or wanted.value != bound[name]:
                return None
        return replace(match, values=values)

    def _operands(self, pairs: list[tuple[Any, Any]], match: Match) -> Iterator[Match]:
        if not pairs:
            yield match
            return
        (pattern, actual), *rest = pairs
        for found in self._operand(pattern, actual, match):
            yield from self._operands(rest, found)

    def _operand(self, pattern: Any, actual: Any, match: Match) -> Iterator[Match]:
        if isinstance(pattern, OpCall):
            yield from self._call(pattern, actual, match)
        elif isinstance(pattern, (Number, Text, Bool)):
            if pattern.value == actual:
                yield match
        elif pattern.name in self.bound:
            bind, index = self.bound[pattern.name]
            node = actual
            if len(bind.names) > 1:
                if (
                    not isinstance(actual, fx.Node)
                    or actual.target is not operator.getitem
                    or actual.args[1] != index
                ):
                    return
                node = actual.args[0]
            yield from self._bind(bind, node, match)
        else:
            yield from _capture(pattern, actual, match)


def _capture(pattern: Capture, actual: Any, match: Match) -> Iterator[Match]:
    if not isinstance(actual, fx.Node):
        return
    known = match.values.get(pattern.name)
    if known is not None and not same(known, actual):
        return
    types = match.types if pattern.type is None else unify(pattern.type, actual.meta.get("val"), match.types)
    if types is not None:
        yield replace(match, values={**match.values, pattern.name: actual}, types=types)


def same(a: Any, b: Any) -> bool:
    """Whether two captures of one name are equal: the same node, or two reads of one parameter."""
    if a is b:
        return True
    both = isinstance(a, fx.Node) and isinstance(b, fx.Node) and a.op == b.op == "get_attr"
    return both and a.target == b.target


def unify(pattern: TensorType, value: Any, types: Mapping[str, Any]) -> Mapping[str, Any] | None:
    """Extends the type variables so that `value` (a fake tensor) has the pattern's type, or None.

    A `*` or `**` stands for any number of dimensions; a type holds one of them at most.
    """
    if not isinstance(value, torch.Tensor):
        return None
    found = dict(types)
    if pattern.dtype in DTYPES:
        if value.dtype != DTYPES[pattern.dtype]:
            return None
    elif found.setdefault(pattern.dtype, value.dtype) != value.dtype:
        return None
    if pattern.dims is None:
        return found
    wild = [i for i, dim in enumerate(pattern.dims) if dim in ("*", "**")]
    shape = list(value.shape)
    if wild:
        tail = len(pattern.dims) - wild[0] - 1
        if len(wild) > 1 or len(shape) < len(pattern.dims) - 1:
            return None
        pairs = list(zip(pattern.dims[: wild[0]], shape, strict=False))
        pairs += list(zip(pattern.dims[wild[0] + 1 :], shape[len(shape) - tail :], strict=True))
    elif len(shape) != len(pattern.dims):
        return None
    else:
        pairs = list(zip(pattern.dims, shape, strict=True))
    for dim, size in pairs:
        if isinstance(dim, str):
            if str(found.setdefault(dim, size)) != str(size):
                return None
        elif str(dim) != str(size):
            return None
    return found
