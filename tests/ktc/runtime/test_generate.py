"""generate() of a placed model gives the tokens of the eager model: all modes, padding, resuming, threads."""

from __future__ import annotations

import gc
import threading
from typing import Any

import pytest
import torch
from conftest import gemma3, llama, token_ids
from reference_engine import engine_of, place
from transformers import GenerationConfig, PreTrainedModel, TextIteratorStreamer
from transformers.generation.streamers import BaseStreamer

from ktc.runtime import KvCacheFull, PlacedModel, UnsupportedCallError

FIXED: dict[str, Any] = {"max_new_tokens": 16, "eos_token_id": None, "pad_token_id": 0}
GREEDY: dict[str, Any] = {**FIXED, "do_sample": False}


@pytest.fixture(scope="module")
def placed(eager: PreTrainedModel) -> PlacedModel:
    return place(eager)


def left_padded() -> tuple[torch.Tensor, torch.Tensor]:
    ids = token_ids(3, 11)
    mask = torch.ones_like(ids)
    mask[0, :4] = 0
    mask[2, :9] = 0
    return ids.masked_fill(mask == 0, 0), mask


def test_greedy(eager: PreTrainedModel, placed: PlacedModel) -> None:
    for length in (1, 8, 13):
        ids = token_ids(1, length, seed=length)
        assert torch.equal(placed.generate(ids, **GREEDY), eager.generate(ids, **GREEDY))


def test_decoding_runs_one_token_a_step(eager: PreTrainedModel) -> None:
    placed = place(eager)
    placed.generate(token_ids(1, 10), **GREEDY)
    assert engine_of(placed).runs == [("prefill", 10)] + [("decode", 1)] * 15


def test_stops_at_one_of_several_end_tokens(eager: PreTrainedModel, placed: PlacedModel) -> None:
    ids = token_ids(1, 8)
    free = eager.generate(ids, **GREEDY)[0, 8:]
    stop = {**GREEDY, "eos_token_id": [255, int(free[5])]}
    assert torch.equal(placed.generate(ids, **stop), eager.generate(ids, **stop))
    assert placed.generate(ids, **stop).shape[1] <= 14


@pytest.mark.parametrize("settings", [{}, {"temperature": 0.6, "top_k": 12}, {"top_p": 0.8, "min_p": 0.02}])
def test_seeded_sampling(eager: PreTrainedModel, placed: PlacedModel, settings: dict[str, Any]) -> None:
    ids = token_ids(2, 9)
    torch.manual_seed(5)
    expected = eager.generate(ids, do_sample=True, **settings, **FIXED)
    torch.manual_seed(5)
    assert torch.equal(placed.generate(ids, do_sample=True, **settings, **FIXED), expected)


def test_several_samples_of_one_prompt_compute_it_once(eager: PreTrainedModel) -> None:
    placed, ids = place(eager), token_ids(1, 20)
    settings = {**FIXED, "do_sample": True, "num_return_sequences": 4}
    torch.manual_seed(5)
    expected = eager.generate(ids, **settings)
    torch.manual_seed(5)
    assert torch.equal(placed.generate(ids, **settings), expected)
    assert engine_of(placed).runs[:2] == [("prefill", 20), ("decode", 4)]


class Words:
    """The least of a tokenizer that a streamer needs."""

    def decode(self, ids: Any, **kwargs: Any) -> str:
        return "".join(f"{int(i)} " for i in ids)


class Chunks(BaseStreamer):
    def __init__(self) -> None:
        self.chunks: list[list[int]] = []
        self.ended = False

    def put(self, value: torch.Tensor) -> None:
        self.chunks.append(value.flatten().tolist())

    def end(self) -> None:
        self.ended = True


def test_streamer_gets_every_token_as_it_comes(eager: PreTrainedModel, placed: PlacedModel) -> None:
    ids = token_ids(1, 7)
    ours, theirs = Chunks(), Chunks()
    placed.generate(ids, streamer=ours, **GREEDY)
    eager.generate(ids, streamer=theirs, **GREEDY)
    assert ours.chunks == theirs.chunks
    assert len(ours.chunks) == 17
    assert ours.ended


def test_text_streamer_in_a_thread(eager: PreTrainedModel, placed: PlacedModel) -> None:
    ids = token_ids(1, 7)
    streamer: Any = TextIteratorStreamer(Words(), skip_prompt=True)  # type: ignore[arg-type]
    thread = threading.Thread(target=lambda: placed.generate(ids, streamer=streamer, **GREEDY))
    thread.start()
    text = "".join(streamer)
    thread.join()
    assert text.split() == [str(int(i)) for i in eager.generate(ids, **GREEDY)[0, 7:]]


