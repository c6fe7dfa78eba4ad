"""The k-format quantisers: error against rounding to nearest and stated bounds, and hostile rows."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pytest

from ktc import _cpu

Floats = npt.NDArray[np.float32]
BLOCK_BYTES = {"q4_k": 144, "q6_k": 210}
ROWS, COLUMNS = 64, 2048


def quantize(x: Floats, name: str, importance: Floats | None = None) -> npt.NDArray[np.uint8]:
    out = np.full(x.size // 256 * BLOCK_BYTES[name], 0xEE, np.uint8)
    assert _cpu.quantize(x.reshape(-1, x.shape[-1]), name, out, importance) == ("", 0)
    return out


def dequantize(data: npt.NDArray[np.uint8], name: str) -> Floats:
    out = np.empty(data.size // BLOCK_BYTES[name] * 256, np.float32)
    _cpu.dequantize(data, name, out)
    return out


def nmse(x: Floats, y: Floats, weights: Floats | float = 1.0) -> float:
    """Squared error over squared size, both weighted."""
    exact, error = x.astype(np.float64), y.reshape(x.shape).astype(np.float64) - x
    return float((weights * error**2).sum() / (weights * exact**2).sum())


def half(x: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    return x.astype(np.float16).astype(np.float64)


def divide(a: npt.NDArray[np.float64], b: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    return np.divide(a, b, out=np.zeros(np.broadcast_shapes(a.shape, b.shape)), where=b != 0)


def nearest_q4_k(x: Floats) -> Floats:
    """Q4_K without a search: each sub-block's range in 15 steps, scales rounded to what the format holds."""
    v = x.astype(np.float64).reshape(-1, 8, 32)
    low = np.minimum(v.min(-1, keepdims=True), 0)
    scale = (v.max(-1, keepdims=True) - low) / 15
    d, dmin = half(scale.max(1, keepdims=True) / 63), half(-low.min(1, keepdims=True) / 63)
    scale = d * np.rint(divide(scale, d)).clip(0, 63)
    minimum = dmin * np.rint(divide(-low, dmin)).clip(0, 63)
    q = np.rint(divide(v + minimum, scale)).clip(0, 15)
    return (q * scale - minimum).reshape(x.shape).astype(np.float32)


def nearest_q6_k(x: Floats) -> Floats:
    """Q6_K without a search: each sub-block's largest magnitude is code 31."""
    v = x.astype(np.float64).reshape(-1, 16, 16)
    scale = np.abs(v).max(-1, keepdims=True) / 31
    d = half(scale.max(1, keepdims=True) / 127)
    scale = d * np.rint(divide(scale, d)).clip(-128, 127)
    return (np.rint(divide(v, scale)).clip(-32, 31) * scale).reshape(x.shape).astype(np.float32)


NEAREST = {"q4_k": nearest_q4_k, "q6_k": nearest_q6_k}


def rows(kind: str) -> Floats:
    rng, shape = np.random.default_rng(8), (ROWS, COLUMNS)
    return {
        "gaussian": lambda: rng.standard_normal(shape),
        "laplace": lambda: rng.laplace(size=shape),
        "student t3": lambda: rng.standard_t(3, shape),
        "outlier columns": lambda: rng.standard_normal(shape) * np.exp(rng.standard_normal(COLUMNS)),
        "positive": lambda: np.abs(rng.standard_normal(shape)),
        "far from zero": lambda: rng.standard_normal(shape) + 5,
    }[kind]().astype(np.float32)


# Measured NMSE (first) and what it must stay below; the last is the most it may be of rounding to nearest.
@pytest.mark.parametrize(
    ("name", "kind", "measured", "bound", "of_nearest"),
    [
        ("q4_k", "gaussian", 4.86e-3, 4.95e-3, 0.82),
        ("q4_k", "laplace", 6.80e-3, 6.95e-3, 0.82),
        ("q4_k", "student t3", 8.02e-3, 8.50e-3, 0.85),
        ("q4_k", "outlier columns", 9.30e-3, 10.0e-3, 0.85),
        ("q4_k", "positive", 1.76e-3, 1.80e-3, 0.87),
        ("q4_k", "far from zero", 5.69e-4, 6.00e-4, 0.84),
        ("q6_k", "gaussian", 2.83e-4, 2.90e-4, 0.80),
        ("q6_k", "laplace", 4.28e-4, 4.40e-4, 0.83),
        ("q6_k", "student t3", 6.22e-4, 6.80e-4, 0.88),
        ("q6_k", "outlier columns", 8.06e-4, 8.80e-4, 0.92),
        ("q6_k", "positive", 2.83e-4, 2.90e-4, 0.80),
        ("q6_k", "far from zero", 1.02e-4, 1.06e-4, 0.75),
    ],
)
def test_error(name: str, kind: str, measured: float, bound: float, of_nearest: float) -> None:
    x = rows(kind)
    error, plain = nmse(x, dequantize(quantize(x, name), name)), nmse(x, NEAREST[name](x))
    assert measured * 0.85 < error < bound, f"NMSE {error:.3e}"
    assert error < of_nearest * plain, f"{error / plain:.3f} of rounding to nearest, {plain:.3e}"


