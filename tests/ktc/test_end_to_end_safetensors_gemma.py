"""Gemma 3 as a safetensors folder, written from the dequantised weights of its GGUF file; `quant q4_k` at load."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from support.gguf_files import write_safetensors_folder
from support.real_models import GEMMA3
from support.references import Reference, reference

import ktc
from ktc.verify import compare_logits, logits_of

pytestmark = pytest.mark.models

RULES = """include "std/gemma3.kt"
device host = cpu (memory = 4GiB)
rule everything { match ** place host }
"""
POSITIONS = 128


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    ref: Reference = reference(GEMMA3)
    return write_safetensors_folder(ref.model, tmp_path_factory.mktemp("gemma") / "model", ref.tokenizer)


@pytest.mark.parametrize(
    ("rule", "kl", "top1"),
    [
        ("", 1e-8, 1.0),
        # of Gemma's matrices only down_proj has rows (2048) that divide into blocks of 256
        ("rule w { match model.layers[*].mlp.down_proj quant q4_k expect layers }\n", 0.1, 0.8),
        ("rule w { match model.layers[*].mlp.down_proj quant q6_k expect layers }\n", 0.01, 0.9),
    ],
)
def test_formats(folder: Path, rule: str, kl: float, top1: float) -> None:
    ref = reference(GEMMA3)
    model: Any = ktc.compile(RULES + rule, model=folder).load()
    found = compare_logits(ref.logits[:POSITIONS], logits_of(model, ref.ids[:, :POSITIONS]))
    assert found.kl_mean < kl and found.top1 >= top1, found
