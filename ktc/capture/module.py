"""Captures any module that is no language model, with the inputs of an example call."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import nn
from torch.utils._pytree import tree_flatten

from ktc.capture.captured import Captured
from ktc.capture.errors import CaptureError
from ktc.capture.run import graph_module, make_tracer, trace
from ktc.capture.symbols import Dims

# What the dimensions of a two-dimensional integer input usually are.
_DEFAULT_DIMS = {0: "batch", 1: "sequence"}


def capture_module(
    model: nn.Module,
    example: Mapping[str, torch.Tensor],
    dynamic: Mapping[str, Mapping[int, str]] | None = None,
    *,
    stamp: bool = True,
) -> Captured:
    """The graph of `model(**example)`; ops outside the dialect stay the torch functions that the model calls.

    The graph returns a tuple of the output's leaves, of which `torch.utils._pytree.tree_unflatten(leaves,
    output_spec)` makes the model's own output type.

    Args:
        model: any module, on the CPU or on meta; its training-only parts must be off (`model.eval()`).
        example: tensors by keyword of `forward`; only shapes and dtypes are used.
        dynamic: names of symbolic dimensions by input and dimension; equal names are equal sizes. Without it
            the dimensions of two-dimensional integer inputs are "batch" and "sequence", all others are fixed.
        stamp: trace structurally equal layers once.

    Raises:
        CaptureError: data-dependent control flow, or code that assumes a size of a dynamic dimension.
    """
    if any(
        module.training and isinstance(module, nn.modules.dropout._DropoutNd) for module in model.modules()
    ):
        raise CaptureError("the model is in training mode", hint="call model.eval() first")
    named = _dynamic_dims(example) if dynamic is None else dynamic
    unknown = sorted(set(named) - set(example))
    if unknown:
        raise CaptureError(
            f"dynamic dimensions were given for inputs that do not exist: {', '.join(unknown)}"
        )
    dims = Dims()
    tracer = make_tracer(model, dims, stamp=stamp)
    inputs = {
        name: tracer.placeholder(
            name,
            [named.get(name, {}).get(place, size) for place, size in enumerate(tensor.shape)],
            tensor.dtype,
        )
        for name, tensor in example.items()
    }
    tracer.define_dims()
    output = trace(model, tracer, lambda: model(**inputs))
    leaves, spec = tree_flatten(output)
    strangers = [type(leaf).__name__ for leaf in leaves if not isinstance(leaf, _LEAVES)]
    if strangers:
        raise CaptureError(f"the output holds {', '.join(strangers)}, which a graph cannot return")
    tracer.output(tuple(leaves))
    limits = dims.limits()
    module, parameters = graph_module(model, tracer)
    return Captured(
        module=module,
        caches=(),
        inputs=tuple(example),
        output_spec=spec,
        kind="module",
        dims=dims.symbols(),
        limits=limits,
        parameters=parameters,
    )


_LEAVES = (torch.Tensor, torch.SymInt, int, float, bool, str, type(None))


def _dynamic_dims(example: Mapping[str, torch.Tensor]) -> dict[str, dict[int, str]]:
    return {
        name: _DEFAULT_DIMS
        for name, tensor in example.items()
        if tensor.dim() == 2 and not tensor.is_floating_point() and not tensor.is_complex()
    }
