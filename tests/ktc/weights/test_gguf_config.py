"""Settings read from metadata: rotary scaling, sliding windows, special ids, llama.cpp's defaults."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import torch
from support.gguf_files import write_gguf
from support.tiny_models import tiny_model
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

from ktc.errors import UnsupportedModelError
from ktc.weights.opening import open_source
from ktc.weights.rope_config import llama3_factors


def written(
    path: Path, architecture: str, keys: dict[str, Any], tensors: dict[str, np.ndarray] | None = None
) -> Path:
    """A file with a minimal set of hyperparameters, changed by `keys` (without the architecture's prefix)."""
    writer = gguf.GGUFWriter(path, architecture)
    values: dict[str, Any] = {
        "block_count": 2,
        "context_length": 128,
        "embedding_length": 64,
        "feed_forward_length": 96,
        "attention.head_count": 4,
        "attention.head_count_kv": 2,
        "attention.layer_norm_rms_epsilon": 1e-6,
        "vocab_size": 10,
        **keys,
    }
    for name, value in values.items():
        key = name if name.startswith("tokenizer.") else f"{architecture}.{name}"
        if isinstance(value, bool):
            writer.add_bool(key, value)
        elif isinstance(value, int):
            writer.add_uint32(key, value)
        elif isinstance(value, float):
            writer.add_float32(key, value)
        elif isinstance(value, str):
            writer.add_string(key, value)
        else:
            writer.add_array(key, value)
    every = {"token_embd.weight": np.zeros((10, 64), np.float32), **(tensors or {})}
    every |= {f"blk.{i}.attn_norm.weight": np.zeros(64, np.float32) for i in range(64)}
    for name, data in every.items():
        writer.add_tensor(name, data)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def config(
    tmp_path: Path, architecture: str, tensors: dict[str, np.ndarray] | None = None, **keys: Any
) -> Any:
    names = {name.replace("__", "."): value for name, value in keys.items()}
    return open_source(written(tmp_path / "c.gguf", architecture, names, tensors)).config()


def test_defaults_are_those_of_the_loader(tmp_path: Path) -> None:
    found = config(tmp_path, "llama")
    assert found.rope_parameters == {"rope_type": "default", "rope_theta": 10000.0}
    assert found.head_dim == 16 and found.rms_norm_eps == 1e-6
    assert found.tie_word_embeddings and not found.attention_bias
    assert found.bos_token_id is None and found.eos_token_id is None and found.pad_token_id is None
    assert str(found.dtype).endswith("float32")


@pytest.mark.parametrize(
    ("keys", "expected"),
    [
        ({"rope__scaling__type": "none"}, {"rope_type": "default"}),
        (
            {"rope__scaling__type": "linear", "rope__scaling__factor": 4.0},
            {"rope_type": "linear", "factor": 4.0},
        ),
        ({"rope__scale_linear": 2.0}, {"rope_type": "linear", "factor": 2.0}),
        (
            {
                "rope__scaling__type": "yarn",
                "rope__scaling__factor": 4.0,
                "rope__scaling__original_context_length": 32,
                "rope__scaling__yarn_beta_fast": 16.0,
            },
            {
                "rope_type": "yarn",
                "factor": 4.0,
                "original_max_position_embeddings": 32,
                "beta_fast": 16.0,
                "beta_slow": 1.0,
            },
        ),
    ],
)
def test_rope_scaling(keys: dict[str, Any], expected: dict[str, Any], tmp_path: Path) -> None:
    found = config(tmp_path, "qwen2", rope__freq_base=5000.0, **keys)
    assert found.rope_parameters == {"rope_theta": 5000.0, **expected}


@pytest.mark.parametrize(
    "keys",
    [
        {"rope__scaling__type": "longrope"},
        {"rope__scaling__type": "yarn", "rope__scaling__attn_factor": 0.5},
        {"rope__scaling__type": "yarn", "rope__scaling__yarn_ext_factor": 0.5},
    ],
)
def test_inexpressible_rope_scaling_is_refused(keys: dict[str, Any], tmp_path: Path) -> None:
    with pytest.raises(UnsupportedModelError, match=r"rope\.scaling"):
        config(tmp_path, "qwen2", **keys)


@pytest.mark.parametrize(("factor", "head_dim"), [(8.0, 128), (32.0, 64)])
def test_llama3_frequencies(factor: float, head_dim: int, tmp_path: Path) -> None:
    freqs = llama3_factors(500000.0, head_dim, factor).astype(np.float32)
    found = config(
        tmp_path,
        "llama",
        {"rope_freqs.weight": freqs},
        rope__freq_base=500000.0,
        attention__key_length=head_dim,
        attention__value_length=head_dim,
        rope__dimension_count=head_dim,
    )
    assert found.rope_parameters["rope_type"] == "llama3" and found.rope_parameters["factor"] == factor
    scaled, attention_factor = ROPE_INIT_FUNCTIONS["llama3"](found, torch.device("cpu"))
    plain = 500000.0 ** -(torch.arange(0, head_dim, 2, dtype=torch.float64) / head_dim)
    torch.testing.assert_close(scaled.double(), plain / torch.from_numpy(freqs).double(), rtol=2e-6, atol=0)
    assert attention_factor == 1.0


def test_frequencies_of_unknown_origin_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UnsupportedModelError, match="not Llama 3's scaling"):
        config(tmp_path, "llama", {"rope_freqs.weight": np.linspace(1, 9, 8, dtype=np.float32)})
    with pytest.raises(UnsupportedModelError, match=r"expected f32 \[8\]"):
        config(tmp_path, "llama", {"rope_freqs.weight": np.ones(5, np.float32)})


