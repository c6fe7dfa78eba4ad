"""The ops of latent attention: absorbed and expanded are the same, each against its formula; weight views."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

KT = torch.ops.kt
HEADS, NOPE, ROPE, LATENT, VALUE, BLOCK = 3, 6, 4, 10, 5, 4


def _random(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed + sum(shape)))


def test_expand_joins_the_parts_of_each_head() -> None:
    q_nope, q_rope = _random(1, HEADS, 7, NOPE), _random(1, HEADS, 7, ROPE)
    kv, k_rope = _random(1, 7, HEADS * (NOPE + VALUE)), _random(1, 1, 7, ROPE)
    q, k, v = KT.mla_expand.default(q_nope, q_rope, kv, k_rope)
    assert q.is_contiguous()
    assert k.is_contiguous()
    assert v.is_contiguous()
    for head in range(HEADS):
        begin = head * (NOPE + VALUE)
        for token in range(7):
            assert q[0, head, token].tolist() == [*q_nope[0, head, token], *q_rope[0, head, token]]
            nope = kv[0, token, begin : begin + NOPE]
            assert k[0, head, token].tolist() == [*nope, *k_rope[0, 0, token]]
            assert v[0, head, token].tolist() == kv[0, token, begin + NOPE : begin + NOPE + VALUE].tolist()


def test_weight_views_pick_the_rows_of_keys_and_values() -> None:
    w = _random(HEADS * (NOPE + VALUE), LATENT)
    keys, values = KT.mla_key_weight.default(w, HEADS, NOPE), KT.mla_value_weight.default(w, HEADS, NOPE)
    assert (keys.shape, values.shape) == ((HEADS, LATENT, NOPE), (HEADS, VALUE, LATENT))
    for head in range(HEADS):
        begin = head * (NOPE + VALUE)
        assert torch.equal(keys[head].T, w[begin : begin + NOPE])
        assert torch.equal(values[head], w[begin + NOPE : begin + NOPE + VALUE])


def test_expert_views_order_rows() -> None:
    w = torch.arange(2 * 3 * 8.0).view(2, 3, 8)
    assert torch.equal(KT.expert_rows.default(w), w.mT)
    ordered = KT.expert_rows.default(w, True)
    assert torch.equal(ordered, w.mT[:, [0, 2, 4, 6, 1, 3, 5, 7]])
    assert KT.deinterleave.default(w[0, 0]).tolist() == [0, 2, 4, 6, 1, 3, 5, 7]


class Paged:
    """Sequences of a step over scattered blocks, and caches of latents and of full keys and values."""

    def __init__(self, news: list[int], pasts: list[int], dtype: torch.dtype = torch.float32) -> None:
        self.news, self.pasts = news, pasts
        self.contexts = [new + past for new, past in zip(news, pasts, strict=True)]
        width = -(-max(self.contexts) // BLOCK) + 1
        count = len(news) * width
        order = torch.randperm(count, generator=torch.Generator().manual_seed(1))
        self.tables = order.view(len(news), width)
        self.latents = torch.zeros(count, 1, BLOCK, LATENT, dtype=dtype)
        self.rotated = torch.zeros(count, 1, BLOCK, ROPE, dtype=dtype)
        self.keys = torch.zeros(count, HEADS, BLOCK, NOPE + ROPE, dtype=dtype)
        self.values = torch.zeros(count, HEADS, BLOCK, VALUE, dtype=dtype)

    def slots(self, contexts: list[int], news: list[int]) -> torch.Tensor:
        found = [
            int(self.tables[i, place // BLOCK]) * BLOCK + place % BLOCK
            for i, (context, new) in enumerate(zip(contexts, news, strict=True))
            for place in range(context - new, context)
        ]
        return torch.tensor(found, dtype=torch.int64)

    def descriptor(self) -> tuple[torch.Tensor, ...]:
        starts = torch.tensor([0, *self.news]).cumsum(0).int()
        return (
            starts,
            torch.tensor(self.contexts).int(),
            self.tables.int(),
            self.slots(self.contexts, self.news),
        )


@pytest.mark.parametrize(
    ("news", "pasts"),
    [([7], [0]), ([1], [11]), ([3, 1, 0, 5], [0, 9, 4, 2]), ([1, 1, 1], [0, 4, 8])],
)
def test_absorbed_attention_is_attention_on_expanded_keys_and_values(
    news: list[int], pasts: list[int]
) -> None:
    paged, tokens = Paged(news, pasts), sum(news)
    w = _random(HEADS * (NOPE + VALUE), LATENT)
    past_latents, past_rotated = _random(sum(pasts), LATENT, seed=5), _random(sum(pasts), ROPE, seed=6)
    places = paged.slots(pasts, pasts)
    paged.latents.view(-1, LATENT)[places] = past_latents
    paged.rotated.view(-1, ROPE)[places] = past_rotated
    past = (past_latents @ w.T).view(-1, HEADS, NOPE + VALUE)
    blocks, offsets = places // BLOCK, places % BLOCK
    rotated = past_rotated[:, None].expand(-1, HEADS, -1)
    paged.keys[blocks, :, offsets] = torch.cat((past[..., :NOPE], rotated), dim=-1)
    paged.values[blocks, :, offsets] = past[..., NOPE:]

    q_nope, q_rope = _random(1, HEADS, tokens, NOPE), _random(1, HEADS, tokens, ROPE)
    latent, k_rope = _random(1, tokens, LATENT), _random(1, 1, tokens, ROPE)
    q, k, v = KT.mla_expand.default(q_nope, q_rope, F.linear(latent, w), k_rope)
    descriptor = paged.descriptor()
    expected = KT.attention.default(q, k, v, paged.keys, paged.values, *descriptor, 0.3)
    views = KT.mla_key_weight.default(w, HEADS, NOPE), KT.mla_value_weight.default(w, HEADS, NOPE)
    found = KT.mla_attention.default(
        q_nope, q_rope, latent, k_rope, *views, paged.latents, paged.rotated, *descriptor, 0.3
    )
    assert found.is_contiguous()
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)
    written = paged.latents.view(-1, LATENT)[descriptor[3]], paged.rotated.view(-1, ROPE)[descriptor[3]]
    assert torch.equal(written[0], latent[0])
    assert torch.equal(written[1], k_rope[0, 0])


def test_the_steps_own_latents_are_rounded_to_the_cache() -> None:
    paged = Paged([5], [0], torch.float16)
    operands = (
        *(_random(1, HEADS, 5, NOPE), _random(1, HEADS, 5, ROPE)),
        *(_random(1, 5, LATENT), _random(1, 1, 5, ROPE)),
        *(_random(HEADS, LATENT, NOPE), _random(HEADS, VALUE, LATENT)),
    )
    found = KT.mla_attention.default(*operands, paged.latents, paged.rotated, *paged.descriptor(), 0.3)
    rounded = (*operands[:2], operands[2].half().float(), operands[3].half().float(), *operands[4:])
    wide = Paged([5], [0])
    expected = KT.mla_attention.default(*rounded, wide.latents, wide.rotated, *wide.descriptor(), 0.3)
    torch.testing.assert_close(found, expected, rtol=0, atol=0)


def test_tokens_of_no_sequence_get_zeros() -> None:
    paged = Paged([2], [3])
    starts, contexts, tables, slots = paged.descriptor()
    operands = (
        *(_random(1, HEADS, 4, NOPE), _random(1, HEADS, 4, ROPE)),
        *(_random(1, 4, LATENT), _random(1, 1, 4, ROPE)),
        *(_random(HEADS, LATENT, NOPE), _random(HEADS, VALUE, LATENT)),
    )
    free = int(paged.tables[0, -1]) * BLOCK
    slots = torch.cat((slots, torch.tensor([free, free + 1])))
    found = KT.mla_attention.default(
        *operands, paged.latents, paged.rotated, starts, contexts, tables, slots, 0.3
    )
    assert found[0, :2].abs().min() > 0
    assert not found[0, 2:].any()
