"""The syntax tree of a `.kt` file: frozen dataclasses, each with the span of text it came from."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypeAlias


@dataclass(frozen=True, slots=True)
class Span:
    """A half-open range of one file; lines and columns count from 1, offsets from 0."""

    file: str
    start: int
    end: int
    line: int
    column: int
    end_line: int
    end_column: int


@dataclass(frozen=True, eq=False, repr=False)
class Node:
    """Anything that stands in the text. Two nodes are equal when they say the same, wherever they stand.

    Equality, hash and repr are written here once: generated for each class, as dataclass would, they would
    make up a third of the start-up time of `ktc check`.
    """

    span: Span

    def _said(self) -> tuple[object, ...]:
        return tuple(getattr(self, name) for name in self.__dataclass_fields__ if not name.endswith("span"))

    def __eq__(self, other: object) -> bool:
        if type(self) is not type(other) or not isinstance(other, Node):
            return NotImplemented
        return self._said() == other._said()

    def __hash__(self) -> int:
        return hash((type(self).__name__, self._said()))

    def __repr__(self) -> str:
        names = (name for name in self.__dataclass_fields__ if not name.endswith("span"))
        return f"{type(self).__name__}({', '.join(f'{name}={getattr(self, name)!r}' for name in names)})"


# --- expressions ---------------------------------------------------------------------------------
@dataclass(frozen=True, eq=False, repr=False)
class Name(Node):
    """A bare or dotted name: a parameter, `let`, device, config field, format or kernel."""

    id: str


@dataclass(frozen=True, eq=False, repr=False)
class Number(Node):
    """An integer or a float."""

    value: int | float


@dataclass(frozen=True, eq=False, repr=False)
class Size(Node):
    """`24GiB`, in bytes; `text` keeps how it was written."""

    bytes: int
    text: str


@dataclass(frozen=True, eq=False, repr=False)
class Text(Node):
    """A string, without its quotes."""

    value: str


@dataclass(frozen=True, eq=False, repr=False)
class Bool(Node):
    """`true` or `false`."""

    value: bool


@dataclass(frozen=True, eq=False, repr=False)
class ListExpr(Node):
    """`[a, b]`."""

    items: tuple[Expr, ...]


@dataclass(frozen=True, eq=False, repr=False)
class Keyword(Node):
    """`name = value` inside an argument list."""

    name: str
    value: Expr


@dataclass(frozen=True, eq=False, repr=False)
class Apply(Node):
    """`function(args, key = value)`; the function is a Name."""

    function: Name
    args: tuple[Expr, ...]
    keywords: tuple[Keyword, ...]


@dataclass(frozen=True, eq=False, repr=False)
class Index(Node):
    """`base[index]`."""

    base: Expr
    index: Expr


@dataclass(frozen=True, eq=False, repr=False)
class Unary(Node):
    """`-x` or `not x`."""

    op: str
    operand: Expr


@dataclass(frozen=True, eq=False, repr=False)
class Binary(Node):
    """Arithmetic (`+ - * / // %`), comparison (`== != < <= > >=`), `and`, `or`."""

    op: str
    left: Expr
    right: Expr


@dataclass(frozen=True, eq=False, repr=False)
class RangeExpr(Node):
    """`low..high`, both ends included; either may be missing in an `expect`."""

    low: Expr | None
    high: Expr | None


@dataclass(frozen=True, eq=False, repr=False)
class Within(Node):
    """`x in container`, where the container is a list, a range or `@set`."""

    item: Expr
    container: Expr


@dataclass(frozen=True, eq=False, repr=False)
class SetRef(Node):
    """`@experts` inside an expression, as in `bytes(@experts)`."""

    name: str


Expr: TypeAlias = (
    Name
    | Number
    | Size
    | Text
    | Bool
    | ListExpr
    | Apply
    | Index
    | Unary
    | Binary
    | RangeExpr
    | Within
    | SetRef
)


# --- selectors -----------------------------------------------------------------------------------
@dataclass(frozen=True, eq=False, repr=False)
class Segment(Node):
    """One part of a path: a name or glob, `*`, `**`, with an optional index (`[3]`, `[3..17]`, `[*]`)."""

    text: str
    index: Expr | None = None  # None: no brackets; Name("*") stands for `[*]`; RangeExpr for a range


@dataclass(frozen=True, eq=False, repr=False)
class PathSelector(Node):
    """`model.layers[*].mlp.gate: ClassName`."""

    segments: tuple[Segment, ...]
    class_name: Name | None


@dataclass(frozen=True, eq=False, repr=False)
class RegexSelector(Node):
    """`re"..."`, a full match over the module's dotted name."""

    pattern: str


@dataclass(frozen=True, eq=False, repr=False)
class NamedSelector(Node):
    """`@experts`: a set named by `let`."""

    name: str


@dataclass(frozen=True, eq=False, repr=False)
class NotSelector(Node):
    """`not selector`."""

    operand: Selector


