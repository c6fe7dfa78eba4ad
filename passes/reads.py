"""How much of a weight one token reads: all of it, k of E experts, or one row of an embedding."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch.fx as fx
from ktc.passes.fold import leaves
from ktc.passes.ops import arguments, op_name

from ktc.dialect.spec import spec_of


def shares(graph: fx.Graph) -> dict[str, float]:
    """Share of its elements that one token reads, for every weight of a graph that is not lowered yet.

    Keys are the names that `get_attr` nodes read; a weight that several ops read counts for each of them, up to 1.
    """
    found: dict[str, float] = {}
    for node in graph.nodes:
        spec = spec_of(node.target)
        if spec is None or not spec.weights:
            continue
        bound = arguments(node)
        for name in spec.weights:
            weight = bound[name]
            if not isinstance(weight, fx.Node):
                continue
            share = _share(op_name(node), weight, bound)
            for leaf in leaves(weight):
                found[leaf] = min(1.0, found.get(leaf, 0.0) + share)
    return found


def _share(op: str, weight: fx.Node, bound: Mapping[str, Any]) -> float:
    rows = int(weight.meta["val"].shape[0])
    if op == "kt.experts":
        return int(bound["indices"].meta["val"].shape[-1]) / rows
    return 1.0 / rows if op == "kt.embedding" else 1.0