def test_left_padded_batch(eager: PreTrainedModel, placed: PlacedModel) -> None:
    ids, mask = left_padded()
    expected = eager.generate(ids, attention_mask=mask, **GREEDY)
    assert torch.equal(placed.generate(ids, attention_mask=mask, **GREEDY), expected)


def test_padding_is_not_computed(eager: PreTrainedModel) -> None:
    placed = place(eager)
    ids, mask = left_padded()
    placed.generate(ids, attention_mask=mask, **GREEDY)
    assert engine_of(placed).runs[:2] == [("prefill", 7 + 11 + 2), ("decode", 3)]


def test_right_padded_prompts_are_refused(placed: PlacedModel) -> None:
    ids, mask = left_padded()
    with pytest.raises(Exception, match="padding_side='left'"):
        placed.generate(ids.flip(1), attention_mask=mask.flip(1), **GREEDY)


@pytest.mark.parametrize(
    "settings", [{}, {"num_return_sequences": 3, "length_penalty": 0.5}, {"do_sample": True}]
)
def test_beams(eager: PreTrainedModel, placed: PlacedModel, settings: dict[str, Any]) -> None:
    ids = token_ids(2, 9)
    settings = {"max_new_tokens": 16, "num_beams": 4, **settings}
    torch.manual_seed(3)
    expected = eager.generate(ids, **settings)
    torch.manual_seed(3)
    assert torch.equal(placed.generate(ids, **settings), expected)


def test_beams_on_a_padded_batch(eager: PreTrainedModel, placed: PlacedModel) -> None:
    ids, mask = left_padded()
    settings = {**FIXED, "num_beams": 3, "attention_mask": mask}
    assert torch.equal(placed.generate(ids, **settings), eager.generate(ids, **settings))


def test_beams_share_blocks(eager: PreTrainedModel) -> None:
    placed = place(eager, tokens=64 + 4 * 24)  # four whole copies of the prompt would not fit
    ids = token_ids(1, 61)
    settings = {**FIXED, "num_beams": 4}
    assert torch.equal(placed.generate(ids, **settings), eager.generate(ids, **settings))
    assert engine_of(placed).runs[0] == ("prefill", 61)


def test_resume_from_a_cache(eager: PreTrainedModel, placed: PlacedModel) -> None:
    first = placed.generate(token_ids(1, 9), return_dict_in_generate=True, **GREEDY)
    ids = torch.cat([first.sequences, token_ids(1, 5, seed=1)], 1)
    before = first.past_key_values.get_seq_length()
    resumed = placed.generate(ids, past_key_values=first.past_key_values, **GREEDY)
    assert before == 9 + 15
    assert torch.equal(resumed, eager.generate(ids, **GREEDY))


def test_resume_a_padded_batch(eager: PreTrainedModel, placed: PlacedModel) -> None:
    ids, mask = left_padded()
    first = placed.generate(ids, attention_mask=mask, return_dict_in_generate=True, **GREEDY)
    ids = torch.cat([first.sequences, token_ids(3, 5, seed=1)], 1)
    mask = torch.cat([mask, torch.ones(3, ids.shape[1] - mask.shape[1], dtype=torch.long)], 1)
    resumed = placed.generate(ids, attention_mask=mask, past_key_values=first.past_key_values, **GREEDY)
    assert torch.equal(resumed, eager.generate(ids, attention_mask=mask, **GREEDY))


def test_two_answers_to_one_cached_prompt(eager: PreTrainedModel, placed: PlacedModel) -> None:
    prompt = token_ids(1, 20)
    cache = placed.new_cache()
    placed(prompt, past_key_values=cache)
    for seed in (1, 2):
        ids = torch.cat([prompt, token_ids(1, 4, seed=seed)], 1)
        answer = placed.generate(ids, past_key_values=cache.fork(), **GREEDY)
        assert torch.equal(answer, eager.generate(ids, **GREEDY))


def test_without_a_cache(eager: PreTrainedModel, placed: PlacedModel) -> None:
    ids = token_ids(1, 6)
    settings = {**GREEDY, "max_new_tokens": 4, "use_cache": False}
    assert torch.equal(placed.generate(ids, **settings), eager.generate(ids, **settings))


def test_assisted_by_another_model(eager: PreTrainedModel, placed: PlacedModel) -> None:
    ids, draft = token_ids(1, 9), place(llama(seed=4))
    expected = eager.generate(ids, **GREEDY)
    assert torch.equal(placed.generate(ids, assistant_model=draft, **GREEDY), expected)
    assert torch.equal(placed.generate(ids, assistant_model=place(eager), **GREEDY), expected)


