"""How the elements of a key/value cache are held: as floats, or as q8_0 blocks; by which every reader agrees.

q8_0 holds 32 elements as int8 codes with a float16 scale, the largest magnitude / 127, and a cache tensor is
uint8[blocks, heads, block_size, dim / 32 * 34]. Within one block and head lie first the codes of all positions,
[block_size, dim], then their scales, [block_size, dim / 32]: so codes keep the alignment of a cache line.
"""

from __future__ import annotations

import torch

GROUP = 32
"""Elements of a q8_0 cache that share a scale."""
Q8_0 = torch.uint8
"""The dtype of a tensor that is a q8_0 cache; no other cache has it."""
DTYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16, "q8_0": Q8_0}
"""By the names that kernels, plans and artifacts use."""


def name_of(dtype: torch.dtype) -> str:
    """The name of a cache's format by the dtype of its tensor: a key of `DTYPES`, or another dtype's own name."""
    return "q8_0" if dtype is Q8_0 else str(dtype).removeprefix("torch.")


def row_length(dim: int, dtype: torch.dtype) -> int:
    """Last dimension of a cache tensor whose rows hold `dim` elements. Raises ValueError where q8_0 cannot."""
    if dtype is not Q8_0:
        return dim
    if dim % GROUP:
        raise ValueError(f"a q8_0 cache takes rows of a multiple of {GROUP} elements, not {dim}")
    return dim // GROUP * (GROUP + 2)


def row_bytes(dim: int, dtype: torch.dtype) -> int:
    """Bytes that `dim` elements of one head and token take, scales included (of a begun group, all of it)."""
    return -(-dim // GROUP) * (GROUP + 2) if dtype is Q8_0 else dim * dtype.itemsize


def quantize(values: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """float32[..., dim] as codes int8[..., dim] and scales float16[..., dim / 32].

    The scale is rounded before the codes are taken. A group with an infinity or a NaN gets the scale NaN.
    """
    groups = _grouped(values.float())
    largest = groups.abs().amax(-1) / 127
    scales = largest.clamp(max=65504.0).half()
    scales = torch.where(groups.isfinite().all(-1), scales, torch.full_like(scales, float("nan")))
    divisor = scales.float()[..., None]
    codes = torch.where(divisor > 0, groups / divisor, torch.zeros_like(groups))
    return codes.clamp(-127, 127).round().to(torch.int8).flatten(-2), scales


def write(cache: torch.Tensor, blocks: torch.Tensor, offsets: torch.Tensor, values: torch.Tensor) -> None:
    """Writes float values [T, heads, dim] to the places `offsets` [T] of the blocks `blocks` [T]."""
    if cache.dtype is not Q8_0:
        cache[blocks, :, offsets] = values.to(cache.dtype)
        return
    codes, scales = _parts(cache)
    codes[blocks, :, offsets], scales[blocks, :, offsets] = quantize(values)


def gather(cache: torch.Tensor, table: torch.Tensor, length: int) -> torch.Tensor:
    """The first `length` rows of blocks `table` of a cache as float32[heads, length, dim]."""
    if cache.dtype is not Q8_0:
        return cache[table].transpose(0, 1).flatten(1, 2)[:, :length].float()
    codes, scales = (part[table].transpose(0, 1).flatten(1, 2)[:, :length].float() for part in _parts(cache))
    return (_grouped(codes) * scales[..., None]).flatten(-2)


def _grouped(x: torch.Tensor) -> torch.Tensor:
    return x.reshape(*x.shape[:-1], x.shape[-1] // GROUP, GROUP)


def _parts(cache: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Views of a q8_0 cache: codes int8[blocks, heads, block_size, dim], scales float16[..., dim / 32]."""
    blocks, heads, size, length = cache.shape
    dim = length // (GROUP + 2) * GROUP
    slabs = cache.view(blocks, heads, size * length)
    codes, scales = slabs[..., : size * dim].view(torch.int8), slabs[..., size * dim :].view(torch.float16)
    strides = (heads * size * length, size * length)
    return (
        codes.as_strided((blocks, heads, size, dim), (*strides, dim, 1)),
        scales.as_strided((blocks, heads, size, dim // GROUP), (*(s // 2 for s in strides), dim // GROUP, 1)),
    )
