"""Chat and text streams: the same text as generate(), the cache kept between turns, and where they stop."""

from __future__ import annotations

import gc
from collections.abc import Iterable
from typing import Any

import pytest
import torch
from conftest import llama
from reference_engine import engine_of, place
from small_tokenizers import byte_level, sentence_piece
from transformers import PreTrainedModel

from ktc.runtime import (
    InvalidInputError,
    KvCacheFull,
    NoChatTemplateError,
    PlacedModel,
    Step,
    UnsupportedCallError,
)
from ktc.runtime.chat import ChatSession, stream_text
from ktc.runtime.errors import ChatTemplateError
from ktc.runtime.template import end_of_turn_ids, render_chat

TOKENIZER = byte_level()


@pytest.fixture(scope="module")
def eager() -> PreTrainedModel:
    return llama(vocab_size=320, eos_token_id=1)


@pytest.fixture
def placed(eager: PreTrainedModel) -> PlacedModel:
    return place(eager)


def scripted(model: PlacedModel, texts: Iterable[str]) -> list[list[int]]:
    """Makes `model` say `texts` one after the other, whatever it is asked; returns the ids of every step."""
    tokens = iter([i for text in texts for i in TOKENIZER(text, add_special_tokens=False)["input_ids"]])
    seen: list[list[int]] = []

    def run(step: Step) -> torch.Tensor:
        seen.append(step.input_ids[0].tolist())
        return torch.nn.functional.one_hot(torch.tensor([next(tokens)]), 320).float()

    engine_of(model).run = run  # type: ignore[method-assign]
    return seen


def ids_of(text: str) -> list[int]:
    return [int(i) for i in TOKENIZER(text, add_special_tokens=False)["input_ids"]]


def test_raw_text_continues_the_prompt(eager: PreTrainedModel, placed: PlacedModel) -> None:
    stream = stream_text(placed, TOKENIZER, "the quick", chat=False, max_new_tokens=12)
    pieces = list(stream)
    prompt = torch.tensor([TOKENIZER("the quick")["input_ids"]])
    expected = eager.generate(prompt, max_new_tokens=12, do_sample=False)[0, prompt.shape[1] :]
    assert stream.tokens == [int(i) for i in expected if i != 1][: len(stream.tokens)]
    assert "".join(pieces) == stream.text == TOKENIZER.decode(stream.tokens, skip_special_tokens=True)
    assert stream.stopped == "max_new_tokens"
    assert (stream.stats.prompt_tokens, stream.stats.new_tokens) == (prompt.shape[1], 12)
    assert stream.stats.prefill_rate > 0
    assert stream.stats.decode_rate > 0


@pytest.mark.parametrize(
    "settings",
    [
        {"do_sample": True},
        {"do_sample": True, "temperature": 0.7, "top_p": 0.9, "repetition_penalty": 1.2},
        {"do_sample": True, "top_k": 5, "min_p": 0.1},
        {"do_sample": False, "repetition_penalty": 1.5},
    ],
)
def test_sampling_is_that_of_generate(
    eager: PreTrainedModel, placed: PlacedModel, settings: dict[str, Any]
) -> None:
    prompt = torch.tensor([TOKENIZER("the lazy")["input_ids"]])
    torch.manual_seed(11)
    expected = eager.generate(prompt, max_new_tokens=12, **settings)[0, prompt.shape[1] :].tolist()
    stream = stream_text(placed, TOKENIZER, "the lazy", chat=False, max_new_tokens=12, seed=11, **settings)
    list(stream)
    assert stream.tokens == [i for i in expected if i != 1]


def test_prompts_go_through_the_template_where_there_is_one(placed: PlacedModel) -> None:
    seen = scripted(placed, ["hé👋!<|end|>"])
    stream = stream_text(placed, TOKENIZER, "hello")
    assert "".join(stream) == "hé👋!"
    assert stream.stopped == "stop token"
    assert seen[0] == ids_of("<|turn|>user\nhello<|end|>\n<|turn|>assistant\n")


def test_an_empty_prompt_starts_from_nothing(placed: PlacedModel) -> None:
    seen = scripted(placed, ["ok</s>"])
    assert "".join(stream_text(placed, TOKENIZER, "", chat=False)) == "ok"
    assert seen[0] == [TOKENIZER.bos_token_id]


def test_text_ends_when_the_cache_or_the_context_is_full(eager: PreTrainedModel) -> None:
    for model in (place(eager, tokens=24), place(llama(vocab_size=320, max_position_embeddings=24))):
        scripted(model, ["x" * 100])
        stream = stream_text(model, TOKENIZER, "abcdefgh", chat=False)
        count = stream.stats.prompt_tokens
        list(stream)
        assert stream.stopped == "context full"
        assert len(stream.tokens) == 24 - count + 1


def test_conversation_reuses_the_cache(eager: PreTrainedModel, placed: PlacedModel) -> None:
    session = ChatSession(placed, TOKENIZER, system="be brief", max_new_tokens=9)
    for text in ("the dog", "the fox", "ok"):
        ids = render_chat(TOKENIZER, [*session.messages, {"role": "user", "content": text}])
        before, runs = session.cached_tokens, len(engine_of(placed).runs)
        answer = session.send(text)
        pieces = list(answer)
        expected = eager.generate(torch.tensor([ids]), max_new_tokens=9, do_sample=False, eos_token_id=[1, 3])
        assert answer.text == TOKENIZER.decode(expected[0, len(ids) :], skip_special_tokens=True)
        assert "".join(pieces) == answer.text
        assert engine_of(placed).runs[runs] == ("prefill", len(ids) - answer.stats.reused_tokens)
        assert answer.stats.reused_tokens <= before
    assert [m["role"] for m in session.messages] == ["system"] + ["user", "assistant"] * 3


