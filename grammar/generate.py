"""Turns `kt.lark` into `tables.json`, so that parsing needs no lark and builds no tables.

Run `python -m ktc.grammar.generate` after editing the grammar. Building the LALR(1) tables takes lark 0.3 s,
more than `ktc check` may take as a whole process; reading them back takes a few milliseconds.
"""

from __future__ import annotations

import hashlib
import json
from collections import deque
from pathlib import Path
from typing import Any

from lark import Lark
from lark.grammar import Rule
from lark.lexer import PatternStr
from lark.parsers.lalr_analysis import ParseTable, Shift

GRAMMAR = Path(__file__).with_name("kt.lark")
TABLES = Path(__file__).with_name("tables.json")
STARTS = ["start", "expr"]


def build_lark(*, strict: bool = False) -> Lark:
    """The grammar as lark sees it; `strict` also reports colliding terminals (needs package interegular)."""
    return Lark(
        GRAMMAR.read_text("utf-8"),
        parser="lalr",
        start=STARTS,
        strict=strict,
        maybe_placeholders=True,
        debug=True,
    )


def _terminals(lark: Lark) -> dict[str, list[str]]:
    """Name → [kind, pattern]: a "word" is a keyword, a "string" punctuation, a "regex" anything else."""
    found = {}
    for terminal in sorted(lark.terminals, key=lambda t: t.name):
        if isinstance(terminal.pattern, PatternStr):
            text = terminal.pattern.value
            found[str(terminal.name)] = ["word" if text.isidentifier() else "string", text]
        else:
            found[str(terminal.name)] = ["regex", terminal.pattern.to_regexp()]
    return found


def _rule_key(rule: Rule) -> tuple[str, tuple[str, ...], str]:
    return str(rule.origin.name), tuple(str(s.name) for s in rule.expansion), str(rule.alias or "")


def _rule_row(rule: Rule) -> list[Any]:
    """[callback, length, keep, inline]: what a reduction by this rule does with its children.

    callback: the builder's method, "" for a helper rule that only collects, "=" for one that hands its single
    child on. keep: positions of the children handed over, -1 standing for a placeholder None. inline: those
    of `keep` whose value is a list to splice in.
    """
    name = str(rule.origin.name)
    keep: list[int] = []
    empty = list(rule.options.empty_indices) if rule.options.empty_indices else [False] * len(rule.expansion)
    position = 0
    for is_empty in empty:
        if is_empty:
            keep.append(-1)
            continue
        symbol = rule.expansion[position]
        if not getattr(symbol, "filter_out", False):  # only terminals have it
            keep.append(position)
        position += 1
    inline = [
        i for i in keep if i >= 0 and not rule.expansion[i].is_term and rule.expansion[i].name[0] == "_"
    ]
    if name.startswith("_"):
        callback = ""
    elif rule.alias is None and rule.options.expand1 and len(keep) == 1:
        callback = "="
    else:
        callback = str(rule.alias or name)
    return [name, callback, len(rule.expansion), keep, inline]


def tables() -> dict[str, Any]:
    """The parser's tables as plain JSON values, the same for the same grammar on every run.

    In `states`, a terminal or rule name leads to s >= 0 (shift or go to state s) or -1 - r (reduce by r).
    """
    lark = build_lark()
    parse_table = lark.parser.parser._parse_table
    if not isinstance(parse_table, ParseTable):
        raise TypeError("lark changed the way it keeps its parse table")
    rules = sorted({_rule_key(rule): rule for rule in lark.rules}.items())
    number = {key: index for index, (key, _) in enumerate(rules)}
    order: dict[Any, int] = {}
    queue = deque(parse_table.start_states[start] for start in STARTS)
    for state in queue:
        order[state] = len(order)
    while queue:
        row = parse_table.states[queue.popleft()]
        for _, (action, argument) in sorted(row.items()):
            if action is Shift and argument not in order:
                order[argument] = len(order)
                queue.append(argument)
    states = []
    for state in order:
        numbered = {
            str(symbol): order[argument] if action is Shift else -1 - number[_rule_key(argument)]
            for symbol, (action, argument) in parse_table.states[state].items()
        }
        states.append(dict(sorted(numbered.items())))
    return {
        "grammar": hashlib.sha256(GRAMMAR.read_bytes()).hexdigest(),
        "terminals": _terminals(lark),
        "ignore": sorted(str(name) for name in lark.ignore_tokens),
        "rules": [_rule_row(rule) for _, rule in rules],
        "starts": {start: order[parse_table.start_states[start]] for start in STARTS},
        "ends": {start: order[parse_table.end_states[start]] for start in STARTS},
        "states": states,
    }


def main() -> None:
    """Writes `tables.json` beside the grammar."""
    found = tables()
    lines = [
        f" {json.dumps(key)}: {json.dumps(value, separators=(',', ':'))}" for key, value in found.items()
    ]
    TABLES.write_text("{\n" + ",\n".join(lines) + "\n}\n", "utf-8")


if __name__ == "__main__":
    main()
