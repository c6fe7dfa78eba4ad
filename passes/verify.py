"""The verifier that runs after every pass: structure, example values, dialect level, devices."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.fx as fx
from ktc.backends.registry import kernels
from ktc.passes.context import Context
from ktc.passes.lower import STRUCTURAL
from ktc.passes.ops import is_dialect, op_name, operands

from ktc.dialect.spec import spec_of
from ktc.errors import KtcError


class InvalidGraph(KtcError):
    """A pass left a graph that breaks the rules of its level: a fault of ktc, not of the user's file."""


@dataclass(frozen=True)
class Level:
    """What has been done to a graph so far.

    Attributes:
        lowered: every dialect op must name its kernel, and quantised weights must feed kernels that read them.
        placed: every node has a device, and no tensor crosses an edge without a transfer.
    """

    lowered: bool = False
    placed: bool = False


def verify(gm: fx.GraphModule, context: Context, stage: str, level: Level) -> None:
    """Raises InvalidGraph naming the pass and the node."""
    try:
        gm.graph.lint()
    except RuntimeError as error:
        raise InvalidGraph(
            f"after {stage}: {error}", hint="this is a fault of ktc: please report it"
        ) from error
    outputs = [node for node in gm.graph.nodes if node.op == "output"]
    if len(outputs) != 1:
        raise _broken(stage, gm.graph.output_node(), "the graph must have one output")
    known = kernels()
    for node in gm.graph.nodes:
        if node.op == "output":
            continue
        if "val" not in node.meta:
            raise _broken(stage, node, "it has no example value")
        if is_dialect(node):
            _operands(node, stage, context)
        must = level.lowered and is_dialect(node) and op_name(node) not in STRUCTURAL
        if must and node.meta.get("kernel") not in known:
            raise _broken(stage, node, "it was not lowered to a kernel")
        if level.placed:
            _device(node, stage)


def _operands(node: fx.Node, stage: str, context: Context) -> None:
    if spec_of(node.target) is None:
        raise _broken(stage, node, f"{op_name(node)} is no op of the dialect")
    if op_name(node) == "kt.linear" and "kernel" not in node.meta:
        x, weight = operands(node)["x"].meta["val"], operands(node)["weight"].meta["val"]
        if weight.ndim != 2 or str(x.shape[-1]) != str(weight.shape[1]):
            raise _broken(stage, node, f"x {tuple(x.shape)} does not fit weight {tuple(weight.shape)}")


def _device(node: fx.Node, stage: str) -> None:
    here = node.meta.get("device")
    if here is None:
        raise _broken(stage, node, "it has no device")
    if node.op in ("placeholder", "get_attr") or op_name(node) == "kt.transfer":
        return
    for source in node.all_input_nodes:
        if isinstance(source.meta.get("val"), torch.Tensor) and source.meta.get("device") != here:
            raise _broken(
                stage, node, f"it runs on {here} but reads {source.name} on {source.meta.get('device')}"
            )


def _broken(stage: str, node: fx.Node, what: str) -> InvalidGraph:
    text = f"after {stage}: node {node.name} ({op_name(node)}, site `{node.meta.get('site', '')}`): {what}"
    return InvalidGraph(
        text, hint="this is a fault of ktc: please report it with the folder that --dump writes"
    )
