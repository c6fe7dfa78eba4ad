"""Conversion of weights between number formats: shapes, round trips and typed errors."""

from __future__ import annotations

from collections.abc import Callable

import gguf
import numpy as np
import pytest

from ktc.errors import ShapeMismatchError, UnsupportedFormatError
from ktc.weights import convert as module
from ktc.weights.convert import QUANTIZABLE, ConversionError, convert, dequantize, quantize
from ktc.weights.formats import FORMATS, nbytes

# Normalised mean squared error of Gaussian values.
NMSE = {
    "f32": 0.0,
    "f16": 1e-7,
    "bf16": 4e-6,
    "q4_0": 8e-3,
    "q8_0": 3e-5,
    "q4_k": 5.2e-3,
    "q6_k": 3e-4,
    "fp8": 8e-4,
}


def values(*shape: int) -> np.ndarray[tuple[int, ...], np.dtype[np.float32]]:
    return np.random.default_rng(11).standard_normal(shape).astype(np.float32)


def test_the_formats_written() -> None:
    assert set(QUANTIZABLE) == set(NMSE)


@pytest.mark.parametrize("name", NMSE)
@pytest.mark.parametrize("shape", [(256,), (3, 512), (2, 3, 256), (0, 256), (4, 0)])
def test_round_trip(name: str, shape: tuple[int, ...]) -> None:
    x = values(*shape)
    data = quantize(x, name)
    assert data.shape == (*shape[:-1], nbytes(name, shape[-1:]))
    y = dequantize(data, name, shape)
    assert y.shape == shape and y.dtype == np.float32
    assert float(((y - x) ** 2).sum()) <= NMSE[name] * float((x**2).sum())


def test_a_scalar() -> None:
    assert quantize(np.array(1.5, np.float32), "f16").shape == (2,)
    assert dequantize(np.array([0, 0x3E], np.uint8), "f16", ()) == 1.5


@pytest.mark.parametrize("name", FORMATS)
def test_dequantize_any_format(name: str) -> None:
    data = np.random.default_rng(12).integers(0, 100, (5, nbytes(name, (512,))), dtype=np.uint8)
    if name == "fp8":  # tests/cpp compares it with torch
        with np.errstate(invalid="ignore"):
            assert dequantize(data, name, (5, 512)).shape == (5, 512)
        return
    wanted = gguf.quants.dequantize(data, gguf.GGMLQuantizationType[name.upper()])
    np.testing.assert_array_equal(dequantize(data, name, (5, 512)), wanted)


def test_dequantize_into() -> None:
    x, out = values(3, 64), np.zeros((3, 64), np.float32)
    assert dequantize(quantize(x, "f32"), "f32", (3, 64), out=out) is out
    np.testing.assert_array_equal(out, x)


def test_strided_input() -> None:
    x = values(64, 512)
    np.testing.assert_array_equal(
        quantize(x.T[::2], "q8_0"), quantize(np.ascontiguousarray(x.T[::2]), "q8_0")
    )
    data = np.repeat(quantize(x, "q8_0"), 2, axis=1)[:, ::2]
    np.testing.assert_array_equal(
        dequantize(data, "q8_0", (64, 512)), dequantize(data.copy(), "q8_0", (64, 512))
    )


