"""The whole way: a rule file and a model's configuration in, a `.kt` program and a report out."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ktc.errors import KtcError
from ktc.grammar.diagnostics import Diagnostic, Fix, KtError, Label
from ktc.grammar.loading import check
from ktc.import_yaml.reading import RuleDef, RuleFile, read_rules
from ktc.import_yaml.tables import MODEL_CLASSES, MODELS_PACKAGE

if TYPE_CHECKING:
    from transformers import PreTrainedConfig

    from ktc.import_yaml.placement import Placement


@dataclass(frozen=True)
class Conversion:
    """What converting gives.

    Attributes:
        text: the `.kt` program, formatted and checked.
        diagnostics: what the rules silently get wrong, in the order of the file.
        sources: the rule file's text, for showing them.
        placement: the device and op of every module.
        rules: rules in the rule file.
    """

    text: str
    diagnostics: tuple[Diagnostic, ...]
    sources: Mapping[str, str]
    placement: Placement
    rules: int


def load(path: str | os.PathLike[str]) -> RuleFile:
    """Reads a rule file. Raises KtError (KT701) when it is none, OSError when it cannot be opened."""
    where = Path(path)
    with where.open("rb") as stream:
        from ktc.import_yaml.reading import LARGEST

        return read_rules(stream.read(LARGEST + 1), str(path))


def guess_model(file: RuleFile) -> str | None:
    """The model class that the rules' class names speak of, or None."""
    votes: dict[str, int] = {}
    for rule in file.rules:
        module = (rule.match_class or "").removeprefix(MODELS_PACKAGE).rpartition(".")[0]
        if module in MODEL_CLASSES:
            votes[module] = votes.get(module, 0) + 1
    if not votes:
        return None
    best = max(votes, key=lambda module: votes[module])
    return next((name for name in MODEL_CLASSES[best] if name.endswith("ForCausalLM")), None)


def needs_model(file: RuleFile) -> KtError:
    """KT715: which model the rules are for has to be said."""
    guess = guess_model(file)
    notes = [
        "needed: its config.json, which says how many layers there are, which of them have experts, "
        "and what the modules are called",
    ]
    if guess is not None:
        notes.append(f"the rules look written for {guess}")
    fix = Fix("add `--model WHERE`: a model's folder, a config.json, or a .gguf file")
    span = file.source.span(0, 0)
    message = "a rule file does not say which model it is for"
    return KtError(
        [Diagnostic("KT715", message, (Label(span),), tuple(notes), (fix,))],
        {file.source.path: file.source.text},
    )


def convert(file: RuleFile, config: PreTrainedConfig, memory: Mapping[str, str] | None = None) -> Conversion:
    """Converts rules for one model.

    Args:
        file: the rules, from `load`.
        config: the model's configuration; its modules are made on the meta device.
        memory: budgets to write into the program, such as {"cpu": "440GiB", "cuda": "24GiB"}.

    Raises:
        KtError: KT716 when no rule says anything that can be converted.
        KtcError: the model cannot be built.
    """
    from ktc.capture import meta_model, module_sites
    from ktc.import_yaml.emit import Program, emit
    from ktc.import_yaml.lint_matches import idle_rules
    from ktc.import_yaml.lint_plan import whole_file
    from ktc.import_yaml.lint_values import wrong_values
    from ktc.import_yaml.old_model import OldModel
    from ktc.import_yaml.placement import place
    from ktc.import_yaml.replay import replay
    from ktc.import_yaml.unconverted import unconverted

    try:
        model = meta_model(config)
    except ValueError as error:
        raise KtcError(
            f"transformers has no causal language model for this configuration: {error}"
        ) from error
    model_type = str(getattr(config, "model_type", ""))
    sites = module_sites(model)
    old = OldModel(model, model_type)
    outcome = replay(old, file.rules)
    live = [rule for rule in file.rules if any(not m.gone for m in outcome.fates[rule.number].won)]
    found = list(file.diagnostics) + idle_rules(old, file.rules, outcome)
    placement = place(old, sites, file.rules, outcome)
    for rule in file.rules:
        found += wrong_values(placement.decisions[rule.number], outcome.fates[rule.number])
    sources = {file.source.path: file.source.text}
    if not live:
        raise KtError([_nothing(file), *found], sources)
    dense = (
        "f16" if str(getattr(config, "dtype", "")).endswith("float16") and not _is_bf16(config) else "bf16"
    )
    vain = unconverted(placement, live)
    found += whole_file(placement, live, vain, file.rules[0].span)
    program = Program(
        type(model).__name__, model_type, os.path.basename(file.source.path), sites, placement, dense, vain,
        _uses_mla(live, placement), memory or {},
    )  # fmt: skip
    text = emit(program)
    _proved(text)
    return Conversion(text, tuple(_sorted(found)), sources, placement, file.count)


def _is_bf16(config: Any) -> bool:
    return str(getattr(config, "dtype", "")).endswith("bfloat16")


def _uses_mla(live: Sequence[RuleDef], placement: Placement) -> bool:
    operators = [placement.decisions[rule.number].operator for rule in live]
    return any(operator is not None and operator.mla for operator in operators)


def _nothing(file: RuleFile) -> Diagnostic:
    notes = (
        f"of {file.count} rules, {len(file.rules)} can be read and none speaks for a module of this model",
    )
    fix = Fix("is this the model that they were written for?")
    message = "nothing of the rule file can be converted"
    return Diagnostic("KT716", message, (Label(file.source.span(0, 0)),), notes, (fix,))


def _sorted(found: Sequence[Diagnostic]) -> list[Diagnostic]:
    """In the order of the file."""
    return sorted(found, key=lambda d: (d.labels[0].span.start if d.labels else -1, d.code))


def _proved(text: str) -> None:
    """What is written has to be a program: anything else is a defect of ktc, not of the rules."""
    result = check(text, text=True)
    if result.errors:
        raise KtcError(
            f"the converted rules do not check: {result.errors[0].message}", hint="please report this"
        )
