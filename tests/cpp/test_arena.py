"""Arenas: alignment, lifetime, sizes, large pages, and their torch tensors."""

from __future__ import annotations

import gc
import threading
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from ktc import _cpu
from ktc.runtime.arena import TensorArena

MIB = 1 << 20


def mapped(address: int) -> bool:
    """Whether memory of this process lies at an address."""
    maps = Path("/proc/self/maps")
    if not maps.exists():
        pytest.skip("needs /proc")
    ranges = (line.split()[0].split("-") for line in maps.read_text().splitlines())
    return any(int(start, 16) <= address < int(end, 16) for start, end in ranges)


def test_capacity_is_rounded_up_to_large_pages() -> None:
    for capacity, reserved in [(0, 2 * MIB), (1, 2 * MIB), (2 * MIB, 2 * MIB), (2 * MIB + 1, 4 * MIB)]:
        assert _cpu.Arena(capacity).capacity == reserved


def test_memory_is_zeroed_writable_and_disjoint() -> None:
    arena = _cpu.Arena(MIB)
    views = [arena.allocate(size) for size in (1, 0, 63, 64, 65, 4096)]
    for view in views:
        assert not np.asarray(view).any()
    for number, view in enumerate(views):
        view[:] = number + 1
    for number, view in enumerate(views):
        assert (view == number + 1).all()


@pytest.mark.parametrize("align", [1, 2, 64, 4096, 2 * MIB])
def test_alignment(align: int) -> None:
    arena = _cpu.Arena(8 * MIB)
    arena.allocate(3)
    assert arena.allocate(10, align).ctypes.data % align == 0
    assert arena.used == max(align, 3 if align == 1 else 4 if align == 2 else align) + 10


def test_an_arena_can_be_filled_to_the_last_byte_and_no_further() -> None:
    arena = _cpu.Arena(2 * MIB)
    arena.allocate(2 * MIB - 64)[:] = 1
    last = arena.allocate(64)
    last[:] = 2
    assert arena.allocate(0).size == 0
    with pytest.raises(
        MemoryError, match=r"no room for 1 bytes \(0\.0 MiB\): 2097152 bytes \(2\.0 MiB\) of 2097152"
    ):
        arena.allocate(1)
    assert arena.used == arena.capacity


@pytest.mark.parametrize("nbytes", [3 * MIB, 1 << 40, (1 << 64) - 1])
def test_too_much_at_once(nbytes: int) -> None:
    arena = _cpu.Arena(2 * MIB)
    arena.allocate(100)
    with pytest.raises(MemoryError, match=f"no room for {nbytes} bytes"):
        arena.allocate(nbytes)
    assert arena.used == 100


@pytest.mark.parametrize("align", [0, 3, 48, 4 * MIB])
def test_bad_alignment(align: int) -> None:
    with pytest.raises(ValueError, match=f"align is {align}, not a power of two"):
        _cpu.Arena(2 * MIB).allocate(1, align)


@pytest.mark.parametrize("capacity", [1 << 62, (1 << 63) + 1, (1 << 64) - 1])
def test_a_reservation_the_system_refuses(capacity: int) -> None:
    with pytest.raises(MemoryError, match=f"an arena of {capacity} bytes .* cannot be reserved"):
        _cpu.Arena(capacity)


def test_a_view_keeps_the_memory_and_the_last_one_frees_it() -> None:
    size = 64 * MIB
    arena = _cpu.Arena(size)
    view = torch.from_numpy(arena.allocate(size))[10:].view(torch.uint8)
    view.fill_(7)
    middle = view.data_ptr() + size // 2
    del arena
    gc.collect()
    assert int(view[-1]) == 7 and mapped(middle)
    del view
    gc.collect()
    assert not mapped(middle)


def test_torch_reads_it_by_dlpack_too() -> None:
    array = _cpu.Arena(MIB).allocate(256)
    tensor = torch.from_dlpack(array)
    array[3] = 9
    assert tensor.data_ptr() == array.ctypes.data and int(tensor[3]) == 9


def test_large_pages_are_counted_for_this_arena_alone() -> None:
    arenas = [_cpu.Arena(16 * MIB) for _ in range(3)]
    for arena in arenas:
        assert arena.huge_bytes() == 0  # nothing written yet
    arenas[1].allocate(16 * MIB)[:] = 1
    arenas[1].seal()
    assert arenas[0].huge_bytes() == arenas[2].huge_bytes() == 0
    assert 0 <= arenas[1].huge_bytes() <= 16 * MIB
    enabled = Path("/sys/kernel/mm/transparent_hugepage/enabled")
    if enabled.exists() and "[never]" not in enabled.read_text():
        assert arenas[1].huge_bytes() > 0


def test_sealing_keeps_the_data() -> None:
    arena = _cpu.Arena(8 * MIB)
    arena.seal()  # nothing there: nothing to do
    data = arena.allocate(5 * MIB + 12345)
    data[:] = np.random.default_rng(10).integers(0, 256, data.size, dtype=np.uint8)
    copy = data.copy()
    arena.seal()
    np.testing.assert_array_equal(data, copy)


def test_threads_get_disjoint_memory() -> None:
    arena = _cpu.Arena(4 * MIB)
    starts: list[int] = []

    def work() -> None:
        for _ in range(200):
            starts.append(arena.allocate(64).ctypes.data)

    threads = [threading.Thread(target=work) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(set(starts)) == 1600 and arena.used == 1600 * 64


def test_tensor_arena() -> None:
    arena = TensorArena(3 * MIB)
    assert (arena.capacity, arena.used) == (4 * MIB, 0)
    tensor = arena.tensor(1000, align=4096)
    assert tensor.dtype == torch.uint8 and tensor.shape == (1000,) and tensor.data_ptr() % 4096 == 0
    tensor.view(torch.float32)[0] = 1.5
    arena.seal()
    assert tensor.view(torch.float32)[0] == 1.5 and arena.used == 1000 and arena.huge_bytes <= arena.capacity
    assert arena.tensor(0).shape == (0,)


@pytest.mark.parametrize(
    ("use", "error"),
    [
        (lambda: TensorArena(-1), ValueError),
        (lambda: TensorArena(MIB).tensor(-1), ValueError),
        (lambda: TensorArena(MIB).tensor(1, 7), ValueError),
        (lambda: TensorArena(MIB).tensor(3 * MIB), MemoryError),
    ],
)
def test_tensor_arena_errors(use: Callable[[], object], error: type[Exception]) -> None:
    with pytest.raises(error):
        use()
