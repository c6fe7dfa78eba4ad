"""The KV pool: shapes, bytes, and block copies over every layer."""

from __future__ import annotations

import pytest
import torch

from ktc.capture import CacheSpec
from ktc.runtime.errors import UnsupportedCallError
from ktc.runtime.kv import KvPool, block_bytes, blocks_for

LAYERS = [
    CacheSpec(0, "kv.0.key", "kv.0.value", heads=2, key_dim=8, value_dim=4, window=0, products=1),
    CacheSpec(1, "kv.1.key", "kv.1.value", heads=1, key_dim=8, value_dim=8, window=0, products=1),
]


def test_shapes_bytes_and_devices() -> None:
    pool = KvPool(
        LAYERS,
        num_blocks=5,
        block_size=4,
        dtype=torch.float16,
        devices={"kv.0.key": "cpu", "kv.0.value": "cpu", "kv.1.key": "meta", "kv.1.value": "meta"},
    )
    assert pool.tensors["kv.0.key"].shape == (5, 2, 4, 8)
    assert pool.tensors["kv.0.value"].shape == (5, 2, 4, 4)
    assert pool.capacity == 20
    assert pool.nbytes_by_device() == {"cpu": 5 * 2 * 4 * 12 * 2, "meta": 5 * 4 * 16 * 2}
    assert pool.nbytes == sum(pool.nbytes_by_device().values())
    assert pool.nbytes == 5 * sum(block_bytes(layer, 4, torch.float16) for layer in LAYERS)
    assert pool.used_bytes == 0
    sequence = pool.allocator.sequence()
    sequence.append(5)
    assert pool.used_bytes == pool.nbytes // 5 * 2
    assert repr(pool) == "KvPool(2 layers, 20 tokens, 0.0 MiB)"


def test_quantised_rows_have_their_scales_behind_them() -> None:
    layer = CacheSpec(0, "kv.0.key", "kv.0.value", heads=2, key_dim=64, value_dim=32, window=0, products=1)
    pool = KvPool([layer], num_blocks=3, block_size=4, dtype=torch.uint8)
    assert pool.tensors["kv.0.key"].shape == (3, 2, 4, 68)
    assert pool.nbytes == 3 * block_bytes(layer, 4, torch.uint8) == 3 * 4 * 2 * (64 + 4 + 32 + 2)


def test_other_dtypes_are_refused() -> None:
    with pytest.raises(UnsupportedCallError, match=r"kv\.0\.key.*multiple of 32 elements, not 8"):
        KvPool(LAYERS, num_blocks=1, block_size=4, dtype=torch.uint8)
    with pytest.raises(UnsupportedCallError, match=r"kv\.0\.key.*f32, f16, bf16"):
        KvPool(LAYERS, num_blocks=1, block_size=4, dtype=torch.int8)


def test_copies_read_before_they_write() -> None:
    pool = KvPool(LAYERS, num_blocks=6, block_size=4)
    for index, tensor in enumerate(pool.tensors.values()):
        tensor.copy_(torch.arange(6.0).view(6, 1, 1, 1).expand_as(tensor) + 10 * index)
    pool.copy_blocks([(0, 3), (0, 4), (5, 0)])  # block 0 was freed by the second copy and taken by the third
    pool.copy_block(2, 1)
    for index, tensor in enumerate(pool.tensors.values()):
        assert (tensor[:, 0, 0, 0] - 10 * index).tolist() == [5, 2, 2, 0, 0, 5]


@pytest.mark.parametrize(("tokens", "blocks"), [(0, 0), (1, 1), (32, 1), (33, 2)])
def test_blocks_for(tokens: int, blocks: int) -> None:
    assert blocks_for(tokens, 32) == blocks
