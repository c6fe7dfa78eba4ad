"""Tokenizers from GGUF agree with plain implementations of the algorithms, special tokens included."""

from __future__ import annotations

import random
from pathlib import Path

import gguf
import pytest
from jinja2.exceptions import SecurityError
from support.gguf_files import add_tokenizer, byte_alphabet
from support.real_models import GEMMA3, SMOLLM2, real_model
from support.tokenizer_reference import byte_level_bpe, sentencepiece_bpe
from transformers import PreTrainedTokenizerBase

from ktc.weights.gguf_source import GgufSource
from ktc.weights.opening import open_source
from ktc.weights.pretokenizers import KINDS
from ktc.weights.vocabulary import TokenType, read_vocabulary

SPACE = "\u2581"
TEXTS = [
    "Hello, world!",
    "  two  spaces   three    four",
    "日本語のテキスト 漢字",
    "café naïve é ﬀ a\u0301",
    "👩\u200d👩\u200d👧 family 🇩🇪 𝔘𝔫𝔦 𒀀",
    "tab\tnew\nline\r\n\r\n x\n\n\n y",
    "1234567890 3.14 1,000",
    "don't WON'T I'LL they've",
    "العربية עברית हिन्दी ไทย 한국어",
    "\u200b zero\u00a0width",
    "",
    " ",
    "def f(x):\n    return x**2  # c\n\t\ty",
    "<|im_start|>user\nthe theatre<|im_end|>",
    "http://a.b/c?d=e&f=g_h-i ALLCAPS camelCase … — “quoted”",
]


def random_texts(count: int) -> list[str]:
    chance = random.Random(0)
    ranges = [(32, 127), (32, 127), (0xA0, 0x250), (0x370, 0x460), (0x4E00, 0x4E40), (0x1F600, 0x1F610)]
    pool = [chr(c) for low, high in ranges for c in range(low, high)] + list("\t\n\r   \u200d\ufe0f") * 4
    return ["".join(chance.choice(pool) for _ in range(chance.randint(1, 30))) for _ in range(count)]


def ids(tokenizer: PreTrainedTokenizerBase, text: str) -> list[int]:
    found: list[int] = tokenizer(text, add_special_tokens=False).input_ids
    return found


def source_with(path: Path, add: object, **flags: bool) -> GgufSource:
    writer = gguf.GGUFWriter(path, "llama")
    add(writer)  # type: ignore[operator]
    for name, flag in flags.items():
        writer.add_bool(f"tokenizer.ggml.{name}", flag)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.close()
    source = open_source(path)
    assert isinstance(source, GgufSource)
    return source


@pytest.mark.parametrize("pre", list(KINDS))
def test_byte_level_bpe_of_every_kind(pre: str, tmp_path: Path) -> None:
    source = source_with(tmp_path / "t.gguf", lambda w: add_tokenizer(w, 512, pre))
    tokenizer = source.tokenizer()
    assert tokenizer is not None
    vocabulary = read_vocabulary(source.metadata)
    special = vocabulary.of_type(TokenType.CONTROL)
    merges = source.metadata.texts("tokenizer.ggml.merges")
    kind = KINDS[pre]
    for text in TEXTS + random_texts(40):
        expected = byte_level_bpe(text, vocabulary.ids, merges, kind.patterns, special, kind.ignore_merges)
        assert ids(tokenizer, text) == expected, repr(text)
        assert tokenizer.decode(expected) == text


def pieces() -> tuple[list[str], list[float], list[int]]:
    """A SentencePiece vocabulary: three control tokens, bytes, letters, and pieces with falling scores."""
    tokens = ["<unk>", "<s>", "</s>", *(f"<0x{b:02X}>" for b in range(256))]
    types = [2, 3, 3] + [6] * 256
    letters = [SPACE, *"abcdefghijklmnopqrstuvwxyz"]
    words = [SPACE + "t", "he", SPACE + "the", "er", "in", "ing", "ou", SPACE + "a", "at", "re", "on", "en"]
    words += ["th", "the", "ee", SPACE * 2, SPACE * 4, "ab", "abc", "bc"]
    tokens += words + letters + ["<tag>"]
    types += [1] * (len(words) + len(letters)) + [4]
    scores = [0.0] * 259 + [-float(n) for n in range(len(words) + len(letters))] + [0.0]
    return tokens, scores, types


def add_pieces(writer: gguf.GGUFWriter) -> None:
    tokens, scores, types = pieces()
    writer.add_tokenizer_model("llama")
    writer.add_token_list(tokens)
    writer.add_token_scores(scores)
    writer.add_token_types(types)
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    writer.add_unk_token_id(0)


@pytest.mark.parametrize("prefix", [False, True])
def test_sentencepiece_bpe(prefix: bool, tmp_path: Path) -> None:
    source = source_with(tmp_path / "t.gguf", add_pieces, add_space_prefix=prefix)
    tokenizer = source.tokenizer()
    assert tokenizer is not None
    tokens, scores, _ = pieces()
    vocabulary = read_vocabulary(source.metadata)
    texts = [
        *TEXTS,
        "the the there eee abcbcab",
        "   spaces",
        "x<tag>the<tag> y",
        "</s>the",
        *random_texts(40),
    ]
    for text in texts:
        expected = sentencepiece_bpe(
            text, vocabulary.ids, scores, ["<unk>", "<s>", "</s>", "<tag>"], space_prefix=prefix
        )
        assert ids(tokenizer, text) == expected, repr(text)
        if "<tag>" not in text and "</s>" not in text:
            assert tokenizer.decode(expected) == text
    assert len(tokens) == len(tokenizer)


