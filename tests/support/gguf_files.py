"""Writes a Hugging Face model as a GGUF file, as llama.cpp's converter does: metadata, tokenizer, tensors.

`write_gguf` takes every model of `tiny_models`; `gguf_tensors.Naming` chooses among the forms of older and newer files.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import gguf
import numpy as np
from support.gguf_tensors import ARCHITECTURES, Floats, Naming, gguf_tensors
from support.safetensors_files import write_safetensors_folder
from transformers import PreTrainedModel

__all__ = ["Naming", "add_tokenizer", "byte_alphabet", "write_gguf", "write_safetensors_folder"]

CHAT_TEMPLATE = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\\n' + message['content'] "
    "+ '<|im_end|>' + '\\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)
_MERGES = """Ġ t|h e|i n|Ġ a|Ġt he|e r|o n|r e|a t|e n|Ġ s|l l|Ġ w|o r|Ġ c|Ġ p|Ġ o|Ġ f|Ġ b|i s|Ġ d|e s"""
_PAIRS = tuple(_MERGES.split("|"))


def write_gguf(
    model: PreTrainedModel,
    path: str | Path,
    format: str = "q8_0",
    tokenizer: bool = True,
    formats: Mapping[str, str] | None = None,
    split: int = 1,
    rename: Mapping[str, str] | None = None,
    naming: Naming = Naming(),  # noqa: B008
    architecture: str | None = None,
    extra: Callable[[gguf.GGUFWriter], None] | None = None,
) -> Path:
    """Writes every parameter under its GGUF name, with the converter's transformations, and the metadata.

    Args:
        model: of one of the architectures of `tiny_models`, with real tensors.
        path: the file; with `split` above 1 the parts NAME-00001-of-0000N.gguf appear beside it.
        format: of the matrices; vectors stay f32. Rows that are no whole blocks of it become q8_0 or f16, as
            llama-quantize falls back.
        tokenizer: whether to add a byte-level BPE vocabulary (the model needs at least 512 tokens).
        formats: other formats for tensors whose GGUF name contains a key: {"attn_v": "q6_k"}.
        split: number of parts.
        rename: replacements in tensor names, for files that lack a tensor or have another.
        naming: forms that differ between versions of the converter, or extra layers.
        extra: adds further metadata.
        architecture: `general.architecture` when it is not the model type's own: "internlm2" for a Llama model.

    Returns: the file, or the first part.
    """
    path = Path(path)
    config = model.config
    architecture = architecture or ARCHITECTURES[config.model_type]
    tensors = gguf_tensors(model, naming)
    for old, new in (rename or {}).items():
        tensors = {name.replace(old, new): values for name, values in tensors.items()}
    parts = [path]
    if split > 1:
        parts = [path.with_name(f"{path.stem}-{i:05d}-of-{split:05d}.gguf") for i in range(1, split + 1)]
    names = list(tensors)
    share = -(-len(names) // split)
    for number, part in enumerate(parts):
        writer = gguf.GGUFWriter(part, architecture)
        if number == 0:
            _add_metadata(writer, architecture, model, naming)
            if extra is not None:
                extra(writer)
            if tokenizer:
                add_tokenizer(writer, config.vocab_size)
        if split > 1:
            writer.add_uint16("split.no", number)
            writer.add_uint16("split.count", split)
            writer.add_int32("split.tensors.count", len(names))
        for name in names[number * share : (number + 1) * share]:
            wanted = next((f for piece, f in (formats or {}).items() if piece in name), format)
            _add_tensor(writer, name, tensors[name], wanted)
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()
    return parts[0]


def _add_tensor(writer: gguf.GGUFWriter, name: str, values: Floats, format: str) -> None:
    if values.ndim == 1 or "ffn_gate_inp" in name or name.endswith(".bias"):
        format = "f32"
    if format not in ("f32", "f16") and values.shape[-1] % gguf.GGML_QUANT_SIZES[_kind(format)][0]:
        format = "f16" if values.shape[-1] % 32 else "q8_0"
    if format in ("f32", "f16"):
        writer.add_tensor(name, np.ascontiguousarray(values, np.float32 if format == "f32" else np.float16))
        return
    kind = _kind(format)
    if format.endswith("_k"):
        from ktc.weights.convert import quantize

        blocks = quantize(np.ascontiguousarray(values), format).reshape(*values.shape[:-1], -1)
    else:
        blocks = gguf.quants.quantize(np.ascontiguousarray(values), kind)
    writer.add_tensor(name, blocks, raw_dtype=kind)


def _kind(format: str) -> gguf.GGMLQuantizationType:
    return gguf.GGMLQuantizationType[format.upper()]


def _add_metadata(writer: gguf.GGUFWriter, architecture: str, model: PreTrainedModel, naming: Naming) -> None:
    config = model.config
    writer.add_name(f"tiny {config.model_type}")
    writer.add_block_count(config.num_hidden_layers + naming.extra_layer)
    if naming.extra_layer:
        writer.add_nextn_predict_layers(1)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_head_count(config.num_attention_heads)
    absorbed = architecture == "deepseek2" and naming.latent == "split"
    writer.add_head_count_kv(1 if absorbed else config.num_key_value_heads)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_vocab_size(config.vocab_size)
    if architecture == "deepseek2":
        _add_latent_attention(writer, config, absorbed)
    elif getattr(config, "head_dim", None):
        writer.add_key_length(config.head_dim)
        writer.add_value_length(config.head_dim)
    rope = config.rope_parameters
    if architecture in ("gemma3", "gpt-oss"):
        writer.add_sliding_window(config.sliding_window)
    if architecture == "gemma3":
        rope = rope["full_attention"]
    writer.add_rope_freq_base(rope["rope_theta"])
    if rope["rope_type"] in ("linear", "yarn"):
        writer.add_rope_scaling_type(gguf.RopeScalingType(rope["rope_type"]))
        writer.add_rope_scaling_factor(rope["factor"])
        if rope["rope_type"] == "yarn":
            writer.add_rope_scaling_orig_ctx_len(rope["original_max_position_embeddings"])
            if rope.get("beta_fast") is not None:
                writer.add_rope_scaling_yarn_beta_fast(rope["beta_fast"])
                writer.add_rope_scaling_yarn_beta_slow(rope["beta_slow"])
            if rope.get("mscale_all_dim"):
                writer.add_rope_scaling_yarn_log_mul(0.1 * rope["mscale_all_dim"])
    if config.model_type in ("deepseek_v2", "deepseek_v3", "glm4_moe"):
        _add_routing(writer, config)
    experts = (
        None
        if hasattr(config, "n_routed_experts")
        else getattr(config, "num_local_experts", None) or getattr(config, "num_experts", None)
    )
    if experts:
        writer.add_expert_count(experts)
        writer.add_expert_used_count(config.num_experts_per_tok)
        if config.model_type == "gpt_oss":
            writer.add_expert_feed_forward_length(config.intermediate_size)
        elif config.model_type != "mixtral":
            writer.add_expert_feed_forward_length(config.moe_intermediate_size)
        if config.model_type == "qwen2_moe":
            writer.add_expert_shared_feed_forward_length(config.shared_expert_intermediate_size)
    for role, add in (
        (config.bos_token_id, writer.add_bos_token_id),
        (config.eos_token_id, writer.add_eos_token_id),
        (config.pad_token_id, writer.add_pad_token_id),
    ):
        if isinstance(role, int):
            add(role)


def _add_latent_attention(writer: gguf.GGUFWriter, config: Any, absorbed: bool) -> None:
    if config.q_lora_rank is not None:
        writer.add_q_lora_rank(config.q_lora_rank)
    writer.add_kv_lora_rank(config.kv_lora_rank)
    key = config.qk_nope_head_dim + config.qk_rope_head_dim
    writer.add_key_length(config.kv_lora_rank + config.qk_rope_head_dim if absorbed else key)
    writer.add_value_length(config.kv_lora_rank if absorbed else config.v_head_dim)
    if absorbed:
        writer.add_key_length_mla(key)
        writer.add_value_length_mla(config.v_head_dim)
    writer.add_rope_dimension_count(config.qk_rope_head_dim)


def _add_routing(writer: gguf.GGUFWriter, config: Any) -> None:
    sigmoid = config.model_type != "deepseek_v2"
    writer.add_expert_count(config.n_routed_experts)
    writer.add_expert_used_count(config.num_experts_per_tok)
    writer.add_expert_shared_count(config.n_shared_experts)
    writer.add_expert_feed_forward_length(config.moe_intermediate_size)
    writer.add_leading_dense_block_count(config.first_k_dense_replace)
    writer.add_expert_weights_scale(config.routed_scaling_factor)
    writer.add_expert_weights_norm(config.norm_topk_prob)
    writer.add_expert_gating_func(
        gguf.ExpertGatingFuncType.SIGMOID if sigmoid else gguf.ExpertGatingFuncType.SOFTMAX
    )
    writer.add_expert_group_count(config.n_group)
    writer.add_expert_group_used_count(config.topk_group)
    if config.model_type == "glm4_moe":
        writer.add_rope_dimension_count(
            int(config.head_dim * config.rope_parameters["partial_rotary_factor"])
        )


def byte_alphabet() -> list[str]:
    """GPT-2's printable character for each of the 256 bytes."""
    plain = [*range(33, 127), *range(161, 173), *range(174, 256)]
    table = {byte: chr(byte) for byte in plain}
    table |= {byte: chr(256 + n) for n, byte in enumerate(b for b in range(256) if b not in table)}
    return [table[byte] for byte in range(256)]


def add_tokenizer(writer: gguf.GGUFWriter, size: int, pre: str = "qwen2") -> None:
    """Adds a vocabulary: 256 bytes, three control tokens at 256, a few merges, and unused tokens up to
    `size`.
    """
    specials = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
    tokens = byte_alphabet() + specials + [pair.replace(" ", "") for pair in _PAIRS]
    if size < len(tokens):
        raise ValueError(f"a vocabulary of {size} is too small; {len(tokens)} are needed")
    types = [1] * 256 + [3] * 3 + [1] * len(_PAIRS)
    fill = size - len(tokens)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(pre)
    writer.add_token_list(tokens + [f"[PAD{n}]" for n in range(fill)])
    writer.add_token_types(types + [5] * fill)
    writer.add_token_merges(_PAIRS)
    writer.add_add_bos_token(False)
    writer.add_chat_template(CHAT_TEMPLATE)