def test_prompt_lookup(eager: PreTrainedModel, placed: PlacedModel) -> None:
    ids = token_ids(1, 6).repeat(1, 3)
    settings = {**GREEDY, "prompt_lookup_num_tokens": 3}
    assert torch.equal(placed.generate(ids, **settings), eager.generate(ids, **GREEDY))


def test_windows(placed: PlacedModel) -> None:
    eager = gemma3()
    model = place(eager)
    ids, mask = left_padded()
    for settings in (GREEDY, {**FIXED, "num_beams": 3}):
        settings = {**settings, "attention_mask": mask}
        assert torch.equal(model.generate(ids, **settings), eager.generate(ids, **settings))
    first = model.generate(ids[:1, 4:], return_dict_in_generate=True, **GREEDY)
    longer = torch.cat([first.sequences, token_ids(1, 9)], 1)
    resumed = model.generate(longer, past_key_values=first.past_key_values, **GREEDY)
    assert torch.equal(resumed, eager.generate(longer, **GREEDY))


def test_two_models_interleaved() -> None:
    eager = [llama(seed=1), llama(seed=2, num_hidden_layers=3)]
    placed = [place(m) for m in eager]
    caches = [m.new_cache() for m in placed]
    rows = [token_ids(1, 9), token_ids(1, 5)]
    for _ in range(6):
        for index, model in enumerate(placed):
            fresh = rows[index][:, caches[index].get_seq_length() :]
            logits = model(fresh, past_key_values=caches[index], logits_to_keep=1).logits
            rows[index] = torch.cat([rows[index], logits[:, -1].argmax(-1, keepdim=True)], 1)
    for row, model, prompt in zip(rows, eager, (9, 5), strict=True):
        assert torch.equal(row, model.generate(row[:, :prompt], **{**GREEDY, "max_new_tokens": 6}))


def test_threads_on_two_models_and_on_one() -> None:
    eager = [llama(seed=1), llama(seed=2)]
    placed = [place(m) for m in eager]
    results: dict[int, torch.Tensor] = {}

    def work(job: int) -> None:
        results[job] = placed[job % 2].generate(token_ids(1, 5 + job, seed=job), **GREEDY)

    threads = [threading.Thread(target=work, args=(job,)) for job in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for job in range(4):
        expected = eager[job % 2].generate(token_ids(1, 5 + job, seed=job), **GREEDY)
        assert torch.equal(results[job], expected)


def test_memory_comes_back(eager: PreTrainedModel) -> None:
    placed = place(eager)
    allocator = placed.engine.pool.allocator
    kept = placed.generate(token_ids(2, 9), return_dict_in_generate=True, **GREEDY)
    placed.generate(token_ids(2, 9), **{**FIXED, "num_beams": 4})
    gc.collect()
    assert allocator.num_blocks - allocator.free_blocks == 2 * 3
    del kept
    gc.collect()
    assert allocator.free_blocks == allocator.num_blocks


def test_a_full_cache_says_so_and_leaves_no_trace(eager: PreTrainedModel) -> None:
    placed = place(eager, tokens=24)
    with pytest.raises(KvCacheFull, match=r"cache paged\(tokens = "):
        placed.generate(token_ids(2, 9), **GREEDY)
    gc.collect()
    assert placed.engine.pool.allocator.free_blocks == 3
    assert torch.equal(placed.generate(token_ids(1, 9), **GREEDY), eager.generate(token_ids(1, 9), **GREEDY))


def test_what_can_never_fit_fails_before_it_starts(eager: PreTrainedModel) -> None:
    placed = place(eager, tokens=24)
    for settings in (
        {"max_new_tokens": 17},
        {"max_length": 26},
        {"generation_config": GenerationConfig(max_new_tokens=17)},
    ):
        with pytest.raises(KvCacheFull, match="a prompt of 9 tokens and 17 new ones"):
            placed.generate(token_ids(1, 9), **settings)
    assert engine_of(placed).runs == []
    assert placed.generate(token_ids(1, 9), **GREEDY).shape == (1, 25)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"penalty_alpha": 0.6, "top_k": 4}, "contrastive search"),
        ({"dola_layers": "low"}, "dola generation"),
        ({"cache_implementation": "static"}, "cache paged"),
        ({"custom_generate": lambda *args: None}, "custom_generate"),
        ({"inputs_embeds": torch.zeros(1, 4, 32)}, "input_ids, not inputs_embeds"),
    ],
)
def test_other_modes_are_refused(placed: PlacedModel, settings: dict[str, Any], message: str) -> None:
    with pytest.raises(UnsupportedCallError, match=message):
        placed.generate(token_ids(1, 5), max_new_tokens=3, **settings)
