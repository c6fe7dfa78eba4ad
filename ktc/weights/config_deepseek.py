"""Configurations of DeepSeek-V2 and V3 (multi-head latent attention), and GLM-4.5, which has their router."""

from __future__ import annotations

from typing import Any

from ktc.weights.hyper import MAX_HEADS, Hyper, special_tokens
from ktc.weights.rope_config import DEFAULT_BASE, scaling_parameters

_SOFTMAX, _SIGMOID = 1, 2  # llama.cpp's expert_gating_func


def deepseek2(hyper: Hyper) -> tuple[str, str, dict[str, Any]]:
    """DeepSeek-V2, V2-Lite (softmax over the experts) or V3, R1 (sigmoid).

    Files written since latent attention was absorbed give the compressed sizes as key_length and value_length and the
    true ones as key_length_mla and value_length_mla; older ones give the true ones only.
    """
    hidden = hyper.integer("embedding_length")
    heads = hyper.integer("attention.head_count", high=MAX_HEADS)
    vocabulary = hyper.vocabulary()
    keys = hyper.integer(
        "attention.key_length_mla" if hyper.has("attention.key_length_mla") else "attention.key_length"
    )
    values = hyper.integer(
        "attention.value_length_mla" if hyper.has("attention.value_length_mla") else "attention.value_length"
    )
    rotated = hyper.integer("rope.dimension_count", high=keys - 1)
    fields = {
        "vocab_size": vocabulary,
        "hidden_size": hidden,
        "num_hidden_layers": hyper.layers(),
        "num_attention_heads": heads,
        "num_key_value_heads": heads,  # latent attention is written as one shared head in newer files
        "max_position_embeddings": hyper.integer("context_length", high=2**31 - 1),
        "rms_norm_eps": hyper.positive("attention.layer_norm_rms_epsilon"),
        "tie_word_embeddings": "output.weight" not in hyper.tensors,
        "intermediate_size": hyper.integer("feed_forward_length"),
        "q_lora_rank": hyper.integer("attention.q_lora_rank") if hyper.has("attention.q_lora_rank") else None,
        "kv_lora_rank": hyper.integer("attention.kv_lora_rank"),
        "qk_rope_head_dim": rotated,
        "qk_nope_head_dim": keys - rotated,
        "v_head_dim": values,
        "attention_bias": False,
        "rope_parameters": _latent_rope(hyper),
        **special_tokens(hyper, vocabulary),
        **_routed(hyper),
    }
    gating = hyper.integer("expert_gating_func", _SOFTMAX, low=0)
    if gating == _SIGMOID:
        return "deepseek_v3", "DeepseekV3ForCausalLM", fields
    if gating not in (0, _SOFTMAX):
        raise hyper.unsupported(
            "expert_gating_func", f"is {gating}; DeepSeek uses softmax (1) or sigmoid (2)"
        )
    if fields["norm_topk_prob"]:
        raise hyper.unsupported(
            "expert_weights_norm", "DeepSeek-V2's class does not normalise expert weights"
        )
    grouped = fields["n_group"] > 1
    return (
        "deepseek_v2",
        "DeepseekV2ForCausalLM",
        {**fields, "topk_method": "group_limited_greedy" if grouped else "greedy"},
    )


def _latent_rope(hyper: Hyper) -> dict[str, Any]:
    """YaRN with DeepSeek's `mscale_all_dim`, which the file keeps as a tenth of it in yarn_log_multiplier; `mscale`
    equals it in the published models, so that cosine and sine stay unscaled, as in llama.cpp.
    """
    base = hyper.positive("rope.freq_base", DEFAULT_BASE)
    name = "rope.scaling.yarn_log_multiplier"
    scaling = scaling_parameters(hyper, log_multiplier=True)
    if scaling["rope_type"] != "yarn":
        return {"rope_theta": base, **scaling}
    all_dim = round(hyper.number(name, 0.0) * 10, 6)
    extra = {"mscale": all_dim, "mscale_all_dim": all_dim} if all_dim else {"attention_factor": 1.0}
    return {"rope_theta": base, **scaling, **extra}


def _routed(hyper: Hyper) -> dict[str, Any]:
    """Routed and shared experts. Files without groups have one; llama.cpp then chooses among all experts too."""
    count, used = hyper.integer("expert_count"), hyper.integer("expert_used_count")
    if used > count:
        raise hyper.error("expert_used_count", f"is {used} of {count} experts")
    groups = hyper.integer("expert_group_count", 1)
    chosen = hyper.integer("expert_group_used_count", groups)
    if count % groups or chosen > groups:
        raise hyper.error(
            "expert_group_count", f"is {groups}, of which {chosen} are used, for {count} experts"
        )
    scale = hyper.number("expert_weights_scale", 1.0)
    return {
        "n_routed_experts": count,
        "num_experts_per_tok": used,
        "n_shared_experts": hyper.integer("expert_shared_count", low=0),
        "moe_intermediate_size": hyper.integer("expert_feed_forward_length"),
        "first_k_dense_replace": hyper.integer("leading_dense_block_count", 0, low=0),
        "n_group": groups,
        "topk_group": chosen,
        "norm_topk_prob": hyper.flag("expert_weights_norm", False),
        "routed_scaling_factor": scale or 1.0,  # 0 is llama.cpp's "not given"
    }


def glm4_moe_fields(hyper: Hyper, fields: dict[str, Any]) -> dict[str, Any]:
    """Adds the fields of GLM-4.5: partial rotary embedding, optional query and key norms, a sigmoid router."""
    if hyper.integer("expert_gating_func", _SIGMOID, low=0) != _SIGMOID:
        raise hyper.unsupported("expert_gating_func", "GLM-4.5 uses sigmoid (2)")
    size = fields["head_dim"]
    rotated = hyper.integer("rope.dimension_count", size // 2, high=size)
    scaling = scaling_parameters(hyper)
    if scaling["rope_type"] != "default":
        raise hyper.unsupported("rope.scaling.type", f"is {scaling['rope_type']!r}; GLM-4.5 has none")
    routed = _routed(hyper)
    if not hyper.has("expert_weights_norm"):
        routed["norm_topk_prob"] = True
    return {
        **fields,
        **routed,
        "intermediate_size": hyper.integer("feed_forward_length"),
        "use_qk_norm": "blk.0.attn_q_norm.weight" in hyper.tensors,
        "attention_bias": "blk.0.attn_q.bias" in hyper.tensors,
        "rope_parameters": {
            "rope_theta": hyper.positive("rope.freq_base", DEFAULT_BASE),
            "rope_type": "default",
            "partial_rotary_factor": rotated / size,
        },
    }
