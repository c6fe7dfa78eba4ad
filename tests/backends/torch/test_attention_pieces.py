"""Attention in pieces: the same results and caches as the dialect's references, in less memory."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from ktc.backends.torch import pieces
from ktc.backends.torch.attention_pieces import attention
from support.attention_steps import latent_step, step
from support.packed_weights import dense, make_blocks
from support.peak_memory import PeakMemory

from ktc.dialect.attention import reference

CACHES = ("key_cache", "value_cache")


@pytest.fixture
def few_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """Pieces of a few tokens, or of one where the context is long."""
    monkeypatch.setattr(pieces, "SCORE_ELEMENTS", 400)


def on(device: torch.device, operands: dict[str, Any]) -> dict[str, Any]:
    """The same operands on a device, tensors of their own."""
    return {n: v.to(device, copy=True) if isinstance(v, torch.Tensor) else v for n, v in operands.items()}


def same(got: torch.Tensor, operands: dict[str, Any], expected: torch.Tensor, wanted: dict[str, Any]) -> None:
    assert (got.cpu() - expected).norm() <= 1e-5 * expected.norm()
    for name in CACHES:
        assert torch.equal(operands[name].cpu(), wanted[name])


@pytest.mark.usefixtures("few_at_a_time")
@pytest.mark.parametrize(("new", "cached"), [([23], [0]), ([1], [90]), ([9, 0, 1, 40], [0, 5, 33, 7])])
@pytest.mark.parametrize(
    "extra", [{}, {"window": 8}, {"softcap": 5.0, "sinks": torch.tensor([0.1, 2, 0, 1])}]
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_attention(
    device: torch.device, new: list[int], cached: list[int], extra: dict[str, Any], dtype: torch.dtype
) -> None:
    wanted = step(new, cached, dtype=dtype) | extra
    operands = on(device, wanted)
    expected = torch.ops.kt.attention(**wanted)
    same(torch.ops.kt_torch.attention_pieces(**operands), operands, expected, wanted)


@pytest.mark.usefixtures("few_at_a_time")
@pytest.mark.parametrize(("new", "cached"), [([23], [0]), ([1], [90]), ([9, 0, 1, 40], [0, 5, 33, 7])])
@pytest.mark.parametrize("formats", [("q8_0", "q4_0"), ("bf16", "f32")])
def test_latent_attention(
    device: torch.device, new: list[int], cached: list[int], formats: tuple[str, str]
) -> None:
    heads, width, nope, value = 4, 64, 32, 32
    wanted = latent_step(new, cached, heads=heads, width=width, nope=nope)
    keys, values = (
        make_blocks(formats[0], heads * width, nope, 1),
        make_blocks(formats[1], heads * value, width, 2),
    )
    operands = on(device, wanted)
    expected = torch.ops.kt.mla_attention(
        **wanted,
        w_key=dense(formats[0], keys, heads * width, nope).view(heads, width, nope),
        w_value=dense(formats[1], values, heads * value, width).view(heads, value, width),
    )
    got = torch.ops.kt_torch.mla_attention_blocks(
        **operands, w_key=keys.to(device), w_value=values.to(device), key_format=formats[0],
        value_format=formats[1], value_dim=value,
    )  # fmt: skip
    same(got, operands, expected, wanted)


def test_memory_does_not_grow_with_the_step(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pieces, "SCORE_ELEMENTS", 4 * 128 * 16)
    peaks = []
    for call in (reference, attention):
        operands = step([128], [0])
        with PeakMemory() as memory:
            call(**operands)
        peaks.append(memory.peak)
    # A context of 128 entries, 2 heads of 32 for keys and for values: the cache's numbers, float32, and a copy.
    gathered = 128 * 2 * 2 * 32 * (2 * 4 + 4)
    result = 128 * 4 * 32 * 4
    assert peaks[1] <= pieces.score_bytes(4, 128) + gathered + 2 * result < peaks[0]
