"""Configurations of mixtures of experts: Mixtral (a "llama" with experts), Qwen2-MoE, Qwen3-MoE."""

from __future__ import annotations

from typing import Any

from ktc.weights.hyper import Hyper

_SOFTMAX = 1  # llama.cpp's expert_gating_func


def experts(hyper: Hyper) -> tuple[int, int]:
    """The number of experts and how many of them each token uses.

    Raises:
        UnsupportedModelError: another gating function than softmax over the experts.
    """
    count = hyper.integer("expert_count")
    used = hyper.integer("expert_used_count")
    if used > count:
        raise hyper.error("expert_used_count", f"is {used} of {count} experts")
    if hyper.has("expert_gating_func") and hyper.integer("expert_gating_func", low=0) not in (0, _SOFTMAX):
        raise hyper.unsupported("expert_gating_func", "only softmax is known for this architecture")
    if hyper.number("expert_weights_scale", 1.0) not in (0.0, 1.0):
        raise hyper.unsupported("expert_weights_scale", "only 1 is known for this architecture")
    return count, used


def mixtral_fields(hyper: Hyper, fields: dict[str, Any]) -> dict[str, Any]:
    """Adds Mixtral's fields; `feed_forward_length` is the experts' size."""
    count, used = experts(hyper)
    return {**fields, "num_local_experts": count, "num_experts_per_tok": used, "sliding_window": None}


def qwen2_moe_fields(hyper: Hyper, fields: dict[str, Any]) -> dict[str, Any]:
    """Adds Qwen2-MoE's fields. Like llama.cpp, which knows no other way, the weights of the chosen experts
    are not normalised and every layer has experts.
    """
    count, used = experts(hyper)
    size = hyper.integer("expert_feed_forward_length", fields["intermediate_size"] // used)
    return {
        **fields,
        "num_experts": count,
        "num_experts_per_tok": used,
        "moe_intermediate_size": size,
        "shared_expert_intermediate_size": hyper.integer(
            "expert_shared_feed_forward_length", fields["intermediate_size"]
        ),
        "norm_topk_prob": False,
        "decoder_sparse_step": 1,
        "mlp_only_layers": [],
        "use_sliding_window": False,
        "qkv_bias": "blk.0.attn_q.bias" in hyper.tensors,
    }


def qwen3_moe_fields(hyper: Hyper, fields: dict[str, Any]) -> dict[str, Any]:
    """Adds Qwen3-MoE's fields. Like llama.cpp, which knows no other way, the weights of the chosen experts
    are normalised and every layer has experts.
    """
    count, used = experts(hyper)
    return {
        **fields,
        "num_experts": count,
        "num_experts_per_tok": used,
        "moe_intermediate_size": hyper.integer(
            "expert_feed_forward_length", fields["intermediate_size"] // used
        ),
        "norm_topk_prob": True,
        "decoder_sparse_step": 1,
        "mlp_only_layers": [],
        "use_sliding_window": False,
        "attention_bias": "blk.0.attn_q.bias" in hyper.tensors,
    }
