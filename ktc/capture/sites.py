"""The sites of a model: what rules see of each of its modules."""

from __future__ import annotations

import re

from torch import nn

from ktc.grammar.sites import Site


def module_sites(model: nn.Module) -> list[Site]:
    """One site for every named module, the root ("") first, in the model's order.

    A module's layer is the index after its outermost ModuleList, if that list has one entry a decoder layer
    (the configuration's `num_hidden_layers`) or there is no configuration to ask.
    """
    layers = getattr(getattr(model, "config", None), "num_hidden_layers", None)
    lists = [
        name
        for name, module in model.named_modules()
        if isinstance(module, nn.ModuleList) and (layers is None or len(module) == layers)
    ]
    prefix = re.compile("|".join(rf"{re.escape(name)}\.(\d+)(?:\.|$)" for name in lists)) if lists else None
    return [_site(name, module, prefix) for name, module in model.named_modules()]


def _site(name: str, module: nn.Module, prefix: re.Pattern[str] | None) -> Site:
    parameters = list(module.parameters())
    found = prefix.match(name) if prefix is not None else None
    index = next((group for group in found.groups() if group is not None), None) if found else None
    own = module._parameters.get("weight")
    if own is None:
        own = next((p for p in module._parameters.values() if p is not None), None)
    return Site(
        name=name,
        classes=tuple(kind.__name__ for kind in type(module).__mro__ if kind is not object),
        layer=None if index is None else int(index),
        params=sum(p.numel() for p in parameters),
        bytes=sum(p.numel() * p.element_size() for p in parameters),
        dtype=None if own is None else str(own.dtype).removeprefix("torch."),
        shape=None if own is None else tuple(own.shape),
    )
