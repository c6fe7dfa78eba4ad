"""Writes a Hugging Face model as a folder of config.json and safetensors.

`write_safetensors_folder` leaves names to transformers; `write_safetensors` writes them as the models are published, by
this module's own tables: one matrix an expert, InternLM2's names, block-scaled FP8, MXFP4.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from transformers import PreTrainedModel, PreTrainedTokenizerBase

Tensors = dict[str, torch.Tensor]
FP8_BLOCK = 128
_FP4 = torch.tensor([0, 0.5, 1, 1.5, 2, 3, 4, 6, -0.0, -0.5, -1, -1.5, -2, -3, -4, -6])
_INTERNLM2 = {
    "model.embed_tokens": "model.tok_embeddings",
    "lm_head": "output",
    "self_attn.o_proj": "attention.wo",
    "mlp.gate_proj": "feed_forward.w1",
    "mlp.up_proj": "feed_forward.w3",
    "mlp.down_proj": "feed_forward.w2",
    "input_layernorm": "attention_norm",
    "post_attention_layernorm": "ffn_norm",
}


def write_safetensors_folder(
    model: PreTrainedModel, path: str | Path, tokenizer: PreTrainedTokenizerBase | None = None, **options: Any
) -> Path:
    """Writes config.json and safetensors, and the tokenizer if there is one.

    Args:
        options: for `save_pretrained`, such as max_shard_size="1MB".

    Returns: the folder.
    """
    path = Path(path)
    model.save_pretrained(path, **options)
    if tokenizer is not None:
        tokenizer.save_pretrained(path)
    return path


def write_safetensors(
    model: PreTrainedModel,
    folder: str | Path,
    dtype: torch.dtype = torch.float32,
    blocks: str | None = None,
    internlm2: bool = False,
    shards: int = 1,
    extra_layer: bool = False,
) -> Path:
    """Writes a model as its family is published; `published_state` tells what the file then means.

    Args:
        model: of one of the architectures of `tiny_models`, with real tensors.
        dtype: of what is not stored in blocks (the router's correction bias and scales stay float32).
        blocks: "fp8": matrices of layers as DeepSeek-V3 has them, with `weight_scale_inv`; "mxfp4": experts as GPT-OSS
            has them, `_blocks` and `_scales`; None: plain floats.
        internlm2: a Llama model under InternLM2's names, `wqkv` grouped by key-value head, model_type "internlm2".
        shards: files with an index when above 1.
        extra_layer: adds the layer that predicts further tokens, as DeepSeek-V3 and GLM-4.5 have it after the last.

    Returns: the folder.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    tensors = published_tensors(model, dtype, blocks, internlm2)
    if extra_layer:
        tensors |= _next_token_layer(tensors, model.config.num_hidden_layers, model.config.hidden_size)
    (folder / "config.json").write_text(json.dumps(_config(model, blocks, internlm2, extra_layer)))
    names = sorted(tensors)
    share = -(-len(names) // shards)
    files = ["model.safetensors"] if shards == 1 else [
        f"model-{n + 1:05d}-of-{shards:05d}.safetensors" for n in range(shards)
    ]  # fmt: skip
    place = {name: files[index // share] for index, name in enumerate(names)}
    for file in files:
        mine = {name: tensors[name].contiguous() for name in names if place[name] == file}
        save_file(mine, folder / file, metadata={"format": "pt"})
    if shards > 1:
        index = {"metadata": {}, "weight_map": place}
        (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    return folder


def published_state(
    model: PreTrainedModel, dtype: torch.dtype = torch.float32, blocks: str | None = None
) -> Tensors:
    """Every parameter as float32 with the value that `write_safetensors` stores, under the model's own names."""
    state = {}
    for name, tensor in model.state_dict().items():
        value = tensor.detach().float()
        if _in_blocks(name, value, blocks):
            if blocks == "fp8":
                matrices = value if value.dim() == 3 else value[None]
                if value.dim() == 3 and "gate_up" in name:  # scaled before they are put together
                    halves = matrices.chunk(2, dim=1)
                    rounded = torch.cat([torch.stack([fp8_values(m) for m in half]) for half in halves], 1)
                else:
                    rounded = torch.stack([fp8_values(matrix) for matrix in matrices])
                state[name] = rounded.reshape(value.shape)
            else:
                state[name] = mxfp4_values(value.transpose(1, 2)).transpose(1, 2).contiguous()
        else:
            state[name] = value if name.endswith("e_score_correction_bias") else value.to(dtype).float()
    return state


def published_tensors(
    model: PreTrainedModel, dtype: torch.dtype, blocks: str | None, internlm2: bool = False
) -> Tensors:
    """The tensors of the file under their published names."""
    config = model.config
    found: Tensors = {}
    for name, tensor in model.state_dict().items():
        if name == "lm_head.weight" and config.tie_word_embeddings:
            continue
        for own, value in _pieces(name, tensor.detach().float(), config.model_type).items():
            found |= _stored(own, value, dtype, blocks)
    return _as_internlm2(found, config) if internlm2 else found


def _pieces(name: str, value: torch.Tensor, model_type: str) -> Tensors:
    """A parameter as the matrices that checkpoints hold."""
    if ".mlp.experts." in name and model_type != "gpt_oss":
        prefix, which = name.rsplit(".", 1)
        prefix, names = f"{prefix}.", ("gate_proj", "up_proj", "down_proj")
        if model_type == "mixtral":
            prefix, names = prefix.replace(".mlp.", ".block_sparse_moe."), ("w1", "w3", "w2")
        parts = {names[2]: value}
        if which == "gate_up_proj":
            gate, up = value.chunk(2, dim=1)
            parts = {names[0]: gate, names[1]: up}
        return {f"{prefix}{e}.{key}.weight": m for key, part in parts.items() for e, m in enumerate(part)}
    if model_type == "mixtral":
        name = name.replace(".mlp.", ".block_sparse_moe.")
    return {name: value}


def _in_blocks(name: str, value: torch.Tensor, blocks: str | None) -> bool:
    if blocks == "mxfp4":
        return ".mlp.experts." in name and value.dim() == 3
    matrix = value.dim() >= 2 and ".layers." in name and not name.endswith("mlp.gate.weight")
    return blocks == "fp8" and matrix


def _stored(name: str, value: torch.Tensor, dtype: torch.dtype, blocks: str | None) -> Tensors:
    if name.endswith("e_score_correction_bias"):
        return {name: value}
    if not _in_blocks(name, value, blocks):
        return {name: value.to(dtype)}
    if blocks == "fp8":
        codes, scales = fp8_blocks(value)
        return {name: codes, f"{name}_scale_inv": scales}
    packed, exponents = mxfp4_blocks(value.transpose(1, 2).contiguous())
    return {f"{name}_blocks": packed, f"{name}_scales": exponents}


def fp8_blocks(matrix: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """A matrix [N, K] as float8_e4m3fn and float32 scales [ceil(N/128), ceil(K/128)], largest value to 448."""
    rows, columns = matrix.shape
    grid = (-(-rows // FP8_BLOCK), -(-columns // FP8_BLOCK))
    padded = torch.zeros(grid[0] * FP8_BLOCK, grid[1] * FP8_BLOCK)
    padded[:rows, :columns] = matrix
    squares = padded.reshape(grid[0], FP8_BLOCK, grid[1], FP8_BLOCK)
    scales = squares.abs().amax((1, 3)) / 448
    codes = (squares / scales.clamp_min(1e-30)[:, None, :, None]).to(torch.float8_e4m3fn)
    codes = codes.reshape(padded.shape)[:rows, :columns].contiguous()
    return codes, scales


def fp8_values(matrix: torch.Tensor) -> torch.Tensor:
    """What `fp8_blocks` stores."""
    codes, scales = fp8_blocks(matrix)
    spread = scales.repeat_interleave(FP8_BLOCK, 0).repeat_interleave(FP8_BLOCK, 1)
    return codes.float() * spread[: matrix.shape[0], : matrix.shape[1]]


def mxfp4_blocks(x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Rows [..., K] as uint8 [..., K/32, 16], two codes a byte, even ones low, and exponents [..., K/32] plus 127."""
    groups = x.reshape(*x.shape[:-1], -1, 32)
    top = groups.abs().amax(-1).clamp_min(1e-30)
    exponents = top.log2().floor() - 2  # the largest code, 6, lies between 2^2 and 2^3
    scaled = groups / exponents.exp2()[..., None]
    codes = (scaled[..., None] - _FP4).abs().argmin(-1).to(torch.uint8)
    return codes[..., ::2] | codes[..., 1::2] << 4, (exponents + 127).to(torch.uint8)


def mxfp4_values(x: torch.Tensor) -> torch.Tensor:
    """What `mxfp4_blocks` stores."""
    packed, exponents = mxfp4_blocks(x)
    codes = torch.stack([packed & 15, packed >> 4], -1).flatten(-2).long()
    return (_FP4[codes] * (exponents.float() - 127).exp2()[..., None]).reshape(x.shape)


def _as_internlm2(tensors: Tensors, config: Any) -> Tensors:
    found, groups = {}, config.num_key_value_heads
    for name, value in tensors.items():
        if ".self_attn.k_proj." in name or ".self_attn.v_proj." in name:
            continue
        if ".self_attn.q_proj." in name:
            parts = [tensors[name.replace("q_proj", which)] for which in ("q_proj", "k_proj", "v_proj")]
            grouped = [part.reshape(groups, -1, *part.shape[1:]) for part in parts]
            found[name.replace("self_attn.q_proj", "attention.wqkv")] = torch.cat(grouped, 1).flatten(0, 1)
            continue
        for old, new in _INTERNLM2.items():
            if f"{old}." in name:
                name = name.replace(f"{old}.", f"{new}.")
                break
        found[name] = value
    return found


def _next_token_layer(tensors: Tensors, layers: int, size: int) -> Tensors:
    """A layer after the last: the last one's tensors again, and those that join it to the next token."""
    last, new = f"model.layers.{layers - 1}.", f"model.layers.{layers}."
    copied = {new + n.removeprefix(last): v.clone() for n, v in tensors.items() if n.startswith(last)}
    joined = {
        "eh_proj.weight": torch.ones(size, 2 * size),
        "enorm.weight": torch.ones(size),
        "hnorm.weight": torch.ones(size),
    }
    return {**copied, **{new + name: value for name, value in joined.items()}}


def _config(model: PreTrainedModel, blocks: str | None, internlm2: bool, extra_layer: bool) -> dict[str, Any]:
    config: dict[str, Any] = json.loads(model.config.to_json_string(use_diff=False))
    config["architectures"] = [type(model).__name__]
    if blocks == "fp8":
        config["quantization_config"] = {
            "activation_scheme": "dynamic",
            "fmt": "e4m3",
            "quant_method": "fp8",
            "weight_block_size": [FP8_BLOCK, FP8_BLOCK],
        }
    if blocks == "mxfp4":
        config["quantization_config"] = {
            "modules_to_not_convert": ["model.layers.*.self_attn", "model.layers.*.mlp.router", "lm_head"],
            "quant_method": "mxfp4",
        }
    if extra_layer:
        config["num_nextn_predict_layers"] = 1
    if internlm2:
        return {
            "architectures": ["InternLM2ForCausalLM"],
            "auto_map": {
                "AutoConfig": "configuration_internlm2.InternLM2Config",
                "AutoModelForCausalLM": "modeling_internlm2.InternLM2ForCausalLM",
            },
            "attn_implementation": "eager",
            "bias": config["attention_bias"],
            "model_type": "internlm2",
            "pretraining_tp": 1,
            "rope_scaling": {"type": "dynamic", "factor": 2.0},
            "rope_theta": config["rope_parameters"]["rope_theta"],
            "torch_dtype": "bfloat16",
            **{
                key: config[key]
                for key in (
                    "bos_token_id", "eos_token_id", "pad_token_id", "hidden_act", "hidden_size", "initializer_range",
                    "intermediate_size", "max_position_embeddings", "num_attention_heads", "num_hidden_layers",
                    "num_key_value_heads", "rms_norm_eps", "tie_word_embeddings", "use_cache", "vocab_size",
                )
            },
        }  # fmt: skip
    return config
