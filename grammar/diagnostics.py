"""The one record behind every message: terminal, `--json` and the language server all read it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum

from ktc.grammar.tree import Span


class Severity(StrEnum):
    """How bad it is: an error stops the compiler, a warning does not."""

    ERROR = "error"
    WARNING = "warning"


@dataclass(frozen=True, slots=True)
class Label:
    """A piece of text pointed at with carets (the first of a diagnostic) or dashes (the others)."""

    span: Span
    text: str = ""


@dataclass(frozen=True, slots=True)
class Fix:
    """A replacement that would mend the error; `span` None means it is advice only."""

    text: str
    span: Span | None = None
    replacement: str = ""


@dataclass(frozen=True, slots=True)
class Diagnostic:
    """One message with its code (`KT201`), where it points, what else is known and how to mend it."""

    code: str
    message: str
    labels: tuple[Label, ...] = ()
    notes: tuple[str, ...] = ()
    fixes: tuple[Fix, ...] = ()
    severity: Severity = Severity.ERROR


class KtError(Exception):
    """Raised when a `.kt` program cannot be compiled; carries every diagnostic found, not just the first.

    Attributes:
        diagnostics: all of them.
        sources: text of each file that their spans name, where known; `str()` then shows the lines.
    """

    def __init__(self, diagnostics: Sequence[Diagnostic], sources: Mapping[str, str] | None = None) -> None:
        self.diagnostics = tuple(diagnostics)
        self.sources = dict(sources or {})
        super().__init__("\n".join(f"{d.severity}[{d.code}]: {d.message}" for d in self.diagnostics))

    def __str__(self) -> str:
        from ktc.grammar.render import render

        return "\n" + "\n".join(render(d, self.sources) for d in self.diagnostics)
