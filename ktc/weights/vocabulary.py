"""The vocabulary of a GGUF file, checked: tokens with their types, special ids, chat templates."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import IntEnum

from ktc.errors import TokenizerError
from ktc.weights.gguf_metadata import Metadata

PREFIX = "tokenizer.ggml."
CHAT_TEMPLATE = "tokenizer.chat_template"
MAX_TEMPLATE_BYTES = 1 << 20
# Bounds for what building a tokenizer costs. Gemma 3, the largest seen, has 2 million characters in its
# tokens and 4 million in its merges.
MAX_TOKEN_LENGTH = 1 << 10
MAX_CHARACTERS = 1 << 24
MAX_SPECIAL_CHARACTERS = 1 << 20
MAX_MERGE_CHARACTERS = 1 << 26
_SPECIAL = ("bos", "eos", "eot", "eom", "unknown", "padding", "mask")


class TokenType(IntEnum):
    """What kind of token it is (llama.cpp's numbers)."""

    UNDEFINED = 0
    NORMAL = 1
    UNKNOWN = 2
    CONTROL = 3
    USER_DEFINED = 4
    UNUSED = 5
    BYTE = 6


@dataclass(frozen=True)
class Vocabulary:
    """A checked vocabulary.

    Attributes:
        tokens: the text of each id, all different. types: the type of each id.
        ids: the id of each token.
        special: ids by role: "bos", "eos", "eot", "eom", "unknown", "padding", "mask"; only those the file
            gives.
        templates: chat templates by name; "default" for the main one.
    """

    tokens: list[str]
    types: list[TokenType]
    ids: Mapping[str, int]
    special: Mapping[str, int]
    templates: Mapping[str, str] = field(default_factory=dict)

    def special_token(self, role: str) -> str | None:
        """The text of a special token, or None."""
        return self.tokens[self.special[role]] if role in self.special else None

    def of_type(self, *types: TokenType) -> list[str]:
        """The tokens of these types, in the order of their ids."""
        return [token for token, kind in zip(self.tokens, self.types, strict=True) if kind in types]


def error(metadata: Metadata, key: str, message: str, hint: str = "") -> TokenizerError:
    """An error about one key of the tokenizer."""
    return TokenizerError(f"metadata {key!r}: {message}", file=metadata.file, tensor=key, hint=hint)


def read_vocabulary(metadata: Metadata) -> Vocabulary:
    """Reads and checks tokens, types, special ids and templates.

    Raises:
        TokenizerError: an empty list, equal tokens, or lists of different lengths.
        MetadataError: a key has the wrong type, or a special id lies outside the vocabulary.
    """
    key = PREFIX + "tokens"
    tokens = metadata.texts(key)
    if not tokens:
        raise error(metadata, key, "is empty")
    tokens = [token or f"[EMPTY_{index}]" for index, token in enumerate(tokens)]  # as llama.cpp names them
    ids = {token: index for index, token in enumerate(tokens)}
    if len(ids) != len(tokens):
        twice = next(token for index, token in enumerate(tokens) if ids[token] != index)
        raise error(metadata, key, f"token {twice[:80]!r} appears twice")
    types = _types(metadata, len(tokens))
    _check_lengths(metadata, tokens, types)
    special = {}
    for role in _SPECIAL:
        role_key = f"{PREFIX}{role}_token_id"
        if role_key in metadata:
            special[role] = metadata.integer(role_key, high=len(tokens) - 1)
    return Vocabulary(tokens, types, ids, special, _templates(metadata))


def _types(metadata: Metadata, count: int) -> list[TokenType]:
    key = PREFIX + "token_type"
    if key not in metadata:
        return [TokenType.NORMAL] * count
    numbers = metadata.integers(key)
    if len(numbers) != count:
        raise error(metadata, key, f"has {len(numbers)} entries for {count} tokens")
    try:
        return [TokenType(number) for number in numbers]
    except ValueError as problem:
        raise error(metadata, key, f"holds an unknown token type ({problem})") from None


def _check_lengths(metadata: Metadata, tokens: list[str], types: list[TokenType]) -> None:
    key = PREFIX + "tokens"
    lengths = [len(token) for token in tokens]
    if max(lengths) > MAX_TOKEN_LENGTH:
        raise error(
            metadata, key, f"a token has {max(lengths)} characters; at most {MAX_TOKEN_LENGTH} are allowed"
        )
    if sum(lengths) > MAX_CHARACTERS:
        raise error(metadata, key, f"has {sum(lengths)} characters; at most {MAX_CHARACTERS} are allowed")
    matched = (TokenType.CONTROL, TokenType.UNKNOWN, TokenType.USER_DEFINED)
    special = sum(length for length, kind in zip(lengths, types, strict=True) if kind in matched)
    if special > MAX_SPECIAL_CHARACTERS:
        raise error(
            metadata,
            key,
            f"has special tokens of {special} characters; at most {MAX_SPECIAL_CHARACTERS} are allowed",
        )


def _templates(metadata: Metadata) -> dict[str, str]:
    keys = {"default": CHAT_TEMPLATE}
    if "tokenizer.chat_templates" in metadata:
        for name in metadata.texts("tokenizer.chat_templates"):
            keys.setdefault(name, f"{CHAT_TEMPLATE}.{name}")
    templates = {}
    for name, key in keys.items():
        if key in metadata:
            text = metadata.text(key)
            if len(text) > MAX_TEMPLATE_BYTES:
                raise error(
                    metadata, key, f"is {len(text)} characters long; at most {MAX_TEMPLATE_BYTES} are allowed"
                )
            templates[name] = text
    return templates
