"""The tables that stand for torch in the checker agree with what is registered."""

from __future__ import annotations

import re

import pytest
from ktc.grammar.formats import CACHES, FORMATS
from ktc.grammar.ops import OPS, Attr, Op


def test_formats_are_those_of_the_weights() -> None:
    from ktc.weights import formats

    assert set(FORMATS) == set(formats.FORMATS)


def _signature(schema: str) -> Op:
    """An op's schema, as torch prints it, in the terms of the table."""
    arguments, results = re.fullmatch(r"\w+\((.*)\) -> (.*)", schema).groups()  # type: ignore[union-attr]
    operands, required, attributes, variadic = [], 0, {}, ""
    for argument in arguments.split(", "):
        if argument == "*":
            continue  # what follows is given by name, as every attribute in a .kt file is
        kind, name, default = re.fullmatch(r"(\S+(?: -> \*\))?) (\w+)(?:=(.*))?", argument).groups()  # type: ignore[union-attr]
        if kind.startswith("Tensor"):
            operands.append(name)
            required += default is None and "?" not in kind
            variadic = "tensors" if kind.endswith("[]") else variadic
        elif kind.endswith("[]"):
            attributes[name], variadic = Attr("ints"), "ints"
        else:
            value = None if default is None else {"True": True, "False": False}.get(default, default)
            if isinstance(value, str):
                value = value.strip("\"'") if kind == "str" else {"int": int, "float": float}[kind](value)
            attributes[name] = Attr(kind, value)
    if results.endswith("[]"):
        return Op(tuple(operands), required, attributes, None, variadic)
    count = results.count("Tensor")
    return Op(tuple(operands), required, attributes, ("",) * count, variadic)


@pytest.mark.parametrize("name", OPS)
def test_an_op_has_the_schema_that_is_registered(name: str) -> None:
    from ktc.dialect.spec import ops

    spec = ops()[name]
    found, told = _signature(spec.schema), OPS[name]
    assert (told.operands, told.attributes, told.variadic) == (
        found.operands,
        found.attributes,
        found.variadic,
    )
    assert told.required == found.required
    assert (told.outputs is None) == (found.outputs is None)
    assert told.outputs is None or len(told.outputs) == len(found.outputs or ())
    assert told.commutative == spec.commutative


def test_every_registered_op_is_in_the_table() -> None:
    from ktc.dialect.spec import ops

    assert set(ops()) == set(OPS)


def test_cache_options_have_types() -> None:
    assert {kind for options in CACHES.values() for kind in options.values()} == {"dtype", "int"}
