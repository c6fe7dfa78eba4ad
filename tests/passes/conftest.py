"""Compiles small programs on a tiny Llama with random weights, for the tests of the passes."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from ktc.grammar.loading import load
from support.compiling import HOST
from support.tiny_models import tiny_model
from transformers import PreTrainedModel

import ktc
from ktc.compiler import Compiled, Options, compile_language_model
from ktc.weights.state_dict import StateDictSource

Compile = Callable[..., Compiled]


@pytest.fixture(scope="session")
def llama() -> PreTrainedModel:
    """A two-layer Llama in float32."""
    return tiny_model("llama")


@pytest.fixture
def compiled(llama: PreTrainedModel) -> Compile:
    """Compiles a program for the tiny Llama; the text of device and placement is put in front unless `bare`."""

    def build(
        text: str = "",
        *,
        bare: bool = False,
        dump: Path | None = None,
        params: Mapping[str, Any] | None = None,
    ) -> Compiled:
        rules = load((text if bare else HOST + text) + "\n", text=True, params=params)
        source = StateDictSource(llama.state_dict(), llama.config)
        return compile_language_model(rules, llama.config, source, Options(dump=dump))

    return build


@pytest.fixture
def same_logits(llama: PreTrainedModel) -> Callable[..., None]:
    """Checks that a program leaves the model's logits as they are, over a prefill and decode steps."""

    def check(text: str, *, bare: bool = False, tolerance: float = 1e-5) -> torch.nn.Module:
        placed = ktc.rewrite(llama, (text if bare else HOST + text) + "\n")
        ids = torch.randint(3, 500, (1, 9), generator=torch.Generator().manual_seed(1))
        with torch.no_grad():
            expected = llama(ids).logits
            prefill = placed(ids[:, :6], use_cache=True)
            got, cache = [prefill.logits], prefill.past_key_values
            for position in range(6, 9):
                out = placed(ids[:, position : position + 1], past_key_values=cache, use_cache=True)
                got.append(out.logits)
        error = (torch.cat(got, 1) - expected).norm() / expected.norm()
        assert error < tolerance, f"relative error {error:.2e}"
        return placed

    return check
