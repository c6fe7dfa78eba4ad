"""Evaluates expressions of the language over an environment of names. No torch: values may be anything."""

from __future__ import annotations

import math
from collections.abc import Callable, Container, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from ktc.grammar import tree
from ktc.grammar.suggest import closest
from ktc.grammar.tree import Span
from ktc.grammar.values import DTYPES, Call, DeviceGroup, DeviceRef, SiteSet, Symbol

if TYPE_CHECKING:
    from ktc.grammar.rules import Rules
    from ktc.grammar.sites import Site


class EvaluationError(Exception):
    """An expression has no value.

    Attributes:
        span: the part of it that is at fault.
        message: why, in one line.
        hint: what to write instead, or "".
    """

    def __init__(self, span: Span, message: str, hint: str = "") -> None:
        super().__init__(f"{span.file}:{span.line}:{span.column}: {message}")
        self.span = span
        self.message = message
        self.hint = hint


class MissingError(EvaluationError):
    """An expression reads a name that this site has no value for (`layer` of an embedding)."""


@dataclass(frozen=True, slots=True)
class Missing:
    """An environment entry for a name that has no value here; `why` ends the sentence "`layer` ..."."""

    why: str


@dataclass(frozen=True, slots=True)
class Deferred:
    """An environment entry whose value is an expression, evaluated when it is read (a `let`)."""

    expression: tree.Expr


_ORDER: Mapping[str, Callable[[Any, Any], bool]] = {
    "<": lambda a, b: a < b,
    "<=": lambda a, b: a <= b,
    ">": lambda a, b: a > b,
    ">=": lambda a, b: a >= b,
}
_ARITHMETIC: Mapping[str, Callable[[Any, Any], Any]] = {
    "+": lambda a, b: a + b,
    "-": lambda a, b: a - b,
    "*": lambda a, b: a * b,
    "/": lambda a, b: a / b,
    "//": lambda a, b: a // b,
    "%": lambda a, b: a % b,
}


def describe(value: Any) -> str:
    """What kind of value this is, in the language's own words."""
    for kind, words in (
        (bool, "a bool"),
        (int, "an int"),
        (float, "a float"),
        (str, "a string"),
        ((list, tuple), "a list"),
        (DeviceRef, "a device"),
        (DeviceGroup, "a group of devices"),
        (SiteSet, "a set of modules"),
    ):
        if isinstance(value, kind):
            return words
    if isinstance(value, Symbol):
        return f"the name `{value.name}`"
    if isinstance(value, Call):
        return f"`{value.name}(...)`"
    return "nothing" if value is None else "a value of the graph"


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _plain(value: Any) -> Any:
    """A symbol or dtype string in one spelling, so that `dtype == bf16` and `dtype == "bfloat16"` agree."""
    text = value.name if isinstance(value, Symbol) else value
    return DTYPES.get(text, text) if isinstance(text, str) else text


def equal(left: Any, right: Any) -> bool:
    """The language's `==`: a symbol equals the string of its name, a dtype any of its spellings."""
    if isinstance(left, list | tuple) and isinstance(right, list | tuple):
        return len(left) == len(right) and all(equal(a, b) for a, b in zip(left, right, strict=True))
    return bool(_plain(left) == _plain(right))


def evaluate(expr: tree.Expr, env: Mapping[str, Any], *, symbols: bool | Container[str] = True) -> Any:
    """The value of an expression.

    Args:
        expr: the expression.
        env: what names stand for: values, callables (built-in functions), `Deferred` expressions, or, for a
            dotted name such as `config.num_experts`, a mapping or object under its first part. A key "@name"
            holds the value of `@name`.
        symbols: whether a name without an entry is a `Symbol` (True), an error (False), or a `Symbol` only
            when it is one of these names. A call of such a name is a `Call`.

    Raises:
        EvaluationError: a name is unknown, an operand has the wrong type, a division by zero, ...
    """
    return _Evaluator(env, symbols).value(expr)


