"""Loading: the bytes of every weight from its source into the layout that its kernel reads, on its device."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable
from dataclasses import dataclass

import numpy as np
import torch

from ktc.backends.registry import Kernel, Layout, Weight
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
    source: WeightSource,
    stored: Iterable[StoredWeight],
    progress: Callable[[int, int], None] | None = None,
    threads: int | None = None,
) -> dict[str, torch.Tensor]:
    """Reads, converts and packs every weight; the file's bytes are mapped, never held beside the packed ones.

    Weights on the CPU lie in one arena of large pages, on the NUMA nodes of the threads that will read them (at most
    `threads`). `progress` is called with (bytes done, bytes in all).

    Returns: tensors by name; packed weights are uint8[nbytes].

    Raises:
        WeightError: a tensor cannot be read or converted (names it), or memory does not suffice.
    """
    items = list(stored)
    total = sum(item.nbytes for item in items)
    host = [item for item in items if item.device.type == "cpu"]
    capacity = sum(-(-item.nbytes // ALIGNMENT) * ALIGNMENT for item in host)
    try:
        arena = TensorArena(capacity, threads or 0) if capacity else None
    except MemoryError as error:
        hint = "place less on the CPU, or free memory"
        raise WeightError(f"no memory for the weights: {error}", file=source.path, hint=hint) from error
    tensors: dict[str, torch.Tensor] = {}
    done = 0
    for item in items:
        on_host = item.device.type == "cpu"
        tensor = read_weight(source, item, arena if on_host else None)
        try:
            tensors[item.name] = tensor.to(item.device)
        except RuntimeError as error:
            raise WeightError(
                f"cannot move to {item.device}: {error}", file=source.path, tensor=item.weight.parameter
            ) from error
        done += item.nbytes
        if progress is not None:
            progress(done, total)
    if arena is not None:
        arena.seal()
    return tensors


def read_weight(source: WeightSource, item: StoredWeight, arena: TensorArena | None = None) -> torch.Tensor:
    """One weight in its layout in host memory, in `arena` or, without one, in memory of its own.

    Raises:
        WeightError: it cannot be read or converted (names it), or memory does not suffice.
    """
    try:
        raw, layout = source.read(item.recipe), item.kernel.layout if item.kernel else None
        return _dense(raw, item, arena) if layout is None else _packed(raw, item, layout, arena)
    except KtcError:
        raise
    except (ValueError, RuntimeError, OSError, MemoryError) as error:
        raise WeightError(f"cannot load: {error}", file=source.path, tensor=item.weight.parameter) from error


def dense_dtype(format: str) -> torch.dtype:
    """The dtype of an ordinary tensor for a run-time format: of its floats, or float32 for quantised numbers."""
    return _FLOATS.get(format, torch.float32)


def _packed(raw: RawTensor, item: StoredWeight, layout: Layout, arena: TensorArena | None) -> torch.Tensor:
    blocks = _blocks(raw, item.weight.format)
    if arena is None:
        out = torch.empty(item.nbytes, dtype=torch.uint8)
    else:
        out = arena.tensor(item.nbytes)
        arena.place(out, layout.matrices(item.weight))
    with warnings.catch_warnings():
        # The file is mapped read-only, and pack only reads; torch has no read-only tensors and warns of any.
        warnings.filterwarnings("ignore", message="The given NumPy array is not writable")
        view = torch.from_numpy(blocks)
    layout.pack(view, item.weight, out)
    return out


def _blocks(raw: RawTensor, target: str) -> np.ndarray[tuple[int, ...], np.dtype[np.uint8]]:
    if raw.format == target:
        return np.ascontiguousarray(raw.data).reshape(-1)
    return convert(raw.data, raw.format, raw.shape, target).reshape(-1)


def _dense(raw: RawTensor, item: StoredWeight, arena: TensorArena | None) -> torch.Tensor:
    """An ordinary tensor: of the weight's float format, or float32 when its numbers are quantised ones."""
    dtype = dense_dtype(item.weight.format)
    if item.weight.format in _FLOATS or raw.format == item.weight.format:
        values = raw
    else:  # asked to be quantised for a kernel that reads dense tensors: the rounding must still happen
        values = RawTensor(item.weight.format, raw.shape, _blocks(raw, item.weight.format))
    if _FLOATS.get(values.format) is dtype:
        flat = torch.from_numpy(np.array(values.data, copy=True).reshape(-1)).view(dtype)
    else:
        flat = torch.from_numpy(dequantize(values.data, values.format, values.shape).reshape(-1)).to(dtype)
    if arena is not None:
        place = arena.tensor(flat.nbytes).view(dtype)
        place.copy_(flat)
        flat = place
    return flat.reshape(item.weight.shape)
