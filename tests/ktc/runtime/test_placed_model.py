"""A placed model as an object: forward's contract, what it refuses, and what it says about itself."""

from __future__ import annotations

import copy
import pickle
from typing import Any

import pytest
import torch
from conftest import gemma3, llama, token_ids
from reference_engine import engine_of, place
from small_tokenizers import byte_level
from transformers import DynamicCache, GenerationConfig, LlamaForCausalLM, PreTrainedModel, pipeline

from ktc.capture import meta_model
from ktc.runtime import (
    AttentionMaskError,
    CacheMismatchError,
    InvalidInputError,
    KvCacheFull,
    PlacedModel,
    UnsupportedCallError,
    placed_model,
)


@pytest.fixture(scope="module")
def placed(eager: PreTrainedModel) -> PlacedModel:
    return place(eager)


def logits(model: Any, *args: Any, **kwargs: Any) -> torch.Tensor:
    with torch.no_grad():
        out: torch.Tensor = model(*args, **kwargs).logits
    return out


def close(ours: torch.Tensor, theirs: torch.Tensor) -> None:
    torch.testing.assert_close(ours, theirs, rtol=0, atol=2e-5)


def test_it_is_a_model_of_its_class(eager: PreTrainedModel, placed: PlacedModel) -> None:
    assert isinstance(placed, LlamaForCausalLM)
    assert isinstance(placed, PlacedModel)
    assert type(placed).__name__ == "KtcLlamaForCausalLM"
    assert type(placed) is type(place(llama(seed=1)))
    assert type(llama()) is LlamaForCausalLM
    assert placed.can_generate()
    assert (placed.device, placed.dtype) == (torch.device("cpu"), torch.float32)
    assert placed.num_parameters() == eager.num_parameters()
    assert not placed.training


def test_repr_and_footprint(eager: PreTrainedModel) -> None:
    skeleton = meta_model(eager.config)
    engine = engine_of(place(eager))
    model = placed_model(skeleton, engine, name="demo")
    text = "KtcLlamaForCausalLM(demo, 0.1 MiB of weights, 2 layers, KV cache of 512 tokens, "
    assert repr(model) == text + "torch.float32 on cpu)"
    assert model.get_memory_footprint(return_buffers=False) == sum(p.nbytes for p in eager.parameters())
    kv = model.get_memory_footprint() - model.get_memory_footprint(return_buffers=False)
    assert kv == 512 * 2 * 2 * (8 + 8) * 4


def test_whole_sequence(eager: PreTrainedModel, placed: PlacedModel) -> None:
    ids = token_ids(2, 13)
    close(logits(placed, ids), logits(eager, ids))


@pytest.mark.parametrize("keep", [1, 4, torch.tensor([0, 5]), torch.tensor([7, 2, 7, -1])])
def test_logits_to_keep(eager: PreTrainedModel, placed: PlacedModel, keep: Any) -> None:
    ids = token_ids(2, 9)
    close(logits(placed, ids, logits_to_keep=keep), logits(eager, ids, logits_to_keep=keep))


@pytest.mark.parametrize("side", ["left", "right"])
def test_pads_have_no_logits(eager: PreTrainedModel, placed: PlacedModel, side: str) -> None:
    ids = token_ids(2, 9)
    mask = torch.ones_like(ids)
    mask[0, :4] = 0
    if side == "right":
        mask = mask.flip(1)
    ours = logits(placed, ids, attention_mask=mask)
    positions = (mask.cumsum(1) - 1).clamp(min=0)
    theirs = logits(eager, ids, attention_mask=mask, position_ids=positions)
    close(ours[mask == 1], theirs[mask == 1])
    assert not ours[mask == 0].any()


def test_a_row_of_nothing_but_padding(placed: PlacedModel) -> None:
    ids = token_ids(2, 5)
    mask = torch.tensor([[0] * 5, [1] * 5])
    out = logits(placed, ids, attention_mask=mask)
    assert not out[0].any()
    close(out[1:], logits(placed, ids[1:]))
    assert not logits(placed, ids, attention_mask=0 * mask).any()


def test_token_by_token(eager: PreTrainedModel, placed: PlacedModel) -> None:
    ids, cache = token_ids(3, 12), placed.new_cache()
    steps = [logits(placed, ids[:, i : i + 1], past_key_values=cache) for i in range(12)]
    close(torch.cat(steps, 1), logits(eager, ids))


def test_positions_are_the_callers(eager: PreTrainedModel, placed: PlacedModel) -> None:
    ids, places = token_ids(2, 6), torch.tensor([[0, 3, 4, 9, 10, 30]])
    close(logits(placed, ids, position_ids=places), logits(eager, ids, position_ids=places))


