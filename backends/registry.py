"""The registry of kernels: what each can run, so that `lower` picks exactly what a rule names or says why not."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.fx as fx


@dataclass(frozen=True)
class Option:
    """One option of a kernel, as in `cpu.linear(threads = 4)`: its type and, for strings, the values allowed."""

    type: type
    help: str
    choices: tuple[str, ...] = ()


@dataclass(frozen=True)
class Weight:
    """A weight operand of a node after `quantize`: which parameter, in which number format, of which shape."""

    parameter: str
    format: str
    shape: tuple[int, ...]


@dataclass(frozen=True)
class Layout:
    """How kernels want a weight's bytes to lie; kernels of one layout share one copy of a weight.

    Attributes:
        name: "file" for the blocks as they lie in the file; any other is what `pack` makes.
        version: number of the layout's bytes; weights that were packed into an artifact with another are refused.
            Raise it with any change to what `pack` writes.
        pack: writes one weight: (file blocks uint8[...], Weight, out uint8[packed_bytes]).
        packed_bytes: size in bytes of what `pack` writes, known without loading anything.
        matrices: equal parts of those bytes, of each of which every NUMA node reads its share: a weight's experts.
    """

    name: str
    version: int
    pack: Callable[[torch.Tensor, Weight, torch.Tensor], None]
    packed_bytes: Callable[[Weight], int]
    matrices: Callable[[Weight], int] = lambda weight: 1


@dataclass(frozen=True)
class Kernel:
    """A kernel's capabilities.

    Attributes:
        name: what a rule writes, `cpu.linear`.
        op: the dialect op it implements, `kt.linear`.
        hardware: device kinds it runs on ("cpu", "cuda").
        formats: weight formats it takes; empty when the op has no quantisable weight.
        dtypes: activation dtypes it takes ("float32", "bfloat16", ...).
        phases: step phases it serves ("prefill", "decode").
        isa: lowest CPU level it needs, e.g. "avx2"; None for any.
        options: the schema of its options.
        rank: `kernel auto` prefers the highest rank among those that fit.
        supports: None when the node's shapes and attributes fit, else a reason in words.
        lower: builds the node that calls the kernel; see `passes/lower.py`.
        layout: of the weights that it reads; None for ordinary tensors of the activation dtype ("dense").
        workspace: most bytes that one call needs beside operands and results, charged by `plan_memory`; None for
            none. It is given the dialect's node (before `lower`), whose example values have symbolic sizes: compute
            with those as they are, without `int(...)`, and the plan puts its own sizes in their place.
        cache_dtypes: key/value caches that it reads and writes, names of `ktc.dialect.cache_formats.DTYPES`; of
            interest only where its op does.
    """

    name: str
    op: str
    hardware: frozenset[str]
    lower: Callable[[fx.Graph, fx.Node, Mapping[str, Weight], Mapping[str, Any]], fx.Node]
    formats: frozenset[str] = frozenset()
    dtypes: frozenset[str] = frozenset({"float32"})
    phases: frozenset[str] = frozenset({"prefill", "decode"})
    isa: str | None = None
    options: Mapping[str, Option] = field(default_factory=dict)
    rank: int = 0
    supports: Callable[[fx.Node], str | None] = lambda node: None
    layout: Layout | None = None
    workspace: Callable[[fx.Node, Mapping[str, Weight]], int | torch.SymInt] | None = None
    cache_dtypes: frozenset[str] = frozenset({"float32", "float16", "bfloat16"})


_KERNELS: dict[str, Kernel] = {}


def register(kernel: Kernel) -> Kernel:
    """Adds a kernel; two of one name, or of one layout in two versions, are programming errors (ValueError)."""
    if kernel.name in _KERNELS:
        raise ValueError(f"kernel {kernel.name!r} is registered twice")
    for other in _KERNELS.values():
        one, two = other.layout, kernel.layout
        if one is not None and two is not None and one.name == two.name and one.version != two.version:
            raise ValueError(f"{other.name} and {kernel.name} read two versions of the layout {two.name!r}")
    _KERNELS[kernel.name] = kernel
    return kernel


def kernels() -> Mapping[str, Kernel]:
    """Every registered kernel by name."""
    return dict(_KERNELS)


def for_op(op: str) -> list[Kernel]:
    """The kernels that implement `op`, best rank first."""
    return sorted((k for k in _KERNELS.values() if k.op == op), key=lambda k: (-k.rank, k.name))