@pytest.mark.parametrize("name", ["q4_k", "q6_k"])
def test_no_row_is_worse_than_rounding_to_nearest(name: str) -> None:
    """Over single blocks of all kinds the search never loses more than float16 rounding can explain."""
    x = np.concatenate(
        [rows(kind)[:, :256] for kind in ("gaussian", "student t3", "positive", "outlier columns")]
    )
    y, plain = dequantize(quantize(x, name), name).reshape(x.shape), NEAREST[name](x)
    error = ((y - x).astype(np.float64) ** 2).sum(1)
    assert (error <= 1.001 * ((plain - x).astype(np.float64) ** 2).sum(1)).all()


@pytest.mark.parametrize("name", ["q4_k", "q6_k"])
def test_levels_agree_to_the_bit(name: str) -> None:
    x = np.concatenate([rows("student t3"), rows("positive")])
    before, seen = _cpu.isa(), []
    try:
        for level in _cpu.isa_levels():
            _cpu.set_isa(level)
            seen.append(quantize(x, name))
    finally:
        _cpu.set_isa(before)
    assert all((data == seen[0]).all() for data in seen)


@pytest.mark.parametrize("name", ["q4_k", "q6_k"])
def test_importance_shifts_the_error(name: str) -> None:
    x = rows("gaussian")
    weights = np.exp(2 * np.random.default_rng(9).standard_normal(COLUMNS)).astype(np.float32)
    plain = nmse(x, dequantize(quantize(x, name), name), weights)
    weighted = nmse(x, dequantize(quantize(x, name, weights), name), weights)
    assert weighted < 0.8 * plain, f"{weighted / plain:.3f}"
    even = quantize(x, name, np.ones(COLUMNS, np.float32))
    np.testing.assert_array_equal(even, quantize(x, name))


@pytest.mark.parametrize("name", ["q4_k", "q6_k"])
def test_quantising_again_changes_next_to_nothing(name: str) -> None:
    once = dequantize(quantize(rows("gaussian"), name), name).reshape(ROWS, COLUMNS)
    assert nmse(once, dequantize(quantize(once, name), name)) < {"q4_k": 2e-5, "q6_k": 2e-6}[name]


@pytest.mark.parametrize("name", ["q4_k", "q6_k"])
@pytest.mark.parametrize(
    "row",
    [
        pytest.param(np.full(256, 0.75), id="constant"),
        pytest.param(np.full(256, -0.75), id="negative constant"),
        pytest.param(np.tile([1.0, -1.0], 128), id="two values"),
        pytest.param(np.where(np.arange(256) == 100, -3.0, 0.0), id="one negative value"),
        pytest.param(np.where(np.arange(256) == 100, 3.0, 0.0), id="one value"),
        pytest.param(np.repeat([0.0, 2.0, -1.0, 0.5], 64), id="steps"),
        pytest.param(np.where(np.arange(256) < 32, 1e-30, 1.0), id="tiny beside large"),
    ],
)
def test_simple_rows_are_nearly_exact(name: str, row: npt.NDArray[np.float64]) -> None:
    x = row.astype(np.float32).reshape(1, -1)
    assert nmse(x, dequantize(quantize(x, name), name)) < 2e-5


@pytest.mark.parametrize("name", ["q4_k", "q6_k"])
def test_any_size_of_values(name: str) -> None:
    """From float32's subnormals to the format's end: finite, and accurate where float16 scales reach."""
    base = rows("gaussian")[:1]
    for exponent in range(-149, 20):
        x = np.ldexp(base, exponent).astype(np.float32)
        y = dequantize(quantize(x, name), name)
        assert np.isfinite(y).all()
        if exponent >= -3:  # scales above the subnormals of float16
            assert nmse(x, y) < {"q4_k": 6e-3, "q6_k": 3.5e-4}[name], exponent
