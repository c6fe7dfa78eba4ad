"""How each kind of byte-level BPE cuts text before merging: the `tokenizer.ggml.pre` names of llama.cpp.

A kind is a sequence of regular expressions; each cuts the pieces left by the one before, matches and gaps
alike staying as pieces. The expressions are those of the models' own tokenizer.json files.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import NamedTuple

_CONTRACTIONS = r"'s|'t|'re|'ve|'m|'ll|'d"
_GPT2 = rf"{_CONTRACTIONS}| ?\p{{L}}+| ?\p{{N}}+| ?[^\s\p{{L}}\p{{N}}]+|\s+(?!\S)|\s+"
_SPACES = r"\s*[\r\n]+|\s+(?!\S)|\s+"
_LLAMA3 = (
    rf"(?i:{_CONTRACTIONS})|[^\r\n\p{{L}}\p{{N}}]?\p{{L}}+|\p{{N}}{{1,3}}"
    rf"| ?[^\s\p{{L}}\p{{N}}]+[\r\n]*|{_SPACES}"
)
_QWEN2 = (
    rf"(?i:{_CONTRACTIONS})|[^\r\n\p{{L}}\p{{N}}]?\p{{L}}+|\p{{N}}| ?[^\s\p{{L}}\p{{N}}]+[\r\n]*|{_SPACES}"
)
_UPPER, _LOWER = r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]", r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]"
_TEKKEN = (
    rf"[^\r\n\p{{L}}\p{{N}}]?{_UPPER}*{_LOWER}+|[^\r\n\p{{L}}\p{{N}}]?{_UPPER}+{_LOWER}*|\p{{N}}"
    rf"| ?[^\s\p{{L}}\p{{N}}]+[\r\n/]*|{_SPACES}"
)
_GPT4O = (
    rf"[^\r\n\p{{L}}\p{{N}}]?{_UPPER}*{_LOWER}+(?i:{_CONTRACTIONS})?"
    rf"|[^\r\n\p{{L}}\p{{N}}]?{_UPPER}+{_LOWER}*(?i:{_CONTRACTIONS})?"
    rf"|\p{{N}}{{1,3}}| ?[^\s\p{{L}}\p{{N}}]+[\r\n/]*|{_SPACES}"
)
_DEEPSEEK3 = (
    r"\p{N}{1,3}",
    r"[一-龥぀-ゟ゠-ヿ]+",
    r"[!\"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~][A-Za-z]+|[^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+"
    rf"| ?[\p{{P}}\p{{S}}]+[\r\n]*|{_SPACES}",
)


class Kind(NamedTuple):
    """One way to cut text.

    Attributes:
        patterns: regular expressions, applied one after the other.
        add_bos: whether a beginning-of-text token is added when the file does not say.
        ignore_merges: whether a piece that is a token is taken as it is, without merging.
    """

    patterns: tuple[str, ...]
    add_bos: bool = False
    ignore_merges: bool = False


_DIGITS_GPT2 = Kind((r"\p{N}", _GPT2))
_KIND_LLAMA3 = Kind((_LLAMA3,), add_bos=True, ignore_merges=True)
_KIND_GPT2 = Kind((_GPT2,))

KINDS: Mapping[str, Kind] = MappingProxyType(
    {
        "default": Kind((r"[\p{P}\$\+<=>\^~\|]+", _GPT2, r"\p{N}+", "[0-9][0-9][0-9]")),
        "gpt-2": _KIND_GPT2,
        "phi-2": _KIND_GPT2,
        "olmo": _KIND_GPT2,
        "smollm": _DIGITS_GPT2,
        "starcoder": _DIGITS_GPT2,
        "refact": _DIGITS_GPT2,
        "command-r": _DIGITS_GPT2,
        "llama-bpe": _KIND_LLAMA3,
        "llama3": _KIND_LLAMA3,
        "llama-v3": _KIND_LLAMA3,
        "smaug-bpe": Kind((_LLAMA3,)),
        "glm4": Kind((_LLAMA3,)),
        "chatglm-bpe": Kind((_LLAMA3,)),
        "qwen2": Kind((_QWEN2,)),
        "deepseek-r1-qwen": Kind((_QWEN2,)),
        "deepseek-v3": Kind(_DEEPSEEK3),
        "tekken": Kind((_TEKKEN,), add_bos=True, ignore_merges=True),
        "gpt-4o": Kind((_GPT4O,)),
    }
)
"""By `tokenizer.ggml.pre`."""
