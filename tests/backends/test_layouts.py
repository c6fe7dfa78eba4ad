"""The bytes of every packed layout are those of its version: artifacts on disks hold them."""

from __future__ import annotations

import zlib
from dataclasses import replace

import ktc.backends.cpu  # noqa: F401  registers the kernels
import numpy as np
import pytest
import torch
from ktc.backends.cpu import packed
from ktc.backends.registry import Weight, kernels, register

from ktc.weights.formats import nbytes


def checksum(kernel: str, format: str, shape: tuple[int, ...]) -> int:
    """Of what the kernel packs out of bytes that are always the same."""
    found = kernels()[kernel].layout
    assert found is not None
    weight = Weight("w", format, shape)
    count = np.arange(nbytes(format, shape), dtype=np.uint32)
    blocks = torch.from_numpy(((count * np.uint32(2654435761)) >> np.uint32(13)).astype(np.uint8))
    if format == "fp8":
        blocks &= 0x3F  # no NaN, which the layout notes in its scales
    arena = torch.zeros(found.packed_bytes(weight) + 64, dtype=torch.uint8)
    start = -arena.data_ptr() % 64
    out = arena[start : start + found.packed_bytes(weight)]
    found.pack(blocks, weight, out)
    return zlib.crc32(out.numpy().data)


R16 = {
    "f32": 3008937649,
    "f16": 4275963493,
    "bf16": 1659029262,
    "q4_0": 1000807769,
    "q4_1": 3971903756,
    "q5_0": 2292921885,
    "q5_1": 3892496732,
    "q8_0": 1071760036,
    "q2_k": 1332770125,
    "q3_k": 740156162,
    "q4_k": 404355363,
    "q5_k": 3466963705,
    "q6_k": 1408510208,
    "iq4_nl": 1000807769,
    "iq4_xs": 152839326,
    "mxfp4": 3089041506,
    "fp8": 3617872349,
}
OTHERS = {
    "cpu.experts": ("q4_k", (2, 128, 256), 38951799),
    "cpu.mla_attention": ("q8_0", (2, 48, 256), 1690448862),
    "cpu.embedding_file": ("q6_k", (24, 512), 1671358450),
}
CHANGED = "what packing writes has changed: raise the layout's version, then write the new checksum here"


@pytest.mark.parametrize("format", packed.PACKED)
def test_r16(format: str) -> None:
    assert packed.VERSION == 1 and checksum("cpu.linear", format, (24, 512)) == R16[format], CHANGED


@pytest.mark.parametrize("kernel", OTHERS)
def test_others(kernel: str) -> None:
    format, shape, expected = OTHERS[kernel]
    layout = kernels()[kernel].layout
    assert layout is not None and layout.version == 1 and checksum(kernel, format, shape) == expected, CHANGED


def test_kernels_of_one_layout_agree_on_its_version() -> None:
    linear = kernels()["cpu.linear"]
    assert linear.layout is not None
    changed = replace(linear.layout, version=linear.layout.version + 1)
    other = replace(linear, name="test.linear", layout=changed)
    with pytest.raises(ValueError, match="two versions of the layout 'r16'"):
        register(other)
    assert "test.linear" not in kernels()
