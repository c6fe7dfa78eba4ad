"""Captured language models against transformers' eager ones: one graph for prefill, decode and batches."""

from __future__ import annotations

from functools import cache

import pytest
import torch
from support.architectures import ARCHITECTURES, eager_model, tiny_config
from support.paging import PagedRun
from transformers import PreTrainedModel

from ktc.capture import Captured, capture_language_model, meta_model


@cache
def _pair(name: str) -> tuple[PreTrainedModel, Captured]:
    config = tiny_config(name)
    return eager_model(config), capture_language_model(meta_model(config), block_size=4)


def _eager_steps(model: PreTrainedModel, ids: torch.Tensor, prefill: int) -> torch.Tensor:
    """Logits [n, V] of a prefill and one-token steps through the model's own cache."""
    with torch.no_grad():
        out = model(ids[None, :prefill], use_cache=True)
        logits = [out.logits[0]]
        for place in range(prefill, len(ids)):
            out = model(ids[None, place : place + 1], past_key_values=out.past_key_values, use_cache=True)
            logits.append(out.logits[0])
    return torch.cat(logits)


def _tokens(count: int, seed: int = 0) -> torch.Tensor:
    return torch.randint(3, 250, (count,), generator=torch.Generator().manual_seed(seed))


def _assert_close(found: torch.Tensor, expected: torch.Tensor) -> None:
    error = (found - expected).abs().max() / expected.abs().max()
    assert error < 2e-6, f"relative error {float(error):.1e}"


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_prefill_and_decode_equal_eager(name: str) -> None:
    model, captured = _pair(name)
    ids = _tokens(18)
    run = PagedRun(captured, dict(model.state_dict()))
    pieces = [run.step([ids[:13]])[0], *(run.step([ids[i : i + 1]])[0] for i in range(13, 18))]
    _assert_close(torch.cat(pieces), _eager_steps(model, ids, 13))


@pytest.mark.parametrize("name", ["llama", "gemma3_text", "qwen3"])
def test_ragged_batch_equals_each_sequence_alone(name: str) -> None:
    model, captured = _pair(name)
    sequences = [_tokens(17, 1), _tokens(9, 2), _tokens(12, 3)]
    steps = [
        (11, 0, 4),
        (1, 7, 5),
        (0, 1, 1),
        (5, 1, 2),
    ]  # sequences join, pause and prefill beside decoding ones
    run = PagedRun(captured, dict(model.state_dict()), sequences=3)
    places, found = [0, 0, 0], [[], [], []]  # type: ignore[var-annotated]
    for step in steps:
        tokens = [ids[p : p + n] for ids, p, n in zip(sequences, places, step, strict=True)]
        places = [p + n for p, n in zip(places, step, strict=True)]
        for rows, logits in zip(found, run.step(tokens), strict=True):
            rows.append(logits)
    for ids, rows in zip(sequences, found, strict=True):
        _assert_close(torch.cat(rows), _eager_steps(model, ids, len(ids)))


def test_logits_index_picks_rows() -> None:
    model, captured = _pair("llama")
    ids = _tokens(7)
    run = PagedRun(captured, dict(model.state_dict()))
    every = run.step([ids])[0]
    again = PagedRun(captured, dict(model.state_dict()))
    starts, lengths = torch.tensor([0, 7]).int(), torch.tensor([7]).int()
    positions, table = torch.arange(7)[None], again.tables.int()
    slots = (again.tables[0, :, None] * 4 + torch.arange(4)).flatten()[:7]
    with torch.no_grad():
        some = again.graph(ids[None], positions, starts, lengths, table, slots, torch.tensor([6, 2]))
    torch.testing.assert_close(some[0], every[[6, 2]], rtol=0, atol=1e-6)


def test_a_half_precision_cache_changes_little_and_something() -> None:
    model, captured = _pair("llama")
    ids = _tokens(13)
    exact = PagedRun(captured, dict(model.state_dict())).step([ids])[0]
    half = PagedRun(captured, dict(model.state_dict()), dtype=torch.float16).step([ids])[0]
    assert 0 < float((exact - half).abs().max() / exact.abs().max()) < 1e-3


def test_caches_have_the_dimensions_of_keys_and_values() -> None:
    _, captured = _pair("deepseek_v3")
    assert [spec.layer for spec in captured.caches] == [0, 1, 2, 3]
    last = captured.caches[-1]
    assert (last.key, last.value) == ("kv.3.key", "kv.3.value")
    assert (last.heads, last.key_dim, last.value_dim) == (4, 24, 16)
    _, gemma = _pair("gemma3_text")
    assert [spec.window for spec in gemma.caches] == [6, 0, 6, 0]
