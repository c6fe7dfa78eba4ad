"""The names of a program and the problems found so far; every check reads and extends these."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from ktc.grammar import tree
from ktc.grammar.diagnostics import Diagnostic, Fix, Label, Severity
from ktc.grammar.functions import ASSERT, COUNT, FUNCTIONS, PHASE, REWRITE, RULE, STATIC, VALUE
from ktc.grammar.rules import DeviceDecl, ParamValue, Rules
from ktc.grammar.suggest import closest
from ktc.grammar.tree import Span

PHASES = ("prefill", "decode")
# Names that stand for something without being declared, by where an expression stands; and their types.
_MODEL = {"layers": "int", "config": "config"}
_SITE = {"layer": "int", "name": "str", "params": "int", "bytes": "int", "dtype": "symbol", "shape": "list"}
BUILT_IN: Mapping[str, Mapping[str, str]] = {
    STATIC: {},
    COUNT: _MODEL,
    VALUE: {**_MODEL, **_SITE},
    PHASE: {"tokens": "int"},
    RULE: {**_MODEL, **_SITE},
    REWRITE: _MODEL,
    ASSERT: _MODEL,
}
RESERVED = (
    frozenset(name for names in BUILT_IN.values() for name in names)
    | FUNCTIONS.keys()
    | {"auto", "none", *PHASES}
)


def head(span: Span, name: str) -> Span:
    """The beginning of a span that holds a name: of `threads = 4`, `threads`."""
    if span.end - span.start <= len(name):
        return span
    end = span.column + len(name)
    return Span(span.file, span.start, span.start + len(name), span.line, span.column, span.line, end)


class Scope:
    """Declared names and collected diagnostics of one program.

    Attributes:
        path: the main file; only it gets warnings.
        rules: the program as far as it is known: parameters and devices evaluated, `let`s by name.
        used: names that some expression read.
        later: every parameter and `let` of the program, declared so far or not.
    """

    def __init__(self, path: str) -> None:
        self.path = path
        self.diagnostics: list[Diagnostic] = []
        self.used: set[str] = set()
        self.spans: dict[str, Span] = {}  # first declaration of each value name
        self.params: dict[str, ParamValue] = {}
        self.param_types: dict[str, str] = {}
        self.devices: dict[str, DeviceDecl] = {}
        self.device_types: dict[str, str] = {}
        self.lets: dict[str, tree.Let] = {}
        self.let_types: dict[str, str] = {}
        self.phases: dict[str, tree.Phase] = {}
        self.model: tree.Model | None = None
        self.later: dict[str, Span] = {}

    def rules(self) -> Rules:
        """What is known so far, for evaluating expressions."""
        return Rules(self.path, {}, params=self.params, devices=self.devices, lets=self.lets)

    def error(
        self,
        code: str,
        message: str,
        span: Span,
        text: str = "",
        *,
        notes: Iterable[str] = (),
        fix: Fix | None = None,
    ) -> None:
        """Reports an error at one span."""
        fixes = () if fix is None else (fix,)
        self.diagnostics.append(Diagnostic(code, message, (Label(span, text),), tuple(notes), fixes))

    def warning(self, code: str, message: str, span: Span, text: str = "") -> None:
        """Reports what is suspicious but compiles; only in the main file."""
        if span.file == self.path:
            found = Diagnostic(code, message, (Label(span, text),), severity=Severity.WARNING)
            self.diagnostics.append(found)

    def guess(self, name: str, candidates: Iterable[str], span: Span, prefix: str = "") -> Fix | None:
        """A fix that replaces `span` by the candidate nearest to `name`, or None."""
        near = closest(name, candidates)
        return None if near is None else Fix(f"did you mean `{prefix}{near}`?", span, prefix + near)

    def unknown(
        self,
        code: str,
        what: str,
        name: str,
        known: Iterable[str],
        span: Span,
        listed: str = "",
        of: str = "",
    ) -> None:
        """Reports a name that nothing declares, with the nearest one, or else the list of those there are.

        The message is "unknown WHAT `NAME` OF"; of `span`, only the name at its beginning is marked.
        """
        span = head(span, name)
        names = sorted(known)
        fix = self.guess(name, names, span)
        notes = (
            () if fix or not names or not listed else (f"{listed}: " + ", ".join(f"`{n}`" for n in names),)
        )
        self.error(code, f"unknown {what} `{name}`{of}", span, "", notes=notes, fix=fix)

    def declare(self, name: tree.Name, what: str) -> bool:
        """Takes a name for a parameter, device, `let` or phase; False, with a report, when it is taken."""
        if name.id in RESERVED:
            self.error("KT115", f"`{name.id}` is built in and cannot name a {what}", name.span)
            return False
        if name.id in self.spans:
            self.duplicate("name", name, self.spans[name.id])
            return False
        self.spans[name.id] = name.span
        return True

    def duplicate(self, what: str, name: tree.Name, first: Span) -> None:
        """Reports a second declaration of a name."""
        labels = (Label(name.span, "declared again here"), Label(first, "first declared here"))
        self.diagnostics.append(Diagnostic("KT101", f"{what} `{name.id}` is declared twice", labels))

    def names(self, context: str) -> dict[str, str]:
        """Every name an expression can use in a context, and its type."""
        found = dict(BUILT_IN[context])
        found.update(self.param_types)
        found.update(self.let_types)
        found.update(self.device_types)
        return found
