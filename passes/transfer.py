"""transfer: puts copies at the edges between devices; a value that several nodes need over there is copied once."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.fx as fx
from ktc.grammar.diagnostics import Diagnostic, Label
from ktc.passes.context import Context, fail
from ktc.passes.edit import call, inherit
from ktc.passes.lower import place_of
from ktc.passes.specialize import STEP

from ktc.capture.effects import keep
from ktc.dialect import ops


@dataclass(frozen=True)
class Transfer:
    """Sets `meta["device"]` on every node and inserts `kt.transfer` where a tensor crosses. Raises KT305."""

    phase: str = STEP

    @property
    def name(self) -> str:
        """See `Pass`."""
        return "transfer" if self.phase == STEP else f"transfer.{self.phase}"

    def __call__(self, gm: fx.GraphModule, context: Context) -> fx.GraphModule:
        """See `Pass`."""
        phase = None if self.phase == STEP else self.phase
        for node in gm.graph.nodes:
            node.meta["device"] = self._device(node, context, phase)
        copies: dict[tuple[fx.Node, str], fx.Node] = {}
        count = 0
        for node in list(gm.graph.nodes):
            if node.op in ("placeholder", "get_attr"):
                continue
            here = node.meta["device"] if node.op != "output" else context.io_device
            for source in node.all_input_nodes:
                if not isinstance(source.meta.get("val"), torch.Tensor) or source.meta["device"] == here:
                    continue
                copy = copies.get((source, here))
                if copy is None:
                    copy = self._copy(gm.graph, source, here, context)
                    copies[source, here] = copy
                    count += 1
                node.replace_input_with(source, copy)
            if context.devices[here].hardware != "cpu" and "device" in node.kwargs:
                node.kwargs = {**node.kwargs, "device": context.devices[here].torch_device}
        context.events.emit(self.name, "stat", transfers=count)
        return gm

    def _device(self, node: fx.Node, context: Context, phase: str | None) -> str:
        if node.op == "placeholder":
            return context.io_device
        if node.op == "get_attr":
            home = node.meta.get("home")
            if home is not None:
                return str(home)
            users = [user for user in node.users if user.op != "output"]
            return place_of(users[0], context, None) if users else context.io_device
        if node.target is torch.ops.aten.sym_size.int:  # a size is read where its tensor lies
            return str(node.all_input_nodes[0].meta["device"])
        here = place_of(node, context, phase)
        if keep(node) and phase is not None and here != (home := place_of(node, context, None)):
            write = context.attribute(str(node.meta.get("site", "")), "place", phase)
            message = (
                f"`{node.meta.get('site')}` cannot move in phase `{phase}`: its KV cache stays on `{home}`"
            )
            raise fail(Diagnostic("KT305", message, (Label(write.span),) if write else ()))
        return here

    def _copy(self, graph: fx.Graph, source: fx.Node, device: str, context: Context) -> fx.Node:
        after = source.next
        while after.op == "placeholder":
            after = after.next
        with graph.inserting_before(after):
            target = str(context.devices[device].torch_device)
            copy = call(graph, ops()["kt.transfer"].op, (source, target))
        inherit(copy, [source])
        copy.meta["device"] = device
        copy.meta["kernel"] = "transfer"
        context.events.emit(
            self.name, "transfer", str(source.meta.get("site", "")), node=copy.name,
            source=source.meta["device"], device=device, value=source.name,
        )  # fmt: skip
        return copy
