"""Who does what on machines with several NUMA nodes: shares, stealing, first touch; on machines that are made up."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from support.fake_machines import TWO_SOCKETS, FakeMachine

from ktc import _cpu

MIB = 1 << 20
Use = Callable[[FakeMachine, int], None]


@pytest.fixture
def use(tmp_path: Path) -> Iterator[Use]:
    """Puts the pool on a machine with some threads."""
    before = _cpu.threads()
    count = 0

    def put(machine: FakeMachine, threads: int) -> None:
        nonlocal count
        count += 1
        _cpu._pool_topology(machine.write(tmp_path / str(count)), threads)

    yield put
    _cpu._pool_topology("", before)


def nodes_of(active: int) -> list[int]:
    return [node for _, _, node in _cpu._pool_seats(active)]


def test_threads_sit_on_their_cores_by_node(use: Use) -> None:
    use(TWO_SOCKETS, 8)
    assert _cpu._pool_seats(8) == [(i, i, i // 4) for i in range(8)]


def test_some_nodes_of_a_machine(use: Use, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("KTC_THREADS", raising=False)
    use(TWO_SOCKETS, 8)
    assert (_cpu.use_nodes(1), _cpu.threads()) == (1, 4)
    assert _cpu.why_threads() == "one a physical core, 1 of 2 NUMA nodes"
    nodes, cores, *_ = _cpu.topology()
    assert (nodes, cores) == ([0], [[[0, 8], [1, 9], [2, 10], [3, 11]]])
    assert _cpu._pool_seats(4) == [(i, i, 0) for i in range(4)]
    _cpu.set_threads(3)
    assert (_cpu.use_nodes(1), _cpu.threads()) == (1, 3), "nothing changes where nothing has to"
    assert (_cpu.use_nodes(9), _cpu.threads()) == (2, 8)
    _cpu.set_threads(5)
    assert (_cpu.use_nodes(0), _cpu.threads()) == (2, 5)
    with pytest.raises(ValueError, match="-1"):
        _cpu.use_nodes(-1)


def test_fewer_threads_are_spread_over_the_nodes(use: Use) -> None:
    """Half of the threads on one node would leave the other's memory idle."""
    use(TWO_SOCKETS, 4)
    assert _cpu._pool_seats(4) == [(0, 0, 0), (1, 2, 0), (2, 4, 1), (3, 6, 1)]
    use(TWO_SOCKETS, 8)
    for active in range(2, 9):
        assert sorted(map(nodes_of(active).count, (0, 1))) in ([active // 2, active - active // 2],)
    assert nodes_of(1) == [0]


def test_more_threads_than_cores(use: Use) -> None:
    use(TWO_SOCKETS, 12)
    assert nodes_of(12) == [0] * 6 + [1] * 6
    assert [core for _, core, _ in _cpu._pool_seats(12)] == [0, 0, 1, 2, 2, 3, 4, 4, 5, 6, 6, 7]


def test_uneven_nodes(use: Use) -> None:
    machine = FakeMachine(cores=(((0,), (1,), (2,)), ((3,),), ((4,), (5,))))
    use(machine, 6)
    assert nodes_of(6) == [0, 0, 0, 1, 2, 2]
    assert _cpu._pool_grid(0, 60)[0] == [0, 30, 40, 60]
    for active in range(1, 7):
        assert nodes_of(active) == sorted(nodes_of(active)) and len(nodes_of(active)) == active


def test_everyone_steals_at_home_first(use: Use) -> None:
    use(TWO_SOCKETS, 8)
    orders = _cpu._pool_orders(8)
    assert orders[0] == [0, 1, 2, 3, 4, 5, 6, 7]
    assert orders[2] == [2, 3, 0, 1, 4, 5, 6, 7]
    assert orders[5] == [5, 6, 7, 4, 0, 1, 2, 3]
    for active in range(1, 9):
        homes = nodes_of(active)
        for seat, order in enumerate(_cpu._pool_orders(active)):
            assert order[0] == seat and sorted(order) == list(range(active))
            at_home = [homes[victim] == homes[seat] for victim in order]
            assert at_home == sorted(at_home, reverse=True)


def test_on_one_node_the_order_is_round(use: Use) -> None:
    use(FakeMachine(cores=(((0,), (1,), (2,)),)), 3)
    assert _cpu._pool_orders(3) == [[0, 1, 2], [1, 2, 0], [2, 0, 1]]
    assert _cpu._pool_grid(2, 3) == ([0, 3], [(0, 0), (0, 1), (0, 2), (1, 0), (1, 1), (1, 2)])


def test_a_node_takes_its_part_of_every_expert(use: Use) -> None:
    use(TWO_SOCKETS, 8)
    cuts, places = _cpu._pool_grid(3, 10)
    assert cuts == [0, 5, 10]
    assert places[:15] == [(expert, row) for expert in range(3) for row in range(5)]
    assert places[15:] == [(expert, row) for expert in range(3) for row in range(5, 10)]


@pytest.mark.parametrize("threads", [1, 2, 3, 5, 8, 11])
@pytest.mark.parametrize(("outer", "inner"), [(1, 1), (1, 7), (5, 1), (4, 3), (8, 24), (0, 4), (3, 0)])
def test_every_place_comes_once(use: Use, threads: int, outer: int, inner: int) -> None:
    use(FakeMachine(cores=(((0,), (1,)), ((2,), (3,)), ((4,),))), threads)
    cuts, places = _cpu._pool_grid(outer, inner)
    assert cuts[0] == 0 and cuts[-1] == inner and cuts == sorted(cuts)
    assert sorted(places) == [(i, j) for i in range(outer) for j in range(inner)]
    # The static split of the loop gives a node's threads what is cut for the node.
    homes, items = nodes_of(threads), outer * inner
    for item, (_, place) in enumerate(places):
        seat = max(s for s in range(threads) if items * s // threads <= item)
        node = max(n for n in range(len(cuts) - 1) if cuts[n] <= place)
        if items % threads == 0 and inner % threads == 0:
            assert homes[seat] == node


def owners(address: int, nbytes: int, matrices: int) -> tuple[int, dict[int, int]]:
    """Bytes of a page, and which seat touches the page at an offset (of its first byte)."""
    page, touches = _cpu._pool_touches(address, nbytes, matrices)
    found: dict[int, int] = {}
    for begin, end, seat in touches:
        assert (address + begin) % page == 0 and begin < end <= nbytes
        for offset in range(begin, end, page):
            assert found.setdefault(offset, seat) == seat
    return page, found


def test_pages_are_touched_by_who_reads_them(use: Use) -> None:
    use(TWO_SOCKETS, 8)
    page, found = owners(2 * MIB, 64 * MIB, 1)
    assert page == 2 * MIB
    assert found == {offset: offset // (8 * MIB) for offset in range(0, 64 * MIB, 2 * MIB)}


def test_small_experts_lie_on_small_pages(use: Use) -> None:
    """A node's half of an expert of 1 MiB would share its large page with the other's."""
    use(TWO_SOCKETS, 8)
    page, found = owners(2 * MIB, 16 * MIB, 16)
    assert page == 4096 and len(found) == 16 * 256
    for offset, seat in found.items():
        assert seat == offset % MIB * 8 // MIB


def test_a_page_belongs_to_its_first_byte(use: Use) -> None:
    use(TWO_SOCKETS, 2)
    address = 10 * 4096 + 64  # the page before belongs to the weight before
    _, found = owners(address, 5 * 4096, 1)
    assert sorted(found) == [4096 * i - 64 for i in range(1, 6)]
    assert list(found.values()) == [0, 0, 1, 1, 1]
    assert owners(address, 4000, 1)[1] == {}
    assert owners(address, 4033, 1)[1] == {4032: 1}


def test_the_last_part_takes_what_does_not_divide(use: Use) -> None:
    use(TWO_SOCKETS, 8)
    _, found = owners(0, 3 * 40960 + 2, 3)
    assert max(found) == 3 * 40960 and found[max(found)] == 7


@pytest.mark.parametrize("threads", [1, 2, 5, 8, 12])
def test_each_thread_does_its_own_and_is_waited_for(use: Use, threads: int) -> None:
    use(TWO_SOCKETS, threads)
    assert _cpu._pool_each(50) == 0
    assert _cpu._pool_exercise(1000, 1, 20, 3, False) == 0
    before = _cpu.limit_threads(3)
    try:
        assert _cpu._pool_each(20) == 0
        assert _cpu._pool_exercise(1000, 7, 20, 1, False) == 0
    finally:
        _cpu.limit_threads(before)


def test_placing_keeps_what_is_there_and_makes_memory_resident(use: Use) -> None:
    use(TWO_SOCKETS, 8)
    arena = _cpu.Arena(16 * MIB)
    first = arena.allocate(5000)
    first[:] = 7
    rest = arena.allocate(9 * MIB)
    arena.place(rest.ctypes.data, rest.size, 9)
    arena.place(first.ctypes.data, first.size)
    assert (first == 7).all() and not np.asarray(rest).any()
    rest[:] = 3
    arena.seal()
    assert (first == 7).all() and (rest == 3).all()


def test_placing_refuses_what_cannot_be(use: Use) -> None:
    use(TWO_SOCKETS, 8)
    arena, other = _cpu.Arena(4 * MIB), _cpu.Arena(4 * MIB)
    view = arena.allocate(100)
    for address, nbytes in ((other.allocate(10).ctypes.data, 10), (view.ctypes.data, 5 * MIB)):
        with pytest.raises(ValueError, match="outside the arena"):
            arena.place(address, nbytes)
    for matrices in (0, -1, 101):
        with pytest.raises(ValueError, match="100 bytes has no"):
            arena.place(view.ctypes.data, 100, matrices)
