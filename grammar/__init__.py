"""The .kt language: grammar, parser, checker, diagnostics, formatter and the std rule libraries."""

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
