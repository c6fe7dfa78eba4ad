"""What the compiler knows of one dialect op: schema, meaning, shapes, cost, effects; and the registry."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

import torch

LIBRARY = torch.library.Library("kt", "DEF")  # type: ignore[no-untyped-call]


@dataclass(frozen=True, slots=True)
class Cost:
    """What one call does, for the cost model; numbers are for the dense dtypes of the operands.

    Attributes:
        flops: floating-point operations, a multiply-add counted as two.
        read_bytes: bytes of every operand that is read, weights included at their dense dtype.
        written_bytes: bytes of results and of cache entries written.
        weight_elements: elements of quantisable weights read, so that a caller who knows their storage format
            can replace their share of `read_bytes`.
    """

    flops: int = 0
    read_bytes: int = 0
    written_bytes: int = 0
    weight_elements: int = 0

    def __add__(self, other: Cost) -> Cost:
        return Cost(
            self.flops + other.flops,
            self.read_bytes + other.read_bytes,
            self.written_bytes + other.written_bytes,
            self.weight_elements + other.weight_elements,
        )


@dataclass(frozen=True, slots=True)
class Effects:
    """What an op does beside computing its results.

    Attributes:
        host_sync: the reference reads device values on the host, so it cannot be recorded into a CUDA graph.
        data_dependent: which memory is read depends on the values of operands (experts, cache blocks, rows).
        pinned: may neither be removed nor be moved across another pinned op.
        mutates_kv: writes the key/value cache operands.
    """

    host_sync: bool = False
    data_dependent: bool = False
    pinned: bool = False
    mutates_kv: bool = False


@dataclass(frozen=True)
class OpSpec:
    """One op of the dialect.

    Attributes:
        name: qualified name, "kt.linear".
        schema: its torch schema, as registered.
        operands: argument names in schema order.
        outputs: names of the results, in order.
        weights: operands that are weights of a model and may be stored quantised.
        commutative: whether the first two operands may be exchanged.
        rowwise: whether row i of every result follows from row i of the operands that have rows, and from weights:
            of no dimension but the last are elements combined.
        effects: see `Effects`.
        op: the overload that graphs call, `torch.ops.kt.linear.default`.
        reference: its meaning in plain torch, on any device.
        fake: its shape function; reads no data.
        cost: (arguments by name with concrete shapes, context) -> Cost; `context` is the mean number of
            cached tokens a sequence attends to, which only attention reads.
        caches: for an op that writes key/value caches, (arguments by name with shapes) -> (heads, key_dim,
            value_dim) of the caches [blocks, heads, block_size, dim] that it wants; None for other ops.
        products: for such an op, (arguments by name with shapes) -> multiply-adds of a token with one position that it
            attends to, at least; None for other ops.
    """

    name: str
    schema: str
    operands: tuple[str, ...]
    outputs: tuple[str, ...]
    weights: tuple[str, ...]
    commutative: bool
    rowwise: bool
    effects: Effects
    op: torch._ops.OpOverload
    reference: Callable[..., Any]
    fake: Callable[..., Any]
    cost: Callable[[Mapping[str, Any], int], Cost]
    caches: Callable[[Mapping[str, Any]], tuple[int, int, int]] | None = None
    products: Callable[[Mapping[str, Any]], int] | None = None


_OPS: dict[str, OpSpec] = {}


def define(
    schema: str,
    *,
    reference: Callable[..., Any],
    fake: Callable[..., Any],
    cost: Callable[[Mapping[str, Any], int], Cost],
    outputs: tuple[str, ...] = ("out",),
    weights: tuple[str, ...] = (),
    commutative: bool = False,
    rowwise: bool = False,
    effects: Effects | None = None,
    caches: Callable[[Mapping[str, Any]], tuple[int, int, int]] | None = None,
    products: Callable[[Mapping[str, Any]], int] | None = None,
) -> OpSpec:
    """Registers an op with torch and with the dialect.

    Args:
        schema: `name(args) -> results` in torch's schema language, without the namespace.
        reference, fake, cost, outputs, weights, commutative, rowwise, effects, caches, products: see `OpSpec`.

    Returns:
        The op's record. A name defined twice is a programming error (ValueError).
    """
    name = schema.split("(", 1)[0]
    if f"kt.{name}" in _OPS:
        raise ValueError(f"dialect op kt.{name} is defined twice")
    LIBRARY.define(schema)  # type: ignore[no-untyped-call]
    # One kernel for every backend; Library.impl costs 2 to 4 us a call where custom_op costs 9 to 15.
    LIBRARY.impl(name, reference, "CompositeExplicitAutograd")  # type: ignore[no-untyped-call]
    torch.library.register_fake(f"kt::{name}", fake, lib=LIBRARY)
    op: torch._ops.OpOverload = getattr(torch.ops.kt, name).default
    spec = OpSpec(
        name=f"kt.{name}",
        schema=schema,
        operands=tuple(argument.name for argument in op._schema.arguments),
        outputs=outputs,
        weights=weights,
        commutative=commutative,
        rowwise=rowwise,
        effects=effects or Effects(),
        op=op,
        reference=reference,
        fake=fake,
        cost=cost,
        caches=caches,
        products=products,
    )
    _OPS[spec.name] = spec
    return spec


def ops() -> Mapping[str, OpSpec]:
    """Every op of the dialect by qualified name ("kt.linear")."""
    return MappingProxyType(_OPS)


def spec_of(target: object) -> OpSpec | None:
    """The record of a graph node's target, or None for anything that is not a dialect op."""
    if not isinstance(target, torch._ops.OpOverload) or target.namespace != "kt":
        return None
    return _OPS.get(f"kt.{target._schema.name.split('::', 1)[1]}")
