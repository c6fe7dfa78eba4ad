"""Why a selector names nothing: how far it got, what stands there instead, and what was probably meant."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from typing import Any

from ktc.grammar import tree
from ktc.grammar.diagnostics import Diagnostic, Fix, Label
from ktc.grammar.evaluate import EvaluationError
from ktc.grammar.rules import Rules
from ktc.grammar.selectors import compile_selector, components, index_range, match_path, path_steps
from ktc.grammar.sites import Site
from ktc.grammar.suggest import closest

DEAD = "rule matches nothing"
SHOWN = 6  # names listed in a note


def explain(
    selector: tree.Selector,
    rules: Rules,
    sites: Iterable[Site],
    *,
    layers: int | None = None,
    config: object = None,
) -> Diagnostic | None:
    """Why a selector names none of the sites; None when it names some.

    KT201 with the part that fails, KT205 for a class that the model lacks, KT206 for an index outside it.
    `layers` is counted from the sites when not given.
    """
    return _Explainer(rules, list(sites), layers, config).explain(selector)


def range_problems(
    selector: tree.Selector,
    rules: Rules,
    sites: Iterable[Site],
    *,
    layers: int | None = None,
    config: object = None,
) -> list[Diagnostic]:
    """KT206 for each index of a selector that reaches beyond the modules there are."""
    explainer = _Explainer(rules, list(sites), layers, config)
    return [found for path in _paths(selector) for found in explainer.ranges(path)]


def _paths(selector: tree.Selector) -> list[tree.PathSelector]:
    """The paths written in a selector itself (a named set is checked where it is declared)."""
    if isinstance(selector, tree.PathSelector):
        return [selector]
    if isinstance(selector, tree.NotSelector):
        return _paths(selector.operand)
    if isinstance(selector, tree.BoolSelector):
        return [path for operand in selector.operands for path in _paths(operand)]
    return []


def _plural(count: int, noun: str = "module") -> str:
    return f"{count} {noun}" + ("" if count == 1 else "s")


def _listed(names: Iterable[str]) -> str:
    found = sorted(set(names), key=lambda n: (len(n), n) if n.isdecimal() else (0, n))
    more = f" and {len(found) - SHOWN} more" if len(found) > SHOWN else ""
    return ", ".join(f"`{name}`" for name in found[:SHOWN]) + more


class _Explainer:
    def __init__(self, rules: Rules, sites: Sequence[Site], layers: int | None, config: object) -> None:
        self._rules = rules
        self._sites = sites
        counted = max((site.layer + 1 for site in sites if site.layer is not None), default=0)
        self._layers = layers if layers is not None else counted or None
        self._config = config
        self._env: dict[str, Any] = rules.values(layers=self._layers, config=config)

    def _count(self, selector: tree.Selector) -> int:
        matcher = compile_selector(selector, self._rules, layers=self._layers, config=self._config)
        return sum(matcher.match(site) for site in self._sites)

    def explain(self, selector: tree.Selector) -> Diagnostic | None:
        """See the function of this name."""
        try:
            if self._count(selector):
                return None
            return self._why(selector)
        except EvaluationError as error:
            notes = (error.hint,) if error.hint else ()
            return Diagnostic("KT119", error.message, (Label(error.span),), notes)

    def _why(self, selector: tree.Selector) -> Diagnostic:
        if isinstance(selector, tree.PathSelector):
            return self._path(selector)
        if isinstance(selector, tree.RegexSelector):
            return self._regex(selector)
        if isinstance(selector, tree.NamedSelector):
            inner = self._why(self._rules.sets[selector.name])
            label = Label(selector.span, f"the set `@{selector.name}` is empty")
            return Diagnostic(inner.code, inner.message, (label, *inner.labels), inner.notes, inner.fixes)
        if isinstance(selector, tree.NotSelector):
            return Diagnostic("KT201", DEAD, (Label(selector.span, "every module is excluded"),))
        return self._several(selector)

    def _several(self, selector: tree.BoolSelector) -> Diagnostic:
        counts = [self._count(operand) for operand in selector.operands]
        for operand, count in zip(selector.operands, counts, strict=True):
            if not count:
                return self._why(operand)
        labels = [Label(selector.span, "no module fulfils all of this")]
        labels += [
            Label(operand.span, _plural(count) + (" match" if count > 1 else " matches"))
            for operand, count in zip(selector.operands, counts, strict=True)
        ]
        return Diagnostic("KT201", DEAD, tuple(labels))

    def _regex(self, selector: tree.RegexSelector) -> Diagnostic:
        pattern = re.compile(selector.pattern)
        inside = [site.name for site in self._sites if pattern.search(site.name)]
        label = Label(selector.span, "no module's whole name matches")
        if not inside:
            return Diagnostic("KT201", DEAD, (label,), ("no name contains a match either",))
        notes = (
            f"it matches inside {_plural(len(inside), 'name')} (`{inside[0]}`), and must match all of it",
        )
        fix = Fix(f'did you mean `re".*{selector.pattern}.*"`?', selector.span, f're".*{selector.pattern}.*"')
        return Diagnostic("KT201", DEAD, (label,), notes, (fix,))

    def _path(self, selector: tree.PathSelector) -> Diagnostic:
        steps = path_steps(selector.segments, self._env)
        on_path = [site for site in self._sites if match_path(steps, components(site.name))]
        if on_path and selector.class_name is not None:
            return self._class(selector, selector.class_name, on_path)
        for found in self.ranges(selector):
            return found
        return self._prefix(selector, steps)

    def _class(self, selector: tree.PathSelector, name: tree.Name, on_path: Sequence[Site]) -> Diagnostic:
        """The path names modules, and none of them is of the class."""
        everywhere = all(segment.text == "**" for segment in selector.segments)
        classes = {cls for site in self._sites for cls in site.classes}
        own = sorted({site.classes[0] for site in on_path if site.classes})
        if everywhere or (name.id not in classes and len(own) > SHOWN):
            near = closest(name.id, classes)
            label = Label(name.span, "no module of the model has this class")
            if near is not None:
                fixes: tuple[Fix, ...] = (Fix(f"did you mean `{near}`?", name.span, near),)
                return Diagnostic("KT205", f"unknown class `{name.id}`", (label,), (), fixes)
            return Diagnostic("KT205", f"unknown class `{name.id}`", (label,), (f"classes: {_listed(own)}",))
        matched = f"{_plural(len(on_path))} match{'es' if len(on_path) == 1 else ''} the path"
        note = f"{matched}; {'its' if len(on_path) == 1 else 'their'} class is {own[0] if own else 'unknown'}"
        fixes = ()
        if len(own) == 1:
            path = "".join(
                ("." if i else "") + _spelled(segment, self._rules)
                for i, segment in enumerate(selector.segments)
            )
            fixes = (Fix(f"write `{path}: {own[0]}`", name.span, own[0]),)
        else:
            note = f"{matched}; {'its' if len(on_path) == 1 else 'their'} classes are {_listed(own)}"
        label = Label(name.span, "no module here has this class")
        return Diagnostic("KT201", DEAD, (label,), (note,), fixes)

    def ranges(self, selector: tree.PathSelector) -> list[Diagnostic]:
        """KT206 for the indices of a path that reach beyond the modules there are."""
        found = []
        for position, segment in enumerate(selector.segments):
            if segment.index is None or (isinstance(segment.index, tree.Name) and segment.index.id == "*"):
                continue
            before = path_steps(
                [*selector.segments[:position], tree.Segment(segment.span, segment.text)], self._env
            )
            numbers = self._numbers(before)
            try:
                low, high = index_range(segment.index, self._env)
            except EvaluationError as error:
                found.append(Diagnostic("KT119", error.message, (Label(error.span),)))
                continue
            if not numbers:
                continue
            last = max(numbers)
            beyond = (high is not None and high > last) or (low is not None and (low > last or low < 0))
            if beyond:
                text = f"`{segment.text}` goes from {min(numbers)} to {last}"
                message = f"index outside the model: `{_index_text(segment.index, low, high)}`"
                found.append(Diagnostic("KT206", message, (Label(segment.index.span, text),)))
        return found

    def _numbers(self, steps: Sequence[Any]) -> set[int]:
        """The numeric components that follow modules matched by `steps`."""
        found = set()
        for site in self._sites:
            parts = components(site.name)
            for length, part in enumerate(parts):
                if part.isdecimal() and match_path(steps, parts[:length]):
                    found.add(int(part))
        return found

    def _prefix(self, selector: tree.PathSelector, steps: Sequence[Any]) -> Diagnostic:
        """The longest beginning of the path that names modules, and what they contain."""
        prefixes = {
            parts[:n] for parts in (components(s.name) for s in self._sites) for n in range(len(parts) + 1)
        }
        for length in range(len(selector.segments) - 1, -1, -1):
            head = path_steps(selector.segments[:length], self._env)
            reached = [parts for parts in prefixes if match_path(head, parts)]
            if reached:
                break
        wrong = selector.segments[length]
        inside = {
            parts[len(at)]
            for parts in prefixes
            for at in reached
            if parts[: len(at)] == at and len(parts) > len(at)
        }
        if length and selector.segments[length - 1].text == "**":
            inside = {part for parts in prefixes for part in parts}
        names = {name for name in inside if not name.isdecimal()}
        if wrong.text in inside and wrong.index is not None:
            label = Label(wrong.span, f"`{wrong.text}` has no module of this number")
            return Diagnostic("KT201", DEAD, (label,))
        where = (
            "the model has" if not length or selector.segments[length - 1].text == "**" else "inside there is"
        )
        label = Label(wrong.span, "no module here has this name")
        near = closest(wrong.text, names)
        done = "".join(
            ("." if i else "") + _spelled(s, self._rules) for i, s in enumerate(selector.segments[:length])
        )
        notes = (
            [f"{_plural(len(reached))} match{'es' if len(reached) == 1 else ''} `{done}`"] if length else []
        )
        notes.append(f"{where} {_listed(names)}" if names else "inside there are only numbers: write `[*]`")
        if not inside:
            notes[-1] = "there is nothing inside"
        fixes = (Fix(f"did you mean `{near}`?", wrong.span, near),) if near else ()
        return Diagnostic("KT201", DEAD, (label,), tuple(notes), fixes)


def _spelled(segment: tree.Segment, rules: Rules) -> str:
    """A segment as it is written in the file."""
    text = rules.sources.get(segment.span.file)
    return text[segment.span.start : segment.span.end] if text is not None else segment.text


def _index_text(index: tree.Expr, low: float | None, high: float | None) -> str:
    if isinstance(index, tree.RangeExpr):
        return f"{'' if low is None else low}..{'' if high is None else high}"
    return str(low)
