"""Builds the syntax tree: one method for each rule or alias of `kt.lark`, called as the parser reduces it."""

from __future__ import annotations

from typing import Any

from ktc.grammar import tree
from ktc.grammar.lexer import Token
from ktc.grammar.source import Source
from ktc.grammar.tree import Span

LONGEST_INTEGER = 30  # digits; nothing in a rule file needs more, and Python refuses to read 4,300
SIZES = {"KiB": 2**10, "MiB": 2**20, "GiB": 2**30, "TiB": 2**40}


class NumberError(Exception):
    """A number too large to mean anything; `token` is its text."""

    def __init__(self, token: Token) -> None:
        super().__init__(token.text[:40])
        self.token = token


def _integer(token: Token) -> int:
    if len(token.text) > LONGEST_INTEGER:
        raise NumberError(token)
    return int(token.text)


def _float(token: Token, text: str) -> float:
    value = float(text)
    if value == float("inf"):
        raise NumberError(token)
    return value


class Builder:
    """Makes tree nodes of one source.

    Attributes:
        types: spans of typed captures (`x: T[*, d]`) seen outside a rewrite so far: the grammar takes them in
            any argument list, the language only in a pattern or replacement.
    """

    def __init__(self, source: Source) -> None:
        self._source = source
        self.types: list[Span] = []

    def reduce(self, rule: str, start: int, end: int, children: list[Any]) -> Any:
        """The value of `rule` over text[start:end]."""
        return getattr(self, rule)(self._source.span(start, end), *children)

    def _at(self, token: Token) -> Span:
        return self._source.span(token.start, token.end)

    def _name(self, token: Token) -> tree.Name:
        return tree.Name(self._at(token), token.text)

    def _text(self, token: Token | None) -> tree.Text | None:
        return None if token is None else tree.Text(self._at(token), token.text[1:-1])

    # --- items -----------------------------------------------------------------------------------
    def start(self, span: Span, *items: tree.Item) -> tree.File:
        return tree.File(span, self._source.path, items)

    def model(self, span: Span, name: Token, source: Token | None, weights: Token | None) -> tree.Model:
        return tree.Model(span, self._name(name), self._text(source), self._text(weights))

    def hardware(self, span: Span, *parts: Token | None) -> tuple[Token | None, ...]:
        return parts

    def device(self, span: Span, name: Token, hardware: tuple[Token, Any, Any], options: Any) -> tree.Device:
        kind, first, last = hardware
        found: tuple[tree.Keyword, ...] = ()
        if options is not None:
            args, found = options
            for arg in args:  # kept as a keyword without a name, for the checker to complain about
                found += (tree.Keyword(arg.span, "", arg),)
        low, high = (None if token is None else _integer(token) for token in (first, last))
        return tree.Device(span, self._name(name), kind.text, low, high, found, self._at(kind))

    def param(
        self, span: Span, name: Token, type_: Token, default: tree.Expr, help_: Token | None
    ) -> tree.Param:
        return tree.Param(span, self._name(name), self._name(type_), default, self._text(help_))

    def phase(self, span: Span, name: Token, condition: tree.Expr) -> tree.Phase:
        return tree.Phase(span, self._name(name), condition)

    def let_value(self, span: Span, name: Token, value: tree.Expr) -> tree.Let:
        return tree.Let(span, self._name(name), value, None)

    def let_set(self, span: Span, name: Token, selector: tree.Selector) -> tree.Let:
        return tree.Let(span, self._name(name), None, selector)

    def include(self, span: Span, path: Token) -> tree.Include:
        return tree.Include(span, tree.Text(self._at(path), path.text[1:-1]))

    def plugin(self, span: Span, module: tree.Name) -> tree.Import:
        return tree.Import(span, module)

    def assertion(self, span: Span, condition: tree.Expr, hint: Token | None) -> tree.Assert:
        return tree.Assert(span, condition, self._text(hint))

    # --- rules -----------------------------------------------------------------------------------
    def rule(self, span: Span, name: Token, selector: tree.Selector, where: Any, *rest: Any) -> tree.Rule:
        *actions, expect = rest
        return tree.Rule(span, self._name(name), selector, where, tuple(actions), expect)

    def where(self, span: Span, condition: tree.Expr) -> tree.Expr:
        return condition

    def place(self, span: Span, value: tree.Expr) -> tree.Action:
        return tree.Action(span, "place", value)

    def quant(self, span: Span, value: tree.Expr) -> tree.Action:
        return tree.Action(span, "quant", value)

    def kernel(self, span: Span, value: tree.Expr) -> tree.Action:
        return tree.Action(span, "kernel", value)

    def cache(self, span: Span, value: tree.Expr) -> tree.Action:
        return tree.Action(span, "cache", value)

    def on(self, span: Span, phase: Token, *actions: tree.Action) -> tree.On:
        return tree.On(span, self._name(phase), actions)

    def expect_any(self, span: Span) -> tree.Expect:
        return tree.Expect(span, True, None)

    def expect_count(self, span: Span, count: tree.Expr) -> tree.Expect:
        return tree.Expect(span, False, count)

    def exactly(self, span: Span, count: tree.Expr) -> tree.Expr:
        return count

    def from_low(self, span: Span, low: tree.Expr, high: tree.Expr | None) -> tree.RangeExpr:
        return tree.RangeExpr(span, low, high)

    def up_to(self, span: Span, high: tree.Expr) -> tree.RangeExpr:
        return tree.RangeExpr(span, None, high)

    # --- selectors -------------------------------------------------------------------------------
    def any_of(self, span: Span, left: tree.Selector, right: tree.Selector) -> tree.Selector:
        return self._join("or", span, left, right)

    def all_of(self, span: Span, left: tree.Selector, right: tree.Selector) -> tree.Selector:
        return self._join("and", span, left, right)

    def _join(self, op: str, span: Span, left: tree.Selector, right: tree.Selector) -> tree.Selector:
        flat: tuple[tree.Selector, ...] = ()
        for side in (left, right):
            flat += side.operands if isinstance(side, tree.BoolSelector) and side.op == op else (side,)
        return tree.BoolSelector(span, op, flat)

    def none_of(self, span: Span, operand: tree.Selector) -> tree.Selector:
        return tree.NotSelector(span, operand)

    def named(self, span: Span, name: Token) -> tree.Selector:
        return tree.NamedSelector(span, name.text)

    def regex(self, span: Span, pattern: Token) -> tree.Selector:
        return tree.RegexSelector(span, pattern.text[3:-1])

    def sites(self, span: Span, path: tuple[tree.Segment, ...], class_name: Token | None) -> tree.Selector:
        return tree.PathSelector(span, path, None if class_name is None else self._name(class_name))

    def path(self, span: Span, *segments: tree.Segment) -> tuple[tree.Segment, ...]:
        return segments

    def segment(self, span: Span, text: Token, index: tree.Expr | None) -> tree.Segment:
        return tree.Segment(span, text.text, index)

    def every(self, span: Span, star: Token) -> tree.Expr:
        return tree.Name(span, "*")

    # --- rewrites --------------------------------------------------------------------------------
    def rewrite(
        self,
        span: Span,
        name: Token,
        pattern: tuple[tree.Bind, ...],
        where: tree.Expr | None,
        replace: tuple[tree.Bind, ...],
        expect: tree.Expect | None,
    ) -> tree.Rewrite:
        self.types = [found for found in self.types if found.start < span.start]
        return tree.Rewrite(span, self._name(name), pattern, where, replace, expect)

    def pattern(self, span: Span, *binds: tree.Bind) -> tuple[tree.Bind, ...]:
        return binds

    def replace(self, span: Span, *binds: tree.Bind) -> tuple[tree.Bind, ...]:
        return binds

    def bind(self, span: Span, *parts: Any) -> tree.Bind:
        *names, op, arguments = parts
        call = self._call(self._source.span(op.span.start, span.end), op.id, arguments)
        return tree.Bind(span, tuple(self._name(name) for name in names), call)

    def _call(self, span: Span, op: str, arguments: Any) -> tree.OpCall:
        args, keywords = arguments
        operands = tuple(self._operand(arg) for arg in args)
        attributes = tuple(tree.Attribute(k.span, k.name, self._operand(k.value)) for k in keywords)
        return tree.OpCall(span, op, operands, attributes)

    def _operand(self, value: Any) -> Any:
        """An argument as a rewrite reads it: a bare name is a capture, a dotted call an op."""
        if isinstance(value, tree.Name):
            return tree.Capture(value.span, value.id)
        if isinstance(value, tree.Apply) and "." in value.function.id:
            return self._call(value.span, value.function.id, (value.args, value.keywords))
        if isinstance(value, tree.Unary) and value.op == "-" and isinstance(value.operand, tree.Number):
            return tree.Number(value.span, -value.operand.value)
        return value

    def tensor(self, span: Span, dtype: Token, *dims: Any) -> tree.TensorType:
        return tree.TensorType(span, dtype.text, None if dims == (None,) else dims)

    def dim(self, span: Span, token: Token) -> str | int:
        return _integer(token) if token.type == "INT" else token.text

    # --- expressions -----------------------------------------------------------------------------
    def or_(self, span: Span, left: tree.Expr, right: tree.Expr) -> tree.Expr:
        return tree.Binary(span, "or", left, right)

    def and_(self, span: Span, left: tree.Expr, right: tree.Expr) -> tree.Expr:
        return tree.Binary(span, "and", left, right)

    def not_(self, span: Span, operand: tree.Expr) -> tree.Expr:
        return tree.Unary(span, "not", operand)

    def compare(self, span: Span, left: tree.Expr, op: Token, right: tree.Expr) -> tree.Expr:
        return tree.Binary(span, op.text, left, right)

    def binary(self, span: Span, left: tree.Expr, op: Token, right: tree.Expr) -> tree.Expr:
        return tree.Binary(span, op.text, left, right)

    def within(self, span: Span, item: tree.Expr, container: tree.Expr) -> tree.Expr:
        return tree.Within(span, item, container)

    def within_range(self, span: Span, item: tree.Expr, low: tree.Expr, high: tree.Expr) -> tree.Expr:
        between = self._source.span(low.span.start, high.span.end)
        return tree.Within(span, item, tree.RangeExpr(between, low, high))

    def negate(self, span: Span, _minus: Token, operand: tree.Expr) -> tree.Expr:
        return tree.Unary(span, "-", operand)

    def index(self, span: Span, base: tree.Expr, index: tree.Expr) -> tree.Expr:
        return tree.Index(span, base, index)

    def apply(self, span: Span, function: tree.Name, arguments: Any) -> tree.Expr:
        args, keywords = arguments
        return tree.Apply(span, function, args, keywords)

    def list_expr(self, span: Span, *items: tree.Expr | None) -> tree.Expr:
        return tree.ListExpr(span, tuple(item for item in items if item is not None))

    def set_ref(self, span: Span, name: Token) -> tree.Expr:
        return tree.SetRef(span, name.text)

    def name(self, span: Span, qualified: tree.Name) -> tree.Expr:
        return qualified

    def qualified(self, span: Span, *parts: Token) -> tree.Name:
        return tree.Name(span, ".".join(part.text for part in parts))

    def size(self, span: Span, token: Token) -> tree.Expr:
        return tree.Size(span, round(_float(token, token.text[:-3]) * SIZES[token.text[-3:]]), token.text)

    def number(self, span: Span, token: Token) -> tree.Expr:
        value = _float(token, token.text) if token.type == "FLOAT" else _integer(token)
        return tree.Number(span, value)

    def text(self, span: Span, token: Token) -> tree.Expr:
        return tree.Text(span, token.text[1:-1])

    def true(self, span: Span) -> tree.Expr:
        return tree.Bool(span, True)

    def false(self, span: Span) -> tree.Expr:
        return tree.Bool(span, False)

    def arguments(self, span: Span, *found: Any) -> tuple[tuple[Any, ...], tuple[tree.Keyword, ...]]:
        args = tuple(a for a in found if a is not None and not isinstance(a, tree.Keyword))
        return args, tuple(a for a in found if isinstance(a, tree.Keyword))

    def keyword(self, span: Span, name: Token, value: tree.Expr) -> tree.Keyword:
        return tree.Keyword(span, name.text, value)

    def typed(self, span: Span, name: Token, type_: tree.TensorType) -> tree.Capture:
        self.types.append(span)
        return tree.Capture(span, name.text, type_)
