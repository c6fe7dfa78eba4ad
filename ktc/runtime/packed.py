"""Packed weights: the files of an artifact that hold every weight in the layout its kernel reads, and loading them.

`weights-DEVICE.bin` has the weights of one declared device one behind the other in the order of the plan, each at
the next multiple of 4096 bytes, the file's end included. `weights.json` is the table: for each weight its place, the
version of its layout and two checksums. Loading reads the files as they are into the memory that kernels read.

Everything is checked before the first byte is read: the table against the plan and the kernels of this version, the
files' sizes against the table. The first and last 4096 bytes of every weight are compared with their checksum when it
is loaded, which finds files of another artifact and unfinished copies; the checksum of the whole, which costs more
than reading, on request (`PackedWeights.verify`).
"""

from __future__ import annotations

import json
import math
import os
import re
import stat
import zlib
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch

from ktc.backends.registry import Weight, kernels
from ktc.errors import ArtifactError, KtcError
from ktc.machine import available_memory
from ktc.runtime.arena import TensorArena
from ktc.runtime.load import dense_dtype
from ktc.runtime.placement import Placement, WeightEntry
from ktc.runtime.reading import read_pieces

Progress = Callable[[int, int], None]

VERSION = 1
ALIGNMENT = 4096
TABLE = "weights.json"
AGAIN = "pack again: `ktc compile FILE -o DIR --pack`"


@dataclass(frozen=True)
class PackedEntry:
    """One weight in a file.

    Attributes:
        name, device: as in the plan.
        offset: its first byte in the device's file, a multiple of 4096.
        nbytes: its bytes.
        layout, layout_version: see `ktc.backends.registry.Layout`; "dense" for an ordinary tensor.
        crc32: of all its bytes.
        ends_crc32: of the first and the last 4096 of them, one after the other.
    """

    name: str
    device: str
    offset: int
    nbytes: int
    layout: str
    layout_version: int
    crc32: int
    ends_crc32: int


@dataclass(frozen=True)
class PackedWeights:
    """The packed weights of an artifact, checked but not read.

    Attributes:
        folder: of the artifact.
        placement: its plan.
        entries: one a weight, in the order of `placement.weights`.
        sizes: bytes of the file of every device that has weights.
    """

    folder: Path
    placement: Placement
    entries: tuple[PackedEntry, ...]
    sizes: Mapping[str, int]

    @property
    def nbytes(self) -> int:
        """Bytes of all files."""
        return sum(self.sizes.values())

    def load(self, progress: Progress | None = None) -> dict[str, torch.Tensor]:
        """Reads every weight into its place on its device; those on the CPU lie in one arena of large pages.

        Returns: tensors by name; those of kernels with a layout of their own are uint8[nbytes].

        Raises:
            ArtifactError: a file cannot be read or is not the one that was packed, or memory does not suffice.
        """
        homes = {name: torch.device(self.placement.devices[name]) for name in self.sizes}
        on_host = [name for name, home in homes.items() if home.type == "cpu"]
        arena = self._arena(sum(self.sizes[name] for name in on_host))
        tensors: dict[str, torch.Tensor] = {}
        report = _Sum(progress, self.nbytes)
        for device, home in homes.items():
            path = self.folder / file_name(device)
            weights = [
                (w, e)
                for w, e in zip(self.placement.weights, self.entries, strict=True)
                if e.device == device
            ]
            with _opened(path, self.sizes[device]) as file:
                if home.type == "cpu":
                    memory = arena.tensor(self.sizes[device], ALIGNMENT)
                    for weight, entry in weights:
                        arena.place(memory[entry.offset : entry.offset + entry.nbytes], _matrices(weight))
                    region = memory.numpy()
                    read_pieces(file, 0, region.data, report)
                    for weight, entry in weights:
                        # By way of numpy every weight is a storage of its own, as native programs want them.
                        found = torch.from_numpy(region[entry.offset : entry.offset + entry.nbytes])
                        tensors[entry.name] = _checked(found, weight, entry, path)
                    continue
                for weight, entry in weights:
                    found = torch.empty(entry.nbytes, dtype=torch.uint8)
                    read_pieces(file, entry.offset, found.numpy().data, report)
                    tensors[entry.name] = _checked(found, weight, entry, path).to(home)
        arena.seal()
        report.finish()
        return tensors

    def verify(self, progress: Progress | None = None) -> None:
        """Reads every byte and compares it with its checksum; nothing stays in memory.

        Raises:
            ArtifactError: naming the weights that differ.
        """
        report = _Sum(progress, self.nbytes)
        damaged = []
        for device, size in self.sizes.items():
            mine = [entry for entry in self.entries if entry.device == device]
            with _opened(self.folder / file_name(device), size) as file, ThreadPoolExecutor(2) as pool:
                for entry, found in zip(mine, pool.map(partial(_crc32, file), mine), strict=True):
                    report(entry.nbytes)
                    if found != entry.crc32:
                        damaged.append(entry.name)
        if damaged:
            more = f" and {len(damaged) - 3} more" if len(damaged) > 3 else ""
            text = f"{self.folder}: the checksum differs of {', '.join(map(repr, damaged[:3]))}{more}"
            raise ArtifactError(text, hint=f"copy it again, or {AGAIN}")
        report.finish()

    def _arena(self, capacity: int) -> TensorArena:
        free = available_memory()
        if free is not None and capacity > free:
            raise ArtifactError(
                f"{self.folder} holds {capacity} bytes of weights for the CPU, and {free} bytes of memory are free",
                hint="free memory, or place less on the CPU",
            )
        try:
            return TensorArena(capacity, self.placement.threads or 0)
        except MemoryError as error:
            raise ArtifactError(f"{self.folder}: no memory for the weights: {error}") from error


