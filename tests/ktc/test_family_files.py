"""Other forms in which families are published: one tensor an expert in a GGUF file, a layer after the last one."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from support.families import Case, ragged
from support.gguf_files import Naming
from support.levels import float_activations


@pytest.fixture(autouse=True)
def exact_floats() -> Iterator[None]:
    """Weights in bf16 and fp8 are compared as exactly as others."""
    with float_activations():
        yield


@pytest.mark.parametrize("format", ["f32", "mixed"])
def test_one_tensor_an_expert(format: str, tmp_path: Path) -> None:
    """As the first GGUF files of Mixtral were."""
    case = Case("mixtral", tmp_path, format, gguf={"naming": Naming(experts="single")})
    assert "blk.0.ffn_gate.3.weight" in case.source.headers() and case.unused == ()
    case.round_inputs()
    errors = case.errors(
        *ragged()
    )  # as in test_family_quantised: equal, or behind a value at the edge of two codes
    assert float((errors < 1e-5).float().mean()) > 0.1 and errors.max() < 0.03, errors


@pytest.mark.parametrize("family", ["glm4_moe", "deepseek_v3"])
def test_a_layer_that_predicts_further_tokens(family: str, tmp_path: Path) -> None:
    """The layer after the last one is no part of the model and is left out."""
    case = Case(family, tmp_path, "f32", gguf={"naming": Naming(extra_layer=True)})
    assert any(name.startswith("blk.2.nextn") for name in case.source.headers())
    assert case.error(*ragged()) < 1e-5
    assert len(case.model.model.layers) == 2
