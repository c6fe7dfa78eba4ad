"""Structural identity of modules: equal layers are traced once and stamped for the others."""

from __future__ import annotations

import functools
import types
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
import torch.fx as fx
from torch import nn

# Attributes in which layers may differ and still run the same code: the index only selects the cache.
_IGNORED = frozenset({"layer_idx", "training"})


@dataclass
class Template:
    """A traced layer that others are cloned from.

    Attributes:
        name: its dotted name.
        module: the layer itself.
        inputs: nodes of the tensors it was called with, in pytree order.
        nodes: the nodes its call recorded, in order.
        output: what the call returned, and `output_nodes` the same tree with nodes in place of tensors.
    """

    name: str
    module: nn.Module
    inputs: list[fx.Node]
    nodes: list[fx.Node]
    output: Any
    output_nodes: Any


def fingerprint(module: nn.Module) -> tuple[Any, ...]:
    """Classes, attributes, tensor shapes and dtypes of a module and its children, without layer indices."""
    return tuple(_parts(module))


def _parts(module: nn.Module) -> Iterator[tuple[Any, ...]]:
    for name, child in module.named_modules():
        plain = tuple(sorted((key, _identity(value)) for key, value in vars(child).items() if _counts(key)))
        tensors = tuple(
            (key, tuple(tensor.shape), str(tensor.dtype))
            for key, tensor in (*child._parameters.items(), *child._buffers.items())
            if tensor is not None
        )
        yield name, type(child), plain, tensors


def _counts(key: str) -> bool:
    return not key.startswith("_") and key not in _IGNORED


def _identity(value: object) -> str:
    """Plain values by value; objects, which may hold anything, by being the same object."""
    if isinstance(value, (int, float, str, bool, type(None), torch.dtype, torch.device)):
        return repr(value)
    if isinstance(value, (list, tuple)):
        return f"{type(value).__name__}({', '.join(_identity(item) for item in value)})"
    if isinstance(value, functools.partial):
        return (
            f"partial({_identity(value.func)}, {_identity(value.args)}, {sorted(value.keywords.items())!r})"
        )
    if isinstance(value, types.MethodType) and isinstance(value.__self__, nn.Module):
        return f"method {type(value.__self__).__qualname__}.{value.__name__}"
    return f"object {id(value)}"


def stampable(root: nn.Module) -> frozenset[int]:
    """ids of the outermost modules that lie in a ModuleList with others: decoder layers, encoder layers."""
    found: set[int] = set()

    def visit(module: nn.Module) -> None:
        if isinstance(module, nn.ModuleList) and len(module) > 1:
            found.update(id(child) for child in module)
            return
        for child in module.children():
            visit(child)

    visit(root)
    return frozenset(found)


def layer_indices(template: nn.Module, other: nn.Module) -> dict[int, int]:
    """For structurally equal modules: each `layer_idx` of the template and the one in its place."""
    indices: dict[int, int] = {}
    for mine, theirs in zip(template.modules(), other.modules(), strict=True):
        index = getattr(mine, "layer_idx", None)
        if isinstance(index, int):
            indices[index] = int(theirs.layer_idx)  # type: ignore[arg-type]
    return indices
