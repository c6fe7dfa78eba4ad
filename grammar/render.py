"""Shows diagnostics: for a terminal as rustc does, with the lines and carets, and as JSON."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, TextIO

from ktc.grammar.diagnostics import Diagnostic, Label, Severity
from ktc.grammar.source import Source
from ktc.grammar.tree import Span

LONGEST = 160  # characters of a source line; of a longer one only a part is shown
_SPAN = ("file", "start", "end", "line", "column", "end_line", "end_column")
_COLORS = {"error": "\033[1;31m", "warning": "\033[1;33m", "blue": "\033[1;34m", "bold": "\033[1m"}
_RESET = "\033[0m"


def use_color(stream: TextIO) -> bool:
    """Colour only for a person: on a terminal, and when NO_COLOR is not set."""
    return stream.isatty() and not os.environ.get("NO_COLOR") and os.environ.get("TERM") != "dumb"


class _Painter:
    def __init__(self, color: bool) -> None:
        self._color = color

    def __call__(self, style: str, text: str) -> str:
        return f"{_COLORS[style]}{text}{_RESET}" if self._color and text else text


def render(diagnostic: Diagnostic, sources: Mapping[str, str], *, color: bool = False) -> str:
    """One diagnostic as text that ends in a newline.

    Args:
        diagnostic: what to show.
        sources: texts of the files its labels point into; a file that is missing is named without its lines.
        color: whether to use ANSI colours.
    """
    paint = _Painter(color)
    kind = diagnostic.severity.value
    lines = [paint(kind, f"{kind}[{diagnostic.code}]") + paint("bold", f": {printable(diagnostic.message)}")]
    width = max((len(str(label.span.end_line)) for label in diagnostic.labels), default=1)
    gutter = " " * width
    for index, (file, labels) in enumerate(_by_file(diagnostic.labels)):
        first = labels[0].span
        arrow = "-->" if index == 0 else ":::"
        lines.append(f"{gutter}{paint('blue', arrow)} {printable(file)}:{first.line}:{first.column}")
        if file in sources:
            lines += _snippet(Source(file, sources[file]), labels, diagnostic, width, paint)
    for note in diagnostic.notes:
        lines.append(f"{gutter} {paint('blue', '=')} {paint('bold', 'note')}: {printable(note)}")
    for fix in diagnostic.fixes:
        lines.append(f"{gutter} {paint('blue', '=')} {paint('bold', 'help')}: {printable(fix.text)}")
    return "\n".join(lines) + "\n"


def _by_file(labels: Sequence[Label]) -> list[tuple[str, list[Label]]]:
    """Labels grouped by file, the first label's file first."""
    groups: dict[str, list[Label]] = {}
    for label in labels:
        groups.setdefault(label.span.file, []).append(label)
    return list(groups.items())


def _snippet(
    source: Source, labels: Sequence[Label], diagnostic: Diagnostic, width: int, paint: _Painter
) -> list[str]:
    """The lines that labels point at, in order, with their marks below; `...` where lines are left out."""
    bar = paint("blue", "|")
    lines = []
    if len(labels) > 1 or labels[0].span.line != labels[0].span.end_line:
        lines.append(f"{' ' * width} {bar}")
    shown: int | None = None
    main = diagnostic.labels[0]
    for number in sorted({label.span.line for label in labels}):
        if shown is not None and number > shown + 1:
            lines.append(paint("blue", "..."))
        here = sorted(
            (label for label in labels if label.span.line == number), key=lambda label: -label.span.column
        )
        text = source.line(number)
        first, last = _window(text, here[-1].span.column - 1)
        left, right = ("…" if first else ""), ("…" if last < len(text) else "")
        line = f"{left}{printable(text[first:last])}{right}"
        lines.append(f"{paint('blue', str(number).rjust(width))} {bar} {line}".rstrip())
        for label in here:
            start = min(max(label.span.column - 1, first), last)
            end = label.span.end_column - 1 if label.span.end_line == number else len(text)
            lead = " " * (len(left) + columns(text[first:start]))
            mark = ("^" if label is main else "-") * max(1, columns(text[start : min(end, last)]))
            style = diagnostic.severity.value if label is main else "blue"
            marked = paint(style, f"{mark} {printable(label.text)}".rstrip())
            lines.append(f"{' ' * width} {bar} {lead}{marked}")
        shown = number
    return lines


def _window(text: str, at: int) -> tuple[int, int]:
    """The part of a line to show: all of it, or of a very long one what lies around column `at`."""
    if len(text) <= LONGEST:
        return 0, len(text)
    first = max(0, at - LONGEST // 2)
    return first, min(len(text), first + LONGEST)


def printable(text: str) -> str:
    """Text without characters that would move the cursor or change the terminal; a tab is one blank."""
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() else " " if c == "\t" else "\N{REPLACEMENT CHARACTER}" for c in text)


def columns(text: str) -> int:
    """How many columns of a terminal a piece of a line takes."""
    if text.isascii():
        return len(text)
    from unicodedata import combining, east_asian_width

    return sum(0 if combining(c) else 2 if east_asian_width(c) in "WF" else 1 for c in text)


def to_json(diagnostic: Diagnostic) -> dict[str, Any]:
    """A diagnostic as plain JSON values; spans count lines and columns from 1, offsets from 0."""
    return {
        "code": diagnostic.code,
        "severity": diagnostic.severity.value,
        "message": diagnostic.message,
        "labels": [{"span": _span(label.span), "text": label.text} for label in diagnostic.labels],
        "notes": list(diagnostic.notes),
        "fixes": [
            {"text": fix.text, "span": _span(fix.span) if fix.span else None, "replacement": fix.replacement}
            for fix in diagnostic.fixes
        ],
    }


def _span(span: Span) -> dict[str, Any]:
    return {name: getattr(span, name) for name in _SPAN}


def print_diagnostics(
    diagnostics: Iterable[Diagnostic], sources: Mapping[str, str], stream: TextIO | None = None
) -> None:
    """Shows diagnostics on a stream (standard error), blank lines between them, and a count at the end."""
    out = stream or sys.stderr
    found = list(diagnostics)
    color = use_color(out)
    for diagnostic in found:
        out.write(render(diagnostic, sources, color=color) + "\n")
    if found:
        out.write(summary(found) + "\n")


def summary(diagnostics: Sequence[Diagnostic]) -> str:
    """`2 errors, 1 warning; ktc help KT201 explains the first`."""
    errors = sum(d.severity is Severity.ERROR for d in diagnostics)
    warnings = len(diagnostics) - errors
    counts = [
        f"{n} {word}{'s' if n > 1 else ''}" for n, word in ((errors, "error"), (warnings, "warning")) if n
    ]
    return f"{', '.join(counts)}; `ktc help {diagnostics[0].code}` explains the first"
