"""Whatever was appended, cropped, reordered and forked before, the next logits are those of the tokens."""

from __future__ import annotations

import random

import pytest
import torch
from conftest import gemma3, llama
from reference_engine import place


@pytest.mark.parametrize("make", [llama, gemma3])
@pytest.mark.parametrize("seed", range(4))
def test_any_history_of_a_cache(make: object, seed: int) -> None:
    eager = make()  # type: ignore[operator]
    model = place(eager, tokens=640, block_size=4, prefill_chunk=7)
    choose = random.Random(seed)
    generator = torch.Generator().manual_seed(seed)
    rows = choose.randint(1, 3)
    cache = model.new_cache()
    ids = torch.empty(rows, 0, dtype=torch.long)
    pads = [choose.choice([0, 0, 3]) for _ in range(rows)]
    caches = [(cache, ids, pads)]
    for _ in range(25):
        index = choose.randrange(len(caches))
        cache, ids, pads = caches[index]
        columns = ids.shape[1]
        action = choose.choice(["append", "append", "decode", "decode", "crop", "reorder", "fork"])
        if action in ("append", "decode") or not columns:
            width = 1 if action == "decode" and columns else choose.randint(4, 11)
            ids = torch.cat([ids, torch.randint(3, 250, (len(pads), width), generator=generator)], 1)
            mask = torch.stack([torch.arange(ids.shape[1]) >= pad for pad in pads]).long()
            places = (mask.cumsum(1) - 1).clamp(min=0)
            ours = model(ids[:, columns:], attention_mask=mask, past_key_values=cache).logits
            with torch.no_grad():
                theirs = eager(ids, attention_mask=mask, position_ids=places).logits[:, columns:]
            real = mask[:, columns:] == 1
            torch.testing.assert_close(ours[real], theirs[real], rtol=0, atol=3e-5)
            assert not ours[~real].any()
        elif action == "crop":
            count = choose.randint(0, columns // 2)
            cache.crop(-count)
            ids = ids[:, : columns - count]
        elif action == "reorder":
            order = [choose.randrange(len(pads)) for _ in pads]
            cache.reorder_cache(torch.tensor(order))
            ids, pads = ids[order], [pads[row] for row in order]
        elif len(caches) < 3:
            caches.append((cache.fork(), ids, pads))
        caches[index] = (cache, ids, pads)
        for kept, tokens, padding in caches:
            lengths = [max(0, tokens.shape[1] - pad) for pad in padding]
            assert kept.get_seq_length() == tokens.shape[1]
            assert [s.length for s in kept.sequences] == lengths or not tokens.shape[1]
    caches.clear()
    del cache, kept
    allocator = model.engine.pool.allocator
    assert allocator.free_blocks == allocator.num_blocks
