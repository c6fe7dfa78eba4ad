"""Native segments: the runs of a placed graph that C++ executes without Python between the ops.

`divide` finds them: the longest runs of CPU nodes that all have native ops; numbers computed from sizes do not
end a run, for C++ computes sizes itself. `NativeSegment` is one, ready to be called with tensors from outside it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.fx as fx

from ktc import _cpu
from ktc.backends.cpu.library import OperandError
from ktc.runtime.native_emit import TYPES, NativeOp, NotNativeError, is_contiguous
from ktc.runtime.native_ops import emit
from ktc.runtime.native_shapes import SYMBOLS, Leaf, Shapes, evaluate, infer

_ACTIVATION, _EXTERNAL, _CONSTANT = range(3)
_LAYOUTS = 16
_KEPT_BYTES = 1 << 16


@dataclass
class Piece:
    """Consecutive nodes that run the same way.

    Attributes:
        nodes: in order, without placeholders and reads of constants.
        ops: what they run natively; empty for a piece that Python runs.
        reasons: for a Python piece, why by name of node.
    """

    nodes: list[fx.Node] = field(default_factory=list)
    ops: list[NativeOp] = field(default_factory=list)
    reasons: dict[str, str] = field(default_factory=dict)

    @property
    def native(self) -> bool:
        """Whether C++ runs it."""
        return bool(self.ops)


@dataclass(frozen=True)
class Division:
    """A graph in pieces.

    Attributes:
        pieces: in order. Numbers (sizes) belong to none; neither do inputs and constants.
        shapes: what `infer` says of the graph.
        constants: its tensors by storage, and those made of them that kernels want in float32.
    """

    pieces: list[Piece]
    shapes: Shapes
    constants: dict[int, torch.Tensor]


def divide(graph: fx.Graph, tensors: Mapping[str, Any], on_cpu: Callable[[fx.Node], bool]) -> Division:
    """A placed graph in pieces.

    Args:
        graph: the placed graph.
        tensors: weights, caches and buffers by name, what its `get_attr` nodes read; without data will do.
        on_cpu: whether a node runs on the CPU.
    """
    shapes = infer(graph, tensors)
    constants: dict[int, torch.Tensor] = {
        shapes.leaves[node][0].storage: tensors[str(node.target)]
        for node in graph.nodes if node.op == "get_attr" and node in shapes.leaves
    }  # fmt: skip
    pieces: list[Piece] = []
    home: dict[fx.Node, Piece] = {}
    for node in graph.nodes:
        if node.op in ("placeholder", "get_attr", "output") or node in shapes.numbers:
            continue
        source = node.args[0] if node.args else None
        if isinstance(source, fx.Node) and source in shapes.tuples and source in home:
            home[source].nodes.append(node)  # one of several results: no work of its own
            home[node] = home[source]
            continue
        ops: list[NativeOp] = []
        reason = None if all(map(on_cpu, (node, *_arrives(node)))) else "it runs on another device"
        if reason is None:
            try:
                ops = emit(node, shapes, constants)
            except NotNativeError as error:
                reason = str(error)
        last = pieces[-1] if pieces else None
        if last is None or bool(last.reasons) != (reason is not None):
            last = Piece()
            pieces.append(last)
        last.nodes.append(node)
        last.ops.extend(ops)
        home[node] = last
        if reason is not None:
            last.reasons[node.name] = reason
    return Division(_merged(pieces), shapes, constants)


def _arrives(node: fx.Node) -> list[fx.Node]:
    """What a transfer brings, which may lie on another device than the transfer's own."""
    return node.all_input_nodes if str(node.target) == "kt.transfer.default" else []


def _merged(pieces: list[Piece]) -> list[Piece]:
    """Pieces of views alone joined to their neighbours: a view is not worth a native segment."""
    merged: list[Piece] = []
    for piece in pieces:
        plain = not piece.ops
        if plain and not piece.reasons:
            piece.reasons = {node.name: "a view, between others" for node in piece.nodes}
        if plain and merged and not merged[-1].ops:
            merged[-1].nodes.extend(piece.nodes)
            merged[-1].reasons.update(piece.reasons)
        else:
            merged.append(piece)
    return merged


