"""Every family on quantised weights, over a prefill and eight decode steps, one sequence and a ragged batch.

Kernels round what meets quantised weights to int8 in blocks of 32, which moves the logits of these random models by
about 2 %. So they are compared with an eager model that rounds in the same way: then a position is either equal, up to
the order of sums, or some value lay at the edge between two codes and was rounded the other way. That costs as much as
rounding does, there and at the positions after it; where a router's two best experts are near each other, it also
exchanges them. A wrong kernel or layout leaves no position equal. With the reference kernels nothing is rounded.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from support.families import FAMILIES, PREFILL, REFERENCE_KERNELS, Case, ragged, sequence
from support.levels import float_activations

EQUAL, ROUNDING = 1e-5, 0.03
FORMATS = {
    "llama": ["q8_0", "mixed"],
    "internlm2": ["q4_1"],
    "qwen2": ["q4_k", "q6_k"],
    "qwen3": ["q4_0", "mixed"],
    "gemma3": ["q8_0", "mixed"],
    "mixtral": ["q4_0", "mixed"],
    "qwen2_moe": ["q8_0", "experts-q6_k"],
    "qwen3_moe": ["q4_k", "experts-q4_0"],
    "deepseek_v2": ["q8_0", "mixed"],
    "deepseek_v2_lite": ["q4_0"],
    "deepseek_v3": ["mixed", "experts-q4_k"],
    "gpt_oss": ["experts-mxfp4", "safetensors-mxfp4"],
    "glm4_moe": ["q6_k", "mixed"],
}
EXACT = {
    "qwen2": "bf16",
    "mixtral": "bf16",
    "qwen3_moe": "safetensors-bf16",
    "deepseek_v2": "bf16",
    "deepseek_v3": "safetensors-fp8",
    "glm4_moe": "f16",
}


@pytest.fixture(autouse=True)
def exact_floats() -> Iterator[None]:
    """Weights in bf16 and fp8 are compared as exactly as others."""
    with float_activations():
        yield


def routed(family: str) -> bool:
    """Whether the family has experts."""
    return family not in ("llama", "internlm2", "qwen2", "qwen3", "gemma3")


@pytest.mark.parametrize(("family", "format"), [(f, format) for f in FAMILIES for format in FORMATS[f]])
def test_quantised_weights(family: str, format: str, tmp_path: Path) -> None:
    case = Case(family, tmp_path, format)
    plain = torch.cat([case.errors(*inputs) for inputs in (sequence(), ragged())])
    assert plain.median() < 0.04
    case.round_inputs()
    one, several = case.errors(*sequence()), case.errors(*ragged())
    errors = torch.cat([one, several])
    equal, rounded = errors < EQUAL, errors < ROUNDING
    assert equal.float().mean() > 0.1, errors
    assert rounded.float().mean() >= (0.95 if routed(family) else 1.0), errors
    _, mask = ragged()
    steps = torch.zeros_like(mask)
    steps[:, PREFILL:] = 1
    decoded = steps[mask.bool()].bool()
    assert torch.cat([one[:PREFILL], several[~decoded]]).min() < EQUAL
    assert torch.cat([one[PREFILL:], several[decoded]]).min() < EQUAL


@pytest.mark.parametrize("family", FAMILIES)
def test_reference_kernels_round_nothing(family: str, tmp_path: Path) -> None:
    case = Case(family, tmp_path, "experts-mxfp4" if family == "gpt_oss" else "mixed", REFERENCE_KERNELS)
    assert "torch.linear" in case.kernels
    assert ("torch.experts" in case.kernels) == routed(family)
    assert case.error(*ragged()) < EQUAL


@pytest.mark.parametrize(("family", "format"), EXACT.items())
def test_weights_in_floats_of_fewer_bits(family: str, format: str, tmp_path: Path) -> None:
    """Activations meet them in float32, so the logits are those of eager on the same values."""
    case = Case(family, tmp_path, format)
    assert case.error(*sequence()) < EQUAL
    assert case.error(*ragged()) < EQUAL


def test_weights_of_different_formats_stay_apart(tmp_path: Path) -> None:
    """q and k are q4_k, v is q6_k."""
    case = Case("qwen2", tmp_path, "mixed")
    assert "merge_qkv_bias" not in case.fired
    plans = [w for w in case.compiled.context.weights.values() if w.parameters[0].endswith(".weight")]
    held = {w.parameters[0].split(".")[-2]: w.format for w in plans}
    assert (held["q_proj"], held["v_proj"], held["down_proj"]) == ("q4_k", "q6_k", "q6_k")
