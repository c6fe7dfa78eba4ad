"""Streamed text is what decoding everything at once gives, in whole characters."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from small_tokenizers import SAMPLE, byte_level, sentence_piece

from ktc.runtime.detokenize import Detokenizer

TEXT = st.text(st.characters(exclude_characters="\ufffd", codec="utf-8"), min_size=1, max_size=2)
BYTE_LEVEL, SENTENCE_PIECE = byte_level(), sentence_piece()


def stream(tokenizer: Any, tokens: list[int]) -> list[str]:
    detokenizer = Detokenizer(tokenizer)
    pieces = [detokenizer.push(token) for token in tokens]
    return [*pieces, detokenizer.flush()]


@settings(max_examples=200, deadline=None)
@given(st.text(max_size=40))
def test_any_text_streams_whole_characters(text: str) -> None:
    tokens = BYTE_LEVEL(text, add_special_tokens=False)["input_ids"]
    pieces = stream(BYTE_LEVEL, tokens)
    assert "".join(pieces) == text
    if "\ufffd" not in text:
        assert not any("\ufffd" in piece for piece in pieces)


@settings(max_examples=200, deadline=None)
@given(st.lists(st.integers(0, len(BYTE_LEVEL) - 1), max_size=40))
def test_any_tokens_stream_what_decoding_gives(tokens: list[int]) -> None:
    whole = BYTE_LEVEL.decode(tokens, skip_special_tokens=True)
    assert "".join(stream(BYTE_LEVEL, tokens)) == whole


@settings(max_examples=200, deadline=None)
@given(st.lists(st.one_of(st.integers(0, 8), TEXT), max_size=20))
def test_spaces_and_bytes_of_sentence_pieces(parts: list[int | str]) -> None:
    tokens: list[int] = []
    for part in parts:
        tokens += [part] if isinstance(part, int) else [9 + byte for byte in part.encode()]
    whole = SENTENCE_PIECE.decode(tokens, skip_special_tokens=True)
    pieces = stream(SENTENCE_PIECE, tokens)
    assert "".join(pieces) == whole


@pytest.mark.parametrize("text", ["\ufffdࠀ", "a\ufffd", "\ufffd\ufffdé"])
def test_real_replacement_characters(text: str) -> None:
    assert "".join(stream(SENTENCE_PIECE, [9 + byte for byte in text.encode()])) == text


def test_garbage_comes_out_before_the_end() -> None:
    byte = next(i for i in range(len(BYTE_LEVEL)) if BYTE_LEVEL.convert_ids_to_tokens(i) == "ä")
    *pieces, rest = stream(BYTE_LEVEL, [byte] * 100)
    assert "".join(pieces) + rest == "\ufffd" * 100
    assert len(rest) <= 17


@pytest.mark.parametrize("tokenizer", [BYTE_LEVEL, SENTENCE_PIECE])
def test_half_a_character_comes_out_at_the_end(tokenizer: Any) -> None:
    first = [
        i
        for i in range(len(tokenizer))
        if tokenizer.convert_ids_to_tokens(i) in ("<0xE4>", "ä")  # byte E4, each in its own spelling
    ]
    assert stream(tokenizer, first) == ["", "\ufffd"]


def test_the_window_stays_short() -> None:
    detokenizer = Detokenizer(BYTE_LEVEL)
    tokens = BYTE_LEVEL(" ".join(SAMPLE * 20), add_special_tokens=False)["input_ids"]
    longest = 0
    for token in tokens:
        detokenizer.push(token)
        longest = max(longest, len(detokenizer._window))
    assert len(tokens) > 400
    assert longest < 20