def read_table(folder: Path, placement: Placement) -> PackedWeights:
    """Reads and checks the table of a packed artifact; reads no weight.

    Raises:
        ArtifactError: it does not belong to this plan, this version or the files beside it.
    """
    path = folder / TABLE
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
        if data["version"] != VERSION:
            text = f"{path} has version {data['version']!r}, and this ktc reads {VERSION}"
            raise ArtifactError(text, hint=AGAIN)
        entries = tuple(PackedEntry(**entry) for entry in data["weights"])
    except (OSError, ValueError, TypeError, KeyError, RecursionError) as error:
        raise ArtifactError(f"{path} cannot be read: {error!r}", hint=AGAIN) from error
    if [entry.name for entry in entries] != [weight.name for weight in placement.weights]:
        raise ArtifactError(f"{path} lists other weights than plan.json", hint=AGAIN)
    ends: dict[str, int] = {}
    for weight, entry in zip(placement.weights, entries, strict=True):
        try:
            _check(weight, entry, ends.get(entry.device, 0))
        except (KtcError, ValueError, TypeError, KeyError, OverflowError) as error:
            if isinstance(error, ArtifactError):
                raise
            raise ArtifactError(f"{path}: weight {entry.name!r}: {error}", hint=AGAIN) from error
        ends[entry.device] = aligned(entry.offset + entry.nbytes)
    for device, size in ends.items():
        with _opened(folder / file_name(device), size):
            pass
    return PackedWeights(folder, placement, entries, ends)


def layout_of(weight: WeightEntry) -> tuple[str, int, int]:
    """Layout, its version and the bytes of a weight, as this version of ktc would pack it.

    Raises:
        ArtifactError: its kernel does not exist or packs nothing.
        ValueError, TypeError, KtcError: a shape or format that cannot be.
    """
    if any(type(size) is not int or size < 0 for size in weight.shape):
        raise ValueError(f"it has the shape {weight.shape!r:.60}")
    if weight.kernel is None:
        return "dense", 1, math.prod(weight.shape) * dense_dtype(weight.format).itemsize
    kernel = kernels().get(weight.kernel)
    layout = None if kernel is None else kernel.layout
    if layout is None:
        text = f"weight {weight.name!r} was packed for the kernel {weight.kernel!r}, which this version lacks"
        raise ArtifactError(text, hint=AGAIN)
    nbytes = layout.packed_bytes(Weight(weight.name, weight.format, weight.shape))
    return layout.name, layout.version, nbytes


def _matrices(weight: WeightEntry) -> int:
    """Equal parts of a weight, of each of which every NUMA node reads its share."""
    layout = None if weight.kernel is None else kernels()[weight.kernel].layout
    return 1 if layout is None else layout.matrices(Weight(weight.name, weight.format, weight.shape))


def file_name(device: str) -> str:
    """The file of a declared device. Raises ValueError for what is no name: it could lead out of the folder."""
    if not re.fullmatch(r"[A-Za-z_][A-Za-z0-9_]*", device):
        raise ValueError(f"{device!r:.60} is no name of a device")
    return f"weights-{device}.bin"


