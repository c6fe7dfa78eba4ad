"""Rotary embeddings: which modules make kt.rotary's tables and which functions apply them, found by trial.

A model's rotary module returns its tables in one of four forms; its `apply_rotary…` function takes it:
    full     (cos, sin), each [1, T, D], halves repeated      what kt.rotary returns
    paired   (cos, sin), each [1, T, D], neighbours equal      Cohere
    half     (cos, sin), each [1, T, D/2]                      GPT-OSS
    complex  cos + i sin, [1, T, D/2]                          DeepSeek-V2
and turns pairs in one of three layouts, see `LAYOUTS`. Both are run on data and compared with the reference;
what does not agree within 1e-6 stays at torch level.
"""

from __future__ import annotations

import inspect
import re
import sys
from collections.abc import Callable, Iterator
from types import ModuleType
from typing import Any, Literal, cast

import torch
from torch import nn

from ktc.capture.tracer import ModuleLift, Tracer
from ktc.dialect import rope, rotary

_KT = torch.ops.kt
_TOLERANCE = 1e-6
# Types whose frequencies depend on the longest sequence of the batch.
_STATEFUL = ("dynamic", "longrope")

Form = Literal["full", "paired", "half", "complex"]
Layout = Literal["halves", "pairs", "pairs_to_halves"]
FORMS: tuple[Form, ...] = ("full", "paired", "half", "complex")
LAYOUTS: tuple[Layout, ...] = ("halves", "pairs", "pairs_to_halves")

_POSITIONS = torch.tensor([[0, 1, 2, 17, 255, 1000, 4095]])


def rotary_lifts(root: nn.Module, tracer: Callable[[], Tracer]) -> dict[int, ModuleLift]:
    """Lifts of the rotary embedding modules under `root`, by id; their frequencies must be real tensors."""
    lifts: dict[int, ModuleLift] = {}
    for module in root.modules():
        if re.search(r"RotaryEmbedding$", type(module).__name__) and not list(module.children()):
            found = {kind: _find_tables(module, kind) for kind in _layer_types(module)}
            if any(found.values()):
                lifts[id(module)] = _lift(module, found, tracer)
    return lifts


def _layer_types(module: nn.Module) -> tuple[str | None, ...]:
    kinds = getattr(module, "rope_type", None)
    return tuple(kinds) if isinstance(kinds, dict) else (None,)


def _find_tables(module: nn.Module, kind: str | None) -> tuple[str, float, Form] | None:
    """(buffer of frequencies, scaling, form) with which kt.rotary is the module's forward, or None."""
    types = getattr(module, "rope_type", "default")
    rope_type = types.get(kind, "") if isinstance(types, dict) else types
    if not isinstance(rope_type, str) or any(word in rope_type for word in _STATEFUL):
        return None
    prefix = f"{kind}_" if kind else ""
    buffer = f"{prefix}inv_freq"
    frequencies = module._buffers.get(buffer)
    scaling = getattr(module, f"{prefix}attention_scaling", 1.0)
    if frequencies is None or frequencies.is_meta or not isinstance(scaling, (int, float)):
        return None
    try:
        call = {} if kind is None else {"layer_type": kind}
        found = module.forward(torch.zeros(1, 1, 1), _POSITIONS.to(frequencies.device), **call)
    except Exception:  # takes other arguments: not a table of this kind
        return None
    cos, sin = rotary.reference(_POSITIONS.to(frequencies.device), frequencies, float(scaling))
    for form in FORMS:
        if _agree(found, as_form(cos, sin, form)):
            return buffer, float(scaling), form
    return None


def as_form(cos: torch.Tensor, sin: torch.Tensor, form: Form) -> tuple[torch.Tensor, ...]:
    """kt.rotary's tables as the model's own functions want them."""
    if form == "full":
        return cos, sin
    half = cos.shape[-1] // 2
    cos, sin = cos[..., :half], sin[..., :half]
    if form == "paired":
        return cos.repeat_interleave(2, dim=-1), sin.repeat_interleave(2, dim=-1)
    # Not torch.complex or torch.polar: their fake kernels fix symbolic sizes.
    return (cos, sin) if form == "half" else (torch.view_as_complex(torch.stack((cos, sin), dim=-1)),)


def _lift(
    module: nn.Module, found: dict[str | None, tuple[str, float, Form] | None], tracer: Callable[[], Tracer]
) -> ModuleLift:
    def forward(x: Any = None, position_ids: Any = None, layer_type: str | None = None, **other: Any) -> Any:
        verified = found.get(layer_type)
        if verified is None or other or not isinstance(position_ids, torch.Tensor) or position_ids.dim() != 2:
            return NotImplemented
        buffer, scaling, form = verified
        cos, sin = _KT.rotary.default(position_ids, module._buffers[buffer], scaling)
        result = as_form(cos, sin, form)
        for part in result:
            tracer().tables[id(part)] = (form, cos, sin)
        return result if len(result) > 1 else result[0]

    return forward


