"""Whatever a program says, checking and explaining it end in diagnostics, never in an exception."""

from __future__ import annotations

from hypothesis import HealthCheck, given, settings
from ktc.grammar import check
from ktc.grammar.catalogue import codes
from ktc.grammar.evaluate import EvaluationError
from ktc.grammar.render import render
from ktc.grammar.selectors import compile_selector, explain, range_problems
from ktc.grammar.sites import Site
from programs import programs, selectors

CODES = codes()
SITES = [
    Site("", ("Model",)),
    Site("model", ("Inner",)),
    Site("model.layers", ("ModuleList",)),
    *(Site(f"model.layers.{i}.q_proj", ("Linear", "Module"), layer=i) for i in range(4)),
]


@settings(max_examples=150, deadline=None, suppress_health_check=list(HealthCheck))
@given(programs)
def test_a_random_program_gets_rules_or_diagnostics(text: str) -> None:
    result = check(text, text=True)
    assert (result.rules is None) == bool(result.errors)
    for diagnostic in result.diagnostics:
        assert diagnostic.code in CODES
        assert render(diagnostic, result.sources)
        for label in diagnostic.labels:
            source = result.sources[label.span.file]
            assert 0 <= label.span.start <= label.span.end <= len(source)
        for fix in diagnostic.fixes:
            assert fix.span is None or fix.replacement


@settings(max_examples=150, deadline=None, suppress_health_check=list(HealthCheck))
@given(selectors)
def test_a_random_selector_matches_or_is_explained(text: str) -> None:
    rules = check(f"rule r {{ match {text} quant none }}", text=True).rules
    if rules is None:
        return
    selector = rules.rules[0].selector
    found = explain(selector, rules, SITES)
    range_problems(selector, rules, SITES)
    try:
        matches = compile_selector(selector, rules, layers=4).select(SITES)
    except EvaluationError:
        assert found is not None
        return
    assert bool(matches) == (found is None)
