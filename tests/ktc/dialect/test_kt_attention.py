"""kt.attention's reference against a token-by-token formulation in float64."""

from __future__ import annotations

import math
from dataclasses import dataclass

import pytest
import torch

import ktc.dialect  # noqa: F401  (defines torch.ops.kt)

BLOCK = 4


@dataclass
class Case:
    """A step: per sequence, tokens cached before it and new ones."""

    cached: tuple[int, ...]
    new: tuple[int, ...]
    heads: int = 4
    kv_heads: int = 2
    depth: int = 8
    value_depth: int = 8
    window: int = 0
    softcap: float = 0.0
    sinks: bool = False
    dtype: torch.dtype = torch.float32


CASES = {
    "prefill": Case((0,), (9,)),
    "decode": Case((9,), (1,)),
    "ragged": Case((0, 7, 4), (5, 1, 6)),
    "empty sequences": Case((0, 3, 5), (0, 2, 0)),
    "one head": Case((2,), (3,), heads=1, kv_heads=1),
    "all heads": Case((2, 0), (3, 2), heads=4, kv_heads=4),
    "window": Case((0, 13, 2), (9, 1, 5), window=5),
    "window of one": Case((6,), (3,), window=1),
    "softcap": Case((3,), (4,), softcap=2.0),
    "sinks": Case((3, 0), (4, 1), sinks=True),
    "latent values": Case((3,), (4,), depth=12, value_depth=6),
    "float16 cache": Case((5, 0), (3, 4), dtype=torch.float16),
    "bfloat16 cache": Case((5, 0), (3, 4), dtype=torch.bfloat16),
    "everything": Case((11, 0, 3), (1, 6, 0), window=4, softcap=3.0, sinks=True, dtype=torch.float16),
}


@pytest.mark.parametrize("case", CASES.values(), ids=CASES.keys())
def test_equals_attention_token_by_token(case: Case) -> None:
    torch.manual_seed(0)
    totals = [a + b for a, b in zip(case.cached, case.new, strict=True)]
    keys = [torch.randn(n, case.kv_heads, case.depth) for n in totals]
    values = [torch.randn(n, case.kv_heads, case.value_depth) for n in totals]
    queries = [torch.randn(n, case.heads, case.depth) for n in case.new]
    sinks = torch.randn(case.heads) if case.sinks else None
    step = _step(case, keys, values, queries, sinks)

    found = torch.ops.kt.attention.default(*step)

    expected = []
    for sequence, total in enumerate(totals):
        # What the cache holds, the step's own tokens included, is rounded to its dtype.
        k = keys[sequence].to(case.dtype).double()
        v = values[sequence].to(case.dtype).double()
        for j in range(case.new[sequence]):
            position = total - case.new[sequence] + j
            first = max(0, position - case.window + 1) if case.window else 0
            rows = [
                _one_head(
                    queries[sequence][j, head].double(),
                    k[first : position + 1, head * case.kv_heads // case.heads],
                    v[first : position + 1, head * case.kv_heads // case.heads],
                    case.softcap,
                    None if sinks is None else float(sinks[head]),
                )
                for head in range(case.heads)
            ]
            expected.append(torch.stack(rows))
    torch.testing.assert_close(found[0].double(), torch.stack(expected), rtol=1e-5, atol=1e-5)
    assert found.is_contiguous()
    assert found.dtype == torch.float32


def _one_head(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, softcap: float, sink: float | None
) -> torch.Tensor:
    scores = [float(q @ row) * 0.3 for row in k]
    if softcap:
        scores = [softcap * math.tanh(score / softcap) for score in scores]
    total = sum(math.exp(score) for score in scores) + (0.0 if sink is None else math.exp(sink))
    return sum((math.exp(s) / total * row for s, row in zip(scores, v, strict=True)), torch.zeros(v.shape[1]))


def _step(
    case: Case,
    keys: list[torch.Tensor],
    values: list[torch.Tensor],
    queries: list[torch.Tensor],
    sinks: torch.Tensor | None,
) -> tuple[object, ...]:
    """The op's arguments: old tokens written into scattered blocks of NaN, strided q, k and v."""
    width = 6
    blocks = torch.randperm(len(keys) * width + 2)
    tables = blocks[: len(keys) * width].view(len(keys), width)
    key_cache = torch.full((len(blocks), case.kv_heads, BLOCK, case.depth), math.nan, dtype=case.dtype)
    value_cache = torch.full(
        (len(blocks), case.kv_heads, BLOCK, case.value_depth), math.nan, dtype=case.dtype
    )
    slots = []
    for sequence, cached in enumerate(case.cached):
        for position in range(len(keys[sequence])):
            block, offset = int(tables[sequence, position // BLOCK]), position % BLOCK
            if position < cached:
                key_cache[block, :, offset] = keys[sequence][position].to(case.dtype)
                value_cache[block, :, offset] = values[sequence][position].to(case.dtype)
            else:
                slots.append(block * BLOCK + offset)
    starts = torch.tensor([0, *case.new]).cumsum(0).int()
    new_keys = torch.cat([k[n:] for k, n in zip(keys, case.cached, strict=True)])
    new_values = torch.cat([v[n:] for v, n in zip(values, case.cached, strict=True)])
    return (
        torch.cat(queries)[None].transpose(1, 2),
        new_keys[None].transpose(1, 2),
        new_values[None].transpose(1, 2),
        key_cache,
        value_cache,
        starts,
        torch.tensor([len(k) for k in keys]).int(),
        tables.int(),
        torch.tensor(slots),
        0.3,
        case.window,
        case.softcap,
        sinks,
    )


def test_one_pass_equals_many_steps() -> None:
    torch.manual_seed(1)
    q, k, v = (torch.randn(1, heads, 11, 8) for heads in (4, 2, 2))
    table = torch.tensor([[2, 0, 1]]).int()
    slots = (table[0].long()[:, None] * BLOCK + torch.arange(BLOCK)).flatten()

    def run(pieces: list[tuple[int, int]]) -> torch.Tensor:
        caches = torch.zeros(3, 2, BLOCK, 8), torch.zeros(3, 2, BLOCK, 8)
        out = []
        for begin, end in pieces:
            part = (x[:, :, begin:end] for x in (q, k, v))
            starts, lengths = torch.tensor([0, end - begin]).int(), torch.tensor([end]).int()
            step = (*part, *caches, starts, lengths, table, slots[begin:end], 0.5, 3)
            out.append(torch.ops.kt.attention.default(*step))
        return torch.cat(out, dim=1)

    whole = run([(0, 11)])
    torch.testing.assert_close(run([(i, i + 1) for i in range(11)]), whole)
    torch.testing.assert_close(run([(0, 5), (5, 11)]), whole)
