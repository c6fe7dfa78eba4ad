"""KtcCache: cropping, reordering and forking of padded batches, and the blocks behind them."""

from __future__ import annotations

import copy
import gc

import pytest
import torch
from conftest import token_ids
from reference_engine import place
from transformers import PreTrainedModel

from ktc.runtime import KtcCache, PlacedModel


@pytest.fixture(scope="module")
def placed(eager: PreTrainedModel) -> PlacedModel:
    return place(eager)


MASK = torch.tensor([[0, 0, 1, 1, 1, 1], [1, 1, 1, 1, 1, 1], [0, 1, 1, 1, 1, 1]])


def filled(model: PlacedModel) -> KtcCache:
    cache = model.new_cache()
    model(token_ids(3, 6), attention_mask=MASK, past_key_values=cache)
    return cache


def lengths(cache: KtcCache) -> list[int]:
    return [s.length for s in cache.sequences]


def test_counts_columns(placed: PlacedModel) -> None:
    cache = filled(placed)
    assert (cache.get_seq_length(), cache.batch_size, len(cache)) == (6, 3, 2)
    assert cache.get_mask_sizes(4, 0) == (10, 0)
    assert cache.get_max_cache_shape() == 512
    assert lengths(cache) == [4, 6, 5]
    assert repr(cache) == "KtcCache(3 sequences, 15 tokens)"


def test_crop_removes_or_keeps_columns(placed: PlacedModel) -> None:
    cache = filled(placed)
    cache.crop(0)
    cache.crop(9)
    assert cache.get_seq_length() == 6
    cache.crop(torch.tensor(-1))  # as assisted generation of transformers 5.17 does
    assert (cache.get_seq_length(), lengths(cache)) == (5, [3, 5, 4])
    cache.crop(1)
    assert (cache.get_seq_length(), lengths(cache)) == (1, [0, 1, 0])
    cache.crop(-7)
    assert (cache.get_seq_length(), lengths(cache), cache.mask) == (0, [0, 0, 0], None)


def test_cropped_tokens_can_be_computed_again(placed: PlacedModel) -> None:
    cache, ids = filled(placed), token_ids(3, 6)
    cache.crop(-3)
    again = placed(ids[:, 3:], attention_mask=MASK, past_key_values=cache).logits
    torch.testing.assert_close(again, placed(ids, attention_mask=MASK).logits[:, 3:], rtol=0, atol=2e-5)


def test_selecting_rows_moves_no_tokens_and_leaks_none(placed: PlacedModel) -> None:
    gc.collect()
    allocator = placed.engine.pool.allocator
    before = allocator.free_blocks
    cache = filled(placed)
    cache.reorder_cache(torch.tensor([2, 2, 0]))
    assert lengths(cache) == [5, 5, 4]
    assert cache.sequences[0].blocks == cache.sequences[1].blocks
    assert cache.sequences[0] is not cache.sequences[1]
    assert cache.mask is not None
    assert cache.mask.tolist() == MASK[[2, 2, 0]].bool().tolist()
    assert before - allocator.free_blocks == 2
    cache.batch_repeat_interleave(2)
    assert lengths(cache) == [5, 5, 5, 5, 4, 4]
    cache.batch_select_indices(torch.tensor([False, True, False, False, False, True]))
    assert lengths(cache) == [5, 4]
    cache.reset()
    assert (cache.batch_size, cache.get_seq_length(), allocator.free_blocks) == (-1, 0, before)


def test_deepcopy_is_a_fork(placed: PlacedModel) -> None:
    cache = filled(placed)
    twin = copy.deepcopy(cache)
    more = torch.cat([MASK, torch.ones(3, 1, dtype=torch.long)], 1)
    for token, target in ((9, cache), (8, twin)):
        placed(torch.full((3, 1), token), attention_mask=more, past_key_values=target)
    ids = torch.cat([token_ids(3, 6), torch.full((3, 1), 9), torch.full((3, 1), 7)], 1)
    mask = torch.cat([more, torch.ones(3, 1, dtype=torch.long)], 1)
    ours = placed(ids[:, 7:], attention_mask=mask, past_key_values=cache).logits
    torch.testing.assert_close(ours, placed(ids, attention_mask=mask).logits[:, 7:], rtol=0, atol=2e-5)
    assert twin.get_seq_length() == 7
