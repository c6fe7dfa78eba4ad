"""The formatter behind `ktc fmt`: one layout for every file, comments kept.

Clauses of a rule stand one a line with their words in a column; a rule, `on`, `pattern` or `replace` block
written on one line stays on one line while it fits. Blank lines are kept, at most one; rules and rewrites of
several lines get one around them. A comment stays before, or behind on the line of, what it stood by.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

from ktc.grammar import tree
from ktc.grammar.diagnostics import KtError
from ktc.grammar.parser import parse
from ktc.grammar.source import Source
from ktc.grammar.tree import Span
from ktc.grammar.unparse import STEP, Unparser

WIDTH = 100
_COMMENTS = re.compile(r're"[^"\n]*"|"[^"\n]*"|(#[^\n]*)')
_BLOCKS = (tree.Rule, tree.Rewrite)


def format_text(text: str, path: str = "<text>") -> str:
    """The text in the one layout; the same tree, the same comments, and formatting it again changes nothing.

    Raises KtError when the text has syntax errors.
    """
    text = text.replace("\r\n", "\n").replace("\r", "\n")
    file, problems = parse(text, path)
    if problems:
        raise KtError(problems, {path: text})
    return _Formatter(Source(path, text)).file(file)


class _Formatter:
    def __init__(self, source: Source) -> None:
        self._source = source
        self._write = Unparser(source.text, WIDTH)
        found = _COMMENTS.finditer(source.text)
        self._comments = [(m.start(1), m.group(1).rstrip()) for m in found if m.group(1)]
        self._lines: list[str] = []
        self._last_line = 0  # last line of the source that is written already

    def file(self, file: tree.File) -> str:
        """The whole file."""
        previous: tree.Item | None = None
        for item in file.items:
            if previous is not None and (isinstance(item, _BLOCKS) or isinstance(previous, _BLOCKS)):
                self._separate(previous, item)
            self._item(item)
            previous = item
        self._flush(len(self._source.text) + 1, 0)
        return "\n".join(self._lines).strip("\n") + "\n" if self._lines else ""

    def _separate(self, previous: tree.Item, item: tree.Item) -> None:
        """A blank line around blocks of several lines; comments stand on the side of what follows."""
        several = "\n" in self._source.text[item.span.start : item.span.end] or self._lines[-1] == "}"
        if several and self._lines[-1] and not self._trailing(previous.span):
            self._lines.append("")

    def _trailing(self, span: Span) -> bool:
        """Whether a comment stands behind something on its last line and is still to be written."""
        return bool(self._comments) and self._line(self._comments[0][0]) == span.end_line

    def _line(self, offset: int) -> int:
        return self._source.position(offset)[0]

    # --- lines, comments and blank lines -----------------------------------------------------------
    def _gap(self, line: int) -> None:
        """Keeps one blank line where the source has some before `line`."""
        if (
            self._lines
            and self._lines[-1]
            and not self._lines[-1].endswith("{")
            and line > self._last_line + 1
        ):
            self._lines.append("")

    def _flush(self, offset: int, indent: int) -> None:
        """Writes the comments before `offset`, each on a line of its own."""
        while self._comments and self._comments[0][0] < offset:
            start, comment = self._comments.pop(0)
            self._gap(self._line(start))
            self._lines.append(" " * indent + comment)
            self._last_line = self._line(start)

    def _emit(self, text: str, indent: int, start: int, end: int) -> None:
        """Writes what stood in source[start:end]; comments before and inside it first, one behind it last."""
        self._flush(end, indent)
        self._gap(self._line(start))
        self._lines += (" " * indent + text).split("\n")
        self._last_line = self._line(end)
        self._behind(end)

    def _behind(self, end: int) -> None:
        """A comment on the source line of `end` goes behind the line just written."""
        if self._comments and self._line(self._comments[0][0]) == self._line(end):
            start, comment = self._comments.pop(0)
            self._lines[-1] += "  " + comment
            self._last_line = self._line(start)

    # --- items -------------------------------------------------------------------------------------
    def _item(self, item: tree.Item) -> None:
        if isinstance(item, tree.Rule):
            self._rule(item)
        elif isinstance(item, tree.Rewrite):
            self._rewrite(item)
        else:
            self._emit(self._simple(item), 0, item.span.start, item.span.end)

    def _simple(self, item: Any) -> str:
        """An item without a block."""
        write = self._write
        if isinstance(item, tree.Model):
            source = f" from {write.flat(item.source)}" if item.source else ""
            weights = f" weights {write.flat(item.weights)}" if item.weights else ""
            return f"model {item.class_name.id}{source}{weights}"
        if isinstance(item, tree.Device):
            first = "" if item.first is None else f":{item.first}"
            last = "" if item.last is None else f"..{item.last}"
            options = ", ".join(write.flat(option) for option in item.options)
            written = self._source.text[item.span.start : item.span.end].endswith(")")
            return f"device {item.name.id} = {item.hardware}{first}{last}" + (
                f" ({options})" if written else ""
            )
        if isinstance(item, tree.Param):
            head = f"param {item.name.id}: {item.type.id} = "
            tail = f" {write.flat(item.help)}" if item.help else ""
            return head + write.fit(item.default, len(head) + len(tail), 0) + tail
        if isinstance(item, tree.Phase):
            head = f"phase {item.name.id} = "
            return head + write.fit(item.condition, len(head), 0)
        if isinstance(item, tree.Let):
            head = f"let {item.name.id} = " + ("match " if item.selector is not None else "")
            return head + write.fit(item.selector or item.value, len(head), 0)
        if isinstance(item, tree.Include):
            return f"include {write.flat(item.path)}"
        if isinstance(item, tree.Import):
            return f"import {item.module.id}"
        tail = f", {write.flat(item.hint)}" if item.hint else ""
        return "assert " + write.fit(item.condition, len("assert ") + len(tail), 0) + tail

    def _one_line(self, span: Span, text: str, indent: int) -> bool:
        """Whether a block may stay on one line: it stood on one, without comments, and fits."""
        inside = self._comments and self._comments[0][0] < span.end and self._comments[0][0] > span.start
        return span.line == span.end_line and not inside and "\n" not in text and indent + len(text) <= WIDTH

    def _open(self, head: str, indent: int, span: Span) -> None:
        """Writes `head {`; a comment behind the brace stays there."""
        brace = self._source.text.index("{", span.start)
        self._emit(f"{head} {{", indent, span.start, brace + 1)

    def _close(self, indent: int, span: Span) -> None:
        self._flush(span.end, indent + STEP)
        if self._lines[-1] == "":
            self._lines.pop()
        self._lines.append(" " * indent + "}")
        self._last_line = span.end_line
        self._behind(span.end)

    # --- rules -------------------------------------------------------------------------------------
    def _rule(self, item: tree.Rule) -> None:
        clauses: list[tuple[str, Any, Span]] = [("match", item.selector, item.selector.span)]
        if item.where is not None:
            clauses.append(("where", item.where, item.where.span))
        clauses += [("on" if isinstance(a, tree.On) else a.kind, a, a.span) for a in item.actions]
        if item.expect is not None:
            clauses.append(("expect", item.expect, item.expect.span))
        flat = f"rule {item.name.id} {{ {' '.join(self._clause_flat(*clause[:2]) for clause in clauses)} }}"
        if self._one_line(item.span, flat, 0):
            self._emit(flat, 0, item.span.start, item.span.end)
            return
        self._open(f"rule {item.name.id}", 0, item.span)
        for word, node, span in clauses:
            if isinstance(node, tree.On):
                self._on(node)
            else:
                self._clause(word, node, STEP, span)
        self._close(0, item.span)

    def _value(self, node: Any) -> Any:
        """What a clause says after its word."""
        return node.value if isinstance(node, tree.Action) else node

    def _clause_flat(self, word: str, node: Any) -> str:
        if isinstance(node, tree.On):
            actions = " ".join(self._clause_flat(a.kind, a) for a in node.actions)
            return f"on {node.phase.id} {{ {actions} }}"
        if isinstance(node, tree.Expect):
            return "expect " + (self._write.flat(node.count) if node.count is not None else "any")
        return f"{word} {self._write.flat(self._value(node))}"

    def _clause(self, word: str, node: Any, indent: int, span: Span) -> None:
        head = f"{word:<6} "
        if isinstance(node, tree.Expect):
            text = (
                self._write.fit(node.count, indent + len(head), indent) if node.count is not None else "any"
            )
        else:
            text = self._write.fit(self._value(node), indent + len(head), indent)
        # The span of a bare value begins after its word: comments between the two move before the clause.
        self._emit(head + text, indent, span.start, span.end)

    def _on(self, item: tree.On) -> None:
        flat = self._clause_flat("on", item)
        if self._one_line(item.span, flat, STEP):
            self._emit(flat, STEP, item.span.start, item.span.end)
            return
        self._open(f"on {item.phase.id}", STEP, item.span)
        for action in item.actions:
            self._clause(action.kind, action, 2 * STEP, action.span)
        self._close(STEP, item.span)

    # --- rewrites ----------------------------------------------------------------------------------
    def _rewrite(self, item: tree.Rewrite) -> None:
        self._open(f"rewrite {item.name.id}", 0, item.span)
        self._binds("pattern", item.pattern, self._source.text.index("{", item.span.start) + 1)
        end = item.pattern[-1].span.end
        if item.where is not None:
            head = "where "
            text = self._write.fit(item.where, STEP + len(head), STEP)
            self._emit(head + text, STEP, item.where.span.start, item.where.span.end)
            end = item.where.span.end
        self._binds("replace", item.replace, end)
        if item.expect is not None:
            self._emit(
                self._clause_flat("expect", item.expect), STEP, item.expect.span.start, item.expect.span.end
            )
        self._close(0, item.span)

    def _binds(self, word: str, binds: Sequence[tree.Bind], after: int) -> None:
        """A `pattern` or `replace` block; its braces are found in the text: the tree has no node for it."""
        blank = _COMMENTS.sub(
            lambda m: " " * len(m.group()) if m.group(1) else m.group(),
            self._source.text[after : binds[0].span.start],
        )
        start = after + blank.rindex(word)
        brace = self._source.text.index("{", start)
        end = self._closing(binds[-1].span.end)
        span = self._source.span(start, end)
        lefts = [", ".join(name.id for name in bind.names) for bind in binds]
        if len(binds) == 1:
            flat = f"{word} {{ {lefts[0]} = {self._write.flat(binds[0].call)} }}"
            if self._one_line(span, flat, STEP):
                self._emit(flat, STEP, start, end)
                return
        self._emit(f"{word} {{", STEP, start, brace + 1)
        width = max(len(left) for left in lefts)
        for left, bind in zip(lefts, binds, strict=True):
            head = f"{left:<{width}} = "
            text = self._write.fit(bind.call, 2 * STEP + len(head), 2 * STEP)
            self._emit(head + text, 2 * STEP, bind.span.start, bind.span.end)
        self._close(STEP, span)

    def _closing(self, offset: int) -> int:
        """The offset after the `}` that follows `offset`, comments passed over."""
        for match in re.compile(r"#[^\n]*|\}").finditer(self._source.text, offset):
            if match.group() == "}":
                return match.end()
        raise ValueError("a parsed block has a closing brace")
