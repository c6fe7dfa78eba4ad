"""Configurations of mixtures of experts: Mixtral (a "llama" with experts), Qwen2-MoE, Qwen3-MoE, GPT-OSS."""

from __future__ import annotations

from typing import Any

from ktc.weights.hyper import Hyper, layer_types
from ktc.weights.rope_config import DEFAULT_BASE, scaling_parameters

_SOFTMAX, _SOFTMAX_CHOSEN = 1, 3  # llama.cpp's expert_gating_func
_GPT_OSS_PERIOD = 2
_GPT_OSS_LIMIT = 7.0


def experts(hyper: Hyper, gating: int = _SOFTMAX) -> tuple[int, int]:
    """The number of experts and how many of them each token uses.

    Args:
        gating: the architecture's function, in llama.cpp's numbers.
    Raises:
        UnsupportedModelError: the file names another function.
    """
    count = hyper.integer("expert_count")
    used = hyper.integer("expert_used_count")
    if used > count:
        raise hyper.error("expert_used_count", f"is {used} of {count} experts")
    if hyper.has("expert_gating_func") and hyper.integer("expert_gating_func", low=0) not in (0, gating):
        raise hyper.unsupported(
            "expert_gating_func", f"only softmax ({gating}) is known for this architecture"
        )
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


def gpt_oss_fields(hyper: Hyper, fields: dict[str, Any]) -> dict[str, Any]:
    """Adds GPT-OSS's fields. The activation's slope (1.702) and limit (7) are constants of llama.cpp and of the class.

    YaRN's correction range is not rounded to whole dimensions (`truncate`), as the published configurations say and a
    GGUF cannot.
    """
    count, used = experts(hyper, _SOFTMAX_CHOSEN)
    size, layers = fields["head_dim"], fields["num_hidden_layers"]
    rotated = hyper.integer("rope.dimension_count", size)
    if rotated != size:
        raise hyper.unsupported("rope.dimension_count", f"is {rotated}, but a head has {size} elements")
    limit = "swiglu_clamp_exp"
    if hyper.has(limit) and set(hyper.metadata.numbers(hyper.key(limit)).tolist()) != {_GPT_OSS_LIMIT}:
        raise hyper.unsupported(
            limit, f"other limits than {_GPT_OSS_LIMIT} are not known for this architecture"
        )
    scaling = scaling_parameters(hyper)
    if scaling["rope_type"] == "yarn":
        scaling["truncate"] = False
    return {
        **fields,
        "num_local_experts": count,
        "num_experts_per_tok": used,
        "intermediate_size": hyper.integer("expert_feed_forward_length"),
        "sliding_window": hyper.integer("attention.sliding_window"),
        "layer_types": layer_types(hyper, layers, _GPT_OSS_PERIOD),
        "swiglu_limit": _GPT_OSS_LIMIT,
        "attention_bias": "blk.0.attn_q.bias" in hyper.tensors,
        "rope_parameters": {"rope_theta": hyper.positive("rope.freq_base", DEFAULT_BASE), **scaling},
    }
