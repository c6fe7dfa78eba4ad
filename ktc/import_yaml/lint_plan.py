"""What a rule file leaves to chance as a whole: the default device, the transfer map, prefill ops that never run."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from ktc.grammar.diagnostics import Diagnostic, Fix, Label, Severity
from ktc.grammar.tree import Span
from ktc.import_yaml.devices import parse_device, substitute
from ktc.import_yaml.lint_matches import SHOWN, counted, shown
from ktc.import_yaml.placement import Decision, Placement, is_attention
from ktc.import_yaml.reading import RuleDef
from ktc.import_yaml.unconverted import Unconverted


def whole_file(
    placement: Placement, live: Sequence[RuleDef], unconverted: Iterable[Unconverted], start: Span
) -> list[Diagnostic]:
    """KT711 to KT714; `start` is the first line of the file, for what no rule is to blame for."""
    decisions = [placement.decisions[rule.number] for rule in live]
    return [
        *_fallen(placement, start),
        *[_warn("KT712", item.what, item.spans, (item.instead,)) for item in unconverted],
        *_stream(placement, decisions, start),
        *_prefill(placement, decisions),
    ]


def _warn(
    code: str, message: str, spans: Iterable[Span], notes: Iterable[str] = (), fixes: Iterable[Fix] = ()
) -> Diagnostic:
    found = list(spans)
    labels = tuple(Label(span) for span in found[:SHOWN])
    more = [f"and on lines {', '.join(str(span.line) for span in found[SHOWN:])}"] if found[SHOWN:] else []
    return Diagnostic(code, message, labels, (*more, *notes), tuple(fixes), Severity.WARNING)


def _fallen(placement: Placement, start: Span) -> list[Diagnostic]:
    found = []
    if placement.unmatched:
        names = placement.unmatched
        wrong = [n for n in names if _elsewhere(n, placement)]
        notes = [f"{shown(names)}"]
        if wrong:
            notes.append(f"of these in layers that live elsewhere, {len(wrong)}: {shown(wrong)}")
        fix = Fix("end the file with a rule of class `default` for each device")
        message = f"no rule matches {counted(len(names), 'module')} with weights: the default device, cuda:0, gets them"
        found.append(_warn("KT711", message, [start], notes, [fix]))
    if placement.unvisited:
        message = f"{len(placement.unvisited)} modules with weights lie inside `recursive: False`: they go to cuda:0"
        found.append(_warn("KT711", message, [start], [shown(placement.unvisited)]))
    if placement.split:
        message = "single experts of one layer go to different devices"
        notes = [
            shown(placement.split),
            "ktc places the experts of a layer together: on the device of most of them",
        ]
        found.append(_warn("KT712", message, [start], notes))
    return found


def _elsewhere(name: str, placement: Placement) -> bool:
    choice = placement.choices[name]
    layer = choice.site.layer
    return layer is not None and placement.homes[layer] != choice.device


def _stream(placement: Placement, decisions: Sequence[Decision], start: Span) -> list[Diagnostic]:
    """KT713: layers whose weights are not where KTransformers moves the hidden state."""
    wrong = [layer for layer, home in placement.homes.items() if placement.stream.get(layer) != home]
    found = []
    if wrong and not all(placement.homes[layer].is_cpu for layer in wrong):
        first = min(wrong)
        model = next((d for d in decisions if d.operator is not None and d.operator.kind == "model"), None)
        written = None if model is None else model.rule.kwargs.get("transfer_map")
        span = start if model is None else model.rule.spans.get("replace", model.rule.span)
        notes = [
            f"layer {first} lives on {placement.homes[first]}, and its input is on {placement.stream.get(first)}",
            "ktc inserts the copies itself",
        ]
        message = (
            "`transfer_map` disagrees with the layers' devices"
            if written
            else "no `transfer_map` for the layers"
        )
        found.append(
            _warn(
                "KT713",
                f"{message}: {counted(len(wrong), 'layer')}",
                [span if written is None else written.span],
                notes,
            )
        )
    return found + _outputs(placement) + _attentions(placement)


def _outputs(placement: Placement) -> list[Diagnostic]:
    by_rule: dict[int, list[int]] = {}
    for choice in placement.choices.values():
        decision, layer = choice.decision, choice.site.layer
        written = None if decision is None else decision.rule.kwargs.get("out_device")
        device = None if written is None else parse_device(written.value)
        if (
            decision is None
            or device is None
            or layer is None
            or decision.op is None
            or not decision.op.kernel
        ):
            continue
        if substitute(device) != placement.homes[layer]:
            by_rule.setdefault(decision.rule.number, []).append(layer)
    found = []
    for number, layers in sorted(by_rule.items()):
        span = placement.decisions[number].rule.kwargs["out_device"].span
        home = placement.homes[layers[0]]
        notes = [f"layer {layers[0]} lives on {home}", "ktc inserts the copies itself"]
        found.append(
            _warn("KT713", f"`out_device` is not where {counted(len(layers), 'layer')} go on", [span], notes)
        )
    return found


def _attentions(placement: Placement) -> list[Diagnostic]:
    """Attentions, and with them their caches, away from the layer that they are in."""
    by_rule: dict[int, list[int]] = {}
    for choice in placement.choices.values():
        layer = choice.site.layer
        if choice.decision is None or layer is None or not is_attention(choice.site):
            continue
        if choice.device != placement.homes[layer]:
            by_rule.setdefault(choice.decision.rule.number, []).append(layer)
    found = []
    for number, layers in sorted(by_rule.items()):
        rule = placement.decisions[number].rule
        written = rule.kwargs.get("generate_device")
        notes = [f"layer {layers[0]} lives on {placement.homes[layers[0]]}"]
        message = f"attention and its cache are away from their layer: {counted(len(layers), 'layer')}"
        found.append(_warn("KT713", message, [rule.span if written is None else written.span], notes))
    return found


def _prefill(placement: Placement, decisions: Sequence[Decision]) -> list[Diagnostic]:
    """KT714: prefill devices and ops that differ from the others, and never run."""
    if placement.threshold is not None:
        return []
    spans = []
    for decision in decisions:
        differs = (
            decision.prefill not in (None, decision.generate) or decision.prefill_op != decision.generate_op
        )
        for key in ("prefill_device", "prefill_op"):
            written = decision.rule.kwargs.get(key)
            if written is not None and differs and decision.operator is not None:
                spans.append(written.key_span)
                break
    if not spans:
        return []
    notes = (
        "KTransformers uses them only layer by layer, for prompts over `per_layer_prefill_intput_threshold` tokens",
        "it is 0 here, or no rule puts a model class in place of `model`: prefill runs like generation",
    )
    return [
        _warn("KT714", f"the prefill settings of {counted(len(spans), 'rule')} are never used", spans, notes)
    ]
