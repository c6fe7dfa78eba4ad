"""The Hugging Face configuration of a GGUF model: every field that influences the numbers comes from the
file.

Defaults for absent keys are those of llama.cpp's loader, not those of the configuration class.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from ktc.errors import UnsupportedModelError
from ktc.weights.config_deepseek import deepseek2, glm4_moe_fields
from ktc.weights.config_moe import gpt_oss_fields, mixtral_fields, qwen2_moe_fields, qwen3_moe_fields
from ktc.weights.gguf_metadata import Metadata
from ktc.weights.hyper import MAX_HEADS, Hyper, layer_types, special_tokens
from ktc.weights.rope_config import DEFAULT_BASE, rope_parameters, scaling_parameters
from ktc.weights.tensor import TensorHeader

if TYPE_CHECKING:
    from transformers import PreTrainedConfig

Data = Callable[[TensorHeader], npt.NDArray[np.uint8]]
GEMMA3_LOCAL_BASE = 10000.0
GEMMA3_PATTERN = 6
GEMMA3_27B_LAYERS = 62


def config_of(metadata: Metadata, tensors: Mapping[str, TensorHeader], data: Data) -> PreTrainedConfig:
    """The configuration, with `architectures` naming the causal language model class and dtype float32.

    Raises:
        UnsupportedModelError: an architecture or a setting that ktc cannot express.
        MetadataError: a key is missing, has the wrong type or an impossible value.
    """
    hyper = Hyper(metadata, tensors, data)
    builder = _BUILDERS.get(hyper.architecture)
    if builder is None:
        raise UnsupportedModelError(
            f"GGUF architecture {hyper.architecture!r} is not supported",
            file=metadata.file,
            tensor="general.architecture",
            hint=f"ktc reads {', '.join(_BUILDERS)}",
        )
    hyper.refuse_inexpressible()
    model_type, class_name, fields = builder(hyper)
    from transformers import AutoConfig

    try:
        return AutoConfig.for_model(model_type, **fields, architectures=[class_name], dtype="float32")
    except (ValueError, TypeError) as error:  # the class's own validation
        raise UnsupportedModelError(
            f"{class_name} refuses the file's settings: {error}", file=metadata.file
        ) from error


def head_dim(hyper: Hyper, heads: int, hidden: int) -> int:
    """`attention.key_length`, by default the hidden size over the heads; value heads must be of the same
    size.
    """
    if not hyper.has("attention.key_length") and hidden % heads:
        raise hyper.error(
            "attention.head_count", f"is {heads}, which does not divide the hidden size {hidden}"
        )
    size = hyper.integer("attention.key_length", hidden // heads)
    values = hyper.integer("attention.value_length", size)
    if values != size:
        raise hyper.unsupported("attention.value_length", f"is {values}, the keys have {size}")
    if size % 2:
        raise hyper.error("attention.key_length", f"is {size}; rotary embedding needs an even size")
    return size


def common(hyper: Hyper) -> dict[str, Any]:
    """The fields that every decoder shares, without rotary embedding and feed-forward size."""
    hidden = hyper.integer("embedding_length")
    heads = hyper.integer("attention.head_count", high=MAX_HEADS)
    key_value_heads = hyper.integer("attention.head_count_kv", heads, high=MAX_HEADS)
    if heads % key_value_heads:
        raise hyper.error(
            "attention.head_count_kv", f"is {key_value_heads}, which does not divide {heads} heads"
        )
    vocabulary = hyper.vocabulary()
    return {
        "vocab_size": vocabulary,
        "hidden_size": hidden,
        "num_hidden_layers": hyper.layers(),
        "num_attention_heads": heads,
        "num_key_value_heads": key_value_heads,
        "head_dim": head_dim(hyper, heads, hidden),
        "max_position_embeddings": hyper.integer("context_length", high=2**31 - 1),
        "rms_norm_eps": hyper.positive("attention.layer_norm_rms_epsilon"),
        "tie_word_embeddings": "output.weight" not in hyper.tensors,
        **special_tokens(hyper, vocabulary),
    }


def dense(hyper: Hyper) -> dict[str, Any]:
    """The fields of a decoder with one rotary embedding and one feed-forward size."""
    fields = common(hyper)
    fields["intermediate_size"] = hyper.integer("feed_forward_length")
    fields["rope_parameters"] = rope_parameters(hyper, fields["head_dim"])
    return fields


def _llama(hyper: Hyper) -> tuple[str, str, dict[str, Any]]:
    fields = dense(hyper)
    if hyper.has("expert_count") and hyper.integer("expert_count", low=0) > 0:
        return "mixtral", "MixtralForCausalLM", mixtral_fields(hyper, fields)
    fields["attention_bias"] = "blk.0.attn_q.bias" in hyper.tensors
    fields["mlp_bias"] = "blk.0.ffn_gate.bias" in hyper.tensors
    return "llama", "LlamaForCausalLM", fields


def _internlm2(hyper: Hyper) -> tuple[str, str, dict[str, Any]]:
    """InternLM2 is a Llama whose checkpoints keep query, key and value in one tensor; a GGUF has them apart."""
    fields = dense(hyper)
    fields["attention_bias"] = "blk.0.attn_q.bias" in hyper.tensors
    return "llama", "LlamaForCausalLM", fields


def _qwen2(hyper: Hyper) -> tuple[str, str, dict[str, Any]]:
    fields = dense(hyper)
    if fields["head_dim"] * fields["num_attention_heads"] != fields["hidden_size"]:
        raise hyper.unsupported(
            "attention.key_length", "Qwen2 has heads of the hidden size over their number"
        )
    return "qwen2", "Qwen2ForCausalLM", {**fields, "use_sliding_window": False}


def _qwen3(hyper: Hyper) -> tuple[str, str, dict[str, Any]]:
    fields = dense(hyper)
    fields["attention_bias"] = "blk.0.attn_q.bias" in hyper.tensors
    return "qwen3", "Qwen3ForCausalLM", {**fields, "use_sliding_window": False}


def _qwen2_moe(hyper: Hyper) -> tuple[str, str, dict[str, Any]]:
    return "qwen2_moe", "Qwen2MoeForCausalLM", qwen2_moe_fields(hyper, dense(hyper))


def _qwen3_moe(hyper: Hyper) -> tuple[str, str, dict[str, Any]]:
    return "qwen3_moe", "Qwen3MoeForCausalLM", qwen3_moe_fields(hyper, dense(hyper))


def _glm4_moe(hyper: Hyper) -> tuple[str, str, dict[str, Any]]:
    return "glm4_moe", "Glm4MoeForCausalLM", glm4_moe_fields(hyper, common(hyper))


def _gpt_oss(hyper: Hyper) -> tuple[str, str, dict[str, Any]]:
    return "gpt_oss", "GptOssForCausalLM", gpt_oss_fields(hyper, common(hyper))


def _gemma3(hyper: Hyper) -> tuple[str, str, dict[str, Any]]:
    fields = common(hyper)
    size, heads, layers = fields["head_dim"], fields["num_attention_heads"], fields["num_hidden_layers"]
    rotated = hyper.integer("rope.dimension_count", size)
    if rotated != size:
        raise hyper.unsupported("rope.dimension_count", f"is {rotated}, but a head has {size} elements")
    window = hyper.integer("attention.sliding_window", 0, low=0)
    full = {"rope_theta": hyper.positive("rope.freq_base", DEFAULT_BASE), **scaling_parameters(hyper)}
    local = {"rope_theta": hyper.positive("rope.freq_base_swa", GEMMA3_LOCAL_BASE), "rope_type": "default"}
    softcap = hyper.number("final_logit_softcapping", 0.0)
    fields |= {
        "intermediate_size": hyper.integer("feed_forward_length"),
        "hidden_activation": "gelu_pytorch_tanh",
        # llama.cpp scales by the head size except for the 27B model, whose file does not say it
        "query_pre_attn_scalar": fields["hidden_size"] // heads if layers == GEMMA3_27B_LAYERS else size,
        "sliding_window": window or None,
        "layer_types": layer_types(hyper, layers, GEMMA3_PATTERN) if window else ["full_attention"] * layers,
        "rope_parameters": {"full_attention": full, "sliding_attention": local},
        "final_logit_softcapping": softcap if softcap != 0 else None,
        "attn_logit_softcapping": None,
        "attention_bias": False,
    }
    return "gemma3_text", "Gemma3ForCausalLM", fields


_BUILDERS: Mapping[str, Callable[[Hyper], tuple[str, str, dict[str, Any]]]] = {
    "llama": _llama,
    "internlm2": _internlm2,
    "qwen2": _qwen2,
    "qwen3": _qwen3,
    "gemma3": _gemma3,
    "qwen2moe": _qwen2_moe,
    "qwen3moe": _qwen3_moe,
    "deepseek2": deepseek2,
    "gpt-oss": _gpt_oss,
    "glm4moe": _glm4_moe,
}
