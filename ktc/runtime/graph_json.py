"""Graphs as JSON: how an artifact keeps what to run without pickle and without code that loading would
execute.

Targets are names that must resolve to an op of torch or ktc, a function of `operator`, `math` or torch that
computes, or a method of `torch.Tensor`; attributes are read from a fixed list; names that fx writes into the code
it generates must be identifiers. Anything else is refused, when writing and when reading: a graph cannot open a
file, look inside Python's objects or bring code of its own.
"""

from __future__ import annotations

import importlib
import keyword
from collections.abc import Mapping, Sequence
from typing import Any

import torch
import torch.fx as fx
from torch._ops import OpOverload

from ktc.errors import ArtifactError

MODULES = ("operator", "math", "torch", "torch.nn.functional", "torch._C._nn")
NAMESPACES = ("kt", "kt_cpu", "kt_torch", "aten")
META = ("site", "device", "kernel", "segment")
ATTRIBUTES = frozenset({"shape", "dtype", "device", "ndim", "T", "mT", "H", "mH", "real", "imag", "itemsize"})
"""What `getattr` may read of a tensor."""
REFUSED = frozenset({"load", "save", "from_file", "call", "attrgetter", "methodcaller", "itemgetter"})
"""Ops and functions that reach outside the tensors, or call what they are given."""
REFUSED_METHODS = frozenset({
    "tofile", "apply_", "map_", "map2_", "set_", "share_memory_", "module_load", "backward", "register_hook",
    "register_post_accumulate_grad_hook", "reinforce", "storage", "untyped_storage", "numpy", "data_ptr",
})  # fmt: skip


def to_json(graph: fx.Graph) -> list[dict[str, Any]]:
    """A graph as a list of plain records, in order. Raises ArtifactError naming a node that cannot be written."""
    records = []
    for node in graph.nodes:
        record: dict[str, Any] = {"name": node.name, "op": node.op}
        if node.op == "call_function":
            record["target"] = _target_name(node)
        elif node.op == "call_module":
            raise ArtifactError(f"node {node.name} calls module {node.target}, which an artifact cannot hold")
        else:
            record["target"] = str(node.target)
            if node.op == "call_method":
                _check_method(record["target"])
        _check_getattr(node.target, node.args)
        record["args"] = _encode(node.args, node)
        record["kwargs"] = {key: _encode(value, node) for key, value in node.kwargs.items()}
        record["meta"] = {key: node.meta[key] for key in META if node.meta.get(key) is not None}
        records.append(record)
    return records


def from_json(records: object) -> fx.Graph:
    """The graph that `to_json` wrote. Raises ArtifactError naming the record that is not one."""
    graph = fx.Graph()
    nodes: dict[str, fx.Node] = {}
    if not isinstance(records, list):
        raise ArtifactError("the graph of the artifact is not a list of nodes")
    for record in records:
        try:
            name, op, target = record["name"], record["op"], record["target"]
            args, kwargs = _decode(record["args"], nodes), _decode_items(record["kwargs"], nodes)
            if op == "output":
                graph.output(args[0])
                continue
            if op not in ("placeholder", "get_attr", "call_function", "call_method"):
                raise ArtifactError(f"node {name!r} has the unknown kind {op!r}")
            for word in (name, *kwargs, *([target] if op == "placeholder" else [])):
                _check_identifier(word)
            if op == "call_function":
                target = _function(target)
                _check_getattr(target, args)
            elif op == "call_method":
                _check_method(target)
            elif op == "placeholder" and (args or kwargs):
                raise ArtifactError(f"the input {name!r} has a default value")
            node = graph.create_node(op, target, tuple(args), kwargs, name=name)
            node.meta.update(record.get("meta", {}))
            nodes[name] = node
        except (KeyError, TypeError, IndexError, AttributeError, ValueError, RuntimeError) as error:
            raise ArtifactError(
                f"node {record!r:.120} of the artifact's graph cannot be read: {error}"
            ) from error
    return graph


