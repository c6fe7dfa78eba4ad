"""The torch library `kt_torch`: ops in plain torch that read weights as a file's blocks, on any device."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from ktc.backends.operands import OperandError, described

LIBRARY = torch.library.Library("kt_torch", "DEF")  # type: ignore[no-untyped-call]
DTYPES = frozenset({"float32", "float16", "bfloat16"})
HARDWARE = frozenset({"cpu", "cuda"})


def define(schema: str, run: Callable[..., Any], fake: Callable[..., Any]) -> torch._ops.OpOverload:
    """Registers an op: its schema without the namespace, what it does on every device, its shape function."""
    name = schema.split("(", 1)[0]
    LIBRARY.define(schema)  # type: ignore[no-untyped-call]
    LIBRARY.impl(name, run, "CompositeExplicitAutograd")  # type: ignore[no-untyped-call]
    torch.library.register_fake(f"kt_torch::{name}", fake, lib=LIBRARY)
    overload: torch._ops.OpOverload = getattr(torch.ops.kt_torch, name).default
    return overload


def refuse(op: str, operand: str, tensor: torch.Tensor, wanted: str) -> OperandError:
    """The error for an operand that is not what the kernel takes."""
    return OperandError(f"kt_torch.{op}: `{operand}` must be {wanted}, not {described(tensor)}")
