"""Parses a text into a tree; after a syntax error, item by item, so that one run reports several."""

from __future__ import annotations

import re

from ktc.grammar import lalr, tree
from ktc.grammar.build import Builder, NumberError
from ktc.grammar.diagnostics import Diagnostic, KtError, Label
from ktc.grammar.source import Source

ITEMS = ("model", "device", "param", "let", "phase", "include", "import", "rule", "rewrite", "assert")
_SCAN = re.compile(r'#[^\n]*|re"[^"\n]*"|"[^"\n]*"|[{}]|[A-Za-z_]\w*')
_COLUMN_ONE = re.compile(r"\w+[ \t]+\"?\w")


def _chunks(text: str) -> list[tuple[int, int]]:
    """Ranges of text that hold one item each, by looking at braces and line starts only.

    An item's keyword begins a chunk when it is the first word of its line outside braces, or stands in column
    1 followed by a word even inside braces: then a `}` is missing before it.
    """
    starts, depth = [0], 0
    for match in _SCAN.finditer(text):
        word = match.group()
        if word == "{":
            depth += 1
        elif word == "}":
            depth = max(0, depth - 1)
        elif word in ITEMS:
            line_start = text.rfind("\n", 0, match.start()) + 1
            indent = text[line_start : match.start()]
            forced = not indent and _COLUMN_ONE.match(text, match.start())
            if not indent.strip() and (depth == 0 or forced):
                starts.append(match.start())
                depth = 0
    return list(zip(starts, [*starts[1:], len(text)], strict=True))


def _attempt(source: Source, start: str, begin: int, stop: int | None) -> tuple[object, list[Diagnostic]]:
    """The value of one parse, or None, and what is wrong with it."""
    builder = Builder(source)
    limit = len(source.text) if stop is None else stop
    try:
        value = lalr.parse(source.text, start, builder, begin, stop)
    except lalr.ParseError as error:
        from ktc.grammar.syntax_errors import diagnose  # most texts have none: do not wait for it

        return None, [diagnose(source, error, begin, limit)]
    except lalr.DepthError as error:
        span = source.span(error.start, min(error.start + 1, limit))
        message = f"nested more than {lalr.DEEPEST} levels deep"
        return None, [Diagnostic("KT005", message, (Label(span, "this is too deep"),))]
    except NumberError as error:
        span = source.span(error.token.start, error.token.end)
        return None, [Diagnostic("KT004", "number is too large", (Label(span),))]
    if builder.types and isinstance(value, tree.File):
        wrong = {span.start for span in builder.types}
        kept = (i for i in value.items if not any(i.span.start <= w < i.span.end for w in wrong))
        value = tree.File(value.span, value.path, tuple(kept))
    notes = ("`x: T[*, d]` gives the type of a captured value in a rewrite's pattern",)
    message = "a type can only be given inside a rewrite"
    return value, [Diagnostic("KT008", message, (Label(span),), notes) for span in builder.types]


def parse(text: str, path: str = "<text>") -> tuple[tree.File, list[Diagnostic]]:
    """The tree of a `.kt` text and its syntax errors; items with an error are left out of the tree.

    Args:
        text: the whole text.
        path: what messages call the file.
    """
    source = Source(path, text)
    value, found = _attempt(source, "start", 0, None)
    if isinstance(value, tree.File):
        return value, found
    items: list[tree.Item] = []
    several: list[Diagnostic] = []
    for begin, stop in _chunks(text):
        value, problems = _attempt(source, "start", begin, stop)
        several += problems
        if isinstance(value, tree.File):
            items += value.items
    return tree.File(source.span(0, len(text)), source.path, tuple(items)), several or found


def parse_expression(text: str, path: str = "<text>") -> tree.Expr:
    """One expression, such as the value of `-D NAME=VALUE`. Raises KtError."""
    value, found = _attempt(Source(path, text), "expr", 0, None)
    if found:
        raise KtError(found)
    return value  # type: ignore[return-value]