@pytest.mark.parametrize("make", [llama, gemma3])
@pytest.mark.parametrize("chunk", [1, 5, 8])
def test_chunks_change_nothing(make: Any, chunk: int) -> None:
    eager = make()
    model = place(eager, prefill_chunk=chunk)
    progress: list[tuple[int, int]] = []
    model.on_prefill = lambda done, total: progress.append((done, total))
    ids = token_ids(2, 19)
    close(logits(model, ids), logits(eager, ids))
    assert max(tokens for _, tokens in engine_of(model).runs) == chunk
    assert [done for done, _ in progress] == [*range(chunk, 38, chunk), 38]
    assert {total for _, total in progress} == {38}


def test_short_prompts_report_no_progress(eager: PreTrainedModel) -> None:
    model = place(eager)
    model.on_prefill = lambda done, total: pytest.fail("one step needs no progress bar")
    logits(model, token_ids(1, 20))


@pytest.mark.parametrize("chunk", [4, 512])
def test_a_step_that_fails_leaves_the_cache_as_it_was(eager: PreTrainedModel, chunk: int) -> None:
    model = place(eager, prefill_chunk=chunk)
    cache, engine = model.new_cache(), engine_of(model)
    ids = token_ids(2, 30)
    logits(model, ids[:, :7], past_key_values=cache)
    for width in (1, 23):
        free = model.engine.pool.allocator.free_blocks
        engine.fail_at = len(engine.runs) + (2 if chunk < width else 1)
        with pytest.raises(RuntimeError, match="pulled the plug"):
            model(ids[:, 7 : 7 + width], past_key_values=cache)
        engine.fail_at = None
        assert cache.get_seq_length() == 7
        assert [s.length for s in cache.sequences] == [7, 7]
        assert model.engine.pool.allocator.free_blocks == free
    close(logits(model, ids[:, 7:], past_key_values=cache), logits(eager, ids)[:, 7:])


def test_a_full_cache_leaves_the_cache_as_it_was(eager: PreTrainedModel) -> None:
    model = place(eager, tokens=32)
    cache, ids = model.new_cache(), token_ids(2, 20)
    logits(model, ids[:, :10], past_key_values=cache)
    with pytest.raises(KvCacheFull):
        model(ids[:, 10:], past_key_values=cache)
    close(logits(model, ids[:, 10:16], past_key_values=cache), logits(eager, ids[:, :16])[:, 10:])


