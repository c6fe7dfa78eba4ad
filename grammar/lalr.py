"""The LALR(1) driver: runs the tables that `generate.py` made out of `kt.lark`."""

from __future__ import annotations

import json
from collections.abc import Sequence
from functools import lru_cache
from os.path import dirname, join
from typing import Any, NamedTuple, Protocol

from ktc.grammar.lexer import END, Lexer, LexError, Token


class Tables(NamedTuple):
    """`tables.json`, read."""

    rules: list[tuple[str, str, int, list[int], list[int]]]
    starts: dict[str, int]
    ends: dict[str, int]
    states: list[dict[str, int]]
    lexer: Lexer


class Actions(Protocol):
    """What builds values: one method for each rule or alias of the grammar."""

    def reduce(self, rule: str, start: int, end: int, children: list[Any]) -> Any:
        """The value of `rule` over text[start:end]."""


DEEPEST = 200  # levels of the tree: every walk over it is recursive, and must not meet Python's own limit


class DepthError(Exception):
    """Something is nested deeper than DEEPEST levels; it begins at offset `start`."""

    def __init__(self, start: int) -> None:
        super().__init__(start)
        self.start = start


class ParseError(Exception):
    """The text stops being a sentence of the grammar at `start`.

    Attributes:
        start: offset of the token or character that does not fit.
        accepts: names of the terminals that would have fitted.
        previous: the token before, or None at the beginning.
    """

    def __init__(self, start: int, accepts: Sequence[str], previous: Token | None) -> None:
        super().__init__(start)
        self.start = start
        self.accepts = tuple(accepts)
        self.previous = previous


@lru_cache(maxsize=1)
def load_tables() -> Tables:
    """The tables shipped with the package."""
    with open(join(dirname(__file__), "tables.json"), encoding="utf-8") as file:
        raw = json.load(file)
    lexer = Lexer(raw["terminals"], raw["ignore"])
    return Tables([tuple(r) for r in raw["rules"]], raw["starts"], raw["ends"], raw["states"], lexer)


def _is_accepted(tables: Tables, stack: list[int], terminal: str) -> bool:
    """Whether a terminal can truly come next.

    A row of the tables may list one that cannot: LALR merges the lookaheads of all contexts, so a reduction
    may be done on a terminal that is refused after it. So the reductions are played through on a copy.
    """
    step = tables.states[stack[-1]].get(terminal)
    if step is None or step >= 0:
        return step is not None
    states = list(stack)
    while step is not None and step < 0:
        name, _, length, _, _ = tables.rules[-1 - step]
        del states[len(states) - length :]
        goto = tables.states[states[-1]][name]
        states.append(goto)
        if terminal == END and goto in tables.ends.values():
            return True
        step = tables.states[goto].get(terminal)
    return step is not None


def _accepted(tables: Tables, stack: list[int]) -> list[str]:
    """Every terminal that can come next."""
    row = [name for name in tables.states[stack[-1]] if name.lstrip("_")[:1].isupper() or name == END]
    return [terminal for terminal in row if _is_accepted(tables, stack, terminal)]


def parse(text: str, start: str, actions: Actions, begin: int = 0, stop: int | None = None) -> Any:
    """The value of text[begin:stop] as a sentence of `start` ("start" or "expr").

    Raises:
        ParseError: it is none.
        DepthError: it is nested too deeply.
    """
    tables = load_tables()
    states, rules, lexer = tables.states, tables.rules, tables.lexer
    limit = len(text) if stop is None else stop
    scanned = text if limit == len(text) else text[:limit]
    stack = [tables.starts[start]]
    values: list[tuple[Any, int, int, int]] = []  # value, start, end, depth
    final = tables.ends[start]
    previous: Token | None = None
    position = lexer.skip(scanned, begin)
    while True:
        try:
            token = lexer.next(scanned, position, lambda name: _is_accepted(tables, stack, name))
        except LexError as error:
            raise ParseError(error.start, _accepted(tables, stack), previous) from None
        while (action := states[stack[-1]].get(token.type)) is not None and action < 0:
            name, callback, length, keep, inline = rules[-1 - action]
            below = len(values) - length
            first, last = (values[below][1], values[-1][2]) if length else (token.start, token.start)
            depth = max((entry[3] for entry in values[below:]), default=0) + (callback not in ("", "="))
            if depth > DEEPEST:
                raise DepthError(first)
            value: Any
            if callback == "=":
                value = values[below + keep[0]][0]
            else:
                children: list[Any] = []
                for index in keep:
                    if index < 0:
                        children.append(None)
                    elif index in inline:
                        children.extend(values[below + index][0])
                    else:
                        children.append(values[below + index][0])
                value = actions.reduce(callback, first, last, children) if callback else children
            del values[below:], stack[len(stack) - length :]
            values.append((value, first, last, depth))
            stack.append(states[stack[-1]][name])
            if token.type == END and stack[-1] == final:
                return value
        if action is None:
            raise ParseError(token.start, _accepted(tables, stack), previous)
        stack.append(action)
        values.append((token, token.start, token.end, 0))
        previous = token
        position = lexer.skip(scanned, token.end)
