"""cpu.attention of many query rows over long contexts: the blocks of the kernels on tiles, at every level."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from support.attention_checks import cache, check, step
from support.attention_limits import attention_limit

from ktc.dialect.cache_formats import Q8_0

STEPS = {
    "one chunk and more": ([40], [600]),
    "from an empty cache": ([300], [0]),
    "around a chunk": ([33], [255]),
    "few tokens": ([9], [1000]),
    "several sequences": ([70, 1, 0, 12, 8], [250, 300, 9, 511, 500]),
}
"""New tokens, and cached ones before them."""
OPTIONS: dict[str, dict[str, Any]] = {
    "all": {},
    "window of 1": {"window": 1},
    "window of 33": {"window": 33},
    "window of 300": {"window": 300},
    "softcap": {"softcap": 5.0},
    "sinks": {"sinks": torch.tensor([-3.0, 0.0, 1.0, 4.0, 0.5, -1.0, 2.0, 3.0])},
    "large scores": {"scale": 3.0},
}


@pytest.mark.parametrize("name", STEPS)
@pytest.mark.parametrize("option", OPTIONS)
def test_chunks(name: str, option: str, level: str) -> None:
    for dtype in (torch.float16, torch.bfloat16):
        operands = {**step(*STEPS[name], heads=8, block_size=16, dtype=dtype), **OPTIONS[option]}
        check(operands, attention_limit(33, dtype, otherwise=1e-10))


@pytest.mark.parametrize(
    "shape",
    [
        {"heads": 3, "kv_heads": 3, "depth": 64, "value_depth": 96},
        {"heads": 6, "kv_heads": 2, "depth": 48, "value_depth": 16},
        {"heads": 17, "kv_heads": 1, "depth": 32, "value_depth": 48},
        {"heads": 96, "kv_heads": 1, "depth": 16, "value_depth": 32},
    ],
    ids=lambda shape: "-".join(map(str, shape.values())),
)
def test_runs_of_queries(shape: dict[str, int], level: str) -> None:
    """Blocks of rows of one head, and of several heads."""
    for new, cached in ((33, 20), (75, 230)):
        check(step([new], [cached], dtype=torch.float16, **shape), attention_limit(33, torch.float16))


def test_formats_of_both_caches(level: str) -> None:
    for keys, values in ((Q8_0, torch.float16), (torch.bfloat16, Q8_0), (torch.float16, torch.float32)):
        operands = step([50], [300], heads=8, dtype=keys)
        operands["value_cache"] = cache(len(operands["value_cache"]), 2, 32, 32, values)
        check(operands, attention_limit(33, keys, values))


def test_more_positions_than_are_placed_at_once(level: str) -> None:
    """Placed positions of the key heads take 132 MB, in waves of 64 MiB at most."""
    operands = step([9], [8100], heads=16, kv_heads=8, depth=512, value_depth=16, dtype=torch.bfloat16)
    operands["q"] = operands["q"] * 0.3
    check(operands, attention_limit(18, torch.bfloat16))
