"""Packing: writes the weights of a placement to the files of an artifact, in the layouts that kernels read.

One weight is in memory at a time, whatever the size of the model. See `ktc.runtime.packed` for the files.
"""

from __future__ import annotations

import json
import os
import shutil
import zlib
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import asdict
from io import FileIO
from pathlib import Path

import torch

from ktc.errors import ArtifactError
from ktc.runtime.graph_engine import stored_weights
from ktc.runtime.load import StoredWeight, read_weight
from ktc.runtime.packed import TABLE, VERSION, PackedEntry, aligned, ends_crc32, file_name, layout_of
from ktc.runtime.placement import Placement
from ktc.weights.source import WeightSource


def pack_weights(
    source: WeightSource,
    placement: Placement,
    folder: Path,
    progress: Callable[[int, int], None] | None = None,
) -> None:
    """Writes `weights-DEVICE.bin` for every device that has weights, and `weights.json`, to a folder without them.

    `progress` is called with (bytes written, bytes in all).

    Raises:
        WeightError: a weight cannot be read, converted or packed (names it).
        ArtifactError: the disk has no room for them, or cannot be written.
    """
    total = sum(aligned(weight.nbytes) for weight in placement.weights)
    free = shutil.disk_usage(folder).free
    if total > free:
        text = f"the packed weights take {total} bytes, and the disk of {folder.parent} has {free} left"
        raise ArtifactError(text, hint="choose another folder with -o")
    entries = []
    done = 0
    try:
        with ExitStack() as stack:
            files = {
                device: stack.enter_context((folder / file_name(device)).open("xb", buffering=0))
                for device in dict.fromkeys(weight.device for weight in placement.weights)
            }
            stored = stored_weights(placement, source)
            for weight, item in zip(placement.weights, stored, strict=True):
                layout, version, nbytes = layout_of(weight)
                data = _bytes(source, item, nbytes)
                file = files[weight.device]
                offset = file.tell()
                crc32 = _write(file, data)
                entries.append(
                    PackedEntry(
                        weight.name, weight.device, offset, nbytes, layout, version, crc32, ends_crc32(data)
                    )
                )
                del data  # before the next one is made
                done += aligned(nbytes)
                if progress is not None:
                    progress(done, total)
            for file in files.values():
                os.fsync(file.fileno())
        rows = ",\n".join(json.dumps(asdict(entry)) for entry in entries)
        (folder / TABLE).write_text(f'{{"version": {VERSION}, "weights": [\n{rows}\n]}}\n', encoding="utf-8")
    except OSError as error:
        raise ArtifactError(f"the packed weights cannot be written: {error}") from error


def _bytes(source: WeightSource, item: StoredWeight, nbytes: int) -> memoryview:
    tensor = read_weight(source, item).reshape(-1).view(torch.uint8)
    if tensor.nbytes != nbytes or item.nbytes != nbytes:
        raise ArtifactError(
            f"weight {item.name!r} takes {tensor.nbytes} bytes, {item.nbytes} in the plan and {nbytes} by its kernel"
        )
    return tensor.numpy().data


def _write(file: FileIO, data: memoryview) -> int:
    """Writes a weight and zeros up to the next multiple of 4096; returns its checksum."""
    crc32 = 0
    for part in (data, memoryview(bytes(aligned(len(data)) - len(data)))):
        written = 0
        while written < len(part):
            piece = part[written : written + (8 << 20)]
            piece = piece[: file.write(piece)]
            if part is data:
                crc32 = zlib.crc32(piece, crc32)
            written += len(piece)
    return crc32
