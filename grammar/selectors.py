"""Selectors: which modules of a model a selector names, and why it names none."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import lru_cache
from typing import TYPE_CHECKING, Any

from ktc.grammar import tree
from ktc.grammar.evaluate import EvaluationError, count_range, evaluate
from ktc.grammar.sites import Site
from ktc.grammar.values import SiteSet

if TYPE_CHECKING:
    from ktc.grammar.rules import Rules

ANY_DEPTH = "**"
Component = Callable[[str], bool]


class Matcher:
    """A compiled selector.

    Paths are anchored: the whole dotted name must match. `*` is one component (globs work inside one,
    `*_proj`), `**` any number of them, none included, so that `**` also matches the root "". `layers[3..17]`
    is a component `layers` and then a number from 3 to 17; `[*]` any number; a negative number counts from
    the end of the decoder layers, `[-1]` being the last. `: Class` asks for the class or one derived from it.
    """

    def __init__(self, selector: tree.Selector, predicate: Callable[[Site], bool]) -> None:
        self.selector = selector
        self._predicate = predicate

    def match(self, site: Site) -> bool:
        """Whether the selector names this module."""
        return self._predicate(site)

    def select(self, sites: Iterable[Site]) -> list[Site]:
        """The modules it names, in their order."""
        return [site for site in sites if self._predicate(site)]


@lru_cache(maxsize=65536)
def components(name: str) -> tuple[str, ...]:
    """The parts of a dotted name; none for the root."""
    return tuple(name.split(".")) if name else ()


def _glob(text: str) -> Component:
    if text == "*":
        return lambda component: True
    if "*" not in text:
        return lambda component: component == text
    pattern = re.compile(".*".join(re.escape(piece) for piece in re.split(r"\*+", text)), re.DOTALL)
    return lambda component: pattern.fullmatch(component) is not None


def index_range(index: tree.Expr, env: Mapping[str, Any]) -> tuple[int | float | None, int | float | None]:
    """Both ends (included) of the numbers that `[index]` admits, negative ones made positive.

    Raises EvaluationError: a bound is unknown, or negative where the number of layers is not known.
    """
    if isinstance(index, tree.Name) and index.id == "*":
        return None, None

    def value(expr: tree.Expr) -> Any:
        found = evaluate(expr, env, symbols=False)
        if isinstance(found, int) and not isinstance(found, bool) and found < 0:
            layers = env.get("layers")
            if not isinstance(layers, int):
                raise EvaluationError(expr.span, "counting from the end needs a model with decoder layers")
            return layers + found
        return found

    return count_range(index, value)


def _numeric(index: tree.Expr, env: Mapping[str, Any]) -> Component:
    low, high = index_range(index, env)

    def test(component: str) -> bool:
        if not component.isdecimal():
            return False
        number = int(component)
        return (low is None or low <= number) and (high is None or number <= high)

    return test


def path_steps(segments: Sequence[tree.Segment], env: Mapping[str, Any]) -> list[Component | None]:
    """One test a component; None stands for `**`. Raises EvaluationError for an index without a value."""
    steps: list[Component | None] = []
    for segment in segments:
        steps.append(None if segment.text == ANY_DEPTH else _glob(segment.text))
        if segment.index is not None:
            steps.append(_numeric(segment.index, env))
    return steps


def match_path(steps: Sequence[Component | None], parts: Sequence[str]) -> bool:
    """Whether the steps match all the parts; linear in len(steps) * len(parts)."""
    reached = {0}
    for index in range(len(parts) + 1):
        frontier = sorted(reached)
        for step in frontier:  # `**` may match nothing
            while step < len(steps) and steps[step] is None:
                step += 1
                reached.add(step)
        if index == len(parts):
            return len(steps) in reached
        following = set()
        for step in reached:
            if step < len(steps):
                test = steps[step]
                if test is None:
                    following.add(step)
                elif test(parts[index]):
                    following.add(step + 1)
        reached = following
        if not reached:
            return False
    return False


def compile_selector(
    selector: tree.Selector | SiteSet,
    rules: Rules | None = None,
    *,
    layers: int | None = None,
    config: object = None,
) -> Matcher:
    """Compiles a selector, or a set that an expression named (`bytes(@experts)`).

    Args:
        selector: the selector.
        rules: where `@name` and the names in `[index]` are looked up.
        layers, config: of the model, for indices that use them (`[-1]`, `[layers - 4 ..]`).

    Raises:
        EvaluationError: an index has no value, a set is unknown, a regular expression is none.
    """
    if isinstance(selector, SiteSet):
        if rules is None:
            raise TypeError("a set has a meaning only with the rules that declare it")
        selector = rules.sets[selector.name]
    env = {"layers": layers} if rules is None else rules.values(layers=layers, config=config)
    return Matcher(selector, _predicate(selector, rules.sets if rules else {}, env, ()))


def _predicate(
    selector: tree.Selector,
    sets: Mapping[str, tree.Selector],
    env: Mapping[str, Any],
    within: tuple[str, ...],
) -> Callable[[Site], bool]:
    if isinstance(selector, tree.PathSelector):
        steps = path_steps(selector.segments, env)
        name = selector.class_name.id if selector.class_name else None
        if name is None:
            return lambda site: match_path(steps, components(site.name))
        return lambda site: name in site.classes and match_path(steps, components(site.name))
    if isinstance(selector, tree.RegexSelector):
        try:
            pattern = re.compile(selector.pattern)
        except (re.error, OverflowError, RecursionError) as error:
            raise EvaluationError(selector.span, f"not a regular expression: {error}") from None
        return lambda site: pattern.fullmatch(site.name) is not None
    if isinstance(selector, tree.NamedSelector):
        if selector.name not in sets or selector.name in within:
            raise EvaluationError(selector.span, f"unknown set `@{selector.name}`")
        return _predicate(sets[selector.name], sets, env, (*within, selector.name))
    if isinstance(selector, tree.NotSelector):
        inner = _predicate(selector.operand, sets, env, within)
        return lambda site: not inner(site)
    parts = [_predicate(operand, sets, env, within) for operand in selector.operands]
    if selector.op == "and":
        return lambda site: all(part(site) for part in parts)
    return lambda site: any(part(site) for part in parts)


def __getattr__(name: str) -> Any:
    """`explain` and `range_problems` are known here too; their module imports this one."""
    if name in ("explain", "range_problems"):
        from ktc.grammar import explain

        return getattr(explain, name)
    raise AttributeError(name)
