"""A placed graph as a plain Python function: fx's generated code over flat attributes.

An `nn.Module` resolves `self.model.layers.3.…` in five slow steps a weight; here each tensor is one attribute
of a plain object, and kernels of ours are called without torch's dispatcher between. Nothing is interpreted.
Runs of nodes that C++ knows are single calls (`ktc.runtime.native`): for most models, all of the graph is one.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Mapping
from types import SimpleNamespace
from typing import Any

import torch
import torch.fx as fx

from ktc import _cpu
from ktc.backends.cpu.library import direct
from ktc.runtime.native import NativeSegment, Piece, divide
from ktc.runtime.native_shapes import STEP_INPUTS, step_sizes


class Program:
    """An executable graph.

    Args:
        graph: the placed graph; its `get_attr` targets are names of `tensors`.
        tensors: weights, caches and buffers by name.
        threads: most threads that CPU kernels use while it runs; None for all.
        workspace: memory of native segments; None runs every node as Python.
        on_cpu: whether a node runs on the CPU.

    Attributes:
        pieces: what runs natively and what as Python, in order, with reasons; empty without a workspace.
        segments: the native ones.
        native: whether nothing but native segments computes, so that autograd has nothing to look at.
        source: the generated Python.

    Raises:
        KeyError: the graph reads a name that `tensors` lacks.
    """

    def __init__(
        self,
        graph: fx.Graph,
        tensors: Mapping[str, Any],
        threads: int | None = None,
        workspace: _cpu.Workspace | None = None,
        on_cpu: Callable[[fx.Node], bool] = lambda node: True,
    ) -> None:
        self.inputs = tuple(node.name for node in graph.nodes if node.op == "placeholder")
        self.pieces: list[Piece] = []
        self.segments: list[NativeSegment] = []
        self._sizes: list[int] = []
        calls: dict[fx.Node, NativeSegment] = {}
        if workspace is not None and set(self.inputs) == STEP_INPUTS.keys():
            calls = self._native(graph, tensors, workspace, on_cpu)
        self.native = bool(self.pieces) and all(piece.native for piece in self.pieces)
        self._root = SimpleNamespace()
        code = self._flatten(graph, tensors, calls).python_code("self")
        scope = dict(code.globals)
        exec(compile(code.src, "<placed graph>", "exec"), scope)
        self.source = code.src
        self._function: Callable[..., Any] = scope["forward"]
        self._threads = threads or 0
        order = {name: index for index, name in enumerate(self.inputs)}
        self._measured = [order.get(name, 0) for name in _SIZED]

    def _native(
        self,
        graph: fx.Graph,
        tensors: Mapping[str, Any],
        workspace: _cpu.Workspace,
        on_cpu: Callable[[fx.Node], bool],
    ) -> dict[fx.Node, NativeSegment]:
        """The segments, by every node inside."""
        division = divide(graph, tensors, on_cpu)
        self.pieces = division.pieces
        wanted = _wanted(graph, self.pieces)
        calls: dict[fx.Node, NativeSegment] = {}
        for piece in self.pieces:
            if not piece.native:
                continue
            inside = set(piece.nodes)
            exported = [
                node for node in piece.nodes if any(u in wanted and u not in inside for u in node.users)
            ]
            segment = NativeSegment(
                piece, exported, division.shapes, division.constants, workspace, self._sizes
            )
            self.segments.append(segment)
            calls.update(dict.fromkeys(piece.nodes, segment))
        return calls

    def _flatten(
        self, graph: fx.Graph, tensors: Mapping[str, Any], calls: Mapping[fx.Node, NativeSegment]
    ) -> fx.Graph:
        """The graph over attributes of `_root`, with one call for each native segment."""
        flat = fx.Graph()
        names: dict[str, str] = {}
        mapping: dict[fx.Node, Any] = {}

        def attribute(target: str, value: Any, prefix: str) -> str:
            if target not in names:
                names[target] = f"{prefix}{len(names)}"
                setattr(self._root, names[target], value)
            return names[target]

        done: set[int] = set()
        for node in graph.nodes:
            if node.op == "output":
                flat.output(fx.map_arg(node.args[0], lambda n: mapping[n]))
                continue
            segment = calls.get(node)
            if segment is not None:
                if id(segment) not in done:
                    done.add(id(segment))
                    name = attribute(f"segment {len(done)}", segment, "s")
                    call = flat.call_module(name, tuple(mapping[source] for source in segment.inputs))
                    for index, output in enumerate(segment.outputs):
                        mapping[output] = flat.call_function(operator.getitem, (call, index))
                continue
            if any(source not in mapping for source in node.all_input_nodes):
                continue  # a size of a value inside a segment that nobody outside asks for
            copied = flat.node_copy(node, lambda n: mapping[n])
            if node.op in ("get_attr", "call_module"):
                target = str(node.target)
                copied.target = attribute(target, tensors[target], "t" if node.op == "get_attr" else "m")
            elif node.op == "call_function":
                copied.target = direct(node.target) or node.target
            mapping[node] = copied
        if calls:
            for node in reversed(flat.nodes):
                if not node.users and (node.op == "get_attr" or node.target in _PURE):
                    flat.erase_node(node)
        return flat

    def __call__(self, *inputs: torch.Tensor) -> Any:
        """Runs the graph on the values of its placeholders, in order; call it under `torch.no_grad()`, but for one that
        is `native`.

        Raises:
            OperandError: an input that does not fit.
        """
        if self.segments:
            ids, lengths, tables, wanted = self._measured
            self._sizes[:] = step_sizes(
                inputs[ids].shape[-1],
                inputs[lengths].shape[0],
                inputs[tables].shape[-1],
                inputs[wanted].shape[0],
            )
        before = _cpu.limit_threads(self._threads)
        try:
            return self._function(self._root, *inputs)
        finally:
            _cpu.limit_threads(before)


_SIZED = ("input_ids", "context_lens", "block_tables", "logits_index")
"""The inputs whose shapes give a step's sizes."""
_PURE = {operator.getitem, torch.ops.aten.sym_size.int}


def _wanted(graph: fx.Graph, pieces: list[Piece]) -> set[fx.Node]:
    """The nodes whose operands must exist as tensors, if they come from another piece: all but unused sizes."""
    wanted = {node for piece in pieces for node in piece.nodes}
    inside = {node for piece in pieces if piece.native for node in piece.nodes}
    for node in reversed(graph.nodes):
        if node.op == "output" or (node not in wanted and any(u in wanted - inside for u in node.users)):
            wanted.add(node)
    return wanted
