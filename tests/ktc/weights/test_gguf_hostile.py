"""Hostile and damaged GGUF files end in a typed error that names the file, in bounded time and memory."""

from __future__ import annotations

import resource
import struct
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from support.gguf_bytes import (
    ARRAY,
    BOOL,
    FLOAT32,
    INT32,
    STRING,
    UINT32,
    UINT64,
    array,
    gguf_bytes,
    pair,
    tensor,
    text,
    tiny_file,
)

from ktc.errors import GgufError, KtcError, MetadataError, UnsupportedFormatError
from ktc.weights.gguf import open_gguf

HUGE = 2**63
LLAMA = pair("general.architecture", STRING, "llama")


def written(tmp_path: Path, content: bytes) -> Path:
    path = tmp_path / "x.gguf"
    path.write_bytes(content)
    return path


def test_tiny_file_is_valid(tmp_path: Path) -> None:
    file = open_gguf(written(tmp_path, tiny_file()))
    assert file.metadata.integer("a.u64", high=2**63) == 1 << 40
    assert file.metadata.texts("a.strings") == ["x", "", "née"]
    assert file.metadata.integers("a.numbers") == [1, -2, 3]
    assert file.metadata.flag("a.bool") is True
    assert file.tensors["one"].shape == (2, 4)
    assert file.data(file.tensors["one"]).tolist() == list(range(32))
    assert file.data(file.tensors["two"]).nbytes == 34


def test_truncation_at_every_byte(tmp_path: Path) -> None:
    content = tiny_file()
    for length in range(len(content)):
        path = written(tmp_path, content[:length])
        with pytest.raises(GgufError) as caught:
            open_gguf(path)
        assert str(path) in str(caught.value)


CASES: dict[str, tuple[bytes, str]] = {
    "magic": (gguf_bytes(magic=b"GGML"), "not a GGUF file"),
    "version 1": (gguf_bytes(version=1), "version 1"),
    "version 99": (gguf_bytes(version=99), "version 99"),
    "big-endian": (b"GGUF" + struct.pack(">IQQ", 3, 0, 0), "big-endian"),
    "key count": (gguf_bytes(pair_count=HUGE), "metadata keys"),
    "key count beyond the file": (gguf_bytes([LLAMA], pair_count=1000), "truncated"),
    "tensor count": (gguf_bytes([LLAMA], tensor_count=HUGE), "tensors"),
    "tensor count beyond the file": (gguf_bytes([LLAMA], tensor_count=1 << 20), "truncated"),
    "key length": (gguf_bytes([text("k", HUGE) + bytes(32)]), "bytes long"),
    "string length": (gguf_bytes([text("k") + struct.pack("<IQ", STRING, HUGE)]), "bytes long"),
    "string length beyond the file": (
        gguf_bytes([text("k") + struct.pack("<IQ", STRING, 1 << 20)]),
        "truncated",
    ),
    "key twice": (gguf_bytes([LLAMA, LLAMA]), "appears twice"),
    "key not UTF-8": (gguf_bytes([pair(b"\xff\xfe", UINT32, 1)]), "UTF-8"),
    "value not UTF-8": (gguf_bytes([pair("k", STRING, b"\xc3")]), "UTF-8"),
    "value type": (gguf_bytes([text("k") + struct.pack("<IQ", 77, 0)]), "no GGUF value type"),
    "element type": (gguf_bytes([array("k", 99, [], 4)]), "no GGUF value type"),
    "array of arrays": (gguf_bytes([array("k", ARRAY, [], 3) + bytes(64)]), "array of arrays"),
    "array length": (gguf_bytes([array("k", UINT32, [1], HUGE)]), "truncated"),
    "array length that wraps": (gguf_bytes([array("k", UINT64, [1], 2**61 + 1)]), "truncated"),
    "array of strings": (gguf_bytes([array("k", STRING, [], HUGE)]), "strings"),
    "array of strings beyond the file": (gguf_bytes([array("k", STRING, [], 100_000)]), "truncated"),
    "bool": (gguf_bytes([pair("k", BOOL, 2)]), "bool"),
    "array of bools": (gguf_bytes([array("k", BOOL, [1, 2])]), "bools"),
    "tensor name twice": (gguf_bytes(tensors=[tensor("t", [8]), tensor("t", [8], 0, 32)]), "appears twice"),
    "tensor without name": (gguf_bytes(tensors=[tensor("", [8])], data=bytes(64)), "no name"),
    "tensor name too long": (gguf_bytes(tensors=[tensor("t" * 5000, [8])]), "bytes long"),
    "no dimensions": (gguf_bytes(tensors=[tensor("t", [])], data=bytes(64)), "0 dimensions"),
    "too many dimensions": (gguf_bytes(tensors=[tensor("t", [1] * 5)], data=bytes(64)), "5 dimensions"),
    "dimension count": (
        gguf_bytes(tensors=[tensor("t", [1], dimensions=2**32 - 1)], data=bytes(64)),
        "dimensions",
    ),
    "zero dimension": (gguf_bytes(tensors=[tensor("t", [8, 0])], data=bytes(64)), "dimension of 0"),
    "element overflow": (
        gguf_bytes(tensors=[tensor("t", [2**32, 2**32])], data=bytes(64)),
        "more elements",
    ),
    "byte overflow": (gguf_bytes(tensors=[tensor("t", [2**62])], data=bytes(64)), "more bytes"),
    "partial block": (gguf_bytes(tensors=[tensor("t", [33], 8)], data=bytes(64)), "not a multiple"),
    "offset not aligned": (gguf_bytes(tensors=[tensor("t", [8], 0, 8)], data=bytes(64)), "not a multiple"),
    "offset beyond the file": (gguf_bytes(tensors=[tensor("t", [8], 0, 1 << 40)], data=bytes(64)), "ends at"),
    "offset that wraps": (gguf_bytes(tensors=[tensor("t", [8], 0, 2**64 - 32)], data=bytes(64)), "ends at"),
    "size beyond the file": (gguf_bytes(tensors=[tensor("t", [1 << 20])], data=bytes(64)), "ends at"),
    "overlap": (gguf_bytes(tensors=[tensor("a", [16]), tensor("b", [8], 0, 32)], data=bytes(64)), "overlap"),
    "alignment 0": (gguf_bytes([pair("general.alignment", UINT32, 0)]), "outside"),
    "alignment 24": (gguf_bytes([pair("general.alignment", UINT32, 24)]), "power of two"),
    "alignment huge": (gguf_bytes([pair("general.alignment", UINT32, 2**31)]), "outside"),
    "alignment type": (gguf_bytes([pair("general.alignment", INT32, 32)]), "expected uint32"),
    "alignment text": (gguf_bytes([pair("general.alignment", STRING, "32")]), "expected uint32"),
}


