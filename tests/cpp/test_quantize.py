"""Quantisers without a search: q4_0 and q8_0 agree with the gguf package, 16-bit floats with IEEE 754."""

from __future__ import annotations

import gguf
import numpy as np
import numpy.typing as npt
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from ktc import _cpu

Floats = npt.NDArray[np.float32]
SIZES = {name: (elements, size) for name, elements, size in _cpu.formats()}
SMALLEST_SCALED = np.float32(1e-36)  # below, the gguf package's inverse scale overflows


def ours(x: Floats, name: str) -> npt.NDArray[np.uint8]:
    elements, size = SIZES[name]
    out = np.full(x.size // elements * size, 0xEE, np.uint8)
    assert _cpu.quantize(x.reshape(-1, x.shape[-1]), name, out) == ("", 0)
    return out


def reference(x: Floats, name: str) -> npt.NDArray[np.uint8]:
    kind = gguf.GGMLQuantizationType[name.upper()]
    with np.errstate(all="ignore"):
        return gguf.quants.quantize(x, kind).view(np.uint8).reshape(-1)


@pytest.mark.parametrize("name", ["q4_0", "q8_0"])
@pytest.mark.parametrize(
    "kind", ["gaussian", "heavy tails", "ties", "constant", "zeros", "one value", "wide"]
)
def test_equal_to_gguf(name: str, kind: str) -> None:
    rng = np.random.default_rng(5)
    shape = (64, 512)
    x = {
        "gaussian": rng.standard_normal(shape),
        "heavy tails": rng.standard_t(2, shape),
        # Halves of a step, and equal magnitudes of both signs: rounding and the choice of the extreme show.
        "ties": rng.integers(-16, 17, shape) / 2,
        "constant": np.full(shape, -0.3),
        "zeros": np.zeros(shape),
        "one value": np.where(np.arange(512) % 32 == 7, rng.standard_normal(shape), 0),
        "wide": rng.standard_normal(shape) * np.exp2(rng.integers(-110, 18, shape)),
    }[kind].astype(np.float32)
    np.testing.assert_array_equal(ours(x, name), reference(x, name))


@given(
    hnp.arrays(np.float32, (2, 32), elements=st.floats(-400000, 400000, width=32)),
    st.sampled_from(["q4_0", "q8_0"]),
)
@settings(max_examples=200, deadline=None)
def test_any_block_equals_gguf(x: Floats, name: str) -> None:
    top = np.abs(x).max(axis=1, keepdims=True)
    x = np.where(top < SMALLEST_SCALED, np.float32(0), x)
    np.testing.assert_array_equal(ours(x, name), reference(x, name))


@pytest.mark.parametrize("name", ["q4_0", "q8_0", "q4_k", "q6_k"])
def test_values_too_small_for_any_scale_become_zero(name: str) -> None:
    x = np.random.default_rng(6).standard_normal((2, 256)).astype(np.float32) * np.float32(1e-41)
    out = np.full(512, np.nan, np.float32)
    _cpu.dequantize(ours(x, name), name, out)
    assert (out == 0).all()


def halfway_patterns() -> Floats:
    """Every float16, the midpoints between neighbours, and the float32s next to those."""
    halves = np.arange(0x7C00, dtype=np.uint16).view(np.float16).astype(np.float32)
    middles = (halves[:-1] + halves[1:]) / 2
    exact = np.concatenate([halves, middles, [np.float32(65519.996)]]).astype(np.float32)
    near = np.concatenate([exact, np.nextafter(exact, np.float32(0)), np.nextafter(exact, np.float32(1e9))])
    near = near[near < 65520]
    return np.concatenate([near, -near])


def test_f16_rounds_to_nearest_even() -> None:
    x = halfway_patterns()
    np.testing.assert_array_equal(
        ours(x.reshape(1, -1), "f16").view(np.uint16), x.astype(np.float16).view(np.uint16)
    )


def test_bf16_rounds_to_nearest_even() -> None:
    high = np.random.default_rng(7).integers(0, 65536, 20000, dtype=np.uint32) << np.uint32(16)
    x = np.concatenate([high | low for low in (0, 1, 0x7FFF, 0x8000, 0x8001, 0xFFFF)]).astype(np.uint32)
    floats = x.view(np.float32)
    got, wanted = (
        d.view(np.uint16) for d in (ours(floats.reshape(1, -1), "bf16"), reference(floats, "bf16"))
    )
    nan = np.isnan(floats)
    np.testing.assert_array_equal(got[~nan], wanted[~nan])
    assert np.isnan((got[nan].astype(np.uint32) << 16).view(np.float32)).all()


@pytest.mark.parametrize("kind", ["gaussian", "ties", "zeros", "wide", "every code"])
def test_fp8_is_torchs_rounding_of_the_scaled_block(kind: str) -> None:
    rng = np.random.default_rng(9)
    codes = torch.arange(256, dtype=torch.uint8).view(torch.float8_e4m3fn).float().nan_to_num(448.0).numpy()
    middles = (np.sort(codes)[1:] + np.sort(codes)[:-1]) / 2
    x = {
        "gaussian": rng.standard_normal((64, 512)),
        "ties": np.concatenate([middles, [448.0], middles[::-1], [-448.0]]).reshape(-1, 128),
        "zeros": np.zeros((3, 128)),
        "wide": rng.standard_normal((64, 512)) * np.exp2(rng.integers(-120, 120, (64, 512))),
        "every code": np.concatenate([codes, codes * 0.37]).reshape(-1, 128),
    }[kind].astype(np.float32)
    found = ours(x, "fp8").reshape(-1, 132)
    blocks = torch.from_numpy(x).reshape(-1, 128)
    scale = blocks.abs().amax(1, keepdim=True) / 448
    wanted = (blocks / torch.where(scale > 0, scale, 1.0)).clamp(-448, 448).to(torch.float8_e4m3fn)
    np.testing.assert_array_equal(found[:, :4].copy().view(np.float32), scale.numpy())
    np.testing.assert_array_equal(found[:, 4:], wanted.view(torch.uint8).numpy())


@pytest.mark.parametrize("name", ["f32", "f16", "bf16"])
def test_plain_floats_keep_infinities_and_nan(name: str) -> None:
    x = np.array([[np.inf, -np.inf, np.nan, 1.5]], np.float32)
    out = np.zeros(4, np.float32)
    _cpu.dequantize(ours(x, name), name, out)
    np.testing.assert_array_equal(out, x[0])


@pytest.mark.parametrize("name", ["q4_0", "q8_0", "q4_k", "q6_k", "fp8"])
@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("index", [0, 300, 70000, 512 * 256 - 1])
def test_not_finite(name: str, bad: float, index: int) -> None:
    x = np.ones((512, 256), np.float32)
    x.reshape(-1)[index] = bad
    x.reshape(-1)[index + 1 :: 1000] = np.nan  # the first one counts, whichever thread sees it
    out = np.zeros(x.size // SIZES[name][0] * SIZES[name][1], np.uint8)
    assert _cpu.quantize(x, name, out) == ("not_finite", index)


@pytest.mark.parametrize(
    ("name", "fits", "too_large"),
    [
        ("f16", 65519.0, 65520.0),
        ("q4_0", 65519.0 * 8, 65520.0 * 8),
        ("q8_0", 65519.0 * 127, 65520.0 * 127),
        ("q4_k", 50e6, 70e6),
        ("q6_k", 250e6, 290e6),
    ],
)
def test_too_large_for_float16(name: str, fits: float, too_large: float) -> None:
    elements, size = SIZES[name]
    x = np.zeros((3, 256), np.float32)
    out = np.zeros(x.size // elements * size, np.uint8)
    x[1, 0] = fits
    assert _cpu.quantize(x, name, out) == ("", 0)
    values = np.zeros(x.size, np.float32)
    _cpu.dequantize(out, name, values)
    np.testing.assert_allclose(values.reshape(x.shape)[1, 0], fits, rtol=0.04)
    x[1, 0] = -too_large
    assert _cpu.quantize(x, name, out) == ("out_of_range", 256)


def test_sizes_and_formats_that_do_not_fit() -> None:
    x, out = np.zeros((2, 48), np.float32), np.zeros(54, np.uint8)
    with pytest.raises(ValueError, match="rows of 48 values are not whole blocks of q4_0"):
        _cpu.quantize(x, "q4_0", out)
    with pytest.raises(ValueError, match="54 bytes do not hold 64 values as q4_0"):
        _cpu.quantize(np.zeros((2, 32), np.float32), "q4_0", out)
    with pytest.raises(ValueError, match="does not quantise to q5_k"):
        _cpu.quantize(np.zeros((1, 256), np.float32), "q5_k", out)
    with pytest.raises(ValueError, match="importance has 3 values for 256 columns"):
        _cpu.quantize(np.zeros((1, 256), np.float32), "q4_k", np.zeros(144, np.uint8), np.ones(3, np.float32))
