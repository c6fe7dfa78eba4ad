"""Sites of a model: names, classes, layers, sizes."""

from __future__ import annotations

from support.architectures import tiny_config
from torch import nn

from ktc.capture import meta_model, module_sites


def test_sites_of_a_language_model() -> None:
    model = meta_model(tiny_config("qwen3_moe", layers=3), "bfloat16")
    sites = {site.name: site for site in module_sites(model)}
    assert list(sites) == [name for name, _ in model.named_modules()]
    root = sites[""]
    assert root.classes[0] == "Qwen3MoeForCausalLM"
    assert "PreTrainedModel" in root.classes and "object" not in root.classes
    assert root.params == sum(p.numel() for p in model.parameters())
    assert root.bytes == 2 * root.params
    projection = sites["model.layers.2.self_attn.q_proj"]
    assert (projection.classes, projection.layer) == (("Linear", "Module"), 2)
    assert (projection.dtype, projection.shape, projection.params) == ("bfloat16", (64, 64), 4096)
    experts = sites["model.layers.1.mlp.experts"]
    assert experts.shape == (8, 64, 64)
    assert experts.params == 8 * (64 * 64 + 64 * 32)
    assert sites["model.norm"].layer is None
    assert sites["model.layers"].layer is None
    assert sites["model.layers.0"].layer == 0


def test_sites_of_a_plain_module() -> None:
    model = nn.Sequential(nn.ModuleList([nn.Linear(2, 3), nn.ReLU()]), nn.Linear(3, 1))
    sites = {site.name: site for site in module_sites(model)}
    assert sites["0.1"].layer == 1
    assert sites["0.1"].shape is None
    assert sites["1"].layer is None
