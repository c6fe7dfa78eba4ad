"""Words for syntax errors: what was expected, what stood there, and where one can guess, what was meant."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence

from ktc.grammar.diagnostics import Diagnostic, Fix, Label
from ktc.grammar.lalr import ParseError, load_tables
from ktc.grammar.lexer import END
from ktc.grammar.parser import ITEMS
from ktc.grammar.source import Source
from ktc.grammar.suggest import closest

CLAUSES = ("match", "where", "place", "quant", "kernel", "cache", "on", "expect", "pattern", "replace")
CLASSES = {
    "NAME": "a name",
    "INT": "an integer",
    "FLOAT": "a number",
    "SIZE": "a size such as `24GiB`",
    "STRING": 'a "string"',
    "REGEX": 're"..."',
    "GLOB": "a glob such as `*_proj`",
    "CMP": "a comparison",
    END: "the end of the file",
}
VALUE = frozenset({"NAME", "INT", "FLOAT", "SIZE", "STRING", "LPAR", "LSQB", "AT", "MINUS", "TRUE", "FALSE"})
EXPRESSION = VALUE | {"NOT"}
STEP = frozenset({"NAME", "GLOB", "INT", "STAR", "DOUBLESTAR"})
SELECTOR = STEP | {"REGEX", "LPAR", "AT", "NOT"}
OPERATOR = frozenset({"PLUS", "MINUS", "STAR", "SLASH", "SLASH2", "PERCENT"})
# Sets of terminals that a reader knows by one name, the larger before those inside them.
GROUPS: tuple[tuple[frozenset[str], str], ...] = (
    (frozenset(word.upper() for word in ITEMS), "an item (" + ", ".join(f"`{w}`" for w in ITEMS) + ")"),
    (EXPRESSION, "an expression"),
    (VALUE, "a value"),
    (SELECTOR, "a selector"),
    (STEP, "a part of a path"),
    (OPERATOR | {"CMP", "IN", "AND", "OR"}, "an operator"),
    (OPERATOR, "an operator"),
)
CONTINUATIONS = frozenset(
    {
        "PLUS",
        "MINUS",
        "STAR",
        "SLASH",
        "SLASH2",
        "PERCENT",
        "CMP",
        "IN",
        "AND",
        "OR",
        "LPAR",
        "DOT",
        "LSQB",
        "COLON",
    }
)
OPENERS = {"{": "}", "(": ")", "[": "]"}
_NUMBER = re.compile(r"\d[\d_]*(\.\d+)?([eE]\d+|[KMGT]iB)?")
_SKIP = re.compile(r'#[^\n]*|"[^"\n]*"')


def expected(accepts: Iterable[str]) -> str:
    """The terminals as a reader's phrase: "a name or `}`"; never a terminal's own name."""
    left = set(accepts)
    if left - CONTINUATIONS:  # one could always go on with an operator: say it only where nothing else fits
        begins = "NAME" in left and ("INT" in left or "GLOB" in left)
        left -= CONTINUATIONS - (EXPRESSION | SELECTOR if begins else frozenset())
    words = []
    for group, phrase in GROUPS:
        if group <= left:
            left -= group
            words.append(phrase)
    lexer = load_tables().lexer
    spelled = {name: f"`{text}`" for text, name in (*lexer.words.items(), *lexer.strings.items())}
    words += [CLASSES[name] for name in CLASSES if name in left and name != END]
    words += sorted(spelled[name] for name in left if name in spelled)
    words += [CLASSES[END]] if END in left else []
    if len(words) > 1:
        return ", ".join(words[:-1]) + " or " + words[-1]
    return words[0] if words else "nothing more"


def _found(source: Source, start: int, stop: int) -> tuple[int, str]:
    """The end of what stands at `start`, and its name in a message."""
    if start >= stop:
        return start, "the end of the file" if stop == len(source.text) else "the end of the item"
    match = re.compile(r'\w[\w.]*\w|\w|"[^"\n]*"|\.\.|\*\*|//|[=!<>]=|.', re.DOTALL).match(
        source.text, start, stop
    )
    text = match.group() if match else source.text[start]
    return start + len(text), f"`{text}`"


def _unclosed(source: Source, begin: int, end: int) -> list[int]:
    """Offsets of the brackets that are open at `end`, outermost first."""
    text = _SKIP.sub(lambda m: " " * len(m.group()), source.text[begin:end])
    stack: list[int] = []
    for offset, character in enumerate(text):
        if character in OPENERS:
            stack.append(begin + offset)
        elif stack and character == OPENERS[source.text[stack[-1]]]:
            stack.pop()
    return stack


def _guess(source: Source, start: int, end: int, accepts: Sequence[str]) -> tuple[Fix, ...]:
    """A keyword that could stand here and is spelled nearly like what does."""
    lexer = load_tables().lexer
    words = [text for text, name in lexer.words.items() if name in accepts]
    text = source.text[start:end]
    near = closest(text, words) if text.isidentifier() and len(text) > 2 else None
    if near is None:
        return ()
    return (Fix(f"did you mean `{near}`?", source.span(start, end), near),)


def _advice(source: Source, error: ParseError, text: str) -> tuple[str, ...]:
    """What a reader of other languages often means by what stands here."""
    before = error.previous.text if error.previous else ""
    if text in ("&", "|", "!"):
        return ("write `and`, `or`, `not`",)
    if text == ";":
        return ("nothing separates items or clauses: leave the `;` out",)
    if text == "=" and "CMP" in error.accepts:
        return ("write `==` to compare",)
    if text in ("<", "<=", ">", ">=", "==", "!=") and "CMP" not in error.accepts and "AND" in error.accepts:
        return ("comparisons do not chain: write `a < b and b < c`",)
    if text in ("//", "/") and not before:
        return ("comments begin with `#`",)
    if text == "'":
        return ('strings are written "like this"',)
    if before == ":" and error.accepts == ("NAME",):
        return ("write `=` between a name and its value",)
    if text in CLAUSES and "EXPECT" not in error.accepts and "RBRACE" in error.accepts:
        return ("`expect` comes last in a rule or rewrite",)
    return ()


def diagnose(source: Source, error: ParseError, begin: int, stop: int) -> Diagnostic:
    """The diagnostic of a syntax error met while parsing text[begin:stop]."""
    text, start = source.text, error.start
    end, name = _found(source, start, stop)
    if start < stop and text[start] == '"' and "\n" not in text[start:end] and end == start + 1:
        stop_of_line = text.find("\n", start)
        span = source.span(start, len(text) if stop_of_line < 0 else stop_of_line)
        notes = ("a string ends on the line it begins on; there are no escapes in it",)
        return Diagnostic("KT002", "string is not closed", (Label(span, 'no `"` closes it'),), notes)
    if start < stop and text[start].isdigit() and not _NUMBER.fullmatch(text[start:end]):
        return _number(source, start, end, error)
    span = source.span(start, max(end, min(start + 1, len(text))) if start < stop else start)
    message = f"expected {expected(error.accepts)}, found {name}"
    opened = _unclosed(source, begin, start)
    word = text[start:end]
    closes = word in OPENERS.values() and bool(opened) and word != OPENERS[text[opened[-1]]]
    if opened and (start >= stop or word in ITEMS or closes) and error.accepts:
        opener = text[opened[-1]]
        labels = (
            Label(span, f"expected {expected(error.accepts)}"),
            Label(source.span(opened[-1], opened[-1] + 1), f"this `{opener}` is never closed"),
        )
        return Diagnostic("KT006", f"`{opener}` is not closed", labels)
    if start < stop and not (word[0].isalnum() or word[0] in '_"{}()[]=:,.*+-/%<>@!'):
        message = f"{name} is not part of the language"
        return Diagnostic("KT003", message, (Label(span),), _advice(source, error, word))
    fixes = _guess(source, start, end, error.accepts)
    label = Label(span, f"expected {expected(error.accepts)}")
    if len(message) > 150:
        message = f"did not expect {name} here"
    return Diagnostic("KT001", message, (label,), _advice(source, error, word), fixes)


def _number(source: Source, start: int, end: int, error: ParseError) -> Diagnostic:
    """A number with letters glued to it: mostly a misspelled unit."""
    text = source.text[start:end]
    match = re.match(r"([\d.]+)([A-Za-z]+)$", text)
    fixes: tuple[Fix, ...] = ()
    if match and "SIZE" in error.accepts:
        unit = {"k": "KiB", "m": "MiB", "g": "GiB", "t": "TiB"}.get(match[2][0].lower())
        if unit and match[2].lower() in (unit[0].lower(), unit[0].lower() + "b", unit.lower()):
            fixed = match[1] + unit
            fixes = (Fix(f"did you mean `{fixed}`?", source.span(start, end), fixed),)
    notes = ("sizes are written in KiB, MiB, GiB or TiB",)
    label = Label(source.span(start, end), f"expected {expected(error.accepts)}")
    return Diagnostic("KT003", f"`{text}` is neither a number nor a size", (label,), notes, fixes)