class _Evaluator:
    def __init__(self, env: Mapping[str, Any], symbols: bool | Container[str]) -> None:
        self._env = env
        self._symbols = symbols

    def value(self, expr: tree.Expr) -> Any:
        """The value of any expression."""
        return _METHODS[type(expr)](self, expr)

    def _name(self, expr: tree.Name) -> Any:
        found = self._lookup(expr)
        if callable(found) and not isinstance(found, type):
            raise EvaluationError(expr.span, f"`{expr.id}` is a function", f"write `{expr.id}(...)`")
        return found

    def _lookup(self, expr: tree.Name) -> Any:
        first, *rest = expr.id.split(".")
        if expr.id in self._env:
            found = self._env[expr.id]
            if isinstance(found, Missing):
                raise MissingError(expr.span, f"`{expr.id}` {found.why}")
            return self._settle(found)
        if first not in self._env:
            if self._symbols is True or (self._symbols is not False and expr.id in self._symbols):
                return Symbol(expr.id)
            near = closest(expr.id, [str(name) for name in self._env])
            raise EvaluationError(
                expr.span, f"unknown name `{expr.id}`", f"did you mean `{near}`?" if near else ""
            )
        found = self._settle(self._env[first])
        for part in rest:
            try:
                found = found[part] if isinstance(found, Mapping) else getattr(found, part)
            except (KeyError, AttributeError):
                names = list(found) if isinstance(found, Mapping) else list(getattr(found, "__dict__", {}))
                near = closest(part, [str(n) for n in names])
                hint = f"did you mean `{near}`?" if near else ""
                raise EvaluationError(expr.span, f"`{first}` has no field `{part}`", hint) from None
        return found

    def _settle(self, found: Any) -> Any:
        return self.value(found.expression) if isinstance(found, Deferred) else found

    def _literal(self, expr: tree.Number | tree.Text | tree.Bool) -> Any:
        return expr.value

    def _size(self, expr: tree.Size) -> int:
        return expr.bytes

    def _list(self, expr: tree.ListExpr) -> list[Any]:
        return [self.value(item) for item in expr.items]

    def _set(self, expr: tree.SetRef) -> Any:
        return self._env.get("@" + expr.name, SiteSet(expr.name))

    def _apply(self, expr: tree.Apply) -> Any:
        name = expr.function.id
        args = [self.value(arg) for arg in expr.args]
        options = {keyword.name: self.value(keyword.value) for keyword in expr.keywords}
        function = self._env.get(name)
        if function is None and "." not in name and self._symbols is False:
            near = closest(name, [str(n) for n, v in self._env.items() if callable(v)])
            raise EvaluationError(
                expr.function.span, f"unknown function `{name}`", f"did you mean `{near}`?" if near else ""
            )
        if not callable(function):
            return Call(name, tuple(args), options)
        try:
            return function(*args, **options)
        except EvaluationError:
            raise
        except (TypeError, ValueError, ArithmeticError, KeyError, AttributeError) as error:
            raise EvaluationError(expr.span, f"`{name}`: {error}") from error

    def _index(self, expr: tree.Index) -> Any:
        base, index = self.value(expr.base), self.value(expr.index)
        items = base.members if isinstance(base, DeviceGroup) else base
        if not isinstance(items, list | tuple):
            raise EvaluationError(expr.base.span, f"{describe(base)} cannot be indexed")
        if not isinstance(index, int) or isinstance(index, bool):
            raise EvaluationError(expr.index.span, f"an index is an int, this is {describe(index)}")
        if not -len(items) <= index < len(items):
            what = f"`{base.name}` has" if isinstance(base, DeviceGroup) else "the list has"
            raise EvaluationError(
                expr.index.span,
                f"index {index} is out of range: {what} {len(items)} members",
                f"indices go from 0 to {len(items) - 1}, or from -{len(items)} to -1 from the end",
            )
        return items[index]

    def _unary(self, expr: tree.Unary) -> Any:
        value = self.value(expr.operand)
        if expr.op == "not":
            return not self._bool(expr.operand, value)
        if not _is_number(value):
            raise EvaluationError(expr.operand.span, f"`-` needs a number, this is {describe(value)}")
        return -value

    def _bool(self, expr: tree.Expr, value: Any) -> bool:
        if not isinstance(value, bool):
            raise EvaluationError(expr.span, f"expected true or false, this is {describe(value)}")
        return value

    def _binary(self, expr: tree.Binary) -> Any:
        left = self.value(expr.left)
        if expr.op in ("and", "or"):
            if self._bool(expr.left, left) == (expr.op == "or"):
                return left
            return self._bool(expr.right, self.value(expr.right))
        right = self.value(expr.right)
        if expr.op in ("==", "!="):
            return equal(left, right) == (expr.op == "==")
        if expr.op in _ORDER:
            return self._ordered(expr, left, right)
        for side, value in ((expr.left, left), (expr.right, right)):
            if not _is_number(value):
                raise EvaluationError(side.span, f"`{expr.op}` needs numbers, this is {describe(value)}")
        try:
            found = _ARITHMETIC[expr.op](left, right)
        except ZeroDivisionError:
            raise EvaluationError(expr.span, "division by zero") from None
        except OverflowError:
            raise EvaluationError(expr.span, "number is too large") from None
        if isinstance(found, float) and not math.isfinite(found):
            raise EvaluationError(expr.span, "number is too large")
        return found

    def _ordered(self, expr: tree.Binary, left: Any, right: Any) -> bool:
        """`a <= b`; with a list on a side (one value a device of a group) it must hold for every member."""
        if isinstance(left, list | tuple) and isinstance(right, list | tuple):
            if len(left) != len(right):
                raise EvaluationError(expr.span, f"{len(left)} values cannot be compared with {len(right)}")
            pairs = list(zip(left, right, strict=True))
        elif isinstance(left, list | tuple):
            pairs = [(item, right) for item in left]
        elif isinstance(right, list | tuple):
            pairs = [(left, item) for item in right]
        else:
            pairs = [(left, right)]
        for a, b in pairs:
            for side, value in ((expr.left, a), (expr.right, b)):
                if not _is_number(value):
                    raise EvaluationError(
                        side.span, f"`{expr.op}` compares numbers, this is {describe(value)}"
                    )
        return all(_ORDER[expr.op](a, b) for a, b in pairs)

    def _within(self, expr: tree.Within) -> bool:
        item = self.value(expr.item)
        container = expr.container
        if isinstance(container, tree.RangeExpr):
            if not _is_number(item):
                raise EvaluationError(
                    expr.item.span, f"only a number lies in a range, this is {describe(item)}"
                )
            low, high = count_range(container, lambda e: self.value(e))
            return (low is None or low <= item) and (high is None or item <= high)
        found = self.value(container)
        if isinstance(found, DeviceGroup):
            return item in found.members
        if isinstance(found, list | tuple | set | frozenset):
            return any(equal(item, member) for member in found)
        raise EvaluationError(
            container.span, f"`in` needs a list, a range, a group or a set, this is {describe(found)}"
        )

    def _range(self, expr: tree.RangeExpr) -> Any:
        raise EvaluationError(
            expr.span, "a range has a meaning only after `in` and `expect`, and in a selector"
        )


