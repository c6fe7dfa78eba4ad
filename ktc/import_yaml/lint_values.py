"""What rules say that does not do what it says: classes, ops, kwargs and devices."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from ktc.grammar.diagnostics import Diagnostic, Fix, Label, Severity
from ktc.grammar.suggest import closest
from ktc.grammar.tree import Span
from ktc.import_yaml.devices import parse_device
from ktc.import_yaml.placement import Decision, find_op
from ktc.import_yaml.reading import RuleDef
from ktc.import_yaml.replay import Fate
from ktc.import_yaml.tables import BACKENDS, FORMER_OPS, NPU_PREFIX, OPERATORS, OPERATORS_PACKAGE, OPS, Op

_DEVICES = ("generate_device", "prefill_device", "out_device", "device")


def wrong_values(decision: Decision, fate: Fate) -> list[Diagnostic]:
    """KT707 to KT710 for one rule; `fate` says which modules it speaks for."""
    return [*_class(decision, fate), *_ops(decision), *_kwargs(decision, fate), *_devices(decision)]


def _warn(
    code: str, message: str, span: Span, notes: Iterable[str] = (), fixes: Iterable[Fix] = ()
) -> Diagnostic:
    return Diagnostic(code, message, (Label(span),), tuple(notes), tuple(fixes), Severity.WARNING)


def _class(decision: Decision, fate: Fate) -> list[Diagnostic]:
    rule, path = decision.rule, decision.rule.replace_class
    span = rule.spans.get("replace", rule.span)
    if path == "default":
        return []
    if decision.operator is None:
        if path.startswith(OPERATORS_PACKAGE + NPU_PREFIX):
            return [_warn("KT710", "ktc has no kernels for NPUs", span, ("only its devices are converted",))]
        known = [OPERATORS_PACKAGE + name for name in OPERATORS]
        near = closest(path, known)
        fixes = (Fix(f"did you mean `{near}`?", span, near),) if near else ()
        notes = ["only its devices are converted"]
        if path.startswith("ktransformers."):
            notes.insert(0, "KTransformers finds out when it replaces a module, and stops")
        else:
            notes.insert(0, "ktc imports nothing that a rule file names")
        return [_warn("KT707", f"there is no class `{path}`", span, notes, fixes)]
    return _misplaced(decision, fate, span)


_MUST_BE = {"linear": "torch.nn.Linear", "experts": "torch.nn.ModuleList"}


def _misplaced(decision: Decision, fate: Fate, span: Span) -> list[Diagnostic]:
    """A class put in place of modules that it cannot replace."""
    kind = "" if decision.operator is None else decision.operator.kind
    wanted = _MUST_BE.get(kind)
    wrong = [m for m in fate.won if wanted is not None and wanted not in m.classes]
    if wanted is None or not wrong:
        return []
    name = decision.rule.replace_class.rpartition(".")[2]
    message = f"`{name}` cannot replace `{wrong[0].name}`, a {wrong[0].classes[0].rpartition('.')[2]}"
    notes = (f"it replaces a {wanted}; KTransformers stops when it loads the model",)
    fix = Fix(f"add `class: {wanted}` to the match" if kind == "linear" else "match the experts' own name")
    return [_warn("KT707", message, span, notes, (fix,))]


def _ops(decision: Decision) -> list[Diagnostic]:
    """KT708: ops and backends that do not exist."""
    operator, rule = decision.operator, decision.rule
    if operator is None or operator.generate_op is None:
        return []
    found = []
    for name in ("generate_op", "prefill_op"):
        written = rule.kwargs.get(name)
        if written is None or written.value is None:
            continue
        known = [op for op, row in OPS.items() if row.kind == operator.kind]
        if written.value in known:
            continue
        former = FORMER_OPS.get(written.value) if isinstance(written.value, str) else None
        near = former if former in known else closest(str(written.value), known)
        notes = [f"ops for {operator.kind}: {', '.join(known)}"]
        if written.value == "None":
            notes = ["YAML's nothing is `null`; `None` is a text", *notes]
        if former is not None:
            notes = [f"an old tutorial's name for {former}", *notes]
        fixes = (Fix(f"write `{near}`", written.span, near),) if near else ()
        message = f"there is no op `{written.value}` for {operator.kind}"
        found.append(_warn("KT708", message, written.span, notes, fixes))
    backend = rule.kwargs.get("backend")
    if operator.kind == "experts" and backend is not None and backend.value not in BACKENDS:
        near = closest(str(backend.value), BACKENDS)
        fixes = (Fix(f"write `{near}`", backend.span, near),) if near else ()
        notes = [f"backends: {', '.join(BACKENDS)}", "KTransformers goes on, and fails at the first token"]
        found.append(_warn("KT708", f"there is no backend `{backend.value}`", backend.span, notes, fixes))
    return found


def _taken(decision: Decision) -> frozenset[str]:
    """Names of kwargs that the class, and the ops that it makes, really read."""
    operator = decision.operator
    if operator is None:
        return frozenset()
    taken = operator.takes
    for name in (decision.generate_op, decision.prefill_op):
        op = find_op(name)
        taken |= frozenset() if op is None else op.takes
    return taken


def _kwargs(decision: Decision, fate: Fate) -> list[Diagnostic]:
    """KT709: kwargs that nothing reads, and `default` without the one that it needs."""
    rule = decision.rule
    if rule.replace_class == "default":
        return _default_kwargs(rule, fate)
    if decision.operator is None:
        return []
    taken = _taken(decision)
    name = rule.replace_class.rpartition(".")[2]
    found = []
    for key, value in rule.kwargs.items():
        if key in taken or (
            decision.operator.kind == "model" and key in ("generate_device", "prefill_device")
        ):
            continue
        near = closest(key, taken)
        fixes = (Fix(f"did you mean `{near}`?", value.key_span, near),) if near else ()
        note = "it disappears in `**kwargs`"
        other = [op for op, row in OPS.items() if key in row.takes]
        notes = (note, f"{', '.join(other)} would read it") if other else (note,)
        found.append(_warn("KT709", f"`{name}` does not read `{key}`", value.key_span, notes, fixes))
    return found


def _default_kwargs(rule: RuleDef, fate: Fate) -> list[Diagnostic]:
    found = []
    for key, value in rule.kwargs.items():
        if key not in ("generate_device", "prefill_device"):
            notes = ("without a replacement only devices are read",)
            found.append(_warn("KT709", f"`default` does not read `{key}`", value.key_span, notes))
    holding = [module for module in fate.won if module.holds]
    if holding and "generate_device" not in rule.kwargs:
        notes = (
            f"KTransformers stops when it loads `{holding[0].name}`; here it goes to the default device",
        )
        found.append(_warn("KT709", "`default` needs `generate_device`", rule.span, notes))
    return found


def _devices(decision: Decision) -> list[Diagnostic]:
    """KT710: texts that are no devices, and devices that cannot run the op."""
    found = []
    for key in _DEVICES:
        value = decision.rule.kwargs.get(key)
        if value is None:
            continue
        device = parse_device(value.value)
        if device is None:
            fix = Fix('write "cpu", "cuda" or "cuda:1"')
            found.append(_warn("KT710", f"`{value.value}` is no device", value.span, (), (fix,)))
        elif device.hardware in ("xpu", "npu"):
            notes = (f"the `.kt` file says cuda:{device.index} instead",)
            found.append(
                _warn("KT710", f"ktc has no kernels for {device.hardware} devices", value.span, notes)
            )
    for phase, op_name in (("generate", decision.generate_op), ("prefill", decision.prefill_op)):
        found += _unable(decision, phase, op_name)
    return found


def _unable(decision: Decision, phase: str, op_name: str | None) -> list[Diagnostic]:
    op = find_op(op_name)
    device = decision.generate if phase == "generate" else decision.prefill
    if op is None or op_name is None or device is None or decision.operator is None:
        return []
    where = decision.rule.kwargs.get(f"{phase}_device") or decision.rule.kwargs.get(f"{phase}_op")
    span = decision.rule.spans.get("replace", decision.rule.span) if where is None else where.span
    name = FORMER_OPS.get(op_name, op_name)
    by_default = "" if f"{phase}_op" in decision.rule.kwargs else f", which `{phase}_op` is by default,"
    if op.hardware == "gpu" and device.is_cpu:
        others = _others(op, "cpu")
        note = "KTransformers stops when it makes the module; here ktc picks a kernel of the CPU"
        fix = Fix(f"ops for the CPU: {others}")
        message = f"`{name}`{by_default} runs on GPUs only, and `{phase}_device` is the CPU"
        return [_warn("KT710", message, span, (note,), (fix,))]
    if op.hardware == "cpu" and not device.is_cpu:
        notes = ("the module is placed on the CPU here", f"ops for a GPU: {_others(op, 'gpu')}")
        message = f"`{name}`{by_default} runs on the CPU only, and `{phase}_device` is {device}"
        return [_warn("KT710", message, span, notes)]
    if op.hardware == "xpu" and device.hardware != "xpu":
        return [_warn("KT710", f"`{name}` runs on xpu devices only", span)]
    return []


def _others(op: Op, hardware: str) -> str:
    names: Sequence[str] = [
        n for n, row in OPS.items() if row.kind == op.kind and row.hardware in (hardware, "any")
    ]
    return ", ".join(names)