def apply_lifts(
    root: nn.Module, tracer: Callable[[], Tracer]
) -> dict[tuple[ModuleType, str], Callable[..., Any]]:
    """Replacements of those `apply_rotary…` globals of the model's own code that a trial identified."""
    replacements: dict[tuple[ModuleType, str], Callable[..., Any]] = {}
    for owner in {type(module).__module__ for module in root.modules()}:
        code = sys.modules.get(owner)
        if code is None or owner.startswith("torch."):
            continue
        for name, function in list(vars(code).items()):
            if re.match(r"apply_rotary(_pos)?_emb", name) and inspect.isfunction(function):
                layouts = dict(_find_layouts(function))
                if layouts:
                    replacements[code, name] = _replacement(function, layouts, tracer)
    return replacements


def _find_layouts(function: Callable[..., Any]) -> Iterator[tuple[tuple[Form, bool], Layout]]:
    """((form of the tables, whether only a part of each head turns), layout) that `function` agrees with."""
    generator = torch.Generator().manual_seed(0)
    q = torch.randn(1, 4, 7, 16, generator=generator)
    k = torch.randn(1, 2, 7, 16, generator=generator)
    for partial in (False, True):
        frequencies = 100.0 ** -torch.linspace(0.0, 1.0, 4 if partial else 8)
        cos, sin = rotary.reference(_POSITIONS, frequencies, 1.25)
        for form in FORMS:
            try:
                found = function(q.clone(), k.clone(), *as_form(cos, sin, form))
            except Exception:  # tables of another form
                continue
            for layout in LAYOUTS:
                if _agree(found, _turn(rope.reference, q, k, cos, sin, layout)):
                    yield (form, partial), layout
                    break


def _turn(
    op: Callable[..., Any],
    q: torch.Tensor,
    k: torch.Tensor,
    cos: torch.Tensor,
    sin: torch.Tensor,
    layout: Layout,
) -> tuple[torch.Tensor, torch.Tensor]:
    if layout == "pairs_to_halves":
        q, k = _to_halves(q, cos.shape[-1]), _to_halves(k, cos.shape[-1])
    turned: tuple[torch.Tensor, torch.Tensor] = op(q, k, cos, sin, layout == "pairs")
    return turned


def _to_halves(x: torch.Tensor, width: int) -> torch.Tensor:
    """The first `width` elements of a head, all first of a pair before all second."""
    if x.shape[-1] != width:
        head, tail = x[..., :width], x[..., width:]
        return torch.cat((_to_halves(head, width), tail), dim=-1)
    return torch.unflatten(x, -1, (-1, 2)).transpose(-1, -2).flatten(-2)


def _replacement(
    function: Callable[..., Any], layouts: dict[tuple[Form, bool], Layout], tracer: Callable[[], Tracer]
) -> Callable[..., Any]:
    parameters = list(inspect.signature(function).parameters.values())

    def call(*args: Any, **kwargs: Any) -> Any:
        given = dict(zip((p.name for p in parameters), args, strict=False)) | kwargs
        values = [given.get(p.name, p.default) for p in parameters]
        tables = full_tables(values[2:4], tracer())
        if tables is None:
            return function(*args, **kwargs)
        form, cos, sin = tables
        rest = zip(
            parameters[2 if form == "complex" else 3 :], values[2 if form == "complex" else 3 :], strict=True
        )
        unusual = [p.name for p, value in list(rest)[1:] if value is not p.default]
        q, k = values[0], values[1]
        if unusual or not (isinstance(q, torch.Tensor) and isinstance(k, torch.Tensor)):
            return function(*args, **kwargs)
        layout = layouts.get((form, cos.shape[-1] != q.shape[-1]))
        if layout is None or q.dim() != 4 or k.dim() != 4:
            return function(*args, **kwargs)
        return _turn(_KT.rope.default, q, k, cos, sin, layout)

    return call


def full_tables(values: list[Any], tracer: Tracer) -> tuple[Form, torch.Tensor, torch.Tensor] | None:
    """kt.rotary's own tables behind what a model passes to its function; None for tables of other origin."""
    if not values or not isinstance(values[0], torch.Tensor) or id(values[0]) not in tracer.tables:
        return None
    form, cos, sin = tracer.tables[id(values[0])]
    second = tracer.tables.get(id(values[1])) if len(values) > 1 else None
    if form != "complex" and (second is None or second[2] is not sin):
        return None
    return cast(Form, form), cos, sin


def _agree(found: Any, expected: tuple[torch.Tensor, ...]) -> bool:
    """Whether a trial's results are the reference's to 1e-6 of their size."""
    results = (found,) if isinstance(found, torch.Tensor) else found
    if not isinstance(results, (tuple, list)) or len(results) != len(expected):
        return False
    for result, reference in zip(results, expected, strict=True):
        if not isinstance(result, torch.Tensor) or result.shape != reference.shape:
            return False
        if result.is_complex() != reference.is_complex():
            return False
        if not bool(((result - reference).abs() <= _TOLERANCE * reference.abs().clamp(min=1.0)).all()):
            return False
    return True