def test_bos_and_eos_follow_the_file(tmp_path: Path) -> None:
    def encoded(**flags: bool) -> list[int]:
        tokenizer = source_with(tmp_path / "t.gguf", add_pieces, add_space_prefix=False, **flags).tokenizer()
        assert tokenizer is not None
        found: list[int] = tokenizer("the").input_ids
        return found

    (middle,) = encoded(add_bos_token=False)
    assert encoded() == [1, middle]  # SentencePiece's default
    assert encoded(add_bos_token=True, add_eos_token=True) == [1, middle, 2]
    assert encoded(add_bos_token=False, add_eos_token=True) == [middle, 2]


def test_special_tokens_and_named_templates(tmp_path: Path) -> None:
    def add(writer: gguf.GGUFWriter) -> None:
        add_tokenizer(writer, 512)
        writer.add_bos_token_id(256)
        writer.add_eos_token_id(257)
        writer.add_eot_token_id(258)
        writer.add_pad_token_id(256)
        writer.add_context_length(77)
        writer.add_array("tokenizer.chat_templates", ["tool_use"])
        writer.add_string("tokenizer.chat_template.tool_use", "tools: {{ messages[0]['content'] }}")

    tokenizer = source_with(tmp_path / "t.gguf", add).tokenizer()
    assert tokenizer is not None
    assert (tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.pad_token_id) == (256, 257, 256)
    assert tokenizer.eot_token == "<|im_end|>" and tokenizer.eot_token_id == 258
    assert tokenizer.model_max_length == 77 and tokenizer.padding_side == "left"
    assert tokenizer.decode([257, *ids(tokenizer, "hi")], skip_special_tokens=True) == "hi"
    messages = [{"role": "user", "content": "hi"}]
    rendered = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    assert rendered == "<|im_start|>user\nhi<|im_end|>\n<|im_start|>assistant\n"
    assert tokenizer.apply_chat_template(messages, chat_template="tool_use", tokenize=False) == "tools: hi"


def test_template_runs_in_a_sandbox(tmp_path: Path) -> None:
    def add(writer: gguf.GGUFWriter) -> None:
        add_pieces(writer)
        writer.add_chat_template("{{ ''.__class__.__mro__[1].__subclasses__() }}")

    tokenizer = source_with(tmp_path / "t.gguf", add).tokenizer()
    assert tokenizer is not None
    with pytest.raises(SecurityError):
        tokenizer.apply_chat_template([{"role": "user", "content": "x"}], tokenize=False)


def test_saved_tokenizer_is_the_same(tmp_path: Path) -> None:
    from transformers import AutoTokenizer

    tokenizer = source_with(tmp_path / "t.gguf", lambda w: add_tokenizer(w, 512, "llama-bpe")).tokenizer()
    assert tokenizer is not None
    tokenizer.save_pretrained(tmp_path / "saved")
    again = AutoTokenizer.from_pretrained(tmp_path / "saved", local_files_only=True)
    for text in TEXTS:
        assert again(text).input_ids == tokenizer(text).input_ids
    assert again.chat_template == tokenizer.chat_template


@pytest.mark.models
def test_smollm2(tmp_path: Path) -> None:
    source = open_source(real_model(SMOLLM2))
    assert isinstance(source, GgufSource)
    tokenizer, vocabulary = source.tokenizer(), read_vocabulary(source.metadata)
    assert tokenizer is not None
    merges = source.metadata.texts("tokenizer.ggml.merges")
    absent = {byte for byte, letter in enumerate(byte_alphabet()) if letter not in vocabulary.ids}
    for text in TEXTS + random_texts(100):
        expected = byte_level_bpe(
            text, vocabulary.ids, merges, KINDS["smollm"].patterns, vocabulary.of_type(TokenType.CONTROL)
        )
        assert ids(tokenizer, text) == expected, repr(text)
        if not absent & set(text.encode()):
            assert tokenizer.decode(expected) == text
    rendered = tokenizer.apply_chat_template(
        [{"role": "user", "content": "hi"}], tokenize=False, add_generation_prompt=True
    )
    assert rendered == (
        "<|im_start|>system\nYou are a helpful AI assistant named SmolLM, trained by Hugging Face<|im_end|>\n"
        "<|im_start|>user\nhi<|im_end|>\n<|im_start|>assistant\n"
    )
    assert ids(tokenizer, rendered)[:3] == [1, 9690, 198]
    assert (tokenizer.eos_token_id, tokenizer.pad_token_id) == (2, 2)


@pytest.mark.models
def test_gemma3() -> None:
    source = open_source(real_model(GEMMA3))
    assert isinstance(source, GgufSource)
    tokenizer, vocabulary = source.tokenizer(), read_vocabulary(source.metadata)
    assert tokenizer is not None
    scores = source.metadata.numbers("tokenizer.ggml.scores").tolist()
    special = vocabulary.of_type(TokenType.CONTROL, TokenType.USER_DEFINED, TokenType.UNKNOWN)
    for text in TEXTS + random_texts(100):
        expected = sentencepiece_bpe(text, vocabulary.ids, scores, special)
        assert ids(tokenizer, text) == expected, repr(text)
        assert tokenizer.decode(expected) == text
    assert tokenizer("The capital of France is").input_ids == [2, 818, 5279, 529, 7001, 563]
