"""A plugin for the cases: kernels that fit no CPU model here, each for one reason."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch.fx as fx
from ktc.backends.registry import Kernel, Weight, register


def lower(
    graph: fx.Graph, node: fx.Node, weights: Mapping[str, Weight], options: Mapping[str, Any]
) -> fx.Node:
    """Never called: none of these kernels fits."""
    raise NotImplementedError


def kernel(name: str, **changes: Any) -> Kernel:
    """A kernel of kt.linear on CPUs with float32 activations, but for `changes`."""
    return Kernel(
        **{
            "name": name,
            "op": "kt.linear",
            "hardware": frozenset({"cpu"}),
            "lower": lower,
            "rank": -9,
            **changes,
        }
    )


register(kernel("fail.gpu_linear", hardware=frozenset({"cuda"})))
register(kernel("fail.q4_k_linear", formats=frozenset({"q4_k"})))
register(kernel("fail.amx_linear", isa="amx"))
register(kernel("fail.bf16_linear", dtypes=frozenset({"bfloat16"})))
register(kernel("fail.decode_linear", phases=frozenset({"decode"})))
register(kernel("fail.f32_latents", op="kt.mla_attention", cache_dtypes=frozenset({"float32"})))
