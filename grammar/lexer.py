"""The contextual lexer: of the terminals the parser can take next, the longest match wins.

A keyword wins over a NAME of the same text, and only where it can stand: `model.layers` is a path although
`model` begins an item.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from typing import NamedTuple

END = "$END"


class Token(NamedTuple):
    """One token: its terminal's name in the grammar, its text and its offset."""

    type: str
    text: str
    start: int

    @property
    def end(self) -> int:
        """The offset after its last character."""
        return self.start + len(self.text)


class LexError(Exception):
    """No terminal that the parser can take begins at `start`."""

    def __init__(self, start: int) -> None:
        super().__init__(start)
        self.start = start


class Lexer:
    """Scans one terminal at a time; `terminals` and `ignore` are those of `tables.json`."""

    def __init__(self, terminals: Mapping[str, list[str]], ignore: Iterable[str]) -> None:
        ignored = set(ignore)
        self.words = {text: name for name, (kind, text) in terminals.items() if kind == "word"}
        self.strings = {text: name for name, (kind, text) in terminals.items() if kind == "string"}
        self.regexes = {
            name: re.compile(pattern)
            for name, (kind, pattern) in terminals.items()
            if kind == "regex" and name not in ignored
        }
        self._ignored = re.compile("|".join(f"(?P<{n}>{terminals[n][1]})" for n in sorted(ignored)))
        self._word = re.compile(r"[A-Za-z_]\w*")

    def skip(self, text: str, position: int, comments: list[Token] | None = None) -> int:
        """The offset of the next token; comments passed over are appended to `comments`."""
        while match := self._ignored.match(text, position):
            if comments is not None and match.lastgroup == "COMMENT":
                comments.append(Token("COMMENT", match.group().rstrip(), position))
            position = match.end()
        return position

    def next(self, text: str, position: int, accepts: Callable[[str], bool]) -> Token:
        """The token at `position`, which is not blank. Raises LexError when nothing accepted fits.

        `accepts` says of a terminal whether the parser can take it; it is asked only of those that match.
        """
        if position == len(text):
            return Token(END, "", position)
        found = [  # the longest first, and of one length the keyword or punctuation first
            (-(match.end() - position), 1, name)
            for name, pattern in self.regexes.items()
            if (match := pattern.match(text, position))
        ]
        if word := self._word.match(text, position):
            keyword = self.words.get(word.group())
            if keyword is not None:
                found.append((-len(word.group()), 0, keyword))
        else:
            for size in (2, 1):
                mark = self.strings.get(text[position : position + size])
                if mark is not None:
                    found.append((-size, 0, mark))
        for length, _, name in sorted(found):
            if accepts(name):
                if self._runs_on(text, position, -length):
                    break
                return Token(name, text[position : position - length], position)
        raise LexError(position)

    def _runs_on(self, text: str, position: int, length: int) -> bool:
        """True for a number with a word glued to it, such as `24Gib`: it is no token, not two."""
        end = position + length
        return text[position].isdigit() and end < len(text) and (text[end].isalnum() or text[end] == "_")
