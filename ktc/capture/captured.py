"""What a capture returns, and the way to run it on real tensors with the dialect's reference ops."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

import torch
import torch.fx as fx
from torch.utils._pytree import TreeSpec

from ktc.capture.errors import CaptureError


@dataclass(frozen=True)
class CacheSpec:
    """The key/value cache of one attention layer.

    Attributes:
        layer: index of the layer.
        key, value: targets of the cache's get_attr nodes, "kv.3.key".
        heads: key/value heads.
        key_dim, value_dim: elements of one head's key and value.
        window: attended positions of a sliding-window layer, 0 for all.
        products: multiply-adds of a token with one position that it attends to, all query heads together.
    """

    layer: int
    key: str
    value: str
    heads: int
    key_dim: int
    value_dim: int
    window: int
    products: int


@dataclass
class Captured:
    """A captured model.

    Attributes:
        module: the graph; parameters are meta tensors under the user's names, non-persistent buffers real.
        caches: one record an attention layer, empty for modules that are no language model.
        inputs: names of the placeholders, in order.
        output_spec: pytree of a module's outputs, whose leaves the graph returns as a tuple; None for a
            language model.
        kind: whether the graph has the language model's inputs.
        dims: symbol of each named dimension in the graph's shapes ("tokens" -> "s17").
        limits: largest size of a dimension that the model's code allows, for those it limits.
        block_size: tokens of one cache block, for language models.
        parameters: names of the get_attr targets that a state dict must supply, in order of first use.
    """

    module: fx.GraphModule
    caches: tuple[CacheSpec, ...]
    inputs: tuple[str, ...]
    output_spec: TreeSpec | None
    kind: Literal["language_model", "module"]
    dims: Mapping[str, str] = field(default_factory=dict)
    limits: Mapping[str, int] = field(default_factory=dict)
    block_size: int = 32
    parameters: tuple[str, ...] = ()

    def sizes(self, **dims: int) -> dict[str, int]:
        """Sizes by symbol, as `ktc.dialect.node_cost` wants them, from sizes by name.

        Raises:
            KeyError: a name that the graph does not have.
        """
        return {self.dims[name]: size for name, size in dims.items()}

    def step_sizes(self, tokens: int, sequences: int = 1, context: int = 0) -> dict[str, int]:
        """Sizes by symbol of a language model's step.

        `tokens` are the new ones of all `sequences`, `context` the cached ones of each after the step. One
        row of logits is wanted for each sequence.
        """
        blocks = -(-max(context, -(-tokens // max(sequences, 1))) // self.block_size)
        named = {
            "tokens": tokens,
            "sequences": sequences,
            "starts": sequences + 1,
            "table_width": blocks,
            "blocks": blocks * sequences,
            "outputs": sequences,
        }
        return self.sizes(**{name: size for name, size in named.items() if name in self.dims})


def allocate_caches(
    captured: Captured, blocks: int, *, dtype: torch.dtype = torch.float32, device: str = "cpu"
) -> dict[str, torch.Tensor]:
    """Zeroed cache tensors [blocks, heads, block_size, dim] by get_attr target."""
    caches: dict[str, torch.Tensor] = {}
    for spec in captured.caches:
        for target, dim in ((spec.key, spec.key_dim), (spec.value, spec.value_dim)):
            shape = (blocks, spec.heads, captured.block_size, dim)
            caches[target] = torch.zeros(shape, dtype=dtype, device=device)
    return caches


def materialise(
    captured: Captured,
    parameters: Mapping[str, torch.Tensor],
    caches: Mapping[str, torch.Tensor] | None = None,
) -> fx.GraphModule:
    """A runnable copy of the graph on real tensors; the captured one stays as it is.

    Args:
        captured: what a capture returned.
        parameters: tensors by the user's names; more than the graph needs are ignored.
        caches: tensors by cache target, see `allocate_caches`.

    Raises:
        CaptureError: a parameter or cache is missing or has another shape.
    """
    tensors: dict[str, torch.Tensor] = {}
    for node in captured.module.graph.nodes:
        if node.op != "get_attr" or node.target in tensors:
            continue
        own = attribute(captured.module, node.target)
        if not own.is_meta:
            tensors[node.target] = own
            continue
        given = (caches or {}).get(node.target, parameters.get(node.target))
        if given is None:
            raise CaptureError(
                f"no tensor was given for {node.target}", module=node.target.rpartition(".")[0]
            )
        is_cache = node.target.startswith("kv.")
        if tuple(given.shape[1 if is_cache else 0 :]) != tuple(own.shape[1 if is_cache else 0 :]):
            raise CaptureError(
                f"{node.target} has shape {tuple(given.shape)}, the graph wants {tuple(own.shape)}",
                module=node.target.rpartition(".")[0],
            )
        tensors[node.target] = given.detach()
    graph = fx.Graph()
    output = graph.graph_copy(captured.module.graph, {}, return_output_node=True)
    result = output[0] if isinstance(output, tuple) else output
    graph.output(result)
    return fx.GraphModule(dict(tensors), graph, class_name="Materialised")


def attribute(module: torch.nn.Module, target: str) -> torch.Tensor:
    """The tensor behind a get_attr target. Raises AttributeError when there is none."""
    owner: object = module
    for name in target.split("."):
        owner = getattr(owner, name)
    if not isinstance(owner, torch.Tensor):
        raise AttributeError(f"{target} is no tensor")
    return owner
