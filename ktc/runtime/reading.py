"""Reading a stretch of a file into memory that is there already: large pieces, several at a time, no copy between."""

from __future__ import annotations

import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor, as_completed

from ktc.devices import host_memory

PIECE = 8 << 20
THREADS = 4
"""Disks are at their best with a few large reads in flight, and copying out of the page cache takes a few cores."""


def read_pieces(
    file: int, offset: int, out: memoryview, done: Callable[[int], None] | None = None, threads: int = THREADS
) -> None:
    """Fills `out` (bytes, writable) with what the file has from `offset` on.

    Args:
        file: descriptor; its position is neither used nor moved.
        done: called in this thread with the bytes of every piece, in any order.
        threads: most reads in flight.

    Raises:
        EOFError: the file ends before.
        OSError: the system cannot read it.
    """
    starts = range(0, len(out), PIECE)
    if threads <= 1 or len(starts) <= 1:
        for start in starts:
            _read(file, offset + start, out[start : start + PIECE], False)
            if done is not None:
                done(min(PIECE, len(out) - start))
        return
    # The page cache of a file that fills the memory only gets in the way of the large pages it is read to.
    forget = len(out) > (host_memory() or 0) // 4
    with ThreadPoolExecutor(min(threads, len(starts)), "ktc-read") as pool:
        pieces = [pool.submit(_read, file, offset + s, out[s : s + PIECE], forget) for s in starts]
        try:
            for piece in as_completed(pieces):
                nbytes = piece.result()
                if done is not None:
                    done(nbytes)
        except BaseException:
            pool.shutdown(wait=True, cancel_futures=True)
            raise


def _read(file: int, offset: int, out: memoryview, forget: bool) -> int:
    filled = 0
    while filled < len(out):
        count = os.preadv(file, [out[filled:]], offset + filled)
        if count == 0:
            raise EOFError(f"it ends at byte {offset + filled}")
        filled += count
    if forget and hasattr(os, "posix_fadvise"):
        os.posix_fadvise(file, offset, len(out), os.POSIX_FADV_DONTNEED)
    return filled
