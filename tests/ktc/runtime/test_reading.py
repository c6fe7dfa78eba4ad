"""Reading in pieces: every byte in its place, ends and errors of the file reported as they are."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from ktc.runtime import reading
from ktc.runtime.reading import read_pieces


@pytest.fixture
def content(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> bytes:
    """What the file `f` in the test's folder holds, a few pieces long."""
    monkeypatch.setattr(reading, "PIECE", 1000)
    data = os.urandom(7777)
    (tmp_path / "f").write_bytes(data)
    return data


@pytest.mark.parametrize("threads", [1, 3])
@pytest.mark.parametrize(
    ("offset", "size"), [(0, 7777), (0, 0), (123, 1000), (5, 1001), (7000, 777), (1, 999)]
)
def test_every_byte_in_its_place(
    content: bytes, tmp_path: Path, threads: int, offset: int, size: int
) -> None:
    out = bytearray(size + 2)
    seen: list[int] = []
    file = os.open(tmp_path / "f", os.O_RDONLY)
    read_pieces(file, offset, memoryview(out)[1 : size + 1], seen.append, threads)
    os.close(file)
    assert out == b"\0" + content[offset : offset + size] + b"\0" and sum(seen) == size


@pytest.mark.parametrize("threads", [1, 3])
def test_a_file_that_ends_before_and_one_that_is_closed(content: bytes, tmp_path: Path, threads: int) -> None:
    file = os.open(tmp_path / "f", os.O_RDONLY)
    with pytest.raises(EOFError, match="ends at byte 7777"):
        read_pieces(file, 7, memoryview(bytearray(len(content))), None, threads)
    os.close(file)
    with pytest.raises(OSError, match=r"Bad file"):
        read_pieces(file, 0, memoryview(bytearray(5000)), None, threads)


def test_short_reads_and_memory_that_is_scarce(
    content: bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The system may give less than asked; a file as large as the memory is not kept in the page cache."""
    preadv = os.preadv
    monkeypatch.setattr(os, "preadv", lambda file, out, offset: preadv(file, [out[0][:300]], offset))
    monkeypatch.setattr(reading, "host_memory", lambda: 20000)
    forgotten: list[int] = []
    monkeypatch.setattr(os, "posix_fadvise", lambda file, offset, size, advice: forgotten.append(size))
    out = bytearray(len(content))
    file = os.open(tmp_path / "f", os.O_RDONLY)
    read_pieces(file, 0, memoryview(out))
    os.close(file)
    assert out == content and sum(forgotten) == len(content)
