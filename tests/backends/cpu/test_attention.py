"""cpu.attention against kt.attention in float64: ragged batches, windows, sinks, long contexts, bad steps."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from ktc.backends.cpu.library import OperandError
from support.attention_checks import cache, check, step
from support.attention_limits import attention_limit

from ktc.dialect.cache_formats import Q8_0, quantize

CACHES = [torch.float32, torch.float16, torch.bfloat16, Q8_0]


STEPS = {
    "one token": ([1], [0]),
    "decode": ([1], [100]),
    "prefill": ([77], [0]),
    "resumed prefill": ([40], [61]),
    "ragged": ([1, 33, 0, 5], [200, 7, 50, 0]),
    "long decode": ([1, 2], [1100, 513]),
}


OPTIONS: dict[str, dict[str, Any]] = {
    "window of 1": {"window": 1},
    "window of 30": {"window": 30},
    "window of 64": {"window": 64},
    "softcap": {"softcap": 5.0},
    "sinks": {"sinks": torch.tensor([-3.0, 0.0, 1.0, 4.0])},
    "scale": {"scale": 3.0},
}


@pytest.mark.parametrize("name", STEPS)
@pytest.mark.parametrize("dtype", CACHES)
def test_steps(name: str, dtype: torch.dtype, level: str) -> None:
    rows = 2 * max(STEPS[name][0])
    check(step(*STEPS[name], dtype=dtype), attention_limit(rows, dtype))


@pytest.mark.parametrize("name", STEPS)
@pytest.mark.parametrize("option", OPTIONS)
def test_options(name: str, option: str, level: str) -> None:
    check({**step(*STEPS[name]), **OPTIONS[option]}, 1e-10)


@pytest.mark.parametrize(
    "shape",
    [
        {"heads": 9, "kv_heads": 3, "depth": 64, "value_depth": 64},
        {"heads": 8, "kv_heads": 1, "depth": 16, "value_depth": 48},
        {"heads": 5, "kv_heads": 5, "depth": 80, "value_depth": 16},
        {"heads": 5, "kv_heads": 5, "depth": 80, "value_depth": 48},
        {"block_size": 1},
        {"block_size": 7},
        {"block_size": 256},
        {"heads": 96, "kv_heads": 1, "depth": 16, "value_depth": 16},
    ],
    ids=lambda shape: "-".join(map(str, shape.values())),
)
def test_shapes(shape: dict[str, int], threads: int) -> None:
    check(step([3, 70, 1], [10, 0, 90], **shape))


@pytest.mark.parametrize("group", [1, 2, 3, 4, 5, 6, 7, 8, 11, 16, 17])
@pytest.mark.parametrize("dtype", CACHES)
def test_few_rows(group: int, dtype: torch.dtype, level: str) -> None:
    operands = step([1], [75], heads=2 * group, depth=96, value_depth=32, block_size=9, dtype=dtype)
    check(operands, attention_limit(group, dtype))


@pytest.mark.parametrize("tokens", [9, 10, 11, 12, 13, 15, 16, 17, 31, 33, 47, 48, 49, 65])
@pytest.mark.parametrize("depths", [(16, 16), (48, 80), (80, 112), (64, 64), (272, 16)], ids=str)
def test_rounded_rows(tokens: int, depths: tuple[int, int], level: str) -> None:
    """Every remainder of rows, positions and depths by the blocks of the products."""
    for dtype, cached in ((torch.float16, 0), (torch.bfloat16, 3 * tokens + 1)):
        operands = step([tokens], [cached], depth=depths[0], value_depth=depths[1], block_size=9, dtype=dtype)
        check(operands, attention_limit(2 * tokens, dtype))


@pytest.mark.parametrize("option", OPTIONS)
def test_options_on_rounded_rows(option: str, level: str) -> None:
    for new, cached in (([70, 9], [3, 190]), ([8], [700])):
        operands = {**step(new, cached, heads=8, block_size=7, dtype=torch.bfloat16), **OPTIONS[option]}
        if option == "sinks":
            operands["sinks"] = torch.linspace(-3, 4, 8)
        # Scores of 17 times the size: the error of a weight grows with them.
        check(operands, attention_limit(4 * max(new), torch.bfloat16, otherwise=1e-10))


def test_rounded_rows_of_extreme_values(level: str) -> None:
    """Rows of zeros, of one large element, and of sizes whose squares are no float32 numbers."""
    operands = step([40], [30], depth=64, dtype=torch.bfloat16)
    operands["q"] = operands["q"].clone()
    operands["q"][0, :, 1] = 0
    operands["q"][0, :, 2] *= 1e-30
    operands["q"][0, :, 3] *= 1e25
    operands["q"][0, :, 4, 5] = 300
    operands["k"] = operands["k"].clone()
    operands["k"][0, :, 1] = 0
    operands["k"][0, :, 2] *= 1e-30
    operands["k"][0, :, 4, 5] = 300
    operands["v"][0, 0, ::3] = 0
    operands["v"][0, 1] *= 1e-7
    check(operands, attention_limit(80, torch.bfloat16, otherwise=1e-9))


def test_what_is_wrong_shows_and_stays_where_it_is(level: str) -> None:
    operands = step([40], [30], dtype=torch.bfloat16)
    operands["q"] = operands["q"].clone()
    operands["q"][0, 1, 5, 3] = torch.nan
    operands["k"] = operands["k"].clone()
    operands["k"][0, 1, 20, 3] = torch.nan  # of query heads 2 and 3, from token 20 on
    out = torch.ops.kt_cpu.attention(**operands)
    assert out[0, 5, 1].isnan().all() and out[0, 20:, 2:].isnan().any(-1).any(-1).all()
    out[0, 5, 1] = 0
    assert out[0, :20].isfinite().all() and out[0, :, :2].isfinite().all()


@pytest.mark.parametrize("option", OPTIONS)
def test_parts_of_a_context(option: str, level: str) -> None:
    check({**step([1, 3], [900, 1290], block_size=7), **OPTIONS[option]}, 1e-10)


@pytest.mark.parametrize("option", OPTIONS)
def test_options_on_quantised_rows(option: str, level: str) -> None:
    operands = {**step([1, 33, 0, 5], [200, 7, 50, 0], block_size=7, dtype=Q8_0), **OPTIONS[option]}
    check(operands, attention_limit(66, Q8_0, otherwise=1e-10))


def test_keys_and_values_of_different_formats(level: str) -> None:
    operands = step([1, 20], [300, 9], depth=64, dtype=Q8_0)
    operands["value_cache"] = cache(len(operands["value_cache"]), 2, 32, 32, torch.bfloat16)
    check(operands, attention_limit(40, Q8_0, torch.bfloat16))
    operands["value_cache"] = cache(len(operands["value_cache"]), 2, 32, 32, torch.float32)
    check(operands)


def test_quantised_rows_say_what_is_wrong(level: str) -> None:
    operands = step([3], [2], dtype=Q8_0)
    operands["v"][0, 1, 1, 3] = float("inf")
    operands["k"] = operands["k"] * 1e30
    out = torch.ops.kt_cpu.attention(**operands)
    assert out[0, :, :2].isfinite().all() and out[0, 1:, 2:].isnan().all()


def test_quantised_rows_of_extreme_values(level: str) -> None:
    operands = step([40], [30], dtype=Q8_0)
    operands["k"] = operands["k"] * torch.logspace(-12, 3, 40)[:, None]
    operands["v"][0, 0, ::3] = 0
    operands["v"][0, 1] *= 1e-7
    check(operands, attention_limit(80, Q8_0, otherwise=1e-9))


def test_codes_are_within_half_a_step() -> None:
    values = torch.randn(50, 3, 64) * torch.logspace(-3, 3, 50)[:, None, None]
    codes, scales = quantize(values)
    back = codes.float().unflatten(-1, (-1, 32)) * scales.float()[..., None]
    error = (back.flatten(-2) - values).abs().unflatten(-1, (-1, 32)).amax(-1)
    assert (error <= 0.5 * 1.001 * scales.float()).all() and codes.min() >= -127


def test_a_sequence_does_not_notice_others() -> None:
    together = step([1, 1], [700, 300])
    alone = dict(together)
    for name in ("q", "k", "v"):
        alone[name] = together[name][:, :, 1:]
    alone["seq_starts"] = torch.tensor([0, 1], dtype=torch.int32)
    for name in ("context_lens", "block_tables", "slots"):
        alone[name] = together[name][1:]
    both = torch.ops.kt_cpu.attention(**together)
    assert torch.equal(both[:, 1:], torch.ops.kt_cpu.attention(**alone))


def test_the_result_does_not_depend_on_threads() -> None:
    from ktc import _cpu

    before = _cpu.threads()
    results = []
    try:
        for count in (1, 2, 5):
            _cpu.set_threads(count)
            results.append(torch.ops.kt_cpu.attention(**step([1, 50], [1500, 20], heads=12, kv_heads=6)))
    finally:
        _cpu.set_threads(before)
    assert torch.equal(results[0], results[1]) and torch.equal(results[0], results[2])


def test_large_scores_stay_finite(level: str) -> None:
    operands = step([20], [40])
    operands["scale"] = 1e4
    assert torch.isfinite(torch.ops.kt_cpu.attention(**operands)).all()


def test_tokens_of_no_sequence_get_zeros() -> None:
    operands = step([4], [0])
    operands["seq_starts"] = torch.tensor([1, 3], dtype=torch.int32)
    operands["context_lens"] = torch.tensor([2], dtype=torch.int32)
    out = torch.ops.kt_cpu.attention(**operands)
    assert (out[0, [0, 3]] == 0).all() and (out[0, 1:3] != 0).all()


def test_no_tokens() -> None:
    operands = step([0], [0])
    assert torch.ops.kt_cpu.attention(**operands).shape == (1, 0, 4, 32)


BAD: dict[str, tuple[dict[str, Any], str]] = {
    "slot outside": ({"slots": torch.tensor([0, 10**9])}, "`slots`"),
    "negative slot": ({"slots": torch.tensor([-1, 0])}, "`slots`"),
    "too few slots": ({"slots": torch.tensor([0])}, "`slots`"),
    "starts beyond": ({"seq_starts": torch.tensor([0, 3], dtype=torch.int32)}, "`seq_starts`"),
    "starts backwards": ({"seq_starts": torch.tensor([2, 0], dtype=torch.int32)}, "`seq_starts`"),
    "context too long": ({"context_lens": torch.tensor([10**6], dtype=torch.int32)}, "`context_lens`"),
    "context too short": ({"context_lens": torch.tensor([1], dtype=torch.int32)}, "`context_lens`"),
    "block outside": ({"block_tables": torch.tensor([[99]], dtype=torch.int32)}, "`block_tables`"),
    "negative block": ({"block_tables": torch.tensor([[-1]], dtype=torch.int32)}, "`block_tables`"),
    "wrong integers": ({"context_lens": torch.tensor([2])}, "`context_lens`"),
    "wrong table": ({"block_tables": torch.zeros(2, 1, dtype=torch.int32)}, "`block_tables`"),
    "wrong sinks": ({"sinks": torch.ones(3)}, "`sinks`"),
    "wrong queries": ({"q": torch.randn(1, 3, 2, 32)}, "query heads"),
    "wrong depth": ({"q": torch.randn(1, 4, 2, 16)}, "`k`"),
    "wrong dtype": ({"q": torch.randn(1, 4, 2, 32).half()}, "`q`"),
    "wrong cache": ({"key_cache": torch.randn(4, 2, 32, 16)}, "`key_cache`"),
    "wrong cache dtype": ({"value_cache": torch.zeros(4, 2, 32, 32, dtype=torch.int8)}, "`value_cache`"),
    "rows q8_0 cannot hold": (
        {name: torch.zeros(4, 2, 32, 48, dtype=torch.uint8) for name in ("key_cache", "value_cache")},
        "`key_cache`",
    ),
    "negative window": ({"window": -1}, "window"),
    "negative cap": ({"softcap": -1.0}, "softcap"),
}


@pytest.mark.parametrize("name", BAD)
def test_refuses_steps(name: str) -> None:
    change, text = BAD[name]
    with pytest.raises(OperandError, match=text):
        torch.ops.kt_cpu.attention(**{**step([2], [0]), **change})


def test_refuses_depths_it_has_no_vectors_for() -> None:
    with pytest.raises(OperandError, match="multiples of 16"):
        torch.ops.kt_cpu.attention(**step([2], [0], depth=24))
