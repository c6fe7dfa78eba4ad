"""schedule: cuts each phase's graph into segments, the longest runs of nodes on one device, in order."""

from __future__ import annotations

from dataclasses import dataclass

import torch.fx as fx
from ktc.passes.context import Context
from ktc.passes.specialize import STEP


@dataclass(frozen=True)
class Segment:
    """Consecutive nodes of one phase on one device.

    Attributes:
        index: position in the phase.
        device: where its nodes run.
        nodes: names of its nodes in order.
        kernels: how many of its nodes call a kernel of ours rather than torch.
    """

    index: int
    device: str
    nodes: tuple[str, ...]
    kernels: int


@dataclass(frozen=True)
class Schedule:
    """Sets `meta["segment"]`. A segment on one CPU whose nodes are all kernels can run without Python."""

    phase: str = STEP

    @property
    def name(self) -> str:
        """See `Pass`."""
        return "schedule" if self.phase == STEP else f"schedule.{self.phase}"

    def __call__(self, gm: fx.GraphModule, context: Context) -> fx.GraphModule:
        """See `Pass`."""
        found = segments(gm)
        of_node = {name: segment.index for segment in found for name in segment.nodes}
        for node in gm.graph.nodes:
            if node.name in of_node:
                node.meta["segment"] = of_node[node.name]
        context.events.emit(
            self.name, "stat",
            segments=[{"device": s.device, "nodes": len(s.nodes), "kernels": s.kernels} for s in found],
        )  # fmt: skip
        return gm


def segments(gm: fx.GraphModule) -> list[Segment]:
    """The segments of a graph whose nodes carry `meta["device"]`."""
    found: list[Segment] = []
    names: list[str] = []
    kernels = 0
    device: str | None = None

    def close() -> None:
        if names and device is not None:
            found.append(Segment(len(found), device, tuple(names), kernels))

    for node in gm.graph.nodes:
        if node.op in ("placeholder", "get_attr", "output"):
            continue
        here = str(node.meta["device"])
        if here != device:
            close()
            names, kernels, device = [], 0, here
        names.append(node.name)
        kernels += bool(node.meta.get("kernel"))
    close()
    return found
