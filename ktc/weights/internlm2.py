"""InternLM2 and InternLM2.5: a Llama under other names, whose query, key and value matrices lie in one tensor.

The published class comes as remote code, which is never run: it computes what `LlamaForCausalLM` computes. `wqkv`
holds, for each key-value head, the rows of its query heads, then those of the key, then those of the value.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ktc.errors import UnsupportedModelError
from ktc.weights.views import GroupRows

if TYPE_CHECKING:
    from transformers import LlamaConfig, PreTrainedConfig

MODEL_TYPE = "internlm2"
_NAMES = (
    ("model.embed_tokens.", "model.tok_embeddings."),
    ("lm_head.", "output."),
    (".self_attn.o_proj.", ".attention.wo."),
    (".mlp.gate_proj.", ".feed_forward.w1."),
    (".mlp.up_proj.", ".feed_forward.w3."),
    (".mlp.down_proj.", ".feed_forward.w2."),
    (".input_layernorm.", ".attention_norm."),
    (".post_attention_layernorm.", ".ffn_norm."),
)
_QKV = re.compile(r"(?P<layer>.+)\.self_attn\.(?P<which>[qkv])_proj\.(?P<kind>weight|bias)")
_COPIED = (
    "vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads",
    "num_key_value_heads", "max_position_embeddings", "initializer_range", "rms_norm_eps", "bos_token_id",
    "eos_token_id", "pad_token_id", "tie_word_embeddings", "use_cache",
)  # fmt: skip


def published_name(parameter: str) -> str | None:
    """The tensor of a Llama parameter that InternLM2 keeps under another name; None where it has no other."""
    for own, published in _NAMES:
        if own in parameter or parameter.startswith(own):
            return parameter.replace(own, published)
    return None


def rows_of(
    parameter: str, shape: tuple[int, ...], config: PreTrainedConfig | None
) -> tuple[str, GroupRows, tuple[int, ...]] | None:
    """Where a query, key or value projection lies: the tensor, its rows there, and the tensor's shape; else None.

    Args:
        parameter: name in the Llama model. shape: its shape there.
        config: the model's, which says how many heads there are.
    """
    match = _QKV.fullmatch(parameter)
    if match is None or config is None or not shape:
        return None
    heads = int(config.num_attention_heads)
    groups = int(getattr(config, "num_key_value_heads", None) or heads)
    queries = heads // groups
    size = shape[0] // (heads if match["which"] == "q" else groups)
    start = {"q": 0, "k": queries, "v": queries + 1}[match["which"]] * size
    rows = queries * size if match["which"] == "q" else size
    if heads % groups or size == 0:
        return None
    name = f"{match['layer']}.attention.wqkv.{match['kind']}"
    return name, GroupRows(groups, start, start + rows), (groups * (queries + 2) * size, *shape[1:])


def llama_config(values: Mapping[str, Any], file: Path) -> LlamaConfig:
    """The configuration of a published InternLM2 as that of the Llama that it is.

    Dynamic scaling of the rotary embedding changes nothing up to `max_position_embeddings` tokens, which is where the
    published class begins to stretch the base: it becomes the plain embedding.

    Raises:
        UnsupportedModelError: another activation or scaling, or values that the class refuses.
    """
    from transformers import LlamaConfig

    if values.get("hidden_act", "silu") != "silu":
        raise UnsupportedModelError(f"hidden_act is {values['hidden_act']!r}; InternLM2 has silu", file=file)
    rope: dict[str, Any] = {"rope_theta": values.get("rope_theta", 10000.0), "rope_type": "default"}
    scaling = values.get("rope_scaling")
    if scaling is not None:
        kind = scaling.get("rope_type", scaling.get("type")) if isinstance(scaling, Mapping) else scaling
        factor = scaling.get("factor") if isinstance(scaling, Mapping) else None
        if kind == "linear" and isinstance(factor, int | float):
            rope |= {"rope_type": "linear", "factor": float(factor)}
        elif kind != "dynamic":
            raise UnsupportedModelError(
                f"rope_scaling is {scaling!r}; InternLM2 has null, linear and dynamic", file=file
            )
    try:
        return LlamaConfig(
            **{name: values[name] for name in _COPIED if name in values},
            attention_bias=bool(values.get("bias", False)),
            mlp_bias=False,
            rope_parameters=rope,
            architectures=["LlamaForCausalLM"],
            dtype=str(values.get("torch_dtype", values.get("dtype", "float32"))),
        )
    except Exception as error:  # the class's own validation raises errors of many types
        raise UnsupportedModelError(f"LlamaForCausalLM refuses the settings: {error}", file=file) from error
