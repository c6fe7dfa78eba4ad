"""The table of number formats agrees with the gguf package, and knows sizes without torch or numpy."""

from __future__ import annotations

import subprocess
import sys

import gguf
import pytest

from ktc.errors import ShapeMismatchError, UnsupportedFormatError
from ktc.weights import formats


@pytest.mark.parametrize("table", [formats.FORMATS, formats.KNOWN_FORMATS], ids=["computed", "known"])
def test_sizes_agree_with_the_gguf_package(table: dict[str, formats.Format]) -> None:
    for name, entry in table.items():
        if name == "fp8":  # no GGUF file holds it
            assert (entry.ggml_id, entry.block_elements, entry.block_bytes) == (None, 128, 4 + 128)
            continue
        kind = gguf.GGMLQuantizationType[name.upper()]
        assert entry.ggml_id == kind.value
        assert (entry.block_elements, entry.block_bytes) == gguf.GGML_QUANT_SIZES[kind]
        assert formats.by_ggml_id(kind.value) is entry


def test_bytes_of_shapes() -> None:
    assert formats.nbytes("f32", ()) == 4
    assert formats.nbytes("bf16", (3, 5)) == 30
    assert formats.nbytes("q4_k", (2, 3, 512)) == 2 * 3 * 2 * 144
    assert formats.row_bytes("q8_0", 64) == 68
    assert formats.FORMATS["q4_k"].bits_per_element == 4.5


def test_errors_say_what_is_possible() -> None:
    with pytest.raises(ShapeMismatchError, match=r"33 elements.*q8_0 blocks of 32"):
        formats.row_bytes("q8_0", 33)
    with pytest.raises(UnsupportedFormatError, match="'q9_9'") as caught:
        formats.find("q9_9")
    assert "q4_k" in caught.value.hint


def test_table_and_errors_need_neither_torch_nor_numpy() -> None:
    code = (
        "import sys, ktc.errors, ktc.weights.formats; "
        "print([name for name in ('torch', 'numpy', 'transformers') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
