"""What a rule file asks for that ktc has no equivalent of: said in the `.kt` file's head and in the report."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from ktc.grammar.tree import Span
from ktc.import_yaml.placement import Decision, Placement, find_op
from ktc.import_yaml.reading import RuleDef


@dataclass(frozen=True, slots=True)
class Unconverted:
    """One thing without equivalent.

    Attributes:
        what: what the rules ask for, in a few words.
        instead: what the `.kt` file does.
        spans: where they ask for it.
    """

    what: str
    instead: str
    spans: tuple[Span, ...]


def unconverted(placement: Placement, live: Iterable[RuleDef]) -> list[Unconverted]:
    """Everything of that kind in the rules that speak for some module.

    Args:
        placement: what the rules place.
        live: the rules that speak for at least one module.
    """
    decisions = [placement.decisions[rule.number] for rule in live]
    return [
        *_packed(decisions),
        *_kwargs(decisions),
        *_layerwise(decisions, placement),
    ]


def _packed(decisions: Sequence[Decision]) -> list[Unconverted]:
    by_op: dict[str, list[Span]] = {}
    for decision in decisions:
        op = decision.op
        if decision.operator is None or decision.generate_op is None or op is None or not op.packs:
            continue
        written = decision.rule.kwargs.get("generate_op")
        span = decision.rule.spans.get("replace", decision.rule.span) if written is None else written.span
        by_op.setdefault(decision.generate_op, []).append(span)
    found = []
    for name, spans in by_op.items():
        op = find_op(name)
        packs = "" if op is None else op.packs
        instead = "ktc keeps the format of the model's files; a `quant` rule changes it"
        found.append(
            Unconverted(f"{name} turns weights into {packs} when it loads them", instead, tuple(spans))
        )
    return found


_INSTEAD = {
    "transfer_map": "ktc inserts the copies between devices itself",
    "out_device": "ktc inserts the copies between devices itself",
    "absorb_for_prefill": "std/mla.kt decides how latent attention runs, for every phase alike",
    "chunck_size": "ktc prefills in chunks of its own",
    "num_bits": "a `quant` rule says the format of weights",
    "group_size": "a `quant` rule says the format of weights",
    "block_size": "a `quant` rule says the format of weights",
}
_BACKEND = "cpu.experts uses what the processor has, on weights in the format of the model's files"


def _kwargs(decisions: Sequence[Decision]) -> list[Unconverted]:
    found: dict[str, tuple[dict[str, None], list[Span]]] = {}
    for decision in decisions:
        if decision.operator is None:
            continue
        for name, value in decision.rule.kwargs.items():
            if name in _INSTEAD and value.value not in (None, False):
                names, spans = found.setdefault(_INSTEAD[name], ({}, []))
                names[f"`{name}`"] = None
                spans.append(value.key_span)
        backend = decision.rule.kwargs.get("backend")
        if backend is not None and backend.value in ("AMXInt8", "AMXBF16"):
            names, spans = found.setdefault(_BACKEND, ({}, []))
            names[f"backend {backend.value}"] = None
            spans.append(backend.span)
    return [
        Unconverted("not needed: " + " and ".join(names), instead, tuple(spans))
        for instead, (names, spans) in found.items()
    ]


def _layerwise(decisions: Sequence[Decision], placement: Placement) -> list[Unconverted]:
    if placement.threshold is None or not any(c.bulk is not None for c in placement.choices.values()):
        return []
    rules = {c.decision.rule.number for c in placement.choices.values() if c.bulk is not None and c.decision}
    spans = []
    for decision in decisions:
        if decision.rule.number in rules:
            written = decision.rule.kwargs.get("prefill_device")
            span = decision.rule.spans.get("replace", decision.rule.span) if written is None else written.span
            spans.append(span)
    what = f"prompts over {placement.threshold:,} tokens move these modules to the prefill device, layer by layer"
    return [Unconverted(what, "ktc keeps a second copy of their weights there", tuple(spans))]
