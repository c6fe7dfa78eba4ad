"""Checks what declares names: model, device, param, phase, let; evaluates parameters and device options."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ktc.grammar import tree
from ktc.grammar.checking.scope import Scope
from ktc.grammar.checking.selectors import check_selector
from ktc.grammar.checking.types import Typer, fits, words
from ktc.grammar.diagnostics import Diagnostic, KtError, Label
from ktc.grammar.evaluate import EvaluationError, evaluate
from ktc.grammar.functions import PHASE, STATIC, VALUE
from ktc.grammar.parser import parse_expression
from ktc.grammar.rules import DeviceDecl, ParamValue
from ktc.grammar.suggest import closest
from ktc.grammar.values import Symbol

HARDWARE = ("cpu", "cuda", "xpu", "npu", "mps")
PARAM_TYPES = {"int": "int", "float": "float", "bool": "bool", "str": "str", "size": "int", "name": "symbol"}
DEVICE_OPTIONS = {"memory": "int", "reserve": "int", "threads": "int", "numa": "int"}
COMMAND_LINE = "-D"


def check_model(scope: Scope, item: tree.Model) -> None:
    """One `model` a program."""
    if scope.model is not None:
        labels = (Label(item.span, "declared again here"), Label(scope.model.span, "first declared here"))
        scope.diagnostics.append(Diagnostic("KT117", "a program is for one model", labels))
        return
    scope.model = item


def check_param(scope: Scope, item: tree.Param, given: Mapping[str, Any]) -> None:
    """Declares a parameter with its default, or with the value given for it."""
    if not scope.declare(item.name, "parameter"):
        return
    kind = PARAM_TYPES.get(item.type.id)
    if kind is None:
        scope.unknown("KT107", "type", item.type.id, PARAM_TYPES, item.type.span, "types")
        return
    typer = Typer(scope, STATIC)
    scope.param_types[item.name.id] = kind
    before = len(scope.diagnostics)
    typer.check(item.default, kind, f"the default of `{item.name.id}`")
    if len(scope.diagnostics) > before:
        return
    value = _evaluate(scope, item.default, "KT119")
    if len(scope.diagnostics) > before:
        return
    if item.name.id in given:
        raw = given[item.name.id]
        value = _given(scope, item, kind, raw) if isinstance(raw, str) and kind != "str" else raw
        if not _has_type(value, kind):
            if value is not None:
                message = f"`{item.name.id}` is given `{raw}`, which is not {words(kind)}"
                scope.error("KT106", message, item.span, f"{words(kind)} is declared here")
            return
    if kind == "float" and not isinstance(value, bool):
        value = float(value)
    help_ = item.help.value if item.help else ""
    scope.params[item.name.id] = ParamValue(
        item.name.id, item.type.id, value, help_, item.span, item.name.id in given
    )


def _has_type(value: object, kind: str) -> bool:
    if kind == "float":
        return isinstance(value, int | float) and not isinstance(value, bool)
    wanted = {"int": int, "bool": bool, "str": str, "symbol": Symbol}[kind]
    return isinstance(value, wanted) and (kind == "bool" or not isinstance(value, bool))


def _given(scope: Scope, item: tree.Param, kind: str, raw: str) -> object:
    """The value of `-D NAME=raw`; None, with a report, when it has none."""
    try:
        return evaluate(parse_expression(raw, COMMAND_LINE), {}, symbols=kind == "symbol")
    except (KtError, EvaluationError):
        message = f"`{item.name.id}` is given `{raw}`, which is not {words(kind)}"
        scope.error("KT106", message, item.span, f"{words(kind)} is declared here")
        return None


def check_given(scope: Scope, given: Mapping[str, Any]) -> None:
    """Reports values given for parameters that the program does not have."""
    for name in given:
        if name in scope.param_types or name in scope.spans:
            if name not in scope.param_types:
                scope.diagnostics.append(
                    Diagnostic("KT106", f"`{name}` is given a value and is no parameter")
                )
            continue
        near = closest(name, scope.param_types)
        known = ", ".join(f"`{n}`" for n in sorted(scope.param_types)) or "none"
        note = f"did you mean `{near}`?" if near else f"parameters: {known}"
        scope.diagnostics.append(Diagnostic("KT106", f"there is no parameter `{name}`", (), (note,)))


def _evaluate(scope: Scope, expr: tree.Expr, code: str) -> Any:
    """A value needed now; None, with a report, when it cannot be computed without a model."""
    try:
        return evaluate(expr, scope.rules().values())
    except EvaluationError as error:
        notes = (error.hint,) if error.hint else ()
        scope.error(code, error.message, error.span, notes=notes)
        return None


def check_device(scope: Scope, item: tree.Device) -> None:
    """Declares a device or a group, its options evaluated."""
    if not scope.declare(item.name, "device"):
        return
    scope.device_types[item.name.id] = "device" if item.last is None else "group"
    if item.hardware not in HARDWARE:
        scope.unknown(
            "KT110", "hardware", item.hardware, HARDWARE, item.hardware_span or item.span, "hardware"
        )
    if item.last is not None and (item.first or 0) > item.last:
        scope.error("KT112", "the range is empty", item.span, f"{item.first} is greater than {item.last}")
        return
    if item.last is not None and item.last - (item.first or 0) >= 1024:
        scope.error("KT112", "a group has at most 1024 devices", item.span)
        return
    values: dict[str, Any] = {}
    for option in item.options:
        _device_option(scope, item, option, values)
    scope.devices[item.name.id] = DeviceDecl(
        name=item.name.id,
        hardware=item.hardware,
        first=item.first,
        last=item.last,
        memory=values.get("memory"),
        reserve=values.get("reserve") or 0,
        threads=values.get("threads"),
        numa=values.get("numa"),
        options=values,
        span=item.span,
    )


def _device_option(scope: Scope, item: tree.Device, option: tree.Keyword, values: dict[str, Any]) -> None:
    if not option.name:
        scope.error("KT111", "an option of a device has a name", option.span, notes=(_OPTIONS,))
        return
    kind = DEVICE_OPTIONS.get(option.name)
    if kind is None:
        scope.unknown("KT111", "device option", option.name, DEVICE_OPTIONS, option.span, "options")
        return
    if option.name in values:
        scope.error("KT111", f"`{option.name}` is given twice", option.span)
        return
    before = len(scope.diagnostics)
    Typer(scope, STATIC).check(option.value, kind, f"`{option.name}` of a device")
    if len(scope.diagnostics) > before:
        return
    value = _evaluate(scope, option.value, "KT119")
    if len(scope.diagnostics) > before:
        return
    least = 0 if option.name == "reserve" else 1
    if (
        not fits("int" if isinstance(value, int) and not isinstance(value, bool) else "float", kind)
        or value < least
    ):
        scope.error(
            "KT111", f"`{option.name}` is a whole number from {least}", option.value.span, f"this is {value}"
        )
        return
    reserve, memory = (value if option.name == n else values.get(n) for n in ("reserve", "memory"))
    if reserve is not None and memory is not None and reserve >= memory:
        scope.error("KT111", "the reserve leaves no memory", option.value.span, f"of {memory} bytes")
        return
    values[option.name] = value


_OPTIONS = "options: " + ", ".join(f"`{name}`" for name in DEVICE_OPTIONS)


def check_phase(scope: Scope, item: tree.Phase) -> None:
    """Declares a phase; its condition is over `tokens`."""
    declared = scope.declare(item.name, "phase")
    Typer(scope, PHASE).check(item.condition, "bool", "the condition of a phase")
    if declared:
        scope.phases[item.name.id] = item


def check_let(scope: Scope, item: tree.Let) -> None:
    """Declares a name for a value or for a set of modules."""
    declared = scope.declare(item.name, "`let`")
    if item.selector is not None:
        check_selector(scope, item.selector)
    kind = Typer(scope, VALUE).infer(item.value) if item.value is not None else "sites"
    if not declared:
        return
    scope.lets[item.name.id] = item
    if item.value is not None:
        scope.let_types[item.name.id] = kind
