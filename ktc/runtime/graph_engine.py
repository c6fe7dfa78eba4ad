"""The engine: runs a placement's graphs on their weights and KV pool, one graph a phase."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from typing import Any

import torch

from ktc import _cpu
from ktc.backends.registry import Weight, kernels
from ktc.dialect.cache_formats import DTYPES
from ktc.errors import ArtifactError
from ktc.events import EventStream
from ktc.grammar.evaluate import applies
from ktc.grammar.functions import BUILTINS
from ktc.grammar.parser import parse_expression
from ktc.runtime.kv import KvPool
from ktc.runtime.load import StoredWeight, load_weights
from ktc.runtime.packed import PackedWeights
from ktc.runtime.placement import PhaseEntry, Placement
from ktc.runtime.program import Program
from ktc.runtime.step import Step
from ktc.weights.source import WeightSource

Progress = Callable[[int, int], None]


class GraphEngine:
    """A loaded placement; see `ktc.runtime.engine.Engine` for what a placed model asks of it.

    Args:
        placement: what `emit` made or an artifact holds.
        source: the weights; those of a packed artifact need no packing.
        progress: called with (bytes loaded, bytes in all).
        native: whether CPU segments run as native programs, else every node as Python; None for what the
            environment variable KTC_NATIVE says (0 for Python), which is yes where it is not set.

    Attributes:
        programs: what runs, by phase.
        events: one "segment" record for each piece of every phase's graph: native, or Python and why.
    """

    def __init__(
        self,
        placement: Placement,
        source: WeightSource | PackedWeights,
        progress: Progress | None = None,
        native: bool | None = None,
    ) -> None:
        self.placement = placement
        self.config = placement.config
        self.device = torch.device(placement.devices[placement.io_device])
        self._on_cpu = self.device.type == "cpu"
        self.dtype = torch.float32
        _cpu.use_nodes(placement.nodes or 0)  # before weights are placed for the threads that will read them
        if isinstance(source, PackedWeights):
            weights = source.load(progress)
        else:
            weights = load_weights(source, stored_weights(placement, source), progress, placement.threads)
        self.weight_bytes = sum(tensor.nbytes for tensor in weights.values())
        self.pool = make_pool(placement)
        tensors: dict[str, Any] = {**placement.constants(), **weights, **self.pool.tensors}
        if native is None:
            native = os.environ.get("KTC_NATIVE", "1") != "0"
        workspace = _cpu.Workspace() if native else None

        self.programs = {
            name: Program(graph, tensors, placement.threads, workspace, placement.on_cpu)
            for name, graph in placement.graphs.items()
        }
        self.events = EventStream()
        for name, program in self.programs.items():
            for index, piece in enumerate(program.pieces):
                self.events.emit(
                    "load", "segment", f"{name}.{index}", native=piece.native, nodes=len(piece.nodes),
                    ops=len(piece.ops), reasons=piece.reasons,
                )  # fmt: skip
        self._conditions = [(phase.name, condition(phase)) for phase in placement.phases]

    def phase_of(self, step: Step) -> str:
        """The graph that serves a step: the first declared phase that holds, else prefill or decode, else "step"."""
        if self._conditions:
            tokens = step.input_ids.shape[1]
            for name, holds in self._conditions:
                if holds(tokens):
                    return name
        return step.phase if step.phase in self.programs else "step"

    def run(self, step: Step) -> torch.Tensor:
        """One step. Returns logits [K, V] on `device`."""
        inputs = step.inputs
        if not self._on_cpu:
            inputs = tuple(tensor.to(self.device) for tensor in inputs)
        program = self.programs[self.phase_of(step)]
        if program.native:
            logits: torch.Tensor = program(*inputs)
        else:
            with torch.no_grad():
                logits = program(*inputs)
        return logits.squeeze(0)


def make_pool(placement: Placement) -> KvPool:
    """The KV cache that a placement plans, on its devices."""
    names = [(name, cache) for cache in placement.caches for name in (cache.key, cache.value)]
    return KvPool(
        placement.caches,
        num_blocks=max(1, -(-placement.tokens // placement.block_size)),
        block_size=placement.block_size,
        dtype={name: DTYPES[cache.dtype] for name, cache in names},
        devices={name: placement.devices[cache.device] for name, cache in names},
    )


def stored_weights(placement: Placement, source: WeightSource) -> list[StoredWeight]:
    """What to load of a source. Raises ArtifactError for tensors or kernels that are gone, or formats that changed."""
    binding = source.bind(placement.parameters, placement.config)
    found = []
    for entry in placement.weights:
        missing = [name for name in entry.parameters if name not in binding.recipes]
        if missing:
            raise ArtifactError(
                f"{source.path} has no tensor for {missing[0]!r}", hint="compile again for this source"
            )
        recipe = entry.assembly.recipe(binding.recipes, entry.name)
        if recipe.format != entry.source_format:
            text = f"{entry.name!r} was compiled from {entry.source_format} and {source.path} holds {recipe.format}"
            raise ArtifactError(text, hint="compile again for this source")
        kernel = None
        if entry.kernel is not None:
            kernel = kernels().get(entry.kernel)
            if kernel is None:
                raise ArtifactError(
                    f"kernel {entry.kernel!r} does not exist in this version", hint="compile again"
                )
        weight = Weight(entry.name, entry.format, entry.shape)
        device = torch.device(placement.devices[entry.device])
        found.append(StoredWeight(entry.name, weight, recipe, device, kernel, entry.nbytes))
    return found


def condition(phase: PhaseEntry) -> Callable[[int], bool]:
    """A phase's condition as a function of the number of tokens in the step."""
    expression = parse_expression(phase.condition)
    values: Mapping[str, Any] = {**BUILTINS, **phase.values}

    def holds(tokens: int) -> bool:
        return applies(expression, {**values, "tokens": tokens})

    return holds
