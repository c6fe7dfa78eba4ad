"""The tracer: records torch-level calls of a model on fake tensors as an fx graph with the model's own names.

Some modules and functions are recorded as dialect ops (lifts), equal layers are stamped, everything else is
recorded as the torch function that the model called.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import torch
import torch.fx as fx
from torch import nn
from torch._subclasses.fake_tensor import (
    DataDependentOutputException,
    DynamicOutputShapeException,
    FakeTensor,
    UnsupportedFakeTensorException,
    UnsupportedOperatorException,
)
from torch.fx.experimental.symbolic_shapes import GuardOnDataDependentSymNode
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_flatten, tree_leaves, tree_map
from torch.utils._sympy.interp import sympy_interp
from torch.utils._sympy.reference import PythonReferenceAnalysis

from ktc.capture.effects import METHODS, OPERATORS, in_place, keep, nameable
from ktc.capture.errors import CaptureError, calling_line
from ktc.capture.stamp import Template, fingerprint, layer_indices
from ktc.capture.symbols import Dims
from ktc.dialect import spec_of

_UNCAPTURABLE = (
    DataDependentOutputException,
    DynamicOutputShapeException,
    GuardOnDataDependentSymNode,
    UnsupportedFakeTensorException,
    UnsupportedOperatorException,
)

ModuleLift = Callable[..., Any]
FunctionLift = Callable[[tuple[Any, ...], dict[str, Any]], Any]


class Tracer(TorchFunctionMode):
    """Records one call of `root`.

    Args:
        root: the model; its parameters may be on any device, meta included.
        dims: symbolic dimensions and the fake mode.
        module_lifts: forward functions to run in place of a module's own, by id of the module.
        function_lifts: by torch function, a function (args, kwargs) that records something better and returns
            its value, or returns NotImplemented.
        stampable: ids of modules that may be traced once for all that are structurally equal.
        strip: prefix left out of node names ("model").

    Attributes:
        tables: by id of each tensor that a rotary module returned, its form and kt.rotary's cos and sin.
    """

    def __init__(
        self,
        root: nn.Module,
        dims: Dims,
        *,
        module_lifts: Mapping[int, ModuleLift],
        function_lifts: Mapping[Any, FunctionLift],
        stampable: frozenset[int] = frozenset(),
        strip: str = "",
    ) -> None:
        super().__init__()
        self.graph = fx.Graph()
        self.dims = dims
        self.tables: dict[int, tuple[str, torch.Tensor, torch.Tensor]] = {}
        self.constants: dict[str, torch.Tensor] = {}
        self.stamped: list[tuple[Template, nn.Module, dict[int, int]]] = []
        self._root = root
        self._module_lifts, self._function_lifts = module_lifts, function_lifts
        self._stampable, self._strip = stampable, strip
        self._modules = {id(module): name for name, module in root.named_modules()}
        self._names: dict[int, str] = {}
        for name, tensor in (*root.named_parameters(), *root.named_buffers()):
            self._names.setdefault(id(tensor), name)
        self._nodes: dict[int, fx.Node] = {}
        self._fakes: dict[int, torch.Tensor] = {}
        self._alive: list[object] = []  # ids stay valid only as long as their objects live
        self._symbols: dict[Any, fx.Node] = {}
        self._templates: dict[Any, Template] = {}
        self._stack: list[tuple[str, str]] = [("", type(root).__name__)]
        self._calls: list[nn.Module] = []
        self._body: fx.Node | None = None
        self.failed_in: str | None = None

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

    # Torch functions

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        faked, faked_kwargs = self._fake(args), self._fake(kwargs or {})
        lift = self._function_lifts.get(func)
        if lift is not None:
            with self:
                result = lift(faked, faked_kwargs)
            if result is not NotImplemented:
                return result
        guards = len(self.dims.env.guards)
        try:
            result = func(*faked, **faked_kwargs)
        except _UNCAPTURABLE as error:
            raise CaptureError(
                "the result depends on the values of tensors, which a graph does not know",
                module=self._stack[-1][0],
                op=_operation(func),
                source=calling_line(),
                hint="replace the module by a rule, or keep it out of the captured part",
            ) from error
        if len(self.dims.env.guards) > guards:
            place = (self._stack[-1][0], _operation(func), calling_line())
            self.dims.inside.update(dict.fromkeys(range(guards, len(self.dims.env.guards)), place))
        self._record(func, faked, faked_kwargs, result)
        return result

    def _record(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any], result: Any) -> None:
        mutates = in_place(func, kwargs)
        leaves = [leaf for leaf in tree_leaves(result) if isinstance(leaf, torch.Tensor)]
        if not leaves and not (result is None and mutates):
            return  # sizes, dtypes, flags: known while tracing
        if not mutates and args and result is args[0]:
            return  # nothing happened: a cast to the same dtype, `contiguous` of a contiguous tensor
        method = METHODS.get(func)
        symbol = OPERATORS.get(method or "")
        if symbol is not None and not kwargs:
            function, reflected = symbol
            node = self._create(
                "call_function", function, args[::-1] if reflected else args, {}, function.__name__.strip("_")
            )
        elif getattr(func, "__name__", "") == "__get__":
            name = func.__self__.__name__
            node = self._create("call_function", getattr, (args[0], name), {}, name)
        elif method is not None:
            node = self._create("call_method", method, args, kwargs, method.strip("_"))
        elif nameable(func):
            node = self._create("call_function", func, args, kwargs, _operation(func))
        else:
            raise CaptureError(
                "generated code cannot name this function", module=self._stack[-1][0], op=_operation(func)
            )
        self._tag(node, result)
        self._bind(result, node)

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
        lifted = (
            spec_of(target) is not None and bool(self._calls) and id(self._calls[-1]) in self._module_lifts
        )
        return place if lifted and place else "_".join(part for part in (place, suffix) if part)

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
            with self.graph.inserting_before(self._body):
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

    # Modules

    def call(
        self,
        original: Callable[..., Any],
        module: nn.Module,
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
    ) -> Any:
        """What runs in place of `nn.Module.__call__`."""
        name = self._modules.get(id(module))
        if name is None or (self._calls and self._calls[-1] is module):
            return original(module, *args, **kwargs)
        if id(module) in self._stampable and not any(_has_hooks(part) for part in module.modules()):
            return self._stamp(original, module, name, args, kwargs)
        return self._enter(original, module, name, args, kwargs)

    def _enter(
        self,
        original: Callable[..., Any],
        module: nn.Module,
        name: str,
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
    ) -> Any:
        if name:
            self._stack.append((name, type(module).__name__))
        self._calls.append(module)
        try:
            lift = self._module_lifts.get(id(module))
            if lift is not None and not _has_hooks(module):
                result = lift(*args, **kwargs)
                if result is not NotImplemented:
                    return result
            return original(module, *args, **kwargs)
        except BaseException:
            self.failed_in = self.failed_in or name
            raise
        finally:
            self._calls.pop()
            if name:
                self._stack.pop()

    def _stamp(
        self,
        original: Callable[..., Any],
        module: nn.Module,
        name: str,
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
    ) -> Any:
        leaves, structure = tree_flatten((args, kwargs))
        tensors = [leaf for leaf in leaves if isinstance(leaf, torch.Tensor)]
        key = (fingerprint(module), str(structure), tuple(self._leaf_key(leaf, tensors) for leaf in leaves))
        template = self._templates.get(key)
        if template is not None:
            return self._clone(template, module, name, tensors)
        inputs = [self._node_of(tensor) for tensor in tensors]
        last = next(iter(reversed(self.graph.nodes)))
        output = self._enter(original, module, name, args, kwargs)
        nodes: list[fx.Node] = []
        node = last.next
        while node.op != "root":
            nodes.append(node)
            node = node.next
        results = tree_map(lambda v: self._node_of(v) if isinstance(v, torch.Tensor) else v, output)
        if self._is_closed(nodes, inputs, tensors):
            self._templates[key] = Template(name, module, inputs, nodes, output, results)
        return output

    def _is_closed(self, nodes: list[fx.Node], inputs: list[fx.Node], tensors: list[torch.Tensor]) -> bool:
        """Whether recorded nodes use nothing of the graph but the call's own inputs, attributes and sizes."""
        known = {*nodes, *inputs, *self._symbols.values()}
        for tensor in tensors:
            known.update(self._nodes[id(table)] for table in self.tables.get(id(tensor), ())[1:])
        return all(
            used in known or used.op in ("placeholder", "get_attr")
            for node in nodes
            for used in node.all_input_nodes
        )

    def _leaf_key(self, leaf: Any, tensors: list[torch.Tensor]) -> Any:
        if isinstance(leaf, torch.Tensor):
            same = next(index for index, tensor in enumerate(tensors) if tensor is leaf)
            table = tuple(id(part) for part in self.tables.get(id(leaf), ())[1:])
            return (same, str(tuple(leaf.shape)), str(leaf.stride()), str(leaf.dtype), table)
        return repr(leaf)

    def _clone(
        self, template: Template, module: nn.Module, name: str, tensors: Iterable[torch.Tensor]
    ) -> Any:
        indices = layer_indices(template.module, module)
        self.stamped.append((template, module, indices))
        nodes = dict(zip(template.inputs, (self._node_of(tensor) for tensor in tensors), strict=True))
        old, new = self._readable(template.name), self._readable(name)

        def renamed(target: str) -> str:
            if target == template.name or target.startswith(template.name + "."):
                return name + target[len(template.name) :]
            if target.startswith("kv."):
                _, index, part = target.split(".")
                return f"kv.{indices.get(int(index), int(index))}.{part}"
            return target

        for node in template.nodes:
            target = node.target
            if node.op == "get_attr":
                target = self._canonical(renamed(str(target)))
            copy_name = (
                self._readable(str(target)) if node.op == "get_attr" else node.name.replace(old, new, 1)
            )
            copy = self.graph.create_node(
                node.op,
                target,
                fx.node.map_arg(node.args, lambda a: nodes.get(a, a)),
                fx.node.map_arg(node.kwargs, lambda a: nodes.get(a, a)),
                name=copy_name,
            )
            copy.meta = dict(node.meta)
            copy.meta["stack"] = tuple((renamed(place), kind) for place, kind in node.meta["stack"])
            copy.meta["site"] = copy.meta["stack"][-1][0] if copy.meta["stack"] else ""
            nodes[node] = copy

        def fresh(value: Any, node: Any) -> Any:
            if not isinstance(value, torch.Tensor):
                return value
            with torch._C.DisableTorchFunction(), self.dims.fake_mode:
                fake = torch.empty_strided(
                    value.shape, value.stride(), dtype=value.dtype, device=value.device
                )
            self._nodes[id(fake)] = nodes.get(node, node)
            self._alive.append(fake)
            return fake

        return tree_map(fresh, template.output, template.output_nodes)


def _call(function: Any, arguments: Any) -> Any:
    return function(*arguments)


def _has_hooks(module: nn.Module) -> bool:
    """Whether calling the module does more than its class's forward."""
    return bool(module._forward_hooks or module._forward_pre_hooks or "forward" in vars(module))


def _operation(func: Any) -> str:
    """A function's name for messages and node names."""
    if isinstance(func, torch._ops.OpOverload):
        return str(func._schema.name).split("::")[-1]
    return str(getattr(func, "__name__", func)).strip("_")
