"""Loads a `.kt` program: reads and merges includes, checks, sets parameters, and hands out `Rules`."""

from __future__ import annotations

import os
import posixpath
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from ktc.grammar import tree
from ktc.grammar.checking import check_program
from ktc.grammar.diagnostics import Diagnostic, Fix, KtError, Label, Severity
from ktc.grammar.parser import parse
from ktc.grammar.rules import Rules
from ktc.grammar.suggest import closest
from ktc.grammar.tree import Span

TEXT = "<text>"
LARGEST = 4 * 2**20  # bytes of one file; a rule file of megabytes is no rule file
FOLLOWING = frozenset({"KT102", "KT103", "KT104", "KT106", "KT108", "KT190", "KT302"})
_HERE = os.path.dirname(__file__)
_NOWHERE = (0, 0, 1, 1, 1, 1)


@dataclass(frozen=True)
class CheckResult:
    """What checking found. `rules` is None when there are errors."""

    rules: Rules | None
    diagnostics: tuple[Diagnostic, ...]
    sources: Mapping[str, str]

    @property
    def errors(self) -> tuple[Diagnostic, ...]:
        """The diagnostics that stop the compiler."""
        return tuple(d for d in self.diagnostics if d.severity is Severity.ERROR)


def is_text(source: str | os.PathLike[str]) -> bool:
    """Whether a string is a program rather than the path of one: it has a newline or a brace, or is empty."""
    if isinstance(source, os.PathLike):
        return False
    return "\n" in source or "{" in source or not source.strip() or source.lstrip().startswith("#")


@dataclass
class _Merged:
    """Files read so far, in order."""

    files: list[tree.File] = field(default_factory=list)
    sources: dict[str, str] = field(default_factory=dict)
    diagnostics: list[Diagnostic] = field(default_factory=list)
    items: list[tree.Item] = field(default_factory=list)
    done: set[str] = field(default_factory=set)


def std_files() -> list[str]:
    """The rule libraries shipped with the package, as an `include` names them."""
    return sorted(f"std/{name}" for name in os.listdir(os.path.join(_HERE, "std")) if name.endswith(".kt"))


def _read(path: str) -> str:
    """The text at a path; `std/...` is the package's. Raises OSError, ValueError (no UTF-8, too large)."""
    where = os.path.join(_HERE, path) if path.startswith("std/") else path
    with open(where, "rb") as file:
        data = file.read(LARGEST + 1)
    if len(data) > LARGEST:
        raise ValueError(f"larger than {LARGEST // 2**20} MiB")
    return data.decode("utf-8").replace("\r\n", "\n").replace("\r", "\n")


def _unreadable(path: str, error: Exception, span: Span) -> Diagnostic:
    reason = {
        FileNotFoundError: "there is no such file",
        IsADirectoryError: "it is a folder",
        UnicodeDecodeError: "it is not UTF-8 text",
    }.get(type(error)) or (error.strerror if isinstance(error, OSError) else str(error))
    fixes: tuple[Fix, ...] = ()
    notes: tuple[str, ...] = ()
    if path.startswith("std/"):
        notes = ("shipped with ktc: " + ", ".join(std_files()),)
        if near := closest(path, std_files()):
            fixes = (Fix(f'did you mean "{near}"?', span, f'"{near}"'),)
    return Diagnostic("KT009", f"cannot read `{path}`: {reason}", (Label(span),), notes, fixes)


def _merge(merged: _Merged, path: str, text: str, chain: tuple[str, ...]) -> None:
    """Parses one file and, in place of each `include`, what it includes."""
    merged.sources[path] = text
    file, problems = parse(text, path)
    merged.diagnostics += problems
    for item in file.items:
        if isinstance(item, tree.Include):
            _include(merged, path, item, (*chain, path))
        else:
            merged.items.append(item)
    merged.files.append(file)
    merged.done.add(path)


def _include(merged: _Merged, path: str, item: tree.Include, chain: tuple[str, ...]) -> None:
    wanted = item.path.value
    if wanted.startswith("std/"):
        target = posixpath.normpath(wanted)
    elif path.startswith("std/"):
        target = posixpath.normpath(posixpath.join(posixpath.dirname(path), wanted))
    elif path == TEXT:
        target = posixpath.normpath(wanted)
    else:
        target = posixpath.normpath(posixpath.join(posixpath.dirname(path), wanted))
    if target in chain:
        links = [
            f"`{a}` includes `{b}`"
            for a, b in zip(chain[chain.index(target) :], [*chain[1:], target], strict=False)
        ]
        label = Label(item.path.span, "this file is already being read")
        merged.diagnostics.append(Diagnostic("KT010", f"`{target}` includes itself", (label,), tuple(links)))
        return
    if target in merged.done:
        return
    try:
        text = _read(target)
    except (OSError, ValueError) as error:
        merged.diagnostics.append(_unreadable(wanted, error, item.path.span))
        merged.done.add(target)
        return
    _merge(merged, target, text, chain)


def check(
    source: str | os.PathLike[str],
    *,
    params: Mapping[str, Any] | None = None,
    text: bool | None = None,
    path: str | None = None,
) -> CheckResult:
    """Everything that can be said of a program without a model.

    Args:
        source: a path, or the program itself (see `is_text`).
        params: values for its parameters; a string is read as `-D NAME=VALUE` would be.
        text: True when `source` is the program, False when it is a path; None to tell from its looks.
        path: what messages call a program given as a text; its includes are looked for beside it.
    """
    merged = _Merged()
    if is_text(source) if text is None else text:
        name, program = path or TEXT, os.fspath(source).replace("\r\n", "\n").replace("\r", "\n")
    else:
        name = posixpath.normpath(os.fspath(source))
        try:
            program = _read(name)
        except (OSError, ValueError) as error:
            problem = replace(_unreadable(name, error, Span(name, *_NOWHERE)), labels=(), fixes=())
            return CheckResult(None, (problem,), {})
    _merge(merged, name, program, ())
    rules, problems = check_program(name, merged.items, params or {})
    if merged.diagnostics:  # what could not be read may declare what seems to be missing
        problems = [problem for problem in problems if problem.code not in FOLLOWING]
    found = [*merged.diagnostics, *problems]
    order = {file: index for index, file in enumerate([name, *merged.sources])}
    found.sort(
        key=lambda d: (order.get(d.labels[0].span.file, 0), d.labels[0].span.start) if d.labels else (0, 0)
    )
    if any(d.severity is Severity.ERROR for d in found):
        return CheckResult(None, tuple(found), merged.sources)
    complete = replace(rules, sources=merged.sources, files=tuple(merged.files))
    return CheckResult(complete, tuple(found), merged.sources)


def load(
    source: str | os.PathLike[str], *, params: Mapping[str, Any] | None = None, text: bool | None = None
) -> Rules:
    """The rules of a program; see `check` for the arguments. Raises KtError with every diagnostic found."""
    found = check(source, params=params, text=text)
    if found.rules is None:
        raise KtError(found.diagnostics, found.sources)
    return found.rules


def as_rules(source: str | os.PathLike[str] | Rules, *, params: Mapping[str, Any] | None = None) -> Rules:
    """Rules as they are, or those of a path or text. Raises KtError."""
    if isinstance(source, Rules):
        if params:
            raise TypeError("parameters are set when rules are loaded; these are loaded already")
        return source
    return load(source, params=params)
