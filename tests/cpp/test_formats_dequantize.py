"""Dequantisation agrees with the gguf package bit for bit, over random and extreme codes and scales."""

from __future__ import annotations

import warnings

import gguf
import numpy as np
import numpy.typing as npt
import pytest
import torch

from ktc import _cpu

FORMATS = {name: (elements, size) for name, elements, size in _cpu.formats()}

# Where each block keeps float16 numbers; f16 and bf16, nothing else, are tested exhaustively.
HALVES = {
    "q4_0": (0,),
    "q4_1": (0, 2),
    "q5_0": (0,),
    "q5_1": (0, 2),
    "q8_0": (0,),
    "q2_k": (80, 82),
    "q3_k": (108,),
    "q4_k": (0, 2),
    "q5_k": (0, 2),
    "q6_k": (208,),
    "iq4_nl": (0,),
    "iq4_xs": (0,),
}
# 0, -0, smallest and largest subnormal, smallest normal, largest, infinities, quiet and signalling NaN.
EXTREME_HALVES = np.array(
    [0x0000, 0x8000, 0x0001, 0x83FF, 0x0400, 0x7BFF, 0xFBFF, 0x7C00, 0xFC00, 0x7E00, 0xFD01], dtype="<u2"
)


def ours(data: npt.NDArray[np.uint8], name: str) -> npt.NDArray[np.float32]:
    elements, size = FORMATS[name]
    out = np.full(data.size // size * elements, 12345.0, np.float32)
    _cpu.dequantize(data.reshape(-1), name, out)
    return out


def reference(data: npt.NDArray[np.uint8], name: str) -> npt.NDArray[np.float32]:
    if name == "fp8":
        codes = torch.from_numpy(np.ascontiguousarray(data[:, 4:])).view(torch.float8_e4m3fn)
        scales = torch.from_numpy(np.ascontiguousarray(data[:, :4])).view(torch.float32)
        return (codes.float() * scales).numpy().reshape(-1)
    with warnings.catch_warnings(), np.errstate(all="ignore"):
        warnings.simplefilter("ignore")
        kind = gguf.GGMLQuantizationType[name.upper()]
        return np.asarray(gguf.quants.dequantize(data, kind), np.float32).reshape(-1)


def assert_same_bits(got: npt.NDArray[np.float32], wanted: npt.NDArray[np.float32]) -> None:
    assert got.shape == wanted.shape
    same = (got.view(np.uint32) == wanted.view(np.uint32)) | (np.isnan(got) & np.isnan(wanted))
    wrong = np.flatnonzero(~same)
    assert wrong.size == 0, f"{wrong.size} differ, first at {wrong[0]}: {got[wrong[0]]} != {wanted[wrong[0]]}"


def test_formats_have_the_sizes_of_the_gguf_package() -> None:
    assert len(FORMATS) == 17 and FORMATS["fp8"] == (128, 132)
    for name, sizes in FORMATS.items():
        if name == "fp8":
            continue
        assert gguf.GGML_QUANT_SIZES[gguf.GGMLQuantizationType[name.upper()]] == sizes


@pytest.mark.parametrize("name", FORMATS)
def test_random_codes(name: str) -> None:
    data = np.random.default_rng(1).integers(0, 256, (3000, FORMATS[name][1]), dtype=np.uint8)
    assert_same_bits(ours(data, name), reference(data, name))


@pytest.mark.parametrize("name", FORMATS)
@pytest.mark.parametrize("byte", [0x00, 0xFF, 0x0F, 0xF0, 0x55, 0xAA, 0x80, 0x7F])
def test_equal_bytes(name: str, byte: int) -> None:
    data = np.full((4, FORMATS[name][1]), byte, np.uint8)
    assert_same_bits(ours(data, name), reference(data, name))


@pytest.mark.parametrize("name", HALVES)
def test_extreme_scales(name: str) -> None:
    grids = np.meshgrid(*[EXTREME_HALVES] * len(HALVES[name]), indexing="ij")
    blocks = np.random.default_rng(2).integers(0, 256, (4, grids[0].size, FORMATS[name][1]), dtype=np.uint8)
    blocks[1] = 0
    blocks[2] = 255
    for offset, grid in zip(HALVES[name], grids, strict=True):
        blocks[:, :, offset : offset + 2] = grid.reshape(-1, 1).view(np.uint8)
    data = blocks.reshape(-1, FORMATS[name][1])
    assert_same_bits(ours(data, name), reference(data, name))


def test_every_mxfp4_exponent() -> None:
    data = np.random.default_rng(3).integers(0, 256, (256, 17), dtype=np.uint8)
    data[:, 0] = np.arange(256)
    assert_same_bits(ours(data, "mxfp4"), reference(data, "mxfp4"))


@pytest.mark.parametrize("scale", [0.0, 1.0, -0.37, 1e-38, 3.4e38, np.inf, np.nan])
def test_every_fp8_code(scale: float) -> None:
    blocks = np.empty((2, 132), np.uint8)
    blocks[:, :4] = np.array([scale], "<f4").view(np.uint8)
    blocks[:, 4:] = np.arange(256, dtype=np.uint8).reshape(2, 128)
    assert_same_bits(ours(blocks, "fp8"), reference(blocks, "fp8"))


@pytest.mark.parametrize("name", ["f16", "bf16"])
def test_every_16_bit_number(name: str) -> None:
    data = np.arange(65536, dtype="<u2").view(np.uint8).reshape(-1, 2)
    assert_same_bits(ours(data, name), reference(data, name))


@pytest.mark.parametrize("name", ["f32", "f16", "q4_0", "q6_k", "mxfp4"])
@pytest.mark.parametrize("blocks", [0, 1, 3, 8193])
def test_any_number_of_blocks(name: str, blocks: int) -> None:
    """Sizes around the split among threads: nothing is left out, nothing written twice."""
    data = np.random.default_rng(4).integers(0, 256, (blocks, FORMATS[name][1]), dtype=np.uint8)
    if blocks:
        assert_same_bits(ours(data, name), reference(data, name))
    else:
        assert ours(data, name).size == 0


def test_out_may_be_any_librarys_memory() -> None:
    out = torch.zeros(32)
    data = np.full(34, 1, np.uint8)
    _cpu.dequantize(torch.from_numpy(data), "q8_0", out)
    assert_same_bits(out.numpy(), reference(data.reshape(1, -1), "q8_0"))


@pytest.mark.parametrize(
    ("size", "name", "elements", "text"),
    [
        (17, "q4_0", 32, "17 bytes do not hold 32 values as q4_0"),
        (18, "q4_0", 33, "18 bytes do not hold 33 values as q4_0"),
        (18, "q4_0", 0, "18 bytes do not hold 0 values"),
        (18, "q9_0", 32, "unknown number format 'q9_0'; there are f32, f16"),
    ],
)
def test_sizes_that_do_not_fit(size: int, name: str, elements: int, text: str) -> None:
    with pytest.raises(ValueError, match=text):
        _cpu.dequantize(np.zeros(size, np.uint8), name, np.zeros(elements, np.float32))


def test_read_only_or_strided_output_is_refused() -> None:
    data, out = np.zeros(18, np.uint8), np.zeros(64, np.float32)
    with pytest.raises(TypeError):
        _cpu.dequantize(data, "q4_0", out[::2])
    out.flags.writeable = False
    with pytest.raises(TypeError):
        _cpu.dequantize(data, "q4_0", out[:32])
