"""Routers of mixtures of experts: modules that are a linear and kt.router, found by running them on random data.

What a module's attributes offer as constants (numbers of groups, a scale) is tried; what no choice of them explains
stays the torch code that it is.
"""

from __future__ import annotations

import itertools
import operator
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from ktc.capture.modules import on_trial
from ktc.capture.stamp import fingerprint
from ktc.capture.tracer import Composite, ModuleLift
from ktc.dialect import router

_KT = torch.ops.kt
_TOLERANCE = 1e-6
_TOKENS = 96


@dataclass(frozen=True)
class Router:
    """What a module computes, as the dialect says it.

    Attributes:
        attributes: of kt.router.
        bias: name of the buffer or parameter that is added for the choice, or "".
        places: for each item that the module returns, what it is: "logits", "weights" or "indices".
        wide: whether it casts its input to float32 before the product.
        narrow: whether it casts the weights to its parameters' dtype.
    """

    attributes: dict[str, Any]
    bias: str
    places: tuple[str, ...]
    wide: bool
    narrow: bool


def router_lifts(root: nn.Module) -> dict[int, ModuleLift]:
    """Lifts of the routers under `root` by id."""
    lifts: dict[int, ModuleLift] = {}
    verified: dict[Any, Router | None] = {}
    for module in root.modules():
        if not re.search(r"(Router|Gate)$", type(module).__name__) or not _is_candidate(module):
            continue
        key = fingerprint(module)
        if key not in verified:
            verified[key] = find_router(module)
        found = verified[key]
        if found is not None:
            lifts[id(module)] = Composite(_lift(module, found))
    return lifts


def _is_candidate(module: nn.Module) -> bool:
    """Whether a module has the parameters of a linear from tokens to experts, and nothing inside."""
    parameters = dict(module._parameters)
    weight, bias = parameters.pop("weight", None), parameters.pop("bias", None)
    if weight is None or weight.dim() != 2 or any(p is not None for p in parameters.values()):
        return False
    fits = bias is None or tuple(bias.shape) == (weight.shape[0],)
    return fits and not list(module.children()) and _choice_bias(module) is not None


def _choice_bias(module: nn.Module) -> str | None:
    """The name of the one buffer, "" without any, None where buffers are more than a bias of the experts."""
    buffers = {name: buffer for name, buffer in module._buffers.items() if buffer is not None}
    experts = module._parameters["weight"].shape[0]  # type: ignore[union-attr]
    if any(tuple(buffer.shape) != (experts,) for buffer in buffers.values()) or len(buffers) > 1:
        return None
    return next(iter(buffers), "")


def find_router(module: nn.Module) -> Router | None:
    """The kt.router with which a linear is the module's forward on random data, or None."""
    weight, bias = module._parameters["weight"], module._parameters.get("bias")
    if weight is None:
        return None
    experts, hidden = weight.shape
    generator = torch.Generator().manual_seed(0)
    tensors = {"weight": torch.randn(experts, hidden, generator=generator) * (2.0 / hidden**0.5)}
    if bias is not None:
        tensors["bias"] = torch.randn(experts, generator=generator)
    name = _choice_bias(module) or ""
    added = {name: torch.rand(experts, generator=generator)} if name else {}
    x = torch.randn(_TOKENS, hidden, generator=generator)
    found = _try(module, tensors, added, x)
    places = _places(found, experts)
    if places is None:
        return None
    results = dict(zip(places, found, strict=True))
    if not _equal(results["logits"], F.linear(x, tensors["weight"], tensors.get("bias"))):
        return None
    attributes = _search(module, results, added.get(name))
    # Which of its dtypes the module keeps shows on narrow parameters.
    half = {key: value.bfloat16() for key, value in tensors.items()}
    dtypes = [item.dtype for item in _try(module, half, added, x.bfloat16())]
    if attributes is None or len(dtypes) != len(places):
        return None
    kept = dict(zip(places, dtypes, strict=True))
    return Router(
        attributes=attributes,
        bias=name,
        places=places,
        wide=kept["logits"] is torch.float32,
        narrow=kept["weights"] is not torch.float32,
    )


