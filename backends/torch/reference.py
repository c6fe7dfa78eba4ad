"""The reference kernels `torch.*`: every dialect op by its meaning in plain torch, on dense weights, on any device."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch.fx as fx
from ktc.backends.registry import Kernel, Weight, register

from ktc.dialect import ops
from ktc.weights.formats import FORMATS

DTYPES = frozenset({"float32", "float16", "bfloat16"})
UNLOWERED = frozenset({"kt.transfer", "kt.split", "kt.concat"})


def keep(
    graph: fx.Graph, node: fx.Node, weights: Mapping[str, Weight], options: Mapping[str, Any]
) -> fx.Node:
    """Lowers to the dialect op itself, whose reference then runs."""
    return node


for _spec in ops().values():
    if _spec.name not in UNLOWERED:
        register(
            Kernel(
                name=_spec.name.replace("kt.", "torch.", 1),
                op=_spec.name,
                hardware=frozenset({"cpu", "cuda"}),
                lower=keep,
                formats=frozenset(FORMATS) if _spec.weights else frozenset(),
                dtypes=DTYPES,
                rank=-1,
            )
        )
