"""Well-formed GGUF files whose contents make no model: wrong hyperparameters, tokenizers, splits."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from support.gguf_bytes import (
    ARRAY,
    BOOL,
    FLOAT32,
    INT32,
    STRING,
    UINT32,
    array,
    gguf_bytes,
    pair,
    tensor,
)

from ktc.errors import GgufError, MetadataError, TokenizerError, UnsupportedModelError, WeightError
from ktc.weights import vocabulary
from ktc.weights.opening import open_source
from ktc.weights.source import WeightSource

Pairs = dict[str, tuple[int, Any]]

HYPER: Pairs = {
    "general.architecture": (STRING, "llama"),
    "llama.block_count": (UINT32, 1),
    "llama.context_length": (UINT32, 64),
    "llama.embedding_length": (UINT32, 8),
    "llama.feed_forward_length": (UINT32, 16),
    "llama.attention.head_count": (UINT32, 2),
    "llama.attention.layer_norm_rms_epsilon": (FLOAT32, 1e-5),
    "llama.vocab_size": (UINT32, 4),
}
ALPHABET = ["a", "b", "ab", "<s>"]
TOKENIZER: Pairs = {
    "tokenizer.ggml.model": (STRING, "gpt2"),
    "tokenizer.ggml.pre": (STRING, "qwen2"),
    "tokenizer.ggml.tokens": (ARRAY, (STRING, ALPHABET)),
    "tokenizer.ggml.token_type": (ARRAY, (INT32, [1, 1, 1, 3])),
    "tokenizer.ggml.merges": (ARRAY, (STRING, ["a b"])),
    "tokenizer.ggml.bos_token_id": (UINT32, 3),
}


def encoded(pairs: Pairs) -> list[bytes]:
    return [
        array(key, *content) if kind == ARRAY else pair(key, kind, content)
        for key, (kind, content) in pairs.items()
    ]


@pytest.fixture
def source(tmp_path: Path) -> Callable[[Pairs], WeightSource]:
    """Opens a file with the valid metadata changed; a value of None leaves a key out."""

    def opened(changes: dict[str, Any]) -> WeightSource:
        pairs = {**HYPER, **TOKENIZER, **changes}
        content = gguf_bytes(
            encoded({key: content for key, content in pairs.items() if content is not None}),
            [tensor("token_embd.weight", [8, 4]), tensor("blk.0.attn_norm.weight", [8], 0, 128)],
            bytes(160),
        )
        path = tmp_path / "m.gguf"
        path.write_bytes(content)
        return open_source(path)

    return opened


def test_unchanged_metadata_are_valid(source: Any) -> None:
    opened = source({})
    config = opened.config()
    assert (config.hidden_size, config.num_hidden_layers, config.vocab_size) == (8, 1, 4)
    assert opened.tokenizer()("abba").input_ids == [2, 1, 0]


BAD_HYPER: dict[str, tuple[dict[str, Any], type[WeightError], str]] = {
    "unknown architecture": (
        {"general.architecture": (STRING, "mamba")},
        UnsupportedModelError,
        "'mamba' is not supported",
    ),
    "no architecture": ({"general.architecture": None}, MetadataError, "is missing"),
    "architecture is a number": ({"general.architecture": (UINT32, 1)}, MetadataError, "expected a string"),
    "no layers": ({"llama.block_count": (UINT32, 0)}, MetadataError, "is 0, outside 1 to"),
    "more layers than tensors": (
        {"llama.block_count": (UINT32, 2**31 - 1)},
        MetadataError,
        "outside 1 to 2",
    ),
    "layers as text": ({"llama.block_count": (STRING, "1")}, MetadataError, "expected an integer"),
    "no hidden size": ({"llama.embedding_length": None}, MetadataError, "is missing"),
    "hidden size 0": ({"llama.embedding_length": (UINT32, 0)}, MetadataError, "outside"),
    "hidden size huge": ({"llama.embedding_length": (UINT32, 2**31)}, MetadataError, "outside"),
    "negative heads": ({"llama.attention.head_count": (INT32, -2)}, MetadataError, "is -2"),
    "heads that do not divide": (
        {"llama.attention.head_count": (UINT32, 3)},
        MetadataError,
        "does not divide",
    ),
    "key heads that do not divide": (
        {"llama.attention.head_count_kv": (UINT32, 3)},
        MetadataError,
        "does not divide",
    ),
    "heads differ between layers": (
        {"llama.attention.head_count": (ARRAY, (UINT32, [2, 1]))},
        UnsupportedModelError,
        "differs between layers",
    ),
    "epsilon nan": (
        {"llama.attention.layer_norm_rms_epsilon": (FLOAT32, float("nan"))},
        MetadataError,
        "is nan",
    ),
    "epsilon negative": (
        {"llama.attention.layer_norm_rms_epsilon": (FLOAT32, -1.0)},
        MetadataError,
        "above 0",
    ),
    "rope base": ({"llama.rope.freq_base": (FLOAT32, 0.0)}, MetadataError, "above 0"),
    "partial rope": ({"llama.rope.dimension_count": (UINT32, 2)}, UnsupportedModelError, "a head has 4"),
    "rope scaling": (
        {"llama.rope.scaling.type": (STRING, "spiral")},
        UnsupportedModelError,
        "none, linear and yarn",
    ),
    "attention scale": (
        {"llama.attention.scale": (FLOAT32, 0.5)},
        UnsupportedModelError,
        "cannot express",
    ),
    "experts": (
        {"llama.expert_count": (UINT32, 2), "llama.expert_used_count": (UINT32, 3)},
        MetadataError,
        "is 3 of 2 experts",
    ),
    "bos beyond the vocabulary": ({"tokenizer.ggml.bos_token_id": (UINT32, 4)}, MetadataError, "outside"),
}


@pytest.mark.parametrize("name", BAD_HYPER)
def test_bad_hyperparameters(name: str, source: Any) -> None:
    changes, kind, words = BAD_HYPER[name]
    with pytest.raises(kind, match=words) as caught:
        source(changes).config()
    assert "m.gguf" in str(caught.value)


BAD_TOKENIZER: dict[str, tuple[dict[str, Any], type[WeightError], str]] = {
    "kind": ({"tokenizer.ggml.model": (STRING, "rwkv")}, TokenizerError, "gpt2, llama"),
    "kind is a number": ({"tokenizer.ggml.model": (UINT32, 1)}, MetadataError, "expected a string"),
    "pre": ({"tokenizer.ggml.pre": (STRING, "nonsense")}, TokenizerError, "unknown way to cut"),
    "tokens are numbers": (
        {"tokenizer.ggml.tokens": (ARRAY, (UINT32, [1, 2]))},
        MetadataError,
        "array of strings",
    ),
    "tokens are one string": ({"tokenizer.ggml.tokens": (STRING, "a b")}, MetadataError, "array of strings"),
    "no tokens": ({"tokenizer.ggml.tokens": (ARRAY, (STRING, []))}, TokenizerError, "is empty"),
    "equal tokens": (
        {"tokenizer.ggml.tokens": (ARRAY, (STRING, ["a", "b", "a", "<s>"]))},
        TokenizerError,
        "'a' appears twice",
    ),
    "long token": (
        {"tokenizer.ggml.tokens": (ARRAY, (STRING, ["a", "b", "ab", "s" * 1025]))},
        TokenizerError,
        "1025 characters",
    ),
    "few types": ({"tokenizer.ggml.token_type": (ARRAY, (INT32, [1]))}, TokenizerError, "1 entries for 4"),
    "types are floats": (
        {"tokenizer.ggml.token_type": (ARRAY, (FLOAT32, [1.0] * 4))},
        MetadataError,
        "array of integers",
    ),
    "unknown type": (
        {"tokenizer.ggml.token_type": (ARRAY, (INT32, [1, 1, 1, 9]))},
        TokenizerError,
        "unknown token type",
    ),
    "no merges": ({"tokenizer.ggml.merges": None}, MetadataError, "is missing"),
    "merge of one token": (
        {"tokenizer.ggml.merges": (ARRAY, (STRING, ["ab"]))},
        TokenizerError,
        "not two tokens",
    ),
    "merge of unknown tokens": (
        {"tokenizer.ggml.merges": (ARRAY, (STRING, ["a c"]))},
        TokenizerError,
        "'c', which does not exist",
    ),
    "merge into an unknown token": (
        {"tokenizer.ggml.merges": (ARRAY, (STRING, ["b a"]))},
        TokenizerError,
        "'ba', which does not exist",
    ),
    "bos is text": ({"tokenizer.ggml.bos_token_id": (STRING, "3")}, MetadataError, "expected an integer"),
    "bos wanted but not named": (
        {"tokenizer.ggml.bos_token_id": None, "tokenizer.ggml.add_bos_token": (BOOL, 1)},
        TokenizerError,
        "names no bos",
    ),
    "add_bos is a number": ({"tokenizer.ggml.add_bos_token": (UINT32, 1)}, MetadataError, "expected a bool"),
    "template is a list": (
        {"tokenizer.chat_template": (ARRAY, (STRING, ["x"]))},
        MetadataError,
        "expected a string",
    ),
    "template is huge": (
        {"tokenizer.chat_template": (STRING, "x" * ((1 << 20) + 1))},
        TokenizerError,
        "characters long",
    ),
    "no scores": ({"tokenizer.ggml.model": (STRING, "llama")}, MetadataError, "is missing"),
    "few scores": (
        {"tokenizer.ggml.model": (STRING, "llama"), "tokenizer.ggml.scores": (ARRAY, (FLOAT32, [0.0]))},
        TokenizerError,
        "1 entries for 4",
    ),
    "neither bytes nor unknown": (
        {"tokenizer.ggml.model": (STRING, "llama"), "tokenizer.ggml.scores": (ARRAY, (FLOAT32, [0.0] * 4))},
        TokenizerError,
        "neither all byte tokens",
    ),
}


@pytest.mark.parametrize("name", BAD_TOKENIZER)
def test_bad_tokenizer(name: str, source: Any) -> None:
    changes, kind, words = BAD_TOKENIZER[name]
    with pytest.raises(kind, match=words) as caught:
        source(changes).tokenizer()
    assert "m.gguf" in str(caught.value)


def test_empty_tokens_are_placeholders(source: Any) -> None:
    tokenizer = source(
        {
            "tokenizer.ggml.tokens": (ARRAY, (STRING, ["a", "", "", "<s>"])),
            "tokenizer.ggml.merges": (ARRAY, (STRING, [])),
        }
    ).tokenizer()
    assert tokenizer.convert_ids_to_tokens([0, 1, 2]) == ["a", "[EMPTY_1]", "[EMPTY_2]"]


def test_huge_vocabularies_are_refused(source: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(vocabulary, "MAX_CHARACTERS", 6)
    with pytest.raises(TokenizerError, match="has 7 characters; at most 6"):
        source({}).tokenizer()
    monkeypatch.setattr(vocabulary, "MAX_CHARACTERS", 7)
    monkeypatch.setattr(vocabulary, "MAX_SPECIAL_CHARACTERS", 2)
    with pytest.raises(TokenizerError, match="special tokens of 3 characters"):
        source({}).tokenizer()


def test_vocabulary_with_too_many_merges_is_refused(source: Any) -> None:
    """Runs of a letter: every way to cut one is a merge, so 600 tokens of 10 letters make 1.8 million."""
    tokens = [letter * length for letter in "abcdefghij" for length in range(1, 601)]
    changes = {
        "tokenizer.ggml.model": (STRING, "llama"),
        "tokenizer.ggml.tokens": (ARRAY, (STRING, [*tokens, "<unk>"])),
        "tokenizer.ggml.token_type": (ARRAY, (INT32, [*[1] * len(tokens), 2])),
        "tokenizer.ggml.scores": (ARRAY, (FLOAT32, [0.0] * (len(tokens) + 1))),
        "tokenizer.ggml.unknown_token_id": (UINT32, len(tokens)),
    }
    with pytest.raises(TokenizerError, match="characters of merges"):
        source(changes).tokenizer()


def test_no_tokenizer_is_none(source: Any) -> None:
    assert source({"tokenizer.ggml.model": (STRING, "no_vocab")}).tokenizer() is None
    assert source({"tokenizer.ggml.model": None}).tokenizer() is None


def part(number: int, count: int, name: str, **more: Any) -> bytes:
    pairs = {
        "split.no": (UINT32, number),
        "split.count": (UINT32, count),
        "split.tensors.count": (INT32, 2),
        **({"general.architecture": (STRING, "llama")} if number == 0 else {}),
        **more,
    }
    return gguf_bytes(encoded(pairs), [tensor(name, [8])], bytes(32))


def write_parts(folder: Path, *contents: bytes) -> Path:
    paths = [folder / f"m-{i:05d}-of-{len(contents):05d}.gguf" for i in range(1, len(contents) + 1)]
    for path, content in zip(paths, contents, strict=True):
        path.write_bytes(content)
    return paths[0]


def test_split_parts_that_do_not_belong_together(tmp_path: Path) -> None:
    cases = {
        "one of 3 parts, but 2": (part(0, 3, "a"), part(1, 3, "b")),
        "says it is part 1, its name says 2": (part(0, 2, "a"), part(0, 2, "b")),
        "tensor 'a' is in": (part(0, 2, "a"), part(1, 2, "a")),
        "another architecture": (
            part(0, 2, "a"),
            part(1, 2, "b", **{"general.architecture": (STRING, "qwen2")}),
        ),
        "2 tensors; 5 were announced": (
            part(0, 2, "a", **{"split.tensors.count": (INT32, 5)}),
            part(1, 2, "b"),
        ),
    }
    for words, contents in cases.items():
        with pytest.raises(GgufError, match=words):
            open_source(write_parts(tmp_path, *contents))
    assert set(open_source(write_parts(tmp_path, part(0, 2, "a"), part(1, 2, "b"))).headers()) == {"a", "b"}


def test_part_without_its_name(tmp_path: Path) -> None:
    path = tmp_path / "renamed.gguf"
    path.write_bytes(part(0, 2, "a"))
    with pytest.raises(GgufError, match="one of 2 parts, but 1") as caught:
        open_source(path)
    assert "-00001-of-" in caught.value.hint
