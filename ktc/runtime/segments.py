"""Which pieces of a placement's graphs will run natively, known before any weight is loaded."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import torch

from ktc.backends.registry import kernels
from ktc.runtime.graph_engine import make_pool
from ktc.runtime.load import dense_dtype
from ktc.runtime.native import Piece, divide
from ktc.runtime.native_shapes import STEP_INPUTS
from ktc.runtime.placement import Placement, WeightEntry


@dataclass(frozen=True)
class Segment:
    """One piece of a graph.

    Attributes:
        graph: the phase's name. native: whether C++ runs it, else Python does.
        nodes, ops: how many nodes of the graph, and native ops.
        reasons: for a Python piece, why, and how many nodes say so; the most frequent first.
    """

    graph: str
    native: bool
    nodes: int
    ops: int
    reasons: dict[str, int]


def segments(placement: Placement) -> list[Segment]:
    """The pieces of every graph of a language model, in order; none for other placements.

    They are found as when the model is loaded, with tensors that have no data.
    """
    if placement.kind != "language_model":
        return []
    tensors: dict[str, Any] = {entry.name: _weight(entry) for entry in placement.weights}
    empty = make_pool(replace(placement, devices=dict.fromkeys(placement.devices, "meta")))
    buffers = {
        name: value.to("meta") if isinstance(value, torch.Tensor) else value
        for name, value in placement.buffers.items()
    }
    tensors |= {**empty.tensors, **buffers}

    found = []
    for name, graph in placement.graphs.items():
        if {node.name for node in graph.nodes if node.op == "placeholder"} != STEP_INPUTS.keys():
            continue
        pieces = divide(graph, tensors, placement.on_cpu).pieces
        found += [_segment(name, piece) for piece in pieces]
    return found


def _segment(graph: str, piece: Piece) -> Segment:
    counts: dict[str, int] = {}
    for reason in piece.reasons.values():
        counts[reason] = counts.get(reason, 0) + 1
    ordered = dict(sorted(counts.items(), key=lambda item: -item[1]))
    return Segment(graph, piece.native, len(piece.nodes), len(piece.ops), ordered)


def _weight(entry: WeightEntry) -> torch.Tensor:
    """A weight without data, as it lies when it is loaded."""
    kernel = None if entry.kernel is None else kernels()[entry.kernel]
    if kernel is not None and kernel.layout is not None:
        return torch.empty(entry.nbytes, dtype=torch.uint8, device="meta")
    return torch.empty(entry.shape, dtype=dense_dtype(entry.format), device="meta")