_METHODS: Mapping[type, Callable[[_Evaluator, Any], Any]] = {
    tree.Name: _Evaluator._name,
    tree.Number: _Evaluator._literal,
    tree.Text: _Evaluator._literal,
    tree.Bool: _Evaluator._literal,
    tree.Size: _Evaluator._size,
    tree.ListExpr: _Evaluator._list,
    tree.SetRef: _Evaluator._set,
    tree.Apply: _Evaluator._apply,
    tree.Index: _Evaluator._index,
    tree.Unary: _Evaluator._unary,
    tree.Binary: _Evaluator._binary,
    tree.Within: _Evaluator._within,
    tree.RangeExpr: _Evaluator._range,
}


def names_used(node: object) -> set[str]:
    """The first parts of all names that an expression reads, functions included."""
    return {name.split(".")[0] for name in dotted(node)}


def dotted(node: object) -> set[str]:
    """All names that an expression reads, whole (`config.num_experts`), functions included."""
    found: set[str] = set()
    left = [node]
    while left:
        part = left.pop()
        if isinstance(part, tree.Name):
            found.add(part.id)
        elif isinstance(part, tuple):
            left += part
        elif isinstance(part, tree.Node):
            left += (getattr(part, name) for name in part.__dataclass_fields__)
    return found


