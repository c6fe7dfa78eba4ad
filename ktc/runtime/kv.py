"""The KV pool: the cache tensors of every layer, on the devices where the layers run, in blocks."""

from __future__ import annotations

import math
from collections.abc import Mapping
from collections.abc import Sequence as Items
from typing import Protocol

import torch

from ktc.dialect.cache_formats import DTYPES, row_bytes, row_length
from ktc.runtime.arena import TensorArena
from ktc.runtime.blocks import BlockAllocator, BlockCopy
from ktc.runtime.errors import UnsupportedCallError

_ALIGNMENT = 4096
"""Of every tensor on the CPU, so that no page holds two of them."""


class CacheLayout(Protocol):
    """What the pool reads of a `CacheSpec` of capture: names and shape of one layer's cache."""

    @property
    def layer(self) -> int: ...
    @property
    def key(self) -> str: ...
    @property
    def value(self) -> str: ...
    @property
    def heads(self) -> int: ...
    @property
    def key_dim(self) -> int: ...
    @property
    def value_dim(self) -> int: ...


def block_bytes(cache: CacheLayout, block_size: int, dtype: torch.dtype) -> int:
    """Bytes of one block of one layer, keys and values."""
    return cache.heads * block_size * (row_bytes(cache.key_dim, dtype) + row_bytes(cache.value_dim, dtype))


def blocks_for(tokens: int, block_size: int) -> int:
    """Blocks that hold `tokens` tokens of one sequence."""
    return -(-tokens // block_size)


def _zeros(
    wanted: Mapping[str, tuple[tuple[int, ...], torch.dtype, torch.device]],
) -> dict[str, torch.Tensor]:
    """Zeroed tensors by name; those on the CPU in one arena on large pages, which take memory when they are written."""
    sizes = {
        name: math.prod(shape) * kind.itemsize for name, (shape, kind, device) in wanted.items()
        if device.type == "cpu"
    }  # fmt: skip
    arena = TensorArena(sum(-(-size // _ALIGNMENT) * _ALIGNMENT for size in sizes.values()))
    return {
        name: arena.tensor(sizes[name], _ALIGNMENT).view(kind).view(shape)
        if name in sizes
        else torch.zeros(shape, dtype=kind, device=device)
        for name, (shape, kind, device) in wanted.items()
    }


class KvPool:
    """Cache tensors of a model and the allocator of their blocks.

    A layer has `key` [num_blocks, heads, block_size, key_dim] and `value` [num_blocks, heads, block_size,
    value_dim]; rows of q8_0 are longer, see `ktc.dialect.cache_formats`. They start as zeros (never
    uninitialised memory: attention masks scores, and 0 · NaN is NaN).

    Args:
        caches: one layout a layer, as capture gives them.
        num_blocks: blocks of the pool, the same in every layer.
        block_size: tokens a block.
        dtype: float32, float16, bfloat16, or uint8 for q8_0; or a mapping from the name of a cache tensor.
        devices: a device for all layers, or a mapping from the name of a cache tensor to its device.
    """

    def __init__(
        self,
        caches: Items[CacheLayout],
        *,
        num_blocks: int,
        block_size: int,
        dtype: torch.dtype | Mapping[str, torch.dtype] = torch.float32,
        devices: torch.device | str | Mapping[str, torch.device | str] = "cpu",
    ) -> None:
        self.caches = tuple(caches)
        self.block_size = block_size
        self.allocator = BlockAllocator(num_blocks, block_size)
        wanted: dict[str, tuple[tuple[int, ...], torch.dtype, torch.device]] = {}
        for cache in self.caches:
            for name, dim in ((cache.key, cache.key_dim), (cache.value, cache.value_dim)):
                kind = dtype[name] if isinstance(dtype, Mapping) else dtype
                if kind not in DTYPES.values():
                    raise UnsupportedCallError(
                        f"KV cache {name!r} cannot be {kind}; `cache paged(dtype = …)` takes f32, f16, bf16, q8_0"
                    )
                try:
                    length = row_length(dim, kind)
                except ValueError as error:
                    raise UnsupportedCallError(f"KV cache {name!r}: {error}") from error
                device = torch.device(devices[name] if isinstance(devices, Mapping) else devices)
                wanted[name] = (num_blocks, cache.heads, block_size, length), kind, device
        self.tensors = _zeros(wanted)

    def __repr__(self) -> str:
        return f"KvPool({len(self.caches)} layers, {self.capacity} tokens, {self.nbytes / 2**20:.1f} MiB)"

    @property
    def capacity(self) -> int:
        """Tokens the pool holds, over all sequences."""
        return self.allocator.capacity

    @property
    def nbytes(self) -> int:
        """Bytes of all cache tensors."""
        return sum(t.nbytes for t in self.tensors.values())

    @property
    def used_bytes(self) -> int:
        """Bytes of the blocks that some sequence holds."""
        blocks = self.allocator.num_blocks
        return self.nbytes // blocks * (blocks - self.allocator.free_blocks)

    def nbytes_by_device(self) -> dict[str, int]:
        """Bytes of the cache tensors on each device."""
        total: dict[str, int] = {}
        for tensor in self.tensors.values():
            total[str(tensor.device)] = total.get(str(tensor.device), 0) + tensor.nbytes
        return total

    def copy_block(self, source: int, destination: int) -> None:
        """Copies one block of every layer."""
        for tensor in self.tensors.values():
            tensor[destination].copy_(tensor[source])

    def copy_blocks(self, copies: Items[BlockCopy]) -> None:
        """Makes the copies that one `extend` asked for, in every layer, before the step writes."""
        if len(copies) == 1:
            self.copy_block(*copies[0])
            return
        # Gather all sources before writing: a block freed by one copy may be the target of the next.
        sources = torch.tensor([source for source, _ in copies])
        destinations = torch.tensor([destination for _, destination in copies])
        for tensor in self.tensors.values():
            gathered = tensor.index_select(0, sources.to(tensor.device))
            tensor.index_copy_(0, destinations.to(tensor.device), gathered)
