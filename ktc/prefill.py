"""How many tokens of a prompt one step takes, where nobody says."""

from __future__ import annotations

from typing import Any

from transformers import PreTrainedConfig

from ktc import _cpu

STEP = 512
"""Where products are bound by arithmetic alone: more tokens a step only leave the caches (benchmarks/NOTES.md)."""
LARGEST_STEP = 2048
EXPERT_TOKENS = 128
"""Tokens an expert from which on opening its weights for tiles takes little beside the products."""


def default_chunk(config: PreTrainedConfig) -> int:
    """Tokens of a prefill step: `STEP`, or on processors with AMX, for a mixture of experts, as many as give an expert
    `EXPERT_TOKENS`, up to `LARGEST_STEP`, by doubling. Tiles open an expert's weights anew in each step, which weighs
    as much as the products of 32 tokens.
    """
    if _cpu.isa() != "amx":
        return STEP
    count, chosen = routed_experts(config)
    chunk = STEP
    while chunk < LARGEST_STEP and chunk * chosen < EXPERT_TOKENS * count:
        chunk *= 2
    return chunk


def routed_experts(config: PreTrainedConfig) -> tuple[int, int]:
    """How many experts a layer has and how many a token chooses; (0, 1) for a dense model."""
    text = config.get_text_config(decoder=True)
    count = _first(text, "num_local_experts", "num_experts", "n_routed_experts")
    chosen = _first(text, "num_experts_per_tok") or 1
    return count, chosen if count else 1


def _first(config: Any, *names: str) -> int:
    """The first attribute that is there, else 0."""
    return next((int(value) for name in names if (value := getattr(config, name, None))), 0)
