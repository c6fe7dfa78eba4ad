"""Records calls on fake tensors as nodes of an fx graph: which node a tensor or size is, and what nodes are called."""

from __future__ import annotations

import operator
from collections.abc import Sequence
from contextlib import nullcontext
from typing import Any

import torch
import torch.fx as fx
from torch import nn
from torch._subclasses.fake_tensor import FakeTensor
from torch.utils._pytree import tree_leaves, tree_map
from torch.utils._sympy.interp import sympy_interp
from torch.utils._sympy.reference import PythonReferenceAnalysis

from ktc.capture.effects import keep
from ktc.capture.errors import CaptureError, calling_line
from ktc.capture.symbols import Dims
from ktc.dialect import spec_of


class Recorder:
    """A graph under construction.

    Args:
        root: the model whose parameters and buffers become attributes of the graph.
        dims: symbolic dimensions and the fake mode.
        strip: prefix left out of node names ("model").

    Attributes:
        graph: the graph.
        dims: as given.
        constants: tensors of the code that are no attributes of the model, by the name they got.
    """

    def __init__(self, root: nn.Module, dims: Dims, strip: str) -> None:
        super().__init__()
        self.graph = fx.Graph()
        self.dims = dims
        self.constants: dict[str, torch.Tensor] = {}
        self._root, self._strip = root, strip
        self._names: dict[int, str] = {}
        for name, tensor in (*root.named_parameters(), *root.named_buffers()):
            self._names.setdefault(id(tensor), name)
        self._nodes: dict[int, fx.Node] = {}
        self._fakes: dict[int, torch.Tensor] = {}
        self._alive: list[object] = []  # ids stay valid only as long as their objects live
        self._symbols: dict[Any, fx.Node] = {}
        self._stack: list[tuple[str, str]] = [("", type(root).__name__)]
        self._lifted = [False]  # for each running module call: whether the module is one op
        self._body: fx.Node | None = None

    # Inputs and results

    def placeholder(self, name: str, shape: Sequence[int | str], dtype: torch.dtype) -> torch.Tensor:
        """Adds an input; strings in `shape` name symbolic dimensions. Returns its fake tensor."""
        value = self.dims.tensor(shape, dtype)
        node = self.graph.placeholder(name)
        self._tag(node, value)
        self._bind(value, node)
        return value

    def define_dims(self) -> None:
        """Adds a node for each dimension, read from the first input that has it."""
        for name, size in self.dims.sizes.items():
            for node in list(self.graph.nodes):
                value = node.meta["val"]
                if node.op != "placeholder" or not isinstance(value, torch.Tensor):
                    continue
                places = [
                    i
                    for i, dim in enumerate(value.shape)
                    if isinstance(dim, torch.SymInt) and dim.node.expr == size.node.expr
                ]
                if places:
                    target = torch.ops.aten.sym_size.int
                    read = self.graph.create_node("call_function", target, (node, places[0]), name=name)
                    self._tag(read, size)
                    self._symbols[size.node.expr] = read
                    break

    def output(self, value: Any) -> None:
        """Ends the graph: its result, dead code removed."""
        self.graph.output(self._argument(value))
        self.graph.eliminate_dead_code(keep)

    def attribute_node(self, name: str, value: torch.Tensor) -> None:
        """Lets the fake tensor `value` stand for attribute `name` of the graph's module."""
        self._names[id(value)] = name
        self._alive.append(value)

    def _create(
        self, kind: str, target: Any, args: tuple[Any, ...], kwargs: dict[str, Any], suffix: str
    ) -> fx.Node:
        arguments, keywords = self._argument(tuple(args)), self._argument(dict(kwargs))
        node = self.graph.create_node(kind, target, arguments, keywords, name=self._name(target, suffix))
        self._body = self._body or node
        return node

    def _name(self, target: Any, suffix: str) -> str:
        """`layers_0_self_attn_q_proj` for a module that is one op, else the module and the operation."""
        place = self._readable(self._stack[-1][0])
        whole = self._lifted[-1] and spec_of(target) is not None
        return place if whole and place else "_".join(part for part in (place, suffix) if part)

    def _readable(self, name: str) -> str:
        if self._strip and name.startswith(self._strip + "."):
            name = name[len(self._strip) + 1 :]
        return name.replace(".", "_")

    # Values and nodes

    def _bind(self, value: Any, node: fx.Node) -> None:
        if isinstance(value, torch.Tensor):
            self._nodes[id(value)] = node
            self._alive.append(value)
        elif isinstance(value, (tuple, list)) and any(
            isinstance(v, torch.Tensor) for v in tree_leaves(value)
        ):
            spec = spec_of(node.target)
            named = spec is not None and len(spec.outputs) == len(value)
            for index, item in enumerate(value):
                label = spec.outputs[index] if spec is not None and named else str(index)
                name = f"{node.name}_{label}"
                part = self.graph.create_node("call_function", operator.getitem, (node, index), name=name)
                self._tag(part, item)
                self._bind(item, part)

    def _tag(self, node: fx.Node, value: Any) -> None:
        node.meta["val"] = value
        node.meta["stack"] = tuple(self._stack)
        node.meta["site"] = self._stack[-1][0]

    def _argument(self, value: Any) -> Any:
        """Call arguments with nodes in place of tensors and symbolic sizes."""
        if isinstance(value, torch.Tensor):
            return self._node_of(value)
        if isinstance(value, (torch.SymInt, torch.SymFloat, torch.SymBool)):
            return self._symbol(value.node.expr)
        if isinstance(value, (list, tuple)):
            items = [self._argument(item) for item in value]
            return type(value)(*items) if hasattr(value, "_fields") else type(value)(items)
        if isinstance(value, dict):
            return {key: self._argument(item) for key, item in value.items()}
        if isinstance(value, slice):
            return slice(*(self._argument(part) for part in (value.start, value.stop, value.step)))
        return value

    def _node_of(self, value: torch.Tensor) -> fx.Node:
        node = self._nodes.get(id(value))
        if node is not None:
            return node
        name = self._names.get(id(value))
        if name is None:
            raise CaptureError(
                f"a tensor of shape {tuple(value.shape)} comes from outside the recorded operations",
                module=self._stack[-1][0],
                source=calling_line(),
            )
        node = self.graph.create_node("get_attr", name, name=self._readable(name))
        self._body = self._body or node
        self._tag(node, value)
        self._nodes[id(value)] = node
        return node

    def _canonical(self, name: str) -> str:
        """The first of the names of a tensor that has several."""
        owner: Any = self._root
        for part in name.split("."):
            owner = getattr(owner, part, None)
        return self._names.get(id(owner), name)

    def _symbol(self, expression: Any) -> Any:
        """The node of a size expression, computed at the head of the graph so that every layer may use it."""
        if expression.is_Integer:
            return int(expression)
        if expression not in self._symbols:
            tracer = fx.proxy.GraphAppendingTracer(self.graph)
            known = {key: fx.Proxy(node, tracer) for key, node in self._symbols.items() if key.is_Symbol}
            last = self._body.prev if self._body is not None else next(iter(reversed(self.graph.nodes)))
            # With nothing recorded yet the end of the graph is its head.
            with self.graph.inserting_before(self._body) if self._body is not None else nullcontext():
                node = sympy_interp(PythonReferenceAnalysis, known, expression).node
            new = last.next
            while new is not self._body and new.op != "root":
                values = fx.node.map_arg(new.args, lambda a: a.meta["val"])
                new.meta.update(val=_call(new.target, values), stack=(), site="")
                new = new.next
            self._symbols[expression] = node
        return self._symbols[expression]

    def _fake(self, value: Any) -> Any:
        """Call arguments with fake tensors in place of parameters, buffers and constants."""
        if type(value) in (int, float, str, bool, type(None)):
            return value
        return tree_map(self._fake_leaf, value)

    def _fake_leaf(self, leaf: Any) -> Any:
        if not isinstance(leaf, torch.Tensor) or isinstance(leaf, FakeTensor):
            return leaf
        if id(leaf) not in self._fakes:
            with torch._C.DisableTorchFunction(), self.dims.fake_mode:
                fake = torch.empty_strided(leaf.shape, leaf.stride(), dtype=leaf.dtype, device="cpu")
            self._fakes[id(leaf)] = fake
            self._alive.append(leaf)
            name = self._names.get(id(leaf))
            if name is None:
                name = f"constant_{len(self.constants)}"
                self.constants[name] = leaf
            self.attribute_node(name, fake)
        return self._fakes[id(leaf)]


def _call(function: Any, arguments: Any) -> Any:
    return function(*arguments)
