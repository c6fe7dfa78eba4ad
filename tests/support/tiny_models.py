"""Small models with random weights whose norms and biases are not trivial, so that every transformation
shows.
"""

from __future__ import annotations

from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel

_BASE: dict[str, Any] = {
    "vocab_size": 512,
    "hidden_size": 256,
    "intermediate_size": 512,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "num_hidden_layers": 2,
    "max_position_embeddings": 512,
    "rms_norm_eps": 1e-5,
    "bos_token_id": 256,
    "eos_token_id": 258,
    "pad_token_id": 256,
    "tie_word_embeddings": False,
}
_EXPERTS: dict[str, Any] = {"moe_intermediate_size": 256, "num_experts": 4, "num_experts_per_tok": 2}
_ROUTED: dict[str, Any] = {
    "n_routed_experts": 8,
    "num_experts_per_tok": 2,
    "n_shared_experts": 1,
    "moe_intermediate_size": 256,
    "first_k_dense_replace": 1,
    "n_group": 4,
    "topk_group": 2,
    "routed_scaling_factor": 2.5,
}
_LATENT: dict[str, Any] = {
    "rms_norm_eps": 1e-6,  # as published: the norms inside of attention have no other
    "num_key_value_heads": 4,
    "q_lora_rank": 256,
    "kv_lora_rank": 256,
    "qk_rope_head_dim": 32,
    "qk_nope_head_dim": 64,
    "v_head_dim": 64,
    "rope_parameters": {
        "rope_type": "yarn",
        "rope_theta": 1e4,
        "factor": 4.0,
        "original_max_position_embeddings": 128,
        "beta_fast": 32.0,
        "beta_slow": 1.0,
        "mscale": 0.707,
        "mscale_all_dim": 0.707,
    },
}
_ARCHITECTURES: dict[str, dict[str, Any]] = {
    "llama": {"head_dim": 64},
    "qwen2": {},
    "qwen3": {"head_dim": 128},
    "gemma3_text": {
        "head_dim": 64,
        "query_pre_attn_scalar": 64,
        "num_hidden_layers": 7,
        "sliding_window": 16,
        "layer_types": ["sliding_attention"] * 5 + ["full_attention", "sliding_attention"],
        "rope_parameters": {
            "full_attention": {"rope_type": "default", "rope_theta": 1e6},
            "sliding_attention": {"rope_type": "default", "rope_theta": 1e4},
        },
        "tie_word_embeddings": True,
    },
    "mixtral": {"head_dim": 64, "num_local_experts": 4, "num_experts_per_tok": 2},
    "qwen2_moe": {**_EXPERTS, "shared_expert_intermediate_size": 512, "norm_topk_prob": False},
    "deepseek_v2": {**_ROUTED, **_LATENT, "topk_method": "group_limited_greedy", "norm_topk_prob": False},
    "deepseek_v3": {**_ROUTED, **_LATENT, "norm_topk_prob": True},
    "glm4_moe": {**_ROUTED, "head_dim": 64, "use_qk_norm": True, "attention_bias": True},
    "gpt_oss": {
        "head_dim": 64,
        "intermediate_size": 256,
        "num_local_experts": 4,
        "num_experts_per_tok": 2,
        "sliding_window": 16,
        "layer_types": ["sliding_attention", "full_attention"],
        "rope_parameters": {
            "rope_type": "yarn",
            "rope_theta": 1.5e5,
            "factor": 4.0,
            "original_max_position_embeddings": 128,
            "beta_fast": 32.0,
            "beta_slow": 1.0,
            "truncate": False,
        },
    },
    "qwen3_moe": {**_EXPERTS, "head_dim": 128, "norm_topk_prob": True},
}


def tiny_model(architecture: str, *, seed: int = 0, **changes: Any) -> PreTrainedModel:
    """A float32 model in eval mode.

    Args:
        architecture: a transformers model type, a key of the table above.
        seed: of the random weights. changes: configuration fields other than the small defaults.
    """
    fields = {**_BASE, **_ARCHITECTURES[architecture], **changes}
    config = AutoConfig.for_model(architecture, **fields)
    generator = torch.Generator().manual_seed(seed)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)  # the noise on biases and norms is added to what the class starts with
        model = AutoModelForCausalLM.from_config(
            config, dtype=torch.float32, attn_implementation="eager"
        ).eval()
    with torch.no_grad():
        for name, buffer in model.named_buffers():
            if name.endswith("e_score_correction_bias"):
                buffer.copy_(0.1 * torch.randn(buffer.shape, generator=generator))
        for name, parameter in model.named_parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            if parameter.dim() == 1:
                parameter.add_(0.1 * noise)
            else:
                parameter.copy_(noise / parameter.shape[-1] ** 0.5)
            if architecture == "gpt_oss" and name.endswith("gate_up_proj"):
                parameter.mul_(6.0)  # so that its activation clamps some values
    return model
