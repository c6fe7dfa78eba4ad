"""Reads a case of this folder and runs it: what the compiler says of it, as a person would see it."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from ktc.grammar import Diagnostic, check
from ktc.grammar.render import render, summary

FOLDER = Path(__file__).parent
_HEADER = re.compile(r"# (define|model|ok)(?:: *(.*))?$")


@dataclass(frozen=True)
class Case:
    """One `.kt` file: the code it is about, and what its header comments ask for."""

    path: Path
    code: str
    model: str | None
    definitions: dict[str, str]
    ok: bool

    @property
    def expected(self) -> Path:
        """The file with the expected text."""
        return self.path.with_suffix(".txt")


def read_case(path: Path) -> Case:
    """The case at a path named `kt201_what.kt`."""
    definitions: dict[str, str] = {}
    model, ok = None, False
    for line in path.read_text("utf-8").splitlines():
        match = _HEADER.match(line)
        if match is None:
            break
        word, value = match.groups()
        if word == "define":
            name, _, given = value.partition("=")
            definitions[name] = given
        elif word == "model":
            model = value
        else:
            ok = True
    return Case(path, path.name[:5].upper(), model, definitions, ok)


def all_cases() -> list[Case]:
    """Every case of this folder, in order."""
    return [read_case(path) for path in sorted(FOLDER.glob("kt*.kt"))]


def run_case(case: Case) -> tuple[Sequence[Diagnostic], str]:
    """The diagnostics of a case and their text, with the file named relative to this folder.

    The current directory must be this folder.
    """
    if case.model is None:
        result = check(case.path.name, params=case.definitions, text=False)
        diagnostics, sources = result.diagnostics, result.sources
    else:
        from models import compile_case  # those cases need torch; the others must not import it

        diagnostics, sources = compile_case(case.path.name, case.model, case.definitions)
    shown = "\n".join(render(diagnostic, sources) for diagnostic in diagnostics)
    return diagnostics, shown + ("\n" + summary(diagnostics) + "\n" if diagnostics else "")
