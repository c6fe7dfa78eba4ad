"""Replays KTransformers' injection over a module tree: which rule speaks for which module.

As its `gen_optimize_config` does: from the root down; the first rule whose class (isinstance) and name (`re.search`)
both fit speaks for a module; `recursive: False` of that rule leaves everything inside without any rule.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from ktc.import_yaml.old_model import OldModel, OldModule
from ktc.import_yaml.reading import RuleDef


@dataclass
class Fate:
    """What became of one rule.

    Attributes:
        won: modules that it speaks for.
        lost: modules that it fits, by the number of the earlier rule that speaks for them.
        cut: modules that it fits but that are not looked at, by the number of the rule with `recursive: False`.
    """

    won: list[OldModule] = field(default_factory=list)
    lost: dict[int, list[OldModule]] = field(default_factory=dict)
    cut: dict[int, list[OldModule]] = field(default_factory=dict)


@dataclass(frozen=True)
class Replay:
    """The outcome.

    Attributes:
        decided: the rule that speaks for each module looked at, None for those that no rule fits; by old name.
        fates: of each rule, by number.
    """

    decided: dict[str, RuleDef | None]
    fates: dict[int, Fate]


def class_fits(wanted: str, module: OldModule) -> bool:
    """`isinstance` by dotted path; torch.nn's classes also by the path of the file that defines them."""
    if wanted.startswith("torch.nn.") and wanted.count(".") > 2:
        wanted = "torch.nn." + wanted.rpartition(".")[2]
    return wanted in module.classes


def fits(rule: RuleDef, module: OldModule) -> bool:
    """Whether a rule's `match` fits a module."""
    if rule.match_class is not None and not class_fits(rule.match_class, module):
        return False
    return rule.pattern is None or rule.pattern.search(module.name) is not None


def replay(model: OldModel, rules: Sequence[RuleDef]) -> Replay:
    """Looks at every module that KTransformers would, and at the others to know what their rules would have done."""
    result = Replay({}, {rule.number: Fate() for rule in rules})
    pending: list[tuple[OldModule, int | None]] = [(model.root, None)]
    while pending:
        module, cutter = pending.pop()
        speaking = [rule for rule in rules if fits(rule, module)]
        if cutter is not None:
            for rule in speaking:
                result.fates[rule.number].cut.setdefault(cutter, []).append(module)
        else:
            winner = speaking[0] if speaking else None
            result.decided[module.name] = winner
            if winner is not None:
                result.fates[winner.number].won.append(module)
                for rule in speaking[1:]:
                    result.fates[rule.number].lost.setdefault(winner.number, []).append(module)
                if not winner.recursive:
                    cutter = winner.number
        if cutter is not None and model.is_experts(module):
            inside = [model.expert(module, 0)]  # enough to know which rules speak of experts
        else:
            inside = list(model.children(module))
        pending += [(child, cutter) for child in reversed(inside)]
    return result
