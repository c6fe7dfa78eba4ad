"""The functions that expressions may call: where each is known, what it takes and what it answers.

Those that need no compiler (`min`, `ceil`, ...) are implemented here. The others are given to `evaluate` by
the pass that knows the answer: `peak` by the memory plan, `same_format` by the matcher.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

# Where an expression stands.
STATIC = "static"  # the default of a param, an option of a device: needed before there is a model
COUNT = "count"  # expect, and the index of a selector
VALUE = "value"  # let, place, quant, kernel, cache
PHASE = "phase"
RULE = "rule"  # the `where` of a rule
REWRITE = "rewrite"  # the `where` of a rewrite, or a computed operand of its replacement
ASSERT = "assert"
EVERYWHERE = frozenset({STATIC, COUNT, VALUE, PHASE, RULE, REWRITE, ASSERT})


class Function(NamedTuple):
    """One function: how it is called, where it is known and what it means.

    Attributes:
        params: kinds of its arguments: "number", "list", "device" (a group too), "sites", "tensor", "dtype".
        variadic: the last kind may be repeated.
        result: "int", "float", "bool", "device", "symbol", "list" or "number".
        contexts: where it may be called.
        help: one line.
    """

    params: tuple[str, ...]
    variadic: bool
    result: str
    contexts: frozenset[str]
    help: str


_REWRITE = frozenset({REWRITE})
_ASSERT = frozenset({ASSERT})
FUNCTIONS: Mapping[str, Function] = {
    "min": Function(("number",), True, "number", EVERYWHERE, "the least of its arguments, or of a list"),
    "max": Function(("number",), True, "number", EVERYWHERE, "the greatest of its arguments, or of a list"),
    "sum": Function(("number",), True, "number", EVERYWHERE, "the sum of its arguments, or of a list"),
    "abs": Function(("number",), False, "number", EVERYWHERE, "the distance from zero"),
    "ceil": Function(("number",), False, "int", EVERYWHERE, "the next whole number up"),
    "floor": Function(("number",), False, "int", EVERYWHERE, "the next whole number down"),
    "log2": Function(("number",), False, "float", EVERYWHERE, "the logarithm to base 2"),
    "len": Function(("list",), False, "int", EVERYWHERE, "how many members a list or a group of devices has"),
    "cores": Function(
        ("device",), False, "int", frozenset({VALUE, RULE, ASSERT}), "threads a CPU device may use"
    ),
    "memory": Function(("device",), False, "int", _ASSERT, "a device's memory, less its reserve"),
    "peak": Function(("device",), False, "int", _ASSERT, "most bytes that the plan ever holds on a device"),
    "balance": Function(
        ("device",), False, "float", _ASSERT, "a group's fullest device over the mean of all"
    ),
    "bytes": Function(("sites",), False, "int", _ASSERT, "bytes of the parameters of a set, as planned"),
    "device": Function(("tensor",), False, "device", _REWRITE, "where a captured value is placed"),
    "is_cpu": Function(("tensor",), False, "bool", _REWRITE, "whether a captured value is placed on a CPU"),
    "rows": Function(("tensor",), False, "int", _REWRITE, "the first dimension of a captured weight"),
    "format": Function(("tensor",), False, "symbol", _REWRITE, "the number format of a captured weight"),
    "parameter": Function(
        ("tensor",), False, "str", _REWRITE, "the model's name of a captured weight, or an empty string"
    ),
    "same_format": Function(
        ("tensor",), True, "bool", _REWRITE, "whether captured weights share a number format"
    ),
}


def _numbers(args: tuple[Any, ...]) -> list[Any]:
    found = list(args[0]) if len(args) == 1 and isinstance(args[0], list | tuple) else list(args)
    if not found:
        raise ValueError("needs at least one number")
    for value in found:
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise ValueError("takes numbers only")
    return found


def _length(items: Any) -> int:
    return len(getattr(items, "members", items))


BUILTINS: Mapping[str, Callable[..., Any]] = {
    "min": lambda *args: min(_numbers(args)),
    "max": lambda *args: max(_numbers(args)),
    "sum": lambda *args: sum(_numbers(args)),
    "abs": lambda x: abs(_numbers((x,))[0]),
    "ceil": lambda x: math.ceil(_numbers((x,))[0]),
    "floor": lambda x: math.floor(_numbers((x,))[0]),
    "log2": lambda x: math.log2(_numbers((x,))[0]),
    "len": _length,
}
