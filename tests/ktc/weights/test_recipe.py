"""Recipes: putting tensors together, moving rows, and the checks before anything is read."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from ktc.errors import MissingTensorError, ShapeMismatchError, UnsupportedFormatError, WeightError
from ktc.weights.binding import Collector, Way, make_recipe
from ktc.weights.formats import nbytes
from ktc.weights.recipe import AddConstant, InterleaveHalves, Part, Recipe
from ktc.weights.tensor import TensorHeader


def header(name: str, format: str, *shape: int) -> TensorHeader:
    size = nbytes(format, shape) if format in ("f32", "f16", "q8_0", "iq1_s") else 0
    return TensorHeader(name, format, shape, size, Path("m.gguf"))


class Store:
    """Tensors with known bytes: fetches count up from a start for each name."""

    def __init__(self, **starts: int) -> None:
        self.starts = starts

    def __call__(self, wanted: TensorHeader) -> np.ndarray:
        return (np.arange(wanted.nbytes) + self.starts[wanted.name]).astype(np.uint8)


def test_rows_of_blocks_are_put_together() -> None:
    a = make_recipe("a", (2, 32), [header("a", "q8_0", 2, 32)])
    b = make_recipe("b", (1, 32), [header("b", "q8_0", 1, 32)])
    both = Recipe.concat([a, b])
    assert (both.parameter, both.shape, both.format, both.nbytes) == ("a+b", (3, 32), "q8_0", 102)
    raw = both.read(Store(a=0, b=100))
    assert raw.data.tolist() == [*range(68), *range(100, 134)]
    assert [part.name for part in both.headers] == ["a", "b"]
    nested = Recipe.concat([both, a], "all")
    assert nested.parameter == "all" and nested.read(Store(a=0, b=100)).data.nbytes == 34 * 5


def test_concat_refuses_what_does_not_fit() -> None:
    a = make_recipe("a", (2, 32), [header("a", "q8_0", 2, 32)])
    with pytest.raises(UnsupportedFormatError, match=r"'a' \(q8_0\) and 'b' \(f32\)"):
        Recipe.concat([a, make_recipe("b", (2, 32), [header("b", "f32", 2, 32)])])
    with pytest.raises(ShapeMismatchError, match="along rows"):
        Recipe.concat([a, make_recipe("b", (2, 64), [header("b", "q8_0", 2, 64)])])


def test_gate_and_up_are_joined_within_each_expert() -> None:
    pieces = [header("gate", "f32", 2, 1, 2), header("up", "f32", 2, 3, 2)]
    recipe = make_recipe("gate_up", (2, 4, 2), pieces, axis=1)
    data = {"gate": np.arange(4, dtype="<f4"), "up": 10 + np.arange(12, dtype="<f4")}
    found = recipe.read(lambda h: data[h.name].view(np.uint8)).data.view("<f4").reshape(2, 4, 2)
    assert np.array_equal(found[:, :1], data["gate"].reshape(2, 1, 2))
    assert np.array_equal(found[:, 1:], data["up"].reshape(2, 3, 2))


def test_matrices_of_single_experts_are_stacked() -> None:
    pieces = [header(f"e{i}", "f32", 3, 2) for i in range(4)]
    assert make_recipe("down", (4, 3, 2), pieces).shape == (4, 3, 2)
    with pytest.raises(ShapeMismatchError):
        make_recipe("down", (5, 3, 2), pieces)


def test_interleave_halves_is_the_converters_inverse() -> None:
    heads, rows, width = 3, 24, 4
    original = np.arange(rows * width, dtype=np.uint8).reshape(rows, width)
    half = rows // heads // 2
    converted = original.reshape(heads, 2, half, width).swapaxes(1, 2).reshape(-1)
    found = InterleaveHalves(heads).apply(converted, header("q", "f32", rows, 1))
    assert np.array_equal(found, original.reshape(-1))


def test_transforms_are_checked_when_bound() -> None:
    with pytest.raises(ShapeMismatchError, match="6 rows, not an even number for each of 2 heads"):
        make_recipe("q", (6, 4), [header("q", "f32", 6, 4)], transforms=lambda _: (InterleaveHalves(2),))
    with pytest.raises(UnsupportedFormatError, match="-1 can be applied to f32 only"):
        make_recipe("n", (32,), [header("n", "q8_0", 32)], transforms=lambda _: (AddConstant(-1.0),))


def test_shapes_and_formats_are_checked_when_bound() -> None:
    assert make_recipe("g", (1, 32), [header("g", "f32", 32)]).shape == (1, 32)
    with pytest.raises(ShapeMismatchError, match=r"has shape \[4, 32\], parameter 'w' has \[32, 4\]"):
        make_recipe("w", (32, 4), [header("w", "f32", 4, 32)])
    with pytest.raises(UnsupportedFormatError, match="iq1_s, which ktc does not") as caught:
        make_recipe("w", (256,), [header("w", "iq1_s", 256)])
    assert caught.value.tensor == "w" and "q4_k" in caught.value.hint
    with pytest.raises(UnsupportedFormatError, match="must have one format"):
        make_recipe("w", (2, 4, 32), [header("g", "f32", 2, 2, 32), header("u", "f16", 2, 2, 32)], axis=1)
    with pytest.raises(ShapeMismatchError, match="do not fit together"):
        make_recipe("w", (2, 4, 4), [header("g", "f32", 2, 2, 4), header("u", "f32", 3, 2, 4)], axis=1)


def test_fp8_is_recognised() -> None:
    with pytest.raises(UnsupportedFormatError, match="f8_e4m3") as caught:
        make_recipe("w", (2, 2), [TensorHeader("w", "f8_e4m3", (2, 2), 4)])
    assert "weight_scale_inv" in caught.value.hint


def test_handmade_recipe_of_the_wrong_size() -> None:
    with pytest.raises(ShapeMismatchError, match="8 bytes read, f32 of \\[4\\] takes 16"):
        Recipe("w", (4,), "f32", (Part(header("w", "f32", 2)),)).read(Store(w=0))


def test_binding_lists_everything_as_errors() -> None:
    found = Collector({"a": header("a", "f32", 2), "b": header("b", "f32", 3)})
    found.add("pa", (2,), [Way([("a",)])])
    found.add("pb", (4,), [Way([("b",)])])
    found.add("pc", (4,), [Way([("c", "d")])])
    binding = found.binding()
    assert set(binding.recipes) == {"pa"}
    shape, missing = binding.errors()
    assert isinstance(shape, ShapeMismatchError) and shape.tensor == "pb"
    assert isinstance(missing, MissingTensorError) and missing.tensor == "pc" and "c, d" in missing.hint
    assert all(isinstance(error, WeightError) for error in binding.errors())
