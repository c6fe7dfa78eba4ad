"""The tensors that llama.cpp's converter makes of a Hugging Face model: names, and what it does to the values."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from transformers import PreTrainedModel

ARCHITECTURES = {
    "llama": "llama",
    "mistral": "llama",
    "mixtral": "llama",
    "qwen2": "qwen2",
    "qwen3": "qwen3",
    "qwen2_moe": "qwen2moe",
    "qwen3_moe": "qwen3moe",
    "gemma3_text": "gemma3",
    "deepseek_v2": "deepseek2",
    "deepseek_v3": "deepseek2",
    "gpt_oss": "gpt-oss",
    "glm4_moe": "glm4moe",
}
_TOP = {"model.embed_tokens": "token_embd", "model.norm": "output_norm", "lm_head": "output"}
_LAYER = {
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "self_attn.q_norm": "attn_q_norm",
    "self_attn.k_norm": "attn_k_norm",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
    "input_layernorm": "attn_norm",
    "post_attention_layernorm": "ffn_norm",
    "mlp.gate": "ffn_gate_inp",
    "mlp.router": "ffn_gate_inp",
    "mlp.shared_expert.gate_proj": "ffn_gate_shexp",
    "mlp.shared_expert.up_proj": "ffn_up_shexp",
    "mlp.shared_expert.down_proj": "ffn_down_shexp",
    "mlp.shared_expert_gate": "ffn_gate_inp_shexp",
    "mlp.shared_experts.gate_proj": "ffn_gate_shexp",
    "mlp.shared_experts.up_proj": "ffn_up_shexp",
    "mlp.shared_experts.down_proj": "ffn_down_shexp",
    "self_attn.q_a_proj": "attn_q_a",
    "self_attn.q_a_layernorm": "attn_q_a_norm",
    "self_attn.q_b_proj": "attn_q_b",
    "self_attn.kv_a_proj_with_mqa": "attn_kv_a_mqa",
    "self_attn.kv_a_layernorm": "attn_kv_a_norm",
    "self_attn.kv_b_proj": "attn_kv_b",
}
_OTHER = {
    "gemma3_text": {
        "post_attention_layernorm": "post_attention_norm",
        "pre_feedforward_layernorm": "ffn_norm",
        "post_feedforward_layernorm": "post_ffw_norm",
    },
    "glm4_moe": {"post_attention_layernorm": "post_attention_norm"},
    "gpt_oss": {"post_attention_layernorm": "post_attention_norm"},
}
_EXPERTS = {"gate": "ffn_gate", "up": "ffn_up", "down": "ffn_down"}

Floats = npt.NDArray[np.float32]


@dataclass(frozen=True)
class Naming:
    """Which of the forms that llama.cpp's converter has had over time.

    Attributes:
        latent: "split": DeepSeek's kv_b as attn_k_b (transposed) and attn_v_b, since latent attention is absorbed
            (2025); "joined": attn_kv_b, as before.
        experts: "fused": one tensor for all experts (ffn_gate_exps); "single": one for each (blk.N.ffn_gate.E), as the
            first Mixtral files have; "joined": gate and up in one tensor too (ffn_gate_up_exps), an option of newer
            converters.
        extra_layer: whether the layer that predicts further tokens follows the last one (GLM-4.5).
    """

    latent: str = "split"
    experts: str = "fused"
    extra_layer: bool = False


def gguf_tensors(model: PreTrainedModel, naming: Naming = Naming()) -> dict[str, Floats]:
    """The model's parameters as float32 under their GGUF names, transformed as the converter does."""
    config = model.config
    found: dict[str, Floats] = {}
    for name, tensor in model.state_dict().items():
        if name == "lm_head.weight" and config.tie_word_embeddings:
            continue
        values = tensor.detach().float().numpy()
        if ".mlp.experts." in name:
            found |= _experts(name, values, config, naming)
        elif name.endswith("kv_b_proj.weight") and naming.latent == "split":
            found |= _split_latent(name, values, config)
        else:
            found[_gguf_name(name, config.model_type)] = _transformed(name, values, config)
    if naming.extra_layer:
        found |= _next_token_layer(found, config)
    return found


