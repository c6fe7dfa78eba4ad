"""Which GGUF tensors make which parameter, for every architecture whose names are known."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from ktc.errors import UnsupportedModelError
from ktc.weights.names import Source, source_of, transforms
from ktc.weights.recipe import AddConstant, InterleaveHalves

BASE: dict[str, Any] = {
    "vocab_size": 256,
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "num_hidden_layers": 2,
}
MLA: dict[str, Any] = {
    "q_lora_rank": 24,
    "kv_lora_rank": 16,
    "qk_rope_head_dim": 8,
    "qk_nope_head_dim": 16,
    "v_head_dim": 16,
    "num_key_value_heads": 4,
    "n_routed_experts": 8,
    "moe_intermediate_size": 32,
    "first_k_dense_replace": 1,
}
EXPERTS: dict[str, Any] = {"num_experts": 8, "moe_intermediate_size": 32, "num_experts_per_tok": 2}
MODELS: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("llama", {"attention_bias": True, "mlp_bias": True}),
    "mixtral": ("llama", {"num_local_experts": 8}),
    "qwen2": ("qwen2", {}),
    "qwen3": ("qwen3", {"head_dim": 16}),
    "gemma3_text": ("gemma3", {"head_dim": 16}),
    "qwen2_moe": ("qwen2moe", EXPERTS),
    "qwen3_moe": ("qwen3moe", {**EXPERTS, "head_dim": 16}),
    "deepseek_v2": ("deepseek2", MLA),
    "deepseek_v3": ("deepseek2", {**MLA, "n_group": 2, "topk_group": 1}),
    "gpt_oss": ("gpt-oss", {"head_dim": 16, "num_local_experts": 8}),
    "glm4_moe": (
        "glm4moe",
        {
            "n_routed_experts": 8,
            "moe_intermediate_size": 32,
            "head_dim": 16,
            "first_k_dense_replace": 1,
            "use_qk_norm": True,
        },
    ),
}


@pytest.mark.parametrize("model_type", MODELS)
def test_every_parameter_and_buffer_has_its_tensor(model_type: str) -> None:
    architecture, changes = MODELS[model_type]
    config = AutoConfig.for_model(model_type, **{**BASE, **changes})
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config)
    seen: set[str] = set()
    for parameter in model.state_dict():
        source = source_of(parameter, architecture, 2)
        assert source is not None, parameter
        if parameter != "lm_head.weight":
            assert not seen & set(source.names), parameter
            seen |= set(source.names)


@pytest.mark.parametrize(
    ("parameter", "architecture", "expected"),
    [
        ("model.embed_tokens.weight", "llama", Source((("token_embd.weight",),))),
        ("model.norm.weight", "llama", Source((("output_norm.weight",),))),
        ("lm_head.weight", "llama", Source((("output.weight", "token_embd.weight"),))),
        ("model.layers.1.self_attn.q_proj.bias", "qwen2", Source((("blk.1.attn_q.bias",),))),
        ("model.layers.0.post_attention_layernorm.weight", "llama", Source((("blk.0.ffn_norm.weight",),))),
        (
            "model.layers.0.post_attention_layernorm.weight",
            "gemma3",
            Source((("blk.0.post_attention_norm.weight",),)),
        ),
        (
            "model.layers.0.pre_feedforward_layernorm.weight",
            "gemma3",
            Source((("blk.0.ffn_norm.weight",),)),
        ),
        (
            "model.layers.1.mlp.experts.gate_up_proj",
            "qwen3moe",
            Source((("blk.1.ffn_gate_exps.weight",), ("blk.1.ffn_up_exps.weight",)), axis=1),
        ),
        ("model.layers.1.mlp.experts.down_proj", "qwen3moe", Source((("blk.1.ffn_down_exps.weight",),))),
        (
            "model.layers.1.mlp.gate.e_score_correction_bias",
            "deepseek2",
            Source((("blk.1.exp_probs_b.bias",),)),
        ),
        ("model.layers.0.self_attn.sinks", "gpt-oss", Source((("blk.0.attn_sinks.weight",),))),
        (
            "model.layers.0.mlp.experts.down_proj_bias",
            "gpt-oss",
            Source((("blk.0.ffn_down_exps.bias",),)),
        ),
        (
            "model.layers.0.mlp.shared_expert_gate.weight",
            "qwen2moe",
            Source((("blk.0.ffn_gate_inp_shexp.weight",),)),
        ),
        ("model.layers.2.self_attn.q_proj.weight", "llama", None),
        ("model.layers.2.mlp.experts.down_proj", "qwen3moe", None),
        ("model.vision.weight", "llama", None),
    ],
)
def test_names(parameter: str, architecture: str, expected: Source | None) -> None:
    assert source_of(parameter, architecture, 2) == expected


def test_unknown_architecture_lists_the_known() -> None:
    with pytest.raises(UnsupportedModelError, match="'mamba'") as caught:
        source_of("model.norm.weight", "mamba", 1)
    assert "llama" in caught.value.hint


def test_transforms_are_for_the_right_tensors() -> None:
    assert transforms("blk.3.attn_q.weight", "llama", 8, 2) == (InterleaveHalves(8),)
    assert transforms("blk.3.attn_k.bias", "llama", 8, 2) == (InterleaveHalves(2),)
    assert transforms("blk.3.attn_v.weight", "llama", 8, 2) == ()
    assert transforms("blk.3.attn_q.weight", "qwen2", 8, 2) == ()
    assert transforms("blk.3.attn_q_norm.weight", "gemma3", 8, 2) == (AddConstant(-1.0),)
    assert transforms("output_norm.weight", "gemma3", 8, 2) == (AddConstant(-1.0),)
    assert transforms("blk.3.attn_q_norm.weight", "qwen3", 8, 2) == ()
