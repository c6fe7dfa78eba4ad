"""caches: the shapes of the key/value caches, read off the ops that write them once every rewrite has run.

Capture makes each layer's cache for attention in full. A rewrite may exchange the op (latent attention keeps one small
vector a token), and what is reserved, planned and printed must be the cache of the op that is left.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
import torch.fx as fx
from ktc.passes.context import Context
from ktc.passes.edit import declare, fake_mode
from ktc.passes.ops import arguments
from ktc.passes.verify import InvalidGraph

from ktc.capture import CacheSpec
from ktc.dialect.spec import spec_of

Shape = tuple[int, int, int, int]
"""Heads, elements of a key and of a value, multiply-adds of a token with a position."""


@dataclass(frozen=True)
class Caches:
    """Sets `context.caches`, and the types of the nodes that read caches.

    Raises InvalidGraph when two ops disagree about one cache, or none writes it.
    """

    name: str = "caches"

    def __call__(self, gm: fx.GraphModule, context: Context) -> fx.GraphModule:
        """See `Pass`."""
        specs = retyped(gm, context)
        changed = {
            name for old, new in zip(context.caches, specs, strict=True) if old != new for name in (old.key, old.value)
        }  # fmt: skip
        dims = {name: (spec.heads, dim) for spec in specs for name, dim in _dims(spec)}
        for node in gm.graph.nodes:
            if node.op == "get_attr" and str(node.target) in changed:
                heads, dim = dims[str(node.target)]
                value = node.meta["val"]
                with fake_mode(gm.graph):
                    node.meta["val"] = value.new_empty((value.shape[0], heads, value.shape[2], dim))
                declare(gm, str(node.target), torch.empty((0, heads, value.shape[2], dim), device="meta"))
        context.caches = specs
        if changed:
            context.events.emit(self.name, "stat", retyped=len(changed) // 2, token_elements=sum(
                spec.heads * (spec.key_dim + spec.value_dim) for spec in specs
            ))  # fmt: skip
        return gm


def retyped(gm: fx.GraphModule, context: Context) -> tuple[CacheSpec, ...]:
    """The caches of `context` with the shapes that a graph's ops write. Raises InvalidGraph, see `Caches`."""
    by_key = {spec.key: spec for spec in context.caches}
    found: dict[str, tuple[Shape, str]] = {}
    for node in gm.graph.nodes:
        spec = spec_of(node.target)
        if spec is None or spec.caches is None or spec.products is None:
            continue
        bound = arguments(node)
        key, value = str(bound["key_cache"].target), str(bound["value_cache"].target)
        if key not in by_key or by_key[key].value != value:
            raise InvalidGraph(
                f"node {node.name} ({spec.name}) writes {key} and {value}, which are no pair of caches"
            )
        values = {
            name: item.meta["val"] if isinstance(item, fx.Node) else item for name, item in bound.items()
        }
        shape = *spec.caches(values), spec.products(values)
        held, other = found.setdefault(key, (shape, node.name))
        if held != shape:
            raise InvalidGraph(
                f"{other} and {node.name} disagree about the cache {key}: (heads, key, value, multiply-adds of a "
                f"token with a position) is {held} and {shape}"
            )
    missing = [key for key in by_key if key not in found]
    if missing:
        raise InvalidGraph(f"no op writes the cache {missing[0]}")
    return tuple(
        replace(spec, heads=heads, key_dim=key, value_dim=value, products=products)
        for spec in context.caches for heads, key, value, products in (found[spec.key][0],)
    )  # fmt: skip


def _dims(spec: CacheSpec) -> tuple[tuple[str, int], tuple[str, int]]:
    return (spec.key, spec.key_dim), (spec.value, spec.value_dim)
