"""Every family with float32 weights, through a GGUF file and through safetensors in the names of its published files:
logits of a prefill and eight decode steps, one sequence and a ragged batch, beside eager.
"""

from __future__ import annotations

from pathlib import Path

import pytest
from support.families import FAMILIES, Case, ragged, sequence


@pytest.mark.parametrize("format", ["f32", "safetensors"])
@pytest.mark.parametrize("family", FAMILIES)
def test_float_weights(family: str, format: str, tmp_path: Path) -> None:
    """Sums in another order are all that differs; no op is left to the reference kernels."""
    case = Case(family, tmp_path, format)
    assert case.unused == ()
    assert case.error(*sequence()) < 1e-5
    assert case.error(*ragged()) < 1e-5
    assert not {kernel for kernel in case.kernels if kernel.startswith("torch.")}


@pytest.mark.parametrize("family", ["llama", "qwen2", "qwen3", "gemma3"])
def test_rewrites_fire_in_every_layer(family: str, tmp_path: Path) -> None:
    case = Case(family, tmp_path, "f32")
    layers = case.model.config.num_hidden_layers
    gelu = family == "gemma3"
    assert case.fired == {
        "merge_qkv_bias" if family == "qwen2" else "merge_qkv": layers,
        "merge_gate_up_gelu" if gelu else "merge_gate_up_silu": layers,
        "gelu_mul" if gelu else "silu_mul": layers,
        "add_rms_norm": 2 * layers,
    }
