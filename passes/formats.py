"""Number formats of parameters: what a rule asks for, else what the file holds."""

from __future__ import annotations

from ktc.grammar.diagnostics import Diagnostic, Label
from ktc.grammar.values import Symbol
from ktc.passes.bind import show
from ktc.passes.context import Context, Write, fail

from ktc.weights.formats import FORMATS

FLOATS = frozenset({"f32", "f16", "bf16"})
_DTYPES = {"float32": "f32", "float16": "f16", "bfloat16": "bf16"}


def source_format(parameter: str, context: Context) -> str:
    """The format a parameter has where it comes from: the file's, or the model's dtype without weights."""
    if parameter in context.weights:
        return context.weights[parameter].source_format
    recipe = None if context.binding is None else context.binding.recipes.get(parameter)
    if recipe is not None:
        return recipe.stored_format
    site = context.sites.get(context.owner(parameter))
    declared = getattr(context.config, "dtype", None) or getattr(context.config, "torch_dtype", None)
    name = (
        str(declared).replace("torch.", "")
        if declared
        else (site.dtype if site and site.dtype else "float32")
    )
    return _DTYPES.get(name, "f32")


def parameter_format(parameter: str, context: Context) -> str:
    """The format a matrix parameter will have at run time. Raises KT604 for a format that does not exist."""
    if parameter in context.weights:
        return context.weights[parameter].format
    write = context.attribute(context.owner(parameter), "quant")
    return requested(write, source_format(parameter, context))


def requested(write: Write | None, held: str) -> str:
    """The format that a `quant` write asks for; without one, the one that is held. Raises KT604."""
    if write is None:
        return held
    name = write.value.name.lower() if isinstance(write.value, Symbol) else ""
    if name == "none":
        return held if held in FLOATS else "f32"
    if name not in FORMATS:
        message = f"there is no number format `{show(write.value)}`"
        note = "formats: none, " + ", ".join(sorted(FORMATS))
        raise fail(Diagnostic("KT604", message, (Label(write.span),), (note,)))
    return name
