"""The CPU backend: ops in torch's namespace `kt_cpu` over the C++ kernels. Importing it registers them."""

from ktc.backends.cpu import (
    add,
    add_rms_norm,
    attention,
    embedding,
    experts,
    gelu,
    gelu_mul,
    layer_norm,
    linear,
    mul,
    rms_norm,
    rope,
    silu,
    silu_mul,
)

__all__ = [
    "add",
    "add_rms_norm",
    "attention",
    "embedding",
    "experts",
    "gelu",
    "gelu_mul",
    "layer_norm",
    "linear",
    "mul",
    "rms_norm",
    "rope",
    "silu",
    "silu_mul",
]