@pytest.mark.parametrize(
    ("name", "to_format"), [("q6_k", "q4_k"), ("bf16", "q8_0"), ("q4_0", "f16"), ("mxfp4", "f32")]
)
def test_convert_is_dequantize_then_quantize(
    name: str, to_format: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    if name in QUANTIZABLE:
        data = quantize(values(7, 512), name)
    else:
        data = np.random.default_rng(13).integers(0, 100, (7, nbytes(name, (512,))), dtype=np.uint8)
    wanted = quantize(dequantize(data, name, (7, 512)), to_format)
    for slab in (512, 1536, 1 << 20):  # one row, three rows and all of them at a time
        monkeypatch.setattr(module, "_SLAB_ELEMENTS", slab)
        np.testing.assert_array_equal(convert(data, name, (7, 512), to_format), wanted)


def test_convert_to_the_same_format_copies_nothing() -> None:
    data = quantize(values(2, 256), "q4_k")
    assert np.shares_memory(convert(data, "q4_k", (2, 256), "q4_k"), data)


def test_convert_names_the_index_in_the_whole_tensor(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_SLAB_ELEMENTS", 512)
    x = values(2, 3, 256)
    x[1, 2, 7] = np.inf
    with pytest.raises(
        ConversionError, match=r"the value of a\.weight at index \[1, 2, 7\] is inf"
    ) as caught:
        convert(quantize(x, "bf16"), "bf16", x.shape, "q8_0", tensor="a.weight")
    assert caught.value.tensor == "a.weight"


def with_value(value: float) -> np.ndarray[tuple[int, ...], np.dtype[np.float32]]:
    x = values(4, 256)
    x[2, 100] = value
    return x


@pytest.mark.parametrize(
    ("use", "error", "text"),
    [
        (
            lambda: dequantize(np.zeros(18, np.uint8), "q4_9", (32,)),
            UnsupportedFormatError,
            "unknown number format",
        ),
        (lambda: dequantize(np.zeros(66, np.uint8), "iq2_xxs", (256,)), UnsupportedFormatError, "iq2_xxs"),
        (lambda: quantize(values(1, 256), "q5_k"), UnsupportedFormatError, "does not quantise to q5_k"),
        (lambda: convert(np.zeros(4, np.uint8), "f32", (1,), "q2_k"), UnsupportedFormatError, "q2_k"),
        (
            lambda: dequantize(np.zeros(17, np.uint8), "q4_0", (32,)),
            ShapeMismatchError,
            "17 bytes; q4_0 of shape .* 18",
        ),
        (
            lambda: dequantize(np.zeros(18, np.uint8), "q4_0", (2, 16)),
            ShapeMismatchError,
            "row of 16 elements",
        ),
        (lambda: dequantize(np.zeros(18, np.uint8), "q4_0", (-1, -32)), ShapeMismatchError, "negative"),
        (lambda: quantize(values(2, 48), "q8_0"), ShapeMismatchError, "row of 48 elements"),
        (lambda: dequantize(np.zeros(18, np.int8), "q4_0", (32,)), ConversionError, "int8, not uint8"),
        (lambda: quantize(np.zeros((1, 32)), "q4_0"), ConversionError, "float64, not float32"),
        (lambda: quantize(with_value(np.nan), "q4_k"), ConversionError, r"at index \[2, 100\] is nan"),
        (
            lambda: quantize(with_value(1e9), "q4_0"),
            ConversionError,
            r"block at index \[2, 96\] is too large for q4_0",
        ),
        (
            lambda: quantize(with_value(7e4), "f16"),
            ConversionError,
            r"value 70000\.0 at index \[2, 100\] is too large",
        ),
        (
            lambda: dequantize(np.zeros(18, np.uint8), "q4_0", (32,), out=np.zeros(32)),
            ConversionError,
            "out is not",
        ),
        (
            lambda: dequantize(np.zeros(18, np.uint8), "q4_0", (32,), out=np.zeros((1, 32), np.float32)),
            ShapeMismatchError,
            "out has shape",
        ),
        (
            lambda: quantize(values(1, 256), "q4_k", importance=np.ones(3, np.float32)),
            ShapeMismatchError,
            "importance has shape",
        ),
        (
            lambda: quantize(values(1, 256), "q4_k", importance=np.full(256, -1, np.float32)),
            ConversionError,
            "importance has values",
        ),
    ],
)
def test_typed_errors(use: Callable[[], object], error: type[Exception], text: str) -> None:
    with pytest.raises(error, match=text):
        use()


def test_importance_may_be_zero() -> None:
    x, importance = values(8, 256), np.zeros(256, np.float32)
    np.testing.assert_array_equal(quantize(x, "q4_k", importance=importance), quantize(x, "q4_k"))
    importance[:128] = 2.0
    y = dequantize(quantize(x, "q4_k", importance=importance), "q4_k", x.shape)
    assert np.isfinite(y).all() and ((y - x)[:, :128] ** 2).mean() < ((y - x)[:, 128:] ** 2).mean()
