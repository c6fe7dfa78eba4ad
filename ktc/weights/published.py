"""Weights that a checkpoint keeps in several tensors: codes with their scales, as published.

    fp8     X float8_e4m3fn [N, K] + X_scale_inv float32 [⌈N/128⌉, ⌈K/128⌉]      (DeepSeek-V3 and R1)
    mxfp4   X_blocks uint8 [E, R, K/32, 16] + X_scales uint8 [E, R, K/32]        (GPT-OSS)

Each becomes one weight of format fp8 or mxfp4 under the name X, without loss.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from ktc.errors import MissingTensorError, ShapeMismatchError, UnsupportedFormatError, WeightError
from ktc.weights.joins import FP8_BLOCK, Fp8Blocks, Mxfp4Blocks
from ktc.weights.recipe import Part, Recipe
from ktc.weights.tensor import TensorHeader

_SCALE = "_scale_inv"
_BLOCKS, _SCALES = "_blocks", "_scales"
_MXFP4_BYTES = 16


@dataclass(frozen=True)
class Joined:
    """What was found.

    Attributes:
        weights: by the name X. broken: why X cannot be made, for tensors that are there but do not fit.
    """

    weights: Mapping[str, Recipe]
    broken: Mapping[str, WeightError]


def joined_weights(headers: Mapping[str, TensorHeader]) -> Joined:
    """Finds codes with their scales among the tensors of a checkpoint; reads headers only."""
    weights: dict[str, Recipe] = {}
    broken: dict[str, WeightError] = {}
    for name, header in headers.items():
        fp8 = header.format == "f8_e4m3"
        if not fp8 and not (name.endswith(_BLOCKS) and header.format == "u8"):
            continue
        own = name if fp8 else name.removesuffix(_BLOCKS)
        try:
            weights[own] = (_fp8 if fp8 else _mxfp4)(own, header, headers)
        except WeightError as problem:
            broken[own] = problem
    return Joined(weights, broken)


def _fp8(name: str, codes: TensorHeader, headers: Mapping[str, TensorHeader]) -> Recipe:
    scales = headers.get(name + _SCALE)
    if scales is None:
        raise MissingTensorError(
            f"tensor {name!r} is {codes.format} without scales",
            file=codes.file,
            tensor=name,
            hint=f"FP8 weights need {name + _SCALE!r}, a scale for each block of {FP8_BLOCK} by {FP8_BLOCK}",
        )
    if scales.format != "f32":
        raise UnsupportedFormatError(
            f"tensor {scales.name!r} is {scales.format}; scales of FP8 blocks are f32",
            file=scales.file,
            tensor=scales.name,
        )
    if len(codes.shape) != 2 or codes.shape[1] % FP8_BLOCK:
        raise ShapeMismatchError(
            f"tensor {name!r} has shape {list(codes.shape)}; format fp8 takes matrices with rows of a multiple of "
            f"{FP8_BLOCK}",
            file=codes.file,
            tensor=name,
        )
    wanted = tuple(-(-size // FP8_BLOCK) for size in codes.shape)
    _check_scales(scales, wanted, codes)
    return Recipe(name, codes.shape, "fp8", (Part(codes), Part(scales)), how=Fp8Blocks())


def _mxfp4(name: str, blocks: TensorHeader, headers: Mapping[str, TensorHeader]) -> Recipe:
    scales = headers.get(name + _SCALES)
    if scales is None:
        raise MissingTensorError(
            f"tensor {blocks.name!r} has no scales",
            file=blocks.file,
            tensor=blocks.name,
            hint=f"MXFP4 weights need {name + _SCALES!r}, an exponent for each block of 32",
        )
    if scales.format != "u8":
        raise UnsupportedFormatError(
            f"tensor {scales.name!r} is {scales.format}; exponents of MXFP4 blocks are u8",
            file=scales.file,
            tensor=scales.name,
        )
    if len(blocks.shape) < 3 or blocks.shape[-1] != _MXFP4_BYTES:
        raise ShapeMismatchError(
            f"tensor {blocks.name!r} has shape {list(blocks.shape)}; MXFP4 is [..., rows, blocks, {_MXFP4_BYTES}]",
            file=blocks.file,
            tensor=blocks.name,
        )
    _check_scales(scales, blocks.shape[:-1], blocks)
    shape = (*blocks.shape[:-2], blocks.shape[-2] * 2 * _MXFP4_BYTES)
    return Recipe(name, shape, "mxfp4", (Part(blocks), Part(scales)), how=Mxfp4Blocks())


def _check_scales(scales: TensorHeader, wanted: tuple[int, ...], codes: TensorHeader) -> None:
    if scales.shape != wanted:
        raise ShapeMismatchError(
            f"tensor {scales.name!r} has shape {list(scales.shape)}; {codes.name!r} {list(codes.shape)} needs "
            f"{list(wanted)}",
            file=scales.file,
            tensor=scales.name,
        )
