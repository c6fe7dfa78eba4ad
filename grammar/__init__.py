"""The .kt language: grammar, parser, checker, diagnostics, formatter and the std rule libraries.

Names are imported when they are first used: `ktc fmt` must not wait for the checker.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ktc.grammar.diagnostics import Diagnostic, Fix, KtError, Label, Severity
    from ktc.grammar.loading import CheckResult, as_rules, check, load
    from ktc.grammar.parser import parse
    from ktc.grammar.rules import DeviceDecl, ParamValue, Rules

__all__ = [
    "CheckResult",
    "DeviceDecl",
    "Diagnostic",
    "Fix",
    "KtError",
    "Label",
    "ParamValue",
    "Rules",
    "Severity",
    "as_rules",
    "check",
    "load",
    "parse",
]

_MODULES = {
    "diagnostics": ("Diagnostic", "Fix", "KtError", "Label", "Severity"),
    "loading": ("CheckResult", "as_rules", "check", "load"),
    "parser": ("parse",),
    "rules": ("DeviceDecl", "ParamValue", "Rules"),
}


def __getattr__(name: str) -> Any:
    for module, names in _MODULES.items():
        if name in names:
            return getattr(import_module(f"ktc.grammar.{module}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
