"""Routers become kt.router exactly when a trial shows it, with the attributes of their own settings."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from support.architectures import eager_model, tiny_config
from torch import nn

from ktc.capture import Captured, capture_language_model, capture_module, materialise, meta_model
from ktc.capture.routers import find_router

SETTINGS: dict[str, tuple[str, dict[str, Any], dict[str, Any]]] = {
    "mixtral": ("mixtral", {}, {"top_k": 2, "normalize": True}),
    "qwen2_moe": ("qwen2_moe", {"norm_topk_prob": False}, {"top_k": 2}),
    "qwen3_moe": ("qwen3_moe", {"norm_topk_prob": True}, {"top_k": 2, "normalize": True}),
    "gpt_oss": ("gpt_oss", {}, {"top_k": 2, "scoring": "softmax_chosen"}),
    "deepseek_v2 greedy": (
        "deepseek_v2",
        {"topk_method": "greedy", "routed_scaling_factor": 16.0},
        {"top_k": 2, "scale": 16.0},
    ),
    "deepseek_v2 with groups": (
        "deepseek_v2",
        {
            "topk_method": "group_limited_greedy",
            "n_routed_experts": 16,
            "num_experts_per_tok": 3,
            "n_group": 8,
            "topk_group": 2,
            "routed_scaling_factor": 16.0,
        },
        {"top_k": 3, "groups": 8, "kept_groups": 2, "scale": 16.0},
    ),
    "deepseek_v3": (
        "deepseek_v3",
        {"n_group": 4, "topk_group": 2, "norm_topk_prob": True, "routed_scaling_factor": 2.5},
        {
            "top_k": 2,
            "scoring": "sigmoid",
            "groups": 4,
            "kept_groups": 2,
            "group_score": "top2",
            "normalize": True,
            "scale": 2.5,
        },
    ),
    "deepseek_v3 without norm": (
        "deepseek_v3",
        {"n_group": 1, "topk_group": 1, "norm_topk_prob": False, "routed_scaling_factor": 1.5},
        {"top_k": 2, "scoring": "sigmoid", "scale": 1.5},
    ),
    "glm4_moe": (
        "glm4_moe",
        {"norm_topk_prob": True, "routed_scaling_factor": 2.5},
        {"top_k": 2, "scoring": "sigmoid", "normalize": True, "scale": 2.5},
    ),
}
DEFAULTS: dict[str, Any] = {
    "scoring": "softmax",
    "groups": 1,
    "kept_groups": 1,
    "group_score": "max",
    "normalize": False,
    "scale": 1.0,
}


def _router(config: Any) -> nn.Module:
    """The router of the last layer, with random parameters and buffers."""
    layer = eager_model(config).model.layers[-1].mlp
    module: nn.Module = layer.router if hasattr(layer, "router") else layer.gate
    return module


@pytest.mark.parametrize("name", SETTINGS)
def test_a_router_is_found_with_its_settings(name: str) -> None:
    architecture, changes, expected = SETTINGS[name]
    module = _router(tiny_config(architecture, layers=2, **changes))
    found = find_router(module)
    assert found is not None
    assert found.attributes == DEFAULTS | expected
    assert found.places == ("logits", "weights", "indices")
    assert found.bias == ("e_score_correction_bias" if "sigmoid" in expected.values() else "")


@pytest.mark.parametrize("name", SETTINGS)
def test_one_linear_and_one_router_do_what_the_module_does(name: str) -> None:
    architecture, changes, _ = SETTINGS[name]
    model = nn.Sequential(_router(tiny_config(architecture, layers=2, **changes)))
    x = torch.randn(33, 64, generator=torch.Generator().manual_seed(1))
    captured = capture_module(model, {"input": x}, {"input": {0: "tokens"}})
    ops = [str(n.target) for n in captured.module.graph.nodes if n.op.startswith("call") and n.users]
    assert [op for op in ops if op.startswith("kt.")] == ["kt.linear.default", "kt.router.default"]
    with torch.no_grad():
        logits, weights, indices = materialise(captured, model.state_dict())(x)
        expected = model(x)
    torch.testing.assert_close(logits, expected[0], rtol=1e-6, atol=1e-6)
    order, other = indices.argsort(-1), expected[2].argsort(-1)
    assert torch.equal(indices.gather(-1, order), expected[2].gather(-1, other))
    torch.testing.assert_close(weights.gather(-1, order), expected[1].gather(-1, other), rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("name", ["mixtral", "deepseek_v3", "gpt_oss"])
def test_narrow_parameters_keep_the_modules_dtypes(name: str) -> None:
    architecture, changes, _ = SETTINGS[name]
    module = _router(tiny_config(architecture, layers=2, **changes))
    module.to(torch.bfloat16)
    for buffer in module.buffers():
        buffer.data = buffer.data.float()
    x = torch.randn(9, 64, generator=torch.Generator().manual_seed(1)).bfloat16()
    captured = capture_module(nn.Sequential(module), {"input": x}, {})
    with torch.no_grad():
        found, expected = captured.module.graph.output_node().args[0], module(x)
    assert [node.meta["val"].dtype for node in found] == [item.dtype for item in expected]


def _nodes(captured: Captured, op: str) -> list[Any]:
    return [node for node in captured.module.graph.nodes if str(node.target) == f"kt.{op}.default"]


@pytest.mark.parametrize("name", ["qwen3_moe", "deepseek_v2", "deepseek_v3", "gpt_oss"])
def test_names_sites_and_parameters(name: str) -> None:
    captured = capture_language_model(meta_model(tiny_config(name, layers=3)))
    place = "mlp.router" if name == "gpt_oss" else "mlp.gate"
    layers = (1, 2) if name.startswith("deepseek") else (0, 1, 2)
    routers = _nodes(captured, "router")
    expected = [f"layers_{i}_{place.replace('.', '_')}_router" for i in layers]
    assert [node.name for node in routers] == expected
    for layer, node in zip(layers, routers, strict=True):
        linear = node.args[0]
        assert str(linear.target) == "kt.linear.default"
        assert linear.args[1].target == f"model.layers.{layer}.{place}.weight"
        assert node.meta["site"] == linear.meta["site"] == f"model.layers.{layer}.{place}"
        assert node.meta["stack"][-1][0] == f"model.layers.{layer}.{place}"
        if name == "gpt_oss":
            assert linear.args[2].target == f"model.layers.{layer}.{place}.bias"
        if name == "deepseek_v3":
            assert node.args[1].target == f"model.layers.{layer}.{place}.e_score_correction_bias"


class OtherRouter(nn.Module):
    """Chooses by softmax but weighs by the square of it, which kt.router does not."""

    def __init__(self) -> None:
        super().__init__()
        self.top_k = 2
        self.weight = nn.Parameter(torch.randn(8, 16))

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        logits = F.linear(x, self.weight)
        weights, indices = torch.topk(logits.softmax(-1), self.top_k, dim=-1)
        return logits, weights**2, indices


class WorstGate(OtherRouter):
    """Chooses the worst experts."""

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        logits = F.linear(x, self.weight)
        weights, indices = torch.topk(logits.softmax(-1), self.top_k, dim=-1, largest=False)
        return logits, weights, indices


class NormedGate(OtherRouter):
    """Normalises its input first, so that its logits are no linear of it."""

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        logits = F.linear(F.normalize(x), self.weight)
        weights, indices = torch.topk(logits.softmax(-1), self.top_k, dim=-1)
        return logits, weights, indices


@pytest.mark.parametrize("kind", [OtherRouter, WorstGate, NormedGate])
def test_what_is_another_router_stays_as_it_is(kind: type[OtherRouter]) -> None:
    model, x = nn.Sequential(kind()), torch.randn(5, 16)
    captured = capture_module(model, {"input": x}, {})
    assert not _nodes(captured, "router")
    with torch.no_grad():
        found = materialise(captured, model.state_dict())(x)
        for mine, theirs in zip(found, model(x), strict=True):
            torch.testing.assert_close(mine, theirs, rtol=1e-6, atol=1e-6)
