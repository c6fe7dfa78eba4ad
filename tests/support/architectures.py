"""Tiny configurations of the architectures that capture is tested on, and models with random weights."""

from __future__ import annotations

from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM, PretrainedConfig, PreTrainedModel

_BASE: dict[str, Any] = {
    "vocab_size": 256,
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 512,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
_HEAD: dict[str, Any] = {"head_dim": 16}
_MOE: dict[str, Any] = {"moe_intermediate_size": 32, "num_experts": 8, "num_experts_per_tok": 2}
_DEEPSEEK: dict[str, Any] = {
    **_BASE,
    "num_key_value_heads": 4,
    "q_lora_rank": 24,
    "kv_lora_rank": 16,
    "qk_rope_head_dim": 8,
    "qk_nope_head_dim": 16,
    "v_head_dim": 16,
    "n_routed_experts": 8,
    "n_shared_experts": 1,
    "moe_intermediate_size": 32,
    "num_experts_per_tok": 2,
    "first_k_dense_replace": 1,
}
_ARCHITECTURES: dict[str, dict[str, Any]] = {
    "llama": _BASE | _HEAD,
    "qwen2": _BASE,
    "qwen3": _BASE | _HEAD,
    "qwen2_moe": _BASE | _MOE | {"shared_expert_intermediate_size": 64, "decoder_sparse_step": 1},
    "qwen3_moe": _BASE | _HEAD | _MOE,
    "mixtral": _BASE | _HEAD | {"num_local_experts": 8, "num_experts_per_tok": 2},
    "deepseek_v2": _DEEPSEEK | {"topk_method": "group_limited_greedy", "n_group": 4, "topk_group": 2},
    "deepseek_v3": _DEEPSEEK | {"n_group": 4, "topk_group": 2},
    "gemma3_text": _BASE | _HEAD | {"sliding_window": 6, "query_pre_attn_scalar": 16},
    "gpt_oss": _BASE | _HEAD | {"num_local_experts": 8, "num_experts_per_tok": 2, "sliding_window": 6},
    "glm4_moe": _BASE
    | _HEAD
    | {
        "moe_intermediate_size": 32,
        "n_routed_experts": 8,
        "num_experts_per_tok": 2,
        "n_shared_experts": 1,
        "first_k_dense_replace": 1,
        "n_group": 1,
        "topk_group": 1,
    },
}
ARCHITECTURES = tuple(_ARCHITECTURES)


def tiny_config(name: str, layers: int = 4, **changes: Any) -> PretrainedConfig:
    """A configuration of architecture `name`; sliding windows, if it has them, on every other layer."""
    settings = dict(_ARCHITECTURES[name]) | {"num_hidden_layers": layers}
    if "sliding_window" in settings:
        kinds = ("sliding_attention", "full_attention")
        settings["layer_types"] = [kinds[index % 2] for index in range(layers)]
    config: PretrainedConfig = AutoConfig.for_model(name, **(settings | changes))
    return config


def eager_model(config: PretrainedConfig, seed: int = 0) -> PreTrainedModel:
    """The model of transformers itself with random float32 weights, none of them constant."""
    torch.manual_seed(seed)
    model: PreTrainedModel = AutoModelForCausalLM.from_config(
        config, dtype=torch.float32, attn_implementation="eager", experts_implementation="eager"
    )
    with torch.no_grad():
        for name, tensor in model.state_dict().items():
            if tensor.is_floating_point():
                spread = 0.3 if tensor.dim() == 1 else 0.08
                offset = 1.0 if "norm" in name and "gemma" not in config.model_type else 0.0
                tensor.copy_(offset + spread * torch.randn(tensor.shape))
    return model.eval()