def aligned(offset: int) -> int:
    """The next multiple of 4096."""
    return -(-offset // ALIGNMENT) * ALIGNMENT


def ends_crc32(data: memoryview) -> int:
    """The checksum of the first and the last 4096 bytes; of shorter data, all of it twice."""
    return zlib.crc32(data[-ALIGNMENT:], zlib.crc32(data[:ALIGNMENT]))


def _check(weight: WeightEntry, entry: PackedEntry, end: int) -> None:
    """Raises when a row of the table cannot be true; `end` is where the weight before it ends."""
    numbers = (entry.offset, entry.nbytes, entry.layout_version, entry.crc32, entry.ends_crc32)
    if any(type(number) is not int or not 0 <= number < 1 << 63 for number in numbers):
        raise ValueError("a number of its row is no size or checksum")
    if entry.device != weight.device:
        raise ValueError(
            f"it lies in the file of {entry.device!r}, and plan.json places it on {weight.device!r}"
        )
    file_name(entry.device)
    layout, version, nbytes = layout_of(weight)
    if (entry.layout, entry.layout_version) != (layout, version):
        text = (
            f"weight {weight.name!r} was packed in version {entry.layout_version} of the layout {entry.layout!r} "
            f"for {weight.kernel or 'an ordinary tensor'}, and this ktc reads version {version} of {layout!r}"
        )
        raise ArtifactError(text, hint=AGAIN)
    if not entry.nbytes == weight.nbytes == nbytes:
        sizes = f"{entry.nbytes} bytes in the table, {weight.nbytes} in plan.json and {nbytes} by its kernel"
        raise ValueError(f"it has {sizes}")
    if entry.offset != end:
        raise ValueError(f"it starts at byte {entry.offset}, and the one before it ends at {end}")


def _checked(found: torch.Tensor, weight: WeightEntry, entry: PackedEntry, path: Path) -> torch.Tensor:
    """The bytes of a weight as its tensor. Raises ArtifactError when they are not those that were packed."""
    if ends_crc32(found.numpy().data) != entry.ends_crc32:
        raise ArtifactError(
            f"{path}: weight {entry.name!r} is not what was packed: the checksum of its ends differs",
            hint=f"copy the artifact again, or {AGAIN}",
        )
    if weight.kernel is not None:
        return found
    return found.view(dense_dtype(weight.format)).reshape(weight.shape)


def _crc32(file: int, entry: PackedEntry) -> int:
    buffer = memoryview(bytearray(min(entry.nbytes, 1 << 22)))
    found, done = 0, 0
    while done < entry.nbytes:
        piece = buffer[: min(len(buffer), entry.nbytes - done)]
        read_pieces(file, entry.offset + done, piece, threads=1)
        found, done = zlib.crc32(piece, found), done + len(piece)
    return found


@contextmanager
def _opened(path: Path, size: int) -> Iterator[int]:
    """The descriptor of a file of weights. Raises ArtifactError unless it is a file of that size, or reading fails."""
    try:
        file = os.open(
            path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK
        )  # opening a pipe would wait for a writer
        try:
            status = os.fstat(file)
            if not stat.S_ISREG(status.st_mode):
                raise ArtifactError(f"{path} is no file", hint=AGAIN)
            if status.st_size != size:
                raise ArtifactError(
                    f"{path} has {status.st_size} bytes and must have {size}",
                    hint=f"copy it again, or {AGAIN}",
                )
            yield file
        finally:
            os.close(file)
    except (OSError, EOFError) as error:
        raise ArtifactError(f"{path} cannot be read: {error}", hint=AGAIN) from error
    except (MemoryError, RuntimeError) as error:
        raise ArtifactError(f"{path}: its weights find no room: {error}") from error


class _Sum:
    """Adds up the bytes of each piece for whoever shows progress."""

    def __init__(self, progress: Progress | None, total: int) -> None:
        self._progress, self._total, self._done = progress, total, 0

    def __call__(self, nbytes: int) -> None:
        self._done += nbytes
        if self._progress is not None:
            self._progress(self._done, self._total)

    def finish(self) -> None:
        """Gaps of alignment are read with some weights and not with others; the end is the total all the same."""
        if self._progress is not None:
            self._progress(self._total, self._total)
