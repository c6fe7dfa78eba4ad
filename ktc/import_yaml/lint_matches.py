"""Rules that do nothing: dead, shadowed, cut off, or about modules that a model no longer has."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Sequence

from ktc.grammar.diagnostics import Diagnostic, Fix, Label, Severity
from ktc.grammar.suggest import closest
from ktc.import_yaml.old_model import OldModel, OldModule
from ktc.import_yaml.reading import RuleDef
from ktc.import_yaml.replay import Fate, Replay, class_fits
from ktc.import_yaml.tables import MODEL_CLASSES, MODELS_PACKAGE, OTHER_MODELS

SHOWN = 3  # modules named in a note


def idle_rules(model: OldModel, rules: Sequence[RuleDef], outcome: Replay) -> list[Diagnostic]:
    """KT704 (dead), KT705 (shadowed or cut off), KT706 (nothing left to place), KT707 (unknown match class)."""
    modules = list(model.walk())
    by_number = {rule.number: rule for rule in rules}
    found: list[Diagnostic] = []
    gone: list[RuleDef] = []
    for rule in rules:
        unknown = _unknown_class(rule, model)
        fate = outcome.fates[rule.number]
        if unknown is not None:
            found.append(unknown)
        elif fate.won:
            if all(module.gone for module in fate.won):
                gone.append(rule)
        elif fate.lost or fate.cut:
            if all(module.gone for module in _touched(fate)):
                gone.append(rule)
            else:
                found.append(_shadowed(rule, fate, by_number))
        else:
            found.append(_dead(rule, model, modules))
    return [*found, *_gone(gone, outcome)]


def _touched(fate: Fate) -> list[OldModule]:
    groups = [*fate.lost.values(), *fate.cut.values()]
    return [module for group in groups for module in group]


def _warn(
    code: str, message: str, labels: Iterable[Label], notes: Iterable[str] = (), fixes: Iterable[Fix] = ()
) -> Diagnostic:
    return Diagnostic(code, message, tuple(labels), tuple(notes), tuple(fixes), Severity.WARNING)


def shown(names: Sequence[str]) -> str:
    """A few names of many."""
    more = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
    return ", ".join(f"`{name}`" for name in names[:SHOWN]) + more


def counted(number: int, word: str) -> str:
    """`1 rule`, `2 rules`."""
    return f"{number} {word}{'' if number == 1 else 's'}"


def _gone(rules: Sequence[RuleDef], outcome: Replay) -> list[Diagnostic]:
    if not rules:
        return []
    first = rules[0]
    fate = outcome.fates[first.number]
    why = (fate.won or _touched(fate))[0].gone
    message = f"{len(rules)} rules replace" if len(rules) > 1 else "the rule replaces"
    labels = [Label(rule.match_span) for rule in rules[:SHOWN]]
    more = (
        [f"and on lines {', '.join(str(rule.match_span.line) for rule in rules[SHOWN:])}"]
        if rules[SHOWN:]
        else []
    )
    message += " rotary embeddings, and nothing is left to place"
    return [_warn("KT706", message, labels, (*more, why))]


def _unknown_class(rule: RuleDef, model: OldModel) -> Diagnostic | None:
    """KT707 for a `match.class` that KTransformers could not have imported."""
    path = rule.match_class
    if path is None or any(class_fits(path, module) for module in [model.root]):
        return None
    span = rule.spans.get("class", rule.span)
    known: list[str] = []
    if path.startswith("torch.nn."):
        import torch

        name = path.rpartition(".")[2]
        if isinstance(getattr(torch.nn, name, None), type):
            return None
        known = [
            f"torch.nn.{n}" for n in ("Linear", "Embedding", "ModuleList", "Module", "LayerNorm", "SiLU")
        ]
    elif path.startswith(MODELS_PACKAGE):
        file, _, name = path.removeprefix(MODELS_PACKAGE).rpartition(".")
        if file.startswith(OTHER_MODELS) or name in MODEL_CLASSES.get(file, ()):
            return None
        known = [f"{MODELS_PACKAGE}{f}.{n}" for f, names in MODEL_CLASSES.items() for n in names]
    elif path.startswith("transformers."):
        return None
    near = closest(path, known)
    fixes = (Fix(f"did you mean `{near}`?", span, near),) if near else ()
    notes = ("KTransformers imports it when it reads the rule, and stops",) if known else (
        "ktc imports nothing that a rule file names; the rule matches nothing here",
    )  # fmt: skip
    return _warn("KT707", f"there is no class `{path}`", [Label(span)], notes, fixes)


def _shadowed(rule: RuleDef, fate: Fate, rules: dict[int, RuleDef]) -> Diagnostic:
    labels = [Label(rule.match_span, "never speaks for any module")]
    notes = []
    for number, modules in sorted(fate.lost.items()):
        labels.append(Label(rules[number].match_span, f"comes first, at {len(modules)} of them"))
    for number, modules in sorted(fate.cut.items()):
        span = rules[number].spans.get("recursive", rules[number].match_span)
        labels.append(Label(span, "nothing inside is looked at"))
        notes.append(f"`{modules[0].name}` lies inside a module whose rule says `recursive: False`")
    count = len({module.name for module in _touched(fate)})
    if fate.lost:
        notes.insert(0, f"it fits {counted(count, 'module')}; the first rule that fits one speaks for it")
    fix = Fix("put the more particular rule first, or delete this one")
    message = (
        "the rule is shadowed by earlier ones" if fate.lost else "the rule's modules are never looked at"
    )
    return _warn("KT705", message, labels, notes, [fix] if fate.lost else ())


def _dead(rule: RuleDef, model: OldModel, modules: Sequence[OldModule]) -> Diagnostic:
    labels, notes, fixes = [Label(rule.match_span, "no module")], [], []
    named = [m for m in modules if rule.pattern is not None and rule.pattern.search(m.name)]
    classed = [m for m in modules if rule.match_class is not None and class_fits(rule.match_class, m)]
    if rule.pattern is not None and rule.match_class is not None and named:
        span = rule.spans["class"]
        labels = [Label(span, "none of these")]
        kinds = [kind for kind, _ in Counter(m.classes[0] for m in named).most_common(SHOWN)]
        notes.append(
            f"{len(named)} modules have such a name; their classes are {', '.join(f'`{k}`' for k in kinds)}"
        )
        same = [kind for kind in kinds if kind.rpartition(".")[2] == rule.match_class.rpartition(".")[2]]
        if same:
            fixes.append(Fix(f"write `{same[0]}`", span, same[0]))
    if rule.match_class is not None and not classed:
        notes.append(f"the model has no module of class `{rule.match_class}`")
        if model.family is not None and rule.match_class.startswith("transformers."):
            notes.append(f"KTransformers builds this model from {MODELS_PACKAGE}{model.family.file}")
    if rule.pattern is not None:
        loosened = _loosened(rule.pattern.pattern)
        wanted = classed if rule.match_class is not None else modules
        if loosened is not None:
            more = [m.name for m in wanted if loosened.search(m.name)]
            if more:
                notes.append(
                    f"`$` ends the name there: without it {len(more)} modules match, such as `{more[0]}`"
                )
                fixes.append(Fix("end it in `\\\\.` instead of `$` to mean what is inside"))
        today = [m.site for m in modules if m.site and m.site != m.name and rule.pattern.search(m.site)]
        if today and not named:
            then = next(m.name for m in modules if m.site == today[0])
            notes.append(f"`{today[0]}` of today's transformers is `{then}` for KTransformers")
    return _warn("KT704", "the rule matches nothing", labels, notes, fixes)


def _loosened(pattern: str) -> re.Pattern[str] | None:
    """The pattern without the `$` at its end."""
    shorter = re.sub(r"(?<!\\)\$(\)*)$", r"\1", pattern)
    if shorter == pattern:
        return None
    try:
        return re.compile(shorter)
    except re.error:
        return None
