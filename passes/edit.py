"""Editing a graph without losing what is known of it: every new node gets its value, site and origin."""

from __future__ import annotations

import operator
from collections.abc import Callable, Hashable, Iterable, Mapping
from typing import Any

import torch
import torch.fx as fx
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode

from ktc.capture.effects import keep


def fake_mode(graph: fx.Graph) -> FakeTensorMode:
    """The mode that the graph's example values belong to. Raises ValueError for a graph without any."""
    for node in graph.nodes:
        value = node.meta.get("val")
        if isinstance(value, FakeTensor):
            return value.fake_mode
    raise ValueError("the graph carries no fake tensors: it was not made by ktc's capture")


def value_of(argument: Any) -> Any:
    """An argument with every node replaced by its example value."""
    return fx.map_arg(argument, lambda node: node.meta["val"])


def call(
    graph: fx.Graph,
    target: Callable[..., Any],
    args: tuple[Any, ...],
    kwargs: Mapping[str, Any] | None = None,
    name: str | None = None,
) -> fx.Node:
    """Inserts a call at the graph's insertion point and computes its example value on fake tensors."""
    node = graph.create_node("call_function", target, args, dict(kwargs or {}), name)
    mode = fake_mode(graph)
    values, options = value_of(args), value_of(dict(kwargs or {}))
    # Layers are alike: what one call made of operands of some types, it makes of them in every layer.
    known: dict[Hashable, Any] = vars(mode).setdefault(_KNOWN, {})
    key = (target, _type_key(values), _type_key(options))
    if key not in known:
        with torch.no_grad(), mode:
            known[key] = target(*values, **options)
    node.meta["val"] = known[key]
    return node


_KNOWN = "ktc_known"
"""Where a mode keeps what is known: with it, since the values hold on to their mode."""


def _type_key(value: Any) -> Hashable:
    """What the result of an op on fake tensors depends on: sizes, strides, dtype and device, and plain arguments."""
    if isinstance(value, torch.Tensor):
        sizes = (*value.shape, *value.stride(), value.storage_offset())
        return (value.dtype, str(value.device), *map(_number, sizes))
    if isinstance(value, (tuple, list)):
        return (type(value).__name__, *map(_type_key, value))
    if isinstance(value, dict):
        return tuple((name, _type_key(item)) for name, item in value.items())
    return (type(value).__name__, _number(value))


def _number(value: Any) -> Hashable:
    if isinstance(value, (torch.SymInt, torch.SymFloat, torch.SymBool)):
        return str(value.node.expr)
    return value  # type: ignore[no-any-return]


def element(graph: fx.Graph, node: fx.Node, index: int) -> fx.Node:
    """Inserts `node[index]` for one result of an op with several."""
    item = call(graph, operator.getitem, (node, index))
    inherit(item, [node])
    return item


def inherit(node: fx.Node, sources: Iterable[fx.Node]) -> None:
    """Gives a new node the site, stack and device of the nodes it stands for; the first one's site leads."""
    origins = list(sources)
    if not origins:
        return
    first = origins[0].meta
    for key in ("stack", "site", "place", "kernel"):
        if key in first and key not in node.meta:
            node.meta[key] = first[key]
    sites = [site for origin in origins for site in sites_of(origin)]
    node.meta["sites"] = tuple(dict.fromkeys(sites))
    node.meta["origin"] = tuple(
        dict.fromkeys(name for o in origins for name in o.meta.get("origin", (o.name,)))
    )


def sites_of(node: fx.Node) -> tuple[str, ...]:
    """The sites whose computation a node carries: one, or several after a fusion."""
    if "sites" in node.meta:
        return tuple(node.meta["sites"])
    return (node.meta["site"],) if "site" in node.meta else ()


def common_stack(nodes: Iterable[fx.Node]) -> tuple[tuple[str, str], ...]:
    """The modules that all nodes lie in, outermost first."""
    stacks = [tuple(node.meta.get("stack", ())) for node in nodes]
    shared: list[tuple[str, str]] = []
    for levels in zip(*stacks, strict=False):
        if any(level != levels[0] for level in levels):
            break
        shared.append(levels[0])
    return tuple(shared)


def same_type(a: object, b: object) -> bool:
    """Whether two example values have the same shapes and dtypes; symbolic sizes are compared as they are written."""
    if isinstance(a, (tuple, list)) and isinstance(b, (tuple, list)):
        return len(a) == len(b) and all(map(same_type, a, b))
    if isinstance(a, torch.Tensor) and isinstance(b, torch.Tensor):
        return a.dtype == b.dtype and str(tuple(a.shape)) == str(tuple(b.shape))
    return type(a) is type(b) and str(a) == str(b)


def refresh(graph: fx.Graph, changed: Iterable[fx.Node]) -> None:
    """Computes the example values anew that follow from nodes whose own have changed.

    Raises:
        RuntimeError: a node cannot take what it now reads; its name is in the message.
    """
    dirty = set(changed)
    if not dirty:
        return
    with torch.no_grad(), fake_mode(graph):
        for node in graph.nodes:
            if node.op not in ("call_function", "call_method") or dirty.isdisjoint(node.all_input_nodes):
                continue
            args, kwargs = value_of(node.args), value_of(dict(node.kwargs))
            try:
                function = node.target if callable(node.target) else getattr(args[0], str(node.target))
                value = function(*(args if callable(node.target) else args[1:]), **kwargs)
            except (RuntimeError, ValueError, TypeError, IndexError) as error:
                raise RuntimeError(f"{node.name}: {error}") from error
            if not same_type(value, node.meta.get("val")):
                node.meta["val"] = value
                dirty.add(node)


def clean(gm: fx.GraphModule) -> None:
    """Removes dead nodes; those that mutate stay. Code is generated from the last graph only, where it is run."""
    gm.graph.eliminate_dead_code(keep)


def declare(gm: fx.GraphModule, target: str, value: object) -> None:
    """Makes `target` an attribute of the module (with containers on the way), so that the graph may read it."""
    *path, name = target.split(".")
    owner: torch.nn.Module = gm
    for part in path:
        child = owner._modules.get(part)
        if child is None:
            child = torch.nn.Module()
            owner.add_module(part, child)
        owner = child
    owner._parameters.pop(name, None)
    owner._buffers.pop(name, None)
    owner.__dict__[name] = value
