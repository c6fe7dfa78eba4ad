"""Where a `.kt` program puts each module, by the language's own words: the last rule that speaks of it wins."""

from __future__ import annotations

from collections.abc import Sequence

from ktc.grammar.evaluate import applies, evaluate, rule_env
from ktc.grammar.loading import load
from ktc.grammar.selectors import compile_selector
from ktc.grammar.sites import Site
from ktc.grammar.tree import Action


def hardware_of(text: str, sites: Sequence[Site]) -> dict[str, str]:
    """For each module, the hardware ("cpu", "cuda:1") that the program's plain `place` words give it."""
    rules = load(text)
    layers = len({site.layer for site in sites if site.layer is not None})
    names = {
        str(member): "cpu"
        if declared.hardware == "cpu"
        else f"{declared.hardware}:{(declared.first or 0) + i}"
        for declared in rules.devices.values()
        for i, member in enumerate(declared.members)
    }
    found: dict[str, str] = {}
    for rule in rules.rules:
        place = next((a for a in rule.actions if isinstance(a, Action) and a.kind == "place"), None)
        if place is None:
            continue
        matcher = compile_selector(rule.selector, rules, layers=layers)
        said = {}
        for site in matcher.select(sites):
            env = rule_env(site, layers, None, rules)
            if applies(rule.where, env):
                said[site.name] = names[str(evaluate(place.value, env))]
        for site in sites:
            nearest = site.name
            while nearest and nearest not in said:
                nearest = nearest.rpartition(".")[0]
            if nearest in said:
                found[site.name] = said[nearest]
    return found
