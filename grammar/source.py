"""One source text: turns offsets into spans with lines and columns."""

from __future__ import annotations

from bisect import bisect_right

from ktc.grammar.tree import Span


class Source:
    """A `.kt` text and where its lines start.

    Attributes:
        path: what messages call the file.
        text: the whole text.
    """

    def __init__(self, path: str, text: str) -> None:
        self.path = path
        self.text = text
        self._starts = [0]
        position = text.find("\n")
        while position >= 0:
            self._starts.append(position + 1)
            position = text.find("\n", position + 1)

    def position(self, offset: int) -> tuple[int, int]:
        """Line and column, both from 1, of an offset from 0."""
        line = bisect_right(self._starts, offset)
        return line, offset - self._starts[line - 1] + 1

    def span(self, start: int, end: int) -> Span:
        """The half-open range [start, end) of this text."""
        line, column = self.position(start)
        end_line, end_column = self.position(end)
        return Span(self.path, start, end, line, column, end_line, end_column)

    def line(self, number: int) -> str:
        """The text of line `number` (from 1), without its end; "" beyond the last."""
        if number > len(self._starts):
            return ""
        start = self._starts[number - 1]
        end = self._starts[number] - 1 if number < len(self._starts) else len(self.text)
        return self.text[start:end].rstrip("\r")