@dataclass(frozen=True, eq=False, repr=False)
class BoolSelector(Node):
    """`a and b` or `a or b`; op is "and" or "or"."""

    op: str
    operands: tuple[Selector, ...]


Selector: TypeAlias = PathSelector | RegexSelector | NamedSelector | NotSelector | BoolSelector


# --- items ---------------------------------------------------------------------------------------
@dataclass(frozen=True, eq=False, repr=False)
class Model(Node):
    """`model CLASS [from "WHERE"] [weights "WHERE"]`."""

    class_name: Name
    source: Text | None
    weights: Text | None


@dataclass(frozen=True, eq=False, repr=False)
class Device(Node):
    """`device NAME = cpu|cuda:0|cuda:0..3 (options)`."""

    name: Name
    hardware: str  # "cpu", "cuda", ...
    first: int | None
    last: int | None  # set for a group such as cuda:0..3
    options: tuple[Keyword, ...]
    hardware_span: Span | None = None


@dataclass(frozen=True, eq=False, repr=False)
class Param(Node):
    """`param NAME: TYPE = expr "help"`; TYPE is int, float, bool, str, size or name."""

    name: Name
    type: Name
    default: Expr
    help: Text | None


@dataclass(frozen=True, eq=False, repr=False)
class Phase(Node):
    """`phase NAME = expr` over `tokens`."""

    name: Name
    condition: Expr


@dataclass(frozen=True, eq=False, repr=False)
class Let(Node):
    """`let NAME = expr` or `let NAME = match selector`."""

    name: Name
    value: Expr | None
    selector: Selector | None


@dataclass(frozen=True, eq=False, repr=False)
class Include(Node):
    """`include "std/fusions.kt"`."""

    path: Text


@dataclass(frozen=True, eq=False, repr=False)
class Import(Node):
    """`import plugin`: a Python module that registers kernels."""

    module: Name


@dataclass(frozen=True, eq=False, repr=False)
class Action(Node):
    """`place|quant|kernel|cache EXPR` inside a rule."""

    kind: str  # "place" | "quant" | "kernel" | "cache"
    value: Expr


@dataclass(frozen=True, eq=False, repr=False)
class On(Node):
    """`on PHASE { place ... kernel ... }`."""

    phase: Name
    actions: tuple[Action, ...]


@dataclass(frozen=True, eq=False, repr=False)
class Expect(Node):
    """`expect any`, `expect 58`, `expect 2 * layers - 1 ..`."""

    any: bool
    count: Expr | None  # a RangeExpr for a range


@dataclass(frozen=True, eq=False, repr=False)
class Rule(Node):
    """`rule NAME { match ... where ... actions expect ... }`."""

    name: Name
    selector: Selector
    where: Expr | None
    actions: tuple[Action | On, ...]
    expect: Expect | None


# --- rewrites ------------------------------------------------------------------------------------
@dataclass(frozen=True, eq=False, repr=False)
class TensorType(Node):
    """`T[*, d]`: a dtype variable or name, and dimensions (names, integers, `*`, `**`)."""

    dtype: str
    dims: tuple[str | int, ...] | None


@dataclass(frozen=True, eq=False, repr=False)
class Capture(Node):
    """A value captured (pattern) or used (replacement) by name, with an optional type."""

    name: str
    type: TensorType | None = None


@dataclass(frozen=True, eq=False, repr=False)
class Attribute(Node):
    """`eps = eps` or `dim = 0` in an op call: the value is a literal or the name of a captured attribute."""

    name: str
    value: Capture | Number | Text | Bool | Expr


@dataclass(frozen=True, eq=False, repr=False)
class OpCall(Node):
    """`kt.linear(x, weight)`: operands are captures, nested calls, literals or, in a replacement, expressions
    such as `rows(weight)`."""

    op: str
    operands: tuple[Capture | OpCall | Number | Text | Bool | Expr, ...]
    attributes: tuple[Attribute, ...]


@dataclass(frozen=True, eq=False, repr=False)
class Bind(Node):
    """`norm, sum = kt.add_rms_norm(...)`."""

    names: tuple[Name, ...]
    call: OpCall


@dataclass(frozen=True, eq=False, repr=False)
class Rewrite(Node):
    """`rewrite NAME { pattern {...} where ... replace {...} expect ... }`."""

    name: Name
    pattern: tuple[Bind, ...]
    where: Expr | None
    replace: tuple[Bind, ...]
    expect: Expect | None


@dataclass(frozen=True, eq=False, repr=False)
class Assert(Node):
    """`assert EXPR, "hint"`."""

    condition: Expr
    hint: Text | None


Item: TypeAlias = Model | Device | Param | Phase | Let | Include | Import | Rule | Rewrite | Assert


@dataclass(frozen=True, eq=False, repr=False)
class File(Node):
    """One parsed file: its items in order."""

    path: str
    items: tuple[Item, ...]
