"""Joins: tensors of a source that together are one weight, and the bytes of a view.

fp8     codes float8_e4m3fn [N, K] and scales float32 [⌈N/128⌉, ⌈K/128⌉], as DeepSeek-V3 is published
mxfp4   blocks uint8 [E, R, K/32, 16] and scales uint8 [E, R, K/32], as GPT-OSS is published
latent  keys [H, L, N] and values [H, V, L] of DeepSeek's kv_b, as llama.cpp splits it
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from ktc.weights import formats
from ktc.weights.convert import dequantize
from ktc.weights.tensor import RawTensor
from ktc.weights.views import AnyView

Bytes = npt.NDArray[np.uint8]
FP8_BLOCK = 128
"""Rows and columns that share one scale of a block-scaled FP8 weight."""


@dataclass(frozen=True, slots=True)
class Fp8Blocks:
    """Codes and square blocks' scales to format fp8: [N, K] in blocks of a float32 scale and 128 codes of a row."""

    def apply(self, pieces: Sequence[RawTensor]) -> Bytes:
        """From [codes, scales] to uint8[nbytes]."""
        codes, scales = pieces
        rows, columns = codes.shape
        out = np.empty((rows, columns // FP8_BLOCK, 4 + FP8_BLOCK), np.uint8)
        by_block = scales.data.reshape(*scales.shape, 4)
        out[:, :, :4] = np.repeat(by_block, FP8_BLOCK, axis=0)[:rows]
        out[:, :, 4:] = codes.data.reshape(rows, -1, FP8_BLOCK)
        return out.reshape(-1)


@dataclass(frozen=True, slots=True)
class Mxfp4Blocks:
    """Blocks and scales to ggml's mxfp4: the scale first, then 16 bytes that hold elements i and i + 16.

    The file's bytes hold elements 2 i and 2 i + 1, the even one in the lower half. Codes and scales are the same in
    both (OCP Microscaling Formats 1.0), so nothing is lost.
    """

    def apply(self, pieces: Sequence[RawTensor]) -> Bytes:
        """From [blocks, scales] to uint8[nbytes]."""
        pairs = pieces[0].data.reshape(-1, 16)
        codes = np.stack([pairs & 0x0F, pairs >> 4], axis=-1).reshape(-1, 32)
        out = np.empty((len(pairs), 17), np.uint8)
        out[:, 0] = pieces[1].data.reshape(-1)
        out[:, 1:] = codes[:, :16] | (codes[:, 16:] << 4)
        return out.reshape(-1)


@dataclass(frozen=True, slots=True)
class MlaHalves:
    """Keys [H, L, N] and values [H, V, L] to kv_b [H * (N + V), L].

    Attributes:
        heads: H. nope: N.
    """

    heads: int
    nope: int

    def apply(self, pieces: Sequence[RawTensor]) -> Bytes:
        """From [keys, values] to uint8[nbytes]; float32 unless both are of one float format."""
        keys, values = pieces
        plain = keys.format == values.format and formats.find(keys.format).block_elements == 1
        if plain:
            size = formats.find(keys.format).block_bytes
            halves = [piece.data.view(f"u{size}").reshape(piece.shape) for piece in pieces]
        else:
            halves = [dequantize(piece.data, piece.format, piece.shape) for piece in pieces]
        joined = np.concatenate([halves[0].swapaxes(1, 2), halves[1]], axis=1)
        return np.ascontiguousarray(joined).reshape(-1).view(np.uint8)


Join = Fp8Blocks | Mxfp4Blocks | MlaHalves


def viewed(view: AnyView, tensor: RawTensor) -> Bytes:
    """uint8[nbytes]: a tensor's bytes seen through a view; float32 when elements of a quantised one are needed."""
    number_format = formats.find(tensor.format)
    if view.packed:
        found = view.apply(tensor.data, tensor.shape)
    elif number_format.block_elements == 1:
        found = view.apply(tensor.data.view(f"u{number_format.block_bytes}"), tensor.shape)
    else:
        found = view.apply(dequantize(tensor.data, tensor.format, tensor.shape), tensor.shape)
    return np.ascontiguousarray(found).reshape(-1).view(np.uint8)
