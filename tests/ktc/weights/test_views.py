"""Views of weights: against index formulas on floats, on packed rows, undone arrangements, and what is refused."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from ktc.errors import ShapeMismatchError, WeightError
from ktc.weights.convert import dequantize, quantize
from ktc.weights.formats import nbytes
from ktc.weights.joins import MlaHalves, Mxfp4Blocks
from ktc.weights.recipe import Part, Recipe
from ktc.weights.tensor import RawTensor, TensorHeader
from ktc.weights.views import (
    AnyView,
    Deinterleave,
    DeinterleaveRows,
    ExpertColumns,
    ExpertRows,
    GroupRows,
    Interleave,
    MlaKeys,
    MlaValues,
    from_json,
    is_view,
    to_json,
    view_from,
)

H, N, V, L = 3, 32, 64, 96
rng = np.random.default_rng(3)


class Store:
    """Tensors with their bytes, and recipes of them."""

    def __init__(self) -> None:
        self.data: dict[str, np.ndarray] = {}

    def recipe(self, name: str, values: np.ndarray, format: str) -> Recipe:
        packed = quantize(values.astype(np.float32), format).reshape(-1)
        self.data[name] = packed
        header = TensorHeader(name, format, values.shape, nbytes(format, values.shape), Path("m.gguf"))
        return Recipe(name, values.shape, format, (Part(header),))

    def read(self, recipe: Recipe) -> RawTensor:
        return recipe.read(lambda header: self.data[header.name])

    def values(self, recipe: Recipe) -> np.ndarray:
        raw = self.read(recipe)
        return dequantize(raw.data, raw.format, raw.shape)


def expected(view: AnyView, x: np.ndarray) -> np.ndarray:
    """Element by element, after the docstrings."""
    match view:
        case MlaKeys(heads, nope):
            rows = x.shape[0] // heads
            return np.array([[x[h * rows + n] for n in range(nope)] for h in range(heads)]).transpose(0, 2, 1)
        case MlaValues(heads, nope):
            rows = x.shape[0] // heads
            return np.array([[x[h * rows + n] for n in range(nope, rows)] for h in range(heads)])
        case ExpertRows(interleaved):
            order = range(x.shape[2])
            wanted = [*order[::2], *order[1::2]] if interleaved else list(order)
            return np.array([[matrix[:, r] for r in wanted] for matrix in x])
        case Deinterleave():
            return x[..., [*range(0, x.shape[-1], 2), *range(1, x.shape[-1], 2)]]
        case DeinterleaveRows():
            return x[:, [*range(0, x.shape[1], 2), *range(1, x.shape[1], 2)]]
        case GroupRows(groups, start, stop):
            size = x.shape[0] // groups
            return np.concatenate([x[g * size + start : g * size + stop] for g in range(groups)])
        case _:
            raise NotImplementedError(view)


CASES = [
    (MlaKeys(H, N), (H * (N + V), L)),
    (MlaValues(H, N), (H * (N + V), L)),
    (ExpertRows(), (2, 64, 96)),
    (ExpertRows(True), (2, 64, 96)),
    (Deinterleave(), (4, 64)),
    (DeinterleaveRows(), (2, 6, 64)),
    (GroupRows(2, 4, 6), (16, 64)),
]


@pytest.mark.parametrize("format", ["f32", "bf16", "f16", "q8_0"])
@pytest.mark.parametrize(("view", "shape"), CASES)
def test_a_view_moves_elements_and_nothing_else(view: AnyView, shape: tuple[int, ...], format: str) -> None:
    store = Store()
    plain = store.recipe("w", rng.standard_normal(shape), format)
    seen = plain.then(view)
    raw = store.read(seen)
    wanted = expected(view, store.values(plain))
    assert seen.shape == view.shape(shape) == wanted.shape
    assert seen.format == ("f32" if format == "q8_0" and not view.packed else format)
    assert seen.nbytes == raw.data.nbytes and [h.name for h in seen.headers] == ["w"]
    np.testing.assert_array_equal(store.values(seen), wanted)


def test_one_dimension_has_rows_of_one_element() -> None:
    store = Store()
    bias = store.recipe("b", np.arange(16.0), "f32")
    assert store.values(bias.then(GroupRows(2, 6, 8))).tolist() == [6, 7, 14, 15]


@pytest.mark.parametrize("format", ["f32", "q8_0"])
def test_inverse_arrangements_cancel(format: str) -> None:
    store = Store()
    rows = store.recipe("w", rng.standard_normal((2, 64, 96)), format)
    for interleaved in (False, True):
        held = rows.then(ExpertColumns(interleaved))
        assert held.shape == (2, 96, 64)
        back = held.then(ExpertRows(interleaved))
        assert back == rows and store.read(back).format == format
        # and without the short cut: what the class would see, seen again
        opaque = Recipe("w", held.shape, held.format, (held,))
        np.testing.assert_array_equal(store.values(opaque.then(ExpertRows(interleaved))), store.values(rows))
    apart = rows.then(ExpertColumns()).then(ExpertRows(True))
    assert apart.format == format
    np.testing.assert_array_equal(store.values(apart), expected(DeinterleaveRows(), store.values(rows)))
    bias = store.recipe("b", rng.standard_normal((4, 64)), "f32")
    assert bias.then(Interleave()).then(Deinterleave()) == bias
    np.testing.assert_array_equal(
        store.values(Recipe("b", (4, 64), "f32", (bias.then(Interleave()),)).then(Deinterleave())),
        store.values(bias),
    )


@pytest.mark.parametrize(("one", "two"), [("q8_0", "q4_0"), ("bf16", "bf16"), ("f32", "f16")])
def test_split_latent_weights_stay_as_they_lie(one: str, two: str) -> None:
    store = Store()
    keys = store.recipe("k", rng.standard_normal((H, L, N)), one)
    values = store.recipe("v", rng.standard_normal((H, V, L)), two)
    format = one if one == two else "f32"
    kv_b = Recipe("kv_b", (H * (N + V), L), format, (keys, values), how=MlaHalves(H, N))
    joined = store.values(kv_b).reshape(H, N + V, L)
    np.testing.assert_array_equal(joined[:, :N].swapaxes(1, 2), store.values(keys))
    np.testing.assert_array_equal(joined[:, N:], store.values(values))
    seen = kv_b.then(MlaKeys(H, N)), kv_b.then(MlaValues(H, N))
    assert [(r.format, r.shape, r.parameter) for r in seen] == [
        (one, (H, L, N), "kv_b"),
        (two, (H, V, L), "kv_b"),
    ]
    np.testing.assert_array_equal(store.values(seen[0]), store.values(keys))
    other = kv_b.then(MlaKeys(1, N))  # another split of the same rows does not undo anything
    np.testing.assert_array_equal(store.values(other), expected(MlaKeys(1, N), store.values(kv_b)))


def test_mxfp4_pairs_become_ggml_blocks() -> None:
    codes = rng.integers(0, 16, (2, 4, 2, 32)).astype(np.uint8)
    blocks = codes[..., ::2] | (codes[..., 1::2] << 4)
    scales = rng.integers(110, 130, (2, 4, 2)).astype(np.uint8)
    tensors = [RawTensor("u8", a.shape, a.reshape(-1)) for a in (blocks, scales)]
    found = dequantize(Mxfp4Blocks().apply(tensors), "mxfp4", (2, 4, 64))
    table = np.array([0, 0.5, 1, 1.5, 2, 3, 4, 6, -0.0, -0.5, -1, -1.5, -2, -3, -4, -6])
    wanted = table[codes] * 2.0 ** (scales.astype(int) - 127)[..., None]
    np.testing.assert_array_equal(found, wanted.reshape(2, 4, 64))


@pytest.mark.parametrize(
    ("view", "shape"),
    [
        (MlaKeys(5, N), (H * (N + V), L)),
        (MlaKeys(H, N + V), (H * (N + V), L)),
        (MlaValues(H, 0), (H * (N + V), L)),
        (MlaValues(0, N), (H * (N + V), L)),
        (MlaKeys(H, N), (H, N + V, L)),
        (ExpertRows(True), (2, 4, 5)),
        (ExpertRows(), (4, 5)),
        (ExpertColumns(True), (2, 5, 4)),
        (Deinterleave(), (5,)),
        (DeinterleaveRows(), (2, 5, 4)),
        (GroupRows(2, 4, 9), (16, 4)),
        (GroupRows(3, 0, 1), (16, 4)),
    ],
)
def test_shapes_that_do_not_fit_are_refused_with_the_tensor(view: AnyView, shape: tuple[int, ...]) -> None:
    plain = Store().recipe("w", np.zeros(shape), "f32")
    with pytest.raises(ShapeMismatchError, match="'w'") as caught:
        plain.then(view)
    assert caught.value.tensor == "w" and caught.value.file == Path("m.gguf")


@pytest.mark.parametrize("view", [MlaKeys(3, 4), MlaValues(3, 4), ExpertRows(True), Deinterleave()])
def test_views_survive_json(view: AnyView) -> None:
    assert from_json(json.loads(json.dumps(to_json(view)))) == view


def test_views_come_from_ops() -> None:
    assert is_view("kt.expert_rows") and is_view("deinterleave") and not is_view("kt.linear")
    assert view_from("kt.mla_key_weight", (16, 128)) == MlaKeys(16, 128)
    assert view_from("mla_value_weight", {"nope": 128, "heads": 16}) == MlaValues(16, 128)
    assert view_from("kt.expert_rows") == ExpertRows(False)
    assert view_from("kt.expert_rows", {"interleaved": True}) == ExpertRows(True)


@pytest.mark.parametrize(
    ("op", "args"),
    [
        ("kt.linear", ()),
        ("kt.mla_key_weight", (16,)),
        ("kt.mla_key_weight", (16, 128, 3)),
        ("kt.mla_key_weight", (16, "128")),
        ("kt.expert_rows", (1,)),
        ("kt.deinterleave", {"interleaved": True}),
    ],
)
def test_other_ops_and_arguments_are_refused(op: str, args: object) -> None:
    with pytest.raises(WeightError):
        view_from(op, args)  # type: ignore[arg-type]
    with pytest.raises(WeightError):
        from_json({"view": 3})
