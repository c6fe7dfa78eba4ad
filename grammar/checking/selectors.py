"""Checks selectors: sets that exist, indices that are ints, ranges not empty, regexes that compile."""

from __future__ import annotations

import re

from ktc.grammar import tree
from ktc.grammar.checking.scope import Scope
from ktc.grammar.checking.types import Typer, check_set
from ktc.grammar.functions import COUNT


def check_selector(scope: Scope, selector: tree.Selector) -> None:
    """Reports everything wrong with a selector that needs no model to see."""
    if isinstance(selector, tree.PathSelector):
        _path(scope, selector)
    elif isinstance(selector, tree.RegexSelector):
        _regex(scope, selector)
    elif isinstance(selector, tree.NamedSelector):
        check_set(scope, selector.name, selector.span)
    elif isinstance(selector, tree.NotSelector):
        check_selector(scope, selector.operand)
    else:
        for operand in selector.operands:
            check_selector(scope, operand)


def _path(scope: Scope, selector: tree.PathSelector) -> None:
    for before, segment in zip([None, *selector.segments], selector.segments, strict=False):
        if segment.text == "**" and segment.index is not None:
            scope.error("KT121", "`**` takes no index", segment.span, "write `**.name[...]`")
        if segment.text == "**" and before is not None and before.text == "**":
            scope.error("KT121", "`**.**` says the same as `**`", segment.span, "leave this one out")
        if segment.index is None or (isinstance(segment.index, tree.Name) and segment.index.id == "*"):
            continue
        typer = Typer(scope, COUNT)
        if isinstance(segment.index, tree.RangeExpr):
            typer.infer(segment.index)
        else:
            typer.check(segment.index, "int", "an index")


def _regex(scope: Scope, selector: tree.RegexSelector) -> None:
    try:
        re.compile(selector.pattern)
    except (re.error, OverflowError, RecursionError) as error:
        scope.error("KT118", "not a regular expression", selector.span, str(error))