def _gguf_name(name: str, model_type: str) -> str:
    layer = name.split(".")[2] if name.startswith("model.layers.") else ""
    if name.endswith("e_score_correction_bias"):
        return f"blk.{layer}.exp_probs_b.bias"
    if name.endswith("self_attn.sinks"):
        return f"blk.{layer}.attn_sinks.weight"
    stem, _, suffix = name.rpartition(".")
    if stem in _TOP:
        return f"{_TOP[stem]}.{suffix}"
    rest = stem.split(".", 3)[3]
    return f"blk.{layer}.{ {**_LAYER, **_OTHER.get(model_type, {})}[rest] }.{suffix}"


def _transformed(name: str, values: Floats, config: Any) -> Floats:
    if ARCHITECTURES[config.model_type] == "llama":
        if ".q_proj." in name:
            return permute(values, config.num_attention_heads)
        if ".k_proj." in name:
            return permute(values, config.num_key_value_heads)
    if config.model_type == "gemma3_text" and "norm" in name:
        return values + np.float32(1)
    if name.endswith("shared_expert_gate.weight"):
        return values.reshape(-1)
    return values


def permute(values: Floats, heads: int) -> Floats:
    """From (first half, second half) of each head's rows to interleaved pairs."""
    half = values.shape[0] // heads // 2
    return values.reshape(heads, 2, half, *values.shape[1:]).swapaxes(1, 2).reshape(values.shape)


def _experts(name: str, values: Floats, config: Any, naming: Naming) -> dict[str, Floats]:
    _, _, layer, _, _, which = name.split(".")
    bias = which.endswith("_bias")
    if config.model_type == "gpt_oss" and not bias:
        values = values.swapaxes(1, 2)  # inputs by outputs in Hugging Face's class
    parts = {"down": values}
    if which.startswith("gate_up"):
        half = values.shape[1] // 2
        parts = {"gate": values[:, :half], "up": values[:, half:]}
        if config.model_type == "gpt_oss":
            parts = {"gate": values[:, ::2], "up": values[:, 1::2]}
    suffix = "bias" if bias else "weight"
    if naming.experts == "joined" and len(parts) == 2:
        return {
            f"blk.{layer}.ffn_gate_up_exps.{suffix}": np.concatenate([parts["gate"], parts["up"]], axis=1)
        }
    if naming.experts != "single":
        return {f"blk.{layer}.{_EXPERTS[key]}_exps.{suffix}": part for key, part in parts.items()}
    return {
        f"blk.{layer}.{_EXPERTS[key]}.{expert}.{suffix}": matrix
        for key, part in parts.items()
        for expert, matrix in enumerate(part)
    }


def _split_latent(name: str, values: Floats, config: Any) -> dict[str, Floats]:
    layer = name.split(".")[2]
    heads = values.reshape(config.num_attention_heads, -1, values.shape[-1])
    keys, rest = heads[:, : config.qk_nope_head_dim], heads[:, config.qk_nope_head_dim :]
    return {f"blk.{layer}.attn_k_b.weight": keys.swapaxes(1, 2), f"blk.{layer}.attn_v_b.weight": rest}


def _next_token_layer(found: dict[str, Floats], config: Any) -> dict[str, Floats]:
    """A layer after the last: the last one's tensors again, and those that join it to the next token."""
    last, size = config.num_hidden_layers - 1, config.hidden_size
    prefix, new = f"blk.{last}.", f"blk.{last + 1}."
    copied = {
        new + n.removeprefix(prefix): v * np.float32(2) for n, v in found.items() if n.startswith(prefix)
    }
    joined = {
        "nextn.eh_proj.weight": np.ones((size, 2 * size), np.float32),
        "nextn.enorm.weight": np.ones(size, np.float32),
        "nextn.hnorm.weight": np.ones(size, np.float32),
        "nextn.shared_head_norm.weight": np.ones(size, np.float32),
    }
    return {**copied, **{new + name: values for name, values in joined.items()}}