def test_end_of_turn_ends_a_reply_too(tmp_path: Path) -> None:
    ids = {
        "tokenizer.ggml.eos_token_id": 3,
        "tokenizer.ggml.eot_token_id": 4,
        "tokenizer.ggml.padding_token_id": 0,
    }
    found = open_source(written(tmp_path / "c.gguf", "llama", ids)).config()
    assert found.eos_token_id == [3, 4] and found.pad_token_id == 0


def test_gemma3_windows(tmp_path: Path) -> None:
    layers = {"block_count": 8, "attention__key_length": 16, "attention__value_length": 16}
    found = config(tmp_path, "gemma3", attention__sliding_window=32, rope__freq_base=1e6, **layers)
    assert [kind[0] for kind in found.layer_types] == list("sssssfss")
    assert found.rope_parameters["full_attention"] == {"rope_theta": 1e6, "rope_type": "default"}
    assert found.rope_parameters["sliding_attention"] == {"rope_theta": 1e4, "rope_type": "default"}
    assert found.sliding_window == 32 and found.query_pre_attn_scalar == 16

    found = config(
        tmp_path, "gemma3", attention__sliding_window=32, attention__sliding_window_pattern=2, **layers
    )
    assert [kind[0] for kind in found.layer_types] == list("sfsfsfsf")

    flags = [True, False, False, True, True, True, True, True]
    found = config(
        tmp_path, "gemma3", attention__sliding_window=32, attention__sliding_window_pattern=flags, **layers
    )
    assert [kind[0] for kind in found.layer_types] == list("sffsssss")

    found = config(tmp_path, "gemma3", **layers)
    assert set(found.layer_types) == {"full_attention"}

    found = config(
        tmp_path,
        "gemma3",
        attention__sliding_window=32,
        rope__scaling__type="linear",
        rope__scaling__factor=8.0,
        final_logit_softcapping=30.0,
        rope__freq_base_swa=2e4,
        **layers,
    )
    assert found.rope_parameters["full_attention"]["rope_type"] == "linear"
    assert found.rope_parameters["sliding_attention"] == {"rope_theta": 2e4, "rope_type": "default"}
    assert found.final_logit_softcapping == 30.0


def test_gemma3_27b_scales_by_its_hidden_size(tmp_path: Path) -> None:
    keys = {"attention__key_length": 8, "attention__value_length": 8, "attention__sliding_window": 32}
    assert config(tmp_path, "gemma3", block_count=62, **keys).query_pre_attn_scalar == 64 // 4
    assert config(tmp_path, "gemma3", block_count=48, **keys).query_pre_attn_scalar == 8


def test_token_list_decides_the_vocabulary(tmp_path: Path) -> None:
    model = tiny_model("llama", vocab_size=300)
    path = write_gguf(model, tmp_path / "m.gguf", "q8_0")
    source = open_source(path)
    assert source.config().vocab_size == 300 == len(source.tokenizer() or ())


def test_yarn_model_through_a_file(tmp_path: Path) -> None:
    rope = {
        "rope_type": "yarn",
        "rope_theta": 1e6,
        "factor": 4.0,
        "original_max_position_embeddings": 128,
    }
    model = tiny_model("qwen3", rope_parameters=rope, max_position_embeddings=512)
    found = open_source(write_gguf(model, tmp_path / "m.gguf", "f32")).config()
    again = type(model)(found)
    torch.testing.assert_close(again.model.rotary_emb.inv_freq, model.model.rotary_emb.inv_freq)
    assert again.model.rotary_emb.attention_scaling == model.model.rotary_emb.attention_scaling