def _target_name(node: fx.Node) -> str:
    target = node.target
    if isinstance(target, OpOverload):
        namespace, _, name = target._schema.name.partition("::")
        found = f"op:{namespace}.{name}.{target._overloadname}"
    else:
        found = ""
        for module in MODULES:
            name = getattr(target, "__name__", "")
            if name and getattr(importlib.import_module(module), name, None) is target:
                found = f"fn:{module}:{name}"
                break
        if target is getattr:
            found = "fn:builtins:getattr"
    try:
        _function(found)
    except (ArtifactError, AttributeError, ValueError) as error:
        raise ArtifactError(f"node {node.name} calls {target}, which an artifact cannot hold") from error
    return found


def _function(name: str) -> Any:
    kind, _, rest = name.partition(":")
    if kind == "op":
        namespace, op, overload = rest.split(".")
        if namespace in NAMESPACES and op not in REFUSED:
            found = getattr(getattr(getattr(torch.ops, namespace), op), overload)
            if isinstance(found, OpOverload):
                return found
    elif kind == "fn":
        module, _, function = rest.partition(":")
        if (module, function) == ("builtins", "getattr"):
            return getattr
        if module in MODULES and function not in REFUSED and not function.startswith("_"):
            found = getattr(importlib.import_module(module), function)
            if callable(found) and not isinstance(found, type) and _computes(module, function, found):
                return found
    raise ArtifactError(f"{name!r} is no function that an artifact may call")


def _computes(module: str, name: str, found: Any) -> bool:
    """Whether a function of torch is one on tensors and sizes, not one of the package's other services."""
    if module == "torch":
        native = getattr(torch._C, "_VariableFunctions", None)
        return hasattr(native, name) or name in torch.functional.__all__ or name.startswith("sym_")
    if module == "torch.nn.functional":
        return getattr(found, "__module__", None) in ("torch.nn.functional", "torch._C._nn", None)
    return True


def _check_method(name: str) -> None:
    if name.startswith("_") or name in REFUSED_METHODS or not callable(getattr(torch.Tensor, name, None)):
        raise ArtifactError(f"{name!r} is no method of a tensor that an artifact may call")


def _check_getattr(target: Any, args: Sequence[Any]) -> None:
    if target is getattr and (len(args) != 2 or args[1] not in ATTRIBUTES):
        raise ArtifactError(f"an artifact may not read the attribute {args[1:]!r:.60}")


def _check_identifier(word: Any) -> None:
    """fx writes these words into source code: anything but a name could be code."""
    if not isinstance(word, str) or not word.isidentifier() or keyword.iskeyword(word):
        raise ArtifactError(f"{word!r:.60} in the artifact's graph is no name")


def _encode(value: Any, node: fx.Node) -> Any:
    if isinstance(value, fx.Node):
        return {"node": value.name}
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    if isinstance(value, tuple):
        return {"tuple": [_encode(item, node) for item in value]}
    if isinstance(value, list):
        return [_encode(item, node) for item in value]
    if isinstance(value, slice):
        return {"slice": [_encode(part, node) for part in (value.start, value.stop, value.step)]}
    if value is Ellipsis:
        return {"ellipsis": True}
    if isinstance(value, torch.dtype):
        return {"dtype": str(value).replace("torch.", "")}
    if isinstance(value, torch.device):
        return {"device": str(value)}
    raise ArtifactError(
        f"node {node.name} has an argument of type {type(value).__name__}, which an artifact cannot hold"
    )


def _decode(value: Any, nodes: Mapping[str, fx.Node]) -> Any:
    if isinstance(value, list):
        return [_decode(item, nodes) for item in value]
    if not isinstance(value, dict):
        return value
    ((kind, inner),) = value.items()
    if kind == "node":
        return nodes[inner]
    if kind == "tuple":
        return tuple(_decode(item, nodes) for item in inner)
    if kind == "slice":
        return slice(*(_decode(part, nodes) for part in inner))
    if kind == "ellipsis":
        return Ellipsis
    if kind == "dtype":
        found = getattr(torch, inner)
        if isinstance(found, torch.dtype):
            return found
    if kind == "device":
        return torch.device(inner)
    raise ValueError(f"{value!r} is no argument")


def _decode_items(items: Mapping[str, Any], nodes: Mapping[str, fx.Node]) -> dict[str, Any]:
    return {str(key): _decode(value, nodes) for key, value in items.items()}
