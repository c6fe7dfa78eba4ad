"""Tiny random models, the same in every run, beside placed models that compute the same."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from transformers import Gemma3ForCausalLM, Gemma3TextConfig, LlamaConfig, LlamaForCausalLM, PreTrainedModel

SIZES: dict[str, Any] = {
    "vocab_size": 256,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "max_position_embeddings": 1024,
    "initializer_range": 0.3,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 0,
}


def llama(seed: int = 0, **changes: Any) -> PreTrainedModel:
    """An eager Llama with random float32 weights."""
    torch.manual_seed(seed)
    return LlamaForCausalLM(LlamaConfig(**{**SIZES, **changes})).eval()


def gemma3(seed: int = 0) -> PreTrainedModel:
    """An eager Gemma 3 whose layers alternate a window of 6 tokens and full attention."""
    torch.manual_seed(seed)
    config = Gemma3TextConfig(
        **{**SIZES, "num_hidden_layers": 3},
        sliding_window=6,
        query_pre_attn_scalar=8,
        layer_types=["sliding_attention", "full_attention", "sliding_attention"],
    )
    return Gemma3ForCausalLM(config).eval()


@pytest.fixture(scope="session")
def eager() -> PreTrainedModel:
    """The eager Llama that most tests compare with."""
    return llama()


def token_ids(*shape: int, seed: int = 7) -> torch.Tensor:
    """Random ids without the special ones."""
    return torch.randint(3, 250, shape, generator=torch.Generator().manual_seed(seed))
