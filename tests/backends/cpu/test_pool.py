"""The thread pool: every item once, exceptions come back, concurrent callers, fork, exit."""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap

import pytest

from ktc import _cpu


def test_every_item_runs_once(threads: int) -> None:
    for items, grain in ((1, 1), (2, 1), (3, 1), (7, 2), (64, 64), (1000, 1), (1001, 7), (100_000, 1000)):
        assert _cpu._pool_exercise(items, grain, 20, 1, False) == 0


def test_no_items() -> None:
    assert _cpu._pool_exercise(0, 1, 3, 2, False) == 0


@pytest.mark.parametrize("count", [2, 5, 16])
def test_concurrent_callers_and_more_threads_than_cores(count: int) -> None:
    before = _cpu.threads()
    _cpu.set_threads(count)
    try:
        assert _cpu._pool_exercise(100, 1, 300, 4, False) == 0
    finally:
        _cpu.set_threads(before)


def test_exceptions_come_back_and_leave_the_pool_usable(threads: int) -> None:
    assert _cpu._pool_exercise(100, 1, 50, 3, True) == 0
    assert _cpu._pool_exercise(100, 1, 50, 3, False) == 0


@pytest.mark.parametrize("count", [0, -1, 1025])
def test_refuses_numbers_of_threads(count: int) -> None:
    with pytest.raises(ValueError, match="1 to 1024 threads"):
        _cpu.set_threads(count)


def test_a_change_of_threads_between_loops() -> None:
    before = _cpu.threads()
    try:
        for count in (1, 4, 2, 3, 1, 2) * 5:
            _cpu.set_threads(count)
            assert _cpu.threads() == count
            assert _cpu._pool_exercise(50, 1, 5, 2, False) == 0
    finally:
        _cpu.set_threads(before)


def test_no_more_threads_than_cpus() -> None:
    """They would only take turns."""
    _, cores, _, _, _ = _cpu.topology()
    cpus = sum(len(core) for node in cores for core in node)
    before = _cpu.threads()
    _cpu._pool_beyond_cpus(False)
    try:
        for count in (1, cpus, cpus + 1, 1024):
            _cpu.set_threads(count)
            assert _cpu.threads() == min(count, cpus)
            assert _cpu.why_threads() == "set by the program"
    finally:
        _cpu._pool_beyond_cpus(True)
        _cpu.set_threads(before)


def test_a_busy_processor_sends_nobody_away_for_good() -> None:
    """Workers that lose their processor to another process rest for a while; every item is still run once."""
    before = _cpu.threads()
    hogs = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(2)]
    try:
        _cpu.set_threads(4)
        assert _cpu._pool_exercise(2000, 1, 300, 2, False) == 0
        assert _cpu._pool_each(3) == 0
    finally:
        for hog in hogs:
            hog.kill()
            hog.wait()
        _cpu.set_threads(before)


def run(code: str, **environment: str) -> str:
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code)],
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_a_forked_child_has_a_pool_of_its_own() -> None:
    out = run("""
        import os
        from ktc import _cpu
        _cpu._pool_beyond_cpus(True)
        _cpu.set_threads(4)
        assert _cpu._pool_exercise(100, 1, 100, 2, False) == 0
        child = os.fork()
        if child == 0:
            os._exit(_cpu._pool_exercise(100, 1, 100, 3, False))
        assert _cpu._pool_exercise(100, 1, 100, 2, False) == 0
        print(os.waitpid(child, 0)[1])
    """)
    assert out.strip() == "0"


def test_the_process_ends_while_a_loop_runs_in_another_thread() -> None:
    run("""
        import threading
        from ktc import _cpu
        _cpu._pool_beyond_cpus(True)
        _cpu.set_threads(3)
        threading.Thread(target=_cpu._pool_exercise, args=(1000, 1, 10**6, 1, False), daemon=True).start()
        _cpu._pool_exercise(100, 1, 100, 1, False)
    """)


def test_the_environment_sets_the_number_of_threads() -> None:
    assert run("from ktc import _cpu; print(_cpu.threads())", KTC_THREADS="1").strip() == "1"
    assert int(run("from ktc import _cpu; print(_cpu.threads())", KTC_THREADS="nonsense")) >= 1
