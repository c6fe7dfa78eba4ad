"""Loading: bytes of a source as dense tensors, converted, merged, and packed; errors that name the tensor."""

from __future__ import annotations

import ktc.backends.cpu  # noqa: F401  registers the kernels
import pytest
import torch
from ktc.backends.cpu import packed
from ktc.backends.registry import Weight, kernels

from ktc.errors import WeightError
from ktc.runtime.load import StoredWeight, load_weights
from ktc.weights.convert import dequantize, quantize
from ktc.weights.source import Recipe
from ktc.weights.state_dict import StateDictSource

CPU = torch.device("cpu")


@pytest.fixture
def source() -> StateDictSource:
    """Two matrices and a vector."""
    generator = torch.Generator().manual_seed(0)
    state = {
        "a.weight": torch.randn(48, 64, generator=generator),
        "b.weight": torch.randn(16, 64, generator=generator),
        "norm.weight": torch.randn(64, generator=generator),
    }
    return StateDictSource(state)


def recipe(source: StateDictSource, name: str) -> Recipe:
    shapes = {header.name: header.shape for header in source.headers().values()}
    return source.bind(shapes, None).recipes[name]


def stored(source: StateDictSource, name: str, format: str, kernel: str | None = None) -> StoredWeight:
    found = recipe(source, name)
    weight = Weight(name, format, tuple(found.shape))
    chosen = kernels()[kernel] if kernel else None
    size = chosen.layout.packed_bytes(weight) if chosen and chosen.layout else 0
    return StoredWeight(name, weight, found, CPU, chosen, size or torch.Size(found.shape).numel() * 4)


def state(source: StateDictSource, name: str) -> torch.Tensor:
    raw = source.read(recipe(source, name))
    return torch.from_numpy(dequantize(raw.data, raw.format, raw.shape)).reshape(tuple(raw.shape))


def test_dense_weights_are_the_values_in_the_wanted_dtype(source: StateDictSource) -> None:
    items = [stored(source, "norm.weight", "f32"), stored(source, "a.weight", "bf16")]
    tensors = load_weights(source, items)
    assert torch.equal(tensors["norm.weight"], state(source, "norm.weight"))
    assert tensors["a.weight"].dtype == torch.bfloat16
    assert torch.equal(tensors["a.weight"], state(source, "a.weight").bfloat16())


def test_a_quantised_weight_for_a_dense_kernel_is_rounded_all_the_same(source: StateDictSource) -> None:
    tensors = load_weights(source, [stored(source, "a.weight", "q8_0")])
    values = state(source, "a.weight").numpy()
    rounded = dequantize(quantize(values, "q8_0").reshape(-1), "q8_0", values.shape)
    assert torch.equal(tensors["a.weight"], torch.from_numpy(rounded).reshape(48, 64))
    assert not torch.equal(tensors["a.weight"], state(source, "a.weight"))


def test_packed_weights_mean_what_the_file_held(source: StateDictSource) -> None:
    item = stored(source, "a.weight", "f32", "cpu.linear")
    tensor = load_weights(source, [item])["a.weight"]
    assert tensor.dtype == torch.uint8 and tensor.numel() == item.nbytes and tensor.data_ptr() % 64 == 0
    assert torch.equal(packed.unpack(tensor, item.weight), state(source, "a.weight"))


def test_a_merge_reads_the_rows_of_its_parts_in_order(source: StateDictSource) -> None:
    parts = [recipe(source, "a.weight"), recipe(source, "b.weight")]
    weight = Weight("ab.weight", "f32", (64, 64))
    item = StoredWeight("ab.weight", weight, Recipe.concat(parts, "ab.weight"), CPU, None, 64 * 64 * 4)
    both = torch.cat([state(source, "a.weight"), state(source, "b.weight")])
    assert torch.equal(load_weights(source, [item])["ab.weight"], both)


def test_progress_ends_at_the_total(source: StateDictSource) -> None:
    items = [stored(source, "a.weight", "f32"), stored(source, "b.weight", "f32")]
    seen: list[tuple[int, int]] = []
    load_weights(source, items, lambda done, total: seen.append((done, total)))
    total = sum(item.nbytes for item in items)
    assert [done for done, _ in seen] == sorted(done for done, _ in seen)
    assert seen[-1] == (total, total)


def test_errors_name_the_tensor(source: StateDictSource, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(recipe: Recipe) -> None:
        raise OSError("the disk is gone")

    monkeypatch.setattr(source, "read", broken)
    with pytest.raises(WeightError, match="the disk is gone") as caught:
        load_weights(source, [stored_like(source)])
    assert caught.value.tensor == "a.weight"


def stored_like(source: StateDictSource) -> StoredWeight:
    return StoredWeight(
        "a.weight", Weight("a.weight", "f32", (48, 64)), recipe(source, "a.weight"), CPU, None, 12288
    )


def test_missing_memory_is_typed(source: StateDictSource, monkeypatch) -> None:
    item = stored(source, "a.weight", "f32", "cpu.linear")

    def full(capacity: int, threads: int) -> None:
        raise MemoryError(f"{capacity} bytes")

    monkeypatch.setattr("ktc.runtime.load.TensorArena", full)
    with pytest.raises(WeightError, match="no memory for the weights"):
        load_weights(source, [item])
