"""A placed graph as a plain Python function: fx's generated code over flat attributes.

An `nn.Module` resolves `self.model.layers.3.…` in five slow steps a weight; here each tensor is one attribute
of a plain object, and kernels of ours are called without torch's dispatcher between. Nothing is interpreted.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import SimpleNamespace
from typing import Any

import torch
import torch.fx as fx

from ktc import _cpu
from ktc.backends.cpu.library import direct


class Program:
    """An executable graph.

    Args:
        graph: the placed graph; its `get_attr` targets are names of `tensors`.
        tensors: weights, caches and buffers by name.
        threads: most threads that CPU kernels use while it runs; None for all.

    Raises:
        KeyError: the graph reads a name that `tensors` lacks.
    """

    def __init__(self, graph: fx.Graph, tensors: Mapping[str, Any], threads: int | None = None) -> None:
        self.inputs = tuple(node.name for node in graph.nodes if node.op == "placeholder")
        flat = fx.Graph()
        root = SimpleNamespace()
        names: dict[str, str] = {}
        mapping: dict[fx.Node, Any] = {}
        for node in graph.nodes:
            if node.op == "output":
                flat.output(fx.map_arg(node.args[0], lambda n: mapping[n]))
                continue
            copied = flat.node_copy(node, lambda n: mapping[n])
            if node.op == "get_attr":
                target = str(node.target)
                if target not in names:
                    names[target] = f"t{len(names)}"
                    setattr(root, names[target], tensors[target])
                copied.target = names[target]
            elif node.op == "call_module":
                target = str(node.target)
                names.setdefault(target, f"m{len(names)}")
                setattr(root, names[target], tensors[target])
                copied.target = names[target]
            elif node.op == "call_function":
                copied.target = direct(node.target) or node.target
            mapping[node] = copied
        code = flat.python_code("self")
        scope = dict(code.globals)
        exec(compile(code.src, "<placed graph>", "exec"), scope)
        self.source = code.src
        self._function: Callable[..., Any] = scope["forward"]
        self._root = root
        self._threads = threads or 0

    def __call__(self, *inputs: torch.Tensor) -> Any:
        """Runs the graph on the values of its placeholders, in order; call it under `torch.no_grad()`."""
        before = _cpu.limit_threads(self._threads)
        try:
            return self._function(self._root, *inputs)
        finally:
            _cpu.limit_threads(before)