def count_range(
    expr: tree.Expr, value: Callable[[tree.Expr], Any]
) -> tuple[int | float | None, int | float | None]:
    """Both ends (included) of `low..high`, `low..`, `..high` or a single number. Raises EvaluationError."""
    if not isinstance(expr, tree.RangeExpr):
        expr = tree.RangeExpr(expr.span, expr, expr)
    ends = []
    for side in (expr.low, expr.high):
        found = None if side is None else value(side)
        if side is not None and not _is_number(found):
            raise EvaluationError(side.span, f"a range runs between numbers, this is {describe(found)}")
        ends.append(found)
    low, high = ends
    if low is not None and high is not None and low > high:
        raise EvaluationError(expr.span, f"the range is empty: {low} is greater than {high}")
    return low, high


def rule_env(site: Site, layers: int | None, config: object, rules: Rules) -> dict[str, Any]:
    """What the `where` and the actions of a rule see of one site.

    `rules.values()`, `layers` and `config`, and of the site `name`, `params`, `bytes`, `layer`, `dtype` (a
    Symbol such as `bf16`) and `shape` (a list). A site outside the decoder layers has no `layer`, one without
    parameters no `dtype` and `shape`: a `where` that reads those is false for it (see `applies`), an action
    that reads them an error.
    """
    env = dict(rules.values(layers=layers, config=config))
    env |= {"name": site.name, "params": site.params, "bytes": site.bytes}
    env["layer"] = (
        Missing("has no value here: the module lies in no layer") if site.layer is None else site.layer
    )
    nothing = Missing("has no value here: the module has no parameters")
    env["dtype"] = nothing if site.dtype is None else Symbol(DTYPES.get(site.dtype, site.dtype))
    env["shape"] = nothing if site.shape is None else list(site.shape)
    return env


def applies(where: tree.Expr | None, env: Mapping[str, Any]) -> bool:
    """Whether the `where` of a rule or rewrite holds; one that reads a `Missing` name does not.

    Raises EvaluationError, also when it is neither true nor false.
    """
    if where is None:
        return True
    try:
        found = evaluate(where, env, symbols=True)
    except MissingError:
        return False
    if not isinstance(found, bool):
        raise EvaluationError(where.span, f"a condition is true or false, this is {describe(found)}")
    return found


def expected_count(expect: tree.Expect | None, env: Mapping[str, Any]) -> tuple[int, int | None]:
    """How often a rule or rewrite must match: (low, high), both included, high None for no upper bound.

    Without an `expect`, at least once. Raises EvaluationError when a bound is no whole number.
    """
    if expect is None:
        return 1, None
    if expect.any or expect.count is None:
        return 0, None
    low, high = count_range(expect.count, lambda e: evaluate(e, env, symbols=False))
    for bound in (low, high):
        if bound is not None and bound != int(bound):
            raise EvaluationError(expect.count.span, f"a count is a whole number, this is {bound}")
    return max(0, int(low or 0)), None if high is None else int(high)
