"""Whether a kernel can run a node: device, instruction set, number format, dtype, phase, shapes."""

from __future__ import annotations

from collections.abc import Mapping

import torch
import torch.fx as fx
from ktc.backends.registry import Kernel
from ktc.passes.cache import cache_of
from ktc.passes.context import Context, DeviceSpec, WeightPlan
from ktc.passes.ops import arguments

from ktc.dialect.cache_formats import name_of, row_length
from ktc.dialect.spec import spec_of

ISA_LEVELS = ("generic", "avx2", "avx512", "avx512vnni", "amx")


def machine_isa() -> str:
    """The CPU level that kernels may use on this machine."""
    from ktc import _cpu

    return str(_cpu.isa())


def misfit(
    kernel: Kernel,
    node: fx.Node,
    device: DeviceSpec,
    weights: Mapping[str, WeightPlan],
    phases: frozenset[str],
    context: Context,
) -> str | None:
    """Why `kernel` cannot run `node` on `device`, in words, or None when it can."""
    if device.hardware not in kernel.hardware:
        return f"it runs on {' and '.join(sorted(kernel.hardware))}, and `{device.ref}` is a {device.hardware} device"
    if kernel.isa is not None and ISA_LEVELS.index(machine_isa()) < ISA_LEVELS.index(kernel.isa):
        return f"it needs {kernel.isa}, and this machine offers {machine_isa()}"
    for plan in weights.values():
        if kernel.formats and plan.format not in kernel.formats:
            return f"it does not read {plan.format} weights (it reads {', '.join(sorted(kernel.formats))})"
    value = node.meta.get("val")
    first = value[0] if isinstance(value, (tuple, list)) and value else value
    if isinstance(first, torch.Tensor):
        dtype = str(first.dtype).replace("torch.", "")
        if dtype not in kernel.dtypes:
            return f"it computes in {', '.join(sorted(kernel.dtypes))}, not {dtype}"
    spec = spec_of(node.target)
    if spec is not None and spec.caches is not None:
        chosen = cache_of(str(node.meta.get("site", "")), context).dtype
        if name_of(chosen) not in kernel.cache_dtypes:
            return f"it caches in {', '.join(sorted(kernel.cache_dtypes))}, not {name_of(chosen)}"
        try:
            values = {
                name: item.meta["val"] if isinstance(item, fx.Node) else item
                for name, item in arguments(node).items()
            }  # fmt: skip
            for dim in spec.caches(values)[1:]:
                row_length(dim, chosen)
        except ValueError as error:
            return str(error)
    missing = phases - kernel.phases
    if missing:
        return f"it does not serve the {' and '.join(sorted(missing))} phase"
    return kernel.supports(node)
