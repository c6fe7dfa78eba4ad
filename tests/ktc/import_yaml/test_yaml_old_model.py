"""The module tree that KTransformers saw, against what its modelling files build."""

from __future__ import annotations

from functools import cache

import pytest
from support.architectures import tiny_config

from ktc.capture import meta_model
from ktc.import_yaml.old_model import FAMILIES, OldModel, OldModule
from ktc.import_yaml.replay import class_fits
from ktc.import_yaml.tables import MODEL_CLASSES, MODELS_PACKAGE


@cache
def old_model(name: str, **changes: object) -> OldModel:
    config = tiny_config(name, 3, **changes)
    return OldModel(meta_model(config), config.model_type)


def by_name(name: str) -> dict[str, OldModule]:
    return {module.name: module for module in old_model(name).walk()}


# In the words of modeling_*.py: name, class, and whose weights they are today.
THEN = {
    "deepseek_v2": [
        ("model.layers.1.mlp", "modeling_deepseek.DeepseekV2MoE", "model.layers.1.mlp"),
        ("model.layers.0.mlp", "modeling_deepseek.DeepseekV2MLP", "model.layers.0.mlp"),
        ("model.layers.1.mlp.gate", "modeling_deepseek.MoEGate", "model.layers.1.mlp.gate"),
        ("model.layers.1.mlp.experts.0", "modeling_deepseek.DeepseekV2MLP", "model.layers.1.mlp.experts"),
        ("model.layers.1.self_attn.rotary_emb", "modeling_deepseek.DeepseekV2RotaryEmbedding", None),
        ("model", "modeling_deepseek.DeepseekV2Model", "model"),
    ],
    "deepseek_v3": [
        ("model.layers.2.mlp.gate", "modeling_deepseek_v3.MoEGate", "model.layers.2.mlp.gate"),
        ("model.layers.0.self_attn", "modeling_deepseek_v3.DeepseekV3Attention", "model.layers.0.self_attn"),
        ("model.norm", "modeling_deepseek_v3.DeepseekV3RMSNorm", "model.norm"),
    ],
    "mixtral": [
        ("model.layers.0.block_sparse_moe", "modeling_mixtral.MixtralSparseMoeBlock", "model.layers.0.mlp"),
        ("model.layers.0.block_sparse_moe.gate", "torch.nn.Linear", "model.layers.0.mlp.gate"),
        ("model.layers.0.block_sparse_moe.experts", "torch.nn.ModuleList", "model.layers.0.mlp.experts"),
        ("model.layers.0.block_sparse_moe.experts.0.w2", "torch.nn.Linear", "model.layers.0.mlp.experts"),
    ],
    "qwen2_moe": [
        ("model.layers.0.mlp.gate", "torch.nn.Linear", "model.layers.0.mlp.gate"),
        ("model.layers.0.mlp.shared_expert_gate", "torch.nn.Linear", "model.layers.0.mlp.shared_expert_gate"),
        ("model.layers.0.mlp.experts.0.up_proj", "torch.nn.Linear", "model.layers.0.mlp.experts"),
    ],
    "qwen3_moe": [
        ("model.layers.0.self_attn.rotary_emb", "modeling_qwen2_moe.Qwen2MoeRotaryEmbedding", None),
        ("model.rotary_emb", "modeling_qwen3_moe.Qwen3MoeRotaryEmbedding", "model.rotary_emb"),
    ],
    "glm4_moe": [("model.layers.1.mlp.gate", "modeling_glm4_moe.Glm4MoeTopkRouter", "model.layers.1.mlp.gate")],
    "llama": [("model.layers.0.self_attn.rotary_emb", "modeling_llama.LlamaRotaryEmbedding", None)],
}  # fmt: skip


@pytest.mark.parametrize("family", FAMILIES)
def test_modules_have_the_names_and_classes_of_then(family: str) -> None:
    modules = by_name(family)
    for name, path, site in THEN[family]:
        full = path if path.startswith("torch") else MODELS_PACKAGE + path
        assert class_fits(full, modules[name]), modules[name]
        assert modules[name].site == site


@pytest.mark.parametrize("family", FAMILIES)
def test_every_weight_of_today_belongs_to_a_module_of_then(family: str) -> None:
    config = tiny_config(family, 3)
    model = meta_model(config)
    old = OldModel(model, family)
    holders = {m.site for m in old.walk() if m.holds}
    today = {name.rpartition(".")[0] for name, _ in model.named_parameters(remove_duplicate=False)}
    assert holders == today


@pytest.mark.parametrize("family", FAMILIES)
def test_every_class_is_one_that_the_modelling_file_has(family: str) -> None:
    for module in old_model(family).walk():
        for path in module.classes:
            if path.startswith(MODELS_PACKAGE):
                file, _, name = path.removeprefix(MODELS_PACKAGE).rpartition(".")
                assert name in MODEL_CLASSES[file], path


def test_all_experts_are_there_for_who_asks() -> None:
    old = old_model("mixtral")
    experts = by_name("mixtral")["model.layers.1.block_sparse_moe.experts"]
    assert old.is_experts(experts) and len(list(old.children(experts))) == 8
    last = list(old.children(experts))[-1]
    assert [m.name.rpartition(".")[2] for m in old.children(last)] == ["w1", "w2", "w3", "act_fn"]


def test_yarn_has_a_class_of_its_own() -> None:
    yarn = {
        "rope_type": "yarn",
        "factor": 4.0,
        "rope_theta": 10000.0,
        "original_max_position_embeddings": 128,
    }
    config = tiny_config("deepseek_v2", 2, rope_parameters=yarn)
    modules = {m.name: m for m in OldModel(meta_model(config), "deepseek_v2").walk()}
    rotary = modules["model.layers.0.self_attn.rotary_emb"]
    assert class_fits("ktransformers.models.modeling_deepseek.DeepseekV2YarnRotaryEmbedding", rotary)
    assert class_fits("ktransformers.models.modeling_deepseek.DeepseekV2RotaryEmbedding", rotary)


def test_isinstance_is_by_the_full_path() -> None:
    gate = by_name("deepseek_v3")["model.layers.1.mlp.gate"]
    assert not class_fits("ktransformers.models.modeling_deepseek.MoEGate", gate)
    linear = by_name("deepseek_v3")["lm_head"]
    assert class_fits("torch.nn.modules.linear.Linear", linear) and class_fits("torch.nn.Module", linear)


def test_an_architecture_without_modelling_file_is_taken_as_it_is() -> None:
    modules = by_name("qwen3")
    assert all(module.name == module.site for module in modules.values())
    path = "transformers.models.qwen3.modeling_qwen3.Qwen3Attention"
    assert class_fits(path, modules["model.layers.0.self_attn"])
