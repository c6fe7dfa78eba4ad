"""Devices as KTransformers' kwargs write them."""

from __future__ import annotations

import re
from dataclasses import dataclass

_PATTERN = re.compile(r"(cpu|cuda|xpu|npu)(?::(\d{1,3}))?")


@dataclass(frozen=True, slots=True, order=True)
class Device:
    """The CPU, or one accelerator by number (`index` is -1 for the CPU, so that it sorts first)."""

    hardware: str
    index: int = -1

    def __str__(self) -> str:
        return self.hardware if self.index < 0 else f"{self.hardware}:{self.index}"

    @property
    def is_cpu(self) -> bool:
        """Whether it is the CPU."""
        return self.hardware == "cpu"


CPU = Device("cpu")
DEFAULT = Device("cuda", 0)
"""Where KTransformers puts what no rule places."""


def parse_device(value: object) -> Device | None:
    """`"cpu"`, `"cuda"` (the current one: 0), `"cuda:1"`, `"xpu"`, `"npu:0"`; None for anything else.

    ktc has no kernels for xpu and npu devices: they stay what they are here, and `substitute` gives a GPU.
    """
    found = _PATTERN.fullmatch(value) if isinstance(value, str) else None
    if found is None:
        return None
    return CPU if found[1] == "cpu" else Device(found[1], int(found[2] or 0))


def substitute(device: Device) -> Device:
    """The device to write into a `.kt` file: an accelerator that ktc has no kernels for becomes a GPU."""
    return device if device.hardware in ("cpu", "cuda") else Device("cuda", device.index)
