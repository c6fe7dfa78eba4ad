"""The tracer: records torch-level calls of a model on fake tensors as an fx graph with the model's own names.

Some modules and functions are recorded as dialect ops (lifts), equal layers are stamped, everything else is
recorded as the torch function that the model called.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
import torch.fx as fx
from torch import nn
from torch._subclasses.fake_tensor import (
    DataDependentOutputException,
    DynamicOutputShapeException,
    UnsupportedFakeTensorException,
    UnsupportedOperatorException,
)
from torch.fx.experimental.symbolic_shapes import GuardOnDataDependentSymNode
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_flatten, tree_leaves, tree_map

from ktc.capture.effects import METHODS, OPERATORS, in_place, nameable
from ktc.capture.errors import CaptureError, calling_line
from ktc.capture.recorder import Recorder
from ktc.capture.stamp import Template, fingerprint, layer_indices
from ktc.capture.symbols import Dims

_UNCAPTURABLE = (
    DataDependentOutputException,
    DynamicOutputShapeException,
    GuardOnDataDependentSymNode,
    UnsupportedFakeTensorException,
    UnsupportedOperatorException,
)

ModuleLift = Callable[..., Any]


class Composite:
    """A lift that records more than one op, whose nodes are then named after the module and the op.

    Args:
        forward: runs in place of the module's own.
    """

    def __init__(self, forward: ModuleLift) -> None:
        self.forward = forward

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """What `forward` returns."""
        return self.forward(*args, **kwargs)


FunctionLift = Callable[[tuple[Any, ...], dict[str, Any]], Any]


class Tracer(Recorder, TorchFunctionMode):
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
        stamped: (template, module, layer indices old to new) of each module that was cloned.
        failed_in: name of the innermost module that an exception left, if any.
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
        super().__init__(root, dims, strip)
        self.tables: dict[int, tuple[str, torch.Tensor, torch.Tensor]] = {}
        self.stamped: list[tuple[Template, nn.Module, dict[int, int]]] = []
        self._module_lifts, self._function_lifts = module_lifts, function_lifts
        self._stampable = stampable
        self._modules = {id(module): name for name, module in root.named_modules()}
        self._templates: dict[Any, Template] = {}
        self._calls: list[nn.Module] = []
        self.failed_in: str | None = None

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
        lift = self._module_lifts.get(id(module))
        self._calls.append(module)
        self._lifted.append(lift is not None and not isinstance(lift, Composite))
        try:
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
            self._lifted.pop()
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


def _has_hooks(module: nn.Module) -> bool:
    """Whether calling the module does more than its class's forward."""
    return bool(module._forward_hooks or module._forward_pre_hooks or "forward" in vars(module))


def _operation(func: Any) -> str:
    """A function's name for messages and node names."""
    if isinstance(func, torch._ops.OpOverload):
        return str(func._schema.name).split("::")[-1]
    return str(getattr(func, "__name__", func)).strip("_")
