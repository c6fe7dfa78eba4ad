"""Loading: the bytes of every weight from its source into the layout that its kernel reads, on its device."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable
from dataclasses import dataclass

import numpy as np
import torch

from ktc.backends.registry import Kernel, Weight
from ktc.errors import KtcError, WeightError
from ktc.runtime.arena import TensorArena
from ktc.weights.convert import convert, dequantize
from ktc.weights.source import RawTensor, Recipe, WeightSource

_FLOATS = {"f32": torch.float32, "f16": torch.float16, "bf16": torch.bfloat16}
ALIGNMENT = 64


@dataclass(frozen=True)
class StoredWeight:
    """One tensor to load.

    Attributes:
        name: its name in the graph.
        weight: logical name, run-time format and shape.
        recipe: where its bytes come from.
        device: torch device it lives on.
        kernel: whose layout it takes; None for an ordinary tensor ("dense").
        nbytes: bytes in that layout.
    """

    name: str
    weight: Weight
    recipe: Recipe
    device: torch.device
    kernel: Kernel | None
    nbytes: int


def load_weights(
    source: WeightSource, stored: Iterable[StoredWeight], progress: Callable[[int, int], None] | None = None
) -> dict[str, torch.Tensor]:
    """Reads, converts and packs every weight; the file's bytes are mapped, never held beside the packed ones.

    Weights on the CPU lie in one arena of large pages. `progress` is called with (bytes done, bytes in all).

    Returns: tensors by name; packed weights are uint8[nbytes].

    Raises:
        WeightError: a tensor cannot be read or converted (names it), or memory does not suffice.
    """
    items = list(stored)
    total = sum(item.nbytes for item in items)
    host = [item for item in items if item.device.type == "cpu"]
    capacity = sum(-(-item.nbytes // ALIGNMENT) * ALIGNMENT for item in host)
    try:
        arena = TensorArena(capacity) if capacity else None
    except MemoryError as error:
        hint = "place less on the CPU, or free memory"
        raise WeightError(f"no memory for the weights: {error}", file=source.path, hint=hint) from error
    tensors: dict[str, torch.Tensor] = {}
    done = 0
    for item in items:
        try:
            tensors[item.name] = _load(source, item, arena)
        except KtcError:
            raise
        except (ValueError, RuntimeError, OSError, MemoryError) as error:
            raise WeightError(
                f"cannot load: {error}", file=source.path, tensor=item.weight.parameter
            ) from error
        done += item.nbytes
        if progress is not None:
            progress(done, total)
    if arena is not None:
        arena.seal()
    return tensors


def _load(source: WeightSource, item: StoredWeight, arena: TensorArena | None) -> torch.Tensor:
    raw = source.read(item.recipe)
    if item.kernel is None:
        return _dense(raw, item, arena)
    blocks = _blocks(raw, item.weight.format)
    out = arena.tensor(item.nbytes) if arena is not None and item.device.type == "cpu" else None
    target = out if out is not None else torch.empty(item.nbytes, dtype=torch.uint8)
    pack = item.kernel.pack
    if pack is None:
        raise WeightError("its kernel has a layout of its own but cannot pack", tensor=item.weight.parameter)
    with warnings.catch_warnings():
        # The file is mapped read-only, and pack only reads; torch has no read-only tensors and warns of any.
        warnings.filterwarnings("ignore", message="The given NumPy array is not writable")
        view = torch.from_numpy(blocks)
    pack(view, item.weight, target)
    return target if out is not None else target.to(item.device)


def _blocks(raw: RawTensor, target: str) -> np.ndarray[tuple[int, ...], np.dtype[np.uint8]]:
    if raw.format == target:
        return np.ascontiguousarray(raw.data).reshape(-1)
    return convert(raw.data, raw.format, raw.shape, target).reshape(-1)


def _dense(raw: RawTensor, item: StoredWeight, arena: TensorArena | None) -> torch.Tensor:
    """An ordinary tensor: of the weight's float format, or float32 when its numbers are quantised ones."""
    target = item.weight.format if item.weight.format in _FLOATS else "f32"
    if item.weight.format in _FLOATS or raw.format == item.weight.format:
        values = raw
    else:  # asked to be quantised for a kernel that reads dense tensors: the rounding must still happen
        values = RawTensor(item.weight.format, raw.shape, _blocks(raw, item.weight.format))
    dtype = _FLOATS[target]
    if values.format == target:
        flat = torch.from_numpy(np.array(values.data, copy=True).reshape(-1)).view(dtype)
    else:
        flat = torch.from_numpy(dequantize(values.data, values.format, values.shape).reshape(-1)).to(dtype)
    if arena is not None and item.device.type == "cpu":
        place = arena.tensor(flat.nbytes).view(dtype)
        place.copy_(flat)
        flat = place
    return flat.reshape(item.weight.shape).to(item.device)