def test_results(placed: PlacedModel) -> None:
    ids = token_ids(1, 4)
    assert placed(ids, use_cache=False).past_key_values is None
    assert placed(ids).past_key_values.get_seq_length() == 4
    out, cache = placed(ids, return_dict=False)
    assert out.shape == (1, 4, 256)
    assert cache.get_seq_length() == 4
    assert len(placed(ids, return_dict=False, use_cache=False)) == 1
    assert not placed(ids).logits.requires_grad


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"inputs_embeds": torch.zeros(1, 4, 32)}, UnsupportedCallError, "input_ids, not inputs_embeds"),
        ({"labels": torch.zeros(1, 4)}, UnsupportedCallError, "cross_entropy"),
        ({"output_attentions": True}, UnsupportedCallError, "attention weights"),
        ({"output_hidden_states": True}, UnsupportedCallError, "hidden states.*\n.*ktc verify"),
        ({"pixel_values": torch.zeros(1)}, UnsupportedCallError, "does not take pixel_values"),
        ({"past_key_values": DynamicCache()}, CacheMismatchError, "DynamicCache.*\n.*new_cache"),
        ({"input_ids": None}, InvalidInputError, "not NoneType"),
        ({"input_ids": torch.zeros(4, dtype=torch.long)}, InvalidInputError, r"not \[4\]"),
        ({"input_ids": torch.zeros(1, 0, dtype=torch.long)}, InvalidInputError, "at least one token"),
        ({"input_ids": torch.zeros(1, 4)}, InvalidInputError, "int64, not torch.float32"),
        ({"input_ids": torch.tensor([[3, 256]])}, InvalidInputError, r"256 is not in .* \[0, 256\)"),
        ({"input_ids": torch.tensor([[3, -1]])}, InvalidInputError, "token id -1"),
        ({"position_ids": torch.zeros(3, 1, 4)}, InvalidInputError, "multimodal"),
        ({"position_ids": torch.zeros(1, 3)}, InvalidInputError, r"\[1, 3\], but the batch is \[1, 4\]"),
        ({"logits_to_keep": -1}, InvalidInputError, "negative"),
        ({"logits_to_keep": torch.zeros(1, 1, dtype=torch.long)}, InvalidInputError, "logits_to_keep"),
        ({"logits_to_keep": torch.tensor([4])}, InvalidInputError, "logits_to_keep"),
        ({"attention_mask": torch.ones(1, 3)}, AttentionMaskError, r"\[1, 3\], but 0 cached and 4 new"),
        ({"attention_mask": torch.ones(1, 1, 4, 4)}, AttentionMaskError, "causal"),
        ({"attention_mask": {"full_attention": None}}, AttentionMaskError, "dict"),
        ({"attention_mask": torch.tensor([[1, 0, 1, 1]])}, AttentionMaskError, "hole: row 0 .* column 2"),
        ({"attention_mask": torch.tensor([[-1e9, 0, 0, 0]])}, AttentionMaskError, "additive"),
    ],
)
def test_bad_arguments(
    placed: PlacedModel, arguments: dict[str, Any], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        placed(**{"input_ids": token_ids(1, 4), **arguments})


def test_masks_must_agree_with_the_cache(placed: PlacedModel) -> None:
    ids, mask = token_ids(2, 4), torch.tensor([[0, 1, 1, 1], [1, 1, 1, 1]])
    one = torch.ones(2, 1, dtype=torch.long)
    cache = placed(ids, attention_mask=mask).past_key_values
    with pytest.raises(AttentionMaskError, match="holds a padded batch"):
        placed(ids[:, :1], past_key_values=cache)
    with pytest.raises(AttentionMaskError, match="changes which of the 4 cached columns"):
        placed(ids[:, :1], attention_mask=torch.cat([mask.flip(0), one], 1), past_key_values=cache)
    with pytest.raises(AttentionMaskError, match=r"hole: row 0 .* column 6"):
        longer = torch.cat([mask, one, 0 * one, one], 1)
        placed(ids[:, :3], attention_mask=longer, past_key_values=cache)
    placed(ids[:, :1], attention_mask=torch.cat([mask, one], 1), past_key_values=cache)
    assert [s.length for s in cache.sequences] == [4, 5]
    with pytest.raises(CacheMismatchError, match="holds 2 sequences, but the batch has 3"):
        placed(token_ids(3, 1), past_key_values=cache)


def test_caches_belong_to_their_model(eager: PreTrainedModel, placed: PlacedModel) -> None:
    with pytest.raises(CacheMismatchError, match="another model"):
        place(eager)(token_ids(1, 4), past_key_values=placed.new_cache())


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda m: m.to("cuda"), r"cannot make it cuda(.|\n)*`place`"),
        (lambda m: m.cuda(1), "cannot make it cuda"),
        (lambda m: m.to(device="meta", dtype=torch.float32), "cannot make it meta"),
        (lambda m: m.to(torch.zeros(1)), "cannot make it tensor"),
        (lambda m: m.half(), "cannot make it torch.float16"),
        (lambda m: m.to(torch.bfloat16), "cannot make it torch.bfloat16"),
        (lambda m: m.save_pretrained("x"), "ktc compile -o DIR"),
        (lambda m: m.state_dict(), "packed"),
        (lambda m: m.resize_token_embeddings(300), "vocabulary"),
        (lambda m: m.compile(), "compiled already"),
        (lambda m: m.train(), "gradients"),
        (lambda m: copy.deepcopy(m), "ktc.load"),
        (lambda m: copy.copy(m), "ktc.load"),
        (lambda m: pickle.dumps(m), "ktc.load"),
        (lambda m: pickle.dumps(m.new_cache()), "fork"),
        (lambda m: m.new_cache().update(None, None, 0), "writes the KV cache itself"),
    ],
)
def test_what_a_placed_model_has_not(placed: PlacedModel, call: Any, message: str) -> None:
    with pytest.raises(UnsupportedCallError, match=message):
        call(placed)


def test_moving_to_where_it_is(placed: PlacedModel) -> None:
    assert placed.to("cpu") is placed
    assert placed.to(torch.device("cpu"), torch.float32, non_blocking=True) is placed
    assert placed.to(device=None, dtype=None) is placed
    assert placed.cpu().float().eval() is placed


def test_what_libraries_do_with_models(eager: PreTrainedModel) -> None:
    model = place(llama(vocab_size=320))
    model.tie_weights()
    model.requires_grad_(False)
    assert model.generate(max_new_tokens=3, do_sample=False).shape[0] == 1
    pipe = pipeline("text-generation", model=model, tokenizer=byte_level(), device="cpu")
    texts = ["the quick", "the"]
    pipe.tokenizer.padding_side, pipe.tokenizer.pad_token = "left", "<s>"
    batched = pipe(texts, max_new_tokens=8, do_sample=False, batch_size=2)
    single = [pipe(text, max_new_tokens=8, do_sample=False) for text in texts]
    assert [b[0]["generated_text"] for b in batched] == [s[0]["generated_text"] for s in single]


def test_a_skeleton_is_placed_once(eager: PreTrainedModel, placed: PlacedModel) -> None:
    with pytest.raises(UnsupportedCallError, match="placed already"):
        placed_model(placed, engine_of(placed))
    with pytest.raises(InvalidInputError, match="prefill_chunk"):
        placed_model(meta_model(eager.config), engine_of(placed), prefill_chunk=0)


def test_default_length_fits_the_pool(eager: PreTrainedModel, placed: PlacedModel) -> None:
    settings = GenerationConfig(max_length=10_000, eos_token_id=[2, 5])
    model = placed_model(meta_model(eager.config), engine_of(placed), generation_config=settings)
    assert model.generation_config.max_length == 513
    assert model.generation_config.eos_token_id == [2, 5]
    assert settings.max_length == 10_000