def test_only_new_tokens_are_computed(placed: PlacedModel) -> None:
    session = ChatSession(placed, TOKENIZER)
    seen = scripted(placed, ["fine<|end|>", "good<|end|>"])
    assert "".join(session.send("a dog")) == "fine"
    del seen[:]
    answer = session.send("a fox")
    assert "".join(answer) == "good"
    assert seen[0] == ids_of("<|end|>\n<|turn|>user\na fox<|end|>\n<|turn|>assistant\n")
    assert answer.stats.prompt_tokens - answer.stats.reused_tokens == len(seen[0])


def test_a_template_that_changes_the_past_cuts_the_cache(eager: PreTrainedModel, placed: PlacedModel) -> None:
    tokenizer = byte_level()
    tokenizer.chat_template = str(tokenizer.chat_template).replace(
        "m.content", "(m.content if m.role == 'user' else m.content.split('!')[-1])"
    )
    session = ChatSession(placed, tokenizer)
    seen = scripted(placed, ["think! ok<|end|>", "good<|end|>"])
    assert "".join(session.send("a")) == "think! ok"
    del seen[:]
    list(session.send("b"))
    prefix = "<|turn|>user\na<|end|>\n<|turn|>assistant\n"
    whole = ids_of(prefix + " ok<|end|>\n<|turn|>user\nb<|end|>\n<|turn|>assistant\n")
    assert seen[0] == whole[len(ids_of(prefix)) :]


def test_an_interrupted_answer_stays(placed: PlacedModel) -> None:
    session = ChatSession(placed, TOKENIZER)
    scripted(placed, ["one two"])
    answer = session.send("count")
    for _ in answer:
        if answer.text == "one":
            break
    answer.close()
    assert answer.stopped == "interrupted"
    assert session.messages[-1] == {"role": "assistant", "content": "one"}


def test_an_answer_nobody_reads_to_its_end_gives_way(placed: PlacedModel) -> None:
    session = ChatSession(placed, TOKENIZER)
    scripted(placed, ["f"])
    next(iter(session.send("first")))
    scripted(placed, ["ok<|end|>"])
    assert "".join(session.send("second")) == "ok"
    assert [m["content"] for m in session.messages] == ["first", "f", "second", "ok"]


def test_a_conversation_that_does_not_fit_goes_on_after_reset(eager: PreTrainedModel) -> None:
    model = place(eager, tokens=48)
    session = ChatSession(model, TOKENIZER, system="s")
    scripted(model, ["ok<|end|>"] * 3)
    assert "".join(session.send("hi")) == "ok"
    with pytest.raises(KvCacheFull):
        list(session.send("x" * 100))
    assert [m["role"] for m in session.messages] == ["system", "user", "assistant"]
    session.reset()
    assert [m["role"] for m in session.messages] == ["system"]
    assert model.engine.pool.allocator.free_blocks == 6
    assert "".join(session.send("hi")) == "ok"
    del session
    gc.collect()
    assert model.engine.pool.allocator.free_blocks == 6


def test_a_base_model_cannot_chat(placed: PlacedModel) -> None:
    with pytest.raises(NoChatTemplateError, match=r"no chat template(.|\n)*ktc run"):
        ChatSession(placed, sentence_piece())
    with pytest.raises(NoChatTemplateError):
        stream_text(placed, sentence_piece(), "hi", chat=True)


def test_a_template_may_refuse(placed: PlacedModel) -> None:
    tokenizer = byte_level()
    tokenizer.chat_template = (
        "{% if messages[0].role == 'system' %}{{ raise_exception('no system here') }}{% endif %}"
        + str(tokenizer.chat_template)
    )
    with pytest.raises(ChatTemplateError, match=r"\(system, user\): no system here"):
        ChatSession(placed, tokenizer, system="be brief").send("hi")


def test_the_end_of_a_turn_is_found_in_the_template() -> None:
    assert end_of_turn_ids(TOKENIZER) == {TOKENIZER.convert_tokens_to_ids("<|end|>")}
    tokenizer = byte_level()
    tokenizer.chat_template = "{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}"
    assert end_of_turn_ids(tokenizer) == frozenset()


@pytest.mark.parametrize(
    ("settings", "error", "message"),
    [
        ({"temprature": 1.0}, InvalidInputError, "temprature"),
        ({"do_sample": True, "temperature": 0.0}, InvalidInputError, "temperature"),
        ({"num_beams": 3}, UnsupportedCallError, "num_beams"),
        ({"no_repeat_ngram_size": 2}, UnsupportedCallError, "no_repeat_ngram_size"),
        ({"max_new_tokens": 0}, InvalidInputError, "max_new_tokens"),
    ],
)
def test_settings(
    placed: PlacedModel, settings: dict[str, Any], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        stream_text(placed, TOKENIZER, "hi", **settings)
