"""specialize: one graph for each phase that the rules tell apart; weights and caches are shared between them."""

from __future__ import annotations

from dataclasses import dataclass

import torch.fx as fx
from ktc.passes.context import Context

STEP = "step"
"""The graph for every step that no named phase claims."""


@dataclass(frozen=True)
class Specialize:
    """Fills `context.phases`; the later passes run on each of its graphs."""

    name: str = "specialize"

    def __call__(self, gm: fx.GraphModule, context: Context) -> fx.GraphModule:
        """See `Pass`."""
        context.phases[STEP] = gm
        for phase in context.phase_names:
            graph = fx.Graph()
            result = graph.graph_copy(gm.graph, {})
            graph.output(result)
            context.phases[phase] = fx.GraphModule(gm, graph)
        context.events.emit(self.name, "stat", phases=list(context.phases))
        return gm
