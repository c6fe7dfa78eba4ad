"""Checkpoints as models are published: state dict → safetensors → recipes → dequantised = the state dict, exactly."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from support.safetensors_files import published_state, write_safetensors
from support.tiny_models import tiny_model
from transformers import AutoModelForCausalLM, LlamaConfig, PreTrainedModel
from transformers.integrations.mxfp4 import convert_moe_packed_tensors

from ktc.errors import MissingTensorError, ShapeMismatchError, UnsupportedFormatError, UnsupportedModelError
from ktc.weights.convert import dequantize
from ktc.weights.opening import open_source, read_config
from ktc.weights.source import Binding, WeightSource
from ktc.weights.views import Deinterleave, ExpertRows, MlaKeys, MlaValues

FAMILIES = [
    "llama", "qwen2", "qwen3", "gemma3_text", "mixtral", "qwen2_moe", "qwen3_moe", "deepseek_v2", "deepseek_v3",
    "gpt_oss", "glm4_moe",
]  # fmt: skip
LAYER = "model.layers.1."


Written = tuple[PreTrainedModel, Path]


def written(family: str, blocks: str, folder: Path) -> Written:
    """A model in blocks, which some tests edit copies of."""
    model = tiny_model(
        family, num_hidden_layers=2, vocab_size=64, bos_token_id=1, eos_token_id=2, pad_token_id=0
    )
    return model, write_safetensors(model, folder / "m", blocks=blocks)


@pytest.fixture(scope="module")
def fp8(tmp_path_factory: pytest.TempPathFactory) -> Written:
    """DeepSeek-V3 in FP8."""
    return written("deepseek_v3", "fp8", tmp_path_factory.mktemp("fp8"))


@pytest.fixture(scope="module")
def mxfp4(tmp_path_factory: pytest.TempPathFactory) -> Written:
    """GPT-OSS in MXFP4."""
    return written("gpt_oss", "mxfp4", tmp_path_factory.mktemp("mxfp4"))


def shapes(model: PreTrainedModel) -> dict[str, tuple[int, ...]]:
    return {name: tuple(p.shape) for name, p in model.state_dict().items()}


def values(source: WeightSource, binding: Binding, name: str) -> torch.Tensor:
    raw = source.read(binding.recipes[name])
    return torch.from_numpy(dequantize(raw.data, raw.format, raw.shape).copy())


def assert_same(source: WeightSource, model: PreTrainedModel, expected: dict[str, torch.Tensor]) -> Binding:
    binding = source.bind(shapes(model), source.config())
    assert not binding.errors()
    for name, wanted in expected.items():
        torch.testing.assert_close(values(source, binding, name), wanted, rtol=0, atol=0, msg=name)
    return binding


@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_by_its_published_names(family: str, tmp_path: Path) -> None:
    model = tiny_model(family)
    dtype = torch.float32 if family == "mixtral" else torch.bfloat16
    folder = write_safetensors(model, tmp_path / "m", dtype, shards=2)
    source = open_source(folder)
    binding = assert_same(source, model, published_state(model, dtype))
    assert not binding.unused and type(source.config()) is type(model.config)
    names = set(source.headers())
    assert all(name.count(".experts.") == 0 or name.split(".experts.")[1][0].isdigit() for name in names) or (
        family == "gpt_oss"
    )


@pytest.mark.parametrize("family", ["llama", "mixtral", "deepseek_v3", "gpt_oss", "glm4_moe"])
def test_transformers_reads_the_same_from_these_folders(family: str, tmp_path: Path) -> None:
    """The writer's tables against transformers' conversion of published names."""
    model = tiny_model(family)
    folder = write_safetensors(model, tmp_path / "m")
    again = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    for name, wanted in model.state_dict().items():
        torch.testing.assert_close(again.state_dict()[name], wanted, rtol=0, atol=0, msg=name)


@pytest.mark.parametrize("family", ["deepseek_v2", "deepseek_v3"])
def test_block_scaled_fp8_stays_fp8(family: str, tmp_path: Path) -> None:
    model = tiny_model(family)
    source = open_source(write_safetensors(model, tmp_path / "m", torch.bfloat16, blocks="fp8"))
    config = source.config()
    assert not hasattr(config, "quantization_config")
    binding = assert_same(source, model, published_state(model, torch.bfloat16, "fp8"))
    assert not binding.unused
    formats = {name: recipe.format for name, recipe in binding.recipes.items()}
    for name in ("self_attn.kv_a_proj_with_mqa.weight", "mlp.experts.gate_up_proj", "mlp.experts.down_proj"):
        assert formats[LAYER + name] == binding.recipes[LAYER + name].stored_format == "fp8"
    assert formats[LAYER + "mlp.gate.weight"] == "bf16" and formats["lm_head.weight"] == "bf16"
    rows = model.state_dict()[LAYER + "self_attn.kv_a_proj_with_mqa.weight"].shape[0]
    assert rows % 128, "the last block of rows is not whole"


def test_views_of_fp8(fp8: Written) -> None:
    model, folder = fp8
    source = open_source(folder)
    recipe = source.bind(shapes(model), source.config()).recipes[LAYER + "self_attn.kv_b_proj.weight"]
    heads, nope = model.config.num_attention_heads, model.config.qk_nope_head_dim
    keys, rest = recipe.then(MlaKeys(heads, nope)), recipe.then(MlaValues(heads, nope))
    assert (keys.format, rest.format) == ("f32", "fp8")
    whole = published_state(model, blocks="fp8")[LAYER + "self_attn.kv_b_proj.weight"]
    split = whole.reshape(heads, -1, whole.shape[1])
    for found, wanted in ((keys, split[:, :nope].transpose(1, 2)), (rest, split[:, nope:])):
        raw = source.read(found)
        torch.testing.assert_close(
            torch.from_numpy(dequantize(raw.data, raw.format, raw.shape)), wanted, rtol=0, atol=0
        )


def test_mxfp4_experts_stay_packed_under_the_graphs_views(tmp_path: Path) -> None:
    model = tiny_model("gpt_oss")
    source = open_source(write_safetensors(model, tmp_path / "m", torch.bfloat16, blocks="mxfp4"))
    expected = published_state(model, torch.bfloat16, "mxfp4")
    binding = assert_same(source, model, expected)
    assert not binding.unused
    for which, view in (("gate_up_proj", ExpertRows(True)), ("down_proj", ExpertRows(False))):
        name = f"{LAYER}mlp.experts.{which}"
        recipe = binding.recipes[name].then(view)
        assert (binding.recipes[name].format, recipe.format) == ("f32", "mxfp4")
        assert binding.recipes[name].stored_format == "mxfp4"
        raw = source.read(recipe)
        wanted = expected[name].transpose(1, 2)
        if view.interleaved:
            wanted = torch.cat([wanted[:, ::2], wanted[:, 1::2]], 1)
        found = torch.from_numpy(dequantize(raw.data, raw.format, raw.shape))
        torch.testing.assert_close(found, wanted, rtol=0, atol=0)
    bias = binding.recipes[f"{LAYER}mlp.experts.gate_up_proj_bias"].then(Deinterleave())
    raw = source.read(bias)
    wanted = expected[f"{LAYER}mlp.experts.gate_up_proj_bias"]
    found = torch.from_numpy(dequantize(raw.data, raw.format, raw.shape))
    assert torch.equal(found, torch.cat([wanted[:, ::2], wanted[:, 1::2]], 1))


def test_mxfp4_blocks_mean_what_transformers_says(mxfp4: Written) -> None:
    model, folder = mxfp4
    tensors, source = load_file(folder / "model.safetensors"), open_source(folder)
    binding = source.bind(shapes(model), source.config())
    for which in ("gate_up_proj", "down_proj"):
        name = f"{LAYER}mlp.experts.{which}"
        blocks, scales = tensors[f"{name}_blocks"], tensors[f"{name}_scales"]
        wanted = convert_moe_packed_tensors(blocks, scales, dtype=torch.float32)
        assert torch.equal(values(source, binding, name), wanted)


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("heads", [(4, 2), (4, 4), (4, 1)])
def test_internlm2_is_a_llama(heads: tuple[int, int], bias: bool, tmp_path: Path) -> None:
    model = tiny_model(
        "llama", num_attention_heads=heads[0], num_key_value_heads=heads[1], attention_bias=bias
    )
    folder = write_safetensors(model, tmp_path / "m", torch.bfloat16, internlm2=True)
    source = open_source(folder)
    config = source.config()
    assert isinstance(config, LlamaConfig) and config.architectures == ["LlamaForCausalLM"]
    assert config.rope_parameters["rope_type"] == "default" and config.attention_bias == bias
    assert "model.layers.0.attention.wqkv.weight" in source.headers()
    binding = assert_same(source, model, published_state(model, torch.bfloat16))
    assert not binding.unused
    again = AutoModelForCausalLM.from_config(config, dtype=torch.float32).eval()
    again.load_state_dict({name: values(source, binding, name) for name in binding.recipes})
    model.load_state_dict(published_state(model, torch.bfloat16))
    ids = torch.arange(3, 40)[None]
    with torch.no_grad():
        torch.testing.assert_close(again(ids).logits, model(ids).logits, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({"rope_scaling": {"type": "longrope", "factor": 2.0}}, "longrope"),
        ({"hidden_act": "gelu"}, "gelu"),
        ({"num_attention_heads": "four"}, "refuses"),
        ({"rope_scaling": {"type": "linear"}}, "null, linear and dynamic"),
    ],
)
def test_internlm2_settings_that_are_refused(changes: dict[str, Any], text: str, tmp_path: Path) -> None:
    folder = write_safetensors(tiny_model("llama"), tmp_path / "m", internlm2=True)
    file = folder / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | changes))
    with pytest.raises(UnsupportedModelError, match=text):
        read_config(folder)


@pytest.mark.parametrize("family", ["deepseek_v3", "glm4_moe"])
def test_the_layer_that_predicts_further_tokens_is_noted_and_not_used(family: str, tmp_path: Path) -> None:
    model = tiny_model(family)
    source = open_source(write_safetensors(model, tmp_path / "m", extra_layer=True))
    binding = assert_same(source, model, published_state(model))
    assert binding.unused and all(name.startswith("model.layers.2.") for name in binding.unused)
    (note,) = binding.notes
    assert note.startswith(f"layer 2 ({len(binding.unused)} tensors)")


def changed(folder: Path, copy: Path, edit: Any) -> WeightSource:
    """A copy of the folder with tensors edited."""
    folder = shutil.copytree(folder, copy / "m")
    file = folder / "model.safetensors"
    tensors = load_file(file)
    edit(tensors)
    save_file(tensors, file)
    return open_source(folder)


CODES = LAYER + "mlp.experts.3.down_proj.weight"
BLOCKS = LAYER + "mlp.experts.down_proj_blocks"


@pytest.mark.parametrize(
    ("edit", "error", "name"),
    [
        (lambda t: t.pop(CODES + "_scale_inv"), MissingTensorError, CODES),
        (
            lambda t: t.update({CODES + "_scale_inv": torch.ones(3, 2)}),
            ShapeMismatchError,
            CODES + "_scale_inv",
        ),
        (
            lambda t: t.update({CODES + "_scale_inv": torch.ones(2, 2).half()}),
            UnsupportedFormatError,
            CODES + "_scale_inv",
        ),
        (lambda t: t.update({CODES: t[CODES][:, :200].contiguous()}), ShapeMismatchError, CODES),
        (lambda t: t.update({CODES: t[CODES].to(torch.float8_e5m2)}), UnsupportedFormatError, CODES),
        (lambda t: t.update({CODES: t[CODES].float()}), UnsupportedFormatError, CODES),
        (lambda t: t.pop(CODES), MissingTensorError, CODES),
        (
            lambda t: t.update({CODES: t[CODES][:128].contiguous(), CODES + "_scale_inv": torch.ones(1, 2)}),
            ShapeMismatchError,
            CODES,
        ),
    ],
    ids=[
        "no scales",
        "shape of scales",
        "type of scales",
        "columns",
        "e5m2",
        "other format",
        "no expert",
        "rows",
    ],
)
def test_fp8_that_does_not_fit_names_the_tensor(
    edit: Any, error: type[Exception], name: str, fp8: Written, tmp_path: Path
) -> None:
    model, folder = fp8
    source = changed(folder, tmp_path, edit)
    (found,) = source.bind(shapes(model), source.config()).errors()
    assert isinstance(found, error)
    assert name in str(found)
    if not isinstance(found, MissingTensorError) or CODES in source.headers():
        assert found.file == tmp_path / "m" / "model.safetensors"


@pytest.mark.parametrize(
    ("edit", "error", "name"),
    [
        (lambda t: t.pop(BLOCKS.replace("blocks", "scales")), MissingTensorError, BLOCKS),
        (
            lambda t: t.update({BLOCKS.replace("blocks", "scales"): torch.ones(4, 3, dtype=torch.uint8)}),
            ShapeMismatchError,
            BLOCKS.replace("blocks", "scales"),
        ),
        (lambda t: t.update({BLOCKS: t[BLOCKS][..., :8].contiguous()}), ShapeMismatchError, BLOCKS),
        (
            lambda t: t.update({BLOCKS.replace("blocks", "scales"): torch.ones(4, 256, 8)}),
            UnsupportedFormatError,
            BLOCKS.replace("blocks", "scales"),
        ),
        (lambda t: t.update({BLOCKS: t[BLOCKS][:3].contiguous()}), ShapeMismatchError, BLOCKS),
    ],
    ids=["no scales", "shape of scales", "short blocks", "type of scales", "experts"],
)
def test_mxfp4_that_does_not_fit_names_the_tensor(
    edit: Any, error: type[Exception], name: str, mxfp4: Written, tmp_path: Path
) -> None:
    model, folder = mxfp4
    source = changed(folder, tmp_path, edit)
    (found,) = source.bind(shapes(model), source.config()).errors()
    assert isinstance(found, error) and name in str(found)
    assert found.file == tmp_path / "m" / "model.safetensors"


@pytest.mark.parametrize(
    ("quantisation", "text"),
    [
        ({"quant_method": "gptq", "bits": 4}, "gptq"),
        ({"quant_method": "fp8", "weight_block_size": None}, "weight_block_size"),
        ("fp8", "configuration"),
    ],
)
def test_other_quantised_checkpoints_are_refused(quantisation: Any, text: str, tmp_path: Path) -> None:
    folder = write_safetensors(tiny_model("llama"), tmp_path / "m")
    file = folder / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"quantization_config": quantisation}))
    with pytest.raises(UnsupportedModelError, match=text):
        open_source(folder).config()
