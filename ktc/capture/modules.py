"""Modules that mean a dialect op: by class for torch's own, by a verified trial for norms and activations."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from ktc.capture.tracer import ModuleLift
from ktc.dialect import layer_norm, rms_norm

_KT = torch.ops.kt
_TOLERANCE = 1e-6


def module_lifts(root: nn.Module) -> dict[int, ModuleLift]:
    """The lifts of all modules under `root` by id, so that a lifted op's node gets the module's bare name."""
    lifts: dict[int, ModuleLift] = {}
    verified: dict[Any, Any] = {}
    for module in root.modules():
        lift = _by_class(module)
        if lift is None and re.search(r"Norm$", type(module).__name__):
            lift = _norm(module, verified)
        if lift is None and type(module).__module__ == "transformers.activations":
            lift = _activation(module, verified)
        if lift is not None:
            lifts[id(module)] = lift
    return lifts


def _by_class(module: nn.Module) -> ModuleLift | None:
    forward = type(module).forward
    if isinstance(module, nn.Linear) and forward is nn.Linear.forward:
        return lambda input: _KT.linear.default(input, module.weight, module.bias)
    if isinstance(module, nn.Embedding) and forward is nn.Embedding.forward and module.max_norm is None:
        return lambda input: _KT.embedding.default(input, module.weight)
    if isinstance(module, nn.LayerNorm) and forward is nn.LayerNorm.forward:
        if module.weight is None or len(module.normalized_shape) != 1:
            return None
        return lambda input: _KT.layer_norm.default(input, module.weight, module.bias, float(module.eps))
    if isinstance(module, nn.SiLU) and not module.inplace:
        return lambda input: _KT.silu.default(input)
    if isinstance(module, nn.GELU):
        return lambda input: _KT.gelu.default(input, module.approximate)
    return None


def on_trial(module: nn.Module, tensors: dict[str, torch.Tensor]) -> nn.Module:
    """A copy of a module without children with other parameters; the module itself stays as it is."""
    trial = type(module).__new__(type(module))
    trial.__dict__.update(module.__dict__)
    trial.__dict__["_parameters"] = {key: nn.Parameter(value, False) for key, value in tensors.items()}
    trial.__dict__["_buffers"] = dict(module._buffers)
    return trial


def _norm(module: nn.Module, verified: dict[Any, Any]) -> ModuleLift | None:
    """The class's own forward on random data decides whether it is a norm of the dialect, and which."""
    weight = module._parameters.get("weight")
    if weight is None or weight.dim() != 1 or len(module._parameters) != 1 or list(module.children()):
        return None
    epsilons = tuple(v for v in vars(module).values() if isinstance(v, float) and 0.0 < v < 1e-2)
    key = (type(module), epsilons, weight.shape[0])
    if key not in verified:
        verified[key] = _find_norm(module, weight.shape[0], epsilons)
    found: tuple[Any, tuple[Any, ...]] | None = verified[key]
    if found is None:
        return None
    op, constants = found
    return lambda *args, **kwargs: (
        op(args[0], module.weight, *constants) if len(args) == 1 and not kwargs else NotImplemented
    )


def _find_norm(
    module: nn.Module, width: int, epsilons: tuple[float, ...]
) -> tuple[Any, tuple[Any, ...]] | None:
    """(op, its arguments after x and weight) that the module's forward agrees with."""
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(width, generator=generator)
    x = torch.randn(3, width, generator=generator) * torch.tensor([[1.0], [1e-3], [30.0]])
    try:
        expected = on_trial(module, {"weight": weight}).forward(x)
    except Exception:  # a forward of another kind: not this op
        return None
    for eps in epsilons:
        for offset in (0.0, 1.0):
            if _equal(expected, rms_norm.reference(x, weight, eps, offset)):
                return _KT.rms_norm.default, (eps, offset)
        if _equal(expected, layer_norm.reference(x, weight, None, eps)):
            return _KT.layer_norm.default, (None, eps)
    return None


def _activation(module: nn.Module, verified: dict[Any, Any]) -> ModuleLift | None:
    """An activation module of transformers that is silu or gelu, however it writes the formula."""
    if type(module) not in verified:
        verified[type(module)] = _find_activation(module)
    op: Callable[[torch.Tensor], torch.Tensor] | None = verified[type(module)]
    return op and (lambda *args, **kwargs: op(args[0]) if len(args) == 1 and not kwargs else NotImplemented)


def _find_activation(module: nn.Module) -> Callable[[torch.Tensor], torch.Tensor] | None:
    x = torch.linspace(-8.0, 8.0, 1001)
    try:
        found = module.forward(x.clone())
    except Exception:  # wants other arguments: not one of these
        return None
    if _equal(found, F.silu(x)):
        return lambda input: _KT.silu.default(input)
    for approximate in ("none", "tanh"):
        if _equal(found, F.gelu(x, approximate=approximate)):
            return lambda input, a=approximate: _KT.gelu.default(input, a)  # type: ignore[misc]
    return None


def _equal(found: Any, expected: torch.Tensor) -> bool:
    """Whether a trial's result is the reference's to 1e-6 of its size."""
    if not isinstance(found, torch.Tensor) or found.shape != expected.shape:
        return False
    return bool(((found - expected).abs() <= _TOLERANCE * expected.abs().clamp(min=1.0)).all())
