"""A model written as GGUF comes back parameter by parameter: state dict → GGUF → recipes → bytes."""

from __future__ import annotations

from pathlib import Path

import gguf
import numpy as np
import pytest
import torch
from support.gguf_files import write_gguf
from support.tiny_models import tiny_model
from transformers import AutoModelForCausalLM

from ktc.weights.opening import open_source
from ktc.weights.source import RawTensor

ARCHITECTURES = ["llama", "qwen2", "qwen3", "gemma3_text", "mixtral", "qwen2_moe", "qwen3_moe"]
ARCHITECTURES += ["deepseek_v2", "deepseek_v3", "gpt_oss", "glm4_moe"]


def shapes(model: torch.nn.Module) -> dict[str, tuple[int, ...]]:
    return {name: tuple(p.shape) for name, p in model.state_dict().items()}


def dequantized(raw: RawTensor) -> np.ndarray:
    kind = gguf.GGMLQuantizationType[raw.format.upper()]
    if raw.format == "f32":
        return raw.data.view("<f4").reshape(raw.shape)
    return gguf.quants.dequantize(raw.data.reshape(*raw.shape[:-1], -1), kind).reshape(raw.shape)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_every_parameter_comes_back_from_f32(architecture: str, tmp_path: Path) -> None:
    model = tiny_model(architecture)
    source = open_source(write_gguf(model, tmp_path / "m.gguf", "f32"))
    binding = source.bind(shapes(model), source.config())
    assert not binding.errors() and not binding.unused
    for name, expected in model.state_dict().items():
        recipe = binding.recipes[name]
        raw = source.read(recipe)
        assert (raw.format, raw.shape) == ("f32", tuple(expected.shape))
        assert raw.data.nbytes == recipe.nbytes
        found = raw.data.view("<f4").reshape(raw.shape)
        if architecture == "gemma3_text" and name.endswith("norm.weight"):
            ulp = np.spacing(np.abs(expected.numpy() + 1))
            assert (np.abs(found - expected.numpy()) <= ulp).all(), name
        else:
            assert np.array_equal(found, expected.numpy()), name


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize("tied", [False, True])
def test_config_makes_the_same_model(architecture: str, tied: bool, tmp_path: Path) -> None:
    model = tiny_model(architecture, tie_word_embeddings=tied)
    if tied:
        model.tie_weights()
    source = open_source(write_gguf(model, tmp_path / "m.gguf", "f32"))
    config = source.config()
    assert type(config) is type(model.config)
    assert config.architectures == [type(model).__name__]
    assert config.tie_word_embeddings == tied
    binding = source.bind(shapes(model), config)
    state = {
        name: torch.from_numpy(dequantized(source.read(r)).copy()) for name, r in binding.recipes.items()
    }
    again = AutoModelForCausalLM.from_config(config, dtype=torch.float32, attn_implementation="eager").eval()
    again.load_state_dict(state)
    ids = torch.randint(3, 250, (1, 40), generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        torch.testing.assert_close(again(ids).logits, model(ids).logits, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("format", ["f16", "bf16", "q8_0", "q4_0", "q5_1", "q6_k", "q4_k"])
def test_row_permutation_keeps_blocks(format: str, tmp_path: Path) -> None:
    model = tiny_model("llama", num_hidden_layers=1)
    source = open_source(write_gguf(model, tmp_path / "m.gguf", format))
    binding = source.bind(shapes(model), source.config())
    for which in ("q_proj", "k_proj", "v_proj"):
        name = f"model.layers.0.self_attn.{which}.weight"
        raw = source.read(binding.recipes[name])
        assert raw.format == format
        expected = model.state_dict()[name].numpy()
        error = np.abs(dequantized(raw) - expected).mean() / np.abs(expected).mean()
        assert error < {"f16": 1e-3, "bf16": 1e-2, "q8_0": 1e-2, "q6_k": 3e-2}.get(format, 0.15)


def test_biases_are_permuted_with_their_rows(tmp_path: Path) -> None:
    model = tiny_model("llama", attention_bias=True, mlp_bias=True, num_hidden_layers=1)
    source = open_source(write_gguf(model, tmp_path / "m.gguf", "q8_0"))
    config = source.config()
    assert config.attention_bias and config.mlp_bias
    binding = source.bind(shapes(model), config)
    assert not binding.errors()
    for which in ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "mlp.up_proj"):
        name = f"model.layers.0.{which}.bias"
        assert np.array_equal(
            dequantized(source.read(binding.recipes[name])), model.state_dict()[name].numpy()
        )


def test_tensors_that_need_no_change_are_views_of_the_file(tmp_path: Path) -> None:
    model = tiny_model("llama", num_hidden_layers=1)
    source = open_source(write_gguf(model, tmp_path / "m.gguf", "q8_0"))
    binding = source.bind(shapes(model), source.config())
    assert not source.read(binding.recipes["model.layers.0.mlp.up_proj.weight"]).data.flags.owndata
    assert not source.read(binding.recipes["model.embed_tokens.weight"]).data.flags.writeable


def test_split_files_from_any_part_or_the_folder(tmp_path: Path) -> None:
    model = tiny_model("qwen3")
    first = write_gguf(model, tmp_path / "m.gguf", "q8_0", split=3)
    assert first.name == "m-00001-of-00003.gguf"
    for where in (first, tmp_path, tmp_path / "m-00003-of-00003.gguf"):
        source = open_source(where)
        assert not source.bind(shapes(model), source.config()).errors()
