"""Turns tokens into text as they come, never emitting half a character."""

from __future__ import annotations

from typing import Any

from transformers import PreTrainedTokenizerBase

_REPLACEMENT = "\ufffd"
_LONGEST_TAIL = 3  # a UTF-8 character has 4 bytes: at most 3 can wait for the rest
_PATIENCE = 16  # replacement characters in a row that are surely no half characters any more


class Detokenizer:
    """Incremental decoding; the pieces joined are what the tokenizer makes of all tokens at once.

    A token can be part of a character, and its text can depend on its neighbours (leading spaces). So each
    piece is the difference between the decoded texts of a short window of tokens without and with the new
    one, and replacement characters at the end wait until the next token shows whether they were half a
    character.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        self._tokenizer = tokenizer
        self._window: list[int] = []
        self._clean = 0  # tokens of the window up to the last whole character
        self._emitted = ""  # text of the window that is out already

    def push(self, token: int) -> str:
        """The text that became certain with `token`, maybe none."""
        self._window.append(token)
        text = self._decode(self._window)
        stable = text.rstrip(_REPLACEMENT)
        if len(text) - len(stable) > _PATIENCE:
            stable = text[:-_LONGEST_TAIL]
        if not stable.startswith(self._emitted):
            return ""
        piece = stable[len(self._emitted) :]
        self._emitted = stable
        if stable == text:
            self._advance()
        return piece

    def flush(self) -> str:
        """What still waited for more tokens; call it after the last one."""
        text = self._decode(self._window) if self._window else ""
        piece = text[len(self._emitted) :]
        self._window, self._clean, self._emitted = [], 0, ""
        return piece

    def _advance(self) -> None:
        """Drops tokens before the last piece, so that the window stays short."""
        tail = self._window[self._clean :]
        text = self._decode(tail)
        if text and not text.startswith(_REPLACEMENT):
            self._window, self._emitted = tail, text
        self._clean = len(self._window)

    def _decode(self, tokens: list[int]) -> str:
        text: Any = self._tokenizer.decode(
            tokens, skip_special_tokens=True, clean_up_tokenization_spaces=False
        )
        return str(text)
