"""Tokens of a prefill step by level and experts."""

from __future__ import annotations

import pytest
from support.compiling import tiny
from transformers import PreTrainedConfig

from ktc import _cpu
from ktc.prefill import LARGEST_STEP, STEP, default_chunk


def config(count: int, used: int) -> PreTrainedConfig:
    found = PreTrainedConfig()
    found.num_experts, found.num_experts_per_tok = count, used
    return found


def test_below_amx(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_cpu, "isa", lambda: "avx512vnni")
    assert default_chunk(config(128, 8)) == STEP


def test_experts_on_tiles(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_cpu, "isa", lambda: "amx")
    assert default_chunk(config(8, 2)) == STEP
    assert default_chunk(config(64, 8)) == 1024
    assert default_chunk(config(128, 8)) == 2048
    assert default_chunk(config(256, 8)) == LARGEST_STEP


def test_dense(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_cpu, "isa", lambda: "amx")
    assert default_chunk(tiny("llama").config) == STEP
