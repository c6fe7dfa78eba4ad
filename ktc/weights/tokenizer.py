"""The tokenizer of a GGUF model as a fast Hugging Face tokenizer: byte-level BPE and SentencePiece BPE.

The chat template is stored, not run; transformers renders it in its sandboxed Jinja environment.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from tokenizers import (
    AddedToken,
    Regex,
    Tokenizer,
    decoders,
    models,
    normalizers,
    pre_tokenizers,
    processors,
)

from ktc.errors import WeightError
from ktc.weights.gguf_metadata import Metadata
from ktc.weights.pretokenizers import KINDS
from ktc.weights.vocabulary import (
    MAX_MERGE_CHARACTERS,
    PREFIX,
    TokenType,
    Vocabulary,
    error,
    read_vocabulary,
)

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_SPACE = "\u2581"  # SentencePiece's visible space
_MODELS = ("gpt2", "llama")


def tokenizer_of(metadata: Metadata) -> PreTrainedTokenizerBase | None:
    """Builds the tokenizer, with special tokens, bos/eos rule and chat template set.

    Raises:
        TokenizerError: an unknown kind, or lists that contradict each other.
        MetadataError: a key has the wrong type.
    """
    key = PREFIX + "model"
    if key not in metadata or metadata.text(key) in ("none", "no_vocab"):
        return None
    kind = metadata.text(key)
    if kind not in _MODELS:
        raise error(metadata, key, f"is {kind!r}", f"ktc builds tokenizers of the kinds {', '.join(_MODELS)}")
    vocabulary = read_vocabulary(metadata)
    try:
        build = _byte_level_bpe if kind == "gpt2" else _sentencepiece_bpe
        tokenizer = build(metadata, vocabulary)
        _add_special_tokens(tokenizer, vocabulary)
    except WeightError:
        raise
    except Exception as problem:  # the tokenizers library raises bare Exception for contradicting lists
        raise error(metadata, PREFIX + "tokens", f"no tokenizer can be built: {problem}") from problem
    return _wrap(metadata, vocabulary, tokenizer)


def _byte_level_bpe(metadata: Metadata, vocabulary: Vocabulary) -> Tokenizer:
    """GPT-2's BPE over bytes written as printable characters."""
    key = PREFIX + "pre"
    name = metadata.text(key, "default")
    kind = KINDS.get(name)
    if kind is None:
        raise error(
            metadata, key, f"is {name!r}, an unknown way to cut text", f"ktc knows {', '.join(KINDS)}"
        )
    model = models.BPE(
        vocab=dict(vocabulary.ids),
        merges=_merges(metadata, vocabulary),
        ignore_merges=kind.ignore_merges,
        fuse_unk=False,
        byte_fallback=False,
    )
    tokenizer = Tokenizer(model)
    cuts: list[pre_tokenizers.PreTokenizer] = [
        pre_tokenizers.Split(Regex(pattern), behavior="isolated") for pattern in kind.patterns
    ]
    cuts.append(pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(cuts)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.post_processor = _post_processor(metadata, vocabulary, default_bos=kind.add_bos)
    return tokenizer


def _merges(metadata: Metadata, vocabulary: Vocabulary) -> list[tuple[str, str]]:
    """The merge rules in order; each must lead from tokens to a token."""
    key = PREFIX + "merges"
    merges = []
    for rule in metadata.texts(key):
        middle = rule.find(" ", 1)
        left, right = rule[:middle], rule[middle + 1 :]
        if middle < 0 or not right:
            raise error(metadata, key, f"{rule[:80]!r} is not two tokens with a space between")
        for token in (left, right, left + right):
            if token not in vocabulary.ids:
                raise error(
                    metadata, key, f"rule {rule[:80]!r} needs the token {token[:80]!r}, which does not exist"
                )
        merges.append((left, right))
    return merges


def _sentencepiece_bpe(metadata: Metadata, vocabulary: Vocabulary) -> Tokenizer:
    """SentencePiece's BPE: the merge that makes the token of the highest score comes first; unknown text as
    bytes.
    """
    key = PREFIX + "scores"
    scores = metadata.numbers(key).tolist()
    if len(scores) != len(vocabulary.tokens):
        raise error(metadata, key, f"has {len(scores)} entries for {len(vocabulary.tokens)} tokens")
    bytes_known = all(f"<0x{byte:02X}>" in vocabulary.ids for byte in range(256))
    unknown = vocabulary.special_token("unknown")
    if not bytes_known and unknown is None:
        raise error(metadata, PREFIX + "tokens", "has neither all byte tokens nor an unknown token")
    model = models.BPE(
        vocab=dict(vocabulary.ids),
        merges=score_merges(metadata, vocabulary, scores),
        unk_token=unknown,
        fuse_unk=True,
        byte_fallback=bytes_known,
    )
    tokenizer = Tokenizer(model)
    prefix = metadata.flag(PREFIX + "add_space_prefix", True)
    steps: list[normalizers.Normalizer] = [normalizers.Prepend(_SPACE)] if prefix else []
    tokenizer.normalizer = normalizers.Sequence([*steps, normalizers.Replace(" ", _SPACE)])
    decoding: list[decoders.Decoder] = [
        decoders.Replace(_SPACE, " "),
        decoders.ByteFallback(),
        decoders.Fuse(),
    ]
    if prefix:
        decoding.append(decoders.Strip(" ", 1, 0))
    tokenizer.decoder = decoders.Sequence(decoding)
    tokenizer.post_processor = _post_processor(metadata, vocabulary, default_bos=True)
    return tokenizer


def score_merges(metadata: Metadata, vocabulary: Vocabulary, scores: list[float]) -> list[tuple[str, str]]:
    """Every way to make a token from two others, the best score first, ties in the order of ids.

    SentencePiece has no merge list: it joins whichever neighbours make the known token of the highest score.
    As a list of pairs this is the same order, because the score belongs to the result alone.
    """
    mergeable = {
        token: index
        for token, index in vocabulary.ids.items()
        if vocabulary.types[index] in (TokenType.NORMAL, TokenType.USER_DEFINED, TokenType.UNUSED)
    }
    merges = []
    characters = 0
    for token in sorted(mergeable, key=lambda token: (-scores[mergeable[token]], mergeable[token])):
        for middle in range(1, len(token)):
            left, right = token[:middle], token[middle:]
            if left in mergeable and right in mergeable:
                merges.append((left, right))
                characters += len(token)
        if characters > MAX_MERGE_CHARACTERS:
            raise error(metadata, PREFIX + "tokens", f"more than {MAX_MERGE_CHARACTERS} characters of merges")
    return merges


def _add_special_tokens(tokenizer: Tokenizer, vocabulary: Vocabulary) -> None:
    """Control tokens are matched in the text and hidden when decoding without specials; user-defined are
    matched.
    """
    control = vocabulary.of_type(TokenType.CONTROL, TokenType.UNKNOWN)
    user = vocabulary.of_type(TokenType.USER_DEFINED)
    tokenizer.add_special_tokens([AddedToken(token, normalized=False, special=True) for token in control])
    tokenizer.add_tokens([AddedToken(token, normalized=False, special=False) for token in user])


def _post_processor(
    metadata: Metadata, vocabulary: Vocabulary, *, default_bos: bool
) -> processors.TemplateProcessing:
    """Puts bos before and eos after the text when the file, or the kind's default, says so."""
    used = []
    parts = {"bos": "", "eos": ""}
    for role, default in (("bos", default_bos), ("eos", False)):
        key = f"{PREFIX}add_{role}_token"
        wanted = metadata.flag(key, default)
        if wanted and role not in vocabulary.special:
            if key in metadata:
                raise error(metadata, key, f"is true, but the file names no {role} token")
            wanted = False
        if wanted:
            token = vocabulary.tokens[vocabulary.special[role]]
            used.append((role, vocabulary.special[role], token))
            parts[role] = role
    single = [part for part in (parts["bos"], "$A", parts["eos"]) if part]
    second = [f"{part}:1" for part in (parts["bos"], "$B", parts["eos"]) if part]
    special = [{"id": role, "ids": [index], "tokens": [token]} for role, index, token in used]
    return processors.TemplateProcessing(single=single, pair=[*single, *second], special_tokens=special)


class _Handover:
    """Gives the tokenizer away where transformers would deep-copy it (2 s for Gemma's vocabulary)."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer

    def __deepcopy__(self, memo: object) -> Tokenizer:
        return self._tokenizer


def _wrap(metadata: Metadata, vocabulary: Vocabulary, tokenizer: Tokenizer) -> PreTrainedTokenizerBase:
    from transformers import PreTrainedTokenizerFast

    named = {
        "bos_token": vocabulary.special_token("bos"),
        "eos_token": vocabulary.special_token("eos"),
        "unk_token": vocabulary.special_token("unknown"),
        "pad_token": vocabulary.special_token("padding"),
        "mask_token": vocabulary.special_token("mask"),
    }
    ends = {
        f"{role}_token": vocabulary.special_token(role)
        for role in ("eot", "eom")
        if role in vocabulary.special
    }
    architecture = metadata.text("general.architecture", "")
    context = f"{architecture}.context_length"
    templates = dict(vocabulary.templates)
    wrapped: PreTrainedTokenizerBase = PreTrainedTokenizerFast(  # type: ignore[no-untyped-call]
        tokenizer_object=_Handover(tokenizer),
        **{
            role: AddedToken(text, normalized=False, special=True)
            for role, text in named.items()
            if text is not None
        },
        **({"extra_special_tokens": ends} if ends else {}),
        model_max_length=metadata.integer(context, low=1) if context in metadata else 1 << 30,
        model_input_names=["input_ids", "attention_mask"],
        padding_side="left",  # generation goes on at the right end
        clean_up_tokenization_spaces=False,
    )
    if templates:
        wrapped.chat_template = templates["default"] if list(templates) == ["default"] else templates
    return wrapped