@pytest.mark.parametrize("name", CASES)
def test_broken_header(name: str, tmp_path: Path) -> None:
    content, words = CASES[name]
    path = written(tmp_path, content)
    with pytest.raises(GgufError, match=words) as caught:
        open_gguf(path)
    assert caught.value.file == path


def test_unknown_tensor_type(tmp_path: Path) -> None:
    path = written(tmp_path, gguf_bytes(tensors=[tensor("t", [32], 4)], data=bytes(64)))
    with pytest.raises(UnsupportedFormatError, match="type number 4") as caught:
        open_gguf(path)
    assert caught.value.tensor == "t" and caught.value.hint


def test_getters_name_key_and_types(tmp_path: Path) -> None:
    pairs = [
        LLAMA,
        pair("n", UINT32, 5),
        pair("f", FLOAT32, float("nan")),
        array("a", UINT32, [1]),
        array("s", STRING, ["x"]),
    ]
    metadata = open_gguf(written(tmp_path, gguf_bytes(pairs))).metadata
    calls = [
        (lambda: metadata.text("n"), "'n': expected a string, found uint32"),
        (lambda: metadata.integer("general.architecture"), "expected an integer, found string"),
        (lambda: metadata.integer("n", high=4), "is 5, outside 0 to 4"),
        (lambda: metadata.number("f"), "is nan"),
        (lambda: metadata.flag("n"), "expected a bool"),
        (lambda: metadata.texts("a"), "expected an array of strings, found array of uint32"),
        (lambda: metadata.integers("s"), "expected an array of integers, found array of string"),
        (lambda: metadata.numbers("n"), "expected an array of numbers"),
        (lambda: metadata.text("absent"), "'absent': is missing"),
    ]
    for call, words in calls:
        with pytest.raises(MetadataError) as caught:
            call()
        assert words in str(caught.value)


def test_hostile_counts_cost_no_memory(tmp_path: Path) -> None:
    """A sparse file of 4 GiB claims two million empty strings and a million tensors."""
    path = tmp_path / "sparse.gguf"
    path.write_bytes(b"GGUF" + struct.pack("<IQQ", 3, 1 << 20, 1) + array("k", STRING, [], 1 << 21))
    with path.open("r+b") as stream:
        stream.truncate(4 << 30)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(GgufError):
        open_gguf(path)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 256 << 10  # KiB


@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(flips=st.lists(st.tuples(st.integers(0, 10_000), st.integers(0, 255)), min_size=1, max_size=6))
def test_changed_bytes_never_crash(tmp_path: Path, flips: list[tuple[int, int]]) -> None:
    content = bytearray(tiny_file())
    for position, byte in flips:
        content[position % len(content)] = byte
    path = written(tmp_path, bytes(content))
    try:
        file = open_gguf(path)
    except KtcError:
        return
    for header in file.tensors.values():
        assert file.data(header).nbytes == header.nbytes


@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(rest=st.binary(max_size=200))
def test_random_bytes_after_the_magic_never_crash(tmp_path: Path, rest: bytes) -> None:
    path = written(tmp_path, b"GGUF\x03\x00\x00\x00" + rest)
    try:
        open_gguf(path)
    except KtcError:
        return