@dataclass(frozen=True)
class _Layout:
    """A segment's inputs and outputs at a step's sizes.

    Attributes:
        entering: dtype, shape, strides, and bytes before it in its storage, of every input.
        written: shape and dtype of the memory to be made for every storage that leaves.
        counts: bytes of all these storages, inputs first.
        whole: the outputs are those storages as they are, in that order.
        small: the inputs may be kept until the next step.
    """

    entering: list[tuple[torch.dtype, tuple[int, ...], tuple[int, ...], int]]
    written: list[tuple[tuple[int, ...], torch.dtype]]
    counts: list[int]
    whole: bool
    small: bool


@dataclass(frozen=True)
class Port:
    """A tensor that enters or leaves a segment: the node whose value it is, and its place in its storage."""

    node: fx.Node
    leaf: Leaf


class NativeSegment:
    """A native piece of a graph as a function of tensors.

    Args:
        piece: the piece.
        exported: its nodes whose values are wanted outside.
        shapes: of the graph.
        constants: real tensors by storage.
        workspace: shared by the segments of one engine.
        sizes: the step's sizes, a list that the caller of the graph fills before it runs.

    Attributes:
        inputs: nodes whose values it is called with.
        outputs: nodes whose values it returns, as a tuple.
        program: what runs.
    """

    def __init__(
        self,
        piece: Piece,
        exported: Sequence[fx.Node],
        shapes: Shapes,
        constants: Mapping[int, torch.Tensor],
        workspace: _cpu.Workspace,
        sizes: list[int],
    ) -> None:
        self._bytes = shapes.storage_bytes
        self._layouts: dict[tuple[int, ...], _Layout] = {}
        self._seen: list[torch.Tensor] = []
        self._seen_layout: _Layout | None = None
        self._sizes = sizes
        inside = set(piece.nodes)
        self._outputs = [Port(node, shapes.leaves[node][0]) for node in exported]
        entering: dict[int, Port] = {}
        for node in piece.nodes:
            for source in node.all_input_nodes:
                for leaf in shapes.leaves.get(source, ()) if source not in inside else ():
                    if leaf.storage not in constants:
                        entering.setdefault(leaf.storage, Port(source, leaf))
        self._entering = entering
        touched = {leaf.storage for op in piece.ops for leaf in op.operands if leaf is not None}
        self._written = sorted({p.leaf.storage for p in self._outputs} - entering.keys() - constants.keys())
        self._constants = {storage: constants[storage] for storage in sorted(touched & constants.keys())}
        self.inputs = [port.node for port in entering.values()]
        self.outputs = list(exported)
        self.program = self._build(piece, touched, workspace)

    def _build(self, piece: Piece, touched: set[int], workspace: _cpu.Workspace) -> _cpu.Program:
        buffers: list[tuple[int, list[int], int]] = []
        numbers: dict[int, int] = {}
        for storage in (*self._entering, *self._written):
            numbers[storage] = len(buffers)
            buffers.append((_EXTERNAL, list(self._bytes[storage]), 0))
        for storage in sorted(touched - numbers.keys()):
            numbers[storage] = len(buffers)
            tensor = self._constants.get(storage)
            if tensor is None:
                buffers.append((_ACTIVATION, list(self._bytes[storage]), 0))
            else:
                base = int(tensor.data_ptr() - tensor.storage_offset() * tensor.itemsize)
                size = [tensor.untyped_storage().nbytes(), *(0 for _ in SYMBOLS)]
                buffers.append((_CONSTANT, size, base))
        views: dict[tuple[Leaf, ...], int] = {}
        plain: list[tuple[int, int, list[int], list[list[int]], list[list[int]]]] = []

        def view(leaf: Leaf | None) -> int:
            if leaf is None:
                return -1
            if (leaf,) not in views:
                views[(leaf,)] = len(plain)
                shape, strides = [list(n) for n in leaf.shape], [list(n) for n in leaf.strides]
                kind = TYPES[leaf.dtype]
                plain.append((numbers[leaf.storage], kind, list(leaf.offset), shape, strides))
            return views[(leaf,)]

        ops = [
            (op.kind, op.name, [view(leaf) for leaf in op.operands], list(op.ints), list(op.floats))
            for op in piece.ops
        ]
        return _cpu.Program(len(SYMBOLS), buffers, plain, ops, workspace)

    def __call__(self, *tensors: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """The values of `outputs`, from those of `inputs`.

        Raises:
            OperandError: an operand that does not fit, naming the node.
        """
        sizes = self._sizes
        layout = self._layouts.get(tuple(sizes)) or self._lay_out(tuple(sizes))
        # Decoding repeats the very tensors of the step before: they fit now as they did then.
        seen = self._seen if layout is self._seen_layout else ()
        entered: list[torch.Tensor] = []
        addresses: list[int] = []
        for tensor, (dtype, shape, strides, offset) in zip(tensors, layout.entering, strict=True):
            if not (seen and tensor is seen[len(entered)]) and (
                tensor.dtype is not dtype
                or tensor.shape != shape
                or tensor.stride() != strides
                or not tensor.is_cpu
            ):
                tensor = self._fitting(tensor, len(entered), layout)
            entered.append(tensor)
            addresses.append(tensor.data_ptr() - offset)
        self._seen, self._seen_layout = (entered, layout) if layout.small else ([], None)
        fresh = [torch.empty(shape, dtype=dtype) for shape, dtype in layout.written]
        addresses.extend([tensor.data_ptr() for tensor in fresh])
        try:
            self.program.run(sizes, addresses, layout.counts)
        except (ValueError, IndexError, OverflowError) as error:
            raise OperandError(str(error)) from error
        if layout.whole:
            return tuple(fresh)
        memory = dict(zip((*self._entering, *self._written), (*entered, *fresh), strict=True))
        return tuple([self._result(port.leaf, memory, sizes) for port in self._outputs])

    def _lay_out(self, sizes: tuple[int, ...]) -> _Layout:
        """Shapes and bytes at a step's sizes; those of the last few are kept."""
        entering = []
        for port in self._entering.values():
            leaf = port.leaf
            shape, strides = (tuple(evaluate(n, sizes) for n in part) for part in (leaf.shape, leaf.strides))
            offset = evaluate(leaf.offset, sizes) * leaf.dtype.itemsize
            entering.append((leaf.dtype, shape, strides, offset))
        counts = [evaluate(self._bytes[storage], sizes) for storage in (*self._entering, *self._written)]
        written: list[tuple[tuple[int, ...], torch.dtype]] = []
        whole = [port.leaf.storage for port in self._outputs] == self._written
        for port in self._outputs if whole else ():
            shape = tuple(evaluate(n, sizes) for n in port.leaf.shape)
            whole = whole and is_contiguous(port.leaf)
            whole = (
                whole and math.prod(shape) * port.leaf.dtype.itemsize == counts[len(entering) + len(written)]
            )
            written.append((shape, port.leaf.dtype))
        if not whole:
            written = [((count,), torch.uint8) for count in counts[len(entering) :]]
        if len(self._layouts) >= _LAYOUTS:
            self._layouts.pop(next(iter(self._layouts)))
        self._layouts[sizes] = layout = _Layout(
            entering, written, counts, whole, sum(counts[: len(entering)]) <= _KEPT_BYTES
        )
        return layout

    def _fitting(self, tensor: torch.Tensor, index: int, layout: _Layout) -> torch.Tensor:
        """A tensor as the program expects it. Raises OperandError for another dtype, shape or device."""
        dtype, shape, strides, _ = layout.entering[index]
        if tensor.dtype is not dtype or tensor.shape != shape or not tensor.is_cpu:
            what = f"{tensor.dtype}{list(tensor.shape)} on {tensor.device}"
            name = self.inputs[index].name
            raise OperandError(f"{name} must be {dtype}{list(shape)} on the CPU, not {what}")
        if all(size == 1 or a == b for size, a, b in zip(shape, tensor.stride(), strides, strict=True)):
            return tensor
        return torch.empty_strided(shape, strides, dtype=dtype).copy_(tensor)

    def _result(self, leaf: Leaf, memory: Mapping[int, torch.Tensor], sizes: Sequence[int]) -> torch.Tensor:
        shape = [evaluate(n, sizes) for n in leaf.shape]
        strides = [evaluate(n, sizes) for n in leaf.strides]
        offset = evaluate(leaf.offset, sizes)
        if leaf.storage in self._constants:
            base = self._constants[leaf.storage]
        else:
            base = memory[leaf.storage]
            if leaf.storage in self._entering:
                entered = self._entering[leaf.storage].leaf
                offset += int(base.storage_offset()) - evaluate(entered.offset, sizes)
            elif base.dtype is not leaf.dtype:
                base = base.view(leaf.dtype)
        return torch.as_strided(base, shape, strides, offset)
