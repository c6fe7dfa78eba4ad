"""cpu.gelu: x times the normal distribution's function, exact or by tanh."""

from __future__ import annotations

import torch
import torch.fx as fx
from ktc.backends.cpu.elementwise import GELU_FUNCTIONS, apply
from ktc.backends.cpu.library import OperandError, arguments, define, register_plain


def gelu(x: torch.Tensor, approximate: str = "none") -> torch.Tensor:
    """gelu(x) -> float32, contiguous; `approximate` is "none" or "tanh". Raises OperandError."""
    if approximate not in GELU_FUNCTIONS:
        raise OperandError(f"kt_cpu.gelu: `approximate` must be none or tanh, not {approximate!r}")
    return apply("gelu", GELU_FUNCTIONS[approximate], ("x",), x)


def fake(x: torch.Tensor, approximate: str = "none") -> torch.Tensor:
    """Shape of `gelu`."""
    return x.new_empty(x.shape)


def misfit(node: fx.Node) -> str | None:
    """Why the kernel cannot run a node, in words, or None."""
    approximate = arguments(node)["approximate"]
    return None if approximate in GELU_FUNCTIONS else f"it does not know the approximation {approximate!r}"


OP = define('gelu(Tensor x, str approximate="none") -> Tensor', gelu, fake)
register_plain("gelu", OP, ("x", "approximate"), misfit)
