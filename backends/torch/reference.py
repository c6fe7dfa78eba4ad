"""The reference kernels `torch.*`: every dialect op by its meaning in plain torch, on dense weights, on any device."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import torch
import torch.fx as fx
from ktc.backends.operands import arguments
from ktc.backends.registry import Kernel, Weight, register
from ktc.backends.torch.library import DTYPES, HARDWARE
from ktc.backends.torch.pieces import SCORE_COPIES, context_of, entry_bytes

from ktc.dialect import ops
from ktc.dialect.cache_formats import DTYPES as CACHES
from ktc.weights.formats import FORMATS

UNLOWERED = frozenset({"kt.transfer", "kt.split", "kt.concat"})


def keep(
    graph: fx.Graph, node: fx.Node, weights: Mapping[str, Weight], options: Mapping[str, Any]
) -> fx.Node:
    """Lowers to the dialect op itself, whose reference then runs."""
    return node


def converted(node: fx.Node, weights: Mapping[str, Weight]) -> int:
    """Bytes of weights in the activations' dtype, where they are held in another: the references convert them whole."""
    itemsize = int(node.meta["val"].element_size())
    held = {"f16": 2, "bf16": 2}
    total = 0
    for weight in weights.values():
        # Of stacked experts, one matrix at a time.
        rows, columns = weight.shape[-2:]
        total += rows * columns * itemsize if held.get(weight.format, 4) != itemsize else 0
    return total


def scores(node: fx.Node, weights: Mapping[str, Weight]) -> int | torch.SymInt:
    """Bytes of every new token's scores against a whole context, of that context, and of weights as float32.

    Beside them, each new token's queries and results as float32, in every head.
    """
    bound = arguments(node)
    query, entry = (
        bound["q" if "q" in bound else "q_nope"].meta["val"],
        bound["key_cache"].meta["val"].shape[3],
    )
    tokens: int | torch.SymInt = query.shape[1] * query.shape[2]
    dense = sum(4 * math.prod(weight.shape) for weight in weights.values())
    nbytes: int | torch.SymInt = 4 * tokens * (SCORE_COPIES * context_of(node) + 3 * entry)
    return nbytes + entry_bytes(node) + dense


_WORKSPACE: Mapping[str, Callable[[fx.Node, Mapping[str, Weight]], int | torch.SymInt]] = {
    "kt.linear": converted,
    "kt.experts": converted,
    "kt.attention": scores,
    "kt.mla_attention": scores,
}

for _spec in ops().values():
    if _spec.name not in UNLOWERED:
        register(
            Kernel(
                name=_spec.name.replace("kt.", "torch.", 1),
                op=_spec.name,
                hardware=HARDWARE,
                lower=keep,
                formats=frozenset(FORMATS) if _spec.weights else frozenset(),
                dtypes=DTYPES,
                rank=-1,
                workspace=_WORKSPACE.get(_spec.name),
                cache_dtypes=frozenset(CACHES),
            )
        )
