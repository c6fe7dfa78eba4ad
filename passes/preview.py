"""A look ahead: what the rewrites will leave of caches and experts, for passes that run before them.

`place auto` shares out memory before any rewrite fires, since rewrites ask where things are. The rewrites that change
what is cached or how many experts a token uses are tried on a copy, and nothing of the trial is kept or reported.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch.fx as fx
from ktc.grammar.diagnostics import KtError
from ktc.grammar.tree import OpCall, Rewrite
from ktc.passes.caches import retyped
from ktc.passes.context import Context
from ktc.passes.reads import shares
from ktc.passes.rewrite import ApplyRewrite

from ktc.capture import CacheSpec
from ktc.dialect import ops
from ktc.events import EventStream


@dataclass(frozen=True)
class Preview:
    """What is foreseen.

    Attributes:
        caches: the caches after the rewrites.
        shares: share of every weight that one token reads, by parameter.
        module: the graph that was tried.
    """

    caches: tuple[CacheSpec, ...]
    shares: dict[str, float]
    module: fx.GraphModule


def preview(gm: fx.GraphModule, context: Context) -> Preview:
    """Tries the rewrites that matter on a copy of the graph; one that fails here will say so when it runs."""
    trial = replace(context, events=EventStream())
    chosen = [rewrite for rewrite in context.rules.rewrites if _matters(rewrite)]
    if chosen:
        graph = fx.Graph()
        graph.output(graph.graph_copy(gm.graph, {}))
        gm = fx.GraphModule(gm, graph)
    for rewrite in chosen:
        try:
            gm = ApplyRewrite(rewrite)(gm, trial)
        except KtError:
            continue
    return Preview(retyped(gm, trial), shares(gm.graph), gm)


def _matters(rewrite: Rewrite) -> bool:
    """Whether a replacement writes caches or chooses experts."""
    known = ops()

    def calls(call: OpCall) -> bool:
        spec = known.get(call.op)
        inner = any(calls(item) for item in call.operands if isinstance(item, OpCall))
        return inner or call.op == "kt.router" or (spec is not None and spec.caches is not None)

    return any(calls(bind.call) for bind in rewrite.replace)
