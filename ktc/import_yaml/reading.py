"""Reads a rule file: YAML to `RuleDef`s that know where they stand. Nothing in the file is executed or imported."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, NoReturn

import yaml

from ktc.grammar.diagnostics import Diagnostic, Fix, KtError, Label, Severity
from ktc.grammar.source import Source
from ktc.grammar.suggest import closest
from ktc.grammar.tree import Span

LARGEST = 2**20  # bytes of a rule file
MOST_VALUES = 100_000  # values in it, aliases written out
DEEPEST = 40  # levels of nesting
LONGEST_PATTERN = 2000  # characters of a regular expression


@dataclass(frozen=True, slots=True)
class Value:
    """A value of the file, where it stands, and where its key does."""

    value: Any
    span: Span
    key_span: Span


@dataclass(frozen=True)
class RuleDef:
    """One rule.

    Attributes:
        number: its place in the file, from 0.
        span: its first line.
        pattern: `match.name`, compiled, for `search`; None without one.
        match_class: `match.class`, a dotted path; None without one.
        replace_class: `replace.class`, a dotted path or "default".
        kwargs: `replace.kwargs` by name.
        recursive: whether the modules inside are looked at too.
        spans: where "name", "class", "replace" and "recursive" stand.
    """

    number: int
    span: Span
    pattern: re.Pattern[str] | None
    match_class: str | None
    replace_class: str
    kwargs: Mapping[str, Value]
    recursive: bool
    spans: Mapping[str, Span] = field(default_factory=dict)

    @property
    def line(self) -> int:
        """The line of the file on which it begins."""
        return self.span.line

    @property
    def match_span(self) -> Span:
        """What to point at when its match is at fault."""
        return self.spans.get("name") or self.spans.get("class") or self.span

    def kwarg(self, name: str, default: object = None) -> object:
        """The value of a kwarg."""
        found = self.kwargs.get(name)
        return default if found is None else found.value


@dataclass(frozen=True)
class RuleFile:
    """A rule file as read.

    Attributes:
        source: its text.
        rules: the rules that KTransformers could apply, in order.
        count: how many the file has.
        diagnostics: what is wrong with the others, and what is ignored in these.
    """

    source: Source
    rules: tuple[RuleDef, ...]
    count: int
    diagnostics: tuple[Diagnostic, ...]


def read_rules(data: bytes, path: str) -> RuleFile:
    """Reads the bytes of a rule file.

    Raises:
        KtError: KT701 when it is no rule file at all: no UTF-8, no YAML, not a list of rules, too large.
    """
    source = Source(path, _text(data, path))
    root = _compose(source)
    if root is None or not isinstance(root, yaml.SequenceNode) or not root.value:
        span = source.span(0, 0) if root is None else _first_line(root, source)
        what = "is empty" if root is None else "holds no list of rules"
        fix = Fix("begin each rule with `- match:`")
        raise _refuse(source, f"the file {what}", span, fixes=(fix,))
    reader = _Reader(source)
    rules = [rule for n, node in enumerate(root.value) if (rule := reader.rule(n, node)) is not None]
    return RuleFile(source, tuple(rules), len(root.value), tuple(reader.found))


def _refuse(
    source: Source, message: str, span: Span, notes: tuple[str, ...] = (), fixes: tuple[Fix, ...] = ()
) -> KtError:
    return KtError([Diagnostic("KT701", message, (Label(span),), notes, fixes)], {source.path: source.text})


def _text(data: bytes, path: str) -> str:
    nothing = Source(path, "")
    if len(data) > LARGEST:
        raise _refuse(nothing, f"the file is larger than {LARGEST // 2**20} MiB", nothing.span(0, 0))
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data[: error.start].count(b"\n") + 1
        message = (
            f"the file is not UTF-8 text: byte {error.start}, on line {line}, is {data[error.start]:#04x}"
        )
        raise _refuse(nothing, message, nothing.span(0, 0)) from None
    return text.replace("\r\n", "\n").replace("\r", "\n")


def _compose(source: Source) -> yaml.Node | None:
    try:
        root: yaml.Node | None = yaml.compose(source.text, yaml.SafeLoader)
        if root is not None:
            _bound(root)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        at = min(mark.index if mark is not None else 0, len(source.text))
        message = "the file is not YAML: " + (error.problem or error.context or "it cannot be read")
        notes = ("YAML indents with blanks, not tabs",) if source.text[at : at + 1] == "\t" else ()
        raise _refuse(source, message, source.span(at, min(at + 1, len(source.text))), notes) from None
    except yaml.YAMLError as error:  # characters that YAML does not allow
        message = "the file is not YAML: " + str(error).split("\n")[0]
        raise _refuse(source, message, source.span(0, 0)) from None
    except (_TooMuch, RecursionError) as error:
        what = str(error) if isinstance(error, _TooMuch) else f"nested deeper than {DEEPEST} levels"
        raise _refuse(source, f"the file is {what}", source.span(0, 0)) from None
    return root


class _TooMuch(Exception):
    pass


def _bound(root: yaml.Node) -> None:
    """Refuses what would grow without measure when it is read: aliases of aliases, circles, deep nesting."""
    sizes: dict[int, int] = {}

    def size(node: yaml.Node, depth: int, above: frozenset[int]) -> int:
        if id(node) in above:
            raise _TooMuch("an alias that holds itself")
        if depth > DEEPEST:
            raise _TooMuch(f"nested deeper than {DEEPEST} levels")
        known = sizes.get(id(node))
        if known is None:
            inner = above | {id(node)}
            parts: list[yaml.Node] = []
            if isinstance(node, yaml.MappingNode):
                parts = [part for pair in node.value for part in pair]
            elif isinstance(node, yaml.SequenceNode):
                parts = list(node.value)
            known = sizes[id(node)] = 1 + sum(size(part, depth + 1, inner) for part in parts)
        if known > MOST_VALUES:
            raise _TooMuch(f"more than {MOST_VALUES:,} values once its aliases are written out")
        return known

    size(root, 0, frozenset())


def _span(node: yaml.Node, source: Source) -> Span:
    end = node.end_mark.index
    text = source.text[node.start_mark.index : end]
    return source.span(node.start_mark.index, node.start_mark.index + max(1, len(text.rstrip())))


def _first_line(node: yaml.Node, source: Source) -> Span:
    start = node.start_mark.index
    stop = source.text.find("\n", start)
    line = source.text[start : stop if stop >= 0 else len(source.text)]
    return source.span(start, start + max(1, len(line.split(" #")[0].rstrip())))


_KEYS = {"": ("match", "replace", "recursive"), "match": ("name", "class"), "replace": ("class", "kwargs")}


class _Unusable(Exception):
    """A rule that KTransformers would stop at."""


class _Reader:
    def __init__(self, source: Source) -> None:
        self._source = source
        self._values = yaml.SafeLoader("")
        self.found: list[Diagnostic] = []

    def rule(self, number: int, node: yaml.Node) -> RuleDef | None:
        try:
            return self._rule(number, node)
        except _Unusable:
            return None

    def _rule(self, number: int, node: yaml.Node) -> RuleDef:
        span = _first_line(node, self._source)
        rule = self._mapping(node, "", "a rule")
        for key in ("match", "replace"):
            if key not in rule:
                self._stop(f"the rule has no `{key}`", span)
        match = self._mapping(rule["match"][0], "match", "`match`")
        replace = self._mapping(rule["replace"][0], "replace", "`replace`")
        if not match:
            self._stop("`match` has neither `name` nor `class`", _span(rule["match"][0], self._source))
        spans = {key: _span(value, self._source) for key, (value, _) in match.items()}
        if "class" in replace:
            spans["replace"] = _span(replace["class"][0], self._source)
        pattern = self._pattern(match["name"][0]) if "name" in match else None
        match_class = self._string(match["class"][0], "`match.class`") if "class" in match else None
        replace_class = (
            self._string(replace["class"][0], "`replace.class`") if "class" in replace else "default"
        )
        kwargs: dict[str, Value] = {}
        if "kwargs" in replace:
            for key, (value, key_span) in self._mapping(replace["kwargs"][0], "kwargs", "`kwargs`").items():
                kwargs[key] = Value(self._value(value), _span(value, self._source), key_span)
        recursive = True
        if "recursive" in rule:
            spans["recursive"] = _span(rule["recursive"][0], self._source)
            recursive = self._truth(rule["recursive"][0])
        return RuleDef(number, span, pattern, match_class, replace_class, kwargs, recursive, spans)

    def _stop(self, message: str, span: Span, notes: tuple[str, ...] = (), code: str = "KT702") -> NoReturn:
        """Reports a rule that cannot be used."""
        self._note(code, message, span, (*notes, "KTransformers stops at this rule; it is left out here"))
        raise _Unusable

    def _note(
        self, code: str, message: str, span: Span, notes: tuple[str, ...] = (), fixes: tuple[Fix, ...] = ()
    ) -> None:
        self.found.append(Diagnostic(code, message, (Label(span),), notes, fixes, Severity.WARNING))

    def _mapping(self, node: yaml.Node, of: str, what: str) -> dict[str, tuple[yaml.Node, Span]]:
        """The entries of a mapping by key; keys that mean nothing, or stand twice, are reported."""
        if not isinstance(node, yaml.MappingNode):
            self._stop(f"{what} is {_kind(node)}, not a mapping", _span(node, self._source))
        own = {id(key) for key, _ in node.value}
        try:
            self._values.flatten_mapping(node)
        except yaml.YAMLError as error:
            self._stop(f"{what} cannot be read: {error}".split("\n")[0], _span(node, self._source))
        known = _KEYS.get(of)
        entries: dict[str, tuple[yaml.Node, Span]] = {}
        written: set[str] = set()
        for key_node, value in node.value:
            span = _span(key_node, self._source)
            key = str(self._value(key_node))
            if known is not None and key not in known:
                near = closest(key, known)
                fixes = (Fix(f"did you mean `{near}`?", span, near),) if near else ()
                self._note("KT702", f"`{key}` means nothing in {what}", span, ("it is ignored",), fixes)
                continue
            if key in written:
                self._note("KT702", f"`{key}` stands twice in {what}", span, ("the later one counts",))
            if id(key_node) in own:  # others come from a merge key, which the mapping may overrule
                written.add(key)
            entries[key] = (value, span)
        return entries

    def _value(self, node: yaml.Node) -> Any:
        try:
            return self._values.construct_object(node, deep=True)
        except (yaml.YAMLError, ValueError, TypeError, ArithmeticError, LookupError, AttributeError) as error:
            problem = getattr(error, "problem", None) or error
            self._stop(f"the value cannot be read: {problem}", _span(node, self._source))

    def _string(self, node: yaml.Node, what: str) -> str:
        value = self._value(node)
        if not isinstance(value, str) or not value.strip():
            self._stop(f"{what} is {_kind(node)}, not a dotted path", _span(node, self._source))
        return str(value).strip()

    def _pattern(self, node: yaml.Node) -> re.Pattern[str]:
        value, span = self._value(node), _span(node, self._source)
        if not isinstance(value, str):
            self._stop(f"`match.name` is {_kind(node)}, not a regular expression", span)
        if len(value) > LONGEST_PATTERN:
            self._stop(f"`match.name` is longer than {LONGEST_PATTERN} characters", span)
        try:
            return re.compile(value)
        except (re.error, OverflowError, RecursionError) as error:
            self._stop(f"`match.name` is no regular expression: {error}", span, code="KT703")

    def _truth(self, node: yaml.Node) -> bool:
        value = self._value(node)
        if not isinstance(value, bool):
            notes = (f"KTransformers takes it for {str(bool(value)).lower()}",)
            fix = Fix("write `recursive: False` or `recursive: True`, without quotes")
            span = _span(node, self._source)
            self._note("KT702", f"`recursive` is {_kind(node)}, not true or false", span, notes, (fix,))
        return bool(value)


def _kind(node: yaml.Node) -> str:
    if isinstance(node, yaml.MappingNode):
        return "a mapping"
    if isinstance(node, yaml.SequenceNode):
        return "a list"
    names = {"null": "empty", "bool": "a truth value", "int": "a number", "float": "a number"}
    return names.get(str(node.tag).rpartition(":")[2], "a text")
