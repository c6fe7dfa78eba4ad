"""GGUF files in the forms that llama.cpp's converter has had: read back exactly, and packed where it counts."""

from __future__ import annotations

from pathlib import Path

import gguf
import numpy as np
import pytest
import torch
from support.gguf_files import Naming, write_gguf
from support.tiny_models import tiny_model
from transformers import AutoModelForCausalLM, LlamaConfig, PreTrainedModel

from ktc.errors import ShapeMismatchError, UnsupportedFormatError, UnsupportedModelError
from ktc.weights.convert import dequantize
from ktc.weights.opening import open_source
from ktc.weights.recipe import Recipe
from ktc.weights.source import WeightSource
from ktc.weights.views import Deinterleave, ExpertRows, MlaKeys, MlaValues

LAYER = "model.layers.1."


def shapes(model: PreTrainedModel) -> dict[str, tuple[int, ...]]:
    return {name: tuple(p.shape) for name, p in model.state_dict().items()}


def values(source: WeightSource, recipe: Recipe) -> np.ndarray:
    raw = source.read(recipe)
    return dequantize(raw.data, raw.format, raw.shape)


def assert_same_model(path: Path, model: PreTrainedModel) -> WeightSource:
    """Every parameter comes back, and the configuration makes a model with the same logits."""
    source = open_source(path)
    binding = source.bind(shapes(model), source.config())
    assert not binding.errors() and not binding.unused
    state = {}
    for name, wanted in model.state_dict().items():
        state[name] = torch.from_numpy(values(source, binding.recipes[name]).copy())
        assert torch.equal(state[name], wanted), name
    again = AutoModelForCausalLM.from_config(
        source.config(), dtype=torch.float32, attn_implementation="eager"
    ).eval()
    again.load_state_dict(state)
    ids = torch.randint(3, 250, (1, 40), generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        torch.testing.assert_close(again(ids).logits, model(ids).logits, rtol=1e-4, atol=1e-4)
    return source


@pytest.mark.parametrize("latent", ["split", "joined"])
@pytest.mark.parametrize("family", ["deepseek_v2", "deepseek_v3", "deepseek_v2_lite"])
def test_deepseek_in_both_forms(family: str, latent: str, tmp_path: Path) -> None:
    lite = {"q_lora_rank": None, "topk_method": "greedy", "n_group": 1, "topk_group": 1}
    model = tiny_model(family.removesuffix("_lite"), **(lite if family.endswith("_lite") else {}))
    path = write_gguf(model, tmp_path / "m.gguf", "f32", naming=Naming(latent=latent))
    source = assert_same_model(path, model)
    assert ("blk.0.attn_kv_b.weight" in source.headers()) == (latent == "joined")
    keys = 1 if latent == "split" else model.config.num_attention_heads
    assert source.metadata.integer("deepseek2.attention.head_count_kv") == keys  # type: ignore[attr-defined]


@pytest.mark.parametrize(("format", "held"), [("q8_0", ("q8_0", "q8_0")), ("q4_k", ("q8_0", "q4_k"))])
def test_split_latent_weights_stay_packed_under_views(
    format: str, held: tuple[str, str], tmp_path: Path
) -> None:
    model = tiny_model("deepseek_v3")
    source = open_source(write_gguf(model, tmp_path / "m.gguf", format))
    recipe = source.bind(shapes(model), source.config()).recipes[f"{LAYER}self_attn.kv_b_proj.weight"]
    heads, nope = model.config.num_attention_heads, model.config.qk_nope_head_dim
    keys, rest = recipe.then(MlaKeys(heads, nope)), recipe.then(MlaValues(heads, nope))
    assert (keys.format, rest.format) == held and recipe.format == "f32"
    assert recipe.stored_format == (held[0] if held[0] == held[1] else "f32")
    assert [h.name for h in keys.headers] == ["blk.1.attn_k_b.weight"]
    whole = values(source, recipe).reshape(heads, -1, recipe.shape[1])
    np.testing.assert_array_equal(values(source, keys), whole[:, :nope].swapaxes(1, 2))
    np.testing.assert_array_equal(values(source, rest), whole[:, nope:])


def test_joined_latent_weights_under_views(tmp_path: Path) -> None:
    model = tiny_model("deepseek_v3")
    path = write_gguf(model, tmp_path / "m.gguf", "q8_0", naming=Naming(latent="joined"))
    source = open_source(path)
    recipe = source.bind(shapes(model), source.config()).recipes[f"{LAYER}self_attn.kv_b_proj.weight"]
    heads, nope = model.config.num_attention_heads, model.config.qk_nope_head_dim
    keys, rest = recipe.then(MlaKeys(heads, nope)), recipe.then(MlaValues(heads, nope))
    assert (recipe.format, keys.format, rest.format) == ("q8_0", "f32", "q8_0")
    whole = values(source, recipe).reshape(heads, -1, recipe.shape[1])
    np.testing.assert_array_equal(values(source, keys), whole[:, :nope].swapaxes(1, 2))
    np.testing.assert_array_equal(values(source, rest), whole[:, nope:])


def test_latent_halves_of_two_dimensions(tmp_path: Path) -> None:
    """As files from before April 2025 have them: heads and rows in one dimension."""
    model = tiny_model("deepseek_v3", num_hidden_layers=1)
    tensors = {}
    for name in ("attn_k_b", "attn_v_b"):
        source = open_source(write_gguf(model, tmp_path / "m.gguf", "f32"))
        header = source.headers()[f"blk.0.{name}.weight"]
        tensors[name] = source.data(header).view("<f4").reshape(-1, header.shape[-1])
    writer = gguf.GGUFWriter(tmp_path / "flat.gguf", "deepseek2")
    for name, flat in tensors.items():
        writer.add_tensor(f"blk.0.{name}.weight", flat)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    name = "model.layers.0.self_attn.kv_b_proj.weight"
    old = open_source(tmp_path / "flat.gguf")
    binding = old.bind({name: shapes(model)[name]}, model.config)
    assert torch.equal(torch.from_numpy(values(old, binding.recipes[name])), model.state_dict()[name])


def test_latent_halves_of_other_shapes_are_refused(tmp_path: Path) -> None:
    model, other = tiny_model("deepseek_v3"), tiny_model("deepseek_v3", qk_nope_head_dim=96)
    source = open_source(write_gguf(model, tmp_path / "m.gguf", "f32"))
    problems = source.bind(shapes(other), other.config).problems
    assert any(isinstance(p, ShapeMismatchError) and "attn_k_b" in str(p) for p in problems)


@pytest.mark.parametrize("format", ["f32", "q4_k"])
def test_mixtral_with_a_tensor_for_each_expert(format: str, tmp_path: Path) -> None:
    model = tiny_model("mixtral")
    path = write_gguf(model, tmp_path / "m.gguf", format, naming=Naming(experts="single"))
    source = open_source(path)
    assert "blk.0.ffn_gate.3.weight" in source.headers()
    if format == "f32":
        assert_same_model(path, model)
    fused = open_source(write_gguf(model, tmp_path / "fused.gguf", format))
    for which in ("gate_up_proj", "down_proj"):
        name = f"{LAYER}mlp.experts.{which}"
        one, two = (s.bind(shapes(model), s.config()).recipes[name] for s in (source, fused))
        assert one.format == two.format == format
        np.testing.assert_array_equal(source.read(one).data, fused.read(two).data)


@pytest.mark.parametrize("family", ["qwen3_moe", "gpt_oss"])
def test_gate_and_up_in_one_tensor(family: str, tmp_path: Path) -> None:
    model = tiny_model(family)
    path = write_gguf(model, tmp_path / "m.gguf", "f32", naming=Naming(experts="joined"))
    assert "blk.0.ffn_gate_up_exps.weight" in assert_same_model(path, model).headers()


def test_an_expert_that_is_missing_is_named(tmp_path: Path) -> None:
    model = tiny_model("mixtral")
    path = write_gguf(
        model,
        tmp_path / "m.gguf",
        "f32",
        naming=Naming(experts="single"),
        rename={"1.ffn_up.2": "1.ffn_up.9"},
    )
    source = open_source(path)
    binding = source.bind(shapes(model), source.config())
    assert binding.missing == {f"{LAYER}mlp.experts.gate_up_proj": ("blk.1.ffn_up.2.weight",)}


def test_experts_of_different_formats_are_refused(tmp_path: Path) -> None:
    model = tiny_model("mixtral")
    naming = Naming(experts="single")
    path = write_gguf(model, tmp_path / "m.gguf", "q8_0", formats={"1.ffn_up.2": "q4_0"}, naming=naming)
    source = open_source(path)
    (problem,) = source.bind(shapes(model), source.config()).problems
    assert isinstance(problem, UnsupportedFormatError) and "blk.1.ffn_up.2.weight" in str(problem)
    assert problem.file == path


@pytest.mark.parametrize("bias", [False, True])
def test_internlm2_is_a_llama(bias: bool, tmp_path: Path) -> None:
    model = tiny_model("llama", attention_bias=bias)
    path = write_gguf(model, tmp_path / "m.gguf", "f32", architecture="internlm2")
    source = assert_same_model(path, model)
    config = source.config()
    assert isinstance(config, LlamaConfig) and config.architectures == ["LlamaForCausalLM"]
    assert config.attention_bias == bias


@pytest.mark.parametrize("format", ["f32", "mxfp4", "q8_0"])
def test_gpt_oss_experts_stay_packed_under_views(format: str, tmp_path: Path) -> None:
    model = tiny_model("gpt_oss")
    path = write_gguf(model, tmp_path / "m.gguf", "q8_0", formats={"_exps.weight": format})
    source = open_source(path)
    binding = source.bind(shapes(model), source.config())
    assert not binding.errors()
    for which, view in (("gate_up_proj", ExpertRows(True)), ("down_proj", ExpertRows(False))):
        held = binding.recipes[f"{LAYER}mlp.experts.{which}"]
        rows = held.then(view)
        assert (held.format, held.stored_format, rows.format) == ("f32", format, format)
        wanted = values(source, held).swapaxes(1, 2)
        if view.interleaved:
            wanted = np.concatenate([wanted[:, ::2], wanted[:, 1::2]], 1)
        np.testing.assert_array_equal(values(source, rows), wanted)
    bias = binding.recipes[f"{LAYER}mlp.experts.gate_up_proj_bias"]
    np.testing.assert_array_equal(
        values(source, bias), model.state_dict()[f"{LAYER}mlp.experts.gate_up_proj_bias"].numpy()
    )
    halves = bias.then(Deinterleave())
    assert [h.name for h in halves.headers] == ["blk.1.ffn_gate_exps.bias", "blk.1.ffn_up_exps.bias"]


def test_gpt_oss_configuration(tmp_path: Path) -> None:
    model = tiny_model("gpt_oss", num_hidden_layers=3, layer_types=None)
    config = open_source(write_gguf(model, tmp_path / "m.gguf", "f32")).config()
    own = model.config
    for name in (
        "hidden_size", "intermediate_size", "num_local_experts", "num_experts_per_tok", "sliding_window", "head_dim",
        "layer_types", "swiglu_limit", "swiglu_alpha", "attention_bias", "rms_norm_eps", "rope_parameters",
    ):  # fmt: skip
        if hasattr(own, name):
            assert getattr(config, name) == getattr(own, name), name
    assert config.layer_types == ["sliding_attention", "full_attention", "sliding_attention"]


@pytest.mark.parametrize(
    ("key", "value", "text"),
    [
        ("expert_gating_func", 2, "softmax"),
        ("swiglu_clamp_exp", [5.0, 5.0], "other limits"),
        ("rope.dimension_count", 32, "a head has 64"),
    ],
)
def test_gpt_oss_settings_that_are_refused(key: str, value: object, text: str, tmp_path: Path) -> None:
    model = tiny_model("gpt_oss")

    def add(writer: gguf.GGUFWriter) -> None:
        if isinstance(value, list):
            writer.add_array(f"gpt-oss.{key}", value)
        else:
            writer.add_uint32(f"gpt-oss.{key}", value)

    path = write_gguf(model, tmp_path / "m.gguf", "q8_0", extra=add)
    with pytest.raises(UnsupportedModelError, match=text):
        open_source(path).config()


@pytest.mark.parametrize("family", ["glm4_moe", "deepseek_v3"])
def test_the_layer_that_predicts_further_tokens_is_noted_and_not_used(family: str, tmp_path: Path) -> None:
    model = tiny_model(family)
    path = write_gguf(model, tmp_path / "m.gguf", "f32", naming=Naming(extra_layer=True))
    source = open_source(path)
    config = source.config()
    assert config.num_hidden_layers == model.config.num_hidden_layers
    binding = source.bind(shapes(model), config)
    assert not binding.errors()
    assert binding.unused and all(name.startswith("blk.2.") for name in binding.unused)
    (note,) = binding.notes
    assert note.startswith(f"layer 2 ({len(binding.unused)} tensors)")
    for name, wanted in model.state_dict().items():
        assert np.array_equal(values(source, binding.recipes[name]), wanted.numpy()), name
