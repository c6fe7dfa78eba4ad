"""Norms, activations and rotary embeddings are lifted exactly when a trial shows that they mean the op."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from support.architectures import eager_model, tiny_config
from support.paging import PagedRun
from torch import nn
from transformers.activations import ACT2FN
from transformers.models.gemma3.modeling_gemma3 import Gemma3RMSNorm
from transformers.models.llama.modeling_llama import LlamaRMSNorm

from ktc.capture import (
    Captured,
    CaptureError,
    capture_language_model,
    capture_module,
    materialise,
    meta_model,
)


def _targets(captured: Captured) -> list[str]:
    return [str(node.target) for node in captured.module.graph.nodes]


def _agrees(model: nn.Module, captured: Captured, example: dict[str, torch.Tensor]) -> None:
    with torch.no_grad():
        (found,) = materialise(captured, model.state_dict())(**example)
        torch.testing.assert_close(found, model(**example), rtol=1e-6, atol=1e-6)


class CenteredRMSNorm(nn.Module):
    """Not RMS normalisation, whatever its name says: it takes the mean away first."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(8))
        self.eps = 1e-6

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = x - x.mean(-1, keepdim=True)
        return x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + self.eps) * self.weight


@pytest.mark.parametrize(
    ("norm", "constants"),
    [
        (LlamaRMSNorm(8, eps=1e-5), (1e-5, 0.0)),
        (Gemma3RMSNorm(8, eps=1e-6), (1e-6, 1.0)),
        (nn.RMSNorm(8, eps=1e-4), (1e-4,)),
    ],
)
def test_rms_norms_are_found_with_their_constants(norm: nn.Module, constants: tuple[float, ...]) -> None:
    norm.weight.data = torch.randn(8)
    keyword = {LlamaRMSNorm: "hidden_states"}.get(type(norm), "x")
    model = nn.Sequential(norm)
    example = {"input": torch.randn(3, 8) * 1e-3}
    captured = capture_module(model, example)
    node = next(node for node in captured.module.graph.nodes if str(node.target) == "kt.rms_norm.default")
    assert node.args[2 : 2 + len(constants)] == constants
    _agrees(model, captured, example)
    assert keyword


def test_a_norm_that_is_another_stays_as_it_is() -> None:
    model, example = nn.Sequential(CenteredRMSNorm()), {"input": torch.randn(3, 8)}
    captured = capture_module(model, example)
    assert "kt.rms_norm.default" not in _targets(captured)
    _agrees(model, captured, example)


@pytest.mark.parametrize(
    ("name", "op"),
    [
        ("silu", "kt.silu"),
        ("gelu", "kt.gelu"),
        ("gelu_pytorch_tanh", "kt.gelu"),
        ("gelu_new", "kt.gelu"),
        ("gelu_fast", "kt.gelu"),
        ("quick_gelu", None),
        ("relu", None),
        ("laplace", None),
    ],
)
def test_activations(name: str, op: str | None) -> None:
    model, example = nn.Sequential(ACT2FN[name]), {"input": torch.linspace(-6, 6, 77)[None]}
    captured = capture_module(model, example)
    found = [target for target in _targets(captured) if target.startswith("kt.") and "mul" not in target]
    assert found == ([f"{op}.default"] if op else [])
    _agrees(model, captured, example)


def test_functional_forms() -> None:
    class Functions(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.table, self.scale = nn.Parameter(torch.randn(5, 8)), nn.Parameter(torch.randn(8))

        def forward(self, ids: torch.Tensor) -> torch.Tensor:
            x = F.embedding(ids, self.table, padding_idx=0)
            x = F.layer_norm(F.dropout(x, 0.5, self.training), (8,), self.scale, eps=1e-5)
            x = F.rms_norm(F.silu(x), (8,), self.scale)
            return F.gelu(F.linear(x, self.table), approximate="tanh")

    model, example = Functions().eval(), {"ids": torch.tensor([[1, 0, 4]])}
    captured = capture_module(model, example)
    calls = [node for node in captured.module.graph.nodes if node.op.startswith("call")]
    kinds = ("embedding", "layer_norm", "silu", "rms_norm", "linear", "gelu")
    assert [str(node.target) for node in calls if node.users][-6:] == [f"kt.{kind}.default" for kind in kinds]
    _agrees(model, captured, example)


ROPE: dict[str, dict[str, Any]] = {
    "default": {"rope_type": "default", "rope_theta": 10000.0},
    "linear": {"rope_type": "linear", "rope_theta": 10000.0, "factor": 4.0},
    "llama3": {
        "rope_type": "llama3",
        "rope_theta": 10000.0,
        "factor": 8.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 16,
    },
    "yarn": {
        "rope_type": "yarn",
        "rope_theta": 10000.0,
        "factor": 4.0,
        "original_max_position_embeddings": 128,
    },
}


def _run(captured: Captured, config: Any) -> tuple[torch.Tensor, torch.Tensor]:
    model = eager_model(config)
    ids = torch.randint(3, 250, (11,), generator=torch.Generator().manual_seed(0))
    run = PagedRun(captured, dict(model.state_dict()))
    with torch.no_grad():
        return run.step([ids])[0], model(ids[None]).logits[0]


@pytest.mark.parametrize("kind", ROPE)
@pytest.mark.parametrize("name", ["llama", "deepseek_v2", "gpt_oss"])
def test_rotary_types_with_constant_frequencies_are_lifted(name: str, kind: str) -> None:
    config = tiny_config(name, layers=2, rope_parameters=ROPE[kind])
    captured = capture_language_model(meta_model(config), block_size=4)
    assert _targets(captured).count("kt.rotary.default") == 1
    assert _targets(captured).count("kt.rope.default") == 2
    if kind == "yarn" and name == "llama":
        node = next(n for n in captured.module.graph.nodes if str(n.target) == "kt.rotary.default")
        assert node.args[2] == pytest.approx(1.1386294)
    found, expected = _run(captured, config)
    assert float((found - expected).abs().max() / expected.abs().max()) < 1e-5


def test_dynamic_frequencies_are_refused() -> None:
    parameters = {"rope_type": "dynamic", "rope_theta": 10000.0, "factor": 4.0}
    with pytest.raises(CaptureError, match="depends on the values of tensors") as caught:
        capture_language_model(meta_model(tiny_config("llama", layers=2, rope_parameters=parameters)))
    assert caught.value.module == "model.rotary_emb"


def test_part_of_a_head_may_turn() -> None:
    config = tiny_config("glm4_moe", layers=2)
    config.rope_parameters = dict(config.rope_parameters) | {"partial_rotary_factor": 0.5}
    captured = capture_language_model(meta_model(config), block_size=4)
    rope = next(node for node in captured.module.graph.nodes if str(node.target) == "kt.rope.default")
    assert (rope.args[2].meta["val"].shape[-1], rope.args[0].meta["val"].shape[-1]) == (8, 16)
    found, expected = _run(captured, config)
    assert float((found - expected).abs().max() / expected.abs().max()) < 1e-5


def test_pairs_side_by_side_are_interleaved() -> None:
    captured = capture_language_model(meta_model(tiny_config("deepseek_v2", layers=2)))
    rope = [node for node in captured.module.graph.nodes if str(node.target) == "kt.rope.default"]
    assert all(node.args[4] is True for node in rope)
