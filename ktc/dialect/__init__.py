"""The kt dialect: a small closed set of semantic ops, one a file, with its meaning in plain torch."""

from __future__ import annotations

from ktc.dialect import (
    add,
    add_rms_norm,
    attention,
    concat,
    embedding,
    experts,
    gelu,
    gelu_mul,
    layer_norm,
    linear,
    mul,
    rms_norm,
    rope,
    rotary,
    silu,
    silu_mul,
    split,
    transfer,
)
from ktc.dialect.cost import node_cost
from ktc.dialect.spec import Cost, Effects, OpSpec, ops, spec_of

__all__ = [
    "Cost",
    "Effects",
    "OpSpec",
    "add",
    "add_rms_norm",
    "attention",
    "concat",
    "embedding",
    "experts",
    "gelu",
    "gelu_mul",
    "layer_norm",
    "linear",
    "mul",
    "node_cost",
    "ops",
    "rms_norm",
    "rope",
    "rotary",
    "silu",
    "silu_mul",
    "spec_of",
    "split",
    "transfer",
]