def _try(
    module: nn.Module, tensors: dict[str, torch.Tensor], buffers: dict[str, torch.Tensor], x: torch.Tensor
) -> tuple[torch.Tensor, ...]:
    """What the module returns for x with other tensors; () where it fails or returns something else."""
    trial = on_trial(module, tensors)
    trial.__dict__["_buffers"] = buffers
    try:
        found = trial.forward(x)
    except Exception:  # a forward of another kind: no router
        return ()
    items = found if isinstance(found, tuple) else ()
    return items if all(isinstance(item, torch.Tensor) for item in items) else ()


def _places(found: tuple[torch.Tensor, ...], experts: int) -> tuple[str, ...] | None:
    """Which item of a router's results is which, by dtype and shape; None unless all are there and no more."""
    places = []
    chosen = next((item.shape for item in found if not item.is_floating_point()), None)
    for item in found:
        if not item.is_floating_point():
            places.append("indices")
        elif tuple(item.shape) == (_TOKENS, experts) and "logits" not in places:
            places.append("logits")
        elif item.shape == chosen and item.shape[0] == _TOKENS:
            places.append("weights")
    whole = len(places) == len(found) == 3
    return tuple(places) if whole and set(places) == {"logits", "weights", "indices"} else None


def _search(
    module: nn.Module, results: dict[str, torch.Tensor], bias: torch.Tensor | None
) -> dict[str, Any] | None:
    """The attributes of kt.router that give the module's choice and weights from its own logits."""
    weights, indices = _by_index(results["weights"], results["indices"])
    constants = [value for value in vars(module).values() if type(value) in (int, float) and value > 0]
    agreeing: list[tuple[float, dict[str, Any]]] = []
    for choice in _choices(constants, results["logits"].shape[1], indices.shape[1]):
        # Only where the choice agrees do weights matter.
        if not torch.equal(_by_index(*router.reference(results["logits"], bias, **choice))[1], indices):
            continue
        for normalize in (False, True):
            found = _by_index(*router.reference(results["logits"], bias, **choice, normalize=normalize))[0]
            for scale in (1.0, *constants):
                if _equal(found * scale, weights):
                    error = float((found * scale - weights).abs().max())
                    agreeing.append((error, {**choice, "normalize": normalize, "scale": float(scale)}))
    # Softmax of the chosen is normalised softmax but for rounding: the module's own formula is the closer one.
    return min(agreeing, key=operator.itemgetter(0))[1] if agreeing else None


def _choices(constants: list[float], experts: int, top_k: int) -> Iterator[dict[str, Any]]:
    """Ways to choose experts, plain ones first; numbers of groups come from the module's own attributes."""
    counts = sorted({int(value) for value in constants if type(value) is int and value < experts})
    groups = [(1, 1), *((g, kept) for g in counts for kept in counts if kept < g)]
    for (count, kept), scoring in itertools.product(groups, router.SCORINGS):
        for group_score in router.GROUP_SCORES if count > 1 else router.GROUP_SCORES[:1]:
            choice: dict[str, Any] = {
                "top_k": top_k,
                "scoring": scoring,
                "groups": count,
                "kept_groups": kept,
            }
            choice["group_score"] = group_score
            try:
                router.check(experts, *choice.values())
            except ValueError:  # sizes that do not fit each other
                continue
            yield choice


def _by_index(weights: torch.Tensor, indices: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Both in the order of the experts' numbers: in which order a token's experts come, no sum depends on."""
    ordered, places = indices.sort(dim=-1)
    return weights.gather(-1, places), ordered


def _lift(module: nn.Module, found: Router) -> Callable[..., Any]:
    def forward(*args: Any, **kwargs: Any) -> Any:
        if len(args) != 1 or kwargs:
            return NotImplemented
        weight, bias = module._parameters["weight"], module._parameters.get("bias")
        x = args[0] if args[0].dim() == 2 else args[0].reshape(-1, args[0].shape[-1])
        logits = _KT.linear.default(x.float() if found.wide else x, weight, bias)
        added = module._buffers[found.bias] if found.bias else None
        weights, indices = _KT.router.default(logits, added, **found.attributes)
        items = {
            "logits": logits,
            "weights": weights.to(logits.dtype) if found.narrow else weights,
            "indices": indices,
        }
        return tuple(items[place] for place in found.places)

    return forward


def _equal(found: torch.Tensor, expected: torch.Tensor) -> bool:
    """Whether a trial's result is the reference's to 1e-6 of its size."""
    if found.shape != expected.shape:
        return False
    return bool(((found - expected).abs() <= _TOLERANCE * expected.abs().clamp(min=1.0)).all())
